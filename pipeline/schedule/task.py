"""What is handed to whatever trains: a run, with what its identity was made from. Also as plain data, since a
launch outlives the processes that carry it out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.experiment import Recipe
from pipeline.plan import Run


@dataclass(frozen=True)
class Task:
    """A run to train."""

    run: Run
    identity: str
    code: str
    manifest: dict[str, Any]
    folder: Path
    data_root: Path
    device_batch: int | None = None  # at most so many images go through a device at a time; None: its whole share
    needs: tuple[str, ...] = ()  # identities of what must have ended before

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        run = self.run
        return {
            "run": {
                "experiment": run.experiment,
                "scale": run.scale,
                "variant": run.variant,
                "seed": run.seed,
                "recipe": run.recipe.model_dump(mode="json"),
                "changes": dict(run.changes),
            },
            "identity": self.identity,
            "code": self.code,
            "manifest": self.manifest,
            "folder": str(self.folder),
            "data_root": str(self.data_root),
            "device_batch": self.device_batch,
            "needs": list(self.needs),
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Task":
        """From `to_dict`'s."""
        run = dict(raw["run"])
        run["recipe"] = Recipe.model_validate(run["recipe"])
        return cls(
            run=Run(**run),
            identity=raw["identity"],
            code=raw["code"],
            manifest=raw["manifest"],
            folder=Path(raw["folder"]),
            data_root=Path(raw["data_root"]),
            device_batch=raw["device_batch"],
            needs=tuple(raw["needs"]),
        )
