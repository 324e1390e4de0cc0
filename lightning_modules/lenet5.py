"""LeNet-5. LeCun, Bottou, Bengio, Haffner 1998, Proceedings of the IEEE 86(11), section II-B.

    layer    output (C x H x W)   what                                     parameters   connections
    input      1 x 32 x 32
    c1         6 x 28 x 28        convolution 5x5                                 156       122,304
    s2         6 x 14 x 14        sub-sampling 2x2                                 12         5,880
    c3        16 x 10 x 10        convolution 5x5, connected as in Table I      1,516       151,600
    s4        16 x  5 x  5        sub-sampling 2x2                                 32         2,000
    c5       120 x  1 x  1        convolution 5x5                              48,120        48,120
    f6        84                  full connection                              10,164        10,164
    output    10                  Euclidean radial basis functions, fixed           0           840
60,000 trainable parameters, 340,908 connections. A connection is one weight of one unit, its bias
included; a sub-sampling unit has five, its four inputs and its bias.

c1 to f6 end in the squashing function 1.7159 tanh(2a/3) (Appendix A). The output of class i is the
squared distance y_i from f6 to a fixed bitmap of that digit; the smallest distance wins.

Departures from the paper:
  * The network returns scores, -y_i, so that the largest wins, as for every other network here.

Left open by the paper, and what is done here:
  * The 7x12 bitmaps are only shown as a figure (Figure 3): BITMAPS is our own drawing, ink +1, paper -1.
  * The constant j of the loss (eq. 9) has no value: it is a required argument of `map_loss`.
  * Appendix A draws weights from +-2.4 / fan-in, and does not name biases: they are drawn from the
    same range, being connections of the same unit. The fan-in leaves the bias out: 25 for c1, 4 for
    s2 and s4, 75, 100 or 150 for a map of c3, 400 for c5, 120 for f6.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 5

# Table I: the maps of s2 which each of the 16 maps of c3 reads.
TABLE_I = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

# After Figure 3: capital height, one empty row above and two below, where other characters descend.
BITMAPS = """
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
..###.. ...#... .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.#...#. ..##... #.....# #.....# ...#.#. #...... .#..... #.....# #.....# #.....#
#.....# .#.#... ......# ......# ..#..#. #...... #...... .....#. #.....# #.....#
#.....# ...#... .....#. ......# .#...#. #...... #...... ....#.. #.....# #.....#
#.....# ...#... ....#.. ..####. #....#. ######. #.####. ....#.. .#####. .######
#.....# ...#... ...#... ......# ####### ......# ##....# ...#... #.....# ......#
#.....# ...#... ..#.... ......# .....#. ......# #.....# ...#... #.....# ......#
.#...#. ...#... .#..... #.....# .....#. #.....# #.....# ..#.... #.....# .....#.
..###.. .#####. ####### .#####. .....#. .#####. .#####. ..#.... .#####. .####..
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


def digit_codes() -> Tensor:
    """The bitmaps of 0 to 9 as codes, (10, 84): rows of the 7x12 drawing one after the other, +-1."""
    rows = [line.split() for line in BITMAPS.split("\n") if line]
    digits = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in digit] for digit in digits])


def squash(a: Tensor) -> Tensor:
    """f(a) = A tanh(S a) with A = 1.7159 and S = 2/3, so that f(1) = 1 and f(-1) = -1 (Appendix A)."""
    return 1.7159 * torch.tanh(a * (2 / 3))


def squash_slope(a: Tensor) -> Tensor:
    """f'(a)."""
    return 1.7159 * (2 / 3) * (1 - torch.tanh(a * (2 / 3)).square())


def drawn(*shape: int, fan_in: Sequence[int]) -> nn.Parameter:
    """Uniform in +-2.4 / fan-in (Appendix A); one fan-in for all, or one for each first index."""
    bound = (2.4 / torch.tensor(fan_in)).view(-1, *[1] * (len(shape) - 1))
    return nn.Parameter((2 * torch.rand(shape) - 1) * bound)


def runs(inputs: Sequence[int], maps: int) -> int:
    """Rows of neighbours in `inputs`, the last of `maps` being the first one's neighbour: 1 if contiguous."""
    return max(1, sum((i - 1) % maps not in inputs for i in inputs))


class Layer(nn.Module):
    """Units that weigh their inputs, add a bias and squash; the weights are shared within a map.

    `weigh` is linear in the inputs and linear in the parameters, which is all that the second
    derivatives need (`sdlm.curvature`). Layers take a batch, or one pattern without its dimension.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def weigh(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The weighted sums `a` of all units, before squashing."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return squash(self.weigh(x, self.weight, self.bias))


class Convolution(Layer):
    """5x5 convolution without padding, each map reading the input maps of its row in `table`."""

    def __init__(self, in_maps: int, table: Sequence[Sequence[int]]) -> None:
        super().__init__()
        fan_in = [KERNEL**2 * len(inputs) for inputs in table]
        kernels = [n for n, inputs in zip(fan_in, table, strict=True) for _ in inputs]
        self.weight = drawn(len(kernels), KERNEL, KERNEL, fan_in=kernels)  # connected kernels only
        self.bias = drawn(len(table), fan_in=fan_in)
        self.in_maps = in_maps
        self.reads = tuple(len(inputs) for inputs in table)  # input maps of each map
        self.runs = tuple(runs(inputs, in_maps) for inputs in table)  # in how many rows of neighbours they lie
        place = [out * in_maps + i for out, inputs in enumerate(table) for i in inputs]
        self.register_buffer("place", torch.tensor(place), persistent=False)  # in the dense weights
        self.place: Tensor

    def dense(self, weight: Tensor) -> Tensor:
        """(connected kernels, 5, 5) -> (maps, input maps, 5, 5), zero where there is no connection."""
        total = len(self.bias) * self.in_maps
        if len(weight) < total:
            weight = weight.new_zeros(total, KERNEL, KERNEL).index_copy(0, self.place, weight)
        return weight.view(len(self.bias), self.in_maps, KERNEL, KERNEL)

    def weigh(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernels = self.dense(weight)
        if x.dim() == 4:
            return F.conv2d(x, kernels, bias)
        # One pattern: a matrix product over its patches is several times faster once compiled.
        maps, height, width = len(bias), x.shape[-2] - KERNEL + 1, x.shape[-1] - KERNEL + 1
        if height == width == 1:
            return ((kernels * x).flatten(1).sum(1) + bias).view(maps, 1, 1)
        rows = torch.stack([x[:, i : i + height] for i in range(KERNEL)], dim=1)
        patches = torch.stack([rows[..., i : i + width] for i in range(KERNEL)], dim=2)
        a = kernels.flatten(1) @ patches.reshape(-1, height * width)  # (maps, 25 C) @ (25 C, H W)
        return (a + bias[:, None]).view(maps, height, width)

    def connections(self, output: Tensor) -> int:
        return (self.weight.numel() + self.bias.numel()) * output.shape[-2] * output.shape[-1]


class SubSampling(Layer):
    """The sum of 2x2 inputs, times one coefficient per map, plus one bias per map (section II-B)."""

    window = 2

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = drawn(maps, fan_in=[4])
        self.bias = drawn(maps, fan_in=[4])

    def weigh(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # (..., H, W) -> (..., H/2, 2, W/2, 2)
        top, bottom = blocks[..., 0, :, :], blocks[..., 1, :, :]
        total = top[..., 0] + top[..., 1] + bottom[..., 0] + bottom[..., 1]
        return total * weight[:, None, None] + bias[:, None, None]

    def connections(self, output: Tensor) -> int:
        return (4 + 1) * output[0].numel()


class FullConnection(Layer):
    """Every unit reads every input."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = drawn(units, inputs, fan_in=[inputs])
        self.bias = drawn(units, fan_in=[inputs])

    def weigh(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.flatten(-3), weight, bias)  # (..., C, 1, 1) -> (..., C)

    def connections(self, output: Tensor) -> int:
        return self.weight.numel() + self.bias.numel()


class RadialBasis(nn.Module):
    """Scores -y_i with y_i = sum_j (x_j - w_ij)^2 (eq. 7); the codes w are fixed, not trained."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.codes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return -(x.unsqueeze(-2) - self.codes).square().sum(-1)

    def connections(self, output: Tensor) -> int:
        return self.codes.numel()


def mle_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The penalty y of the right class, mean over the batch (eq. 8)."""
    return -scores.gather(1, labels[:, None]).mean()


def map_loss(scores: Tensor, labels: Tensor, *, j: float) -> Tensor:
    """y_label + log(e^-j + sum_i e^-y_i), mean over the batch (eq. 9).

    Wrong classes are pushed away, too, but little once their penalty is well above `j`.
    """
    if not j > 0:
        raise ValueError(f"j is {j}; the constant of equation 9 must be positive")
    rubbish = scores.new_full((len(scores), 1), -j)  # a class of constant penalty j
    return torch.cat([scores, rubbish], dim=1).logsumexp(1).mean() + mle_loss(scores, labels)


def lenet5(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """The network of section II-B: (N, 1, 32, 32) -> scores (N, 10)."""
    if (num_classes, in_channels) != (10, 1):
        raise ValueError(
            f"lenet5 reads 1 channel and tells 10 digits apart, not {in_channels} and {num_classes}; "
            "lenet5_modern takes other numbers"
        )
    layers = OrderedDict[str, nn.Module](
        c1=Convolution(1, [(0,)] * 6),
        s2=SubSampling(6),
        c3=Convolution(6, TABLE_I),
        s4=SubSampling(16),
        c5=Convolution(16, [range(16)] * 120),
        f6=FullConnection(120, 84),
        output=RadialBasis(digit_codes()),
    )
    return nn.Sequential(layers)


def lenet5_modern(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """The usual simplification, not in the paper: 61,706 parameters for 10 classes and 1 channel.

    Full c3, average pooling without parameters or squashing, plain tanh, a dense last layer whose
    logits go to a softmax cross-entropy; the framework's own initialisation.
    """
    layers = OrderedDict[str, nn.Module](
        c1=nn.Conv2d(in_channels, 6, KERNEL),
        tanh1=nn.Tanh(),
        s2=nn.AvgPool2d(2),
        c3=nn.Conv2d(6, 16, KERNEL),
        tanh3=nn.Tanh(),
        s4=nn.AvgPool2d(2),
        c5=nn.Conv2d(16, 120, KERNEL),
        tanh5=nn.Tanh(),
        flatten=nn.Flatten(),
        f6=nn.Linear(120, 84),
        tanh6=nn.Tanh(),
        output=nn.Linear(84, num_classes),
    )
    return nn.Sequential(layers)
