"""Inception-ResNet-v1. Szegedy, Ioffe, Vanhoucke, Alemi 2016, arXiv:1602.07261, Figures 10 to 15 and Table 1.

    layer                     output (C x H x W)    parameters   branches, written as in `inception_v4`
    stem                         256 x  35 x  35       615,552   Figure 14
      conv1                       32 x 149 x 149                 3x3 32 /2 V
      conv2                       32 x 147 x 147                 3x3 32 V
      conv3                       64 x 147 x 147                 3x3 64
      pool                        64 x  73 x  73                 max /2 V
      conv4                       80 x  73 x  73                 1x1 80
      conv5                      192 x  71 x  71                 3x3 192 V
      conv6                      256 x  35 x  35                 3x3 256 /2 V
    inception_resnet_a1..5       256 x  35 x  35    5 x 77,440   Figure 10: 1x1 32 | 1x1 32, 3x3 32
                                                                   | 1x1 32, 3x3 32, 3x3 32
    reduction_a                  896 x  17 x  17     1,710,080   Figure 7: 3x3 n /2 V | 1x1 k, 3x3 l, 3x3 m /2 V
                                                                   | max /2 V
    inception_resnet_b1..10      896 x  17 x  17  10 x 690,048   Figure 11: 1x1 128 | 1x1 128, 1x7 128, 7x1 128
    reduction_b                 1792 x   8 x   8     3,346,176   Figure 12: 1x1 256, 3x3 384 /2 V
                                                                   | 1x1 256, 3x3 256 /2 V
                                                                   | 1x1 256, 3x3 256, 3x3 256 /2 V | max /2 V
    inception_resnet_c1..5      1792 x   8 x   8  5 x 1,600,768  Figure 13: 1x1 192 | 1x1 192, 1x3 192, 3x1 192
    pool                        1792                             average
    dropout                     1792                             keep 0.8
    fc                          1000                 1,793,000   the row "Softmax"
22,756,328 parameters, 6,206,361,696 multiply-adds. Reduction-A has k, l, m, n = 192, 192, 256, 384 (Table 1).
Residual blocks are those of `inception_resnet_v2`, with linear convolutions of 256, 896 and 1792 filters.

Departures from the paper: none known.

Left open by the paper, and what is done here:
  * The scales, and where batch normalisation is: as in `inception_resnet_v2`.
  * The authors did not release this network. Everything else that the networks share: see `inception_v4`.
"""

from collections import OrderedDict

from torch import nn

from lightning_modules.inception_resnet_v2 import ScaledResidual, block_scales
from lightning_modules.inception_v4 import Concat, ConvBnRelu, InceptionNet, ReductionA, name_blocks

REDUCTION_A_FILTERS = {"k": 192, "l": 192, "m": 256, "n": 384}  # Table 1


class Stem(nn.Sequential):
    """Figure 14: 299 x 299 -> 256 maps of 35 x 35."""

    def __init__(self, in_channels: int) -> None:
        rows = OrderedDict[str, nn.Module](
            conv1=ConvBnRelu(in_channels, "3x3 32 /2 V"),
            conv2=ConvBnRelu(32, "3x3 32 V"),
            conv3=ConvBnRelu(32, "3x3 64"),
            pool=nn.MaxPool2d(3, stride=2),
            conv4=ConvBnRelu(64, "1x1 80"),
            conv5=ConvBnRelu(80, "3x3 192 V"),
            conv6=ConvBnRelu(192, "3x3 256 /2 V"),
        )
        super().__init__(rows)


class InceptionResNetA(ScaledResidual):
    """Figure 10: 256 maps of 35 x 35."""

    def __init__(self, scale: float) -> None:
        super().__init__(256, "1x1 32", ("1x1 32", "3x3 32"), ("1x1 32", "3x3 32", "3x3 32"), scale=scale)


class InceptionResNetB(ScaledResidual):
    """Figure 11: 896 maps of 17 x 17."""

    def __init__(self, scale: float) -> None:
        super().__init__(896, "1x1 128", ("1x1 128", "1x7 128", "7x1 128"), scale=scale)


class ReductionB(Concat):
    """Figure 12: 896 maps of 17 x 17 -> 1792 of 8 x 8."""

    def __init__(self) -> None:
        two_boxes = (("1x1 256", "3x3 384 /2 V"), ("1x1 256", "3x3 256 /2 V"))
        super().__init__(896, *two_boxes, ("1x1 256", "3x3 256", "3x3 256 /2 V"), "max /2 V")


class InceptionResNetC(ScaledResidual):
    """Figure 13: 1792 maps of 8 x 8."""

    def __init__(self, scale: float) -> None:
        super().__init__(1792, "1x1 192", ("1x1 192", "1x3 192", "3x1 192"), scale=scale)


def inception_resnet_v1(
    *, scale: float | None = None, num_classes: int = 1000, in_channels: int = 3
) -> InceptionNet:
    """Build Inception-ResNet-v1 (Figure 15): (N, 3, 299, 299) -> scores (N, 1000).

    `scale` is the factor of every residual (section 3.3: 0.1 to 0.3), above 0 and at most 1. None: 0.17, 0.10 and
    0.20 in the blocks A, B and C. Raises ValueError for a scale out of range.
    """
    scale_a, scale_b, scale_c = block_scales(scale)
    blocks = {
        "stem": Stem(in_channels),
        **name_blocks("inception_resnet_a", [InceptionResNetA(scale_a) for _ in range(5)]),
        "reduction_a": ReductionA(256, REDUCTION_A_FILTERS),
        **name_blocks("inception_resnet_b", [InceptionResNetB(scale_b) for _ in range(10)]),
        "reduction_b": ReductionB(),
        **name_blocks("inception_resnet_c", [InceptionResNetC(scale_c) for _ in range(5)]),
    }
    return InceptionNet("inception_resnet_v1", blocks, 1792, num_classes)
