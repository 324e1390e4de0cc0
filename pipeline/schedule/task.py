"""What is handed to whatever trains: a run or a step, with what its identity was made from. Also as plain data,
since a launch outlives the processes that carry it out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pipeline.common.provenance import commit
from pipeline.declare.derived import AnyStep
from pipeline.declare.recipe import Recipe
from pipeline.plan.expand import Run, Step
from pipeline.track.record import describe

STEP: TypeAdapter[AnyStep] = TypeAdapter(Annotated[AnyStep, Field(discriminator="kind")])


@dataclass(frozen=True)
class Task:
    """A run to train, or a step to be done with runs that have ended."""

    run: Run | Step
    identity: str
    code: str
    manifest: dict[str, Any]
    folder: Path
    data_root: Path
    device_batch: int | None = None  # at most so many images go through a device at a time; None: its whole share
    needs: tuple[str, ...] = ()  # identities of what must have ended before

    @property
    def title(self) -> str:
        """For a person, where several experiments may be at work: 'resnet/cifar10_depth resnet-20 seed 0'."""
        return f"{self.run.experiment} {self.run.title}"

    @property
    def together(self) -> bool:
        """Whether several devices can train it at once; patterns that are learned one by one need one device."""
        return isinstance(self.run, Run) and self.run.recipe.train.optimizer.name != "sdlm"

    def description(self) -> dict[str, Any]:
        """What the run is, for its folder and for tracking while it trains."""
        run = self.run
        if isinstance(run, Run):
            return describe(run, self.identity, self.manifest)
        return {
            "identity": self.identity,
            "experiment": run.experiment,
            "scale": run.scale,
            "variant": run.variant,
            "seed": run.seed,
            "changes": run.changes,
            "declaration": run.declaration,
            "recipe": {"step": run.step.model_dump(mode="json")},
            "needs": [
                {"run": member.title, "identity": need}
                for member, need in zip(run.members, self.needs, strict=True)
            ],
            "manifest": dict(self.manifest),
            "commit": commit(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "run": plain(self.run),
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
        return cls(
            run=from_plain(raw["run"]),
            identity=raw["identity"],
            code=raw["code"],
            manifest=raw["manifest"],
            folder=Path(raw["folder"]),
            data_root=Path(raw["data_root"]),
            device_batch=raw["device_batch"],
            needs=tuple(raw["needs"]),
        )


def plain(run: Run | Step) -> dict[str, Any]:
    """A run or a step as plain data, for JSON."""
    common = {"experiment": run.experiment, "scale": run.scale, "variant": run.variant, "seed": run.seed}
    if isinstance(run, Run):
        return common | {"recipe": run.recipe.model_dump(mode="json"), "changes": dict(run.changes)}
    members = [plain(member) for member in run.members]
    return common | {"step": run.step.model_dump(mode="json"), "members": members}


def from_plain(raw: dict[str, Any]) -> Run | Step:
    """From `plain`'s."""
    if "step" not in raw:
        return Run(**raw | {"recipe": Recipe.model_validate(raw["recipe"])})
    members = tuple(Run(**one | {"recipe": Recipe.model_validate(one["recipe"])}) for one in raw["members"])
    return Step(**raw | {"step": STEP.validate_python(raw["step"]), "members": members})
