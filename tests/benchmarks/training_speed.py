"""Training speed of ResNet-20 at batch 128 on CIFAR-size images: this project, a bare loop, and plain PyTorch.

    python tests/benchmarks/training_speed.py [--rounds 5] [--steps 60] [--threads 2]

peer   a plain PyTorch loop over torchvision's CIFAR10 with RandomCrop, flip, ToTensor and Normalize through a
       DataLoader (the best of 0, 1 and 2 workers), float32, default memory format, accuracy of every batch.
ours   `pipeline.train.train`, as `repro run` calls it: Lightning, journal, progress, training errors; at the
       precision of the `laptop` scale.
bare   the same batches, precision and memory format in a loop of six lines, without Lightning, journal or
       progress.

Each measurement runs in its own process. They alternate within a round, and ratios are taken within a round. The
images are generated, and the same for all. Run it on a quiet machine.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 128
WARM_UP = 10  # steps before the clock starts, compilation included
IMAGES = 10_000


def peer(steps: int, folder: Path, workers: int) -> float:
    """Return the images per second of the plain PyTorch loop."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    from lightning_modules.resnet import resnet_cifar

    class Generated(CIFAR10):
        """torchvision's CIFAR10 without the check of the published checksums."""

        def _check_integrity(self) -> bool:
            return True

        def _load_meta(self) -> None:
            self.classes = list("0123456789")

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    usual = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = Generated(folder, train=True, transform=transforms.Compose([*usual, transforms.Normalize(mean, std)]))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    step = plain_step(resnet_cifar(depth=20))
    done, start = 0, 0.0
    while True:
        for images, labels in loader:
            if done == WARM_UP:
                start = time.perf_counter()
            if done == steps:
                return BATCH * (steps - WARM_UP) / (time.perf_counter() - start)
            step(images, labels)
            done += 1


def plain_step(network):
    """Return a function of images and labels that runs one step in float32, and reads loss and accuracy."""
    import torch

    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def step(images, labels) -> None:
        output = network(images)
        loss = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item(), (output.argmax(1) == labels).float().mean().item()

    return step


def ours(steps: int, folder: Path, *, threads: int) -> float:
    """Return the images per second of a run."""
    from pipeline.data.manifest import manifest_of, manifest_to_dict
    from pipeline.plan.task import Task
    from pipeline.train.train import train

    images = image_set(folder)
    times: list[float] = []

    def clock() -> bool:  # called after every step
        times.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as place:
        manifest = manifest_to_dict(manifest_of(images))
        task = Task(declared(steps), "benchmark", "benchmark", manifest, Path(place) / "run", Path(place))
        train(task, images, threads=threads, stop=clock)
    return BATCH * (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1])


def bare(steps: int, folder: Path, *, threads: int) -> float:
    """Return the images per second of the same batches, precision and network in a loop of six lines."""
    import torch
    import torch.nn.functional as F

    from lightning_modules.networks import build
    from pipeline.data.batches import BatchBuilder, InMemoryFeed
    from pipeline.data.normalise import fit_normaliser
    from pipeline.train.process import prepare_process

    prepare_process(threads)
    run, train_images = declared(steps), image_set(folder).train
    recipe = run.recipe.train
    network = build("resnet_cifar", {"depth": 20}, num_classes=10, in_channels=3)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    forward = torch.compile(network) if recipe.compile else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    normalise = fit_normaliser("per-pixel-mean", train_images)
    maker = BatchBuilder(train_images, normalise=normalise, augment=run.recipe.data.augment)
    feed = InMemoryFeed(maker, train_images.labels, seed=0, batch_size=BATCH, start_step=0, stop_step=steps)
    start = 0.0
    for step, images, labels in feed:
        if step == WARM_UP:
            start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = F.cross_entropy(forward(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return BATCH * (steps - WARM_UP) / (time.perf_counter() - start)


def declared(steps: int):
    """Return the run that `ours` trains: ResNet-20 at paper scale, compiled and in bf16, for `steps` steps."""
    from pipeline.declare.load import load_experiment
    from pipeline.plan.expand import plan_runs

    changes = {"train.steps": steps, "train.lr_drops": None, "train.eval_every": steps}
    changes |= {"train.precision": "bf16", "train.channels_last": True, "train.compile": True}
    return plan_runs(
        load_experiment("resnet/cifar10_depth"), scale="paper", variants=["resnet-20"], seeds=1, changes=changes
    )[0]


def image_set(folder: Path):
    """Return the generated images as an image set."""
    import torch

    from pipeline.data.images import ImageSet, LabelledImages

    pixels, labels = generated()
    images = LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels))
    few = LabelledImages(images.pixels[:BATCH], images.labels[:BATCH])
    return ImageSet("generated", "generated", tuple("0123456789"), images, few)


def generated():
    """Return IMAGES random images, uint8 (N, 32, 32, 3), and their labels."""
    import numpy as np

    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8), draw.integers(0, 10, IMAGES)


def write_archive(folder: Path) -> None:
    """Write the generated images as the files that torchvision's CIFAR10 reads."""
    pixels, labels = generated()
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    flat = pixels.transpose(0, 3, 1, 2).reshape(IMAGES, -1)
    fifth = IMAGES // 5
    for i in range(5):
        part = slice(i * fifth, (i + 1) * fifth)
        with (place / f"data_batch_{i + 1}").open("wb") as file:
            pickle.dump({"data": flat[part], "labels": labels[part].tolist()}, file)
    (place / "test_batch").write_bytes((place / "data_batch_1").read_bytes())


def timed(what: str, steps: int, folder: Path, threads: int) -> float:
    """Return one measurement, made in its own process."""
    words = [sys.executable, __file__, "--measure", what, "--steps", str(steps), "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*words, "--folder", str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        import torch

        torch.set_num_threads(arguments.threads)
        kind, _, workers = arguments.measure.partition("-")
        measure = {"ours": ours, "bare": bare}.get(kind)
        if measure:
            print(measure(arguments.steps, arguments.folder, threads=arguments.threads))
        else:
            print(peer(arguments.steps, arguments.folder, int(workers)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_archive(folder)
        tuned = {f"peer-{n}": timed(f"peer-{n}", arguments.steps, folder, arguments.threads) for n in (0, 1, 2)}
        best = max(tuned, key=tuned.__getitem__)
        print("peer by loader workers:", {name[5:]: round(value) for name, value in tuned.items()}, flush=True)
        rounds = []
        for number in range(arguments.rounds):
            names = (best, "ours", "bare") if number % 2 == 0 else ("bare", "ours", best)
            row = {name: timed(name, arguments.steps, folder, arguments.threads) for name in names}
            rounds.append({"peer": row[best], "ours": row["ours"], "bare": row["bare"]})
            print("  ".join(f"{name} {value:6.0f} images/s" for name, value in rounds[-1].items()), flush=True)
    over_peer = [row["ours"] / row["peer"] for row in rounds]
    over_bare = [row["ours"] / row["bare"] for row in rounds]
    print(
        json.dumps(
            {
                "ours / peer": {
                    "median": statistics.median(over_peer),
                    "min": min(over_peer),
                    "max": max(over_peer),
                },
                "ours / bare": {
                    "median": statistics.median(over_bare),
                    "min": min(over_bare),
                    "max": max(over_bare),
                },
                "threads": arguments.threads,
                "steps": arguments.steps,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
