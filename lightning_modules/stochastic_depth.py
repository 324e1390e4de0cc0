"""Residual networks with stochastic depth. Huang, Sun, Liu, Sedra, Weinberger 2016, arXiv:1603.09382.

For CIFAR and SVHN (section 4):

    layer    output (C x H x W)   filters                                          blocks
    conv1     16 x 32 x 32        3x3, 16
    map32     16 x 32 x 32        [3x3, 16; 3x3, 16]                               n
    map16     32 x 16 x 16        [3x3, 32; 3x3, 32], the first with stride 2      n
    map8      64 x  8 x  8        [3x3, 64; 3x3, 64], the first with stride 2      n
    pool      64                  global average
    fc        10                  softmax

6n + 2 layers with weights in L = 3n blocks: n = 18, 25, 200 give 110 layers (CIFAR), 152 (SVHN), 1202 (CIFAR-10).
For ImageNet it is the ResNet of 152 layers and L = 50 bottleneck blocks, see `resnet_imagenet`.

In training each mini-batch draws, for every block l, whether it is alive: b_l is 1 with probability p_l, and

    H_l = ReLU(b_l f_l(H_l-1) + id(H_l-1))      (equation 2; f_l is conv-BN-ReLU-conv-BN)

A block that is not alive is not computed, neither forward nor backward. At test all are, each weighted by p_l
(equation 5); other libraries compute all blocks in training too, drop them by image, and divide by p_l there.

Survival falls in a line, p_l = 1 - (l / L)(1 - p_L) (equation 4), or is p_L in all blocks. A line to p_L = 0.5
keeps (3L - 1) / 4 blocks alive in expectation, 40.25 of 54, and saves 25 % of the multiply-adds.

Parameters, with 10 classes: 1,727,962 (110 layers), 2,408,474 (152), 19,421,274 (1202); for ImageNet 60,192,808.
Those are the ResNets' own, with shortcut option A (CIFAR) and B (ImageNet).

Departures from the paper: none.

Left open by the paper, and what is done here:
  * "Average pooling, then zero padding" where the maps shrink: the means of 2x2, new channels last, as in the
    authors' release (https://github.com/yueatsprograms/Stochastic_Depth). He et al. take every second pixel.
  * What a block that is not alive learns. By section 3 it needs no update; in the release, given to reproduce the
    printed errors, its gradient is zero, and momentum and weight decay go on. So they do here.
  * Its batch-norm averages skip that mini-batch, since it is not computed.
  * The convolutions have no bias (batch normalisation takes it out again), and weights start as in `resnet`.
  * The bottlenecks of ImageNet have their stride in the 3x3, as in fb.resnet.torch, on which the authors built.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import PadShortcut, he_normal, require_image, shortcut_for
from lightning_modules.resnet import WIDTHS, blocks_per_map
from lightning_modules.resnet_imagenet import BLOCKS, EXPANSION, is_deep
from lightning_modules.resnet_imagenet import WIDTHS as IMAGENET_WIDTHS

Rule = Literal["linear", "uniform"]
Make = Callable[[int, int, int], tuple[nn.Sequential, nn.Module]]  # channels, width, stride -> f and shortcut


class Block(nn.Module):
    """One residual block; `survival` is its p_l."""

    def __init__(self, f: nn.Sequential, shortcut: nn.Module, survival: float) -> None:
        super().__init__()
        self.f, self.shortcut, self.survival = f, shortcut, survival

    def forward(self, x: Tensor) -> Tensor:
        """Alive, in training (equation 2); weighted by p_l, at test (equation 5)."""
        y = self.f(x)
        return F.relu(self.shortcut(x) + (y if self.training else self.survival * y))

    def bypass(self, x: Tensor) -> Tensor:
        """Not alive (equation 3): `x` itself, which is never negative, or its shortcut where the maps change."""
        return x if isinstance(self.shortcut, nn.Identity) else F.relu(self.shortcut(x))


class StochasticDepth(nn.Sequential):
    """The rows of the table; which blocks are alive is drawn anew for each training pass.

    Attributes: `survival`, p_1 to p_L; `shared_draws`, see `draw`.
    """

    shared_draws: torch.Generator | None = None

    def __init__(self, rows: OrderedDict[str, nn.Module]) -> None:
        super().__init__(rows)
        self.survival = tuple(block.survival for block in self.modules() if isinstance(block, Block))
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, normalised, H and W from 4, or 32 for ImageNet -> (N, num_classes) scores."""
        require_image(x, "a network with stochastic depth", least=32 if "pool1" in self._modules else 4)
        return self.thinned(x) if self.training and min(self.survival) < 1 else super().forward(x)

    def draw(self) -> Tensor:
        """b_1 to b_L of one mini-batch, drawn on the processor: no waiting for a device.

        By torch's own generator, or by `shared_draws` where a mini-batch goes through the network in parts: all of
        them draw alike, whatever else is drawn in each.
        """
        drawn = torch.rand(self.blocks, device="cpu", generator=self.shared_draws)
        return drawn < torch.tensor(self.survival, device="cpu")

    def thinned(self, x: Tensor) -> Tensor:
        """A training pass through the blocks that are alive."""
        alive, idle = iter(self.draw()), list[Tensor]()
        for row in self:
            for layer in row if isinstance(row, nn.Sequential) else [row]:
                # Read here, b_l makes torch.compile compile the layers one by one, not each of 2^L networks.
                if not isinstance(layer, Block) or next(alive):
                    x = layer(x)
                else:
                    x = layer.bypass(x)
                    idle.extend(layer.f.parameters())
        return Unmoved.apply(x, *idle) if idle else x

    @property
    def blocks(self) -> int:
        """L, of which all are computed at test."""
        return len(self.survival)

    @property
    def expected_blocks(self) -> float:
        """Blocks that are alive in a training pass, in expectation (section 3)."""
        return sum(self.survival)

    @property
    def subnetworks(self) -> int:
        """Networks that a training pass can be: two for each block that may be alive or not (section 3)."""
        return 2 ** sum(0 < p < 1 for p in self.survival)

    @property
    def expected_saving(self) -> float:
        """The share of the convolutions' multiply-adds that a training pass is spared, in expectation."""
        area, spared, total = 1.0, 0.0, 0.0
        for row in self:
            for layer in row if isinstance(row, nn.Sequential) else [row]:
                before = area
                if isinstance(layer, Block):
                    cost, area = multiply_adds(layer.f, before)
                    spared += (1 - layer.survival) * cost
                    total += cost + multiply_adds(layer.shortcut, before)[0]
                else:
                    cost, area = multiply_adds(layer, before)
                    total += cost
        return spared / total


class Unmoved(torch.autograd.Function):
    """Hands scores on, with gradients of zero for parameters that had no part in them."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def multiply_adds(layers: nn.Module, area: float) -> tuple[float, float]:
    """Of convolutions one after the other, for each pixel of the image, and the area of what they give.

    `area` is that of what they read, the image's being 1.
    """
    total = 0.0
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            area /= layer.stride[0] ** 2 if isinstance(layer.stride, tuple) else layer.stride**2
        if isinstance(layer, nn.Conv2d):
            total += layer.weight.numel() * area
    return total, area


def survival_of(blocks: int, p_L: float, rule: Rule) -> list[float]:
    """p_1 to p_L: in a line from p_0 = 1 of the input (equation 4), or p_L throughout.

    ValueError for a probability or a rule that cannot be.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule {rule!r} is not one of section 3: linear, uniform")
    if not 0 < p_L <= 1:
        raise ValueError(f"p_L is {p_L}; a block survives with a probability above 0 and up to 1")
    if rule == "uniform":
        return [p_L] * blocks
    return [1 - block / blocks * (1 - p_L) for block in range(1, blocks + 1)]


def convolution(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, padded by half of the kernel."""
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)


def residual(*convolutions: nn.Conv2d) -> nn.Sequential:
    """f_l: convolutions, each batch-normalised, with ReLU between them."""
    layers = OrderedDict[str, nn.Module]()
    for number, conv in enumerate(convolutions, start=1):
        if number > 1:
            layers[f"relu{number - 1}"] = nn.ReLU(inplace=True)
        layers[f"conv{number}"], layers[f"bn{number}"] = conv, nn.BatchNorm2d(conv.out_channels)
    return nn.Sequential(layers)


def basic(channels: int, width: int, stride: int) -> tuple[nn.Sequential, nn.Module]:
    """A block for CIFAR: (N, channels, H, W) -> (N, width, H / stride, W / stride)."""
    f = residual(convolution(channels, width, 3, stride), convolution(width, width, 3))
    if stride == 1 and channels == width:
        return f, nn.Identity()
    pool = nn.AvgPool2d(stride, ceil_mode=True)  # halves an odd side as a convolution does
    return f, nn.Sequential(OrderedDict(pool=pool, pad=PadShortcut(width - channels, 1)))


def bottleneck(channels: int, width: int, stride: int) -> tuple[nn.Sequential, nn.Module]:
    """A block for ImageNet: (N, channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
    out = EXPANSION * width
    f = residual(convolution(channels, width, 1), convolution(width, width, 3, stride), convolution(width, out, 1))
    return f, shortcut_for("B", channels, out, stride)


def stages(
    widths: Mapping[str, int],
    blocks: Sequence[int],
    make: Make,
    expansion: int,
    channels: int,
    survival: list[float],
) -> OrderedDict[str, nn.Module]:
    """The rows of blocks for maps of `channels`; each row but the first halves the maps."""
    rows, chances = OrderedDict[str, nn.Module](), iter(survival)
    for (name, width), n in zip(widths.items(), blocks, strict=True):
        row = nn.Sequential()
        for i in range(n):
            row.append(Block(*make(channels, width, 2 if rows and i == 0 else 1), next(chances)))
            channels = expansion * width
        rows[name] = row
    return rows


def stochastic_depth_cifar(
    *, depth: int, p_L: float = 0.5, rule: Rule = "linear", num_classes: int = 10, in_channels: int = 3
) -> StochasticDepth:
    """The net of 6n + 2 layers; with `p_L` = 1 it is the paper's net of constant depth.

    `rule`: "linear" (equation 4) or "uniform", p_L for all. ValueError for an impossible depth, p_L or rule.
    """
    n = blocks_per_map(depth)
    survival = survival_of(3 * n, p_L, rule)
    rows = OrderedDict[str, nn.Module](
        conv1=convolution(in_channels, 16, 3),
        bn1=nn.BatchNorm2d(16),
        relu1=nn.ReLU(inplace=True),
        **stages(WIDTHS, (n, n, n), basic, 1, 16, survival),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(64, num_classes),
    )
    return StochasticDepth(rows)


def stochastic_depth_imagenet(
    *,
    depth: int = 152,
    p_L: float = 0.5,
    rule: Rule = "linear",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StochasticDepth:
    """The ResNet of `depth` layers with bottlenecks; the paper has 152, and 50 and 101 are of the same table.

    `p_L` and `rule` as for `stochastic_depth_cifar`. ValueError for another depth, or an impossible p_L or rule.
    """
    if depth not in BLOCKS or not is_deep(depth):
        deep = ", ".join(str(known) for known in BLOCKS if is_deep(known))
        raise ValueError(f"depth {depth} is not that of a ResNet with bottlenecks: {deep}")
    survival = survival_of(sum(BLOCKS[depth]), p_L, rule)
    rows = OrderedDict[str, nn.Module](
        conv1=convolution(in_channels, 64, 7, stride=2),
        bn1=nn.BatchNorm2d(64),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        **stages(IMAGENET_WIDTHS, BLOCKS[depth], bottleneck, EXPANSION, 64, survival),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(EXPANSION * 512, num_classes),
    )
    return StochasticDepth(rows)
