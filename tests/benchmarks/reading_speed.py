"""Reading JPEGs with RandomResizedCrop 224 and flip: this project, ImageFolder and WebDataset on the same files.

    python tests/benchmarks/reading_speed.py [--images DIR] [--rounds 5]

imagefolder  torchvision's ImageFolder with its usual transforms (RandomResizedCrop, RandomHorizontalFlip,
             ToTensor, Normalize) in a DataLoader
webdataset   WebDataset(shards).decode("pilrgb") with the same transforms
ours         `ShardedFeed`, as a run uses it: samples are read from shards by number, checked, decoded and cropped
             by threads. Flips and normalisation happen on the training device; "whole" does them on the CPU too

One core: one process, one thread, no workers. Two cores: two workers (processes for the peers, threads for
ours), wall time, after a first pass over all images. Each measurement runs in its own process; they alternate
within a round, and ratios are taken within a round. `--images` is a folder of class folders of JPEGs. Without
it, 250 images of ImageNet's usual size are cut from scikit-learn's two photographs. Run it on a quiet machine.
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

BATCH, SIDE = 50, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PASSES = {0: 2, 2: 8}  # workers -> timed passes over the images, after a first one
WANTED = {  # least ratio to a peer
    ("original", 0, "imagefolder"): 1.75,
    ("original", 0, "webdataset"): 1.8,
    ("short side 256", 0, "imagefolder"): 2.7,
    ("original", 2, "imagefolder"): 1.8,
}


def write_images(folder: Path, count: int = 250) -> Path:
    """Write crops of photographs, 500 x 375, as JPEGs of about 110 KB in five class folders."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(0)
    photographs = load_sample_images().images
    for number in range(count):
        image = photographs[number % 2]
        row, column = draw.integers(0, image.shape[0] - 375), draw.integers(0, image.shape[1] - 500)
        part = Image.fromarray(image[row : row + 375, column : column + 500])
        file = folder / "train" / f"class{number % 5}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        part.save(file, quality=95)
    return folder


def peer_transforms():
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def timed(passes, count: int, workers: int) -> float:
    """Return the images per second of `passes()`, a generator of batches; the first pass is not timed."""
    for _ in passes():
        pass
    start = time.perf_counter()
    for _ in range(PASSES[workers]):
        seen = sum(len(batch[0]) for batch in passes())
        assert seen == count, f"{seen} of {count} images"
    return PASSES[workers] * count / (time.perf_counter() - start)


def imagefolder(folder: Path, workers: int) -> float:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    data = ImageFolder(folder / "pictures" / "train", peer_transforms())
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return timed(lambda: loader, len(data), workers)


def webdataset(folder: Path, workers: int) -> float:
    import webdataset as wds
    from torch.utils.data import DataLoader

    shards = sorted(map(str, (folder / "shards").glob("train-*.tar")))
    data = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000).decode("pilrgb")
    data = data.to_tuple("jpg", "cls").map_tuple(peer_transforms(), int)
    loader = DataLoader(data, BATCH, num_workers=workers, persistent_workers=workers > 0)
    count = sum(1 for _ in data)
    return timed(lambda: loader, count, workers)


def ours(folder: Path, workers: int, *, whole: bool = False) -> float:
    import torch

    from pipeline.data.colour import CropBatchBuilder
    from pipeline.data.crops import CropSpec
    from pipeline.data.normalise import Normaliser
    from pipeline.data.sharded_feed import ShardedFeed
    from pipeline.data.shards import open_shards
    from pipeline.train.process import tune_allocator

    tune_allocator()  # as every run does

    class Read(CropBatchBuilder):
        """Leave out what the training device does."""

        def __call__(self, pixels, corners=None, frame=None, draws=None):
            return pixels

    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    normalise = Normaliser("published", scale=1 / (255 * std), shift=mean / std, pad_value=0.0)
    maker = (CropBatchBuilder if whole else Read)(normalise=normalise, augment=("flip",))
    samples = open_shards(folder / "shards").train
    cut = CropSpec(SIDE, None, None, False, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear")
    steps = len(samples) // BATCH
    epochs = iter(range(100))

    def passes():
        epoch = next(epochs)
        feed = ShardedFeed(
            samples,
            maker,
            cut,
            seed=0,
            batch_size=BATCH,
            start_step=epoch * steps,
            stop_step=(epoch + 1) * steps,
            threads=workers,
        )
        for batch in feed:
            yield batch.images, batch.labels

    return timed(passes, steps * BATCH, workers)


READERS = {
    "imagefolder": imagefolder,
    "webdataset": webdataset,
    "ours": ours,
    "whole": lambda folder, workers: ours(folder, workers, whole=True),
}


def prepared(pictures: Path, folder: Path, short_side: int | None) -> None:
    """Write `folder/shards`, and `folder/pictures` with the same files."""
    from pipeline.data.prepare.source_folders import source_from_folders
    from pipeline.data.prepare.write_shards import prepare_shards
    from pipeline.data.shards import open_shards
    from pipeline.data.store import Store

    found = source_from_folders(pictures, None if (pictures / "train").is_dir() else "train")
    prepare_shards(found, Store(str(folder / "shards")), short_side=short_side, samples=50, workers=2)
    part = open_shards(folder / "shards").train
    for number, (content, label) in enumerate(zip(part.read(range(len(part))), part.labels.tolist(), strict=True)):
        file = folder / "pictures" / "train" / f"class{label:04d}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def pixels_apart(folder: Path) -> float:
    """Return the mean difference from Pillow's pixels, in levels of 255, over random crops of all images."""
    import numpy as np
    from PIL import Image

    from pipeline.data.crops import CropSpec, crop_box
    from pipeline.data.jpeg import decode, resize
    from pipeline.data.shards import open_shards

    part = open_shards(folder / "shards").train
    cut = CropSpec(SIDE, None, None, False, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear")
    apart = []
    for number, content in enumerate(part.read(range(len(part)))):
        image = decode(content, part.where(number))
        row, column, height, width = box = crop_box(cut, *image.shape[:2], (number + 0.5) / len(part)).box
        theirs = Image.fromarray(image[row : row + height, column : column + width])
        theirs = theirs.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        difference = resize(image, box, (SIDE, SIDE)).numpy().astype(int) - np.asarray(theirs)
        apart.append(np.abs(difference).mean())
    return float(np.mean(apart))


def measure(reader: str, folder: Path, workers: int) -> float:
    """Return the images per second, measured in its own process."""
    words = [sys.executable, __file__, "--one", reader, "--folder", str(folder), "--workers", str(workers)]
    done = subprocess.run(
        words,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(READERS[arguments.one](arguments.folder, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        pictures = arguments.images or write_images(work / "images")
        folders = {"original": work / "original", "short side 256": work / "resized"}
        for name, folder in folders.items():
            prepared(pictures, folder, None if name == "original" else 256)
            print(f"{name}: mean difference from Pillow's pixels {pixels_apart(folder):.3f} of 255")
        for workers in PASSES:
            for name, folder in folders.items():
                table(name, folder, workers, arguments.rounds)


def table(name: str, folder: Path, workers: int, rounds: int) -> None:
    """Measure all readers in turn, `rounds` times, and print medians and ratios."""
    rows: list[dict[str, float]] = []
    for number in range(rounds):
        order = list(READERS)[:: 1 if number % 2 == 0 else -1]
        rows.append({reader: measure(reader, folder, workers) for reader in order})
    print(f"\n{name}, {'two workers' if workers else 'one core'} (median and range of {rounds} rounds)")
    for reader in READERS:
        speeds = [row[reader] for row in rows]
        line = f"  {reader:<12}{statistics.median(speeds):7.0f} images/s ({min(speeds):.0f} to {max(speeds):.0f})"
        if reader in ("imagefolder", "webdataset"):
            ratios = [row["ours"] / row[reader] for row in rows]
            wanted = WANTED.get((name, workers, reader))
            line += (
                f"; ours is {statistics.median(ratios):.2f} times that ({min(ratios):.2f} to {max(ratios):.2f})"
            )
            line += f", wanted {wanted}" if wanted else ""
        print(line, flush=True)


if __name__ == "__main__":
    main()
