"""The content of a run's folder as a tracking server gets it: description, tags, curves, system metrics."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.common.environment import user_name
from pipeline.common.errors import UserError
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder

CURVE_POINTS = 400  # of a metric that MLflow's pages get; the journal among the artifacts has all

REQUIRED_KEYS = (  # of a run's description
    "identity",
    "experiment",
    "scale",
    "variant",
    "seed",
    "declaration",
    "manifest",
    "changes",
    "recipe",
)


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve."""

    metric: str
    value: float
    milliseconds: int  # Unix time
    step: int  # optimizer step; of a system metric the number of the sample


@dataclass(frozen=True)
class FolderContent:
    """The content of a run's folder that is sent to a tracking server."""

    description: Mapping[str, Any]
    record: Record | None
    entries: Sequence[Mapping[str, Any]]  # of the journal, from a byte offset
    end: int  # byte after the last entry
    system: Sequence[Mapping[str, Any]] = ()  # samples of system metrics, from a byte offset
    system_end: int = 0

    @classmethod
    def of(cls, folder: RunFolder, offset: int, system_offset: int = 0) -> "FolderContent":
        """Read a folder, journal and system metrics from these bytes on; UserError if it is damaged."""
        record = folder.result()  # first: it is written after the last entry of the journal
        try:
            description = folder.description()
            missing = [key for key in REQUIRED_KEYS if key not in description]
            if missing:
                raise ValueError(f"no {missing[0]}")
            lines = list(folder.journal(offset))
            system = list(folder.system_metrics(system_offset))
            if not all(entry.keys() >= {"time", "step", "metrics"} for entry, _ in [*lines, *system]):
                raise ValueError("a line of the journal is not a report")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"the run in {folder.path} cannot be read ({error}) and is not tracked; move its folder away to"
                " train it again"
            ) from None
        return cls(
            description,
            record,
            [entry for entry, _ in lines],
            lines[-1][1] if lines else offset,
            [entry for entry, _ in system],
            system[-1][1] if system else system_offset,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; 0 for a derived run, which trains nothing."""
        return int((self.description["recipe"].get("train") or {}).get("steps", 0))

    def curve_points(self, curves: dict[str, dict[str, Any]]) -> Iterator[CurvePoint]:
        """Yield the points of the curves, at most about CURVE_POINTS of each metric, evenly spaced.

        `curves` holds for each metric the step of its last point and the point that was left out after it, and is
        updated. The last points of a run that has ended are always among those yielded.
        """
        spacing = self.steps / CURVE_POINTS
        for entry in self.entries:
            when, step = int(entry["time"] * 1000), entry["step"]
            for key, value in entry["metrics"].items():
                if key not in curves or step - curves[key]["step"] >= spacing:
                    curves[key] = {"step": step}
                    yield CurvePoint(key, value, when, step)
                else:
                    curves[key]["left_out"] = [value, when, step]
        if self.record:
            for key, curve in curves.items():
                if left_out := curve.pop("left_out", None):
                    yield CurvePoint(key, *left_out)

    def system_points(self) -> Iterator[CurvePoint]:
        """Yield the samples of the system metrics, named as MLflow's pages expect them."""
        for entry in self.system:
            for key, value in entry["metrics"].items():
                yield CurvePoint(f"system/{key}", value, int(entry["time"] * 1000), entry["step"])


def run_tags(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of the MLflow run of a training."""
    protocols = (description["recipe"].get("data") or {}).get("test") or [""]
    tags = {
        "repro.identity": description["identity"],
        "repro.paper": description["experiment"].partition("/")[0],
        "repro.experiment": description["experiment"],
        "repro.scale": description["scale"],
        "repro.variant": description["variant"],
        "repro.seed": str(description["seed"]),
        "repro.data": description["manifest"]["name"],
        "repro.protocol": protocols[0],
        "repro.declaration": description["declaration"],
        "repro.manifest": description["manifest"]["sha256"],
        "repro.departs": json.dumps(description["changes"]) if description["changes"] else "no",
        "mlflow.source.git.commit": description.get("commit", "unknown"),
        "mlflow.source.name": "repro",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
    }
    return {key: value for key, value in tags.items() if value}


def model_tags(record: Record) -> dict[str, str]:
    """Return the tags of a run's logged model."""
    tags = {"experiment": record.experiment, "variant": record.variant, "scale": record.scale}
    tags |= {"seed": str(record.seed), "identity": record.identity, "commit": record.commit, "data": record.data}
    return {f"repro.{key}": value for key, value in tags.items()}


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested maps with dotted keys: {"train": {"lr": 0.1}} -> {"train.lr": 0.1}."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
