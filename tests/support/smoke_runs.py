"""Runs at smoke scale, trained in half a second each, and the processes that train them."""

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.data import manifest, sources
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.plan.identity import identity as identity_of
from pipeline.plan.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.train.train import train

RESNET, LENET = "resnet/cifar10_depth", "lenet5/mnist"
CODE = "code-under-test"
# Processes forked from one that has imported this module start in half a second, new ones in eight. The fork
# server finds the module through PYTHONPATH.
ROOT = Path(__file__).parents[2]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.support.smoke_runs"])
NO_DATA_FOLDER = Path("/nonexistent")  # smoke runs read no files


def smoke_run(
    variant: str = "resnet-20",
    seed: int = 0,
    *,
    experiment: str = RESNET,
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """Return one run of an experiment at smoke scale."""
    runs = plan_runs(
        load_experiment(experiment), scale="smoke", variants=[variant], seeds=seed + 1, changes=changes
    )
    return next(run for run in runs if run.seed == seed)


def with_network(name: str, changes: Mapping[str, Any] | None = None, **arguments: Any) -> Run:
    """Return a smoke run of another network."""
    run = smoke_run(changes=changes)
    model = type(run.recipe.model)(name=name, **arguments)
    return dataclasses.replace(run, recipe=run.recipe.model_copy(update={"model": model}))


@cache
def images_of(name: str) -> Any:
    """Return the data set of that name, loaded once per process."""
    return sources.load_images(name, NO_DATA_FOLDER)


@cache
def manifest_of(name: str) -> Any:
    """Return the manifest of the data set of that name."""
    return manifest.manifest_of(images_of(name))


def task_at(path: Path, run: Run | DerivedRun, images: Any, *, identity: str = "", **fields: Any) -> Task:
    """Return a task whose run folder is `path`; of a derived run, `needs` may be paths of its members' folders.

    The cache of decoded images is beside the run folder unless `data_root` says otherwise.
    """
    found = manifest.manifest_of(images)
    name = identity or identity_of(run, manifest=found.sha256, code=CODE)
    fields = {"data_root": path.parent} | fields
    return Task(run, name, CODE, manifest.manifest_to_dict(found), path, **fields)


def train_in(path: Path, run: Run, *, device_batch: int | None = None, **options: Any) -> Record | None:
    """Train in this process, in the run folder `path`."""
    images = images_of(run.recipe.data.name)
    return train(task_at(path, run, images, device_batch=device_batch), images, **options)


def train_with_checkpoint_every_step(path: Path, run: Run) -> None:
    """Train with a checkpoint after every step; to be called in a process of its own."""
    os.environ["REPRO_CHECKPOINT_SECONDS"] = "0"
    train_in(path, run)


def smoke_task(root: Path, run: Run, data_root: Path = NO_DATA_FOLDER) -> Task:
    """Return a task for a worker process, with its run folder in `root`."""
    found = manifest_of(run.recipe.data.name)
    name = identity_of(run, manifest=found.sha256, code=CODE)
    return Task(run, name, CODE, manifest.manifest_to_dict(found), root / name, data_root)


def train_past_a_damaged_checkpoint(path: Path, run: Run, steps: tuple[int, int]) -> Record | None:
    """Train with two stops, damage the newest checkpoint, and finish: the journal is ahead of the checkpoint."""
    for count in steps:
        train_in(path, run, stop=stop_after(count))
    newest, _ = RunFolder(path).checkpoint_files()
    newest.write_bytes(b"damaged")
    return train_in(path, run)


def weights(path: Path) -> bytes:
    """Return the bytes of the final network."""
    return RunFolder(path).network_file.read_bytes()


def journal_metrics(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Return (step, metrics) of every journal entry, without the times."""
    return [(entry["step"], entry["metrics"]) for entry, _ in RunFolder(path).journal()]


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a `stop` function that returns True from its `steps`-th call on."""
    calls = iter(range(1, 10**9))
    return lambda: next(calls) >= steps
