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

A number is the kernel size of a convolution with stride 1, padded to keep the size of the map. LRN is `lrn1`, with
the constants of Krizhevsky et al. Pooling is max 2x2, stride 2. ReLU follows every weighted layer but the last.
Dropout is 0.5.

Parameters, biases included: 132,863,336 (A, A-LRN), 133,047,848 (B), 133,638,952 (C), 138,357,544 (D),
143,667,240 (E). Table 2 prints 133, 133, 134, 138 and 144 million.

"B-5x5" is the shallow network of section 4.1: B with one 5x5 convolution in place of each pair of 3x3; 134,503,528
parameters.

Left open by the paper, and what is done here:
  * "The first four convolutional layers" of net A (section 3.1) are conv1_1, conv2_1, conv3_1 and conv3_2. The
    first four of a deeper net have other shapes, so weights are copied by the layers' names in Table 1.
  * Pooling drops the last row or column of a map with an odd size, which occurs only in dense evaluation.
  * "glorot" draws from a uniform distribution, as Glorot and Bengio (2010) do; biases are zero.
"""

from collections import OrderedDict
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import as_convolution, check_image_size, lrn

Configuration = Literal["A", "A-LRN", "B", "C", "D", "E", "B-5x5"]
Initialisation = Literal["glorot", "normal"]
LRN = "LRN"

IMAGE_SIZE, LAST_MAP_SIZE = 224, 7  # pixels; size of the map after five pooling layers
WIDTHS = (64, 128, 256, 512, 512)
CONFIGURATIONS: dict[str, tuple[tuple[int | str, ...], ...]] = {  # kernel sizes of each stage in Table 1
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3, LRN), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3),) * 5,
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
    "B-5x5": ((5,),) * 5,  # section 4.1
}


class VGG(nn.Module):
    """Network of one column of Table 1 for images of 224 x 224; `dense` accepts larger images of any shape."""

    def __init__(
        self, configuration: Configuration, init: Initialisation, *, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.configuration = configuration
        channels = in_channels
        stages = zip(WIDTHS, CONFIGURATIONS[configuration], strict=True)
        for stage, (width, kernels) in enumerate(stages, start=1):
            for number, kernel in enumerate(kernels, start=1):
                if isinstance(kernel, int):
                    self.add_module(f"conv{stage}_{number}", same_convolution(channels, width, kernel))
                    channels = width
                else:
                    self.add_module(f"lrn{stage}", lrn())
            self.add_module(f"pool{stage}", nn.MaxPool2d(2))
        self.fc6 = nn.Linear(channels * LAST_MAP_SIZE**2, 4096)
        self.dropout6 = nn.Dropout(0.5)
        self.fc7 = nn.Linear(4096, 4096)
        self.dropout7 = nn.Dropout(0.5)
        self.fc8 = nn.Linear(4096, num_classes)
        self.apply(glorot_uniform if init == "glorot" else normal_std_0_1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 224, 224) images, mean subtracted -> (N, num_classes) scores; ValueError for other sizes."""
        check_image_size(x, "vgg", side=IMAGE_SIZE)
        x = self.feature_maps(x).flatten(1)  # (N, 512, 7, 7) -> (N, 25088)
        x = self.dropout6(F.relu(self.fc6(x)))
        x = self.dropout7(F.relu(self.fc7(x)))
        return self.fc8(x)

    def feature_maps(self, x: Tensor) -> Tensor:
        """Return the maps after pool5: (N, C, H, W) -> (N, 512, H / 32, W / 32), rounded down."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                break
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                x = F.relu(x, inplace=True)
        return x

    def score_map(self, x: Tensor) -> Tensor:
        """Apply the network to whole images (section 3.2): fc6 is a 7x7 convolution, fc7 and fc8 are 1x1.

        (N, C, H, W) -> (N, num_classes, H / 32 - 6, W / 32 - 6), rounded down. Raises ValueError for images
        smaller than 224 x 224.
        """
        check_image_size(x, "vgg, applied densely,", min_side=IMAGE_SIZE)
        x = self.feature_maps(x)
        x = self.dropout6(F.relu(as_convolution(self.fc6, x)))
        x = self.dropout7(F.relu(as_convolution(self.fc7, x)))
        return as_convolution(self.fc8, x)

    def dense(self, x: Tensor) -> Tensor:
        """Mean of the score map, dense evaluation (section 3.2): (N, C, H, W) -> (N, num_classes) scores.

        On 224 x 224 the scores equal those of `forward`. Raises ValueError for smaller images.
        """
        return self.score_map(x).mean((2, 3))


def same_convolution(channels: int, width: int, kernel: int) -> nn.Conv2d:
    """Build a convolution with stride 1, padded to keep the size of the map (section 2.1)."""
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2)


def glorot_uniform(module: nn.Module) -> None:
    """Draw weights uniformly with variance 2 / (fan-in + fan-out), set biases to zero; for `network.apply`.

    Glorot and Bengio 2010; see the note at the end of section 3.1.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def normal_std_0_1(module: nn.Module) -> None:
    """Draw normal weights with variance 0.01 and set biases to zero (section 3.1); for `network.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.1)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vgg(
    *, configuration: Configuration, init: Initialisation = "glorot", num_classes: int = 1000, in_channels: int = 3
) -> VGG:
    """Return the network of a column of Table 1, or "B-5x5" of section 4.1.

    `init="glorot"` requires no pre-training (section 3.1, last note). `init="normal"` has variance 0.01; the paper
    uses it for A, and for the layers of deeper nets that do not start from A's trained layers. Raises ValueError
    for a configuration or initialisation that is not in the paper.
    """
    if configuration not in CONFIGURATIONS:
        raise ValueError(f"configuration {configuration!r} is not one of Table 1: {', '.join(CONFIGURATIONS)}")
    if init not in get_args(Initialisation):
        raise ValueError(f"init {init!r} is not one of section 3.1: {', '.join(get_args(Initialisation))}")
    return VGG(configuration, init, num_classes=num_classes, in_channels=in_channels)


def conv_stack(
    *, kernel: int = 3, layers: int = 3, num_classes: int = 1000, in_channels: int = 64
) -> nn.Sequential:
    """Return a stack of convolutions of `kernel` x `kernel` with C = in_channels inputs and outputs (section 2.3).

    (N, C, H, W) -> (N, num_classes) scores. Global average pooling and `fc`, which are not in the paper, follow
    the stack. Raises ValueError for an even kernel size or layers < 1.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be an odd integer >= 1, not {kernel}")
    if layers < 1:
        raise ValueError(f"layers must be an integer >= 1, not {layers}; section 2.3 has 1, 2 and 3")
    modules = OrderedDict[str, nn.Module]()
    for number in range(1, layers + 1):
        modules[f"conv{number}"] = same_convolution(in_channels, in_channels, kernel)
        modules[f"relu{number}"] = nn.ReLU()
    head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(in_channels, num_classes))
    return nn.Sequential(modules | head).apply(glorot_uniform)
