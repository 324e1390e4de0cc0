"""What is handed to whatever trains: a run or a step, with what its identity was made from. Also as plain data,
since a launch outlives the processes that carry it out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pipeline.common.provenance import commit
from pipeline.declare.derived import DerivedSpec
from pipeline.declare.recipe import Recipe
from pipeline.plan.expand import DerivedRun, Run
from pipeline.track.record import describe_run

DERIVED_SPEC: TypeAdapter[DerivedSpec] = TypeAdapter(Annotated[DerivedSpec, Field(discriminator="kind")])


@dataclass(frozen=True)
class Task:
    """A run to train, or a step to be done with runs that have ended."""

    run: Run | DerivedRun
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
    def is_distributable(self) -> bool:
        """Whether several devices can train it at once; patterns that are learned one by one need one device."""
        return isinstance(self.run, Run) and self.run.recipe.train.optimizer.name != "sdlm"

    def description(self) -> dict[str, Any]:
        """What the run is, for its folder and for tracking while it trains."""
        run = self.run
        if isinstance(run, Run):
            return describe_run(run, self.identity, self.manifest)
        return {
            "identity": self.identity,
            "experiment": run.experiment,
            "scale": run.scale,
            "variant": run.variant,
            "seed": run.seed,
            "changes": run.changes,
            "declaration": run.declaration,
            "recipe": {"derived": run.spec.model_dump(mode="json")},
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
            "run": run_to_dict(self.run),
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
            run=run_from_dict(raw["run"]),
            identity=raw["identity"],
            code=raw["code"],
            manifest=raw["manifest"],
            folder=Path(raw["folder"]),
            data_root=Path(raw["data_root"]),
            device_batch=raw["device_batch"],
            needs=tuple(raw["needs"]),
        )


def run_to_dict(run: Run | DerivedRun) -> dict[str, Any]:
    """A run or a step as plain data, for JSON."""
    common = {"experiment": run.experiment, "scale": run.scale, "variant": run.variant, "seed": run.seed}
    if isinstance(run, Run):
        return common | {"recipe": run.recipe.model_dump(mode="json"), "changes": dict(run.changes)}
    members = [run_to_dict(member) for member in run.members]
    return common | {"derived": run.spec.model_dump(mode="json"), "members": members}


def run_from_dict(raw: dict[str, Any]) -> Run | DerivedRun:
    """From `plain`'s."""
    if "derived" not in raw:
        return Run(**raw | {"recipe": Recipe.model_validate(raw["recipe"])})
    members = tuple(Run(**one | {"recipe": Recipe.model_validate(one["recipe"])}) for one in raw["members"])
    common = {key: raw[key] for key in ("experiment", "scale", "variant", "seed")}
    return DerivedRun(**common, spec=DERIVED_SPEC.validate_python(raw["derived"]), members=members)
