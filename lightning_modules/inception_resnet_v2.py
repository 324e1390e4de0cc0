"""Inception-ResNet-v2. Szegedy, Ioffe, Vanhoucke, Alemi 2016, arXiv:1602.07261, Figures 15 to 19 and Table 1.

    layer                     output (C x H x W)     parameters   branches, written as in `inception_v4`
    stem                         384 x 35 x 35          605,728   Figure 3, the stem of Inception-v4
    inception_resnet_a1..5       384 x 35 x 35      5 x 137,568   Figure 16: 1x1 32 | 1x1 32, 3x3 32
                                                                    | 1x1 32, 3x3 48, 3x3 64
    reduction_a                 1152 x 17 x 17        2,902,528   Figure 7: 3x3 n /2 V | 1x1 k, 3x3 l, 3x3 m /2 V
                                                                    | max /2 V
    inception_resnet_b1..10     1152 x 17 x 17   10 x 1,171,904   Figure 17: 1x1 192 | 1x1 128, 1x7 160, 7x1 192
    reduction_b                 2144 x  8 x  8        3,930,112   Figure 18: 1x1 256, 3x3 384 /2 V
                                                                    | 1x1 256, 3x3 288 /2 V
                                                                    | 1x1 256, 3x3 288, 3x3 320 /2 V | max /2 V
    inception_resnet_c1..5      2144 x  8 x  8    5 x 2,088,736   Figure 19: 1x1 192 | 1x1 192, 1x3 224, 3x1 256
    pool                        2144                              average
    dropout                     2144                              keep 0.8
    fc                          1000                  2,145,000   the row "Softmax"
32,433,928 parameters. Reduction-A has k, l, m, n = 256, 256, 384, 384 (Table 1). A residual block brings its
concatenated branches to the channels that it reads with a linear 1x1 convolution, scales them down (section 3.3),
adds them to what it read, and ends in a ReLU.

The network as released is another one (`released=True`): 55,843,464 parameters, the "55.8 million" usually quoted.

Departures from the paper:
  * Figures 17 and 19 print 1154 and 2048 filters for the linear convolutions. A sum needs as many as the block
    reads, and those are 1152 (384 + 384 + 384) and 2144 (384 + 288 + 320 + 1152).

Left open by the paper, and what is done here:
  * Which scale between 0.1 and 0.3: 0.17, 0.10 and 0.20 in the blocks A, B and C, as released; or `scale` in all.
  * Batch normalisation is on the "traditional layers" and not on the sums (section 3.2); of the linear
    convolutions between them nothing is said: not there, but biases, as released.
  * The stride of the stem, and all else that the two networks share: see `inception_v4`.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.inception_v4 import (
    TABLE_1,
    Boxes,
    Concat,
    InceptionNet,
    ReductionA,
    Stem,
    Unit,
    numbered,
)


class Residual(nn.Module):
    """x + scale * linear(branches(x)), then ReLU where `ends_in_relu` (Figures 16, 17, 19 and 20)."""

    def __init__(self, channels: int, *branches: Boxes, scale: float, ends_in_relu: bool = True) -> None:
        super().__init__()
        self.branches = Concat(channels, *branches)
        self.linear = nn.Conv2d(self.branches.out_channels, channels, 1)
        self.scale, self.ends_in_relu = scale, ends_in_relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        y = x + self.scale * self.linear(self.branches(x))
        return F.relu(y, inplace=True) if self.ends_in_relu else y


class InceptionResNetA(Residual):
    """Figure 16: 35 x 35."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__(channels, "1x1 32", ("1x1 32", "3x3 32"), ("1x1 32", "3x3 48", "3x3 64"), scale=scale)


class InceptionResNetB(Residual):
    """Figure 17: 17 x 17."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__(channels, "1x1 192", ("1x1 128", "1x7 160", "7x1 192"), scale=scale)


class ReductionB(Concat):
    """Figure 18: from 17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        short = (("1x1 256", "3x3 384 /2 V"), ("1x1 256", "3x3 288 /2 V"))
        super().__init__(channels, *short, ("1x1 256", "3x3 288", "3x3 320 /2 V"), "max /2 V")


class InceptionResNetC(Residual):
    """Figure 19: 8 x 8."""

    def __init__(self, channels: int, scale: float, *, ends_in_relu: bool = True) -> None:
        branches = ("1x1 192", ("1x1 192", "1x3 224", "3x1 256"))
        super().__init__(channels, *branches, scale=scale, ends_in_relu=ends_in_relu)


class ReleasedStem(nn.Sequential):
    """As released: the stem of Inception-v3 and one Inception module, 299 x 299 -> 320 maps of 35 x 35."""

    def __init__(self, in_channels: int) -> None:
        five, three = ("1x1 48", "5x5 64"), ("1x1 64", "3x3 96", "3x3 96")
        rows = OrderedDict[str, nn.Module](
            conv1=Unit(in_channels, "3x3 32 /2 V"),
            conv2=Unit(32, "3x3 32 V"),
            conv3=Unit(32, "3x3 64"),
            pool1=nn.MaxPool2d(3, stride=2),
            conv4=Unit(64, "1x1 80 V"),
            conv5=Unit(80, "3x3 192 V"),
            pool2=nn.MaxPool2d(3, stride=2),
            mixed=Concat(192, "1x1 96", five, three, ("avg", "1x1 64")),
        )
        super().__init__(rows)


def inception_resnet_v2(
    *, scale: float | None = None, released: bool = False, num_classes: int = 1000, in_channels: int = 3
) -> InceptionNet:
    """Inception-ResNet-v2 (Figure 15): (N, 3, 299, 299) -> scores (N, 1000). ValueError below 75 x 75 pixels.

    `scale` multiplies every residual before it is added (section 3.3: 0.1 to 0.3); None: 0.17, 0.10 and 0.20 in
    the blocks A, B and C. ValueError unless it is above 0 and at most 1, which does not scale.
    `released` is not in the paper: for weights published elsewhere. The code that the authors released has
    another stem, 10, 20 and 10 blocks instead of 5, 10 and 5 on 320, 1088 and 2080 maps, neither scale nor ReLU in
    the last block, and a 1x1 convolution to 1536 maps before the pooling.
    """
    if scale is not None and not 0 < scale <= 1:
        raise ValueError(f"scale {scale} is none of a residual: above 0, at most 1; section 3.3 uses 0.1 to 0.3")
    scale_a, scale_b, scale_c = (0.17, 0.10, 0.20) if scale is None else (scale,) * 3
    times, first = (10, 320) if released else (5, 384)
    table_1 = TABLE_1["inception_resnet_v2"]
    second = first + table_1["m"] + table_1["n"]  # after Reduction-A: 1088 or 1152
    third = second + 384 + 288 + 320  # after Reduction-B: 2080 or 2144
    c_blocks: list[nn.Module] = [InceptionResNetC(third, scale_c) for _ in range(times)]
    if released:
        c_blocks[-1] = InceptionResNetC(third, 1.0, ends_in_relu=False)
    blocks = {
        "stem": ReleasedStem(in_channels) if released else Stem(in_channels),
        **numbered("inception_resnet_a", [InceptionResNetA(first, scale_a) for _ in range(times)]),
        "reduction_a": ReductionA(first, table_1),
        **numbered("inception_resnet_b", [InceptionResNetB(second, scale_b) for _ in range(2 * times)]),
        "reduction_b": ReductionB(second),
        **numbered("inception_resnet_c", c_blocks),
    }
    if released:
        blocks["conv"] = Unit(third, "1x1 1536")
    return InceptionNet("inception_resnet_v2", blocks, 1536 if released else third, num_classes)
