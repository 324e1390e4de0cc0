"""Derived runs for tests: of smoke runs, made in this process."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lightning_modules.networks import build
from pipeline.data import manifest
from pipeline.data.batches import BatchBuilder
from pipeline.data.images import LabelledImages
from pipeline.data.manifest import Manifest
from pipeline.data.normalise import fit_normaliser
from pipeline.data.transfer_sets.images import TransferSet
from pipeline.declare.derived import DerivedSpec, EnsembleSpec
from pipeline.derive.run import make_derived
from pipeline.plan.expand import DerivedRun, Run
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import images_of, task_at

ENSEMBLE = EnsembleSpec(kind="ensemble", members={"resnet-20": 3})


def derived_of(spec: DerivedSpec, runs: Sequence[Run]) -> DerivedRun:
    """Return the derived run "it" with these members."""
    return DerivedRun(runs[0].experiment, runs[0].scale, "it", runs[0].seed, spec, tuple(runs))


def make_in(
    path: Path,
    derived: DerivedRun,
    folders: Sequence[RunFolder],
    images: Any = None,
    *,
    other: Any = None,
    changed_manifest: Manifest | None = None,
    **options: Any,
) -> Record | None:
    """Make the derived run in the folder `path`; its members are in `folders`."""
    images = images or images_of("noise")
    needs = tuple(str(folder.path) for folder in folders)
    if isinstance(other, TransferSet):
        task = task_at(path, derived, images, identity="id", needs=needs)
        changed_manifest = changed_manifest or other.manifest
    else:
        task = task_at(path, derived, other or images, identity="id", needs=needs)
    if changed_manifest:
        task = replace(task, manifest=manifest.manifest_to_dict(changed_manifest))
    return make_derived(task, images, other, **options)


def load_member(folder: RunFolder, run: Run) -> nn.Module:
    """Return a run's network, loaded without the code under test."""
    network = build(run.recipe.model.name, run.recipe.model.args, num_classes=10, in_channels=3)
    network.load_state_dict(load_file(folder.network_file))
    return network.eval()


def scores_of(
    networks: Sequence[nn.Module],
    images: LabelledImages,
    training: LabelledImages,
    *,
    normalise: str = "per-pixel-mean",
    pad_to: int | None = None,
) -> Tensor:
    """Return the scores of each network on all images, normalised by `training`: (networks, N, classes)."""
    builder = BatchBuilder(images, normalise=fit_normaliser(normalise, training), pad_to=pad_to)
    with torch.inference_mode():
        pixels = builder(torch.arange(len(images)))
        return torch.stack([network(pixels) for network in networks])


def copy_record(folder: RunFolder, path: Path, **changes: Any) -> RunFolder:
    """Write a folder's record, changed, to the new folder `path`, without its network."""
    record = replace(folder.result(), **changes)
    path.mkdir()
    RunFolder(path).finish(record)
    return RunFolder(path)


def fake_run_folder(path: Path, network: nn.Module, record: Record, images_manifest: Manifest) -> RunFolder:
    """Write the folder of a run that was never trained, with this network."""
    folder = RunFolder(path)
    path.mkdir()
    folder.finish(
        replace(record, manifest=images_manifest.sha256[:16]), {"network.safetensors": save(network.state_dict())}
    )
    return folder
