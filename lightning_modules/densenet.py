"""DenseNets. Huang, Liu, van der Maaten, Weinberger 2016, arXiv:1608.06993, sections 3 and 4, Table 1.

For CIFAR and SVHN (section 3); L layers with weights, growth rate k, n layers in each of three blocks:

    layer         output (C x H x W)         filters
    conv1          16 x 32 x 32              3x3; 2k of them in DenseNet-BC
    block1        + nk x 32 x 32             [3x3, k] x n, or with bottlenecks (B) [1x1, 4k; 3x3, k] x n
    transition1     x 16 x 16                1x1, as many as before, with compression (C) theta times; 2x2 average
    block2        + nk x 16 x 16
    transition2     x  8 x  8
    block3        + nk x  8 x  8
    pool          global average
    fc             10                        softmax

L = 3n + 4, or 6n + 4 with bottlenecks. Parameters with 10 classes (Table 2 prints millions, as in brackets):
  DenseNet      1,019,722 (L = 40, k = 12; 1.0), 6,979,642 (100, 12; 7.0), 27,249,082 (100, 24; 27.2)
  DenseNet-BC   769,162 (100, 12; 0.8), 15,324,406 (250, 24; 15.3), 25,624,430 (190, 40; 25.6)

For ImageNet (Table 1): BC, theta = 0.5, k = 32; DenseNet-161, with k = 48, is of an earlier version of the paper.

    layer                  output side   121      169      201      264      161
    conv1                  112           7x7, 2k filters, stride 2
    pool1                   56           3x3 max, stride 2
    block1                  56           x 6      x 6      x 6      x 6      x 6         [1x1, 4k; 3x3, k]
    transition1             56, 28       1x1; 2x2 average, stride 2
    block2                  28           x 12     x 12     x 12     x 12     x 12
    transition2             28, 14
    block3                  14           x 24     x 32     x 48     x 64     x 36
    transition3             14, 7
    block4                   7           x 16     x 32     x 32     x 48     x 24
    pool                     1           7x7 global average
    fc                    1000           softmax
    parameters, 1000 classes             7,978,856  14,149,480  20,013,928  33,337,704  28,681,000

Every "conv" of the tables but the first is BN-ReLU-conv (`BnReluConv`). DenseNet-264 has 265 layers with weights.

Departures from the paper: none.

Left open by the paper, and what is done here:
  * BN and ReLU at both ends. Table 1's note, read to the letter, puts them before conv1 too, on the pixels. As in
    the authors' models there are none; on ImageNet they follow conv1 (`bn1`); and everywhere they precede the last
    pooling (`bn`), a block ending in convolutions.
  * "The initialisation of [10]" (He et al., arXiv:1502.01852) allows fan-in or fan-out: fan-in, normal, variance
    2 / fan-in, for convolutions and fc; the biases of fc are zero. No convolution has biases.
  * Filters of conv1 in DenseNet-B and -C, which only Figure 4 has: 16, since 2k is said of BC.
  * Padding of conv1 and pool1 on ImageNet: 3 and 1, for the sides of 112 and 56.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.layers import he_normal, require_image

BOTTLENECK = 4  # a bottleneck is 4k wide (section 3)
TABLE_1 = {  # depth: growth rate, layers of the four blocks
    121: (32, (6, 12, 24, 16)),
    169: (32, (6, 12, 32, 32)),
    201: (32, (6, 12, 48, 32)),
    264: (32, (6, 12, 64, 48)),
    161: (48, (6, 12, 36, 24)),
}


@dataclass(frozen=True)
class Design:
    """What all layers of one network have in common."""

    k: int  # growth rate: maps that a layer adds
    bottleneck: bool = False  # B
    theta: float = 1.0  # C, if below 1: share of the maps that a transition keeps
    dropout: float = 0.0  # after every convolution but the first; 0.2 where images are not augmented (section 4.2)
    memory_efficient: bool = False  # see `DenseLayer`

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}; a layer adds at least 1 map")
        if not 0 < self.theta <= 1:
            raise ValueError(f"theta is {self.theta}; a transition keeps a share above 0 and up to 1 (section 3)")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is a share from 0 to below 1")


class BnReluConv(nn.Sequential):
    """What one "conv" of Table 1 stands for, and dropout where there is any."""

    def __init__(self, channels: int, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        if dropout:
            self.drop = nn.Dropout(dropout)


class DenseLayer(nn.Sequential):
    """H_l of equation 2: k new maps from all maps before them, through a bottleneck of 4k or directly.

    What it computes first, the joined maps normalised, is as large as all maps before it: kept for the backward
    pass, that takes memory which grows with the square of the depth. `memory_efficient` computes it again there
    (section 4.2 points to the technical report, arXiv:1707.06990).
    """

    def __init__(self, channels: int, design: Design) -> None:
        super().__init__()
        self.memory_efficient = design.memory_efficient
        if design.bottleneck:
            self.conv1x1 = BnReluConv(channels, BOTTLENECK * design.k, 1, design.dropout)
            channels = BOTTLENECK * design.k
        self.conv3x3 = BnReluConv(channels, design.k, 3, design.dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_0, H, W), (N, k, H, W), ... -> (N, k, H, W)."""
        if self.memory_efficient and self.training and torch.is_grad_enabled():
            # torch.compile takes no contexts but its own, and counts by itself what it computes twice only once.
            contexts: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": self.contexts}
            x = checkpoint(self.joined, *maps, use_reentrant=False, **contexts)
        else:
            x = self.joined(*maps)
        return self.conv3x3(x) if len(self) == 2 else x

    def joined(self, *maps: Tensor) -> Tensor:
        """The first convolution, of all maps: the only part that grows with their number."""
        return self.first(torch.cat(maps, dim=1))

    @property
    def first(self) -> BnReluConv:
        """The convolution that reads all maps before."""
        unit = self[0]
        assert isinstance(unit, BnReluConv)
        return unit

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the first and the second time that `joined` is computed."""
        return nullcontext(), uncounted(self.first.bn)


@contextmanager
def uncounted(bn: nn.BatchNorm2d) -> Iterator[None]:
    """Within: a batch leaves the running statistics as they are, instead of entering them a second time."""
    momentum, counter = bn.momentum, bn.num_batches_tracked
    bn.momentum, bn.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        bn.momentum, bn.num_batches_tracked = momentum, counter


class DenseBlock(nn.Sequential):
    """Layers of which each reads the block's input and all layers before it (equation 2)."""

    def __init__(self, layers: int, channels: int, design: Design) -> None:
        named = ((f"layer{i + 1}", DenseLayer(channels + i * design.k, design)) for i in range(layers))
        super().__init__(OrderedDict(named))
        self.channels, self.k = channels, design.k

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + layers * k, H, W)."""
        maps = [x]
        for layer in self:
            maps.append(layer(maps))
        return torch.cat(maps, dim=1)

    @property
    def direct_connections(self) -> int:
        """How many outputs (x_0 is one) the layers read, added up: L (L + 1) / 2 of L layers (section 1)."""
        read = (layer.first.bn.num_features for layer in self if isinstance(layer, DenseLayer))
        return sum(1 + (channels - self.channels) // self.k for channels in read)


class Transition(nn.Sequential):
    """Between two blocks: a 1x1 convolution to `width` maps, and the mean of 2x2."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = BnReluConv(channels, width, 1, dropout)
        self.pool = nn.AvgPool2d(2)


class DenseNet(nn.Sequential):
    """The rows of a table, one after the other: a stem that gives `channels` maps, blocks, the classifier."""

    def __init__(
        self, stem: OrderedDict[str, nn.Module], channels: int, blocks: Sequence[int], design: Design, classes: int
    ) -> None:
        super().__init__(stem)
        self.least = 29 if "pool1" in stem else 4  # a side below leaves nothing after the last transition
        for number, layers in enumerate(blocks, start=1):
            self.add_module(f"block{number}", DenseBlock(layers, channels, design))
            channels += layers * design.k
            if number < len(blocks):
                width = math.floor(design.theta * channels)
                self.add_module(f"transition{number}", Transition(channels, width, design.dropout))
                channels = width
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(channels, classes)
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, normalised by channel -> (N, classes) scores; ValueError for too small ones."""
        require_image(x, "densenet", least=self.least)
        return super().forward(x)


def layers_per_block(depth: int, bottleneck: bool) -> int:
    """n of depth = 3n + 4, or 6n + 4 with bottlenecks; ValueError names the depths that would fit."""
    per, form = (6, "6n + 4 (DenseNet-B)") if bottleneck else (3, "3n + 4")
    n, rest = divmod(depth - 4, per)
    if rest or n < 1:
        below, above = per * max(n, 1) + 4, per * max(n + 1, 2) + 4
        raise ValueError(f"depth {depth} is not {form}; the nearest that are: {below}, {above}")
    return n


def densenet_cifar(
    *,
    depth: int,
    k: int,
    bottleneck: bool = False,
    theta: float = 1.0,
    dropout: float = 0.0,
    memory_efficient: bool = False,
    num_classes: int = 10,
    in_channels: int = 3,
) -> DenseNet:
    """The nets of section 3 for 32 x 32 images; DenseNet-BC has bottlenecks and theta = 0.5.

    `k` is the growth rate, `theta` the compression, `dropout` 0.2 in the paper for images that are not augmented,
    `memory_efficient` computes more and keeps less, for the same result (see `DenseLayer`). Images may have
    any size from 4 x 4. ValueError for a depth, k, theta or dropout that cannot be.
    """
    design = Design(k, bottleneck, theta, dropout, memory_efficient)
    channels = 2 * k if bottleneck and theta < 1 else 16
    stem = OrderedDict[str, nn.Module](conv1=nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
    return DenseNet(stem, channels, [layers_per_block(depth, bottleneck)] * 3, design, num_classes)


def densenet_imagenet(
    *,
    depth: int,
    dropout: float = 0.0,
    memory_efficient: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> DenseNet:
    """The nets of Table 1 and DenseNet-161, for 224 x 224 images; any size from 29 x 29 will do.

    `dropout` and `memory_efficient` as for `densenet_cifar`. ValueError for a depth that the paper does not have.
    """
    if depth not in TABLE_1:
        raise ValueError(f"depth {depth} is none of Table 1's: {', '.join(map(str, sorted(TABLE_1)))}")
    k, blocks = TABLE_1[depth]
    stem = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(in_channels, 2 * k, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(2 * k),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
    )
    return DenseNet(stem, 2 * k, blocks, Design(k, True, 0.5, dropout, memory_efficient), num_classes)
