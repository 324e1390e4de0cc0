"""FractalNet. Larsson, Maire, Shakhnarovich 2016, arXiv:1605.07648, sections 3 and 4 and Figure 1.

    f_1(z) = conv(z);  f_{C+1}(z) = [f_C o f_C](z) join conv(z)      (section 3)

where conv is convolution, batch normalisation and ReLU, and join is the element-wise mean. B blocks f_C, each with
2x2 max pooling, have B 2^(C-1) convolutions on the longest path. For CIFAR, B = 5 and C = 3:

    layer        output (C x H x W)   filters                               convolutions
    block1        64 x 16 x 16        f_3 of [3x3,  64]; 2x2 max pooling         7
    block2       128 x  8 x  8        f_3 of [3x3, 128]; 2x2 max pooling         7
    block3       256 x  4 x  4        f_3 of [3x3, 256]; 2x2 max pooling         7
    block4       512 x  2 x  2        f_3 of [3x3, 512]; 2x2 max pooling         7
    block5       512 x  1 x  1        f_3 of [3x3, 512]; 2x2 max pooling         7
    prediction    10                  fully connected, softmax
33,724,618 parameters: 33,698,880 in convolutions (C of each block read its input, the others the block's own
maps), 20,608 in batch normalisation, 5,130 in the last layer.

The nets of Tables 3 and 4 have 1 to 6 columns and a quarter of the filters, 16, 32, 64, 128 and 128 (section 4.2).
For 100 classes they have 258,292, 847,716, 2,125,204, 4,778,820, 10,184,692 and 21,095,076 parameters; the
table prints 0.3, 0.8, 2.1, 4.8, 10.2 and 21.1 million.

Departures from the paper:
  * Table 1 prints 38.6 million parameters for the net of 20 layers. The widths above, of section 4 and of the
    authors' release (https://github.com/gustavla/fractalnet), give 33.7 by the counting that reproduces all of
    Table 3.
  * The net of 40 layers has equal columns, 19.0 million parameters. The paper's has 22.9 million: columns of 128,
    64, 32 and 16 channels in the first block, joined after linear projections, and some 1x1 convolutions (Table 1,
    note 2).
  * FractalNet-34 for ImageNet is not built.

Left open by the paper, and what is done here:
  * Joins that end at the same place are one mean over all columns there, as in Figure 1 and in the release, not a
    mean of means.
  * Pooling precedes a block's last join, column by column, as in the release; Figure 1 draws it after the join.
  * Dropout acts on the output of each convolution, before its batch normalisation, as in the release.
  * Local or global drop-path, and the dropped paths, are drawn once per mini-batch: section 3 mixes mini-batches,
    and the released join drops all of an input or nothing. A dropped path is not computed, so its batch-norm
    averages skip that mini-batch; Caffe computes it and ignores the result. As in Caffe, its parameters get
    gradients of zero, so momentum and weight decay still change them.
  * Batch normalisation has scale and shift, and convolutions have no bias. The release has a bias but no scale and
    shift: normalisation cancels the bias, so its layers have no trained offset at all.
  * Xavier initialisation is that of Caffe, the authors' framework: uniform, variance 1 / fan-in; biases zero.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size

WIDTHS = (64, 128, 256, 512, 512)  # filters of each block
DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4)  # one rate per block (section 4)


class ConvLayer(nn.Module):
    """The conv of the expansion rule: 3x3 convolution, dropout, batch normalisation, ReLU."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, H, W)."""
        return F.relu(self.bn(self.dropout(self.conv(x))))


class Join(nn.Module):
    """Element-wise mean of the inputs that are not dropped."""

    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return total / len(inputs) if len(inputs) > 1 else total


class DropPath:
    """The inputs that the joins keep in one forward pass: all of them. Subclasses drop some (section 3).

    The inputs of a join are columns, the shallowest first. `skipped` collects the modules that are not computed.
    """

    def __init__(self) -> None:
        self.skipped: list[nn.Module] = []

    def keep_mask(self, columns: int) -> list[bool]:
        """Return True for each kept input, for a join of the `columns` deepest columns."""
        return [True] * columns


class LocalDropPath(DropPath):
    """Each join drops each input with probability `rate`, but keeps one, drawn uniformly, if all are dropped."""

    def __init__(self, rate: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.rate, self.generator = rate, generator

    def keep_mask(self, columns: int) -> list[bool]:
        # On the CPU, which avoids a device synchronization.
        draws = torch.rand(columns, device="cpu", generator=self.generator).tolist()
        return [draw >= min(self.rate, max(draws)) for draw in draws]


class GlobalDropPath(DropPath):
    """All joins keep the same single column, number `depth` from the deepest, which is 0."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def keep_mask(self, columns: int) -> list[bool]:
        return [column == columns - 1 - self.depth for column in range(columns)]


class Fractal(nn.Module):
    """f_C without its last join: one output per column, the shallowest first.

    It has `column_outputs` instead of `forward`, because forward hooks expect one output tensor per module.
    """

    def __init__(self, columns: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvLayer(channels, width, dropout)
        self.is_expanded = columns > 1
        if self.is_expanded:
            self.first = Fractal(columns - 1, channels, width, dropout)
            self.join = Join()
            self.second = Fractal(columns - 1, width, width, dropout)

    def column_outputs(self, z: Tensor, keep: Sequence[bool], drop_path: DropPath) -> list[Tensor]:
        """(N, channels, H, W) -> (N, width, H, W) for each column that the following join keeps, as in `keep`."""
        outputs = []
        if keep[0]:
            outputs.append(self.conv(z))
        else:
            drop_path.skipped.append(self.conv)
        if any(keep[1:]):
            mask = drop_path.keep_mask(len(keep) - 1)
            y = self.join(*self.first.column_outputs(z, mask, drop_path))
            outputs.extend(self.second.column_outputs(y, keep[1:], drop_path))
        elif self.is_expanded:
            drop_path.skipped.extend([self.first, self.second])
        return outputs

    def column(self, index: int) -> list[ConvLayer]:
        """Return the layers of one column in order; column 0 is the shallowest."""
        if index == 0:
            return [self.conv]
        return self.first.column(index - 1) + self.second.column(index - 1)


class Block(nn.Module):
    """f_C with 2x2 max pooling before its last join."""

    def __init__(self, columns: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.columns = columns
        self.fractal = Fractal(columns, channels, width, dropout)
        self.pool = nn.MaxPool2d(2)
        self.join = Join()

    def forward(self, x: Tensor, drop_path: DropPath) -> Tensor:
        """(N, channels, H, W) -> (N, width, H / 2, W / 2)."""
        outputs = self.fractal.column_outputs(x, drop_path.keep_mask(self.columns), drop_path)
        return self.join(*[self.pool(y) for y in outputs])


class FractalNet(nn.Module):
    """Fractal blocks, trained with drop-path and evaluated with all paths; children in the order of the table.

    Attributes:
        column_depths: number of convolutions in each column, the shallowest first.
        depth: number of convolutions in the deepest column.
        shared_draws: see `draw_drop_path`.
        lone_column: the column that the last mini-batch trained alone, from 1, the shallowest; None: several.
    """

    shared_draws: torch.Generator | None = None
    lone_column: int | None = None

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
        self.apply(caffe_xavier)
        lengths = [[len(block.fractal.column(i)) for block in self.blocks()] for i in range(columns)]
        self.column_depths = tuple(map(sum, lengths))
        self.depth = max(self.column_depths)

    def blocks(self) -> list[Block]:
        """Return the fractal blocks in order."""
        return [child for child in self.children() if isinstance(child, Block)]

    def draw_drop_path(self) -> DropPath:
        """Draw the dropped paths of one mini-batch (section 3); none in evaluation mode.

        Uses the generator `shared_draws`, or PyTorch's default generator if it is None. With `shared_draws` all
        micro-batches of one mini-batch drop the same paths, independent of their other random draws.
        """
        if not self.training:
            return DropPath()
        generator = self.shared_draws
        if self.global_share and torch.rand((), device="cpu", generator=generator).item() < self.global_share:
            return GlobalDropPath(int(torch.randint(self.columns, (), device="cpu", generator=generator).item()))
        return LocalDropPath(self.drop_path, generator) if self.drop_path else DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, side, side) images -> (N, num_classes) scores. ValueError for images of another size."""
        check_image_size(x, "fractalnet", side=self.side)
        drop_path = self.draw_drop_path()
        self.lone_column = self.columns - drop_path.depth if isinstance(drop_path, GlobalDropPath) else None
        for block in self.blocks():
            x = block(x, drop_path)
        return with_zero_gradients(self.prediction(x.flatten(1)), drop_path.skipped)

    def dense(self, x: Tensor) -> Tensor:
        """Return the mean scores over all places of a larger image: (N, C, H, W) -> (N, num_classes).

        Applies `prediction` to the mean of the maps; it is linear, so this is the mean of its scores. Raises
        ValueError for images smaller than `forward` reads.
        """
        check_image_size(x, "fractalnet, applied densely,", min_side=self.side)
        for block in self.blocks():
            x = block(x, DropPath())
        return self.prediction(x.mean((2, 3)))


class PlainNet(nn.Module):
    """Blocks of consecutive layers: a single column of a FractalNet, or a plain net of Table 4.

    Attribute `depth`: the number of convolutions.
    """

    def __init__(self, blocks: Sequence[Sequence[ConvLayer]], prediction: nn.Linear) -> None:
        super().__init__()
        self.side = 2 ** len(blocks)
        self.depth = sum(map(len, blocks))
        for i, layers in enumerate(blocks):
            convolutions = {f"conv{j + 1}": layer for j, layer in enumerate(layers)}
            self.add_module(f"block{i + 1}", nn.Sequential(OrderedDict(convolutions, pool=nn.MaxPool2d(2))))
        self.prediction = prediction

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, side, side) images -> (N, num_classes) scores. ValueError for images of another size."""
        check_image_size(x, "fractalnet_plain", side=self.side)
        for child in self.children():
            x = child(x if child is not self.prediction else x.flatten(1))
        return x

    def dense(self, x: Tensor) -> Tensor:
        """Return the mean scores over all places of a larger image, as `FractalNet.dense` does."""
        check_image_size(x, "fractalnet_plain, applied densely,", min_side=self.side)
        for child in self.children():
            x = child(x if child is not self.prediction else x.mean((2, 3)))
        return x


def with_zero_gradients(scores: Tensor, skipped: Sequence[nn.Module]) -> Tensor:
    """Return `scores`; their backward pass gives all parameters of the skipped modules gradients of zero."""
    values = [p[(0,) * p.ndim] for module in skipped for p in module.parameters()]  # one value of each parameter
    return scores + 0 * torch.stack(values).sum() if values else scores


def caffe_xavier(module: nn.Module) -> None:
    """Initialise as Caffe's "xavier": uniform with variance 1 / fan-in, biases zero. For `network.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def extract_column(network: FractalNet, column: int = -1) -> PlainNet:
    """Copy one column into a separate net; 0 is the shallowest, -1 the deepest (last rows of Table 1).

    Its scores are those of `network` with all other columns dropped. Raises ValueError for a column out of range.
    """
    if not -network.columns <= column < network.columns:
        raise ValueError(f"column must be 0 to {network.columns - 1}, or -1 for the deepest, not {column}")
    blocks = [copy.deepcopy(block.fractal.column(column % network.columns)) for block in network.blocks()]
    return PlainNet(blocks, copy.deepcopy(network.prediction)).train(network.training)


def dropout_rates(dropout: Sequence[float], blocks: int) -> Sequence[float]:
    """Return one dropout rate per block: `dropout`, or zeros if it is empty. ValueError for another length."""
    if len(dropout) not in (0, blocks):
        raise ValueError(
            f"dropout must have one rate for each of {blocks} blocks, or none, not {len(dropout)} rates"
        )
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
    """Build a FractalNet with B = len(`widths`) blocks of C = `columns` columns, for images of 2^B x 2^B pixels.

    The defaults are the net of Table 1 with drop-path and dropout.

    Args:
        columns: C.
        widths: filters of each block.
        drop_path: probability that a join drops an input in local drop-path; 0 disables local drop-path.
        global_share: fraction of the mini-batches with global drop-path, which trains a single column.
        dropout: one rate per block, or none.

    Raises ValueError for less than one column or block, and for rates out of range.
    """
    if columns < 1 or not widths:
        raise ValueError(f"fractalnet needs at least one column and one block, not {columns} and {len(widths)}")
    if not 0 <= drop_path < 1 or not 0 <= global_share <= 1:
        raise ValueError(f"drop_path {drop_path} must be in [0, 1) and global_share {global_share} in [0, 1]")
    return FractalNet(
        columns,
        widths,
        drop_path,
        global_share,
        dropout_rates(dropout, len(widths)),
        num_classes=num_classes,
        in_channels=in_channels,
    )


def fractalnet_plain(
    *,
    depth: int = 20,
    widths: Sequence[int] = WIDTHS,
    dropout: Sequence[float] = (),
    num_classes: int = 10,
    in_channels: int = 3,
) -> PlainNet:
    """Build a plain net of Table 4, `depth` convolutions in B equal blocks, for images of 2^B x 2^B pixels.

    Raises ValueError for a depth that is not a multiple of B, and for another number of dropout rates than B or 0.
    """
    if not widths:
        raise ValueError("fractalnet_plain needs at least one block; add a width to widths")
    per_block, remainder = divmod(depth, len(widths))
    if remainder or per_block < 1:
        below, above = max(per_block, 1) * len(widths), (max(per_block, 1) + 1) * len(widths)
        raise ValueError(
            f"depth {depth} is not a multiple of {len(widths)}, the number of blocks; "
            f"the nearest valid depths are {below} and {above}"
        )
    blocks: list[list[ConvLayer]] = []
    channels = in_channels
    for width, rate in zip(widths, dropout_rates(dropout, len(widths)), strict=True):
        blocks.append([ConvLayer(channels if i == 0 else width, width, rate) for i in range(per_block)])
        channels = width
    network = PlainNet(blocks, nn.Linear(channels, num_classes))
    return network.apply(caffe_xavier)
