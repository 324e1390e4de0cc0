"""Wide residual networks for ImageNet. Zagoruyko and Komodakis 2016, arXiv:1605.07146, section 3, Tables 7 and 8.

    layer      output (H x W)   WRN-18, WRN-34                     WRN-50-2-bottleneck: k = 2
    conv1        112 x 112      7x7, 64, stride 2
    pool1         56 x  56      3x3 max pool, stride 2
    conv2         56 x  56      [3x3,  64k; 3x3,  64k] x 2, 3      [1x1,  64k; 3x3,  64k; 1x1,  256] x 3
    conv3         28 x  28      [3x3, 128k; 3x3, 128k] x 2, 4      [1x1, 128k; 3x3, 128k; 1x1,  512] x 4
    conv4         14 x  14      [3x3, 256k; 3x3, 256k] x 2, 6      [1x1, 256k; 3x3, 256k; 1x1, 1024] x 6
    conv5          7 x   7      [3x3, 512k; 3x3, 512k] x 2, 3      [1x1, 512k; 3x3, 512k; 1x1, 2048] x 3
    avg_pool                    global average
    fc            1000          softmax
The blocks are the original ones of arXiv:1512.03385 with projection shortcuts. Pre-activation makes no significant
difference "in networks with less than 100 layers". The authors use fb.resnet.torch, which has the stride of conv3,
conv4 and conv5 in the first 3x3 of the first block, also in bottlenecks.

Parameters (weights, batch-norm scale and shift, fc bias)
    k           1            1.5          2            3
    WRN-18      11,689,512   25,875,816   45,618,216   101,783,976
    WRN-34      21,797,672   48,613,608   86,036,008
    WRN-50      25,557,032                68,883,240                 k = 1 is Table 8's ResNet-50

Left open by the paper, and what is done here:
  * Initialisation is as in the authors' code, see `wide_resnet`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size, shortcut_for
from lightning_modules.resnet import Block
from lightning_modules.wide_resnet import initialise_weights

WIDTHS = {"conv2": 64, "conv3": 128, "conv4": 256, "conv5": 512}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
WIDENING_FACTORS = {18: (1, 1.5, 2, 3), 34: (1, 1.5, 2), 50: (1, 2)}  # Tables 7 and 8


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with `inner`, `inner` and `width` filters.

    `shortcut` is added before the last ReLU.
    """

    def __init__(self, channels: int, inner: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class WideResNetImageNet(nn.Module):
    """WRN-18 and WRN-34 widen whole blocks k times; WRN-50 widens the inner layers of its bottlenecks."""

    def __init__(self, depth: int, k: float, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for (name, base_width), n in zip(WIDTHS.items(), BLOCKS[depth], strict=True):
            inner = int(k * base_width)
            width = 4 * base_width if depth == 50 else inner
            group = nn.Sequential()
            for i in range(n):
                stride = 2 if i == 0 and name != "conv2" else 1
                shortcut = shortcut_for("B", channels, width, stride)
                if depth == 50:
                    group.append(Bottleneck(channels, inner, width, stride, shortcut))
                else:
                    group.append(Block(channels, width, stride, shortcut))
                channels = width
            self.add_module(name, group)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, H and W >= 32 -> (N, num_classes) scores."""
        check_image_size(x, "a WRN for ImageNet", min_side=32)  # conv5 is 1/32 of the image's side
        x = self.pool1(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for name in WIDTHS:
            x = self.get_submodule(name)(x)
        return self.fc(self.avg_pool(x).flatten(1))


def wide_resnet_imagenet(
    *, depth: int, k: float, num_classes: int = 1000, in_channels: int = 3
) -> WideResNetImageNet:
    """Return WRN-18-k or WRN-34-k of Table 7, or WRN-50-2-bottleneck of Table 8.

    Depth 50 with k = 1 is the ResNet-50 of Table 8. Raises ValueError for a depth or widening factor that is not
    in the tables.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth {depth} is not one of Tables 7 and 8: {', '.join(map(str, BLOCKS))}")
    if k not in WIDENING_FACTORS[depth]:
        known = ", ".join(map(str, WIDENING_FACTORS[depth]))
        raise ValueError(f"k {k} is not one of depth {depth} in Tables 7 and 8: {known}")
    return WideResNetImageNet(depth, k, num_classes=num_classes, in_channels=in_channels)
