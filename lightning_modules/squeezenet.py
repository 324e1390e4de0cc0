"""SqueezeNet. Iandola et al. 2016, arXiv:1602.07360, Table 1 and sections 3, 5 and 6.

    layer       output (C x H x W)   filter / stride           s1x1  e1x1  e3x3   parameters
    input          3 x 227 x 227
    conv1         96 x 111 x 111     7x7 / 2                                          14,208
    maxpool1      96 x  55 x  55     3x3 / 2
    fire2        128 x  55 x  55                                 16    64    64       11,920
    fire3        128 x  55 x  55                                 16    64    64       12,432
    fire4        256 x  55 x  55                                 32   128   128       45,344
    maxpool4     256 x  27 x  27     3x3 / 2
    fire5        256 x  27 x  27                                 32   128   128       49,440
    fire6        384 x  27 x  27                                 48   192   192      104,880
    fire7        384 x  27 x  27                                 48   192   192      111,024
    fire8        512 x  27 x  27                                 64   256   256      188,992
    maxpool8     512 x  13 x  13     3x3 / 2
    fire9        512 x  13 x  13                                 64   256   256      197,184
    dropout9     512 x  13 x  13     dropout 0.5 (section 3.3.1; no row in Table 1)
    conv10      1000 x  13 x  13     1x1 / 1                                         513,000
    avgpool10   1000 x   1 x   1     13x13 / 1
1,248,424 parameters, also with simple bypass; 1,589,672 with complex bypass, whose four 1x1 convolutions have
12,416 (fire2), 33,024 (fire4), 98,688 (fire6) and 197,120 (fire8).

The fire modules have the metaparameters base_e = incr_e = 128, pct_3x3 = 0.5, freq = 2 and SR = 0.125 (section
5.1).

SqueezeNet 1.1 is not in the paper. The authors released it later with their code. Its conv1 has 64 filters of 3x3,
and pooling follows conv1, fire3 and fire5; 1,235,496 parameters. The authors state 2.4 times fewer multiply-adds
than 1.0; counted on 227 x 227, 387,747,520 are 2.1 times fewer than 832,667,936 (on 224 x 224: 2.3 times).

Departures from the paper:
  * Input is 227 x 227, as in the released configuration. The table prints 224, which would give conv1 109 x 109.

Left open by the paper, and what is done here:
  * Section 3.3.1 mentions ReLU for squeeze and expand layers only. ReLU also follows conv1 and conv10, as
    released.
  * Section 3.3 also has max pooling after conv10. Table 1 and the released configuration have average pooling.
  * Initialisation follows the released configuration: Caffe's "xavier", uniform with variance 1 / fan-in; for
    conv10 normal with standard deviation 0.01; biases zero. Complex bypass was not released and is "xavier" as
    well.
  * The released conv10 pads its input by one pixel, so its map is 15 x 15; here it is 13 x 13 as in Table 1.
  * The bypass is added after the ReLU of the expand layer, as released for simple bypass.
  * Pooling rounds sizes up, as Caffe does; for 227 x 227 this changes version 1.1 only.
  * Sections 5.1 to 5.3 do not say how filter counts are rounded. Here they are rounded to the nearest integer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size

# Kernel size of conv1 -> smallest image size, in pixels, for which the last pooling leaves one value.
MIN_IMAGE_SIZE = {7: 21, 3: 17}


class Fire(nn.Module):
    """Fire module: squeeze with 1x1 filters, then expand with parallel 1x1 and 3x3 filters (section 3.2).

    The output of `bypass` for the module's input is added to the output (section 6); None: no bypass.
    """

    def __init__(self, channels: int, s1x1: int, e1x1: int, e3x3: int, bypass: nn.Module | None) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, s1x1, 1)
        self.expand1x1 = nn.Conv2d(s1x1, e1x1, 1)
        self.expand3x3 = nn.Conv2d(s1x1, e3x3, 3, padding=1)  # padding: section 3.3.1
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, e1x1 + e3x3, H, W)."""
        s = F.relu(self.squeeze1x1(x))
        y = F.relu(torch.cat([self.expand1x1(s), self.expand3x3(s)], dim=1))
        return y if self.bypass is None else y + self.bypass(x)


class SqueezeNet(nn.Module):
    """conv1, the fire modules and conv10, without a fully connected layer.

    `fire` has s1x1, e1x1 and e3x3 of fire2, fire3, ... Pooling follows conv1 and the fire modules with the numbers
    `pool_after`. `bypass` is None, "simple" or "complex".
    """

    def __init__(
        self,
        conv1: nn.Conv2d,
        fire: dict[str, tuple[int, int, int]],
        pool_after: tuple[int, ...],
        bypass: str | None,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = conv1.out_channels
        for number, (name, (s1x1, e1x1, e3x3)) in enumerate(fire.items(), start=2):
            module_bypass = bypass_for(bypass, channels, e1x1 + e3x3)
            self.add_module(name, Fire(channels, s1x1, e1x1, e3x3, module_bypass))
            if number in pool_after:
                self.add_module(f"maxpool{number}", nn.MaxPool2d(3, 2, ceil_mode=True))
            channels = e1x1 + e3x3
        self.dropout9 = nn.Dropout(0.5)
        self.conv10 = nn.Conv2d(channels, num_classes, 1)
        self.avgpool10 = nn.AdaptiveAvgPool2d(1)
        self.apply(caffe_xavier)
        nn.init.normal_(self.conv10.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, mean subtracted -> (N, num_classes) scores, all >= 0.

        Raises ValueError for images that are too small for the pooling layers.
        """
        check_image_size(x, "SqueezeNet", min_side=MIN_IMAGE_SIZE[self.conv1.kernel_size[0]])
        for layer in self.children():
            x = layer(x)
            if isinstance(layer, nn.Conv2d):  # conv1 and conv10; fire modules apply ReLU themselves
                x = F.relu(x)
        return x.flatten(1)


def bypass_for(bypass: str | None, channels: int, width: int) -> nn.Module | None:
    """Return the bypass of one fire module, or None (section 6).

    Simple and complex bypass are the identity where input and output have the same channels. Elsewhere complex
    bypass is a 1x1 convolution and simple bypass is None.
    """
    if bypass is not None and channels == width:
        return nn.Identity()
    return nn.Conv2d(channels, width, 1) if bypass == "complex" else None


def caffe_xavier(module: nn.Module) -> None:
    """Draw weights uniformly with variance 1 / fan-in, set biases to zero; for `network.apply`."""
    if isinstance(module, nn.Conv2d):
        bound = (3 / module.weight[0].numel()) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fire_module_sizes(
    base_e: int, incr_e: int, pct_3x3: float, freq: int, sr: float
) -> dict[str, tuple[int, int, int]]:
    """Return s1x1, e1x1 and e3x3 of fire2 to fire9 for the metaparameters (section 5.1).

    Module i, counted from 0, has e_i = base_e + incr_e * floor(i / freq) filters in its expand layer, of which
    pct_3x3 * e_i are 3x3, and sr * e_i filters in its squeeze layer. Raises ValueError if a count would be 0.
    """
    if freq < 1:
        raise ValueError(f"freq must be an integer >= 1, not {freq} (section 5.1)")
    if not (0 <= pct_3x3 <= 1 and 0 <= sr <= 1):
        raise ValueError(f"pct_3x3 and sr must be from 0 to 1, not {pct_3x3} and {sr} (section 5.1)")
    fire = {}
    for i in range(8):
        e = base_e + incr_e * (i // freq)
        e3x3, s1x1 = round(pct_3x3 * e), round(sr * e)
        if min(s1x1, e - e3x3, e3x3) < 1:
            raise ValueError(
                f"fire{i + 2} would have {s1x1} squeeze, {e - e3x3} 1x1 and {e3x3} 3x3 filters; each must be >= 1,"
                " as with base_e 128, pct_3x3 from 0.01 to 0.99 and sr from 0.125 to 1 (section 5)"
            )
        fire[f"fire{i + 2}"] = (s1x1, e - e3x3, e3x3)
    return fire


def squeezenet(
    *,
    bypass: str | None = None,
    base_e: int = 128,
    incr_e: int = 128,
    pct_3x3: float = 0.5,
    freq: int = 2,
    sr: float = 0.125,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> SqueezeNet:
    """Return SqueezeNet (Table 1): (N, 3, 227, 227) -> (N, 1000) scores.

    `bypass` is None, "simple" or "complex" (section 6). The metaparameters are those of section 5.1; `sr` is the
    squeeze ratio SR. Raises ValueError for invalid values.
    """
    if bypass not in (None, "simple", "complex"):
        raise ValueError(f"bypass {bypass!r} is not one of section 6: None, 'simple', 'complex'")
    conv1 = nn.Conv2d(in_channels, 96, 7, stride=2)
    fire = fire_module_sizes(base_e, incr_e, pct_3x3, freq, sr)
    return SqueezeNet(conv1, fire, (4, 8), bypass, num_classes)


def squeezenet_1_1(*, num_classes: int = 1000, in_channels: int = 3) -> SqueezeNet:
    """Return SqueezeNet 1.1, released by the authors after the paper: (N, 3, 227, 227) -> (N, 1000) scores."""
    conv1 = nn.Conv2d(in_channels, 64, 3, stride=2)
    return SqueezeNet(conv1, fire_module_sizes(128, 128, 0.5, 2, 0.125), (3, 5), None, num_classes)
