"""Normalisation of pixels 0..255 to a network's input, as in the papers, with statistics of the training part.

per-pixel-mean   x/255 - the mean image            (He et al. 2015, arXiv:1512.03385, section 4.2)
per-channel      (x/255 - mean) / standard deviation, both per channel over all pixels
lecun98          background 0 -> -0.1, foreground 255 -> 1.175 (LeCun et al. 1998, section III-A)
scale            x/255
raw-mean-image   x - the mean image, pixels 0..255 (Krizhevsky et al. 2012, section 2: "raw RGB values")
raw-mean-colour  x - the mean colour, pixels 0..255 (Simonyan and Zisserman 2014, arXiv:1409.1556, section 2.1)
gcn-zca          global contrast normalisation and ZCA whitening (Network in Network, arXiv:1312.4400, section 4.2,
                 "as was used by Goodfellow et al. in the maxout network", arXiv:1302.4389)
local-contrast   global, then local contrast normalisation of each colour (NiN on SVHN, section 4.4, after the
                 maxout network, which follows Zeiler and Fergus 2013, arXiv:1301.3557)

The maxout network's CIFAR images come from pylearn2's script make_cifar10_gcn_whitened.py. Each image minus its
own mean is scaled to length 55 (`gcn=55.`: the length, not the deviation, and nothing is added under the root).
Then the mean image is subtracted, and the result is multiplied by (C + 0.1 I)^(-1/2), where C is the covariance
over the training images divided by their number (preprocessing.ZCA, whose `filter_bias` is 0.1 by default).

NiN names "local contrast normalization" without a formula. Ours is that of the maxout network's code, pylearn2's
script svhn_preprocessing.py (GlobalContrastNormalization, then LeCunLCN, at their defaults). Each image minus its
mean is scaled to length 1, over all colours. Then, for each colour, x - G(x) is divided by the largest of s, the
mean of s over the image, and 1e-4. Here s = sqrt(G(x^2)), and G is the mean over 7 x 7 pixels with Gaussian
weights of standard deviation 2, with 0 beyond the border. Open: whether NiN's own code did the same. Jarrett et
al. 2009, whom others follow, take s from the squares of x - G(x), with 9 x 9 pixels. One version of pylearn2
normalises the first colour only, by a return inside a loop; we normalise all.

Reproducibility to the bit: all sums are of integers, so they do not depend on the number of threads. The inverse
root comes from LAPACK and agrees to about 1e-13 on any number of threads. Rounded to 2**-23, a few of its
millions of values may differ by one unit between machines, so it is cached (statistics.py). Whitening with it is
exact: an image has the same bits in any batch, on any number of threads and ranks, and on any device.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.names import nearest
from pipeline.data.images import DataError, LabelledImages

NORMALISERS = (
    "per-pixel-mean", "per-channel", "lecun98", "scale", "raw-mean-image", "raw-mean-colour", "gcn-zca",
    "local-contrast",
)  # fmt: skip

CONTRAST_LENGTH = 55.0  # of an image after global contrast normalisation
FILTER_BIAS = 0.1  # added to the covariance's diagonal

LOCAL_SIDE, LOCAL_DEVIATION = 7, 2.0  # of the Gaussian of 'local-contrast', in pixels
LOCAL_THRESHOLD = 1e-4  # smallest divisor
LOCAL_BITS = 30  # fractional bits of the sum over an image, which is then exact

# float64 represents integers up to 2**53 exactly. An image has length 55 and a column of the whitening matrix at
# most 1/sqrt(0.1), so no partial sum of a product exceeds 174 < 2**8 (Cauchy-Schwarz): 45 bits remain for
# fractions.
IMAGE_BITS, MATRIX_BITS = 22, 23
# 2048 * (55 * 2**15)**2 < 2**53, so the products of a block of images are summed exactly.
WHITENING_BLOCK, FIT_BITS = 2048, 15
COUNT_BLOCK = 8192  # images whose levels are counted at a time
MAX_WHITENED_VALUES = 64 * 64 * 3  # per image; the matrix then has 1.2 GB


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Affine map `pixel * scale - shift` from pixels 0..255 to the network's input.

    It comes after whitening or local contrast normalisation, if there is one.
    """

    name: str
    scale: Tensor  # float32 (C,)
    shift: Tensor  # float32 (C,), or (H, W, C) for a mean image
    pad_value: float  # of pixels beyond the border when cropping: zero *after* the mean is subtracted
    whitening: Tensor | None = None  # float64 (H*W*C, H*W*C), integers: see `whitened`
    local_contrast: bool = False  # see `locally_normalised`

    @property
    def needs_whole_images(self) -> bool:
        """True if a pixel's result depends on other pixels of the image."""
        return self.whitening is not None or self.local_contrast

    def with_mean_colour(self) -> "Normaliser":
        """Return a copy with the mean image replaced by its mean colour, for views that are not in the frame."""
        if self.shift.dim() == 1:
            return self
        return replace(self, shift=self.shift.mean((0, 1), dtype=torch.float64).float())

    def to(self, device: str | torch.device) -> "Normaliser":
        """Return a copy with its tensors on `device`."""
        whitening = None if self.whitening is None else self.whitening.to(device)
        return replace(self, scale=self.scale.to(device), shift=self.shift.to(device), whitening=whitening)


def fit_normaliser(name: str, train: LabelledImages) -> Normaliser:
    """Return the normalisation `name` fitted on the training part; the same bits on any number of threads.

    Raises DataError for an unknown name, a constant channel ("per-channel") or too large images ("gcn-zca").
    """
    count, height, width, channels = train.pixels.shape
    ones = torch.ones(channels, dtype=torch.float64)
    scale, shift, pad_value = ones / 255, ones * 0, 0.0
    if name == "per-pixel-mean":
        shift = _total(train).double() / (255 * count)
    elif name == "raw-mean-image":
        scale, shift = ones, _total(train).double() / count
    elif name == "raw-mean-colour":
        scale, shift = ones, _total(train).sum((0, 1)).double() / (count * height * width)
    elif name == "per-channel":
        counts = _level_counts(train).double()
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts * levels).sum(1) / (count * height * width)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / (count * height * width)
        scale, shift = standardisation(mean, variance)
    elif name == "lecun98":
        scale, shift, pad_value = ones * (1.175 + 0.1) / 255, ones * 0.1, -0.1
    elif name == "gcn-zca":
        return _fit_whitening(train)
    elif name == "local-contrast":
        return Normaliser(name, ones.float(), shift.float(), pad_value, local_contrast=True)
    elif name != "scale":
        raise DataError(f"unknown normalisation {name!r}{nearest(name, NORMALISERS)}")
    return Normaliser(name, scale.float(), shift.float(), pad_value)


def standardisation(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift of 'per-channel' from mean and variance of pixels / 255, all float64 (C,).

    Raises DataError if a channel is constant.
    """
    if (variance == 0).any():
        raise DataError(
            "'per-channel' divides by each channel's standard deviation, but one channel is constant;"
            " use 'per-pixel-mean' or 'scale'"
        )
    return torch.ones_like(mean) / 255 / variance.sqrt(), mean / variance.sqrt()


def _level_counts(train: LabelledImages) -> Tensor:
    """Return how often each channel has each of the levels 0..255, int64 (C, 256)."""
    counts = torch.zeros(train.pixels.shape[3], 256, dtype=torch.int64)
    for block in torch.split(train.pixels, COUNT_BLOCK):
        for channel, values in enumerate(block.flatten(0, 2).unbind(1)):
            counts[channel] += torch.bincount(values, minlength=256)
    return counts


def _total(train: LabelledImages) -> Tensor:
    """Return the sum of all images, int64 (H, W, C)."""
    return torch.from_numpy(
        train.pixels.numpy().sum(0, dtype=np.int64)
    )  # numpy is 25 times faster here than torch


def normalise_crops(
    normaliser: Normaliser, pixels: Tensor, corners: Tensor | None = None, frame: int | None = None
) -> Tensor:
    """Normalise crops: uint8 or float (N, h, w, C) pixels 0..255 -> float32 (N, C, h, w), channels_last.

    A mean image covers a square, the frame. From pixels of the frame's size the whole mean image is subtracted,
    and from a crop with a known corner (row, column) in the frame the same window of it. From other views (dense,
    other scales) its mean colour is subtracted, since they do not lie in the frame.

    `corners` is int64 (N, 2), and `frame` is the side of the square that they are in.
    """
    assert not normaliser.needs_whole_images, "this normalisation is for images in memory; see BatchBuilder"
    device, size = pixels.device, pixels.shape[1:]
    x = pixels.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    shift = normaliser.shift.to(device)
    if shift.dim() == 3 and shift.shape != size:
        if corners is not None and frame == len(shift):
            shift = _windows(shift, corners.to(device), *size[:2])
        else:
            shift = normaliser.with_mean_colour().shift.to(device)
    # Expanded to full size, since broadcasting over C = 3 alone is several times slower.
    scale = normaliser.scale.to(device).expand(size).contiguous()
    shift = shift.expand(size).contiguous() if shift.dim() == 1 else shift
    return x.mul_(scale).sub_(shift).permute(0, 3, 1, 2)  # two roundings, as in BatchBuilder


def _windows(image: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Return the window of `image`, (S, S, C), at each corner, int64 (N, 2), as (N, height, width, C)."""
    # A view of all windows copies whole rows, which is four times faster than gathering pixels.
    side, _, channels = image.shape
    windows = image.reshape(side, -1).unfold(0, height, 1).unfold(1, width * channels, channels)
    chosen = windows[corners[:, 0], corners[:, 1]]  # (N, height, width * C)
    return chosen.view(len(corners), height, width, channels)


def contrast_normalised(pixels: Tensor, length: float = CONTRAST_LENGTH) -> Tensor:
    """Subtract each row's mean and scale it to `length` (0 if constant); integers (N, D) -> float64 (N, D)."""
    x = pixels.double()
    numbers = x.shape[1]
    total = x.sum(1, keepdim=True)
    centred = x * numbers - total  # scaled by `numbers`: only integers up to the root, so exact
    variation = numbers * (numbers * x.square().sum(1, keepdim=True) - total.square())
    return torch.where(variation > 0, centred * (length / variation.clamp(min=1).sqrt()), 0.0)


def whitened(pixels: Tensor, whitening: Tensor) -> Tensor:
    """Return contrast-normalised pixels times the whitening matrix; (N, H, W, C) -> float32 (N, H, W, C).

    The unit is 2**-45, which `Normaliser.scale` removes. The product is of integers in float64, so it is exact.
    Distorted pixels are not integers and are rounded first.
    """
    images = (contrast_normalised(pixels.round().flatten(1)) * 2**IMAGE_BITS).round()
    product: Tensor = images @ whitening
    return product.float().view(pixels.shape)


def locally_normalised(pixels: Tensor) -> Tensor:
    """Apply 'local-contrast' to pixels 0..255, (N, H, W, C) -> float32 (N, H, W, C); see the module's docstring.

    An image's result has the same bits in any batch and on any number of threads: sums over an image are of
    integers, and the Gaussian mean is a sum of shifted images in fixed order. Distorted pixels are rounded first.
    """
    _, height, width, _ = pixels.shape
    x = contrast_normalised(pixels.round().flatten(1), 1.0).float().view(pixels.shape)
    deviation = _gaussian_mean(x.square()).sqrt_()
    total = (deviation.double() * 2**LOCAL_BITS).round_().sum((1, 2), keepdim=True)
    mean = (total / (2**LOCAL_BITS * height * width)).float()
    return (x - _gaussian_mean(x)).div_(deviation.maximum(mean).clamp_(min=LOCAL_THRESHOLD))


def _gaussian_mean(x: Tensor) -> Tensor:
    """Return the mean of each pixel's neighbourhood with Gaussian weights, (N, H, W, C); 0 beyond the border."""
    reach = LOCAL_SIDE // 2
    weights = [math.exp(-(offset**2) / (2 * LOCAL_DEVIATION**2)) for offset in range(-reach, reach + 1)]
    for axis, border in ((1, (0, 0, 0, 0, reach, reach)), (2, (0, 0, reach, reach))):
        padded, size, x = F.pad(x, border), x.shape[axis], torch.zeros_like(x)
        for offset, weight in enumerate(weights):
            # Two roundings, never a fused multiply-add, so that all devices agree.
            x += padded.narrow(axis, offset, size) * (weight / sum(weights))
    return x


def _fit_whitening(train: LabelledImages) -> Normaliser:
    """Fit 'gcn-zca' in blocks; images of 32 x 32 x 3 need 0.5 GB, whatever their number."""
    count, *size = train.pixels.shape
    numbers = size[0] * size[1] * size[2]
    if numbers > MAX_WHITENED_VALUES:
        raise DataError(
            f"'gcn-zca' needs a matrix of {numbers} x {numbers} values for images of"
            f" {size[0]} x {size[1]} x {size[2]}; use it for images up to 64 x 64 x 3"
        )
    total = torch.zeros(numbers, dtype=torch.float64)
    products = torch.zeros(numbers, numbers, dtype=torch.float64)
    for block in torch.split(train.pixels.flatten(1), WHITENING_BLOCK):
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
