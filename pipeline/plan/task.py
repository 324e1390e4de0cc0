"""Tasks: a run or derived run with its identity and its inputs, convertible to plain data for other processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pipeline.common.provenance import commit
from pipeline.declare.derived import DerivedSpec
from pipeline.declare.recipe import Recipe
from pipeline.plan.expand import DerivedRun, NetworkOfTiming, Run, member_title

DERIVED_SPEC: TypeAdapter[DerivedSpec] = TypeAdapter(Annotated[DerivedSpec, Field(discriminator="kind")])


@dataclass(frozen=True)
class Task:
    """A run to train, or a derived run to make from finished runs."""

    run: Run | DerivedRun
    identity: str
    code: str  # hash of the code that can change its numbers
    manifest: dict[str, Any]  # of its data
    folder: Path
    data_root: Path
    device_batch: int | None = None  # maximum images of a micro-batch; None: the device's share of the batch
    needs: tuple[str, ...] = ()  # identities of the run's members, which must finish first

    @property
    def title(self) -> str:
        """Experiment, variant and seed: 'resnet/cifar10_depth resnet-20 seed 0'."""
        return f"{self.run.experiment} {self.run.title}"

    @property
    def is_distributable(self) -> bool:
        """True for a run that several devices can train. LeNet-5's optimizer has batch size 1, for one device."""
        return isinstance(self.run, Run) and self.run.recipe.train.optimizer.name != "sdlm"

    def description(self) -> dict[str, Any]:
        """Return experiment, recipe, data and code of the run, as plain data for its folder and for tracking."""
        run = self.run
        description: dict[str, Any] = {
            "identity": self.identity,
            "experiment": run.experiment,
            "scale": run.scale,
            "variant": run.variant,
            "seed": run.seed,
            "changes": dict(run.changes),
            "declaration": run.declaration,
            "manifest": dict(self.manifest),
            "commit": commit(),
        }
        if isinstance(run, Run):
            recipe = run.recipe.model_dump(mode="json")
        else:
            networks = {name: network.model.model_dump_json() for name, network in run.networks.items()}
            recipe = {"derived": run.spec.model_dump(mode="json")} | ({"networks": networks} if networks else {})
        members = zip(run.members, self.needs, strict=True)
        needs = [{"run": member_title(run, member), "identity": need} for member, need in members]
        return description | {"recipe": recipe} | ({"needs": needs} if needs else {})

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
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
        """Return the task that `to_dict` described."""
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
    """Return a run or derived run as plain data, for JSON."""
    common = {"experiment": run.experiment, "scale": run.scale, "variant": run.variant, "seed": run.seed}
    if isinstance(run, Run):
        start = {"start": run_to_dict(run.start)} if run.start else {}
        own = {"recipe": run.recipe.model_dump(mode="json"), "changes": dict(run.changes), "tunable": run.tunable}
        return common | own | start
    members = [run_to_dict(member) for member in run.members]
    networks = {name: network.to_dict() for name, network in run.networks.items()}
    described = {"derived": run.spec.model_dump(mode="json"), "members": members}
    return common | described | ({"networks": networks} if networks else {})


def plain_run_from_dict(raw: dict[str, Any]) -> Run:
    """Return the run, not derived, that `run_to_dict` described."""
    start = plain_run_from_dict(raw["start"]) if "start" in raw else None
    return Run(**raw | {"recipe": Recipe.model_validate(raw["recipe"]), "start": start})


def run_from_dict(raw: dict[str, Any]) -> Run | DerivedRun:
    """Return the run that `run_to_dict` described."""
    if "derived" not in raw:
        return plain_run_from_dict(raw)
    members = tuple(plain_run_from_dict(member) for member in raw["members"])
    common = {key: raw[key] for key in ("experiment", "scale", "variant", "seed")}
    networks = {name: NetworkOfTiming.from_dict(one) for name, one in raw.get("networks", {}).items()}
    spec = DERIVED_SPEC.validate_python(raw["derived"])
    return DerivedRun(**common, spec=spec, members=members, networks=networks)
