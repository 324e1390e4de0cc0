"""Inception-v4. Szegedy, Ioffe, Vanhoucke, Alemi 2016, arXiv:1602.07261, Figures 3 to 9 and Table 1.

    layer             output (C x H x W)    parameters   boxes: a comma is "then", a bar separates branches
    stem                384 x  35 x  35        605,728   Figure 3
      conv1              32 x 149 x 149                  3x3 32 /2 V
      conv2              32 x 147 x 147                  3x3 32 V
      conv3              64 x 147 x 147                  3x3 64
      mixed1            160 x  73 x  73                  max /2 V | 3x3 96 /2 V
      mixed2            192 x  71 x  71                  1x1 64, 3x3 96 V | 1x1 64, 7x1 64, 1x7 64, 3x3 96 V
      mixed3            384 x  35 x  35                  3x3 192 /2 V | max /2 V
    inception_a1..4     384 x  35 x  35    4 x 317,632   Figure 4: 1x1 96 | 1x1 64, 3x3 96
                                                           | 1x1 64, 3x3 96, 3x3 96 | avg, 1x1 96
    reduction_a        1024 x  17 x  17      2,306,112   Figure 7: 3x3 n /2 V | 1x1 k, 3x3 l, 3x3 m /2 V | max /2 V
    inception_b1..7    1024 x  17 x  17  7 x 2,936,256   Figure 5: 1x1 384 | 1x1 192, 1x7 224, 7x1 256
                                                           | 1x1 192, 1x7 192, 7x1 224, 1x7 224, 7x1 256
                                                           | avg, 1x1 128
    reduction_b        1536 x   8 x   8      2,747,392   Figure 8: 1x1 192, 3x3 192 /2 V
                                                           | 1x1 256, 1x7 256, 7x1 320, 3x3 320 /2 V | max /2 V
    inception_c1..3    1536 x   8 x   8  3 x 4,553,088   Figure 6: 1x1 256 | 1x1 384, [1x3 256 | 3x1 256]
                                                           | 1x1 384, 1x3 448, 3x1 512, [1x3 256 | 3x1 256]
                                                           | avg, 1x1 256
    pool               1536                              average
    dropout            1536                              keep 0.8
    fc                 1000                  1,537,000   the row "Softmax"
42,679,816 parameters. A box is a convolution with its number of filters; /2 is stride 2; V is valid padding, which
is none; max and avg are 3x3 pooling. Branches read the same maps, and their outputs are concatenated. Reduction-A
has k, l, m, n = 192, 224, 256, 384 (Table 1). It is not a residual network.

Departures from the paper:
  * Figure 3 prints no stride at the last 3x3 convolution of the stem. With stride 1 its 69 x 69 maps could not be
    concatenated with the 35 x 35 maps of the pooling branch.
  * Figure 5 prints 1x7 twice in the branch with two of them; the second is 7x1 here, as in Figures 8, 11 and 17:
    two 1x7 convolutions have a receptive field of one row.

Left open by the paper, and what is done here:
  * Batch normalisation: as in the authors' released code, after every convolution, then ReLU, with epsilon 0.001
    and without bias in the convolution. That code averages with a decay of 0.9997 and has no scale; here the
    running averages have PyTorch's momentum 0.1 and there is a scale, initially one.
  * Initialisation: variance 2 / fan-in as in the released convolutions, but normal instead of truncated normal;
    the same for fc, biases zero.
  * 1x7 could be one row or one column: one row, as released. The order of a concatenation: as released.
  * Average pooling at the border: padding is not counted, as released.
  * The last pooling is global, so images of other sizes than 299 x 299 can be read.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size, he_normal

MIN_IMAGE_SIDE = 75  # pixels; gives last maps of 1 x 1

# k, l, m and n of Table 1 by network.
REDUCTION_A_FILTERS = {
    "inception_v4": {"k": 192, "l": 224, "m": 256, "n": 384},
    "inception_resnet_v2": {"k": 256, "l": 256, "m": 384, "n": 384},
}

BranchSpec = str | tuple["BranchSpec", ...] | list["BranchSpec"]  # a box; consecutive specs; parallel branches


class ConvBnRelu(nn.Module):
    """A box of the figures, such as "1x7 224" or "3x3 96 /2 V": convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, box: str) -> None:
        super().__init__()
        size, filters, *flags = box.split()
        height, width = (int(side) for side in size.split("x"))
        padding = (0, 0) if "V" in flags else (height // 2, width // 2)
        stride = 2 if "/2" in flags else 1
        self.conv = nn.Conv2d(channels, int(filters), (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(int(filters), eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, filters, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Concat(nn.Module):
    """Parallel branches with concatenated outputs ("filter concat")."""

    def __init__(self, channels: int, *branches: BranchSpec) -> None:
        super().__init__()
        self.out_channels = 0
        for i, spec in enumerate(branches):
            branch, out_channels = build_branch(channels, spec)
            self.add_module(f"branch{i}", branch)
            self.out_channels += out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out_channels, H', W')."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def build_branch(channels: int, spec: BranchSpec) -> tuple[nn.Module, int]:
    """Return the module of a branch that reads `channels` channels, and its number of output channels."""
    if isinstance(spec, list):
        concat = Concat(channels, *spec)
        return concat, concat.out_channels
    if isinstance(spec, tuple):
        sequence = nn.Sequential()
        for part in spec:
            layer, channels = build_branch(channels, part)
            sequence.append(layer)
        return sequence, channels
    if spec == "max /2 V":
        return nn.MaxPool2d(3, stride=2), channels
    if spec == "avg":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), channels
    box = ConvBnRelu(channels, spec)
    return box, box.conv.out_channels


class Stem(nn.Sequential):
    """Figure 3, the stem of Inception-v4 and of Inception-ResNet-v2: 299 x 299 -> 384 maps of 35 x 35."""

    def __init__(self, in_channels: int, *, released: bool = False) -> None:
        pair = ("1x7 64", "7x1 64") if released else ("7x1 64", "1x7 64")
        rows = OrderedDict[str, nn.Module](
            conv1=ConvBnRelu(in_channels, "3x3 32 /2 V"),
            conv2=ConvBnRelu(32, "3x3 32 V"),
            conv3=ConvBnRelu(32, "3x3 64"),
            mixed1=Concat(64, "max /2 V", "3x3 96 /2 V"),
            mixed2=Concat(160, ("1x1 64", "3x3 96 V"), ("1x1 64", *pair, "3x3 96 V")),
            mixed3=Concat(192, "3x3 192 /2 V", "max /2 V"),
        )
        super().__init__(rows)


class InceptionA(Concat):
    """Figure 4: 384 maps of 35 x 35."""

    def __init__(self) -> None:
        super().__init__(384, "1x1 96", ("1x1 64", "3x3 96"), ("1x1 64", "3x3 96", "3x3 96"), ("avg", "1x1 96"))


class ReductionA(Concat):
    """Figure 7: 35 x 35 -> 17 x 17, with k, l, m and n of Table 1."""

    def __init__(self, channels: int, filters: Mapping[str, int]) -> None:
        k, l, m, n = (filters[letter] for letter in "klmn")  # noqa: E741
        super().__init__(channels, f"3x3 {n} /2 V", (f"1x1 {k}", f"3x3 {l}", f"3x3 {m} /2 V"), "max /2 V")


class InceptionB(Concat):
    """Figure 5: 1024 maps of 17 x 17."""

    def __init__(self, *, released: bool) -> None:
        four_boxes = ("1x7 192", "7x1 224", "1x7 224", "7x1 256")
        if released:
            four_boxes = ("7x1 192", "1x7 224", "7x1 224", "1x7 256")
        super().__init__(
            1024, "1x1 384", ("1x1 192", "1x7 224", "7x1 256"), ("1x1 192", *four_boxes), ("avg", "1x1 128")
        )


class ReductionB(Concat):
    """Figure 8, Reduction-B of Inception-v4: 17 x 17 -> 8 x 8."""

    def __init__(self) -> None:
        long = ("1x1 256", "1x7 256", "7x1 320", "3x3 320 /2 V")
        super().__init__(1024, ("1x1 192", "3x3 192 /2 V"), long, "max /2 V")


class InceptionC(Concat):
    """Figure 6: 1536 maps of 8 x 8."""

    def __init__(self, *, released: bool) -> None:
        pair = ("3x1 448", "1x3 512") if released else ("1x3 448", "3x1 512")
        fork: BranchSpec = ["1x3 256", "3x1 256"]
        super().__init__(1536, "1x1 256", ("1x1 384", fork), ("1x1 384", *pair, fork), ("avg", "1x1 256"))


class InceptionNet(nn.Sequential):
    """Consecutive blocks, then average pooling, dropout and the layer before the softmax (Figures 9 and 15)."""

    def __init__(self, name: str, blocks: Mapping[str, nn.Module], channels: int, num_classes: int) -> None:
        rows = OrderedDict(blocks)
        rows["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        rows["dropout"] = nn.Dropout(0.2)  # "keep 0.8"
        rows["fc"] = nn.Linear(channels, num_classes)
        super().__init__(rows)
        self.name = name
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, 299 x 299 in the paper -> (N, num_classes) scores. ValueError below 75 x 75."""
        check_image_size(x, self.name, min_side=MIN_IMAGE_SIDE)
        return super().forward(x)


def name_blocks(prefix: str, blocks: list[nn.Module]) -> dict[str, nn.Module]:
    """Return the blocks by name, numbered from 1: inception_a1, inception_a2, ..."""
    return {f"{prefix}{i}": block for i, block in enumerate(blocks, start=1)}


def inception_v4(*, released: bool = False, num_classes: int = 1000, in_channels: int = 3) -> InceptionNet:
    """Build Inception-v4 (Figure 9): (N, 3, 299, 299) -> scores (N, 1000).

    `released` builds the network of the authors' released code, for published weights. It differs from the paper:
    1x7 and 7x1 are swapped in the stem and in the branch of four of Inception-B, and 1x3 and 3x1 in the longest
    branch of Inception-C.
    """
    blocks = {
        "stem": Stem(in_channels, released=released),
        **name_blocks("inception_a", [InceptionA() for _ in range(4)]),
        "reduction_a": ReductionA(384, REDUCTION_A_FILTERS["inception_v4"]),
        **name_blocks("inception_b", [InceptionB(released=released) for _ in range(7)]),
        "reduction_b": ReductionB(),
        **name_blocks("inception_c", [InceptionC(released=released) for _ in range(3)]),
    }
    return InceptionNet("inception_v4", blocks, 1536, num_classes)
