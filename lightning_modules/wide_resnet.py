"""Wide residual networks, WRN-n-k. Zagoruyko and Komodakis 2016, arXiv:1605.07146, Table 1.

    layer      output (C x H x W)   convolutions of block type B(3,3)
    conv1        16 x 32 x 32       3x3, 16
    conv2       16k x 32 x 32       [3x3, 16k; 3x3, 16k] x N
    conv3       32k x 16 x 16       [3x3, 32k; 3x3, 32k] x N, the first with stride 2
    conv4       64k x  8 x  8       [3x3, 64k; 3x3, 64k] x N, the first with stride 2
    bn          64k x  8 x  8       batch normalisation, then ReLU
    avg_pool    64k                 8x8, global average
    fc          10 or 100           softmax
BN and ReLU precede every convolution of a block. Dropout, if any, is between two convolutions, after ReLU
(section 2.4). Where the width changes, the shortcut is a 1x1 convolution of the first convolution's input. B(M)
lists the kernel sizes of a block; its convolutions all have the same width (section 2.1).

With l convolutions in each block, n = 3 l N + 4 counts conv1, the blocks' convolutions and three shortcuts, but
not fc. With k = 1 the width does not change in conv2, and there is one convolution less.

Parameters (weights, batch-norm scale and shift, fc bias) for 10 classes: 563,930 (40-1), 2,243,546 (40-2),
8,949,210 (40-4), 35,748,314 (40-8), 55,841,754 (40-10), 36,479,194 (28-10), 52,517,850 (28-12), 17,158,106 (22-8),
26,797,914 (22-10), 2,748,890 (16-4), 10,961,370 (16-8), 17,116,634 (16-10).

    Table 2, k = 2     B(3,1)      B(1,3)      B(3,3)      B(1,3,1)    B(3,1,1)    B(3,1,3)
    depth              40          40          28          40          40          22
    parameters         1,211,354   1,297,370   1,467,610     953,306     867,290     735,578
    printed            1.2M        1.3M        1.5M        1.4M        1.3M        1.1M
The printed counts of the last three fit N = (depth - 4) / 6, as if l were 2: 58, 58 and 31 convolutions with
1,429,082, 1,343,066 and 1,145,498 parameters. Here n is the number of convolutions (section 2.3) for every l.

Left open by the paper, and what is done here:
  * The first block equals the others, as in the authors' code. In arXiv:1603.05027 its BN and ReLU precede the
    split of the paths, which differs for k = 1, where the shortcut is the identity.
  * With l > 2, dropout is between all convolutions, as in the authors' code.
  * Initialisation is as in the authors' code: convolutions normal with variance 2 / fan-in, fc uniform in
    +-1 / sqrt(fan-in) with bias zero.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size, he_normal

WIDTHS = {"conv2": 16, "conv3": 32, "conv4": 64}
BLOCK_TYPES = {  # kernel sizes of the block types of section 2.1, then of Table 3, l = 1 to 4
    **{"B(3,3)": (3, 3), "B(3,1,3)": (3, 1, 3), "B(1,3,1)": (1, 3, 1), "B(1,3)": (1, 3)},
    **{"B(3,1)": (3, 1), "B(3,1,1)": (3, 1, 1)},
    **{"B(3)": (3,), "B(3,3,3)": (3, 3, 3), "B(3,3,3,3)": (3, 3, 3, 3)},
}


class Block(nn.Module):
    """B(M): BN, ReLU and a convolution for each kernel size, dropout before all but the first (Figure 1)."""

    def __init__(self, channels: int, width: int, kernels: Sequence[int], stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.residual = nn.Sequential()
        conv = nn.Conv2d(channels, width, kernels[0], stride=stride, padding=kernels[0] // 2, bias=False)
        self.residual.add_module("conv1", conv)
        for i, kernel in enumerate(kernels[1:], start=2):
            self.residual.add_module(f"bn{i}", nn.BatchNorm2d(width))
            self.residual.add_module(f"relu{i}", nn.ReLU(inplace=True))
            if dropout:
                self.residual.add_module(f"dropout{i}", nn.Dropout(dropout))
            conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
            self.residual.add_module(f"conv{i}", conv)
        self.shortcut = nn.Sequential()  # the identity
        if channels != width:
            self.shortcut.add_module("conv", nn.Conv2d(channels, width, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x), inplace=True)
        return self.residual(activated) + self.shortcut(activated if len(self.shortcut) else x)


class WideResNetCifar(nn.Module):
    """Network of Table 1 with blocks of any type."""

    def __init__(
        self, depth: int, k: int, kernels: Sequence[int], dropout: float, *, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        n = blocks_per_group(depth, len(kernels))
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels = 16
        for name, base_width in WIDTHS.items():
            group = nn.Sequential()
            for i in range(n):
                stride = 2 if i == 0 and name != "conv2" else 1
                group.append(Block(channels, base_width * k, kernels, stride, dropout))
                channels = base_width * k
            self.add_module(name, group)
        self.bn = nn.BatchNorm2d(channels)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, H and W >= 4 -> (N, num_classes) scores."""
        check_image_size(x, "a WRN for CIFAR", min_side=4)  # conv4 is 1/4 of the image's side
        x = self.conv1(x)
        for name in WIDTHS:
            x = self.get_submodule(name)(x)
        x = F.relu(self.bn(x), inplace=True)
        return self.fc(self.avg_pool(x).flatten(1))


def initialise_weights(network: nn.Module) -> None:
    """Initialise convolutions as in arXiv:1502.01852 (fan-in); fc keeps PyTorch's uniform weights, bias zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            he_normal(module)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def blocks_per_group(depth: int, convolutions: int) -> int:
    """Return N of depth = 3 N convolutions + 4; raise ValueError with the nearest valid depths otherwise."""
    step = 3 * convolutions
    n, rest = divmod(depth - 4, step)
    if rest or n < 1:
        below, above = step * max(n, 1) + 4, step * max(n + 1, 2) + 4
        raise ValueError(
            f"depth {depth} is not {step}N + 4, for {convolutions} convolutions per block (Table 1); "
            f"the nearest valid depths are {below} and {above}"
        )
    return n


def wide_resnet_cifar(
    *,
    depth: int,
    k: int,
    block: str = "B(3,3)",
    dropout: float = 0.0,
    num_classes: int = 10,
    in_channels: int = 3,
) -> WideResNetCifar:
    """Return WRN-depth-k for CIFAR and SVHN, with blocks of one type of section 2.1 or Table 3.

    `dropout` is the probability of dropping a value: 0.3 on CIFAR, 0.4 on SVHN, 0 for none (section 3). Raises
    ValueError for a depth that is not 3 l N + 4, an unknown block type, a widening factor below 1, and for dropout
    in blocks of one convolution.
    """
    if block not in BLOCK_TYPES:
        raise ValueError(f"block {block!r} is not one of section 2.1 and Table 3: {', '.join(BLOCK_TYPES)}")
    if k < 1:
        raise ValueError(f"k {k}: the widening factor must be an integer >= 1 (section 2)")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} must be >= 0 and < 1 (section 3 has 0.3 and 0.4)")
    if dropout and len(BLOCK_TYPES[block]) == 1:
        raise ValueError(f"dropout is between two convolutions (section 2.4), and {block} has only one")
    return WideResNetCifar(depth, k, BLOCK_TYPES[block], dropout, num_classes=num_classes, in_channels=in_channels)
