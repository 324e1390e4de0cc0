"""Statistics of sharded training images: mean image, mean colour, and covariance of the colours.

Each image contributes one square, its *frame*: the centre crop of the image resized to a short side. All sums are
of integers, so their bits do not depend on the number of threads. One pass over the images yields all statistics,
and the result is cached. A cache file is used only if it was made for the same images and frames and its content
has the sha256 that it was written with; otherwise it is rebuilt.
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
from numpy.typing import NDArray
from torch import Tensor

from pipeline.common.files import write_atomically
from pipeline.common.hashing import code_digest, digest
from pipeline.data.colour import ColourPCA
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.jpeg import Interpolation, centre_offset, decode, resize, size_for_short_side
from pipeline.data.normalise import MATRIX_BITS, Normaliser, fit_normaliser, standardisation
from pipeline.data.prefetch import never_stop, prefetch
from pipeline.data.samples import Samples
from pipeline.declare.data_settings import Crop

HASHED_MODULES = (
    "statistics",
    "normalise",
    "jpeg",
    "prefetch",
    "manifest",
)  # modules whose code decides what the cache files hold
SUM_CHUNK = 32  # images that a thread sums at a time
AREA_CROP_RATIO = 0.875  # side / short side of a frame for crops by area: the usual 224 / 256
SHARDED_NORMALISATIONS = ("per-pixel-mean", "per-channel", "scale", "raw-mean-image", "raw-mean-colour")


@dataclass(frozen=True)
class Frame:
    """The centre `side` x `side` of an image resized to a short side; all in pixels."""

    short: int
    side: int
    interpolation: Interpolation


@dataclass(frozen=True, eq=False)
class PixelStatistics:
    """Exact sums over the frames of some images."""

    count: int  # images
    total: Tensor  # int64 (S, S, 3): the sum of all frames
    products: Tensor  # int64 (3, 3): the sum over all pixels of the products of two colours

    @property
    def colours(self) -> tuple[list[Fraction], list[list[Fraction]]]:
        """Mean (3) and covariance (3 x 3) of the colours over all pixels, in levels 0..255."""
        pixels = self.count * self.total.shape[0] * self.total.shape[1]
        mean = [Fraction(value, pixels) for value in self.total.sum((0, 1)).tolist()]
        products = self.products.tolist()
        return mean, [[Fraction(products[i][j], pixels) - mean[i] * mean[j] for j in range(3)] for i in range(3)]


def statistics_frame(crop: Crop) -> Frame:
    """Return the frame from which the statistics for a declared crop are computed.

    Its side is that of the centre square from which crops are taken, or else that of the crop. Its short side is
    the recipe's; of a range (scale jitter) the smallest, at which a crop covers most of the image. Crops by area
    declare no short side: there the crop is 7/8 of it (224 / 256), as networks trained with such crops are usually
    tested. Where the interpolation is random, the frame's is bilinear.
    """
    side = crop.centre or crop.side
    if crop.short is None:
        short = round(side / AREA_CROP_RATIO)
    else:
        short = crop.short if isinstance(crop.short, int) else crop.short[0]
    return Frame(short, side, "bilinear" if crop.interpolation == "random" else crop.interpolation)


def extract_frame(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """Return the frame of an image; uint8 (H, W, 3) -> uint8 (side, side, 3)."""
    height, width = image.shape[:2]
    size = size_for_short_side(height, width, frame.short)
    resized = resize(image, (0, 0, height, width), size, frame.interpolation)
    top, left = centre_offset(*size, frame.side)
    return resized[top : top + frame.side, left : left + frame.side].numpy()


def frame_sums(
    samples: Samples, frame: Frame, *, threads: int, stop: Callable[[], bool] = never_stop
) -> PixelStatistics:
    """Return the sums over the frames of all samples; raises StopRequested once `stop()` is true."""
    shape = (frame.side, frame.side, 3)

    def sum_chunk(chunk: range) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        total, products = np.zeros(shape, np.int64), np.zeros((3, 3), np.int64)
        for index, content in zip(chunk, samples.read(chunk), strict=True):
            pixels = extract_frame(decode(content, samples.where(index)), frame)
            total += pixels
            flat = pixels.reshape(-1, 3).astype(np.float64)
            products += (flat.T @ flat).astype(np.int64)  # exact: the sums for one frame are far below 2**53
        return len(chunk), total, products

    count, total, products = 0, np.zeros(shape, np.int64), np.zeros((3, 3), np.int64)
    chunks = [range(len(samples))[start : start + SUM_CHUNK] for start in range(0, len(samples), SUM_CHUNK)]
    with closing(prefetch(chunks, sum_chunk, threads=threads, depth=2 * threads, stop=stop)) as sums:
        for part_count, part_total, part_products in sums:
            count, total, products = count + part_count, total + part_total, products + part_products
    return PixelStatistics(count, torch.from_numpy(total), torch.from_numpy(products))


def pixel_statistics(
    samples: Samples,
    crop: Crop,
    *,
    threads: int,
    cache: Path | None,
    key: str,
    report: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = never_stop,
) -> PixelStatistics:
    """Return `frame_sums` for a declared crop, from the folder `cache` if it holds them.

    `key` identifies the images: the sha256 of the data set and the training part. `report` receives a line before
    a pass over all images. Raises StopRequested once `stop()` is true.
    """
    frame = statistics_frame(crop)

    def build() -> dict[str, Tensor]:
        report(f"reading {len(samples):,} images once to compute their mean and the covariance of their colours")
        sums = frame_sums(samples, frame, threads=threads, stop=stop)
        return {"count": torch.tensor(sums.count), "total": sums.total, "products": sums.products}

    # The names "pictures" and "photographs" are part of existing cache files.
    made_from = {"data": key, "pictures": len(samples), "frame": vars(frame)}
    tensors = _cached(cache, "photographs", made_from, build)
    return PixelStatistics(int(tensors["count"]), tensors["total"], tensors["products"])


def require_sharded_normalisation(name: str) -> None:
    """Raise DataError unless the normalisation `name` works on sharded images."""
    if name not in SHARDED_NORMALISATIONS:
        raise DataError(
            f"normalisation {name!r} needs images of one size in memory; for sharded images use one of"
            f" {', '.join(SHARDED_NORMALISATIONS)}"
        )


def fit_sharded_normaliser(name: str, statistics: PixelStatistics | None) -> Normaliser:
    """Return the normalisation `name` (see normalise.py) with these statistics, which "scale" does not need.

    Raises DataError for a name that does not work on sharded images, or for a constant channel ("per-channel").
    """
    require_sharded_normalisation(name)
    ones = torch.ones(3, dtype=torch.float64)
    scale, shift = ones / 255, ones * 0
    if statistics and name != "scale":
        mean, covariance = statistics.colours
        if name == "per-pixel-mean":
            shift = statistics.total.double() / (255 * statistics.count)
        elif name == "raw-mean-image":
            scale, shift = ones, statistics.total.double() / statistics.count
        elif name == "raw-mean-colour":
            scale, shift = ones, _float64(mean)
        else:
            variance = [covariance[i][i] / 255**2 for i in range(3)]
            scale, shift = standardisation(_float64([value / 255 for value in mean]), _float64(variance))
    return Normaliser(name, scale.float(), shift.float(), 0.0)


def principal_colours(statistics: PixelStatistics) -> ColourPCA:
    """Return the principal components of the colours of pixels / 255 (AlexNet, section 4.1)."""
    covariance = torch.stack([_float64(row) for row in statistics.colours[1]]) / 255**2
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)  # in descending order
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return ColourPCA(values, vectors * largest.sign())  # fixes the sign, which an eigenvector leaves open


def fit_in_memory_normaliser(name: str, train: LabelledImages, *, cache: Path | None, key: str) -> Normaliser:
    """Return `fit_normaliser(name, train)`, with 'gcn-zca' (a minute of one core for CIFAR) cached in `cache`."""
    if name != "gcn-zca":
        return fit_normaliser(name, train)

    def build() -> dict[str, Tensor]:
        fitted = fit_normaliser(name, train)
        assert fitted.whitening is not None
        return {
            "scale": fitted.scale,
            "shift": fitted.shift,
            "whitening": fitted.whitening.int(),
        }  # below 4 * 2**23

    made_from = {"data": key, "shape": list(train.pixels.shape), "bits": MATRIX_BITS}
    tensors = _cached(cache, name, made_from, build)
    return Normaliser(name, tensors["scale"], tensors["shift"], 0.0, tensors["whitening"].double())


def _float64(values: list[Fraction]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _cached(
    cache: Path | None, kind: str, made_from: Mapping[str, Any], build: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors of `build`, cached in the folder `cache` by `made_from`; one process builds them."""
    if cache is None:
        return build()
    key = json.dumps({"code": _code(), **made_from}, sort_keys=True)
    file = cache / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    with _locked(file):
        tensors = _from_file(file, key)
        if tensors is None:
            tensors = build()
            _to_file(file, key, tensors)
    return tensors


@lru_cache(maxsize=1)
def _code() -> str:
    """Return the hash of what can change the statistics: HASHED_MODULES and the versions of the libraries."""
    files = [Path(__file__).with_name(f"{name}.py") for name in HASHED_MODULES]
    versions = {name: version(name) for name in ("torch", "simplejpeg", "pillow")}
    return digest({"source": code_digest(files), "versions": versions})


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock of `file`. Without write access there is no lock, and processes repeat each other's work."""
    from filelock import FileLock

    with ExitStack() as stack:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{file}.lock"))
        yield


def _from_file(file: Path, key: str) -> dict[str, Tensor] | None:
    """Return the tensors in `file`, or None if it was made from something other than `key` or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return tensors if metadata == _metadata(key, tensors) else None


def _to_file(file: Path, key: str, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    content = save(tensors, _metadata(key, tensors))
    with suppress(OSError):  # on a read-only or full disk the next run rebuilds them
        write_atomically(file, content)


def _metadata(key: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return key and sha256 of `tensors` in one entry, since safetensors does not keep the order of several."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha256.update(tensor.contiguous().numpy().data)
    return {"made_from": f"{key} sha256 {sha256.hexdigest()}"}
