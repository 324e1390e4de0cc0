"""Real runs at smoke scale, half a second each, for the tests of everything that trains."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.data import manifest, sources
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import Run, plan_runs
from pipeline.plan.identity import identity
from pipeline.schedule.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.train.train import train

RESNET, LENET = "resnet/cifar10_depth", "lenet5/mnist"
CODE = "code-under-test"
# Processes forked from one that has imported everything: half a second each, where a fresh one takes eight.
HERE = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["real_runs"])
NOWHERE = Path("no-data-folder-is-needed")


def a_run(
    variant: str = "resnet-20",
    seed: int = 0,
    *,
    experiment: str = RESNET,
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """One run of an experiment at smoke scale."""
    runs = plan_runs(
        load_experiment(experiment), scale="smoke", variants=[variant], seeds=seed + 1, changes=changes
    )
    return next(run for run in runs if run.seed == seed)


@cache
def images_of(name: str) -> Any:
    return sources.load_images(name, NOWHERE)


@cache
def manifest_of(name: str) -> Any:
    return manifest.manifest_of(images_of(name))


def train_in(path: Path, run: Run, **options: Any) -> Record | None:
    """Train in this process, in the folder `path`."""
    data = run.recipe.data.name
    return train(
        run,
        identity=identity(run, manifest=manifest_of(data).sha256, code=CODE),
        folder=RunFolder(path),
        images=images_of(data),
        manifest=manifest_of(data),
        code=CODE,
        **options,
    )


def train_alone(path: Path, run: Run) -> None:
    """Train in a process of its own, with a checkpoint after every update."""
    os.environ["REPRO_CHECKPOINT_SECONDS"] = "0"
    train_in(path, run)


def a_task(root: Path, run: Run, data_root: Path = NOWHERE) -> Task:
    """A run for a worker process, with its folder below `root`."""
    found = manifest_of(run.recipe.data.name)
    name = identity(run, manifest=found.sha256, code=CODE)
    return Task(run, name, CODE, manifest.manifest_to_dict(found), root / name, data_root)


def weights(path: Path) -> bytes:
    """The last model, to the bit."""
    return RunFolder(path).network_file.read_bytes()


def curves(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The journal without its clock."""
    return [(entry["step"], entry["metrics"]) for entry, _ in RunFolder(path).journal()]


def stop_after(steps: int) -> Callable[[], bool]:
    """A `stop` that asks for it after that many updates."""
    asked = iter(range(1, 10**9))
    return lambda: next(asked) >= steps
