"""AlexNet. Krizhevsky, Sutskever, Hinton 2012, NIPS 25, section 3.5 and Figure 2; small nets, 3.1 and 3.3.

    layer      output (C x H x W)   filters               of which maps       parameters   multiply-adds
    input        3 x 227 x 227
    conv1       96 x  55 x  55      11x11x3, stride 4     the image               34,944     105,415,200
    lrn1        96 x  55 x  55      k 2, n 5, alpha 1e-4, beta 0.75
    pool1       96 x  27 x  27      max 3x3, stride 2
    conv2      256 x  27 x  27      5x5x48, pad 2         on the same GPU        307,456     223,948,800
    lrn2       256 x  27 x  27      as lrn1
    pool2      256 x  13 x  13      max 3x3, stride 2
    conv3      384 x  13 x  13      3x3x256, pad 1        all                    885,120     149,520,384
    conv4      384 x  13 x  13      3x3x192, pad 1        on the same GPU        663,936     112,140,288
    conv5      256 x  13 x  13      3x3x192, pad 1        on the same GPU        442,624      74,760,192
    pool5      256 x   6 x   6      max 3x3, stride 2
    fc6       4096                                        all                 37,752,832      37,748,736
    dropout6  4096                  0.5
    fc7       4096                                        all                 16,781,312      16,777,216
    dropout7  4096                  0.5
    fc8       1000                                        all                  4,097,000       4,096,000
60,965,224 parameters (60,954,656 weights, 10,568 biases), 724,406,816 multiply-adds. ReLU follows every row with
weights but fc8. The two GPUs are the two groups of a convolution: the first half of the maps, and the second.
On one GPU (section 3.2) 48, 128, 192, 192 and 256 kernels read all maps before them: 59,798,312 parameters.

Departures from the paper:
  * Input is 227 x 227. The paper prints 224, but (224 - 11) / 4 is no whole number; the neurons that Figure 2
    gives conv2, 256 x 27 x 27, need 55 x 55 maps before pooling, and so 227 pixels without padding.
  * Dropout doubles the outputs that it keeps in training; the paper halves all in testing (section 4.2).
  * The outputs are scores before the softmax, without the ReLU that section 3.5 puts after "every" layer.

Left open by the paper, and what is done here:
  * Padding: 2 for 5x5 and 1 for 3x3 filters, which give the neurons of Figure 2. Only conv1's 253,440 there, which
    is 96 x 55 x 48, does not fit with the rest: it has 96 x 55 x 55 = 290,400.
  * Whether normalisation looks across the border between the GPUs: it does, as section 3.3's formula says.
  * Pooling 2/2 "of equivalent dimensions" (section 3.4): 55, 27, 13 lose the odd last row and give 27, 13, 6, too.
  * `without` and `units`: the rows that Zeiler and Fergus (arXiv:1311.2901, Table 3) remove or resize in this net.
    What is left reads the maps before it in its own way, so without conv3 the GPUs first meet in fc6.
  * The sixth convolution of the nets trained on more classes (section 6) has no size, and is not built.
  * The four-layer nets for CIFAR-10. A footnote of section 3.3 refers to the files of the project cuda-convnet.
    One pair of them has the errors printed, 13 % and with normalisation 11 %: `local=True`, four layers and the
    output. For Figure 1 nothing is said; the usual stand-in is that project's "18 %" net, four layers with the
    output. Its own normalisation is within a map and after pooling; here both nets have section 3.3's, with the
    constants of the pair's file, k 1, n 5, alpha 0.001 / 5, beta 0.75. Weights are normal with the files' standard
    deviations, biases zero. The files read pixels of 0 to 255, this project has them from 0 to 1, so conv1 starts
    with 255 times the file's 0.0001, which makes the same function.

    local=False   output          filters                  local=True   output          filters
    conv1         32 x 32 x 32    5x5, pad 2               conv1        64 x 32 x 32    5x5, pad 2
    lrn1          32 x 32 x 32    if wanted                lrn1         64 x 32 x 32    if wanted
    pool1         32 x 16 x 16    max 3x3, stride 2        pool1        64 x 16 x 16    max 3x3, stride 2
    conv2         32 x 16 x 16    5x5, pad 2               conv2        64 x 16 x 16    5x5, pad 2
    lrn2          32 x 16 x 16    if wanted                lrn2         64 x 16 x 16    if wanted
    pool2         32 x  8 x  8    average 3x3, stride 2    pool2        64 x  8 x  8    max 3x3, stride 2
    conv3         64 x  8 x  8    5x5, pad 2               local3       32 x  8 x  8    3x3, others at each place
    pool3         64 x  4 x  4    average 3x3, stride 2    local4       32 x  8 x  8    3x3, others at each place
    fc            10              89,578 parameters        fc           10              1,901,386 parameters
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import as_convolution, require_image
from lightning_modules.layers import lrn as response_normalisation

ACTIVATIONS = {"relu": torch.relu_, "tanh": torch.tanh_}  # in place: no row before them needs its output again


# The kinds of rows that a table has.
class Conv(NamedTuple):
    kernels: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1  # 2: each GPU's kernels read only the maps on that GPU
    bias: float = 0.0  # at the start; 1 "provides the ReLUs with positive inputs" (section 5)
    std: float = 0.01  # of the weights at the start


class Local(NamedTuple):
    filters: int = 32


class Norm(NamedTuple):
    k: float = 2.0
    alpha: float = 1e-4


class Pool(NamedTuple):
    size: int = 3
    average: bool = False
    round_up: bool = False  # a last window half outside the map counts, as in cuda-convnet


class Drop(NamedTuple):
    p: float = 0.5


class Full(NamedTuple):
    units: int
    bias: float = 0.0


Table = dict[str, Conv | Local | Norm | Pool | Drop | Full]

ALEXNET: Table = {
    "conv1": Conv(96, 11, stride=4),
    "lrn1": Norm(),
    "pool1": Pool(),
    "conv2": Conv(256, 5, padding=2, groups=2, bias=1.0),
    "lrn2": Norm(),
    "pool2": Pool(),
    "conv3": Conv(384, 3, padding=1),
    "conv4": Conv(384, 3, padding=1, groups=2, bias=1.0),
    "conv5": Conv(256, 3, padding=1, groups=2, bias=1.0),
    "pool5": Pool(),
    "fc6": Full(4096, bias=1.0),
    "dropout6": Drop(),
    "fc7": Full(4096, bias=1.0),
    "dropout7": Drop(),
    "fc8": Full(1000),
}
REMOVABLE = ("conv3", "conv4", "fc6", "fc7")
FIGURE_1: Table = {
    "conv1": Conv(32, 5, padding=2, std=255 * 0.0001),
    "lrn1": Norm(k=1.0, alpha=0.001 / 5),
    "pool1": Pool(round_up=True),
    "conv2": Conv(32, 5, padding=2),
    "lrn2": Norm(k=1.0, alpha=0.001 / 5),
    "pool2": Pool(average=True, round_up=True),
    "conv3": Conv(64, 5, padding=2),
    "pool3": Pool(average=True, round_up=True),
    "fc": Full(10),
}
SECTION_3_3: Table = {
    "conv1": Conv(64, 5, padding=2, std=255 * 0.0001),
    "lrn1": Norm(k=1.0, alpha=0.001 / 5),
    "pool1": Pool(round_up=True),
    "conv2": Conv(64, 5, padding=2),
    "lrn2": Norm(k=1.0, alpha=0.001 / 5),
    "pool2": Pool(round_up=True),
    "local3": Local(),
    "local4": Local(),
    "fc": Full(10),
}


class LocallyConnected(nn.Module):
    """3x3 filters as of a convolution with padding 1, but others at each place of a map of `side` x `side`."""

    def __init__(self, channels: int, filters: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(side * side, filters, channels * 9))
        self.bias = nn.Parameter(torch.zeros(filters, side * side))
        nn.init.normal_(self.weight, std=0.04)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, side, side) -> (N, filters, side, side)."""
        patches = F.unfold(x, 3, padding=1)  # (N, 9 channels, places)
        y = torch.einsum("pfc,ncp->nfp", self.weight, patches) + self.bias
        return y.unflatten(2, x.shape[-2:])

    def connections(self, output: Tensor) -> int:
        """Weights and biases feeding a unit, times its units: no weight is used twice."""
        return self.weight.numel() + self.bias.numel()


class TableNet(nn.Module):
    """The rows of a table, in order; the activation follows each that has weights, but not the last: scores."""

    def __init__(self, name: str, table: Table, side: int, channels: int, activation: str = "relu") -> None:
        super().__init__()
        self.name, self.side, self.activation, self.last = name, side, activation, next(reversed(table))
        for row, what in table.items():
            match what:
                case Conv(kernels, size, stride, padding, groups, bias, std):
                    conv = nn.Conv2d(channels, kernels, size, stride=stride, padding=padding, groups=groups)
                    self.add_module(row, started(conv, std, bias))
                    channels, side = kernels, (side + 2 * padding - size) // stride + 1
                case Local(filters):
                    self.add_module(row, LocallyConnected(channels, filters, side))
                    channels = filters
                case Norm(k, alpha):
                    self.add_module(row, response_normalisation(k=k, alpha=alpha))
                case Pool(size, average, round_up):
                    kind = nn.AvgPool2d if average else nn.MaxPool2d
                    self.add_module(row, kind(size, stride=2, ceil_mode=round_up))
                    side = (side - size + round_up) // 2 + 1
                case Drop(p):
                    self.add_module(row, nn.Dropout(p))
                case Full(units, bias):
                    self.add_module(row, started(nn.Linear(channels * side * side, units), 0.01, bias))
                    channels, side = units, 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, side, side) images -> (N, num_classes) scores; ValueError for images of another size."""
        require_image(x, self.name, side=self.side)
        for row, module in self.named_children():
            if isinstance(module, nn.Linear):
                x = x.flatten(1)  # fc6: (N, 256, 6, 6) -> (N, 9216)
            x = module(x)
            if isinstance(module, nn.Conv2d | LocallyConnected | nn.Linear) and row != self.last:
                x = ACTIVATIONS[self.activation](x)
        return x

    def score_map(self, x: Tensor) -> Tensor:
        """The net applied to a whole image: fully connected rows are convolutions (arXiv:1409.1556, section 3.2).

        (N, C, H, W) -> (N, num_classes, H', W'): of alexnet, a place for every 32 pixels from 227 on. ValueError
        for images below the paper's size, and for local rows, whose filters belong to the places of a map.
        """
        require_image(x, f"{self.name}, applied densely,", least=self.side)
        for row, module in self.named_children():
            if isinstance(module, LocallyConnected):
                raise ValueError(f"{self.name} cannot be applied densely: the filters of {row} belong to places")
            x = as_convolution(module, x) if isinstance(module, nn.Linear) else module(x)
            if isinstance(module, nn.Conv2d | nn.Linear) and row != self.last:
                x = ACTIVATIONS[self.activation](x)
        return x

    def dense(self, x: Tensor) -> Tensor:
        """The score map's mean: (N, C, H, W) -> (N, num_classes). The same weights, and on the paper's size the
        same scores. ValueError as `score_map`."""
        return self.score_map(x).mean((2, 3))


def started(module: nn.Conv2d | nn.Linear, std: float, bias: float) -> nn.Module:
    """`module` with normal weights and all its biases at `bias` (section 5)."""
    nn.init.normal_(module.weight, std=std)
    nn.init.constant_(module.bias, bias)  # type: ignore[arg-type]  # there is one
    return module


def alexnet(
    *,
    lrn: bool = True,
    overlapping: bool = True,
    gpus: Literal[1, 2] = 2,
    without: Sequence[str] = (),
    units: int = 4096,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> TableNet:
    """The network of section 3.5: (N, 3, 227, 227) -> scores (N, 1000).

    `lrn`: normalisation (section 3.3); `overlapping`: pooling 3/2, not 2/2 (section 3.4); `gpus`: 1 for the net of
    section 3.2's comparison; `without`: rows left out; `units`: of fc6 and fc7. ValueError for impossible ones.
    """
    if gpus not in (1, 2):
        raise ValueError(f"alexnet runs on 1 or 2 GPUs (section 3.2), not {gpus}")
    if units < 1:
        raise ValueError(f"fc6 and fc7 need at least 1 unit, not {units}; the paper gives them 4096")
    if isinstance(without, str) or not set(without) <= set(REMOVABLE):
        raise ValueError(f"'without' is a list of rows out of {', '.join(REMOVABLE)}; {without!r} is not")
    gone = {*without, *(row.replace("fc", "dropout") for row in without)}
    table: Table = {}
    for row, what in ALEXNET.items():
        if row in gone or (isinstance(what, Norm) and not lrn):
            continue
        if isinstance(what, Conv) and gpus == 1:
            share = 1 if row == "conv5" else 2  # conv5 is not halved, for fc6's sake (footnote to section 3.2)
            what = what._replace(groups=1, kernels=what.kernels // share)
        elif isinstance(what, Pool) and not overlapping:
            what = what._replace(size=2)
        elif isinstance(what, Full):
            what = what._replace(units=num_classes if row == "fc8" else units)
        table[row] = what
    return TableNet("alexnet", table, 227, in_channels)


def alexnet_cifar(
    *,
    activation: Literal["relu", "tanh"] = "relu",
    lrn: bool = False,
    local: bool = False,
    num_classes: int = 10,
    in_channels: int = 3,
) -> TableNet:
    """A four-layer net for CIFAR-10, of Figure 1 or, `local`, of section 3.3: (N, 3, 32, 32) -> scores (N, 10).

    The paper prints no layout: what is built, and why, is at the head of this file. `lrn`: normalisation.
    ValueError for an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"Figure 1 compares the activations {' and '.join(ACTIVATIONS)}, not {activation!r}")
    chosen = (SECTION_3_3 if local else FIGURE_1) | {"fc": Full(num_classes)}
    table = {row: what for row, what in chosen.items() if lrn or not isinstance(what, Norm)}
    return TableNet("alexnet_cifar", table, 32, in_channels, activation)
