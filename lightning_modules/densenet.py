"""DenseNets. Huang, Liu, van der Maaten, Weinberger 2016, arXiv:1608.06993, sections 3 and 4, Table 1.

For CIFAR and SVHN (section 3): L layers with weights, growth rate k, three blocks of n layers:

    layer         output (C x H x W)         filters
    conv1          16 x 32 x 32              3x3; 2k of them in DenseNet-BC
    block1        + nk x 32 x 32             [3x3, k] x n, or with bottlenecks (B) [1x1, 4k; 3x3, k] x n
    transition1     x 16 x 16                1x1, as many maps, times theta with compression (C); 2x2 average
    block2        + nk x 16 x 16
    transition2     x  8 x  8
    block3        + nk x  8 x  8
    pool          global average
    fc             10                        softmax

L = 3n + 4, or 6n + 4 with bottlenecks. Parameters with 10 classes (Table 2 prints millions, as in brackets):
  DenseNet      1,019,722 (L = 40, k = 12; 1.0), 6,979,642 (100, 12; 7.0), 27,249,082 (100, 24; 27.2)
  DenseNet-BC   769,162 (100, 12; 0.8), 15,324,406 (250, 24; 15.3), 25,624,430 (190, 40; 25.6)

For ImageNet (Table 1): BC, theta = 0.5, k = 32; DenseNet-161, k = 48, is from an earlier version of the paper.

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

Every "conv" of the tables except the first is BN-ReLU-conv (`BnReluConv`). DenseNet-264 has 265 layers with
weights.

Departures from the paper: none.

Left open by the paper, and what is done here:
  * BN and ReLU at both ends. Taken literally, Table 1's note applies them to the pixels before conv1. As in the
    authors' models, they do not precede conv1; on ImageNet they follow it (`bn1`); in all nets they precede the
    last pooling (`bn`), because a block ends in a convolution.
  * "The initialisation of [10]" (He et al., arXiv:1502.01852) allows fan-in or fan-out: fan-in, normal, variance
    2 / fan-in, for convolutions and fc; the biases of fc are zero. No convolution has biases.
  * Filters of conv1 in DenseNet-B and -C, which appear only in Figure 4: 16, because the paper gives 2k for BC.
  * Padding of conv1 and pool1 on ImageNet: 3 and 1, for output sides of 112 and 56.
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

from lightning_modules.layers import check_image_size, he_normal

BOTTLENECK_FACTOR = 4  # a bottleneck has 4k maps (section 3)
IMAGENET_NETS = {  # Table 1, and DenseNet-161; depth: growth rate, layers of the four blocks
    121: (32, (6, 12, 24, 16)),
    169: (32, (6, 12, 32, 32)),
    201: (32, (6, 12, 48, 32)),
    264: (32, (6, 12, 64, 48)),
    161: (48, (6, 12, 36, 24)),
}


@dataclass(frozen=True)
class DenseNetConfig:
    """Hyperparameters that all layers of one network share. ValueError for values out of range."""

    k: int  # growth rate: feature maps per layer
    bottleneck: bool = False  # DenseNet-B
    theta: float = 1.0  # compression: fraction of the maps that a transition keeps; DenseNet-C if below 1
    dropout: float = 0.0  # rate after every convolution except conv1; 0.2 without augmentation (section 4.2)
    memory_efficient: bool = False  # see `DenseLayer`

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be an integer >= 1, not {self.k}")
        if not 0 < self.theta <= 1:
            raise ValueError(f"theta must be above 0 and at most 1 (section 3), not {self.theta}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")


class BnReluConv(nn.Sequential):
    """A "conv" of Table 1: batch normalisation, ReLU, convolution, then dropout if its rate is not 0."""

    def __init__(self, channels: int, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        if dropout:
            self.drop = nn.Dropout(dropout)


class DenseLayer(nn.Sequential):
    """H_l of equation 2: k new maps from all previous maps of the block, with or without a bottleneck of 4k maps.

    The layer concatenates and normalises all previous maps. Stored for the backward pass, these tensors take
    memory that grows with the square of the depth. `memory_efficient` recomputes them in the backward pass instead
    (section 4.2 refers to the technical report, arXiv:1707.06990).
    """

    def __init__(self, channels: int, config: DenseNetConfig) -> None:
        super().__init__()
        self.memory_efficient = config.memory_efficient
        if config.bottleneck:
            self.conv1x1 = BnReluConv(channels, BOTTLENECK_FACTOR * config.k, 1, config.dropout)
            channels = BOTTLENECK_FACTOR * config.k
        self.conv3x3 = BnReluConv(channels, config.k, 3, config.dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_0, H, W), (N, k, H, W), ... -> (N, k, H, W)."""
        if self.memory_efficient and self.training and torch.is_grad_enabled():
            # torch.compile accepts no `context_fn`; it updates the running statistics once by itself.
            kwargs: dict[str, Any] = (
                {} if torch.compiler.is_compiling() else {"context_fn": self.checkpoint_contexts}
            )
            x = checkpoint(self.concat_and_convolve, *maps, use_reentrant=False, **kwargs)
        else:
            x = self.concat_and_convolve(*maps)
        return self.conv3x3(x) if len(self) == 2 else x

    def concat_and_convolve(self, *maps: Tensor) -> Tensor:
        """Apply the first convolution to the concatenation of all previous maps."""
        return self.first_conv(torch.cat(maps, dim=1))

    @property
    def first_conv(self) -> BnReluConv:
        """The convolution that reads all previous maps."""
        first = self[0]
        assert isinstance(first, BnReluConv)
        return first

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts for the forward computation and for its repetition in the backward pass."""
        return nullcontext(), frozen_running_statistics(self.first_conv.bn)


@contextmanager
def frozen_running_statistics(bn: nn.BatchNorm2d) -> Iterator[None]:
    """Within the context, training batches do not change the running statistics of `bn`."""
    momentum, counter = bn.momentum, bn.num_batches_tracked
    bn.momentum, bn.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        bn.momentum, bn.num_batches_tracked = momentum, counter


class DenseBlock(nn.Sequential):
    """Layers that each read the block's input and the outputs of all previous layers (equation 2)."""

    def __init__(self, layers: int, channels: int, config: DenseNetConfig) -> None:
        children = ((f"layer{i + 1}", DenseLayer(channels + i * config.k, config)) for i in range(layers))
        super().__init__(OrderedDict(children))
        self.channels, self.k = channels, config.k

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + layers * k, H, W)."""
        maps = [x]
        for layer in self:
            maps.append(layer(maps))
        return torch.cat(maps, dim=1)

    @property
    def direct_connections(self) -> int:
        """Total number of outputs that the layers read, x_0 included: L (L + 1) / 2 for L layers (section 1)."""
        in_channels = (layer.first_conv.bn.num_features for layer in self if isinstance(layer, DenseLayer))
        return sum(1 + (channels - self.channels) // self.k for channels in in_channels)


class Transition(nn.Sequential):
    """Layers between two blocks: a 1x1 convolution to `width` maps and 2x2 average pooling."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = BnReluConv(channels, width, 1, dropout)
        self.pool = nn.AvgPool2d(2)


class DenseNet(nn.Sequential):
    """The rows of a table in order: a stem with `channels` output maps, the blocks, the classifier."""

    def __init__(
        self,
        stem: OrderedDict[str, nn.Module],
        channels: int,
        blocks: Sequence[int],
        config: DenseNetConfig,
        classes: int,
    ) -> None:
        super().__init__(stem)
        self.min_side = 29 if "pool1" in stem else 4  # leaves 1 x 1 after the last transition
        for number, layers in enumerate(blocks, start=1):
            self.add_module(f"block{number}", DenseBlock(layers, channels, config))
            channels += layers * config.k
            if number < len(blocks):
                width = math.floor(config.theta * channels)
                self.add_module(f"transition{number}", Transition(channels, width, config.dropout))
                channels = width
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(channels, classes)
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, normalised by channel -> (N, classes) scores. ValueError if they are too small."""
        check_image_size(x, "densenet", min_side=self.min_side)
        return super().forward(x)


def layers_per_block(depth: int, bottleneck: bool) -> int:
    """Return n of depth = 3n + 4, or 6n + 4 with bottlenecks.

    Raises ValueError with the nearest valid depths for another depth.
    """
    factor, formula = (6, "6n + 4 (DenseNet-B)") if bottleneck else (3, "3n + 4")
    n, remainder = divmod(depth - 4, factor)
    if remainder or n < 1:
        below, above = factor * max(n, 1) + 4, factor * max(n + 1, 2) + 4
        raise ValueError(f"depth {depth} is not {formula}; the nearest valid depths are {below} and {above}")
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
    """Build a net of section 3 for 32 x 32 images, or any size from 4 x 4.

    Args:
        depth: L, 3n + 4 or with bottlenecks 6n + 4.
        k: growth rate.
        bottleneck, theta: DenseNet-BC has bottlenecks and compression theta = 0.5.
        dropout: rate; 0.2 in the paper for images without augmentation.
        memory_efficient: recompute in the backward pass, for the same result with less memory (see `DenseLayer`).

    Raises ValueError for a depth, k, theta or dropout out of range.
    """
    config = DenseNetConfig(k, bottleneck, theta, dropout, memory_efficient)
    channels = 2 * k if bottleneck and theta < 1 else 16
    stem = OrderedDict[str, nn.Module](conv1=nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
    return DenseNet(stem, channels, [layers_per_block(depth, bottleneck)] * 3, config, num_classes)


def densenet_imagenet(
    *,
    depth: int,
    dropout: float = 0.0,
    memory_efficient: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> DenseNet:
    """Build a net of Table 1, or DenseNet-161, for 224 x 224 images, or any size from 29 x 29.

    `dropout` and `memory_efficient` as for `densenet_cifar`. Raises ValueError for a depth that is not in Table 1.
    """
    if depth not in IMAGENET_NETS:
        raise ValueError(f"depth {depth} is not one of Table 1: {', '.join(map(str, sorted(IMAGENET_NETS)))}")
    k, blocks = IMAGENET_NETS[depth]
    stem = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(in_channels, 2 * k, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(2 * k),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
    )
    return DenseNet(stem, 2 * k, blocks, DenseNetConfig(k, True, 0.5, dropout, memory_efficient), num_classes)
