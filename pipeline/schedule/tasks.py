"""Make tasks from runs: read the data for their manifests, and hash the code."""

import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.common.paths import data_folder, runs_folder
from pipeline.common.words import first_line
from pipeline.declare.derived import RANDOM_PIXELS, ColumnSpec, CompressionSpec
from pipeline.declare.localisation import LocalisationSpec
from pipeline.declare.transfer import TransferSpec, is_transfer_set
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.identity import code_hash, derived_code_hash, identity
from pipeline.plan.task import Task
from pipeline.schedule.task_cache import TaskCache, manifest_key
from pipeline.track.run_folder import RunFolder


def make_tasks(runs: Iterable[Run | DerivedRun], cache: TaskCache | None = None) -> list[Task]:
    """Return a task for each run. Data manifests and code hashes are added to `cache`.

    Raises UserError, before any worker starts, for data that cannot be read and networks that cannot be built.
    """
    return TaskBuilder(TaskInputs(cache or TaskCache())).tasks(runs)


def finished_tasks(runs: Iterable[Run | DerivedRun], cache: TaskCache) -> list[Task] | None:
    """Return the tasks of `runs` from the cache alone; None if one has not ended on this machine."""
    try:
        tasks = TaskBuilder(CachedInputs(cache)).tasks(runs)
    except KeyError:
        return None
    return tasks if all(RunFolder(task.folder).result_file.is_file() for task in tasks) else None


def planned_tasks(runs: Iterable[Run | DerivedRun], cache: TaskCache) -> list[Task]:
    """Return the tasks of `runs` for a plan that is only shown: from the cache alone where it suffices.

    Else everything is read as in `make_tasks`, and the cache is written for the next plan.
    """
    runs = list(runs)
    try:
        return TaskBuilder(CachedInputs(cache, needs_checks=True)).tasks(runs)
    except KeyError:
        tasks = make_tasks(runs, cache)
        cache.write()
        return tasks


class TaskInputs:
    """Reads data manifests and hashes code, each once, and checks that networks and data fit."""

    def __init__(self, cache: TaskCache) -> None:
        self.cache = cache
        self.sets: dict[tuple[str, bool, bool], tuple[Any, dict[str, Any]]] = {}  # images and manifest
        self.transfers: dict[str, dict[str, Any]] = {}  # manifests of sets for transfers
        self.codes: dict[str, str] = {}  # by name of the network
        self.checked: set[str] = set()  # keys of what fits

    def images(self, name: str, is_sharded: bool, boxes: bool = False) -> tuple[Any, dict[str, Any]]:
        """Return a data set and its manifest as plain data."""
        from pipeline.data.manifest import manifest_of, manifest_to_dict
        from pipeline.data.sources import load_images

        if (name, is_sharded, boxes) not in self.sets:
            # Computed before reading, so that the next command notices a change during it.
            key = manifest_key(name, is_sharded=is_sharded)
            images = load_images(name, data_folder(), sharded=is_sharded, boxes=boxes)
            manifest = manifest_to_dict(manifest_of(images))
            self.cache.add_manifest(name, key, manifest, is_sharded=is_sharded, boxes=boxes)
            self.sets[name, is_sharded, boxes] = images, manifest
        return self.sets[name, is_sharded, boxes]

    def manifest(self, name: str, is_sharded: bool, boxes: bool = False) -> dict[str, Any]:
        """Return the manifest of a data set."""
        return self.images(name, is_sharded, boxes)[1]

    def transfer_manifest(self, name: str) -> dict[str, Any]:
        """Return the manifest of a set for transfers, whose archives are downloaded if they are missing."""
        from pipeline.data.manifest import manifest_to_dict
        from pipeline.data.transfer_sets.load import load_transfer_set

        if name not in self.transfers:
            manifest = manifest_to_dict(load_transfer_set(name, data_folder()).manifest)
            key = manifest_key(name, is_sharded=True)  # after a download; the archives do not change
            self.cache.add_manifest(name, key, manifest, is_sharded=True)
            self.transfers[name] = manifest
        return self.transfers[name]

    def check(self, run: Run) -> None:
        """Raise UserError if a variant's network and images do not fit."""
        data = run.recipe.data
        images, manifest = self.images(data.name, data.crop is not None, data.boxes)
        key = check_key(run, manifest["sha256"])
        if key not in self.checked:
            check_run(run, images)
            self.checked.add(key)
            self.cache.add_check(key)

    def check_derived(self, derived: DerivedRun) -> None:
        """Raise UserError if the network of a derived run's members lacks what the derived run needs."""
        key = derived_check_key(derived)
        if key not in self.checked:
            check_derived_run(derived)
            self.checked.add(key)
            self.cache.add_check(key)

    def code(self, network: str) -> str:
        """Return the code hash of a network."""
        from lightning_modules.networks import NETWORKS

        if network not in self.codes:
            self.codes[network] = code_hash(Path(inspect.getsourcefile(NETWORKS[network].build) or ""))
            self.cache.add_code(network, self.codes[network])
        return self.codes[network]


class CachedInputs:
    """Returns manifests and code hashes from the cache. Raises KeyError for those that it does not hold.

    `needs_checks`: also for runs whose network and data have not been checked. Those of finished runs fit.
    """

    def __init__(self, cache: TaskCache, *, needs_checks: bool = False) -> None:
        self.cache = cache
        self.needs_checks = needs_checks

    @lru_cache  # noqa: B019 - lives as long as one command
    def manifest(self, name: str, is_sharded: bool, boxes: bool = False) -> dict[str, Any]:
        """Return the manifest of a data set."""
        return self.cache.manifest(name, is_sharded=is_sharded, boxes=boxes)

    def transfer_manifest(self, name: str) -> dict[str, Any]:
        """Return the manifest of a set for transfers."""
        return self.manifest(name, True)

    def check(self, run: Run) -> None:
        """Raise KeyError if the cache does not say that network and data fit, and this has to be known."""
        if self.needs_checks:
            data = run.recipe.data
            manifest = self.manifest(data.name, data.crop is not None, data.boxes)
            self.cache.require_check(check_key(run, manifest["sha256"]))

    def check_derived(self, derived: DerivedRun) -> None:
        """Raise KeyError if the cache does not say that the network fits, and this has to be known."""
        if self.needs_checks:
            self.cache.require_check(derived_check_key(derived))

    def code(self, network: str) -> str:
        """Return the code hash of a network."""
        return self.cache.codes[network]


class TaskBuilder:
    """Builds tasks. Runs that differ only in their title share manifest, code hash and identity."""

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
        manifest = self.inputs.manifest(data.name, data.crop is not None, data.boxes)
        self.inputs.check(run)
        code = self.inputs.code(run.recipe.model.name)
        needs = tuple(self.of_run(member).identity for member in run.members)
        own_identity = identity(run, manifest=manifest["sha256"], code=code, members=needs)
        self.runs[key] = replace(make_task(run, own_identity, code, manifest), needs=needs)
        return self.runs[key]

    def of_derived(self, derived: DerivedRun) -> Task:
        """Return the task of a derived run; its `needs` are the identities of its members."""
        if derived.networks:
            return self.of_timing(derived)
        members = [self.of_run(member) for member in derived.members]
        self.inputs.check_derived(derived)
        data, spec = derived.members[0].recipe.data, derived.spec
        name = spec.data if isinstance(spec, TransferSpec) else data.name
        if isinstance(spec, TransferSpec) and is_transfer_set(name):
            manifest = self.inputs.transfer_manifest(name)
        else:
            manifest = self.inputs.manifest(name, data.crop is not None, derived.needs_boxes)
        code = derived_code_hash(derived, [member.code for member in members])
        needs = tuple(member.identity for member in members)
        derived_identity = identity(derived, manifest=manifest["sha256"], code=code, members=needs)
        return replace(make_task(derived, derived_identity, code, manifest), needs=needs)

    def of_timing(self, timing: DerivedRun) -> Task:
        """Return the task of a timing, which needs no runs and no data."""
        manifest = random_pixels_manifest()
        code = derived_code_hash(timing, [self.inputs.code(one.model.name) for one in timing.networks.values()])
        return make_task(timing, identity(timing, manifest=manifest["sha256"], code=code), code, manifest)


def random_pixels_manifest() -> dict[str, Any]:
    """Return the manifest of random pixels: a name, and no images or classes."""
    from pipeline.data.manifest import Manifest, manifest_to_dict

    sha256 = hashlib.sha256(RANDOM_PIXELS.encode()).hexdigest()
    counts: dict[str, list[int]] = {"train": [], "test": []}
    return manifest_to_dict(Manifest(RANDOM_PIXELS, "drawn from the seed", (), (3, 0, 0), 0, 0, counts, sha256))


def make_task(run: Run | DerivedRun, run_identity: str, code: str, manifest: dict[str, Any]) -> Task:
    """Return the task of a run with this identity, in the runs folder."""
    return Task(run, run_identity, code, manifest, runs_folder() / run_identity, data_folder())


def check_key(run: Run, manifest: str) -> str:
    """Return the hash of what `check_run` depends on, beside the code: recipes and data."""
    recipes = [one.recipe.model_dump(mode="json") for one in (run, *run.members)]
    return digest({"recipes": recipes, "manifest": manifest})


def derived_check_key(derived: DerivedRun) -> str:
    """Return the hash of what `check_derived_run` depends on, beside the code: settings and networks."""
    networks = [
        (name, one.recipe.model.model_dump(mode="json"))
        for name, one in zip(derived.member_names, derived.members, strict=True)
    ]
    return digest({"settings": derived.spec.model_dump(mode="json"), "networks": networks})


def check_run(run: Run, images: Any) -> None:
    """Raise UserError if network and images do not fit.

    Builds the network on the meta device and applies it to one image of the declared shape.
    """
    import torch

    from lightning_modules.fractal_columns import check_columns
    from lightning_modules.networks import build
    from lightning_modules.weights import copied_layers, layer_parameters, train_only
    from pipeline.train.inputs import input_shape

    model = run.recipe.model
    shape: tuple[int, ...] = ()
    try:
        shape = input_shape(images, run.recipe.data)
        with torch.device("meta"), torch.no_grad():
            network = build(model.name, model.args, num_classes=len(images.classes), in_channels=shape[0])
            network.eval()(torch.zeros(1, *shape))
            if getattr(network, "predicts_boxes", False) != run.recipe.data.boxes:
                does = "predicts no boxes" if run.recipe.data.boxes else "predicts bounding boxes"
                raise ValueError(f"{model.name} {does}, but data.boxes is {str(run.recipe.data.boxes).lower()}")
            for layer in run.recipe.train.gradient_norms:
                layer_parameters(network, layer)
            if run.recipe.train.column_losses:
                check_columns(network, run.recipe.train.column_losses)
            if run.recipe.train.trainable:
                train_only(network, run.recipe.train.trainable)
            if run.start and run.recipe.train.start:
                origin = run.start.recipe.model
                start = build(origin.name, origin.args, num_classes=len(images.classes), in_channels=shape[0])
                copied_layers(start.state_dict(), network, run.recipe.train.start.layers)
    except (ValueError, TypeError, RuntimeError) as error:
        args = ", ".join(f"{key} {value!r}" for key, value in model.args.items())
        network_name = f"{model.name} ({args})" if args else model.name
        size = " x ".join(map(str, shape))
        context = "" if isinstance(error, ValueError) else f"{network_name} cannot read images of {size}: "
        at = f"{run.experiment}, {run.variant} on {images.name}"
        raise UserError(f"{at}: {context}{first_line(error)}") from None


def check_derived_run(derived: DerivedRun) -> None:
    """Raise UserError for a column or a layer that a network does not have.

    Builds the network on the meta device.
    """
    if isinstance(derived.spec, LocalisationSpec):
        check_localisation(derived, derived.spec)
    if not isinstance(derived.spec, ColumnSpec | CompressionSpec | TransferSpec):
        return
    import torch

    from lightning_modules.networks import NETWORKS, build
    from pipeline.derive.column import column_index
    from pipeline.derive.feature_network import feature_network
    from pipeline.derive.quantise import compressible_layers, layer_settings

    try:
        for member in derived.members[:1] if not isinstance(derived.spec, TransferSpec) else derived.members:
            model = member.recipe.model
            known = NETWORKS[model.name]
            with torch.device("meta"):
                network = build(model.name, model.args, num_classes=known.classes, in_channels=known.image[0])
            if isinstance(derived.spec, ColumnSpec):
                column_index(network, derived.spec)
            elif isinstance(derived.spec, TransferSpec):
                feature_network(network, derived.spec.layer, known.image)
            else:
                layer_settings(derived.spec, compressible_layers(network))
    except ValueError as error:
        raise UserError(f"{derived.experiment}, {derived.variant}: {error}") from None


def check_localisation(derived: DerivedRun, spec: LocalisationSpec) -> None:
    """Raise UserError for a network that cannot be applied densely: to predict boxes, or to rate them."""
    from lightning_modules.networks import NETWORKS

    for variant, member in zip(derived.member_names, derived.members, strict=True):
        method = "box_map" if variant in spec.boxes else "score_map"
        name = member.recipe.model.name
        result = get_type_hints(NETWORKS[name].build)["return"]
        if not hasattr(result, method):
            does = "predict boxes" if method == "box_map" else "rate boxes"
            raise UserError(
                f"{derived.experiment}, {derived.variant}: {name} cannot {does} at every position of an image;"
                " use a network of vgg"
            )
