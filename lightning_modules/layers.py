"""Layers and helpers that several papers share.

Image size checks, local response normalisation, He initialisation, residual shortcuts, and fully connected layers
applied as convolutions.
"""

import math
from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

ShortcutOption = Literal["A", "B", "C"]  # arXiv:1512.03385, section 3.3


def check_image_size(x: Tensor, network: str, *, side: int | None = None, min_side: int | None = None) -> None:
    """Raise ValueError unless images (N, C, H, W) have this side, or at least `min_side` both ways, in pixels."""
    height, width = x.shape[-2:]
    if side is not None and (height, width) != (side, side):
        raise ValueError(f"{network} reads images of {side} x {side} pixels, not {height} x {width}")
    if min_side is not None and min(height, width) < min_side:
        raise ValueError(
            f"{network} reads images of {min_side} x {min_side} pixels or more, not {height} x {width}"
        )


def as_convolution(fc: nn.Linear, x: Tensor) -> Tensor:
    """Apply a fully connected layer as a convolution (arXiv:1409.1556, section 3.2).

    The kernel is as large as the square feature map that `fc` was built for, so larger maps give several outputs:
    (N, C, H, W) -> (N, out, H', W'), with H' = W' = 1 on maps of the original size.
    """
    side = math.isqrt(fc.in_features // x.shape[1])
    return F.conv2d(x, fc.weight.unflatten(1, (x.shape[1], side, side)), fc.bias)


def lrn(*, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> nn.LocalResponseNorm:
    """Local response normalisation, b = a / (k + alpha * sum of a^2 over n neighbouring maps) ^ beta.

    Source: Krizhevsky et al. 2012, section 3.3. PyTorch, like Caffe, divides its alpha by n, the paper does not:
    the layer gets n times the paper's alpha.
    """
    return nn.LocalResponseNorm(n, alpha=n * alpha, beta=beta, k=k)


def he_normal(module: nn.Module) -> None:
    """Initialise weights from a normal distribution with variance 2 / fan-in, biases to zero (arXiv:1502.01852).

    For use with `network.apply`; leaves other modules than convolutions and fully connected layers as they are.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PadShortcut(nn.Module):
    """Shortcut option A (arXiv:1512.03385, section 3.3): the subsampled identity, zero-padded to more channels.

    Keeps every `stride`-th row and column and appends `new_channels` channels of zeros. No parameters.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new_channels, H / stride, W / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class Projection(nn.Sequential):
    """Shortcut of options B and C (arXiv:1512.03385, eq. 2): a 1x1 convolution and batch normalisation."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(width)))


def shortcut_for(option: ShortcutOption, channels: int, width: int, stride: int) -> nn.Module:
    """Return the shortcut of one block: A pads, B projects where the shape changes, C projects everywhere."""
    changes = stride != 1 or channels != width
    if option == "C" or (option == "B" and changes):
        return Projection(channels, width, stride)
    return PadShortcut(width - channels, stride) if changes else nn.Identity()
