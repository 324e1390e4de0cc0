"""Statistics of training photographs of any size: mean images, mean colours, and how colours vary together.

Each picture counts with one square, its *frame*: the picture resized to a short side, and the middle cut out. All
sums are of whole numbers, so they are the same bits on any number of threads. One pass over the pictures finds all
of them, and is kept in a cache. A cache file is only ever a shortcut: it is used if it was made for the same
pictures and frames and its content still has the sha256 it was written with, and is rebuilt otherwise.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.files import write_atomically
from pipeline.common.hashing import code_digest, digest
from pipeline.data.colour import ColourPCA
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.jpeg import Interpolation, centre_offset, decode, resize, size_for_short_side
from pipeline.data.normalise import MATRIX_BITS, Normaliser, by_deviation, fit_normaliser
from pipeline.data.prefetch import never_stop, prefetch
from pipeline.data.samples import Samples
from pipeline.declare.recipe import Crop

HASHED_MODULES = (
    "statistics",
    "normalise",
    "jpeg",
    "prefetch",
    "manifest",
)  # modules that what is kept is made by
SUM_CHUNK = 32  # pictures that a thread adds up at a time
AREA_SHARE = 0.875  # side over short side of a frame, where crops are by area: the usual 224 of 256
SHARDED_NORMALISATIONS = ("per-pixel-mean", "per-channel", "scale", "raw-mean-image", "raw-mean-colour")


@dataclass(frozen=True)
class Frame:
    """The middle `side` x `side` of a picture resized to a short side."""

    short: int
    side: int
    interpolation: Interpolation


@dataclass(frozen=True, eq=False)
class PixelStatistics:
    """Exact sums over the frames of some pictures."""

    count: int  # pictures
    total: Tensor  # int64 (S, S, 3): the sum of all frames
    products: Tensor  # int64 (3, 3): of every two colours, the sum of their products over all pixels

    @property
    def colours(self) -> tuple[list[Fraction], list[list[Fraction]]]:
        """Mean and covariance of the three colours over all pixels, in levels 0..255."""
        pixels = self.count * self.total.shape[0] * self.total.shape[1]
        mean = [Fraction(value, pixels) for value in self.total.sum((0, 1)).tolist()]
        products = self.products.tolist()
        return mean, [[Fraction(products[i][j], pixels) - mean[i] * mean[j] for j in range(3)] for i in range(3)]


def statistics_frame(crop: Crop) -> Frame:
    """The square of a picture that statistics are taken from.

    Its side is that of the centre from which crops are taken, where there is one, or of the crop. The short side
    is the recipe's: of a range (scale jitter) the smallest, where a crop shows most of the picture; for crops by
    area, which have none, such that the crop is 7/8 of it (224 of 256), as networks trained so are usually tested.
    """
    side = crop.centre or crop.side
    if crop.short is None:
        short = round(side / AREA_SHARE)
    else:
        short = crop.short if isinstance(crop.short, int) else crop.short[0]
    return Frame(short, side, crop.interpolation)


def extract_frame(image: np.ndarray, frame: Frame) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (side, side, 3)."""
    height, width = image.shape[:2]
    tall, wide = size_for_short_side(height, width, frame.short)
    resized = resize(image, (0, 0, height, width), (tall, wide), frame.interpolation)
    top, left = centre_offset(tall, wide, frame.side)
    return resized[top : top + frame.side, left : left + frame.side].numpy()


def frame_sums(
    samples: Samples, frame: Frame, *, threads: int, stop: Callable[[], bool] = never_stop
) -> PixelStatistics:
    """Sums over the frames of all samples; raises Stopped once `stop()` is true."""
    shape = (frame.side, frame.side, 3)

    def add_up(chunk: range) -> tuple[int, np.ndarray, np.ndarray]:
        total, products = np.zeros(shape, np.int64), np.zeros((3, 3), np.int64)
        for index, content in zip(chunk, samples.read(chunk), strict=True):
            pixels = extract_frame(decode(content, samples.where(index)), frame)
            total += pixels
            flat = pixels.reshape(-1, 3).astype(np.float64)
            products += (flat.T @ flat).astype(np.int64)  # exact: a frame's products are far below 2**53
        return len(chunk), total, products

    count, total, products = 0, np.zeros(shape, np.int64), np.zeros((3, 3), np.int64)
    chunks = [range(len(samples))[start : start + SUM_CHUNK] for start in range(0, len(samples), SUM_CHUNK)]
    with closing(prefetch(chunks, add_up, threads=threads, depth=2 * threads, stop=stop)) as sums:
        for more, part, part_products in sums:
            count, total, products = count + more, total + part, products + part_products
    return PixelStatistics(count, torch.from_numpy(total), torch.from_numpy(products))


def pixel_statistics(
    samples: Samples,
    crop: Crop,
    *,
    threads: int,
    cache: Path | None,
    key: str,
    tell: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = never_stop,
) -> PixelStatistics:
    """`frame_sums` for a declared crop, from the folder `cache` where they are.

    `key` says which pictures these are: the data's sha256 and the part trained on. `tell` hears of a long wait.
    """
    frame = statistics_frame(crop)

    def build() -> dict[str, Tensor]:
        tell(f"going once through {len(samples):,} pictures, for their mean and their colours")
        found = frame_sums(samples, frame, threads=threads, stop=stop)
        return {"count": torch.tensor(found.count), "total": found.total, "products": found.products}

    made_from = {"data": key, "pictures": len(samples), "frame": vars(frame)}
    found = _cached(cache, "photographs", made_from, build)
    return PixelStatistics(int(found["count"]), found["total"], found["products"])


def require_sharded_normalisation(name: str) -> None:
    """DataError where the normalisation called `name` is not for photographs."""
    if name not in SHARDED_NORMALISATIONS:
        raise DataError(
            f"normalisation {name!r} is for small images of one size; for photographs use one of"
            f" {', '.join(SHARDED_NORMALISATIONS)}"
        )


def fit_sharded_normaliser(name: str, found: PixelStatistics | None) -> Normaliser:
    """The normalisation called `name` (see normalise.py), fitted; DataError where it is not for photographs.

    "scale" needs no statistics.
    """
    require_sharded_normalisation(name)
    one = torch.ones(3, dtype=torch.float64)
    scale, shift = one / 255, one * 0
    if found and name != "scale":
        mean, covariance = found.colours
        if name == "per-pixel-mean":
            shift = found.total.double() / (255 * found.count)
        elif name == "raw-mean-image":
            scale, shift = one, found.total.double() / found.count
        elif name == "raw-mean-colour":
            scale, shift = one, _float64(mean)
        else:
            variance = [covariance[i][i] / 255**2 for i in range(3)]
            scale, shift = by_deviation(_float64([value / 255 for value in mean]), _float64(variance))
    return Normaliser(name, scale.float(), shift.float(), 0.0)


def principal_colours(found: PixelStatistics) -> ColourPCA:
    """Eigenvalues and eigenvectors of the colours' covariance, of pixels / 255 (AlexNet, section 4.1)."""
    covariance = torch.stack([_float64(row) for row in found.colours[1]]) / 255**2
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)  # falling
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return ColourPCA(values, vectors * largest.sign())  # either sign is an eigenvector; always the same one


def fit_in_memory_normaliser(name: str, train: LabelledImages, *, cache: Path | None, key: str) -> Normaliser:
    """`fit_normaliser`, what takes long (gcn-zca: a minute of one core for CIFAR) from the folder `cache`."""
    if name != "gcn-zca":
        return fit_normaliser(name, train)

    def build() -> dict[str, Tensor]:
        made = fit_normaliser(name, train)
        assert made.whitening is not None
        return {"scale": made.scale, "shift": made.shift, "whitening": made.whitening.int()}  # below 4 * 2**23

    found = _cached(cache, name, {"data": key, "shape": list(train.pixels.shape), "bits": MATRIX_BITS}, build)
    return Normaliser(name, found["scale"], found["shift"], 0.0, found["whitening"].double())


def _float64(values: list[Fraction]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _cached(
    cache: Path | None, kind: str, made_from: Mapping[str, Any], build: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `build` makes from what `made_from` says, kept in the folder `cache`. Processes wait for each other."""
    if cache is None:
        return build()
    noted = json.dumps({"code": _code(), **made_from}, sort_keys=True)
    file = cache / f"{kind}-{hashlib.sha256(noted.encode()).hexdigest()[:16]}.safetensors"
    with _alone(file):
        found = _from_file(file, noted)
        if found is None:
            found = build()
            _to_file(file, noted, found)
    return found


@lru_cache(maxsize=1)
def _code() -> str:
    """Return the hash of what can change the statistics: the code of HASHED_MODULES and the libraries that resize."""
    files = [Path(__file__).with_name(f"{name}.py") for name in HASHED_MODULES]
    versions = {name: version(name) for name in ("torch", "simplejpeg", "pillow")}
    return digest({"source": code_digest(files), "versions": versions})


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Held by one process at a time, where a lock can be written; else the work is done twice, and no worse."""
    from filelock import FileLock

    with ExitStack() as stack:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{file}.lock"))
        yield


def _from_file(file: Path, noted: str) -> dict[str, Tensor] | None:
    """The tensors in `file`, if it was made from what is `noted` and is undamaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return tensors if metadata == _metadata(noted, tensors) else None


def _to_file(file: Path, noted: str, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    content = save(tensors, _metadata(noted, tensors))
    with suppress(OSError):  # a read-only or full disk: only the next run's time is lost
        write_atomically(file, content)


def _metadata(noted: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What `tensors` were made from, and their sha256; one entry, since several would come in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return {"made_from": f"{noted} sha256 {digest.hexdigest()}"}
