"""Plain and residual networks for CIFAR. He et al. 2015, arXiv:1512.03385, section 4.2.

    layer    output (C x H x W)   filters                                      layers
    conv1     16 x 32 x 32        3x3, 16                                      1
    map32     16 x 32 x 32        [3x3, 16] x 2n                               2n
    map16     32 x 16 x 16        [3x3, 32] x 2n, the first with stride 2      2n
    map8      64 x  8 x  8        [3x3, 64] x 2n, the first with stride 2      2n
    pool      64                  global average
    fc        10                  softmax                                      1

6n + 2 weighted layers: n = 3, 5, 7, 9, 18, 200 give 20, 32, 44, 56, 110, 1202 (Table 6).
Batch normalisation and ReLU follow every convolution. A residual block adds its shortcut before
its last ReLU (section 3.4 and Figure 2).

Parameters (weights, batch-norm scale and shift, fc bias), plain or with option A, which adds none:
269,722 (20), 464,154 (32), 658,586 (44), 853,018 (56), 1,727,962 (110), 19,421,274 (1202);
Table 6 prints 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4 million.

Left open by the paper, and what is done here:
  * "Initialised as in [13]" (He et al., arXiv:1502.01852) allows fan-in or fan-out. Convolutions and
    fc are normal with variance 2 / fan-in; biases are zero, batch-norm scale is one and shift zero.
  * Subsampling of the identity in option A: see `layers.PadShortcut`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import PadShortcut, ShortcutOption, he_normal, shortcut_for

WIDTHS = {"map32": 16, "map16": 32, "map8": 64}


class Block(nn.Module):
    """Two 3x3 convolutions; `shortcut` is added before the last ReLU (Figure 2). None: a plain network."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y, inplace=True)


class CentredPadShortcut(PadShortcut):
    """Option A with half of the zero channels before the input's; not in the paper, see `resnet_cifar`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new_channels, H / stride, W / stride)."""
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


class ResNetCifar(nn.Module):
    """Network of 6n + 2 layers: residual with shortcut option A, B or C, or plain with None (section 4.2)."""

    def __init__(
        self,
        depth: int,
        shortcut: ShortcutOption | None,
        *,
        num_classes: int,
        in_channels: int,
        pad_around: bool = False,
    ) -> None:
        super().__init__()
        n = blocks_per_stage(depth)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for name, width in WIDTHS.items():
            blocks = nn.Sequential()
            for i in range(n):
                stride = 2 if i == 0 and name != "map32" else 1
                block_shortcut = None
                if shortcut is not None:
                    block_shortcut = shortcut_for(shortcut, channels, width, stride)
                if pad_around and isinstance(block_shortcut, PadShortcut):
                    block_shortcut = CentredPadShortcut(width - channels, stride)
                blocks.append(Block(channels, width, stride, block_shortcut))
                channels = width
            self.add_module(name, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, mean subtracted -> (N, num_classes) scores."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for name in WIDTHS:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool(x).flatten(1))


def blocks_per_stage(depth: int) -> int:
    """Return n of depth = 6n + 2; raise ValueError with the nearest valid depths otherwise."""
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        below, above = 6 * max(n, 1) + 2, 6 * max(n + 1, 2) + 2
        raise ValueError(
            f"depth {depth} is not 6n + 2 (section 4.2); the nearest valid depths are {below} and {above}"
        )
    return n


def plain_cifar(*, depth: int, num_classes: int = 10, in_channels: int = 3) -> ResNetCifar:
    """Return the plain network of section 4.2: the same layers without shortcuts."""
    return ResNetCifar(depth, None, num_classes=num_classes, in_channels=in_channels)


def resnet_cifar(
    *,
    depth: int,
    shortcut: ShortcutOption = "A",
    pad_around: bool = False,
    num_classes: int = 10,
    in_channels: int = 3,
) -> ResNetCifar:
    """Return the residual network of section 4.2; the paper uses shortcut option A on CIFAR.

    `pad_around` is not in the paper. It fits weights that others published: option A pads with zero channels on
    both sides of the input's channels. Raises ValueError for an invalid depth or option.
    """
    if shortcut not in ("A", "B", "C"):
        raise ValueError(f"shortcut {shortcut!r} is not one of the options of section 3.3: A, B, C")
    return ResNetCifar(depth, shortcut, num_classes=num_classes, in_channels=in_channels, pad_around=pad_around)
