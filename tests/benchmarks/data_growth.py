"""Time and memory of preparing and reading 1,000 to 100,000 images, extrapolated to 14 million.

    python tests/benchmarks/data_growth.py [--sizes 1000,10000,100000] [--side 64]

The images are small ones from `repro data stand-in`, in archives laid out as ILSVRC's. Each part runs in its own
process: prepare (MD5 of the archives, listing, decoding every image, writing shards; two workers) and read (one
epoch of `ShardedFeed`, crops of 56 pixels, two threads). Memory is the peak of the largest process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES = 20
MILLIONS = 14.2  # images in all of ImageNet


def prepare(folder: Path) -> int:
    from pipeline.data.prepare.source_archives import source_from_archives
    from pipeline.data.prepare.write_shards import prepare_shards
    from pipeline.data.store import Store

    originals = source_from_archives(folder / "archives", cache=folder / "cache")
    return prepare_shards(originals, Store(str(folder / "shards")), workers=2).splits["train"].samples


def read(folder: Path) -> int:
    import torch

    from pipeline.data.colour import CropBatchBuilder
    from pipeline.data.crops import CropSpec
    from pipeline.data.normalise import Normaliser
    from pipeline.data.sharded_feed import ShardedFeed
    from pipeline.data.shards import open_shards

    samples = open_shards(folder / "shards").train
    plain = Normaliser("scale", scale=torch.full((3,), 1 / 255), shift=torch.zeros(3), pad_value=0.0)
    maker = CropBatchBuilder(normalise=plain, augment=("flip",))
    cut = CropSpec(56, (60, 72), None, False, None, None, "bilinear")
    steps = len(samples) // 100
    feed = ShardedFeed(samples, maker, cut, seed=0, batch_size=100, start_step=0, stop_step=steps, threads=2)
    return sum(len(batch.labels) for batch in feed)


PARTS = {"prepare": prepare, "read": read}


def measured(part: str, folder: Path) -> dict[str, float]:
    """Measure one part in its own process; return its images, seconds and megabytes."""
    words = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        start = time.perf_counter()
        pictures = PARTS[arguments.part](arguments.folder)
        seconds = time.perf_counter() - start
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(one).ru_maxrss for one in who) / 1024
        print(json.dumps({"pictures": pictures, "seconds": seconds, "mb": peak}))
        return
    from pipeline.data.prepare.stand_in import make_stand_in

    rows = {part: [] for part in PARTS}
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            target, train = folder / "archives", size // CLASSES
            make_stand_in(target, classes=CLASSES, train=train, test=1, side=arguments.side)
            for part in PARTS:
                row = measured(part, folder)
                rows[part].append(row)
                speed = row["pictures"] / row["seconds"]
                said = f"{row['seconds']:8.1f} s {speed:8.0f} images/s {row['mb']:6.0f} MB"
                print(f"{part:<8}{size:>8,} images{said}", flush=True)
    for part, found in rows.items():
        first, last = found[-2:]
        seconds = (last["seconds"] - first["seconds"]) / (last["pictures"] - first["pictures"])
        megabytes = (last["mb"] - first["mb"]) / (last["pictures"] - first["pictures"])
        more = MILLIONS * 1e6 - last["pictures"]
        hours = (last["seconds"] + more * seconds) / 3600
        gigabytes = (last["mb"] + more * max(0.0, megabytes)) / 1024
        print(f"{part}: {MILLIONS} million such images would take {hours:.1f} h here, and {gigabytes:.1f} GB")


if __name__ == "__main__":
    main()
