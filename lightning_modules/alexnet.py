"""AlexNet. Krizhevsky, Sutskever, Hinton 2012, NIPS 25, section 3.5 and Figure 2; nets for CIFAR-10, 3.1 and 3.3.

    layer      output (C x H x W)   filters               input maps          parameters   multiply-adds
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
weights except fc8. The two GPUs are the two groups of a convolution: the first and the second half of the maps.
On one GPU (section 3.2) 48, 128, 192, 192 and 256 kernels read all maps of the previous layer: 59,798,312
parameters.

Departures from the paper:
  * The input is 227 x 227. The paper prints 224, but (224 - 11) / 4 is not an integer; the neurons that Figure 2
    gives conv2, 256 x 27 x 27, require 55 x 55 maps before pooling, and so 227 pixels without padding.
  * Dropout doubles the kept outputs in training; the paper halves all outputs at test time (section 4.2).
  * The outputs are scores before the softmax, without the ReLU that section 3.5 applies to "every" layer.

Left open by the paper, and what is done here:
  * Padding: 2 for 5x5 and 1 for 3x3 filters, which give the neurons of Figure 2. Only its 253,440 for conv1, which
    is 96 x 55 x 48, is inconsistent with the rest: conv1 has 96 x 55 x 55 = 290,400.
  * Normalisation across the two GPUs: it includes the maps of both, as the formula of section 3.3 says.
  * Pooling 2/2 "of equivalent dimensions" (section 3.4): it drops the odd last row of 55, 27 and 13, which gives
    27, 13 and 6 as well.
  * `without` and `units`: the rows that Zeiler and Fergus (arXiv:1311.2901, Table 3) remove or resize in this net.
    The remaining rows keep their groups, so without conv3 the maps of the two GPUs first meet in fc6.
  * The sixth convolution of the nets trained on more classes (section 6): its size is not given, it is not built.
  * The four-layer nets for CIFAR-10. A footnote of section 3.3 refers to the configuration files of the project
    cuda-convnet. Two of them have the printed errors, 13 % and 11 % with normalisation: `local=True`, four layers
    and the output. The paper describes no net for Figure 1; the usual substitute is that project's "18 %" net,
    four layers including the output. It normalises within a map and after pooling; here both nets have the
    normalisation of section 3.3 with the constants of the 11 % file, k 1, n 5, alpha 0.001 / 5, beta 0.75. Weights
    are normal with the standard deviations of the files, biases zero. That of conv1, 0.0001, is for pixels of 0 to
    255, as the files read them: use `normalise: raw-mean-image`. The files crop images to 24 x 24 for the net of
    section 3.3; here both nets read 32 x 32.

    local=False   output          filters                  local=True   output          filters
    conv1         32 x 32 x 32    5x5, pad 2               conv1        64 x 32 x 32    5x5, pad 2
    lrn1          32 x 32 x 32    with lrn=True            lrn1         64 x 32 x 32    with lrn=True
    pool1         32 x 16 x 16    max 3x3, stride 2        pool1        64 x 16 x 16    max 3x3, stride 2
    conv2         32 x 16 x 16    5x5, pad 2               conv2        64 x 16 x 16    5x5, pad 2
    lrn2          32 x 16 x 16    with lrn=True            lrn2         64 x 16 x 16    with lrn=True
    pool2         32 x  8 x  8    average 3x3, stride 2    pool2        64 x  8 x  8    max 3x3, stride 2
    conv3         64 x  8 x  8    5x5, pad 2               local3       32 x  8 x  8    3x3, locally connected
    pool3         64 x  4 x  4    average 3x3, stride 2    local4       32 x  8 x  8    3x3, locally connected
    fc            10              89,578 parameters        fc           10              1,901,386 parameters
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import as_convolution, check_image_size
from lightning_modules.layers import lrn as local_response_norm

ACTIVATIONS = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
}  # in place: no row before an activation needs its output again


# Layer specifications: the rows of a table.
class ConvSpec(NamedTuple):
    kernels: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1  # 2: each GPU's kernels read only the maps on that GPU
    bias: float = 0.0  # initial; 1 "provides the ReLUs with positive inputs" (section 5)
    std: float = 0.01  # of the initial weights


class LocalSpec(NamedTuple):
    filters: int = 32


class LRNSpec(NamedTuple):
    k: float = 2.0
    alpha: float = 1e-4


class PoolSpec(NamedTuple):
    size: int = 3
    average: bool = False
    round_up: bool = False  # include a last window that is partly outside the map, as cuda-convnet does


class DropoutSpec(NamedTuple):
    p: float = 0.5


class LinearSpec(NamedTuple):
    units: int
    bias: float = 0.0


Table = dict[str, ConvSpec | LocalSpec | LRNSpec | PoolSpec | DropoutSpec | LinearSpec]

ALEXNET: Table = {
    "conv1": ConvSpec(96, 11, stride=4),
    "lrn1": LRNSpec(),
    "pool1": PoolSpec(),
    "conv2": ConvSpec(256, 5, padding=2, groups=2, bias=1.0),
    "lrn2": LRNSpec(),
    "pool2": PoolSpec(),
    "conv3": ConvSpec(384, 3, padding=1),
    "conv4": ConvSpec(384, 3, padding=1, groups=2, bias=1.0),
    "conv5": ConvSpec(256, 3, padding=1, groups=2, bias=1.0),
    "pool5": PoolSpec(),
    "fc6": LinearSpec(4096, bias=1.0),
    "dropout6": DropoutSpec(),
    "fc7": LinearSpec(4096, bias=1.0),
    "dropout7": DropoutSpec(),
    "fc8": LinearSpec(1000),
}
REMOVABLE = ("conv3", "conv4", "fc6", "fc7")  # arXiv:1311.2901, Table 3
FIGURE_1: Table = {
    "conv1": ConvSpec(32, 5, padding=2, std=0.0001),
    "lrn1": LRNSpec(k=1.0, alpha=0.001 / 5),
    "pool1": PoolSpec(round_up=True),
    "conv2": ConvSpec(32, 5, padding=2),
    "lrn2": LRNSpec(k=1.0, alpha=0.001 / 5),
    "pool2": PoolSpec(average=True, round_up=True),
    "conv3": ConvSpec(64, 5, padding=2),
    "pool3": PoolSpec(average=True, round_up=True),
    "fc": LinearSpec(10),
}
SECTION_3_3: Table = {
    "conv1": ConvSpec(64, 5, padding=2, std=0.0001),
    "lrn1": LRNSpec(k=1.0, alpha=0.001 / 5),
    "pool1": PoolSpec(round_up=True),
    "conv2": ConvSpec(64, 5, padding=2),
    "lrn2": LRNSpec(k=1.0, alpha=0.001 / 5),
    "pool2": PoolSpec(round_up=True),
    "local3": LocalSpec(),
    "local4": LocalSpec(),
    "fc": LinearSpec(10),
}


class LocallyConnected(nn.Module):
    """3x3 filters with padding 1, like a convolution but with separate weights for each place of the map."""

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
        """Count the connections into the units of `output`: no weight is shared."""
        return self.weight.numel() + self.bias.numel()


class AlexNet(nn.Module):
    """The layers of a table in order. The activation follows every layer with weights except the last."""

    def __init__(self, name: str, table: Table, side: int, channels: int, activation: str = "relu") -> None:
        super().__init__()
        self.name, self.side, self.activation, self.last = name, side, activation, next(reversed(table))
        for row, spec in table.items():
            match spec:
                case ConvSpec(kernels, size, stride, padding, groups, bias, std):
                    conv = nn.Conv2d(channels, kernels, size, stride=stride, padding=padding, groups=groups)
                    self.add_module(row, initialise_normal(conv, std, bias))
                    channels, side = kernels, (side + 2 * padding - size) // stride + 1
                case LocalSpec(filters):
                    self.add_module(row, LocallyConnected(channels, filters, side))
                    channels = filters
                case LRNSpec(k, alpha):
                    self.add_module(row, local_response_norm(k=k, alpha=alpha))
                case PoolSpec(size, average, round_up):
                    pooling = nn.AvgPool2d if average else nn.MaxPool2d
                    self.add_module(row, pooling(size, stride=2, ceil_mode=round_up))
                    side = (side - size + round_up) // 2 + 1
                case DropoutSpec(p):
                    self.add_module(row, nn.Dropout(p))
                case LinearSpec(units, bias):
                    self.add_module(row, initialise_normal(nn.Linear(channels * side * side, units), 0.01, bias))
                    channels, side = units, 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, side, side) images -> (N, num_classes) scores. ValueError for images of another size."""
        check_image_size(x, self.name, side=self.side)
        for row, module in self.named_children():
            if isinstance(module, nn.Linear):
                x = x.flatten(1)  # fc6: (N, 256, 6, 6) -> (N, 9216)
            x = module(x)
            if isinstance(module, nn.Conv2d | LocallyConnected | nn.Linear) and row != self.last:
                x = ACTIVATIONS[self.activation](x)
        return x

    def score_map(self, x: Tensor) -> Tensor:
        """Apply the network densely, with fully connected layers as convolutions (arXiv:1409.1556, section 3.2).

        (N, C, H, W) -> (N, num_classes, H', W'). alexnet has 1 x 1 scores for 227 x 227 pixels, and one more row
        or column for every 32 pixels more. Raises ValueError for images below the paper's size, and for locally
        connected layers, whose filters belong to the places of a map.
        """
        check_image_size(x, f"{self.name}, applied densely,", min_side=self.side)
        for row, module in self.named_children():
            if isinstance(module, LocallyConnected):
                raise ValueError(
                    f"{self.name} cannot be applied densely: the filters of {row} belong to one place"
                )
            x = as_convolution(module, x) if isinstance(module, nn.Linear) else module(x)
            if isinstance(module, nn.Conv2d | nn.Linear) and row != self.last:
                x = ACTIVATIONS[self.activation](x)
        return x

    def dense(self, x: Tensor) -> Tensor:
        """Return the spatial mean of `score_map`: (N, C, H, W) -> (N, num_classes).

        Equals `forward` on images of the paper's size. Raises ValueError as `score_map` does.
        """
        return self.score_map(x).mean((2, 3))


def initialise_normal(module: nn.Conv2d | nn.Linear, std: float, bias: float) -> nn.Module:
    """Draw the weights of `module` from a normal distribution, set its biases to `bias`; return it (section 5)."""
    nn.init.normal_(module.weight, std=std)
    nn.init.constant_(module.bias, bias)  # type: ignore[arg-type]  # bias is not None
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
) -> AlexNet:
    """Build the network of section 3.5: (N, 3, 227, 227) -> scores (N, 1000).

    Args:
        lrn: local response normalisation (section 3.3).
        overlapping: pooling 3/2 instead of 2/2 (section 3.4).
        gpus: 2, or 1 for the net that section 3.2 compares.
        without: layers to leave out, of conv3, conv4, fc6 and fc7.
        units: width of fc6 and fc7.

    Raises ValueError for other values of `gpus` and `without`, and for `units` < 1.
    """
    if gpus not in (1, 2):
        raise ValueError(f"gpus must be 1 or 2 (section 3.2), not {gpus}")
    if units < 1:
        raise ValueError(f"units must be an integer >= 1, not {units}; the paper has 4096")
    if isinstance(without, str) or not set(without) <= set(REMOVABLE):
        raise ValueError(f"without must be a list of layers out of {', '.join(REMOVABLE)}, not {without!r}")
    removed = {*without, *(row.replace("fc", "dropout") for row in without)}
    table: Table = {}
    for row, spec in ALEXNET.items():
        if row in removed or (isinstance(spec, LRNSpec) and not lrn):
            continue
        if isinstance(spec, ConvSpec) and gpus == 1:
            divisor = 1 if row == "conv5" else 2  # conv5 is not halved: fc6 keeps its size (footnote, section 3.2)
            spec = spec._replace(groups=1, kernels=spec.kernels // divisor)
        elif isinstance(spec, PoolSpec) and not overlapping:
            spec = spec._replace(size=2)
        elif isinstance(spec, LinearSpec):
            spec = spec._replace(units=num_classes if row == "fc8" else units)
        table[row] = spec
    return AlexNet("alexnet", table, 227, in_channels)


def alexnet_cifar(
    *,
    activation: Literal["relu", "tanh"] = "relu",
    lrn: bool = False,
    local: bool = False,
    num_classes: int = 10,
    in_channels: int = 3,
) -> AlexNet:
    """Build a four-layer net for CIFAR-10: (N, 3, 32, 32) -> scores (N, 10).

    The net of Figure 1, or with `local` that of section 3.3. The paper prints no layers; the docstring of this
    module gives them with their source. `lrn`: local response normalisation. Raises ValueError for an unknown
    activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(ACTIVATIONS)} (Figure 1), not {activation!r}")
    full_table = (SECTION_3_3 if local else FIGURE_1) | {"fc": LinearSpec(num_classes)}
    table = {row: spec for row, spec in full_table.items() if lrn or not isinstance(spec, LRNSpec)}
    return AlexNet("alexnet_cifar", table, 32, in_channels, activation)
