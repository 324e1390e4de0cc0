"""LeNet-5. LeCun, Bottou, Bengio, Haffner 1998, Proceedings of the IEEE 86(11), section II-B.

    layer    output (C x H x W)   type                                     parameters   connections
    input      1 x 32 x 32
    c1         6 x 28 x 28        convolution 5x5                                 156       122,304
    s2         6 x 14 x 14        sub-sampling 2x2                                 12         5,880
    c3        16 x 10 x 10        convolution 5x5, connected as in Table I      1,516       151,600
    s4        16 x  5 x  5        sub-sampling 2x2                                 32         2,000
    c5       120 x  1 x  1        convolution 5x5                              48,120        48,120
    f6        84                  full connection                              10,164        10,164
    output    10                  Euclidean radial basis functions, fixed           0           840
60,000 trainable parameters, 340,908 connections. The connections of a unit are its weights and its bias; a
sub-sampling unit has five, for four inputs and the bias.

c1 to f6 end in the squashing function 1.7159 tanh(2a/3) (Appendix A). The output of class i is the squared
distance y_i from f6 to a fixed bitmap of that digit; the prediction is the class with the smallest distance.

Departures from the paper:
  * The network returns scores, -y_i, so that the prediction is the largest, as for every other network here.
  * `init="efficient_backprop"`, with which it is trained here. Appendix A draws weights from +-2.4 / fan-in
    (`init="appendix_a"`). With these and the printed eta and mu, the network does not learn, and its step sizes
    are not those of section III-B. Efficient BackProp (LeCun, Bottou, Orr, Mueller 1998, section 4.6), by the same
    laboratory and for the same squashing function, draws them with a standard deviation of 1 / sqrt(fan-in): with
    these it learns, see experiments/lenet5/mnist.yaml.

Left open by the paper, and what is done here:
  * The paper shows the 7x12 bitmaps only as a figure (Figure 3). BITMAPS was read from it, ink +1, paper -1: two
    public readings, a scan and a transcription, agree in rows 2 to 12. The scan has a frame over row 1; where the
    transcription has ink there (0, 2, 4 and 5), it is taken for that frame, because the row below is empty.
  * The paper gives no value for the constant j of the loss (eq. 9): it is a required argument of `map_loss`.
  * Appendix A does not mention biases: they have the range of their unit's weights. The fan-in excludes the bias:
    25 for c1, 4 for s2 and s4, 75, 100 or 150 for a map of c3, 400 for c5, 120 for f6.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 5

# Table I: the maps of s2 that each of the 16 maps of c3 reads.
TABLE_I = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

# Figure 3, rows from top to bottom, # is ink.
BITMAPS = """
....... ...##.. ....... ####### ....... ....... ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""


def digit_codes() -> Tensor:
    """Return the bitmaps of the digits 0 to 9 as codes of +-1, (10, 84): the rows of the 7x12 drawings."""
    rows = [line.split() for line in BITMAPS.split("\n") if line]
    digits = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in digit] for digit in digits])


def squash(a: Tensor) -> Tensor:
    """Squashing function f(a) = A tanh(S a), A = 1.7159, S = 2/3, so f(1) = 1 and f(-1) = -1 (Appendix A)."""
    return 1.7159 * torch.tanh(a * (2 / 3))


def squash_derivative(a: Tensor) -> Tensor:
    """Derivative f'(a) of the squashing function."""
    return 1.7159 * (2 / 3) * (1 - torch.tanh(a * (2 / 3)).square())


Init = Literal["appendix_a", "efficient_backprop"]

# Largest initial weight for a fan-in; a uniform distribution within +-sqrt(3 / n) has the deviation 1 / sqrt(n).
BOUNDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "appendix_a": lambda fan_in: 2.4 / fan_in,
    "efficient_backprop": lambda fan_in: (3 / fan_in).sqrt(),
}


def uniform_parameter(*shape: int, fan_in: Sequence[int], init: Init) -> nn.Parameter:
    """Return a parameter drawn uniformly within +-BOUNDS[init](fan-in).

    `fan_in` has one value for all entries, or one per index of the first dimension.
    """
    bound = BOUNDS[init](torch.tensor(fan_in)).view(-1, *[1] * (len(shape) - 1))
    return nn.Parameter((2 * torch.rand(shape) - 1) * bound)


def contiguous_runs(inputs: Sequence[int], maps: int) -> int:
    """Count the runs of adjacent map indices in `inputs`, modulo `maps`: 1 if the maps are contiguous."""
    return max(1, sum((i - 1) % maps not in inputs for i in inputs))


class TrainableLayer(nn.Module):
    """Layer that applies the squashing function to weighted sums: c1, s2, c3, s4, c5 and f6.

    `weighted_sum` is linear in the inputs and linear in the parameters; `sdlm.curvature` relies on that. The input
    is a batch, or one pattern without the batch dimension.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def weighted_sum(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the weighted sums `a` of all units, before the squashing function."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return squash(self.weighted_sum(x, self.weight, self.bias))


class Convolution(TrainableLayer):
    """5x5 convolution without padding; each output map reads the input maps listed in its row of `table`."""

    def __init__(self, in_maps: int, table: Sequence[Sequence[int]], init: Init = "appendix_a") -> None:
        super().__init__()
        fan_in = [KERNEL**2 * len(inputs) for inputs in table]
        kernel_fan_in = [n for n, inputs in zip(fan_in, table, strict=True) for _ in inputs]
        kernels = (len(kernel_fan_in), KERNEL, KERNEL)  # of connected maps only
        self.weight = uniform_parameter(*kernels, fan_in=kernel_fan_in, init=init)
        self.bias = uniform_parameter(len(table), fan_in=fan_in, init=init)
        self.in_maps = in_maps
        self.reads = tuple(len(inputs) for inputs in table)  # input maps per output map
        self.runs = tuple(contiguous_runs(inputs, in_maps) for inputs in table)  # of those input maps
        # Index of each connected kernel in the dense weight (maps * input maps, 5, 5).
        kernel_index = [out * in_maps + i for out, inputs in enumerate(table) for i in inputs]
        self.register_buffer("kernel_index", torch.tensor(kernel_index), persistent=False)
        self.kernel_index: Tensor

    def dense_weight(self, weight: Tensor) -> Tensor:
        """(connected kernels, 5, 5) -> (maps, input maps, 5, 5), with zeros where maps are not connected."""
        total = len(self.bias) * self.in_maps
        if len(weight) < total:
            weight = weight.new_zeros(total, KERNEL, KERNEL).index_copy(0, self.kernel_index, weight)
        return weight.view(len(self.bias), self.in_maps, KERNEL, KERNEL)

    def weighted_sum(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernels = self.dense_weight(weight)
        if x.dim() == 4:
            return F.conv2d(x, kernels, bias)
        # One pattern: a matrix product over patches is several times faster when compiled.
        maps, height, width = len(bias), x.shape[-2] - KERNEL + 1, x.shape[-1] - KERNEL + 1
        if height == width == 1:
            return ((kernels * x).flatten(1).sum(1) + bias).view(maps, 1, 1)
        rows = torch.stack([x[:, i : i + height] for i in range(KERNEL)], dim=1)
        patches = torch.stack([rows[..., i : i + width] for i in range(KERNEL)], dim=2)
        a = kernels.flatten(1) @ patches.reshape(-1, height * width)  # (maps, 25 C) @ (25 C, H W)
        return (a + bias[:, None]).view(maps, height, width)

    def connections(self, output: Tensor) -> int:
        """Count the connections into the units of `output`, the output for one image."""
        return (self.weight.numel() + self.bias.numel()) * output.shape[-2] * output.shape[-1]


class SubSampling(TrainableLayer):
    """Sum of 2x2 inputs, times one coefficient per map, plus one bias per map (section II-B)."""

    window = 2  # side and stride

    def __init__(self, maps: int, init: Init = "appendix_a") -> None:
        super().__init__()
        self.weight = uniform_parameter(maps, fan_in=[4], init=init)
        self.bias = uniform_parameter(maps, fan_in=[4], init=init)

    def weighted_sum(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # (..., H, W) -> (..., H/2, 2, W/2, 2)
        top, bottom = blocks[..., 0, :, :], blocks[..., 1, :, :]
        total = top[..., 0] + top[..., 1] + bottom[..., 0] + bottom[..., 1]
        return total * weight[:, None, None] + bias[:, None, None]

    def connections(self, output: Tensor) -> int:
        """Count the connections into the units of `output`, the output for one image."""
        return (4 + 1) * output[0].numel()


class FullConnection(TrainableLayer):
    """Fully connected layer."""

    def __init__(self, inputs: int, units: int, init: Init = "appendix_a") -> None:
        super().__init__()
        self.weight = uniform_parameter(units, inputs, fan_in=[inputs], init=init)
        self.bias = uniform_parameter(units, fan_in=[inputs], init=init)

    def weighted_sum(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.flatten(-3), weight, bias)  # (..., C, 1, 1) -> (..., C)

    def connections(self, output: Tensor) -> int:
        """Count the connections into the units of `output`, the output for one image."""
        return self.weight.numel() + self.bias.numel()


class RadialBasis(nn.Module):
    """Euclidean radial basis functions: scores -y_i, y_i = sum_j (x_j - w_ij)^2 (eq. 7), with fixed codes w."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.codes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return -(x.unsqueeze(-2) - self.codes).square().sum(-1)

    def connections(self, output: Tensor) -> int:
        """Count the connections into the units of `output`, the output for one image."""
        return self.codes.numel()


def mle_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the penalty y of the correct class, mean over the batch (eq. 8)."""
    return -scores.gather(1, labels[:, None]).mean()


def map_loss(scores: Tensor, labels: Tensor, *, j: float) -> Tensor:
    """Return y_label + log(e^-j + sum_i e^-y_i), mean over the batch (eq. 9).

    The second term increases the penalties of the incorrect classes, with little effect on those well above `j`.
    Raises ValueError unless j > 0.
    """
    if not j > 0:
        raise ValueError(f"j, the constant of equation 9, must be positive, not {j}")
    rubbish = scores.new_full((len(scores), 1), -j)  # the "rubbish" class, with constant penalty j
    return torch.cat([scores, rubbish], dim=1).logsumexp(1).mean() + mle_loss(scores, labels)


def lenet5(num_classes: int = 10, in_channels: int = 1, *, init: Init = "appendix_a") -> nn.Sequential:
    """Build the network of section II-B: (N, 1, 32, 32) -> scores (N, 10). ValueError for other numbers.

    `init` names the text that gives the range of the initial weights.
    """
    if (num_classes, in_channels) != (10, 1):
        raise ValueError(
            f"lenet5 has 1 input channel and 10 classes, not {in_channels} and {num_classes}; "
            "use lenet5_modern for other data"
        )
    layers = OrderedDict[str, nn.Module](
        c1=Convolution(1, [(0,)] * 6, init),
        s2=SubSampling(6, init),
        c3=Convolution(6, TABLE_I, init),
        s4=SubSampling(16, init),
        c5=Convolution(16, [range(16)] * 120, init),
        f6=FullConnection(120, 84, init),
        output=RadialBasis(digit_codes()),
    )
    return nn.Sequential(layers)


def lenet5_modern(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Build the common modern variant, not in the paper: 61,706 parameters for 10 classes and 1 channel.

    c3 is fully connected between maps, average pooling has no parameters and no activation, the activation is
    tanh, and a linear last layer returns the logits of a softmax. Initialisation is PyTorch's default.
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
