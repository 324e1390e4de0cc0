"""Images per second of several runs of ResNet-20 side by side, against the usual way: one run on all threads.

    python tests/benchmarks/suite_speed.py [--rounds 3] [--steps 160]

ours   `run_all`, as `repro run` calls it, with one run for each CPU: Lightning, journal, progress, training
       errors, evaluations, and the execution settings that the runs choose by timing.
peer   a plain PyTorch loop in one process with all threads: torchvision's ImageFolder with RandomCrop, flip,
       ToTensor and Normalize, a DataLoader (the best of 0, 1 and 2 workers), float32, default memory format, the
       loss and the accuracy of every batch, and the same evaluations. Its runs would follow one another.

Both read the same generated images from class folders. The clock runs from the first report after the start, which
follows the choice of settings and all compilation, to the last step; evaluations count. The two alternate, and
ratios are taken within a round. Run it on a quiet machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
BATCH, TRAIN, TEST, CLASSES = 128, 5000, 500, 10
EVALUATIONS = 2
REPORT = 20  # steps; the clock starts at the first report
DATA = "generated"


def write_folders(root: Path) -> None:
    """Write TRAIN and TEST random images of 32 x 32 pixels into class folders below root/DATA."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("test", TEST)):
        for number in range(count):
            folder = root / DATA / part / str(number % CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def ours(steps: int, home: Path, runs: int) -> tuple[float, str]:
    """Return images per second of all runs together, and the settings that they chose."""
    from pipeline.declare.load import load_experiment
    from pipeline.plan.expand import plan_runs
    from pipeline.schedule.local import run_all
    from pipeline.schedule.reproduce import threads_of_each
    from pipeline.schedule.tasks import make_tasks
    from pipeline.track.run_folder import RunFolder

    changes: dict[str, Any] = {"data.name": DATA, "data.augment": ["pad4-crop", "flip"], "train.lr_drops": None}
    changes |= {"train.steps": steps, "train.batch_size": BATCH, "train.log_every": REPORT}
    changes |= {"train.eval_every": steps // EVALUATIONS}
    planned = plan_runs(
        load_experiment("resnet/cifar10_depth"),
        scale="laptop",
        variants=["resnet-20"],
        seeds=runs,
        changes=changes,
    )
    tasks = make_tasks(planned)
    failed: list[str] = []
    run_all(
        tasks,
        workers=runs,
        threads=threads_of_each(tasks, runs),
        on_event=lambda event: failed.append(event.text) if event.kind == "failed" else None,
    )
    if failed:
        raise SystemExit(failed[0])
    first, last, images, chosen = [], [], 0, set()
    for task in tasks:
        entries = [entry for entry, _ in RunFolder(task.folder).journal()]
        first.append(entries[0]["time"])
        last.append(entries[-1]["time"])
        images += BATCH * (entries[-1]["step"] - entries[0]["step"])
        record = RunFolder(task.folder).result()
        assert record
        layout = "channels-last" if record.channels_last else "contiguous"
        compiled = ", compiled" if record.compiled else ""
        chosen.add(f"{record.precision}, {layout}{compiled}, {record.threads} thread(s)")
    return images / (max(last) - min(first)), "; ".join(sorted(chosen))


def peer(steps: int, home: Path, workers: int) -> tuple[float, str]:
    """Return images per second of the plain PyTorch loop, and no settings."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from lightning_modules.resnet import resnet_cifar
    from tests.benchmarks.training_speed import plain_step

    to_tensor = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    augment = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    folder = home / "data" / DATA
    train = ImageFolder(folder / "train", transforms.Compose([*augment, *to_tensor]))
    test = ImageFolder(folder / "test", transforms.Compose(to_tensor))
    loader = DataLoader(train, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    held_out = DataLoader(test, 250, num_workers=workers)
    network = resnet_cifar(depth=20)
    step = plain_step(network)
    done, start = 0, 0.0
    while True:
        for images, labels in loader:
            step(images, labels)
            done += 1
            if done == REPORT:
                start = time.perf_counter()
            if done % (steps // EVALUATIONS) == 0:
                network.eval()
                with torch.no_grad():
                    sum((network(x).argmax(1) == y).sum().item() for x, y in held_out)
                network.train()
            if done == steps:
                return BATCH * (steps - REPORT) / (time.perf_counter() - start), ""


def timed(what: str, steps: int, home: Path, cpus: int) -> tuple[float, str]:
    """Return one measurement, made in its own process; ours in a new home that shares the data."""
    with tempfile.TemporaryDirectory() as place:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment |= {"REPRO_HOME": place, "REPRO_DATA": str(home / "data")}
        words = [sys.executable, __file__, "--measure", what, "--steps", str(steps), "--home", str(home)]
        done = subprocess.run(
            [*words, "--cpus", str(cpus)], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    speed, chosen = json.loads(done.stdout.strip().splitlines()[-1])
    return speed, chosen


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cpus", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, _, workers = arguments.measure.partition("-")
        if kind == "peer":
            print(json.dumps(peer(arguments.steps, arguments.home, int(workers))))
        else:
            print(json.dumps(ours(arguments.steps, arguments.home, arguments.cpus)))
        return
    from pipeline.common.environment import available_cpus
    from pipeline.common.provenance import commit, hardware_name

    cpus, ratios = available_cpus(), []
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        write_folders(home / "data")
        tuned = {n: timed(f"peer-{n}", arguments.steps // 2, home, cpus)[0] for n in (0, 1, 2)}
        best = max(tuned, key=tuned.__getitem__)
        print("peer by loader workers:", {n: round(speed) for n, speed in tuned.items()}, flush=True)
        for number in range(arguments.rounds):
            names = (f"peer-{best}", "ours") if number % 2 == 0 else ("ours", f"peer-{best}")
            found = {name: timed(name, arguments.steps, home, cpus) for name in names}
            (theirs, _), (own, chosen) = found[f"peer-{best}"], found["ours"]
            ratios.append(own / theirs)
            print(f"peer {theirs:5.0f}  ours {own:5.0f} images/s ({chosen})", flush=True)
    summary = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    about = {"runs": cpus, "steps": arguments.steps, "hardware": hardware_name(), "commit": commit()}
    print(json.dumps({"ours / peer": summary} | about, indent=1))


if __name__ == "__main__":
    main()
