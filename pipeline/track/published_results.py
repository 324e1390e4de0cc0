"""How published weights did on a data set, kept in files: read without torch, which takes seconds to import."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.common.hashing import digest
from pipeline.common.paths import home


@dataclass(frozen=True)
class PublishedResult:
    """How published weights do on a data set. Errors in percent."""

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
    ignored: int  # files in the folder that are no pictures
    hardware: str
    commit: str
    evaluated: str  # date and time, UTC
    manifest: str = ""  # hash of the data: of a set's manifest, or of a folder's names and sizes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def published_results_folder() -> Path:
    """Where results on published weights are kept: apart from the runs."""
    return home() / "published"


def save_result(result: PublishedResult) -> Path:
    """Write a result beside the earlier ones; the same weights on the same data and protocol replace."""
    same = {key: getattr(result, key) for key in ("network", "sha256", "data", "protocol", "images", "manifest")}
    path = published_results_folder() / f"{digest(same)}.json"
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result.to_dict(), indent=1) + "\n")
    return path


def load_results() -> list[PublishedResult]:
    """All kept results, the lowest error first; UserError names a file that cannot be read."""
    found = []
    for path in sorted(published_results_folder().glob("*.json")):
        try:
            found.append(PublishedResult(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is no result of published weights ({error}); remove it") from None
    return sorted(found, key=lambda row: (row.data, row.top1))
