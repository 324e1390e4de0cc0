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
32,433,928 parameters. Reduction-A has k, l, m, n = 256, 256, 384, 384 (Table 1). A residual block concatenates its
branches, applies a linear 1x1 convolution with as many filters as the block has input channels, scales the result
down (section 3.3), adds the input, and ends in a ReLU.

The authors released a different network (`released=True`): 55,843,464 parameters, the often quoted 55.8 million.

Departures from the paper:
  * Figures 17 and 19 print 1154 and 2048 filters for the linear convolutions. The sum requires the number of input
    channels, 1152 (384 + 384 + 384) and 2144 (384 + 288 + 320 + 1152).

Left open by the paper, and what is done here:
  * The scale, 0.1 to 0.3 in the paper: 0.17, 0.10 and 0.20 in blocks A, B and C, as released; or `scale` in all.
  * Batch normalisation follows the "traditional layers" and not the sums (section 3.2). The paper does not mention
    the linear convolutions between them: they have biases and no batch normalisation, as released.
  * The stride of the stem, and everything else that the two networks share: see `inception_v4`.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.inception_v4 import (
    REDUCTION_A_FILTERS,
    BranchSpec,
    Concat,
    ConvBnRelu,
    InceptionNet,
    ReductionA,
    Stem,
    name_blocks,
)


class ScaledResidual(nn.Module):
    """x + scale * linear(branches(x)), then ReLU if `ends_in_relu` (Figures 16, 17, 19 and 20)."""

    def __init__(self, channels: int, *branches: BranchSpec, scale: float, ends_in_relu: bool = True) -> None:
        super().__init__()
        self.branches = Concat(channels, *branches)
        self.linear = nn.Conv2d(self.branches.out_channels, channels, 1)
        self.scale, self.ends_in_relu = scale, ends_in_relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, channels, H, W)."""
        y = x + self.scale * self.linear(self.branches(x))
        return F.relu(y, inplace=True) if self.ends_in_relu else y


class InceptionResNetA(ScaledResidual):
    """Figure 16: maps of 35 x 35."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__(channels, "1x1 32", ("1x1 32", "3x3 32"), ("1x1 32", "3x3 48", "3x3 64"), scale=scale)


class InceptionResNetB(ScaledResidual):
    """Figure 17: maps of 17 x 17."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__(channels, "1x1 192", ("1x1 128", "1x7 160", "7x1 192"), scale=scale)


class ReductionB(Concat):
    """Figure 18, Reduction-B of Inception-ResNet-v2: 17 x 17 -> 8 x 8."""

    def __init__(self, channels: int) -> None:
        two_boxes = (("1x1 256", "3x3 384 /2 V"), ("1x1 256", "3x3 288 /2 V"))
        super().__init__(channels, *two_boxes, ("1x1 256", "3x3 288", "3x3 320 /2 V"), "max /2 V")


class InceptionResNetC(ScaledResidual):
    """Figure 19: maps of 8 x 8."""

    def __init__(self, channels: int, scale: float, *, ends_in_relu: bool = True) -> None:
        branches = ("1x1 192", ("1x1 192", "1x3 224", "3x1 256"))
        super().__init__(channels, *branches, scale=scale, ends_in_relu=ends_in_relu)


class ReleasedStem(nn.Sequential):
    """Stem of the released code: that of Inception-v3 and one Inception module, to 320 maps of 35 x 35."""

    def __init__(self, in_channels: int) -> None:
        rows = OrderedDict[str, nn.Module](
            conv1=ConvBnRelu(in_channels, "3x3 32 /2 V"),
            conv2=ConvBnRelu(32, "3x3 32 V"),
            conv3=ConvBnRelu(32, "3x3 64"),
            pool1=nn.MaxPool2d(3, stride=2),
            conv4=ConvBnRelu(64, "1x1 80 V"),
            conv5=ConvBnRelu(80, "3x3 192 V"),
            pool2=nn.MaxPool2d(3, stride=2),
            mixed=Concat(192, "1x1 96", ("1x1 48", "5x5 64"), ("1x1 64", "3x3 96", "3x3 96"), ("avg", "1x1 64")),
        )
        super().__init__(rows)


def block_scales(scale: float | None) -> tuple[float, float, float]:
    """Return the scales of the blocks A, B and C: `scale`, or if it is None those that the authors released.

    Raises ValueError for a scale out of range.
    """
    if scale is None:
        return 0.17, 0.10, 0.20
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, not {scale}; section 3.3 uses 0.1 to 0.3")
    return scale, scale, scale


def inception_resnet_v2(
    *, scale: float | None = None, released: bool = False, num_classes: int = 1000, in_channels: int = 3
) -> InceptionNet:
    """Build Inception-ResNet-v2 (Figure 15): (N, 3, 299, 299) -> scores (N, 1000).

    Args:
        scale: factor of every residual (section 3.3: 0.1 to 0.3), above 0 and at most 1. None: 0.17, 0.10 and 0.20
            in the blocks A, B and C.
        released: build the network of the authors' released code, for published weights. Different from the paper
            are the stem, the number of blocks (10, 20 and 10 instead of 5, 10 and 5) and their maps (320, 1088 and
            2080), the last block without scale and ReLU, and a 1x1 convolution to 1536 maps before the pooling.

    Raises ValueError for a scale out of range.
    """
    scale_a, scale_b, scale_c = block_scales(scale)
    n = 10 if released else 5  # blocks A, and blocks C; twice as many blocks B
    channels_a = 320 if released else 384
    filters = REDUCTION_A_FILTERS["inception_resnet_v2"]
    channels_b = channels_a + filters["m"] + filters["n"]  # after Reduction-A: 1088 or 1152
    channels_c = channels_b + 384 + 288 + 320  # after Reduction-B: 2080 or 2144
    c_blocks: list[nn.Module] = [InceptionResNetC(channels_c, scale_c) for _ in range(n)]
    if released:
        c_blocks[-1] = InceptionResNetC(channels_c, 1.0, ends_in_relu=False)
    blocks = {
        "stem": ReleasedStem(in_channels) if released else Stem(in_channels),
        **name_blocks("inception_resnet_a", [InceptionResNetA(channels_a, scale_a) for _ in range(n)]),
        "reduction_a": ReductionA(channels_a, filters),
        **name_blocks("inception_resnet_b", [InceptionResNetB(channels_b, scale_b) for _ in range(2 * n)]),
        "reduction_b": ReductionB(channels_b),
        **name_blocks("inception_resnet_c", c_blocks),
    }
    if released:
        blocks["conv"] = ConvBnRelu(channels_c, "1x1 1536")
    return InceptionNet("inception_resnet_v2", blocks, 1536 if released else channels_c, num_classes)
