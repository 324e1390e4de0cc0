"""BN-AlexNet and BN-NIN, two networks of Canziani, Paszke, Culurciello 2016, arXiv:1605.07678, Figures 1 and 2.

No paper describes them. S. Zagoruyko trained both with https://github.com/soumith/imagenet-multiGPU.torch; the
tables are its files models/alexnetowtbn_cudnn.lua and models/ninbn.lua. "bn" is batch normalisation and ReLU.

    BN-AlexNet: the one-column AlexNet of arXiv:1404.5997 with batch normalisation
    layer      output (C x H x W)   filters                  parameters, with batch normalisation
    conv1       64 x  55 x  55      11x11 /4, pad 2; bn           23,424
    pool1       64 x  27 x  27      max 3x3 /2
    conv2      192 x  27 x  27      5x5, pad 2; bn               307,776
    pool2      192 x  13 x  13      max 3x3 /2
    conv3      384 x  13 x  13      3x3, pad 1; bn               664,704
    conv4      256 x  13 x  13      3x3, pad 1; bn               885,504
    conv5      256 x  13 x  13      3x3, pad 1; bn               590,592
    pool5      256 x   6 x   6      max 3x3 /2
    dropout5  9216                  0.5
    fc6       4096                  bn                        37,761,024
    dropout6  4096                  0.5
    fc7       4096                  bn                        16,789,504
    fc8       1000                                             4,097,000
    61,119,528 parameters, 714,188,480 multiply-adds.

    BN-NIN: the ImageNet network of NIN's first author (`nin_imagenet`) with batch normalisation, padding, and a
    fully connected layer after the average; it has no dropout
    layer      output (C x H x W)   filters, each with bn             parameters, with batch normalisation
    mlpconv1    96 x  56 x  56      11x11 /4, pad 5; 1x1; 1x1             54,144
    pool1       96 x  28 x  28      max 3x3 /2, pad 1
    mlpconv2   256 x  28 x  28      5x5, pad 2; 1x1; 1x1                 747,776
    pool2      256 x  14 x  14      max 3x3 /2, pad 1
    mlpconv3   384 x  14 x  14      3x3, pad 1; 1x1; 1x1               1,183,104
    pool3      384 x   7 x   7      max 3x3 /2, pad 1
    mlpconv4  1024 x   7 x   7      3x3, pad 1; 1x1; 1x1               5,645,312
    pool      1024                  average
    fc        1000                                                     1,025,000
    8,655,336 parameters, 1,259,939,840 multiply-adds.

That the chart measures these two is inferred: its bars are 57 and 62.5 % correct; the author prints 56.60 % for
bn-alexnet (https://github.com/szagoruyko/imagenet-validation.torch) and 62.6 % in ninbn.lua.

Departures from the files:
  * Batch normalisation starts with a scale of one; Torch7 draws it uniformly from 0 to 1.

Not built: ENet. Its paper (arXiv:1606.02147) describes a segmentation network, and no available source gives the
layers of the classifier in the chart.
"""

from collections import OrderedDict

from torch import Tensor, nn

from lightning_modules.layers import check_image_size

BN_EPS = 1e-3


class CheckedSequential(nn.Sequential):
    """Consecutive layers for images of 224 x 224 pixels."""

    def __init__(self, name: str, rows: OrderedDict[str, nn.Module]) -> None:
        super().__init__(rows)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 224, 224) images -> (N, num_classes) scores. ValueError for images of another size."""
        check_image_size(x, self.name, side=224)
        return super().forward(x)


def conv_bn_relu(
    channels: int, filters: int, kernel: int, *, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Return a convolution with bias, batch normalisation and ReLU."""
    conv = nn.Conv2d(channels, filters, kernel, stride=stride, padding=padding)
    return [conv, nn.BatchNorm2d(filters, eps=BN_EPS), nn.ReLU(inplace=True)]


def fc_bn_relu(inputs: int, units: int) -> nn.Sequential:
    """Return a fully connected layer, batch normalisation and ReLU."""
    return nn.Sequential(nn.Linear(inputs, units), nn.BatchNorm1d(units, eps=BN_EPS), nn.ReLU(inplace=True))


def mlpconv(channels: int, filters: int, kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """Return a convolution and two 1x1 convolutions, each with batch normalisation and ReLU."""
    return nn.Sequential(
        *conv_bn_relu(channels, filters, kernel, stride=stride, padding=padding),
        *conv_bn_relu(filters, filters, 1),
        *conv_bn_relu(filters, filters, 1),
    )


def bn_alexnet(*, num_classes: int = 1000, in_channels: int = 3) -> CheckedSequential:
    """Build BN-AlexNet: (N, 3, 224, 224) -> scores (N, 1000). Initialisation is PyTorch's, as in Torch7."""
    rows = OrderedDict[str, nn.Module](
        conv1=nn.Sequential(*conv_bn_relu(in_channels, 64, 11, stride=4, padding=2)),
        pool1=nn.MaxPool2d(3, stride=2),
        conv2=nn.Sequential(*conv_bn_relu(64, 192, 5, padding=2)),
        pool2=nn.MaxPool2d(3, stride=2),
        conv3=nn.Sequential(*conv_bn_relu(192, 384, 3, padding=1)),
        conv4=nn.Sequential(*conv_bn_relu(384, 256, 3, padding=1)),
        conv5=nn.Sequential(*conv_bn_relu(256, 256, 3, padding=1)),
        pool5=nn.MaxPool2d(3, stride=2),
        flatten=nn.Flatten(),  # (N, 256, 6, 6) -> (N, 9216)
        dropout5=nn.Dropout(0.5),
        fc6=fc_bn_relu(256 * 6 * 6, 4096),
        dropout6=nn.Dropout(0.5),
        fc7=fc_bn_relu(4096, 4096),
        fc8=nn.Linear(4096, num_classes),
    )
    return CheckedSequential("bn_alexnet", rows)


def bn_nin(*, num_classes: int = 1000, in_channels: int = 3) -> CheckedSequential:
    """Build BN-NIN: (N, 3, 224, 224) -> scores (N, 1000). Initialisation is PyTorch's, as in Torch7."""
    rows = OrderedDict[str, nn.Module](
        mlpconv1=mlpconv(in_channels, 96, 11, stride=4, padding=5),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        mlpconv2=mlpconv(96, 256, 5, padding=2),
        pool2=nn.MaxPool2d(3, stride=2, padding=1),
        mlpconv3=mlpconv(256, 384, 3, padding=1),
        pool3=nn.MaxPool2d(3, stride=2, padding=1),
        mlpconv4=mlpconv(384, 1024, 3, padding=1),
        pool=nn.AvgPool2d(7, stride=1),
        flatten=nn.Flatten(),
        fc=nn.Linear(1024, num_classes),
    )
    return CheckedSequential("bn_nin", rows)
