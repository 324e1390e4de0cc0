"""Residual networks with stochastic depth. Huang, Sun, Liu, Sedra, Weinberger 2016, arXiv:1603.09382.

Networks for CIFAR and SVHN (section 4):

    layer    output (C x H x W)   filters                                          blocks
    conv1     16 x 32 x 32        3x3, 16
    map32     16 x 32 x 32        [3x3, 16; 3x3, 16]                               n
    map16     32 x 16 x 16        [3x3, 32; 3x3, 32], the first with stride 2      n
    map8      64 x  8 x  8        [3x3, 64; 3x3, 64], the first with stride 2      n
    pool      64                  global average
    fc        10                  softmax

The network has 6n + 2 weighted layers and L = 3n blocks: n = 18, 25, 200 give 110 layers (CIFAR), 152 (SVHN) and
1202 (CIFAR-10). For ImageNet it is the ResNet of 152 layers with L = 50 bottlenecks, see `resnet_imagenet`.

In training, each mini-batch draws which blocks are active: b_l is 1 with survival probability p_l, and

    H_l = ReLU(b_l f_l(H_l-1) + id(H_l-1))      (equation 2; f_l is conv-BN-ReLU-conv-BN)

An inactive block is not computed, neither forward nor backward. At test all blocks are computed, and f_l is
multiplied by p_l (equation 5). Other libraries also compute all blocks in training, drop them per image, and
divide by p_l in training.

The survival probability decays linearly, p_l = 1 - (l / L)(1 - p_L) (equation 4), or is p_L in all blocks. Linear
decay to p_L = 0.5 keeps (3L - 1) / 4 blocks active in expectation, 40.25 of 54, and saves 25 % of the
multiply-adds.

Parameters, with 10 classes: 1,727,962 (110 layers), 2,408,474 (152), 19,421,274 (1202); for ImageNet 60,192,808.
These equal the ResNets' counts with shortcut option A (CIFAR) and B (ImageNet).

Departures from the paper: none known.

Left open by the paper, and what is done here:
  * "Average pooling, then zero padding" where the maps shrink: 2x2 means, then zeros as the last channels, as in
    the authors' release (https://github.com/yueatsprograms/Stochastic_Depth). He et al. take every second pixel.
  * Optimizer steps of inactive blocks: section 3 requires none. In the release, which reproduces the printed
    errors, the gradient of an inactive block is zero, and momentum and weight decay still apply. The same holds
    here.
  * Batch-norm averages of an inactive block skip that mini-batch, since the block is not computed.
  * Convolutions have no bias, which batch normalisation would remove; weights are initialised as in `resnet`.
  * Bottlenecks for ImageNet have their stride in the 3x3, as in fb.resnet.torch, on which the authors built.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import PadShortcut, check_image_size, he_normal, shortcut_for
from lightning_modules.resnet_imagenet import BLOCKS, EXPANSION, has_bottlenecks
from lightning_modules.resnet_imagenet import WIDTHS as IMAGENET_WIDTHS

SurvivalRule = Literal["linear", "uniform"]
BlockBuilder = Callable[[int, int, int], tuple[nn.Sequential, nn.Module]]  # channels, width, stride -> f, shortcut

CIFAR_WIDTHS = {"map32": 16, "map16": 32, "map8": 64}


class Block(nn.Module):
    """Residual block with survival probability `survival` (p_l)."""

    def __init__(self, f: nn.Sequential, shortcut: nn.Module, survival: float) -> None:
        super().__init__()
        self.f, self.shortcut, self.survival = f, shortcut, survival

    def forward(self, x: Tensor) -> Tensor:
        """Compute the active block in training (equation 2) or the block weighted by p_l at test (equation 5)."""
        y = self.f(x)
        return F.relu(self.shortcut(x) + (y if self.training else self.survival * y))

    def bypass(self, x: Tensor) -> Tensor:
        """Compute the inactive block (equation 3).

        The identity returns `x`, which is >= 0 after the ReLU of the layer before; other shortcuts apply ReLU.
        """
        return x if isinstance(self.shortcut, nn.Identity) else F.relu(self.shortcut(x))


class StochasticDepth(nn.Sequential):
    """Residual network whose active blocks are drawn for each training pass.

    Attributes: `survival` has p_1 to p_L; for `shared_draws` see `draw`.
    """

    shared_draws: torch.Generator | None = None

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.survival = tuple(block.survival for block in self.modules() if isinstance(block, Block))
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, normalised, H and W >= 4, or >= 32 for ImageNet -> (N, num_classes) scores."""
        check_image_size(x, "a network with stochastic depth", min_side=32 if "pool1" in self._modules else 4)
        return self.forward_active(x) if self.training and min(self.survival) < 1 else super().forward(x)

    def draw(self) -> Tensor:
        """Draw b_1 to b_L of one mini-batch, on the CPU to avoid a device synchronisation.

        The generator is PyTorch's default, or `shared_draws` if a mini-batch is split into micro-batches: then all
        micro-batches draw the same values, independent of other draws in between.
        """
        uniform = torch.rand(self.blocks, device="cpu", generator=self.shared_draws)
        return uniform < torch.tensor(self.survival, device="cpu")

    def forward_active(self, x: Tensor) -> Tensor:
        """Run a training pass through the active blocks."""
        active, unused = iter(self.draw()), list[Tensor]()
        for stage in self:
            for layer in stage if isinstance(stage, nn.Sequential) else [stage]:
                # Reading b_l here makes torch.compile compile layer by layer, not each of 2^L networks.
                if not isinstance(layer, Block) or next(active):
                    x = layer(x)
                else:
                    x = layer.bypass(x)
                    unused.extend(layer.f.parameters())
        return ZeroGradients.apply(x, *unused) if unused else x

    @property
    def blocks(self) -> int:
        """L, the number of blocks."""
        return len(self.survival)

    @property
    def expected_blocks(self) -> float:
        """Expected number of active blocks in a training pass (section 3)."""
        return sum(self.survival)

    @property
    def subnetworks(self) -> int:
        """Number of networks that a training pass can draw: 2 per block with 0 < p_l < 1 (section 3)."""
        return 2 ** sum(0 < p < 1 for p in self.survival)

    @property
    def expected_saving(self) -> float:
        """Expected fraction of the convolutions' multiply-adds that a training pass saves."""
        area, saved, total = 1.0, 0.0, 0.0
        for stage in self:
            for layer in stage if isinstance(stage, nn.Sequential) else [stage]:
                input_area = area
                if isinstance(layer, Block):
                    cost, area = multiply_adds(layer.f, input_area)
                    saved += (1 - layer.survival) * cost
                    total += cost + multiply_adds(layer.shortcut, input_area)[0]
                else:
                    cost, area = multiply_adds(layer, input_area)
                    total += cost
        return saved / total


class ZeroGradients(torch.autograd.Function):
    """Return the scores unchanged and give zero gradients to parameters that they do not depend on."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def multiply_adds(layers: nn.Module, area: float) -> tuple[float, float]:
    """Return the multiply-adds of consecutive convolutions, per pixel of the image, and their output's area.

    `area` is the area of their input. Areas are relative to the image.
    """
    total = 0.0
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            area /= layer.stride[0] ** 2 if isinstance(layer.stride, tuple) else layer.stride**2
        if isinstance(layer, nn.Conv2d):
            total += layer.weight.numel() * area
    return total, area


def survival_probabilities(blocks: int, p_L: float, rule: SurvivalRule) -> list[float]:
    """Return p_1 to p_L: linear decay from p_0 = 1 of the input (equation 4), or p_L in all blocks.

    Raises ValueError for an invalid probability or rule.
    """
    if rule not in get_args(SurvivalRule):
        raise ValueError(f"rule {rule!r} is not one of section 3: linear, uniform")
    if not 0 < p_L <= 1:
        raise ValueError(f"p_L must be > 0 and <= 1, not {p_L}")
    if rule == "uniform":
        return [p_L] * blocks
    return [1 - block / blocks * (1 - p_L) for block in range(1, blocks + 1)]


def blocks_per_group(depth: int) -> int:
    """Return n of depth = 6n + 2; raise ValueError with the nearest valid depths otherwise."""
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        below, above = 6 * max(n, 1) + 2, 6 * max(n + 1, 2) + 2
        raise ValueError(
            f"depth {depth} is not 6n + 2 (section 4); the nearest valid depths are {below} and {above}"
        )
    return n


def convolution_without_bias(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Build a convolution without bias, padded by half of the kernel size."""
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)


def residual_function(*convolutions: nn.Conv2d) -> nn.Sequential:
    """Build f_l: the convolutions, each with batch normalisation, and ReLU between them."""
    layers = OrderedDict[str, nn.Module]()
    for number, conv in enumerate(convolutions, start=1):
        if number > 1:
            layers[f"relu{number - 1}"] = nn.ReLU(inplace=True)
        layers[f"conv{number}"], layers[f"bn{number}"] = conv, nn.BatchNorm2d(conv.out_channels)
    return nn.Sequential(layers)


def cifar_block(channels: int, width: int, stride: int) -> tuple[nn.Sequential, nn.Module]:
    """Build f_l and shortcut of a CIFAR block: (N, channels, H, W) -> (N, width, H / stride, W / stride)."""
    f = residual_function(
        convolution_without_bias(channels, width, 3, stride), convolution_without_bias(width, width, 3)
    )
    if stride == 1 and channels == width:
        return f, nn.Identity()
    pool = nn.AvgPool2d(stride, ceil_mode=True)  # rounds odd sizes up, as the convolution does
    return f, nn.Sequential(OrderedDict(pool=pool, pad=PadShortcut(width - channels, 1)))


def imagenet_block(channels: int, width: int, stride: int) -> tuple[nn.Sequential, nn.Module]:
    """Build f_l and shortcut of an ImageNet block: (N, channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
    out = EXPANSION * width
    f = residual_function(
        convolution_without_bias(channels, width, 1),
        convolution_without_bias(width, width, 3, stride),
        convolution_without_bias(width, out, 1),
    )
    return f, shortcut_for("B", channels, out, stride)


def block_stages(
    widths: Mapping[str, int],
    blocks: Sequence[int],
    build_block: BlockBuilder,
    expansion: int,
    channels: int,
    survival: list[float],
) -> OrderedDict[str, nn.Module]:
    """Build the stages of blocks after maps with `channels`; each stage but the first halves the maps."""
    stages, probabilities = OrderedDict[str, nn.Module](), iter(survival)
    for (name, width), n in zip(widths.items(), blocks, strict=True):
        stage = nn.Sequential()
        for i in range(n):
            stride = 2 if stages and i == 0 else 1
            stage.append(Block(*build_block(channels, width, stride), next(probabilities)))
            channels = expansion * width
        stages[name] = stage
    return stages


def stochastic_depth_cifar(
    *, depth: int, p_L: float = 0.5, rule: SurvivalRule = "linear", num_classes: int = 10, in_channels: int = 3
) -> StochasticDepth:
    """Return the network of 6n + 2 layers; `p_L=1` gives the paper's network of constant depth.

    `rule` is "linear" (equation 4) or "uniform" (p_L in all blocks). Raises ValueError for an invalid depth, p_L
    or rule.
    """
    n = blocks_per_group(depth)
    survival = survival_probabilities(3 * n, p_L, rule)
    layers = OrderedDict[str, nn.Module](
        conv1=convolution_without_bias(in_channels, 16, 3),
        bn1=nn.BatchNorm2d(16),
        relu1=nn.ReLU(inplace=True),
        **block_stages(CIFAR_WIDTHS, (n, n, n), cifar_block, 1, 16, survival),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(64, num_classes),
    )
    return StochasticDepth(layers)


def stochastic_depth_imagenet(
    *,
    depth: int = 152,
    p_L: float = 0.5,
    rule: SurvivalRule = "linear",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StochasticDepth:
    """Return the ResNet of `depth` layers with bottlenecks; the paper has 152, the ResNet paper also 50 and 101.

    For `p_L` and `rule` see `stochastic_depth_cifar`. Raises ValueError for another depth, or an invalid p_L or
    rule.
    """
    if depth not in BLOCKS or not has_bottlenecks(depth):
        valid = ", ".join(str(known) for known in BLOCKS if has_bottlenecks(known))
        raise ValueError(f"depth {depth} is not one of the ResNets with bottlenecks: {valid}")
    survival = survival_probabilities(sum(BLOCKS[depth]), p_L, rule)
    layers = OrderedDict[str, nn.Module](
        conv1=convolution_without_bias(in_channels, 64, 7, stride=2),
        bn1=nn.BatchNorm2d(64),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        **block_stages(IMAGENET_WIDTHS, BLOCKS[depth], imagenet_block, EXPANSION, 64, survival),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(EXPANSION * 512, num_classes),
    )
    return StochasticDepth(layers)
