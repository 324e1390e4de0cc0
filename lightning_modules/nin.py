"""Network In Network. Lin, Chen, Yan 2013, arXiv:1312.4400, section 4.1 and Figure 2.

The table is the network for CIFAR-10. An mlpconv layer is a convolution and two 1x1 convolutions (cccp: "cascaded
cross channel parametric pooling", section 3.1), each followed by ReLU.

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

Section 4.2 compares with the network without dropout (`dropout=False`), which has the same parameters.

Section 4.6 compares the global average with a fully connected layer in its place (`head`): from 10 x 8 x 8 = 640
inputs to 10 classes, 6,410 parameters more, with and without dropout before it.

`nin_imagenet` is a network for ImageNet that is not in the paper. The first author released it later, for Caffe
(nin_imagenet, train_val.prototxt in the gist d802a5849de39225bcc6); images are 3 x 224 x 224:

    layer       output (C x H x W)   filters                                parameters
    mlpconv1     96 x 54 x 54        11x11 /4, 96; 1x1, 96; 1x1, 96             53,568
    pool1        96 x 27 x 27        3x3 max, stride 2
    mlpconv2    256 x 27 x 27        5x5, 256; 1x1, 256; 1x1, 256              746,240
    pool2       256 x 13 x 13        3x3 max, stride 2
    mlpconv3    384 x 13 x 13        3x3, 384; 1x1, 384; 1x1, 384            1,180,800
    pool3       384 x  6 x  6        3x3 max, stride 2
    dropout3                         0.5
    mlpconv4   1000 x  6 x  6        3x3, 1024; 1x1, 1024; 1x1, 1000         5,614,568
    pool       1000                  global average; softmax
7,595,176 parameters. mlpconv1 has no padding.

Departures from the paper: none known.

Left open by the paper, and what is done here:
  * The paper does not print filter counts and kernel sizes. They come from the configuration files that the
    authors released, one for each data set (https://github.com/mavenlin/cuda-convnet, folder NIN). So does the
    initialisation: normal with standard deviation 0.05; for CIFAR-100 0.001 in the first convolution and 0.01 in
    the two 1x1 convolutions after it; biases zero.
  * A pooling window is clipped at the border, as in those files: 32 -> 16 -> 8 pixels.
  * ReLU also follows the last 1x1 convolution, as in those files, so no score is negative.
  * Both pooling layers take the maximum, as in section 4.1 and in those files. A later Caffe version by the first
    author averages in the second; it is not the paper's.
  * The initial standard deviations of `nin_imagenet`: 0.05; 0.01 in the first convolutions of mlpconv1 and
    mlpconv3, and in the last of all. Its poolings round up, as Caffe does.
  * Dropout follows pooling, as in those files. Its rate before the fully connected head is 0.5, as elsewhere.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import as_convolution, check_image_size

DataSet = Literal["cifar10", "cifar100", "svhn", "mnist"]
Head = Literal["average", "fc", "fc-dropout"]
INIT_STD = 0.05  # standard deviation of the initial weights


@dataclass(frozen=True)
class ReleasedConfiguration:
    """Layer sizes, image size and initialisation that the authors released for one data set."""

    # Kernel size of each mlpconv layer, then the filters of its three convolutions. The last layer has two
    # counts: its last convolution has one filter per class.
    mlpconv: tuple[tuple[int, ...], ...]
    image_size: int = 32  # pixels
    mlpconv1_init_std: tuple[float, float, float] = (INIT_STD, INIT_STD, INIT_STD)


CIFAR_MLPCONV = ((5, 192, 160, 96), (5, 192, 192, 192), (3, 192, 192))
RELEASED_CONFIGURATIONS: dict[str, ReleasedConfiguration] = {
    "cifar10": ReleasedConfiguration(CIFAR_MLPCONV),
    "cifar100": ReleasedConfiguration(CIFAR_MLPCONV, mlpconv1_init_std=(0.001, 0.01, 0.01)),
    "svhn": ReleasedConfiguration(((5, 128, 96, 64), (5, 320, 256, 128), (5, 384, 256))),
    "mnist": ReleasedConfiguration(((5, 96, 64, 48), (5, 128, 96, 48), (5, 128, 96)), image_size=28),
}


class Mlpconv(nn.Module):
    """Multilayer perceptron applied at every position: a convolution, then two 1x1 convolutions (section 3.1)."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        filters: Sequence[int],
        init_std: Sequence[float] = (INIT_STD,) * 3,
        *,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        conv, cccp1, cccp2 = filters
        pad = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(channels, conv, kernel, stride=stride, padding=pad)
        self.cccp1 = nn.Conv2d(conv, cccp1, 1)
        self.cccp2 = nn.Conv2d(cccp1, cccp2, 1)
        for layer, std in zip((self.conv, self.cccp1, self.cccp2), init_std, strict=True):
            init_normal(layer, std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, filters[-1], H / stride, W / stride), without negative values."""
        x = F.relu(self.conv(x))
        x = F.relu(self.cccp1(x))
        return F.relu(self.cccp2(x))


class NIN(nn.Module):
    """Three mlpconv layers and a head, in the order of the table."""

    def __init__(self, form: DataSet, head: Head, *, dropout: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        released = RELEASED_CONFIGURATIONS[form]
        (kernel1, *filters1), (kernel2, *filters2), (kernel3, *filters3) = released.mlpconv
        self.fixed_image_size = None if head == "average" else released.image_size
        self.mlpconv1 = Mlpconv(in_channels, kernel1, filters1, released.mlpconv1_init_std)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        if dropout:
            self.dropout1 = nn.Dropout(0.5)
        self.mlpconv2 = Mlpconv(filters1[-1], kernel2, filters2)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        if dropout:
            self.dropout2 = nn.Dropout(0.5)
        self.mlpconv3 = Mlpconv(filters2[-1], kernel3, (*filters3, num_classes))
        if head == "average":
            self.pool = nn.AdaptiveAvgPool2d(1)
        else:
            if head == "fc-dropout":
                self.dropout3 = nn.Dropout(0.5)
            self.fc = nn.Linear(num_classes * (released.image_size // 4) ** 2, num_classes)
            init_normal(self.fc, INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, contrast-normalised and whitened -> (N, num_classes) scores.

        Raises ValueError for images smaller than 6 x 6, for which pool2 has no whole window, and, with a fully
        connected head, for any size but the data set's own.
        """
        check_image_size(x, "nin", side=self.fixed_image_size, min_side=6)
        for layer in self.children():  # only the fully connected layer reads flattened maps
            x = layer(x.flatten(1)) if isinstance(layer, nn.Linear) else layer(x)
        return x.flatten(1)

    def dense(self, x: Tensor) -> Tensor:
        """Evaluate whole images densely: (N, C, H, W) -> (N, num_classes) scores, averaged over positions.

        Global average pooling already is that mean. A fully connected head is applied as a convolution. On the
        data set's own image size the scores equal those of `forward`. Raises ValueError for images smaller than
        that size with a fully connected head, or smaller than 6 x 6 without.
        """
        if self.fixed_image_size is None:
            return self(x)
        check_image_size(x, "nin, applied densely,", min_side=self.fixed_image_size)
        for layer in self.children():
            x = as_convolution(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        return x.mean((2, 3))


def init_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Draw weights from a normal distribution with standard deviation `std` and set biases to zero."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def nin(
    *,
    form: DataSet = "cifar10",
    head: Head = "average",
    dropout: bool = True,
    num_classes: int = 10,
    in_channels: int = 3,
) -> NIN:
    """Return the network for one data set: CIFAR 3 x 32 x 32, SVHN 3 x 32 x 32 or MNIST 1 x 28 x 28.

    `form` is the data set. `dropout` is that between the mlpconv layers (section 4.2). `head` is "average" for
    global average pooling; for the comparison of section 4.6 (Table 5) it is "fc" for a fully connected layer or
    "fc-dropout" for dropout and a fully connected layer.
    Raises ValueError for a form or head that is not in the paper.
    """
    if form not in RELEASED_CONFIGURATIONS:
        known = ", ".join(RELEASED_CONFIGURATIONS)
        raise ValueError(f"form {form!r} is not one of the paper's data sets: {known}")
    if head not in get_args(Head):
        raise ValueError(f"head {head!r} is not one of section 4.6: {', '.join(get_args(Head))}")
    return NIN(form, head, dropout=dropout, num_classes=num_classes, in_channels=in_channels)


class NINImageNet(nn.Sequential):
    """Four mlpconv layers and the global average, in the order of the second table."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, mean subtracted -> (N, num_classes) scores. ValueError below 55 x 55 pixels."""
        check_image_size(x, "nin_imagenet", min_side=55)  # gives pool3 one whole window
        return super().forward(x)


def nin_imagenet(*, num_classes: int = 1000, in_channels: int = 3) -> NINImageNet:
    """Build the released network for ImageNet, not in the paper: (N, 3, 224, 224) -> scores (N, 1000)."""
    low = 0.01  # initial standard deviation of some convolutions
    rows = OrderedDict[str, nn.Module](
        mlpconv1=Mlpconv(in_channels, 11, (96, 96, 96), (low, INIT_STD, INIT_STD), stride=4, padding=0),
        pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        mlpconv2=Mlpconv(96, 5, (256, 256, 256)),
        pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        mlpconv3=Mlpconv(256, 3, (384, 384, 384), (low, INIT_STD, INIT_STD)),
        pool3=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        dropout3=nn.Dropout(0.5),
        mlpconv4=Mlpconv(384, 3, (1024, 1024, num_classes), (INIT_STD, INIT_STD, low)),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )
    return NINImageNet(rows)
