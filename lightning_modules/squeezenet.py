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
    dropout9     512 x  13 x  13     half of the values (section 3.3.1; no row in Table 1)
    conv10      1000 x  13 x  13     1x1 / 1                                         513,000
    avgpool10   1000 x   1 x   1     13x13 / 1
1,248,424 parameters, with simple bypass too; 1,589,672 with complex bypass, whose four 1x1 convolutions have
12,416 (fire2), 33,024 (fire4), 98,688 (fire6) and 197,120 (fire8).

The fire modules are what the metaparameters base_e = incr_e = 128, pct_3x3 = 0.5, freq = 2, SR = 0.125 give (5.1).

SqueezeNet 1.1 is not in the paper: the authors released it later beside their code. Its conv1 has 64 filters of
3x3, its pooling follows conv1, fire3 and fire5; 1,235,496 parameters. They say that it needs 2.4 times fewer
multiply-adds than 1.0; counted on 227 x 227, 387,747,520 are 2.1 times fewer than 832,667,936 (on 224 x 224: 2.3).

Departures from the paper:
  * Input is 227 x 227, as in the released configuration. The table prints 224, which would give conv1 109 x 109.

Left open by the paper, and what is done here:
  * Section 3.3.1 names ReLU for squeeze and expand layers only: conv1 and conv10 end in one too, as released.
  * Section 3.3 has maximum pooling after conv10 as well; Table 1 and the released configuration average there.
  * The initialisation is left to the released configuration: Caffe's "xavier", uniform with variance 1 / fan-in,
    for conv10 normal with standard deviation 0.01; biases zero. Complex bypass was not released: "xavier" as well.
  * The released conv10 pads its input by one pixel, so that its map is 15 x 15; here Table 1's 13 x 13.
  * The expand layer ends in its ReLU and the bypass is added after it, as released for simple bypass.
  * Pooling rounds sizes up, as Caffe does; from 227 x 227 that matters to version 1.1 only.
  * Sections 5.1 to 5.3 do not say how numbers of filters are rounded: to the nearest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import require_image

LEAST = {7: 21, 3: 17}  # conv1's kernel -> smallest image, in pixels, of which the last pooling leaves one value


class Fire(nn.Module):
    """Squeeze with 1x1 filters, then expand with 1x1 and 3x3 side by side (section 3.2).

    `bypass`, if there is one, leads the input around both and is added to the output (section 6).
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
    """conv1, the fire modules, conv10; pooling after the layers whose numbers are in `pooled`; no fc layer.

    `fire` has s1x1, e1x1 and e3x3 of fire2, fire3, ...; `bypass` is None, "simple" or "complex".
    """

    def __init__(
        self,
        conv1: nn.Conv2d,
        fire: dict[str, tuple[int, int, int]],
        pooled: tuple[int, ...],
        bypass: str | None,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = conv1.out_channels
        for number, (name, (s1x1, e1x1, e3x3)) in enumerate(fire.items(), start=2):
            way = bypass_for(bypass, channels, e1x1 + e3x3)
            self.add_module(name, Fire(channels, s1x1, e1x1, e3x3, way))
            if number in pooled:
                self.add_module(f"maxpool{number}", nn.MaxPool2d(3, 2, ceil_mode=True))
            channels = e1x1 + e3x3
        self.dropout9 = nn.Dropout(0.5)
        self.conv10 = nn.Conv2d(channels, num_classes, 1)
        self.avgpool10 = nn.AdaptiveAvgPool2d(1)
        self.apply(xavier)
        nn.init.normal_(self.conv10.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, mean subtracted -> (N, num_classes) scores, none of them negative.

        ValueError for images of which the pooling would leave nothing.
        """
        require_image(x, "SqueezeNet", least=LEAST[self.conv1.kernel_size[0]])
        for layer in self.children():
            x = layer(x)
            if isinstance(layer, nn.Conv2d):  # conv1 and conv10; a fire module has its own
                x = F.relu(x)
        return x.flatten(1)


def bypass_for(bypass: str | None, channels: int, width: int) -> nn.Module | None:
    """Simple: the input itself, where it has the output's channels. Complex: a 1x1 convolution elsewhere."""
    if bypass is not None and channels == width:
        return nn.Identity()
    return nn.Conv2d(channels, width, 1) if bypass == "complex" else None


def xavier(module: nn.Module) -> None:
    """Uniform with variance 1 / fan-in, as Caffe's filler of that name; biases zero."""
    if isinstance(module, nn.Conv2d):
        bound = (3 / module.weight[0].numel()) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fire_modules(
    base_e: int, incr_e: int, pct_3x3: float, freq: int, sr: float
) -> dict[str, tuple[int, int, int]]:
    """s1x1, e1x1 and e3x3 of fire2 to fire9 from the metaparameters (section 5.1); ValueError if one would be 0.

    Module i, counted from 0, has e_i = base_e + incr_e * floor(i / freq) filters in its expand layer, of which
    pct_3x3 * e_i are 3x3, and sr * e_i in its squeeze layer.
    """
    if freq < 1:
        raise ValueError(
            f"freq is {freq}; the expand layers grow after every 1 or more fire modules (section 5.1)"
        )
    if not (0 <= pct_3x3 <= 1 and 0 <= sr <= 1):
        raise ValueError(f"pct_3x3 is {pct_3x3} and sr is {sr}; both are shares from 0 to 1 (section 5.1)")
    fire = {}
    for i in range(8):
        e = base_e + incr_e * (i // freq)
        e3x3, s1x1 = round(pct_3x3 * e), round(sr * e)
        if min(s1x1, e - e3x3, e3x3) < 1:
            raise ValueError(
                f"fire{i + 2} would have {s1x1} squeeze, {e - e3x3} 1x1 and {e3x3} 3x3 filters and needs one"
                " or more of each; base_e 128, pct_3x3 from 0.01 to 0.99 and sr from 0.125 to 1 fit (section 5)"
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
    """SqueezeNet (Table 1): (N, 3, 227, 227) -> (N, 1000); `bypass` None, "simple" or "complex" (section 6).

    The metaparameters are those of section 5.1, the squeeze ratio SR being `sr`. ValueError for impossible ones.
    """
    if bypass not in (None, "simple", "complex"):
        raise ValueError(f"bypass {bypass!r} is not one of section 6: None, 'simple', 'complex'")
    conv1 = nn.Conv2d(in_channels, 96, 7, stride=2)
    fire = fire_modules(base_e, incr_e, pct_3x3, freq, sr)
    return SqueezeNet(conv1, fire, (4, 8), bypass, num_classes)


def squeezenet_1_1(*, num_classes: int = 1000, in_channels: int = 3) -> SqueezeNet:
    """SqueezeNet 1.1, not in the paper but released by its authors: (N, 3, 227, 227) -> (N, 1000)."""
    conv1 = nn.Conv2d(in_channels, 64, 3, stride=2)
    return SqueezeNet(conv1, fire_modules(128, 128, 0.5, 2, 0.125), (3, 5), None, num_classes)
