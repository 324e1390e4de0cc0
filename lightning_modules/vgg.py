"""VGG. Simonyan and Zisserman 2014, arXiv:1409.1556, Table 1.

    layers             output (C x H x W)   A     A-LRN   B     C         D       E
    conv1_1, conv1_2    64 x 224 x 224      3     3 LRN   3 3   3 3       3 3     3 3
    pool1               64 x 112 x 112
    conv2_1, conv2_2   128 x 112 x 112      3     3       3 3   3 3       3 3     3 3
    pool2              128 x  56 x  56
    conv3_1 to 3_4     256 x  56 x  56      3 3   3 3     3 3   3 3 1     3 3 3   3 3 3 3
    pool3              256 x  28 x  28
    conv4_1 to 4_4     512 x  28 x  28      3 3   3 3     3 3   3 3 1     3 3 3   3 3 3 3
    pool4              512 x  14 x  14
    conv5_1 to 5_4     512 x  14 x  14      3 3   3 3     3 3   3 3 1     3 3 3   3 3 3 3
    pool5              512 x   7 x   7
    fc6, dropout6     4096
    fc7, dropout7     4096
    fc8               1000                  soft-max follows
    weighted layers                         11    11      13    16        16      19

A number is the side of a convolution's filters, stride 1, padded to keep the size of the map; LRN is `lrn1`,
with Krizhevsky's constants. Pooling is the maximum of 2x2, stride 2. ReLU follows every weighted layer but the
last; dropout is 0.5.

Parameters, biases included: 132,863,336 (A, A-LRN), 133,047,848 (B), 133,638,952 (C), 138,357,544 (D),
143,667,240 (E). Table 2 prints 133, 133, 134, 138 and 144 million.

"B-5x5" is section 4.1's shallow net: B with one 5x5 convolution for each pair of 3x3; 134,503,528 parameters.

Left open by the paper, and what is done here:
  * "The first four convolutional layers" of net A (section 3.1) are conv1_1, conv2_1, conv3_1 and conv3_2. Counted
    in a deeper net they would have other shapes; so they go where they stand in Table 1, as do the last three.
  * An odd side before a pool, which only dense evaluation can meet: its last row or column is left out.
  * Glorot and Bengio (2010) draw from a uniform distribution, and so does "glorot" here; biases start at zero.
"""

from collections import OrderedDict
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import as_convolution, lrn, require_image

Configuration = Literal["A", "A-LRN", "B", "C", "D", "E", "B-5x5"]
Initialisation = Literal["glorot", "normal"]
LRN = "LRN"

SIDE, MAP = 224, 7  # of the image and of what is left of it after five poolings
WIDTHS = (64, 128, 256, 512, 512)
TABLE_1: dict[str, tuple[tuple[int | str, ...], ...]] = {  # for each stage, the sides of its filters
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3, LRN), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3),) * 5,
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
    "B-5x5": ((5,),) * 5,  # section 4.1
}
FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")  # section 3.1


class VGG(nn.Module):
    """One column of Table 1. Reads images of 224 x 224; `dense` reads larger ones of any shape."""

    def __init__(
        self, configuration: Configuration, init: Initialisation, *, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.configuration = configuration
        channels = in_channels
        for stage, (width, rows) in enumerate(zip(WIDTHS, TABLE_1[configuration], strict=True), start=1):
            for place, kernel in enumerate(rows, start=1):
                if isinstance(kernel, int):
                    self.add_module(f"conv{stage}_{place}", convolution(channels, width, kernel))
                    channels = width
                else:
                    self.add_module(f"lrn{stage}", lrn())
            self.add_module(f"pool{stage}", nn.MaxPool2d(2))
        self.fc6 = nn.Linear(channels * MAP**2, 4096)
        self.dropout6 = nn.Dropout(0.5)
        self.fc7 = nn.Linear(4096, 4096)
        self.dropout7 = nn.Dropout(0.5)
        self.fc8 = nn.Linear(4096, num_classes)
        self.apply(glorot_uniform if init == "glorot" else normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 224, 224) images, mean subtracted -> (N, num_classes) scores; ValueError for another size."""
        require_image(x, "vgg", side=SIDE)
        x = self.maps(x).flatten(1)  # (N, 512, 7, 7) -> (N, 25088)
        x = self.dropout6(F.relu(self.fc6(x)))
        x = self.dropout7(F.relu(self.fc7(x)))
        return self.fc8(x)

    def maps(self, x: Tensor) -> Tensor:
        """What the convolutions see: (N, C, H, W) -> (N, 512, H / 32, W / 32), rounded down."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                break
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                x = F.relu(x, inplace=True)
        return x

    def score_map(self, x: Tensor) -> Tensor:
        """The net applied to a whole image (section 3.2): fc6 is a 7x7 convolution, fc7 and fc8 are 1x1.

        (N, C, H, W) -> (N, num_classes, H / 32 - 6, W / 32 - 6), rounded down; ValueError below 224 x 224.
        """
        require_image(x, "vgg, applied densely,", least=SIDE)
        x = self.maps(x)
        x = self.dropout6(F.relu(as_convolution(self.fc6, x)))
        x = self.dropout7(F.relu(as_convolution(self.fc7, x)))
        return as_convolution(self.fc8, x)

    def dense(self, x: Tensor) -> Tensor:
        """Dense evaluation (section 3.2): the score map's mean, (N, C, H, W) -> (N, num_classes) scores.

        The same weights, and on 224 x 224 the same scores. ValueError below that.
        """
        return self.score_map(x).mean((2, 3))


def convolution(channels: int, width: int, kernel: int) -> nn.Conv2d:
    """Stride 1, padded to keep the size of the map (section 2.1)."""
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2)


def glorot_uniform(module: nn.Module) -> None:
    """Uniform, variance 2 / (fan-in + fan-out) (Glorot and Bengio 2010; the note at the end of section 3.1)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def normal(module: nn.Module) -> None:
    """Normal with variance 0.01 (section 3.1)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.1)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def start_from_a(network: VGG, a: VGG) -> None:
    """Copy the first four convolutions and the last three layers of a trained net A into `network` (section 3.1).

    All other layers of `network` stay as they were drawn. ValueError where the two do not fit.
    """
    if not a.configuration.startswith("A"):
        raise ValueError(f"deeper nets start from configuration A or A-LRN (section 3.1), not {a.configuration}")
    own = network.state_dict()
    given = {name: value for name, value in a.state_dict().items() if name.partition(".")[0] in FROM_A}
    for name, value in given.items():
        if name not in own or own[name].shape != value.shape:
            has = f"has one of shape {tuple(own[name].shape)}" if name in own else "has none"
            raise ValueError(
                f"{name} of configuration {a.configuration} has shape {tuple(value.shape)}; "
                f"configuration {network.configuration} {has}"
            )
    network.load_state_dict(given, strict=False)


def vgg(
    *, configuration: Configuration, init: Initialisation = "glorot", num_classes: int = 1000, in_channels: int = 3
) -> VGG:
    """A column of Table 1, or section 4.1's "B-5x5".

    `init`: "glorot" needs no pre-training (section 3.1, last note); "normal" is how the paper began, with variance
    0.01: for A, and for a deeper net that is then given A's trained layers by `start_from_a`.
    ValueError for a configuration or an initialisation that is not the paper's.
    """
    if configuration not in TABLE_1:
        raise ValueError(f"configuration {configuration!r} is not one of Table 1: {', '.join(TABLE_1)}")
    if init not in get_args(Initialisation):
        raise ValueError(f"init {init!r} is not one of section 3.1: {', '.join(get_args(Initialisation))}")
    return VGG(configuration, init, num_classes=num_classes, in_channels=in_channels)


def conv_stack(
    *, kernel: int = 3, layers: int = 3, num_classes: int = 1000, in_channels: int = 64
) -> nn.Sequential:
    """Section 2.3: `layers` convolutions of `kernel` x `kernel`, with C = in_channels channels in and out of each.

    (N, C, H, W) -> (N, num_classes) scores: after the stack come a mean over the map and `fc`, which are ours.
    ValueError for a kernel that is even, or less than one layer.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} is not odd; only odd ones can be padded alike on both sides")
    if layers < 1:
        raise ValueError(f"{layers} layers make no stack; section 2.3 has 1, 2 and 3")
    rows = OrderedDict[str, nn.Module]()
    for place in range(1, layers + 1):
        rows[f"conv{place}"] = convolution(in_channels, in_channels, kernel)
        rows[f"relu{place}"] = nn.ReLU()
    rows |= OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(in_channels, num_classes))
    return nn.Sequential(rows).apply(glorot_uniform)
