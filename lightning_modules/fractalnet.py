"""FractalNet. Larsson, Maire, Shakhnarovich 2016, arXiv:1605.07648, sections 3 and 4 and Figure 1.

    f_1(z) = conv(z);  f_{C+1}(z) = [f_C o f_C](z) join conv(z)      (section 3)

with convolution, batch normalisation and ReLU as conv, and the element-wise mean as join. B blocks f_C, with 2x2
max pooling between them, have B 2^(C-1) convolutions on their longest path. Of CIFAR, B = 5 and C = 3:

    layer        output (C x H x W)   filters                               convolutions
    block1        64 x 16 x 16        f_3 of [3x3,  64]; 2x2 max pooling         7
    block2       128 x  8 x  8        f_3 of [3x3, 128]; 2x2 max pooling         7
    block3       256 x  4 x  4        f_3 of [3x3, 256]; 2x2 max pooling         7
    block4       512 x  2 x  2        f_3 of [3x3, 512]; 2x2 max pooling         7
    block5       512 x  1 x  1        f_3 of [3x3, 512]; 2x2 max pooling         7
    prediction    10                  fully connected, softmax
33,724,618 parameters: 33,698,880 in convolutions, of which C in each block read its input and the others its own
maps; 20,608 in batch normalisation; 5,130 in the last layer.

Table 3's nets have 1 to 6 columns and, as its counts say, a quarter of the filters (16, 32, 64, 128, 128): for 100
classes 258,292, 847,716, 2,125,204, 4,778,820, 10,184,692 and 21,095,076 parameters; it prints 0.3, 0.8, 2.1, 4.8,
10.2 and 21.1 million.

Departures from the paper:
  * For the net of 20 layers 38.6 million parameters are printed. The widths above, those of the authors' release
    (https://github.com/gustavla/fractalnet), make 33.7 by the counting that gives all of Table 3.

Left open by the paper, and what is done here:
  * Joins that end at the same place are one mean over all columns there, as Figure 1 draws it and that release has
    it, not a mean of means.
  * Pooling comes before a block's last join, column by column, as in that release; Figure 1 draws it after.
  * Dropout acts on the output of each convolution, before its batch normalisation, as in that release.
  * Whether drop-path is local or global is drawn once for a mini-batch, and so is what it drops: section 3 mixes
    mini-batches, and the released join drops all of its input or nothing. A dropped path is not computed, so its
    batch-norm averages skip that mini-batch; in Caffe it is computed and left out. As there, its parameters get
    gradients of zero: momentum and weight decay go on.
  * Batch normalisation has scale and shift, and convolutions no bias. The release has a bias and no scale and
    shift: as normalisation takes the bias out again, its units would have no trained offset at all.
  * Xavier initialisation is that of Caffe, in which the authors work: uniform, variance 1 / fan-in; biases zero.
  * FractalNet-34, of ImageNet, is not here: its widths and poolings are in no source that could be read.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import require_image

WIDTHS = (64, 128, 256, 512, 512)
DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4)  # one rate for each block (section 4)


class Unit(nn.Module):
    """conv of the expansion rule: 3x3 convolution, dropout, batch normalisation, ReLU."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, H, W)."""
        return F.relu(self.bn(self.dropout(self.conv(x))))


class Join(nn.Module):
    """The element-wise mean of those inputs that were not dropped."""

    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return total / len(inputs) if len(inputs) > 1 else total


class Paths:
    """Which inputs the joins keep in one pass; of the whole net, all of them.

    A join's inputs are columns, the shallowest first. `idle` gathers the parts of the net that are not computed.
    """

    def __init__(self) -> None:
        self.idle: list[nn.Module] = []

    def kept(self, columns: int) -> list[bool]:
        """For a join of the `columns` deepest columns: whether it keeps each."""
        return [True] * columns


class LocalPaths(Paths):
    """Each join drops each input with probability `rate`; where all would go, one of them, drawn evenly, stays."""

    def __init__(self, rate: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.rate, self.generator = rate, generator

    def kept(self, columns: int) -> list[bool]:
        # On the processor: no waiting for a device.
        draws = torch.rand(columns, device="cpu", generator=self.generator).tolist()
        return [draw >= min(self.rate, max(draws)) for draw in draws]


class GlobalPaths(Paths):
    """One column for the whole net, `depth` columns from the deepest, which is 0."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def kept(self, columns: int) -> list[bool]:
        return [column == columns - 1 - self.depth for column in range(columns)]


class Fractal(nn.Module):
    """f_C without its last join: C maps, one for each column, the shallowest first.

    Not a `forward`, as what watches modules takes each to give one tensor.
    """

    def __init__(self, columns: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = Unit(channels, width, dropout)
        self.deeper = columns > 1
        if self.deeper:
            self.first = Fractal(columns - 1, channels, width, dropout)
            self.join = Join()
            self.second = Fractal(columns - 1, width, width, dropout)

    def maps(self, z: Tensor, kept: Sequence[bool], paths: Paths) -> list[Tensor]:
        """(N, channels, H, W) -> (N, width, H, W) for each column that the join behind keeps."""
        maps = []
        if kept[0]:
            maps.append(self.conv(z))
        else:
            paths.idle.append(self.conv)
        if any(kept[1:]):
            y = self.join(*self.first.maps(z, paths.kept(len(kept) - 1), paths))
            maps.extend(self.second.maps(y, kept[1:], paths))
        elif self.deeper:
            paths.idle.extend([self.first, self.second])
        return maps

    def column(self, index: int) -> list[Unit]:
        """The units of one column in order; 0 is the shallowest."""
        if index == 0:
            return [self.conv]
        return self.first.column(index - 1) + self.second.column(index - 1)


class Block(nn.Module):
    """f_C, pooled before its last join."""

    def __init__(self, columns: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.columns = columns
        self.fractal = Fractal(columns, channels, width, dropout)
        self.pool = nn.MaxPool2d(2)
        self.join = Join()

    def forward(self, x: Tensor, paths: Paths) -> Tensor:
        """(N, channels, H, W) -> (N, width, H / 2, W / 2)."""
        maps = self.fractal.maps(x, paths.kept(self.columns), paths)
        return self.join(*[self.pool(y) for y in maps])


class FractalNet(nn.Module):
    """Blocks of several columns, trained with drop-path, used whole; children in the order of the table.

    Attributes: `column_depths`, the convolutions on the way through each column, the shallowest first; `depth`,
    those of the deepest; `shared_draws`, see `draw`.
    """

    shared_draws: torch.Generator | None = None

    def __init__(
        self,
        columns: int,
        widths: Sequence[int],
        drop_path: float,
        global_share: float,
        dropout: Sequence[float],
        *,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.columns, self.drop_path, self.global_share = columns, drop_path, global_share
        self.side = 2 ** len(widths)
        channels = in_channels
        for i, width in enumerate(widths):
            self.add_module(f"block{i + 1}", Block(columns, channels, width, dropout[i]))
            channels = width
        self.prediction = nn.Linear(channels, num_classes)
        self.apply(xavier)
        lengths = [[len(block.fractal.column(i)) for block in self.blocks()] for i in range(columns)]
        self.column_depths = tuple(map(sum, lengths))
        self.depth = max(self.column_depths)

    def blocks(self) -> list[Block]:
        return [child for child in self.children() if isinstance(child, Block)]

    def draw(self) -> Paths:
        """What is dropped from the next mini-batch (section 3); nothing in eval mode.

        Drawn by torch's own generator, or by `shared_draws` where a mini-batch goes through the net in parts: all
        of them drop alike, whatever else is drawn in each.
        """
        if not self.training:
            return Paths()
        by = self.shared_draws
        if self.global_share and torch.rand((), device="cpu", generator=by).item() < self.global_share:
            return GlobalPaths(int(torch.randint(self.columns, (), device="cpu", generator=by).item()))
        return LocalPaths(self.drop_path, by) if self.drop_path else Paths()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images -> (N, num_classes) scores; ValueError unless the last pooling leaves one pixel."""
        require_image(x, "fractalnet", side=self.side)
        paths = self.draw()
        for block in self.blocks():
            x = block(x, paths)
        return unmoved(self.prediction(x.flatten(1)), paths.idle)

    def dense(self, x: Tensor) -> Tensor:
        """The whole net on a larger image: (N, C, H, W) -> (N, num_classes) scores, averaged over places.

        The mean of the maps and `prediction` once: that is its scores' mean, both being linear. ValueError below
        the size that `forward` reads.
        """
        require_image(x, "fractalnet, applied densely,", least=self.side)
        for block in self.blocks():
            x = block(x, Paths())
        return self.prediction(x.mean((2, 3)))


class PlainNet(nn.Module):
    """Units one after the other in each block: a column by itself, or a net for comparison (Table 4).

    Attributes: `depth`, its convolutions.
    """

    def __init__(self, blocks: Sequence[Sequence[Unit]], prediction: nn.Linear) -> None:
        super().__init__()
        self.side = 2 ** len(blocks)
        self.depth = sum(map(len, blocks))
        for i, units in enumerate(blocks):
            convolutions = {f"conv{j + 1}": unit for j, unit in enumerate(units)}
            self.add_module(f"block{i + 1}", nn.Sequential(OrderedDict(convolutions, pool=nn.MaxPool2d(2))))
        self.prediction = prediction

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images -> (N, num_classes) scores; ValueError unless the last pooling leaves one pixel."""
        require_image(x, "fractalnet_plain", side=self.side)
        for child in self.children():
            x = child(x if child is not self.prediction else x.flatten(1))
        return x

    def dense(self, x: Tensor) -> Tensor:
        """As `FractalNet.dense`."""
        require_image(x, "fractalnet_plain, applied densely,", least=self.side)
        for child in self.children():
            x = child(x if child is not self.prediction else x.mean((2, 3)))
        return x


def unmoved(scores: Tensor, idle: Sequence[nn.Module]) -> Tensor:
    """`scores`, which depend on all parameters of the `idle` modules with gradients of zero."""
    corners = [p[(0,) * p.ndim] for module in idle for p in module.parameters()]
    return scores + 0 * torch.stack(corners).sum() if corners else scores


def xavier(module: nn.Module) -> None:
    """Uniform with variance 1 / fan-in, biases zero: for `network.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def column_of(network: FractalNet, column: int = -1) -> PlainNet:
    """A copy of one column as a net of its own; 0 is the shallowest, -1 the deepest (Table 1's last rows).

    It gives the scores that `network` gives with all other columns dropped. ValueError for no such column.
    """
    if not -network.columns <= column < network.columns:
        raise ValueError(f"the net has columns 0 to {network.columns - 1} (or -1, the deepest), not {column}")
    blocks = [copy.deepcopy(block.fractal.column(column % network.columns)) for block in network.blocks()]
    return PlainNet(blocks, copy.deepcopy(network.prediction)).train(network.training)


def rates(dropout: Sequence[float], blocks: int) -> Sequence[float]:
    """One dropout rate for each block; none given are zero. ValueError for another number of them."""
    if len(dropout) not in (0, blocks):
        raise ValueError(f"{len(dropout)} dropout rates do not fit {blocks} blocks: give one for each, or none")
    return dropout or [0.0] * blocks


def fractalnet(
    *,
    columns: int = 3,
    widths: Sequence[int] = WIDTHS,
    drop_path: float = 0.15,
    global_share: float = 0.5,
    dropout: Sequence[float] = DROPOUT,
    num_classes: int = 10,
    in_channels: int = 3,
) -> FractalNet:
    """B = len(`widths`) blocks of C = `columns` columns, for images of 2^B x 2^B pixels.

    `drop_path`: rate at which a join drops an input (local); `global_share`: of the mini-batches that a single
    column learns (global); `dropout`: one rate for each block. The defaults are Table 1's with drop-path and
    dropout; without, they are 0, 0 and no rates. ValueError for no columns or blocks, or impossible rates.
    """
    if columns < 1 or not widths:
        raise ValueError(f"{columns} columns and {len(widths)} blocks make no net: give at least one of each")
    if not 0 <= drop_path < 1 or not 0 <= global_share <= 1:
        raise ValueError(f"drop_path {drop_path} must be in [0, 1) and global_share {global_share} in [0, 1]")
    every = rates(dropout, len(widths))
    return FractalNet(
        columns, widths, drop_path, global_share, every, num_classes=num_classes, in_channels=in_channels
    )


def fractalnet_plain(
    *,
    depth: int = 20,
    widths: Sequence[int] = WIDTHS,
    dropout: Sequence[float] = (),
    num_classes: int = 10,
    in_channels: int = 3,
) -> PlainNet:
    """`depth` convolutions in equal blocks, without joins: the plain nets of Table 4. Images of 2^B x 2^B pixels.

    ValueError for a depth that the blocks cannot share, or another number of dropout rates than blocks.
    """
    if not widths:
        raise ValueError("0 blocks make no net: give at least one width")
    each, rest = divmod(depth, len(widths))
    if rest or each < 1:
        near = f"{max(each, 1) * len(widths)} or {(max(each, 1) + 1) * len(widths)}"
        raise ValueError(f"depth {depth} cannot be shared by {len(widths)} blocks; {near} can")
    blocks: list[list[Unit]] = []
    channels = in_channels
    for width, rate in zip(widths, rates(dropout, len(widths)), strict=True):
        blocks.append([Unit(channels if i == 0 else width, width, rate) for i in range(each)])
        channels = width
    network = PlainNet(blocks, nn.Linear(channels, num_classes))
    return network.apply(xavier)
