"""Fifteen minutes of one GPU: speed of a step in each execution setting, of a whole run, and paper-scale runs.

    python tests/benchmarks/gpu_speed.py --out FOLDER [--minutes 14] [--seeds 4]

steps   images per second of a bare loop over one batch that stays on the device: ResNet-20 at batch 128 and
        32 x 32 pixels, ours and timm's ResNet-50 at batch 128 and 224 x 224 pixels; in fp32, TF32 and bf16,
        contiguous and channels-last, eager, compiled, and compiled with CUDA graphs (mode reduce-overhead).
run     the same for a run of ResNet-20: Lightning, augmentation on the device, journal and training errors.
paper   seeds of resnet/cifar10_depth's ResNet-20 at paper scale, side by side, one process each, until the time
        ends: the run folders are resumable. It needs CIFAR-10 in REPRO_DATA, and is left out without it.

Writes FOLDER/speeds.json after every measurement, and the runs to FOLDER/home. Needs torch, torchvision, timm,
pytorch-lightning and pydantic; not ray, mlflow and webdataset. On a machine without a GPU it measures the CPU,
which shows that the script works.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISIONS = ("fp32", "tf32", "bf16")
MODES = ("eager", "compiled", "CUDA graphs")
WARM_UP, STEPS = 5, 30


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Yield the name, the builder and the batch's shape of each network."""
    from lightning_modules.networks import build

    yield (
        "ResNet-20",
        lambda: build("resnet_cifar", {"depth": 20}, num_classes=10, in_channels=3),
        (128, 3, 32, 32),
    )
    large = (128, 3, 224, 224)
    yield "ResNet-50", lambda: build("resnet_imagenet", {"depth": 50}, num_classes=1000, in_channels=3), large

    def peer() -> nn.Module:
        import timm

        return timm.create_model("resnet50", num_classes=1000)

    yield "timm's ResNet-50", peer, large


def images_per_second(network: nn.Module, shape: tuple[int, ...], precision: str, layout: str, mode: str) -> float:
    """Return the speed of optimizer steps on one batch that stays on the device: the median of three parts."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    network = network.to(DEVICE).train()
    images = torch.rand(shape, device=DEVICE)
    labels = torch.zeros(shape[0], dtype=torch.int64, device=DEVICE)
    if layout == "channels-last":
        network, images = (
            network.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    forward: Callable[[Tensor], Tensor] = network
    if mode != "eager":
        forward = torch.compile(network, mode="reduce-overhead" if mode == "CUDA graphs" else "default")
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(forward(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    speeds = []
    for _ in range(3):
        synchronise()
        began = time.perf_counter()
        for _ in range(STEPS // 3):
            step()
        synchronise()
        speeds.append(shape[0] * (STEPS // 3) / (time.perf_counter() - began))
    torch.compiler.reset()
    return statistics.median(speeds)


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def run_speed(folder: Path, precision: str, *, compiled: bool, steps: int) -> float:
    """Return images per second of a run of ResNet-20 on generated images, from its record's costs."""
    from pipeline.data.images import ImageSet, LabelledImages
    from pipeline.data.manifest import manifest_of, manifest_to_dict
    from pipeline.declare.load import load_experiment
    from pipeline.plan.expand import plan_runs
    from pipeline.plan.task import Task
    from pipeline.train.train import train

    changes: dict[str, Any] = {"train.steps": steps, "train.lr_drops": None, "train.eval_every": steps}
    changes |= {"train.precision": precision, "train.channels_last": True, "train.compile": compiled}
    [run] = plan_runs(
        load_experiment("resnet/cifar10_depth"), scale="paper", variants=["resnet-20"], seeds=1, changes=changes
    )
    pixels = torch.randint(0, 256, (10_000, 32, 32, 3), dtype=torch.uint8)
    labelled = LabelledImages(pixels, torch.randint(0, 10, (10_000,)))
    images = ImageSet("generated", "generated", tuple("0123456789"), labelled, labelled)
    place = folder / f"{precision}-{compiled}"
    manifest = manifest_to_dict(manifest_of(images))
    record = train(Task(run, "benchmark", "benchmark", manifest, place, folder), images)
    assert record
    return record.costs["train/images_per_second"]


def paper_runs(home: Path, seeds: int, until: float) -> list[dict[str, Any]]:
    """Train seeds of ResNet-20 at paper scale side by side, one process each; return what became of each."""
    words = [sys.executable, __file__, "--out", str(home), "--until", str(until), "--seed"]
    environment = os.environ | {"REPRO_HOME": str(home), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*words, str(seed)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        for seed in range(seeds)
    ]
    found = []
    for process in processes:
        output, _ = process.communicate()
        found.append(json.loads(output.splitlines()[-1]) if not process.returncode else {"failed": output[-300:]})
    return found


def paper_run(seed: int, until: float) -> dict[str, Any]:
    """Train one seed until the time `until` (Unix seconds); a later session resumes it."""
    from pipeline.declare.load import load_experiment
    from pipeline.plan.expand import plan_runs
    from pipeline.schedule.tasks import make_tasks
    from pipeline.train.train import train

    runs = plan_runs(
        load_experiment("resnet/cifar10_depth"), scale="paper", variants=["resnet-20"], seeds=seed + 1
    )
    [task] = make_tasks([run for run in runs if run.seed == seed and run.variant == "resnet-20"])
    from pipeline.common.paths import data_folder
    from pipeline.data.sources import load_images

    record = train(task, load_images("cifar10", data_folder()), stop=lambda: time.time() > until)
    return {"seed": seed, "identity": task.identity, "error": record and record.metrics["test/top1_error_pct"]}


def main() -> None:
    """Measure until the time ends, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(json.dumps(paper_run(arguments.seed, arguments.until)))
        return
    from pipeline.common.provenance import commit, hardware_name

    until = time.time() + 60 * arguments.minutes
    for_speed = time.time() + 60 * arguments.minutes / 3
    found: dict[str, Any] = {"hardware": hardware_name(), "commit": commit(), "torch": torch.__version__}
    arguments.out.mkdir(parents=True, exist_ok=True)

    def say(name: str, value: Any) -> None:
        found[name] = value
        print(f"{name:<60}{value}", flush=True)
        (arguments.out / "speeds.json").write_text(json.dumps(found, indent=1), encoding="utf-8")

    precisions = PRECISIONS if DEVICE.type == "cuda" else ("fp32",)
    modes = MODES if DEVICE.type == "cuda" else ("eager",)
    for (name, make, shape), mode, precision, layout in itertools.product(
        networks(), modes, precisions, ("channels-last", "contiguous")
    ):
        if time.time() > for_speed:
            break
        try:
            speed = round(images_per_second(make(), shape, precision, layout, mode))
        except Exception as error:  # noqa: BLE001 - such as of a compiler: the others are still measured
            speed = f"failed: {str(error).splitlines()[0]}"
        say(f"{name}, {precision}, {layout}, {mode}", speed)
    for precision, compiled in itertools.product(precisions, (False, True) if DEVICE.type == "cuda" else (False,)):
        if time.time() < for_speed:
            words = f"run of ResNet-20, {precision}{', compiled' * compiled}"
            steps = 1000 if DEVICE.type == "cuda" else 10
            say(words, round(run_speed(arguments.out / "runs", precision, compiled=compiled, steps=steps)))
    if (Path(os.environ.get("REPRO_DATA", "data")) / "cifar-10-batches-py").is_dir():
        say("paper scale", paper_runs(arguments.out / "home", arguments.seeds, until - 10))


if __name__ == "__main__":
    main()
