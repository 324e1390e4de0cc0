"""Pre-activation ResNets for ImageNet. He et al. 2016, arXiv:1603.05027, section 5.

The units are those of `preact_resnet`.

    layer     output (C x H x W)                                    units in 101  152  200
    conv1       64 x 112 x 112   7x7, stride 2; then BN, ReLU
    pool1       64 x  56 x  56   3x3 max pool, stride 2
    conv2_x    256 x  56 x  56   1x1,  64; 3x3,  64; 1x1,  256                3    3    3
    conv3_x    512 x  28 x  28   1x1, 128; 3x3, 128; 1x1,  512                4    8   24
    conv4_x   1024 x  14 x  14   1x1, 256; 3x3, 256; 1x1, 1024               23   36   36
    conv5_x   2048 x   7 x   7   1x1, 512; 3x3, 512; 1x1, 2048                3    3    3
    last      2048 x   7 x   7   after pre-activation units: one more activation
    pool5     2048               global average
    fc        1000               softmax
ResNet-200 is ResNet-152 with 16 more units on maps of 28 x 28. Parameters with full pre-activation: 44,541,480
(101), 60,185,128 (152), 64,666,152 (200). Other activations have 7,680 more, the batch normalisation of the
projections.

Left open by the paper, and what is done here:
  * The activation of conv1 precedes pool1, as in arXiv:1512.03385 and fb.resnet.torch.
  * The stride of a unit is in its first 1x1, as in arXiv:1512.03385. fb.resnet.torch, which trained the
    ResNet-200 of 20.1 % in Table 5, has it in the 3x3; its projections take the input of a unit before the
    activation and are followed by batch normalisation.
  * Projections and initialisation are as for CIFAR. Padding of pool1 is as in `resnet_imagenet`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size, he_normal
from lightning_modules.preact_resnet import (
    FIGURE_4,
    Activation,
    ShortcutConfig,
    activation_layers,
    bottleneck_weights,
    check_activation,
    unit_stage,
)

WIDTHS = {"conv2_x": 64, "conv3_x": 128, "conv4_x": 256, "conv5_x": 512}
UNITS = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


class PreActResNetImageNet(nn.Module):
    """Units of three layers after conv1 and pool1 of arXiv:1512.03385."""

    def __init__(
        self, units: tuple[int, ...], activation: Activation, *, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for (name, width), n in zip(WIDTHS.items(), units, strict=True):
            weights, stride = bottleneck_weights(width), 1 if name == "conv2_x" else 2
            self.add_module(name, unit_stage(n, channels, weights, stride, activation, ShortcutConfig()))
            channels = weights[-1][1]
        self.last = activation_layers(FIGURE_4[activation][0], channels)
        self.pool5 = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, H and W >= 32 (320 at test, section 5) -> (N, num_classes) scores."""
        check_image_size(x, "a pre-activation ResNet for ImageNet", min_side=32)  # conv5_x is 1/32 of the image
        x = self.pool1(F.relu(self.bn1(self.conv1(x))))
        for name in WIDTHS:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool5(self.last(x)).flatten(1))


def preact_resnet_imagenet(
    *, depth: int, activation: Activation = "full pre-activation", num_classes: int = 1000, in_channels: int = 3
) -> PreActResNetImageNet:
    """Return a network of section 5.

    The paper has 152 and 200 layers with original and with full pre-activation units, and 101 layers with original
    units and with BN after addition. Raises ValueError for another depth and for an activation that is not in
    Figure 4.
    """
    if depth not in UNITS:
        raise ValueError(f"depth {depth} is not one of section 5: {', '.join(map(str, UNITS))}")
    check_activation(activation)
    return PreActResNetImageNet(UNITS[depth], activation, num_classes=num_classes, in_channels=in_channels)
