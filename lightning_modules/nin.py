"""Network In Network. Lin, Chen, Yan 2013, arXiv:1312.4400, section 4.1 and Figure 2.

Of CIFAR-10; an mlpconv layer is a convolution and two 1x1 convolutions (cccp: "cascaded cross channel parametric
pooling", section 3.1), each followed by ReLU.

    layer       output (C x H x W)   filters                      parameters
    mlpconv1     96 x 32 x 32        5x5, 192; 1x1, 160; 1x1, 96      60,928
    pool1        96 x 16 x 16        3x3 max, stride 2
    dropout1                         0.5
    mlpconv2    192 x 16 x 16        5x5, 192; 1x1, 192; 1x1, 192    535,104
    pool2       192 x  8 x  8        3x3 max, stride 2
    dropout2                         0.5
    mlpconv3     10 x  8 x  8        3x3, 192; 1x1, 192; 1x1, 10     370,954
    pool         10                  global average; softmax
966,986 parameters; 984,356 for CIFAR-100, whose last layer has 100 filters; 1,986,026 for SVHN; 349,674 for MNIST.

Section 4.6 compares the global average with a fully connected layer in its place (`head`): from 10 x 8 x 8 = 640
inputs to 10 classes, 6,410 parameters more, with and without dropout before it.

Departures from the paper: none that is known.

Left open by the paper, and what is done here:
  * Widths and kernels are not printed: they are those of the configuration files that the authors released
    (https://github.com/mavenlin/cuda-convnet, folder NIN), one for each data set. So are the starting weights:
    normal with standard deviation 0.05, of CIFAR-100 0.001 in the first convolution and 0.01 in the two 1x1 after
    it; biases zero.
  * A pooling window that would reach over the border is cut off there, as in those files: 32 -> 16 -> 8 pixels.
  * ReLU follows the very last 1x1 convolution too, so that no score is negative: as in those files.
  * Both poolings take the maximum, as section 4.1 says and those files do. A version that the first author
    published later for Caffe averages in the second; it is not the paper's.
  * Dropout comes after the pooling, as in those files; before the fully connected head it is 0.5 like the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import as_convolution, require_image

Form = Literal["cifar10", "cifar100", "svhn", "mnist"]
Head = Literal["average", "fc", "fc-dropout"]
STD = 0.05  # of the starting weights


@dataclass(frozen=True)
class Settings:
    """One released configuration: of each mlpconv layer kernel, filters, 1x1 and 1x1, of the last the classes."""

    layers: tuple[tuple[int, ...], ...]
    side: int = 32  # pixels
    first_std: tuple[float, float, float] = (STD, STD, STD)  # of the starting weights of mlpconv1


CIFAR = ((5, 192, 160, 96), (5, 192, 192, 192), (3, 192, 192))
SETTINGS: dict[str, Settings] = {
    "cifar10": Settings(CIFAR),
    "cifar100": Settings(CIFAR, first_std=(0.001, 0.01, 0.01)),
    "svhn": Settings(((5, 128, 96, 64), (5, 320, 256, 128), (5, 384, 256))),
    "mnist": Settings(((5, 96, 64, 48), (5, 128, 96, 48), (5, 128, 96)), side=28),
}


class Mlpconv(nn.Module):
    """A small multilayer perceptron slid over the image: a convolution, then 1x1 convolutions (section 3.1)."""

    def __init__(
        self, channels: int, kernel: int, widths: Sequence[int], stds: Sequence[float] = (STD,) * 3
    ) -> None:
        super().__init__()
        filters, inner, outer = widths
        self.conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
        self.cccp1 = nn.Conv2d(filters, inner, 1)
        self.cccp2 = nn.Conv2d(inner, outer, 1)
        for layer, std in zip((self.conv, self.cccp1, self.cccp2), stds, strict=True):
            normal(layer, std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, outer, H, W), nowhere negative."""
        x = F.relu(self.conv(x))
        x = F.relu(self.cccp1(x))
        return F.relu(self.cccp2(x))


class NIN(nn.Module):
    """Three mlpconv layers and a head; children in the order of the table."""

    def __init__(self, form: Form, head: Head, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        settings = SETTINGS[form]
        (k1, *first), (k2, *second), (k3, *third) = settings.layers
        self.side = None if head == "average" else settings.side
        self.mlpconv1 = Mlpconv(in_channels, k1, first, settings.first_std)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.dropout1 = nn.Dropout(0.5)
        self.mlpconv2 = Mlpconv(first[-1], k2, second)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.dropout2 = nn.Dropout(0.5)
        self.mlpconv3 = Mlpconv(second[-1], k3, (*third, num_classes))
        if head == "average":
            self.pool = nn.AdaptiveAvgPool2d(1)
        else:
            if head == "fc-dropout":
                self.dropout3 = nn.Dropout(0.5)
            self.fc = nn.Linear(num_classes * (settings.side // 4) ** 2, num_classes)
            normal(self.fc, STD)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, contrast-normalised and whitened -> (N, num_classes) scores.

        ValueError for images below 6 x 6, of which the second pooling has no whole window, and with a fully
        connected head for all but the data set's own size.
        """
        require_image(x, "nin", side=self.side, least=6)
        for layer in self.children():  # all but the fully connected one keep the map
            x = layer(x.flatten(1)) if isinstance(layer, nn.Linear) else layer(x)
        return x.flatten(1)

    def dense(self, x: Tensor) -> Tensor:
        """The network applied to a whole image: (N, C, H, W) -> (N, num_classes) scores, averaged over places.

        The global average is that mean already; a fully connected head slides over the maps as a convolution. On
        the data set's own size the same scores. ValueError below that with such a head, below 6 x 6 without.
        """
        if self.side is None:
            return self(x)
        require_image(x, "nin, applied densely,", least=self.side)
        for layer in self.children():
            x = as_convolution(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        return x.mean((2, 3))


def normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Weights normal with standard deviation `std`, biases zero, as in the released configurations."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def nin(*, form: Form = "cifar10", head: Head = "average", num_classes: int = 10, in_channels: int = 3) -> NIN:
    """The network as set for one data set: CIFAR 3 x 32 x 32, SVHN 3 x 32 x 32 or MNIST 1 x 28 x 28.

    `head`: the global average, or for the comparison of section 4.6 (Table 5) a fully connected layer in its
    place, without ("fc") or with dropout before it ("fc-dropout"). ValueError for a form or head not in the paper.
    """
    if form not in SETTINGS:
        raise ValueError(f"form {form!r} is not one of the paper's data sets: {', '.join(SETTINGS)}")
    if head not in get_args(Head):
        raise ValueError(f"head {head!r} is not one of section 4.6: {', '.join(get_args(Head))}")
    return NIN(form, head, num_classes=num_classes, in_channels=in_channels)
