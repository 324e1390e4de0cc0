"""Results of published weights on data sets, in files. Does not import torch, which takes seconds."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.common.hashing import digest
from pipeline.common.paths import home


@dataclass(frozen=True)
class PublishedResult:
    """Errors of published weights on a data set, in percent."""

    network: str
    weights: str
    sha256: str
    differs: str
    data: str
    protocol: str
    images: int
    top1: float
    top5: float
    stated_top1: float | None
    ignored: int  # files in the folder that are not images
    hardware: str
    commit: str
    evaluated: str  # date and time, UTC
    manifest: str = ""  # hash of the data: of a set's manifest, or of a folder's names and sizes
    normalisation: str = ""  # of the input: "mean ... and standard deviation ..."
    class_order: str = ""  # of the network's outputs: "ILSVRC's WordNet ids", "labels.txt (sha256 ...)"
    assumed: str = ""  # what neither publisher nor user has said: "normalisation, test protocol, class order"
    given: str = ""  # options of the user that make it another result: "--normalise 0.5/0.5"
    note: str = ""  # what of the weights files was not evaluated
    skipped: str = ""  # some of the ignored files, by path

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def published_results_folder() -> Path:
    """Return the folder of results of published weights."""
    return home() / "published"


def result_key(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that make a result the same as another one: it replaces that one."""
    key = {name: result.get(name, "") for name in ("network", "sha256", "data", "protocol", "images", "manifest")}
    return key | ({"given": result["given"]} if result.get("given") else {})


def save_result(result: PublishedResult) -> Path:
    """Write a result to its file. A result of the same weights, data, protocol and options is replaced."""
    path = published_results_folder() / f"{digest(result_key(result.to_dict()))}.json"
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result.to_dict(), indent=1) + "\n")
    return path


def load_results() -> list[PublishedResult]:
    """Return all results, by data set and error. Raises UserError that names a file that cannot be read."""
    found = []
    for path in sorted(published_results_folder().glob("*.json")):
        try:
            found.append(PublishedResult(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is not a result of published weights ({error}); remove it") from None
    return sorted(found, key=lambda row: (row.data, row.top1))
