"""From pixels 0..255 to a network's input: the papers' ways, with statistics of the training part.

per-pixel-mean   x/255 - the mean image            (He et al. 2015, arXiv:1512.03385, section 4.2)
per-channel      (x/255 - mean) / standard deviation, both of one channel over all pixels
lecun98          background 0 -> -0.1, foreground 255 -> 1.175 (LeCun et al. 1998, section III-A)
scale            x/255
raw-mean-image   x - the mean image, pixels 0..255 (Krizhevsky et al. 2012, section 2: "raw RGB values")
raw-mean-colour  x - the mean colour, pixels 0..255 (Simonyan and Zisserman 2014, arXiv:1409.1556, section 2.1)
gcn-zca          global contrast normalisation and ZCA whitening (Network in Network, arXiv:1312.4400, section 4.2,
                 "as was used by Goodfellow et al. in the maxout network", arXiv:1302.4389)

The maxout network's images are those of pylearn2's script make_cifar10_gcn_whitened.py: each image minus its own
mean, scaled to a length of 55 (`gcn=55.`: the length and not the deviation, nothing added under the root); then
minus the mean image, times (C + 0.1 I)^(-1/2), where C is the covariance over the training images divided by
their number (preprocessing.ZCA, whose `filter_bias` is 0.1 by default).

What is the same bits where: all sums are of whole numbers, and so do not depend on threads. The inverse root is
LAPACK's, the same to some 1e-13 on any number of threads; rounded to 2**-23, a few of its millions of numbers may
differ by that much between machines, so it is kept in a cache (statistics.py). Whitening with it is exact: an
image is the same bits in any batch, on any number of threads and ranks, and on any device.
"""

import difflib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.data.images import DataError, LabelledImages

NORMALISERS = (
    "per-pixel-mean", "per-channel", "lecun98", "scale", "raw-mean-image", "raw-mean-colour", "gcn-zca"
)  # fmt: skip

LENGTH = 55.0  # of an image after global contrast normalisation
FILTER_BIAS = 0.1  # added to the covariance's diagonal

# float64 holds whole numbers up to 2**53. An image has length 55 and a column of the whitening matrix at most
# 1/sqrt(0.1), so no part of a product's sum is above 174 < 2**8 (Cauchy and Schwarz): 45 bits are left for
# fractions.
IMAGE_BITS, MATRIX_BITS = 22, 23
# And 2048 * (55 * 2**15)**2 < 2**53, so the products of a block of images add up exactly.
WHITENING_BLOCK, FIT_BITS = 2048, 15
MOST_NUMBERS = 64 * 64 * 3  # in an image: a matrix of 1.2 GB


@dataclass(frozen=True, eq=False)
class Normaliser:
    """`pixel * scale - shift`, from pixels 0..255 to the network's input; with `whitening`, of whitened pixels."""

    name: str
    scale: Tensor  # float32 (C,)
    shift: Tensor  # float32 (C,), or (H, W, C) if every pixel has its own
    outside: float  # what lies beyond the border when cropping: zero *after* the mean is subtracted
    whitening: Tensor | None = None  # float64 (H*W*C, H*W*C), whole numbers: see `whitened`

    def one_colour(self) -> "Normaliser":
        """The same with the mean image's mean colour: for views that have no place in it."""
        if self.shift.dim() == 1:
            return self
        return replace(self, shift=self.shift.mean((0, 1), dtype=torch.float64).float())

    def on(self, device: str | torch.device) -> "Normaliser":
        """The same, its tensors on `device`."""
        whitening = None if self.whitening is None else self.whitening.to(device)
        return replace(self, scale=self.scale.to(device), shift=self.shift.to(device), whitening=whitening)


def fit_normaliser(name: str, train: LabelledImages) -> Normaliser:
    """Statistics of the training part, from exact whole numbers: the same on any number of threads."""
    count, height, width, channels = train.pixels.shape
    one = torch.ones(channels, dtype=torch.float64)
    scale, shift, outside = one / 255, one * 0, 0.0
    if name == "per-pixel-mean":
        shift = _total(train).double() / (255 * count)
    elif name == "raw-mean-image":
        scale, shift = one, _total(train).double() / count
    elif name == "raw-mean-colour":
        scale, shift = one, _total(train).sum((0, 1)).double() / (count * height * width)
    elif name == "per-channel":
        flat = train.pixels.reshape(-1, channels).unbind(1)
        counts = torch.stack([torch.bincount(values, minlength=256) for values in flat]).double()  # (C, 256)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts * levels).sum(1) / (count * height * width)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / (count * height * width)
        scale, shift = by_deviation(mean, variance)
    elif name == "lecun98":
        scale, shift, outside = one * (1.175 + 0.1) / 255, one * 0.1, -0.1
    elif name == "gcn-zca":
        return _fit_whitening(train)
    elif name != "scale":
        raise DataError(unknown_name("normalisation", name, NORMALISERS))
    return Normaliser(name, scale.float(), shift.float(), outside)


def by_deviation(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of 'per-channel', from a channel's mean and variance of pixels / 255; all float64 (C,)."""
    if (variance == 0).any():
        raise DataError(
            "'per-channel' divides by each channel's standard deviation, and one channel never varies;"
            " use 'per-pixel-mean' or 'scale'"
        )
    return torch.ones_like(mean) / 255 / variance.sqrt(), mean / variance.sqrt()


def _total(train: LabelledImages) -> Tensor:
    """int64 (H, W, C): the sum of all images."""
    return torch.from_numpy(train.pixels.numpy().sum(0, dtype=np.int64))  # 25 times faster than torch's


def normalise_crops(
    normaliser: Normaliser, pixels: Tensor, corners: Tensor | None = None, frame: int | None = None
) -> Tensor:
    """Photographs: uint8 or float (N, h, w, C) pixels 0..255 -> float32 (N, C, h, w), channels_last.

    A mean image is that of a square, the frame. It is subtracted whole from pixels of its own size; from a crop
    whose corner (row, column) in the frame is known, the same window of it; from anything else (dense views, other
    scales) its mean colour, since such views have no place in it.

    `corners` is int64 (N, 2), and `frame` the side of the square they are in.
    """
    assert normaliser.whitening is None, "whitening is for small images, which BatchMaker makes"
    device, size = pixels.device, pixels.shape[1:]
    x = pixels.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    shift = normaliser.shift.to(device)
    if shift.dim() == 3 and shift.shape != size:
        if corners is not None and frame == len(shift):
            shift = _windows(shift, corners.to(device), *size[:2])
        else:
            shift = normaliser.one_colour().shift.to(device)
    # Full size, although most are constant: broadcasting over C = 3 alone is several times slower.
    scale = normaliser.scale.to(device).expand(size).contiguous()
    shift = shift.expand(size).contiguous() if shift.dim() == 1 else shift
    return x.mul_(scale).sub_(shift).permute(0, 3, 1, 2)  # two roundings, as BatchMaker's


def _windows(image: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """(S, S, C) and int64 (N, 2) -> (N, height, width, C): the window at each corner."""
    # All windows as a view, so that whole rows are copied: four times faster than gathering pixels.
    side, _, channels = image.shape
    every = image.reshape(side, -1).unfold(0, height, 1).unfold(1, width * channels, channels)
    found = every[corners[:, 0], corners[:, 1]]  # (N, height, width * C)
    return found.view(len(corners), height, width, channels)


def contrast_normalised(pixels: Tensor) -> Tensor:
    """Whole numbers (N, D) -> float64 (N, D): each row minus its mean, of length 55; one grey becomes 0."""
    x = pixels.double()
    numbers = x.shape[1]
    total = x.sum(1, keepdim=True)
    centred = x * numbers - total  # `numbers` times what it is; whole numbers up to the root, so exact
    variation = numbers * (numbers * x.square().sum(1, keepdim=True) - total.square())
    return torch.where(variation > 0, centred * (LENGTH / variation.clamp(min=1).sqrt()), 0.0)


def whitened(pixels: Tensor, whitening: Tensor) -> Tensor:
    """(N, H, W, C) pixels -> float32 of that shape: contrast-normalised, times the whitening matrix.

    In units of 2**-45, which `Normaliser.scale` takes away. A product of whole numbers in float64, so exact.
    Distorted pixels, which lie between two levels, are rounded first.
    """
    images = (contrast_normalised(pixels.round().flatten(1)) * 2**IMAGE_BITS).round()
    return (images @ whitening).float().view(pixels.shape)


def _fit_whitening(train: LabelledImages) -> Normaliser:
    """'gcn-zca', in blocks: 0.5 GB for images of 32 x 32 x 3, whatever their number."""
    count, *size = train.pixels.shape
    numbers = size[0] * size[1] * size[2]
    if numbers > MOST_NUMBERS:
        raise DataError(
            f"'gcn-zca' needs a matrix of {numbers} x {numbers} numbers for images of"
            f" {size[0]} x {size[1]} x {size[2]}; it is for small ones, up to 64 x 64 x 3"
        )
    total = torch.zeros(numbers, dtype=torch.float64)
    products = torch.zeros(numbers, numbers, dtype=torch.float64)
    for block in train.pixels.flatten(1).split(WHITENING_BLOCK):
        x = (contrast_normalised(block) * 2**FIT_BITS).round()
        total += x.sum(0)
        products += x.T @ x
    mean = total / count / 2**FIT_BITS
    covariance = products.div_(count * 4**FIT_BITS).sub_(torch.outer(mean, mean))
    covariance.diagonal().add_(FILTER_BIAS)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = ((vectors * values.rsqrt()) @ vectors.T).mul_(2**MATRIX_BITS).round_()
    shift = mean @ matrix / 2**MATRIX_BITS
    scale = torch.full(size[2:], 0.5 ** (IMAGE_BITS + MATRIX_BITS))
    return Normaliser("gcn-zca", scale, shift.float().view(size), 0.0, matrix)


def unknown_name(kind: str, name: str, known: tuple[str, ...]) -> str:
    """The sentence about a name that is none of `known`."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"unknown {kind} {name!r}; did you mean {near!r}? (known: {', '.join(known)})"
