"""What several papers truly share: input checks, local response normalisation, He's initialisation, shortcuts,
fully connected layers as convolutions.
"""

import math
from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["A", "B", "C"]


def require_image(x: Tensor, network: str, *, side: int | None = None, least: int | None = None) -> None:
    """ValueError unless the images (N, C, H, W) are `side` pixels wide and high, or at least `least`."""
    height, width = x.shape[-2:]
    if side is not None and (height, width) != (side, side):
        raise ValueError(f"{network} reads images of {side} x {side} pixels, not {height} x {width}")
    if least is not None and min(height, width) < least:
        raise ValueError(f"{network} reads images of {least} x {least} pixels or more, not {height} x {width}")


def as_convolution(fc: nn.Linear, x: Tensor) -> Tensor:
    """A fully connected layer slid over maps larger than those it was made for (arXiv:1409.1556, section 3.2).

    It is a convolution whose filters are as large as the square maps that it reads.
    (N, C, H, W) -> (N, out, H', W'), with H' = W' = 1 on maps of that size.
    """
    side = math.isqrt(fc.in_features // x.shape[1])
    return F.conv2d(x, fc.weight.unflatten(1, (x.shape[1], side, side)), fc.bias)


def lrn(*, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> nn.LocalResponseNorm:
    """b = a / (k + alpha * sum of a^2 over n neighbouring maps) ^ beta (Krizhevsky et al. 2012, section 3.3).

    torch, like Caffe, divides its alpha by n; the paper does not, so n times the paper's alpha goes in.
    """
    return nn.LocalResponseNorm(n, alpha=n * alpha, beta=beta, k=k)


def he_normal(module: nn.Module) -> None:
    """Normal with variance 2 / fan-in, biases zero (He et al., arXiv:1502.01852): for `network.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PadShortcut(nn.Module):
    """Option A (arXiv:1512.03385, section 3.3): the identity, subsampled, zero in the channels that are new.

    Subsampled as stride 2 says, every second row and column; the new channels come last, but for the `first` of
    them. No parameters.
    """

    def __init__(self, new_channels: int, stride: int, first: int = 0) -> None:
        super().__init__()
        self.new_channels, self.stride, self.first = new_channels, stride, first

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new_channels, H / stride, W / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.first, self.new_channels - self.first))


class Projection(nn.Sequential):
    """Options B and C (arXiv:1512.03385, eq. 2): a 1x1 convolution, batch-normalised like every other."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(width)))


def shortcut_for(
    option: Shortcut, channels: int, width: int, stride: int, *, pad_around: bool = False
) -> nn.Module:
    """The shortcut of one block: A pads, B projects where the size changes, C projects everywhere.

    `pad_around`: option A puts half of the new channels before the old ones.
    """
    changes = stride != 1 or channels != width
    if option == "C" or (option == "B" and changes):
        return Projection(channels, width, stride)
    new = width - channels
    return PadShortcut(new, stride, new // 2 if pad_around else 0) if changes else nn.Identity()
