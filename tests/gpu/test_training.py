"""Runs on a real GPU: precision, compiler, resuming, two ranks on one device, batches and evaluation.

    make test-gpu

Numbers are compared with those of the same run on the CPU. They are not the same bits: the order of sums differs.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks import build
from pipeline.data.batches import BatchBuilder, evaluation_batches
from pipeline.data.images import LabelledImages
from pipeline.data.normalise import fit_normaliser
from pipeline.track.run_folder import RunFolder
from pipeline.train.evaluate import evaluate_batches
from pipeline.train.execution import Execution, StepTimer, fastest
from pipeline.train.process import has_bf16, has_tf32
from tests.support.rank_processes import Ranks
from tests.support.smoke_runs import journal_metrics, smoke_run, stop_after, train_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
ROUNDING = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 3e-2}  # largest difference of the loss of two steps


def losses(path: Path) -> dict[int, float]:
    return {step: found["train/loss"] for step, found in journal_metrics(path)}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory) -> dict[int, float]:
    """Training losses of the smoke run on the CPU, by step."""
    path = tmp_path_factory.mktemp("on_cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        train_in(path, smoke_run())
    return losses(path)


# --- one run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_run_in_each_precision_has_the_losses_of_the_cpu(tmp_path, on_cpu, precision, channels_last):
    if (precision == "bf16" and not has_bf16("cuda")) or (precision == "tf32" and not has_tf32()):
        pytest.skip(f"this GPU has no {precision}")
    record = train_in(
        tmp_path, smoke_run(changes={"train.precision": precision, "train.channels_last": channels_last})
    )
    assert (record.status, record.precision, record.channels_last) == ("finished", precision, channels_last)
    assert record.hardware.startswith(torch.cuda.get_device_name())
    assert record.costs["train/peak_memory_mib"] > 1
    assert losses(tmp_path)[2] == pytest.approx(on_cpu[2], abs=ROUNDING[precision])
    assert record.metrics["test/images"] == 100


def test_compiled_run_has_the_losses_of_the_cpu(tmp_path, on_cpu):
    record = train_in(tmp_path, smoke_run(changes={"train.compile": True, "train.channels_last": True}))
    assert record.compiled
    assert losses(tmp_path)[2] == pytest.approx(on_cpu[2], abs=ROUNDING["fp32"])


def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_in(whole, smoke_run())
    assert train_in(parts, smoke_run(), stop=stop_after(5)) is None
    record = train_in(parts, smoke_run())
    assert record.ended == "12 steps"
    assert losses(parts) == pytest.approx(losses(whole), abs=2e-2)


def train_on_rank(path: Path, run) -> object:
    return train_in(path, run)


def test_two_ranks_share_one_gpu(tmp_path, on_cpu):
    """NCCL wants a GPU for each rank, gloo does not: the collectives are on tensors of the GPU all the same."""
    ranks = Ranks(tmp_path / "ranks", 2)
    try:
        results = ranks.run(train_on_rank, tmp_path / "run", smoke_run())
    finally:
        ranks.close()
    for result in results:
        if isinstance(result, Exception):
            raise result
    assert (results[0].world, results[0].device_batch) == (2, 10)
    assert RunFolder(tmp_path / "run").result() == results[0]
    assert losses(tmp_path / "run")[2] == pytest.approx(on_cpu[2], abs=0.1)  # batch norm sees half a batch


# --- execution settings --------------------------------------------------------------------------------------


def test_settings_are_timed_and_chosen():
    torch.manual_seed(0)
    network = build("resnet_cifar", {"depth": 20}, num_classes=10, in_channels=3).to(CUDA)
    timer = StepTimer(network, (128, 3, 32, 32), CUDA, key="", cache=None)
    declared = Execution("fp32", channels_last=False, compiled=False, threads=1)
    choice = fastest(declared, 10**6, timer, bf16=has_bf16("cuda"), compiler=True)
    seconds = choice.step_seconds
    assert {text.split(",")[0] for text in seconds} == ({"fp32", "bf16"} if has_bf16("cuda") else {"fp32"})
    assert any("compiled" in text for text in seconds)
    assert seconds[choice.execution.text] <= 1.05 * min(seconds.values())
    assert all(parameter.device.type == "cuda" for parameter in network.parameters())


def test_run_that_chooses_its_settings_trains(tmp_path):
    changes = {"train.steps": 120, "train.lr_drops.at": [60], "train.precision": "bf16"}
    run = dataclasses.replace(smoke_run(changes=changes), tunable=True)
    record = train_in(tmp_path, run)
    assert record.status == "finished"
    assert record.precision in ("fp32", "bf16")


# --- batches and evaluation ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return LabelledImages(pixels, torch.randint(0, 10, (300,), generator=generator))


@pytest.mark.parametrize("name", ["per-pixel-mean", "per-channel", "scale"])
def test_augmented_batches_have_the_bits_of_the_cpu(images, name):
    normalise, batches = fit_normaliser(name, images), []
    for device in ("cpu", "cuda"):
        builder = BatchBuilder(images, normalise=normalise, augment=("pad4-crop", "flip"), device=device)
        batches.append(builder(torch.arange(64), builder.draw(0, 3, 64)).cpu())
    assert torch.equal(*batches)


@pytest.mark.parametrize("bf16", [False, True])
def test_evaluation_counts_every_image_and_agrees_with_the_cpu(images, bf16):
    torch.manual_seed(0)
    network, normalise = (
        build("resnet_cifar", {"depth": 8}, num_classes=10, in_channels=3),
        fit_normaliser("per-channel", images),
    )
    found = []
    for device in ("cpu", "cuda"):
        builder = BatchBuilder(images, normalise=normalise, device=device)
        batches = evaluation_batches(builder, images.labels, batch_size=128)
        on_gpu = bf16 and device == "cuda"
        found.append(
            evaluate_batches(network.to(device).eval(), batches, F.cross_entropy, expected=300, bf16=on_gpu)
        )
    assert found[0].images == found[1].images == 300
    assert abs(found[0].wrong1 - found[1].wrong1) <= (9 if bf16 else 1)  # two scores may be almost equal
    assert found[0].loss == pytest.approx(found[1].loss, rel=2e-2 if bf16 else 1e-4)
