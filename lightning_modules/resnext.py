"""ResNeXt. Xie et al. 2016, arXiv:1611.05431, Table 1 and section 5.3.

C is the cardinality, the number of paths of a block; d is the width of a path in conv2 or stage1.

    ImageNet, 50 and 101 layers                       50 layers, 32x4d
    conv1     64 x 112 x 112   7x7, 64, stride 2
    pool1     64 x  56 x  56   3x3 max pool, stride 2
    conv2    256 x  56 x  56   [1x1,  Cd; 3x3,  Cd, C groups; 1x1,  256] x 3        Cd = 128
    conv3    512 x  28 x  28   [1x1, 2Cd; 3x3, 2Cd, C groups; 1x1,  512] x 4             256
    conv4   1024 x  14 x  14   [1x1, 4Cd; 3x3, 4Cd, C groups; 1x1, 1024] x 6 or 23       512
    conv5   2048 x   7 x   7   [1x1, 8Cd; 3x3, 8Cd, C groups; 1x1, 2048] x 3            1024
    pool    2048               global average
    fc      1000               softmax

    CIFAR, 29 layers
    conv1     64 x 32 x 32     3x3, 64
    stage1   256 x 32 x 32     [1x1,  Cd; 3x3,  Cd, C groups; 1x1,  256] x 3
    stage2   512 x 16 x 16     [1x1, 2Cd; 3x3, 2Cd, C groups; 1x1,  512] x 3
    stage3  1024 x  8 x  8     [1x1, 4Cd; 3x3, 4Cd, C groups; 1x1, 1024] x 3
    pool    1024               global average
    fc        10 or 100        softmax
The first block of conv3, conv4, conv5, stage2 and stage3 has stride 2, in its 3x3 (section 4). A shortcut
is the identity, or a projection where the shape changes. Batch normalisation and ReLU follow every
convolution; in the last one of a block ReLU follows the addition of the shortcut.

    C x d     50 layers: parameters, multiply-adds       101 layers
     1x64     25,557,032   4,089,184,256     44,549,160    7,801,405,440   (a ResNet with its stride in the 3x3)
     2x40     25,425,000   4,124,508,160     44,456,296    7,843,553,280
     4x24     25,292,968   4,159,832,064     44,363,432    7,885,701,120
     8x14     25,603,016   4,267,409,408     45,104,328    8,076,871,680
    32x4      25,028,904   4,230,479,872     44,177,704    7,969,996,800
    64x4      45,192,488   7,981,236,224     83,455,272   15,460,270,080
Parameters: weights, batch-norm scale and shift, fc bias. Table 1 seems to count weights only: 25,502,912 for
1x64d (printed 25.5 million), 24,959,680 for 32x4d (25.0), both with 50 layers.

    C x d     29 layers, 10 classes: parameters       weights    Table 7 prints
     8x64                            34,426,698    34,369,216    34.4 million
    16x64                            68,155,210    68,054,720    68.1 million: weights only

Departures from the paper: none known. This is the paper's second version. In the first, the blocks for CIFAR had
batch normalisation and ReLU before their convolutions.

Left open by the paper, and what is done here:
  * Initialisation "as in" He et al., arXiv:1502.01852, is normal with fan-in; the fan-in of a grouped
    convolution is that of one group. All three forms compute the same initial function from the same seed.
  * pool1 pads one pixel, as in the authors' code.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size, he_normal, shortcut_for

BlockForm = Literal["a", "b", "c"]  # Figure 3

STAGES = {  # depth: number of blocks of each stage
    29: {"stage1": 3, "stage2": 3, "stage3": 3},
    50: {"conv2": 3, "conv3": 4, "conv4": 6, "conv5": 3},
    101: {"conv2": 3, "conv3": 4, "conv4": 23, "conv5": 3},
}
FIRST_STAGE_CHANNELS = 256  # output channels of the blocks of conv2 or stage1
# Layer of a block of form c: dimension along which its tensors concatenate those of the paths.
PATH_DIM = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0, "conv3": 1}


@dataclass(frozen=True)
class ResNeXtConfig:
    """Depth, cardinality and width of a network, and whether it has shortcuts."""

    depth: int
    cardinality: int
    width: int  # channels of a path in the first stage
    residual: bool = True


class Block(nn.Module):
    """Block in one of the three equivalent forms of Figure 3.

    Form a sums separate paths, then normalises (eq. 2; section 4, footnote). Form b concatenates paths after their
    3x3 and applies a common last 1x1. Form c has no paths but a 3x3 with `cardinality` groups. `shortcut` is added
    before the last ReLU; None: no shortcut.
    """

    def __init__(
        self,
        form: BlockForm,
        channels: int,
        width: int,
        cardinality: int,
        out: int,
        stride: int,
        shortcut: nn.Module | None,
    ) -> None:
        super().__init__()
        self.form = form
        inner = cardinality * width
        if form == "c":
            self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=cardinality, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
        else:
            path_out = out if form == "a" else None
            self.paths = nn.ModuleList(build_path(channels, width, stride, path_out) for _ in range(cardinality))
        if form != "a":
            self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H / stride, W / stride)."""
        if self.form == "a":
            y = reduce(torch.add, [path(x) for path in self.paths])
        elif self.form == "b":
            y = self.conv3(torch.cat([path(x) for path in self.paths], dim=1))
        else:
            y = F.relu(self.bn1(self.conv1(x)), inplace=True)
            y = F.relu(self.bn2(self.conv2(y)), inplace=True)
            y = self.conv3(y)
        y = self.bn3(y)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y, inplace=True)


def build_path(channels: int, width: int, stride: int, out: int | None) -> nn.Sequential:
    """Build one path; a last 1x1 with `out` channels is part of it unless `out` is None."""
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(channels, width, 1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
        bn2=nn.BatchNorm2d(width),
        relu2=nn.ReLU(inplace=True),
    )
    if out is not None:
        layers["conv3"] = nn.Conv2d(width, out, 1, bias=False)
    return nn.Sequential(layers)


def convert_state_dict(state: Mapping[str, Tensor], form: BlockForm, *, cardinality: int) -> dict[str, Tensor]:
    """Return the state dict `state` of a network in any form with the names and shapes of `form`.

    The paths of forms a and b are slices of the tensors of form c, in order.
    """
    grouped: dict[str, Tensor] = {}  # form c
    paths: dict[tuple[str, str, str], list[Tensor]] = {}
    for key, tensor in state.items():
        if match := re.fullmatch(r"(.+)\.paths\.\d+\.(\w+)\.(\w+)", key):
            block, layer, name = match.groups()
            paths.setdefault((block, layer, name), []).append(tensor)
        else:
            grouped[key] = tensor
    for (block, layer, name), tensors in paths.items():
        is_counter = tensors[0].dim() == 0  # num_batches_tracked, equal in every path
        grouped[f"{block}.{layer}.{name}"] = tensors[0] if is_counter else torch.cat(tensors, PATH_DIM[layer])
    if form == "c":
        return grouped

    result: dict[str, Tensor] = {}
    for key, tensor in grouped.items():
        match = re.fullmatch(r"(.+)\.(\w+)\.(\w+)", key)  # the network's conv1 and bn1 are in no block
        block, layer, name = match.groups() if match else ("", "", "")
        if layer not in PATH_DIM or (form == "b" and layer == "conv3"):
            result[key] = tensor
            continue
        slices = (tensor,) * cardinality if tensor.dim() == 0 else tensor.chunk(cardinality, PATH_DIM[layer])
        for i, path_tensor in enumerate(slices):
            result[f"{block}.paths.{i}.{layer}.{name}"] = path_tensor
    return result


class ResNeXt(nn.Module):
    """Network of 29 layers for CIFAR, or 50 or 101 for ImageNet, with all blocks in one form."""

    def __init__(self, config: ResNeXtConfig, form: BlockForm, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stages, self.for_cifar = STAGES[config.depth], config.depth == 29
        kernel, stride = (3, 1) if self.for_cifar else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        if not self.for_cifar:
            self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        channels, width, out = 64, config.width, FIRST_STAGE_CHANNELS
        for name, n in self.stages.items():
            blocks = nn.Sequential()
            for i in range(n):
                stride = 2 if i == 0 and out != FIRST_STAGE_CHANNELS else 1
                shortcut = shortcut_for("B", channels, out, stride) if config.residual else None
                blocks.append(Block(form, channels, width, config.cardinality, out, stride, shortcut))
                channels = out
            self.add_module(name, blocks)
            width, out = 2 * width, 2 * out
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, H and W >= 32, or >= 4 for CIFAR -> (N, num_classes) scores."""
        name, min_side = ("a ResNeXt for CIFAR", 4) if self.for_cifar else ("a ResNeXt for ImageNet", 32)
        check_image_size(x, name, min_side=min_side)  # leaves one pixel in the last maps
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if not self.for_cifar:
            x = self.pool1(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool(x).flatten(1))


def build_resnext(config: ResNeXtConfig, form: BlockForm, *, num_classes: int, in_channels: int) -> ResNeXt:
    """Build a network in `form` with the initial weights of form c; raise ValueError for invalid values."""
    if config.cardinality < 1 or config.width < 1:
        raise ValueError(
            f"cardinality and width must be integers >= 1, not {config.cardinality} and {config.width}"
        )
    if form not in ("a", "b", "c"):
        raise ValueError(f"form {form!r} is not one of Figure 3: a, b, c")
    form_c = ResNeXt(config, "c", num_classes=num_classes, in_channels=in_channels)
    if form == "c":
        return form_c
    network = ResNeXt(config, form, num_classes=num_classes, in_channels=in_channels)
    network.load_state_dict(convert_state_dict(form_c.state_dict(), form, cardinality=config.cardinality))
    return network


def resnext_imagenet(
    *,
    depth: int,
    cardinality: int,
    width: int,
    form: BlockForm = "c",
    residual: bool = True,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> ResNeXt:
    """Return the network of Table 1 with `cardinality` paths, each `width` channels wide in conv2.

    Table 3 has 1x64, 2x40, 4x24, 8x14 and 32x4 at equal cost; Table 4 has 1x100, 2x64 and 64x4 at twice that cost.
    `residual=False` removes all shortcuts (section 5.1). Raises ValueError for a depth or form that is not in the
    paper, and for cardinality or width < 1.
    """
    if depth not in (50, 101):
        raise ValueError(f"depth {depth} is not one of Table 3: 50, 101")
    config = ResNeXtConfig(depth, cardinality, width, residual)
    return build_resnext(config, form, num_classes=num_classes, in_channels=in_channels)


def resnext_cifar(
    *, cardinality: int, width: int = 64, form: BlockForm = "c", num_classes: int = 10, in_channels: int = 3
) -> ResNeXt:
    """Return the network of 29 layers (section 5.3); Table 7 has 8 and 16 paths, 64 channels wide in stage1.

    Raises ValueError for a form that is not in the paper, and for cardinality or width < 1.
    """
    config = ResNeXtConfig(29, cardinality, width)
    return build_resnext(config, form, num_classes=num_classes, in_channels=in_channels)
