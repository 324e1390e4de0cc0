"""Make tasks from runs: read the data for manifests and the code for its hash."""

import inspect
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.paths import data_folder, runs_folder
from pipeline.declare.derived import TransferSpec
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.identity import code_hash, derived_code_hash, identity
from pipeline.schedule.task import Task


def make_tasks(runs: Iterable[Run | DerivedRun]) -> list[Task]:
    """The runs and steps with their identities: reads the data (for manifests) and the code (for its hashes).

    UserError for data that cannot be read and networks that cannot be built, before any worker starts.
    """
    make = TaskBuilder()
    return [make.of_run(run) if isinstance(run, Run) else make.of_derived(run) for run in runs]


class TaskBuilder:
    """Makes tasks; what several share is read and checked once."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, bool], tuple[Any, Any]] = {}  # images and their manifest
        self.codes: dict[str, str] = {}  # by network
        self.checked: set[tuple[str, str]] = set()
        self.runs: dict[tuple[str, bool], Task] = {}

    def images(self, name: str, photographs: bool) -> tuple[Any, Any]:
        """A set and its manifest."""
        from pipeline.data import manifest, sources

        if (name, photographs) not in self.sets:
            images = sources.load_images(name, data_folder(), photographs=photographs)
            self.sets[name, photographs] = images, manifest.manifest_of(images)
        return self.sets[name, photographs]

    def of_run(self, run: Run) -> Task:
        """A run's task."""
        from lightning_modules.networks import NETWORKS

        key = run.declaration, bool(run.changes)
        if key in self.runs:
            return replace(self.runs[key], run=run)
        data, network = run.recipe.data, run.recipe.model.name
        images, manifest = self.images(data.name, data.crop is not None)
        if (run.experiment, run.variant) not in self.checked:
            check_run(run, images)
            self.checked.add((run.experiment, run.variant))
        if network not in self.codes:
            self.codes[network] = code_hash(Path(inspect.getsourcefile(NETWORKS[network].build) or ""))
        code = self.codes[network]
        self.runs[key] = make_task(run, identity(run, manifest=manifest.sha256, code=code), code, manifest)
        return self.runs[key]

    def of_derived(self, step: DerivedRun) -> Task:
        """A step's task, which names those of its runs."""
        members = [self.of_run(member) for member in step.members]
        data = step.members[0].recipe.data
        name = step.spec.data if isinstance(step.spec, TransferSpec) else data.name
        _, manifest = self.images(name, data.crop is not None)
        code = derived_code_hash(step, [member.code for member in members])
        needs = tuple(member.identity for member in members)
        made = identity(step, manifest=manifest.sha256, code=code, members=needs)
        return replace(make_task(step, made, code, manifest), needs=needs)


def make_task(run: Run | DerivedRun, name: str, code: str, manifest: Any) -> Task:
    """The task of a run whose identity is `name`."""
    from pipeline.data.manifest import manifest_to_dict

    return Task(run, name, code, manifest_to_dict(manifest), runs_folder() / name, data_folder())


def check_run(run: Run, images: Any) -> None:
    """UserError where the network cannot be built, the images not be split or padded, or the two do not fit.

    Without memory for weights, and on one image: what a worker would find out only after it has started.
    """
    import torch

    from lightning_modules.networks import build
    from pipeline.train.inputs import input_shape

    model = run.recipe.model
    try:
        shape = input_shape(images, run.recipe.data)
        with torch.device("meta"), torch.no_grad():
            network = build(model.name, model.args, num_classes=len(images.classes), in_channels=shape[0])
            network.eval()(torch.zeros(1, *shape))
    except (ValueError, TypeError, RuntimeError) as error:
        args = ", ".join(f"{key} {value!r}" for key, value in model.args.items())
        named = f"{model.name} ({args})" if args else model.name
        what = "" if isinstance(error, ValueError) else f"{named} on {images.name} does not work: "
        raise UserError(f"{run.experiment}, {run.variant}: {what}{error}") from None
