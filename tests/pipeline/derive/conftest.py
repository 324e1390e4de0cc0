"""Fixtures of the tests of derived runs: finished members, and weights to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.catalogue import NamedNetwork, find_network
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import load_all, load_experiment
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.track.run_folder import RunFolder
from pipeline.train.train import train
from tests.support.image_sets import prepare_random_set
from tests.support.smoke_runs import smoke_run, task_at

SHARDED_CHANGES = {
    "train.steps": 1,
    "train.batch_size": 2,
    "train.lr_drops": None,
    "data.test": ["1-crop-64-of-72"],
}


@pytest.fixture(scope="session")
def runs() -> list[Run]:
    """Three runs of ResNet-20."""
    return [smoke_run(seed=seed) for seed in range(3)]


@pytest.fixture(scope="session")
def folders(runs: list[Run], finished_run: Callable[[int], Path]) -> list[RunFolder]:
    """The folders of `runs`, trained for 12 steps."""
    return [RunFolder(finished_run(run.seed)) for run in runs]


@pytest.fixture(scope="session")
def sharded_changes() -> dict[str, Any]:
    """Changes of resnet/imagenet that make it a run of one step on two images."""
    return SHARDED_CHANGES


@pytest.fixture(scope="session")
def sharded_members(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Run], list[RunFolder]]:
    """A set in shards, two runs of ResNet-18 on two of its images, and their folders."""
    root = tmp_path_factory.mktemp("sharded")
    shards = prepare_random_set(root, classes=2, train=5, test=4)
    planned = plan_runs(load_experiment("resnet/imagenet"), scale="stand-in", seeds=2, changes=SHARDED_CHANGES)
    runs = [run for run in planned if not isinstance(run, DerivedRun)]
    folders = [RunFolder(root / f"run{run.seed}") for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        assert train(task_at(folder.path, run, shards), shards)
    return shards, runs, folders


@pytest.fixture(scope="session")
def experiments() -> list[Experiment]:
    """All experiments."""
    return load_all()


@pytest.fixture(scope="session")
def small_network(experiments: list[Experiment]) -> NamedNetwork:
    """A ResNet of depth 8 for CIFAR-10."""
    return find_network("resnet_cifar", experiments, {"depth": 8})


@pytest.fixture
def small_state() -> dict[str, Tensor]:
    """A random state dict of `small_network`."""
    torch.manual_seed(5)
    return resnet_cifar(depth=8).state_dict()


@pytest.fixture(scope="session")
def torchvision_state() -> dict[str, Tensor]:
    """A random state dict of torchvision's ResNet-18, with batch-norm statistics as after training."""
    torch.manual_seed(6)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.state_dict()
