"""Make tasks from runs: read the data for manifests and the code for its hash."""

import inspect
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.paths import data_folder, runs_folder
from pipeline.declare.derived import TransferSpec
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.identity import code_hash, derived_code_hash, identity
from pipeline.plan.task import Task
from pipeline.schedule.task_cache import TaskCache, manifest_key
from pipeline.track.run_folder import RunFolder


def make_tasks(runs: Iterable[Run | DerivedRun], cache: TaskCache | None = None) -> list[Task]:
    """Return a task for each run: read the data for its manifest and the code for its hash; add both to `cache`.

    Raises UserError for data that cannot be read and networks that cannot be built, before any worker starts.
    """
    return TaskBuilder(TaskInputs(cache or TaskCache())).tasks(runs)


def finished_tasks(runs: Iterable[Run | DerivedRun], cache: TaskCache) -> list[Task] | None:
    """Return the tasks of `runs` if all of them are finished on this machine, from the cache alone; else None."""
    try:
        tasks = TaskBuilder(CachedInputs(cache)).tasks(runs)
    except KeyError:
        return None
    return tasks if all(RunFolder(task.folder).result_file.is_file() for task in tasks) else None


class TaskInputs:
    """Reads manifests from the data and hashes the code, each once, and checks that networks fit the data."""

    def __init__(self, cache: TaskCache) -> None:
        self.cache = cache
        self.sets: dict[tuple[str, bool], tuple[Any, dict[str, Any]]] = {}  # images and manifest
        self.codes: dict[str, str] = {}  # by name of the network
        self.checked: set[tuple[str, str]] = set()

    def images(self, name: str, is_sharded: bool) -> tuple[Any, dict[str, Any]]:
        """Return a data set and its manifest."""
        from pipeline.data.manifest import manifest_of, manifest_to_dict
        from pipeline.data.sources import load_images

        if (name, is_sharded) not in self.sets:
            key = manifest_key(
                name, is_sharded=is_sharded
            )  # before reading: a change during it is noticed next time
            images = load_images(name, data_folder(), sharded=is_sharded)
            manifest = manifest_to_dict(manifest_of(images))
            self.cache.add_manifest(name, key, manifest, is_sharded=is_sharded)
            self.sets[name, is_sharded] = images, manifest
        return self.sets[name, is_sharded]

    def manifest(self, name: str, is_sharded: bool) -> dict[str, Any]:
        """Return the manifest of a data set."""
        return self.images(name, is_sharded)[1]

    def check(self, run: Run) -> None:
        """Raise UserError where a variant's network and images do not fit."""
        if (run.experiment, run.variant) not in self.checked:
            data = run.recipe.data
            check_run(run, self.images(data.name, data.crop is not None)[0])
            self.checked.add((run.experiment, run.variant))

    def code(self, network: str) -> str:
        """Return the code hash of a network."""
        from lightning_modules.networks import NETWORKS

        if network not in self.codes:
            self.codes[network] = code_hash(Path(inspect.getsourcefile(NETWORKS[network].build) or ""))
            self.cache.add_code(network, self.codes[network])
        return self.codes[network]


class CachedInputs:
    """Manifests and code hashes from the cache; KeyError for what it does not hold."""

    def __init__(self, cache: TaskCache) -> None:
        self.cache = cache

    @lru_cache  # noqa: B019 - lives as long as one command
    def manifest(self, name: str, is_sharded: bool) -> dict[str, Any]:
        """Return the manifest of a data set."""
        return self.cache.manifest(name, is_sharded=is_sharded)

    def check(self, run: Run) -> None:
        """Check nothing: a finished run fits its data."""

    def code(self, network: str) -> str:
        """Return the code hash of a network."""
        return self.cache.codes[network]


class TaskBuilder:
    """Builds tasks; computes once what several tasks share."""

    def __init__(self, inputs: TaskInputs | CachedInputs) -> None:
        self.inputs = inputs
        self.runs: dict[tuple[str, bool], Task] = {}

    def tasks(self, runs: Iterable[Run | DerivedRun]) -> list[Task]:
        """Return the task of each run, in order."""
        return [self.of_run(run) if isinstance(run, Run) else self.of_derived(run) for run in runs]

    def of_run(self, run: Run) -> Task:
        """Return the task of a run."""
        key = run.declaration, bool(run.changes)
        if key in self.runs:
            return replace(self.runs[key], run=run)
        data = run.recipe.data
        manifest = self.inputs.manifest(data.name, data.crop is not None)
        self.inputs.check(run)
        code = self.inputs.code(run.recipe.model.name)
        self.runs[key] = make_task(run, identity(run, manifest=manifest["sha256"], code=code), code, manifest)
        return self.runs[key]

    def of_derived(self, derived: DerivedRun) -> Task:
        """Return the task of a derived run, which names the identities of its members."""
        members = [self.of_run(member) for member in derived.members]
        data = derived.members[0].recipe.data
        name = derived.spec.data if isinstance(derived.spec, TransferSpec) else data.name
        manifest = self.inputs.manifest(name, data.crop is not None)
        code = derived_code_hash(derived, [member.code for member in members])
        needs = tuple(member.identity for member in members)
        own = identity(derived, manifest=manifest["sha256"], code=code, members=needs)
        return replace(make_task(derived, own, code, manifest), needs=needs)


def make_task(run: Run | DerivedRun, name: str, code: str, manifest: dict[str, Any]) -> Task:
    """Return the task of a run whose identity is `name`."""
    return Task(run, name, code, manifest, runs_folder() / name, data_folder())


def check_run(run: Run, images: Any) -> None:
    """Raise UserError where network and images do not fit, before a worker starts.

    The network is built without memory for weights and applied to one image of the declared shape.
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
