"""Plain and residual networks for ImageNet. He et al. 2015, arXiv:1512.03385, section 3.3 and Table 1.

    layer     output (C x H x W)      filters: 18, 34                 50, 101, 152
    conv1       64 x 112 x 112        7x7, 64, stride 2
    pool1       64 x  56 x  56        3x3 max pool, stride 2
    conv2_x     64 or  256 x 56 x 56  [3x3,  64; 3x3,  64] x 2, 3     [1x1,  64; 3x3,  64; 1x1,  256] x 3, 3, 3
    conv3_x    128 or  512 x 28 x 28  [3x3, 128; 3x3, 128] x 2, 4     [1x1, 128; 3x3, 128; 1x1,  512] x 4, 4, 8
    conv4_x    256 or 1024 x 14 x 14  [3x3, 256; 3x3, 256] x 2, 6     [1x1, 256; 3x3, 256; 1x1, 1024] x 6, 23, 36
    conv5_x    512 or 2048 x  7 x  7  [3x3, 512; 3x3, 512] x 2, 3     [1x1, 512; 3x3, 512; 1x1, 2048] x 3, 3, 3
    pool       512 or 2048            global average
    fc        1000                    softmax
The first block of conv3_x, conv4_x and conv5_x has stride 2. The paper's table lists pool1 within conv2_x. Batch
normalisation and ReLU follow every convolution. A block adds its shortcut before its last ReLU.

    depth   shortcuts       parameters      multiply-adds   Table 1 prints
     18     plain or A      11,515,688      1,794,805,760   1.8e9
     18     B               11,689,512      1,814,073,344   1.8e9
     34     plain or A      21,623,848      3,644,493,824   3.6e9
     34     B               21,797,672      3,663,761,408   (would be 3.7)
     34     C               22,716,840      3,830,747,136
     50     B               25,557,032      3,857,973,248   3.8e9: truncated; the others are rounded
    101     B               44,549,160      7,570,194,432   7.6e9
    152     B               60,192,808     11,282,415,616   11.3e9
Parameters: weights, batch-norm scale and shift, fc bias. Multiply-adds: convolutions, projections, fc.

Left open by the paper, and what is done here:
  * The stride of a bottleneck is in its first 1x1, as in the models that the authors released. The
    multiply-adds agree: with the stride in the 3x3 they would be 4.1, 7.8 and 11.5e9.
  * pool1, 112 to 56 pixels, pads one pixel, as weights of other libraries require. The released models do not
    pad and clip the last window, which shifts all windows by one pixel.
  * "Initialised as in [13]" and option A's subsampling are as for CIFAR, see `resnet` and `layers.PadShortcut`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import ShortcutOption, check_image_size, he_normal, shortcut_for
from lightning_modules.resnet import Block

WIDTHS = {"conv2_x": 64, "conv3_x": 128, "conv4_x": 256, "conv5_x": 512}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
PLAIN_DEPTHS = (18, 34)  # Table 2
EXPANSION = 4  # ratio of a bottleneck's output channels to its inner channels (Figure 5)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; `shortcut` is added before the last ReLU (Figure 5, right)."""

    def __init__(
        self, channels: int, width: int, stride: int, shortcut: nn.Module, *, stride_in_3x3: bool
    ) -> None:
        super().__init__()
        first, second = (1, stride) if stride_in_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(channels, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(EXPANSION * width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNetImageNet(nn.Module):
    """Network of Table 1: residual with shortcut option A, B or C, or plain with None."""

    def __init__(
        self,
        depth: int,
        shortcut: ShortcutOption | None,
        *,
        stride_in_3x3: bool,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for (name, width), n in zip(WIDTHS.items(), BLOCKS[depth], strict=True):
            blocks = nn.Sequential()
            for i in range(n):
                stride = 2 if i == 0 and name != "conv2_x" else 1
                out = EXPANSION * width if has_bottlenecks(depth) else width
                block_shortcut = None if shortcut is None else shortcut_for(shortcut, channels, out, stride)
                if has_bottlenecks(depth) and block_shortcut is not None:
                    block = Bottleneck(channels, width, stride, block_shortcut, stride_in_3x3=stride_in_3x3)
                    blocks.append(block)
                else:
                    blocks.append(Block(channels, width, stride, block_shortcut))
                channels = out
            self.add_module(name, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, mean subtracted, H and W >= 32 -> (N, num_classes) scores."""
        check_image_size(x, "a ResNet for ImageNet", min_side=32)  # conv5_x is 1/32 of the image's side
        x = self.pool1(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for name in WIDTHS:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool(x).flatten(1))


def has_bottlenecks(depth: int) -> bool:
    """Return True if networks of this depth have bottlenecks instead of blocks of two layers (Table 1)."""
    return depth >= 50


def plain_imagenet(*, depth: int, num_classes: int = 1000, in_channels: int = 3) -> ResNetImageNet:
    """Return the plain network of 18 or 34 layers (section 3.3, Table 2); raise ValueError for other depths."""
    if depth not in PLAIN_DEPTHS:
        raise ValueError(f"depth {depth} is not one of the plain networks of Table 2: 18, 34")
    return ResNetImageNet(depth, None, stride_in_3x3=False, num_classes=num_classes, in_channels=in_channels)


def resnet_imagenet(
    *,
    depth: int,
    shortcut: ShortcutOption = "B",
    stride_in_3x3: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> ResNetImageNet:
    """Return the residual network of Table 1.

    The paper trains 34 layers with all three shortcut options, 18 with A, and 50 and more with B (section 4.1).
    `stride_in_3x3` is not in the paper. It fits weights that others published: bottlenecks have their stride in
    the 3x3. Raises ValueError for a depth or option that is not in the paper, and for `stride_in_3x3` at a depth
    without bottlenecks.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth {depth} is not one of Table 1: {', '.join(map(str, BLOCKS))}")
    if shortcut not in ("A", "B", "C"):
        raise ValueError(f"shortcut {shortcut!r} is not one of the options of section 3.3: A, B, C")
    if stride_in_3x3 and not has_bottlenecks(depth):
        raise ValueError(f"stride_in_3x3 applies to bottlenecks, and depth {depth} has none; use 50, 101 or 152")
    return ResNetImageNet(
        depth, shortcut, stride_in_3x3=stride_in_3x3, num_classes=num_classes, in_channels=in_channels
    )
