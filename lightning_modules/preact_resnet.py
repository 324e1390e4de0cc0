"""Pre-activation ResNets for CIFAR and the paper's alternatives. He et al. 2016, arXiv:1603.05027.

The networks for ImageNet are in `preact_resnet_imagenet`.

    layer   output (C x H x W)                                     weight layers of a unit
            1-layer, 110   164, 1001      units                    1-layer  110         164, 1001
    conv1   16 x 32 x 32    16 x 32 x 32  3x3, 16; then BN, ReLU
    map32   16 x 32 x 32    64 x 32 x 32  n                        3x3, 16  3x3, 16 x2  1x1, 16; 3x3, 16; 1x1, 64
    map16   32 x 16 x 16   128 x 16 x 16  n, the first: stride 2   3x3, 32  3x3, 32 x2  1x1, 32; 3x3, 32; 1x1, 128
    map8    64 x  8 x  8   256 x  8 x  8  n, the first: stride 2   3x3, 64  3x3, 64 x2  1x1, 64; 3x3, 64; 1x1, 256
    last    64 x  8 x  8   256 x  8 x  8  after pre-activation units: one more activation
    pool    64             256            global average
    fc      10 or 100                     softmax
A network has 3 n l + 2 weighted layers, l in each unit: n = 36, l = 1 for 110 layers with shortcuts that skip one
layer; n = 18, l = 2 for 110 (section 3.1); n = 18 and 111, l = 3 for 164 and 1001 (section 4.1).

    activation (Figure 4)       unit of two weight layers; BN and ReLU are always between the two
    original                            weight BN ReLU weight BN       addition ReLU
    BN after addition                   weight BN ReLU weight          addition BN ReLU
    ReLU before addition                weight BN ReLU weight BN ReLU  addition
    ReLU-only pre-activation       ReLU weight BN ReLU weight BN       addition
    full pre-activation         BN ReLU weight BN ReLU weight          addition
The pre-activation of the first unit follows conv1 directly, before the paths split. One more activation follows
the last addition. Where the shape changes, units of one and two layers use shortcut option A of arXiv:1512.03385.
Units of three layers use a projection, which reads the output of the pre-activation (appendix).

Parameters (weights, batch-norm scale and shift, fc bias), 10 classes: 1,727,962 (110 and 1-layer) with every
activation; 1,703,258 (164) and 10,327,706 (1001) with full pre-activation, 896 more with the others. Table 4
prints 1.7, 1.7 and 10.2 million: it counts weights only, of which 1001 layers have 10,178,480.

Left open by the paper, and what is done here:
  * Batch normalisation of projections: it follows them, as in arXiv:1512.03385. With full pre-activation there is
    none, since it would be between weight and addition; the authors' resnet-1k-layers has none either.
  * The stride of a unit of three layers is in its first 1x1, as in arXiv:1512.03385 and resnet-1k-layers.
  * Table 1 where the shape changes: the scaled, gated or dropped signal is option A's shortcut, and a gate has the
    unit's stride. The 1x1 convolutions of shortcuts are batch-normalised (Figure 2's caption); gates are not.
  * "Initialised as in" arXiv:1502.01852 allows fan-in or fan-out: this is fan-in, see `layers.he_normal`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import Projection, check_image_size, he_normal, shortcut_for

Activation = Literal[
    "original", "BN after addition", "ReLU before addition", "ReLU-only pre-activation", "full pre-activation"
]
# Layers before the first weight layer, after the last weight layer, and after the addition.
FIGURE_4: dict[str, tuple[str, str, str]] = {
    "original": ("", "BN", "ReLU"),
    "BN after addition": ("", "", "BN ReLU"),
    "ReLU before addition": ("", "BN ReLU", ""),
    "ReLU-only pre-activation": ("ReLU", "BN", ""),
    "full pre-activation": ("BN ReLU", "", ""),
}
ShortcutType = Literal[  # Table 1, which calls the first "original"
    "identity",
    "constant scaling",
    "exclusive gating",
    "shortcut-only gating",
    "1x1 conv shortcut",
    "dropout shortcut",
]
FIGURE_4_LAYER_NAMES: dict[type[nn.Module], str] = {nn.Conv2d: "weight", nn.BatchNorm2d: "BN", nn.ReLU: "ReLU"}
WeightLayers = Sequence[tuple[int, int]]  # kernel size and filters of each weight layer of a unit
WIDTHS = {"map32": 16, "map16": 32, "map8": 64}


@dataclass(frozen=True)
class ShortcutConfig:
    """A row of Table 1: the type of the shortcut and its constants."""

    type: ShortcutType = "identity"
    on_shortcut: float = 1.0  # factor of the shortcut
    on_f: float = 1.0  # factor of F
    b_g: float = 0.0  # initial bias of the gates


class Addition(nn.Module):
    """Sum of shortcut and F, each times a constant that is 1 except for constant scaling (Figure 2a, b)."""

    def __init__(self, on_shortcut: float, on_f: float) -> None:
        super().__init__()
        self.on_shortcut, self.on_f = on_shortcut, on_f

    def forward(self, x: Tensor, shortcut: Tensor, f: Tensor) -> Tensor:
        """Ignore the unit's input `x`; `shortcut`, `f` and the result have the shape of the unit's output."""
        if self.on_shortcut == self.on_f == 1:
            return shortcut + f
        return self.on_shortcut * shortcut + self.on_f * f


class Gating(nn.Module):
    """Sum of the shortcut times 1 - g(x) and F, with g(x) = sigmoid(W_g x + b_g) (Figure 2c, d).

    Exclusive gating also multiplies F by g(x).
    """

    def __init__(self, channels: int, width: int, stride: int, *, exclusive: bool, b_g: float) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, width, 1, stride=stride)
        self.exclusive, self.b_g = exclusive, b_g

    def forward(self, x: Tensor, shortcut: Tensor, f: Tensor) -> Tensor:
        """Gate with the unit's input `x`; `shortcut`, `f` and the result have the shape of the unit's output."""
        g = self.gate(x).sigmoid()
        return (1 - g) * shortcut + (g * f if self.exclusive else f)


class ResidualUnit(nn.Module):
    """Residual unit (Figures 2 and 4).

    The first unit of a network has no pre-activation of its own: the network applies it after conv1 (appendix).
    """

    def __init__(
        self,
        channels: int,
        weights: WeightLayers,
        stride: int,
        activation: Activation,
        config: ShortcutConfig,
        *,
        first: bool,
    ) -> None:
        super().__init__()
        before_first, after_last, after_addition = FIGURE_4[activation]
        self.pre = activation_layers("" if first else before_first, channels)
        self.residual = nn.Sequential()
        inputs = channels
        for i, (kernel, width) in enumerate(weights, start=1):
            conv_stride = stride if i == 1 else 1
            conv = nn.Conv2d(inputs, width, kernel, stride=conv_stride, padding=kernel // 2, bias=False)
            self.residual.add_module(f"conv{i}", conv)
            following = activation_layers(after_last if i == len(weights) else "BN ReLU", width)
            for name, layer in following.named_children():
                self.residual.add_module(f"{name}{i}", layer)
            inputs = width
        option: Literal["A", "B", "C"] = "B" if len(weights) == 3 else "A"
        if config.type == "1x1 conv shortcut":
            option = "C"
        self.shortcut = shortcut_for(option, channels, width, stride)
        self.projects = isinstance(self.shortcut, Projection)
        if self.projects and activation == "full pre-activation":
            conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv))
        if config.type == "dropout shortcut":
            self.shortcut = nn.Sequential(OrderedDict(identity=self.shortcut, dropout=nn.Dropout(0.5)))
        self.addition: nn.Module = Addition(config.on_shortcut, config.on_f)
        if "gating" in config.type:
            exclusive = config.type == "exclusive gating"
            self.addition = Gating(channels, width, stride, exclusive=exclusive, b_g=config.b_g)
        self.post = activation_layers(after_addition, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width of the last weight layer, H / stride, W / stride)."""
        activated = self.pre(x)
        shortcut = self.shortcut(activated if self.projects else x)
        return self.post(self.addition(x, shortcut, self.residual(activated)))

    @property
    def order(self) -> str:
        """Names of the unit's layers in order, as Figure 4 writes them."""
        path = (*self.pre, *self.residual, self.addition, *self.post)
        return " ".join(FIGURE_4_LAYER_NAMES.get(type(layer), "addition") for layer in path)


def activation_layers(names: str, channels: int) -> nn.Sequential:
    """Build the layers that Figure 4 calls "BN ReLU", "BN" or "ReLU"; none for ""."""
    layers = [("bn", nn.BatchNorm2d(channels)) if name == "BN" else ("relu", nn.ReLU()) for name in names.split()]
    return nn.Sequential(OrderedDict[str, nn.Module](layers))


def unit_stage(
    num_units: int,
    channels: int,
    weights: WeightLayers,
    stride: int,
    activation: Activation,
    config: ShortcutConfig,
) -> nn.Sequential:
    """Build the units on maps of one size; the first unit has `stride`, which is 1 only in the first stage."""
    units = nn.Sequential()
    for i in range(num_units):
        first = i == 0 and stride == 1
        units.append(ResidualUnit(channels, weights, stride if i == 0 else 1, activation, config, first=first))
        channels = weights[-1][1]
    return units


def bottleneck_weights(width: int) -> WeightLayers:
    """Return the weight layers of a bottleneck unit: 1x1 reduces, 3x3, 1x1 restores (section 4.1)."""
    return [(1, width), (3, width), (1, 4 * width)]


class PreActResNetCifar(nn.Module):
    """conv1, n units on each of three map sizes, fc (section 3.1, appendix)."""

    def __init__(
        self,
        depth: int,
        layers_per_unit: int,
        activation: Activation,
        config: ShortcutConfig,
        *,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        n = units_per_stage(depth, layers_per_unit)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for name, width in WIDTHS.items():
            weights = bottleneck_weights(width) if layers_per_unit == 3 else [(3, width)] * layers_per_unit
            stride = 1 if name == "map32" else 2
            self.add_module(name, unit_stage(n, channels, weights, stride, activation, config))
            channels = weights[-1][1]
        self.last = activation_layers(FIGURE_4[activation][0], channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(he_normal)
        for module in self.modules():
            if isinstance(module, Gating):
                nn.init.constant_(module.get_parameter("gate.bias"), module.b_g)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, mean subtracted, H and W >= 4 -> (N, num_classes) scores."""
        check_image_size(x, "a pre-activation ResNet for CIFAR", min_side=4)  # map8 is 1/4 of the image's side
        x = F.relu(self.bn1(self.conv1(x)))
        for name in WIDTHS:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool(self.last(x)).flatten(1))


def units_per_stage(depth: int, layers_per_unit: int) -> int:
    """Return n of depth = 3 n layers_per_unit + 2; raise ValueError with the nearest valid depths otherwise."""
    step = 3 * layers_per_unit
    n, rest = divmod(depth - 2, step)
    if rest or n < 1:
        below, above = step * max(n, 1) + 2, step * max(n + 1, 2) + 2
        raise ValueError(
            f"depth {depth} is not {step}n + 2 (section 3.1); the nearest valid depths are {below} and {above}"
        )
    return n


def shortcut_config(
    shortcut: ShortcutType, on_shortcut: float | None, on_f: float | None, b_g: float | None
) -> ShortcutConfig:
    """Return a row of Table 1; raise ValueError for a missing constant or one that the shortcut does not take."""
    if shortcut not in get_args(ShortcutType):
        raise ValueError(f"shortcut {shortcut!r} is not one of Table 1: {', '.join(get_args(ShortcutType))}")
    constants = {"on_shortcut": on_shortcut, "on_f": on_f, "b_g": b_g}
    given = {name: value for name, value in constants.items() if value is not None}
    required = ["b_g"] if "gating" in shortcut else ["on_shortcut", "on_f"] if "scaling" in shortcut else []
    if list(given) != required:
        takes, got = " and ".join(required) or "no constant", " and ".join(given) or "none"
        raise ValueError(f"shortcut {shortcut!r} takes {takes} (Table 1); given: {got}")
    return ShortcutConfig(shortcut, **given)


def check_activation(activation: str) -> None:
    """Raise ValueError unless `activation` is one of Figure 4."""
    if activation not in FIGURE_4:
        raise ValueError(f"activation {activation!r} is not one of Figure 4: {', '.join(FIGURE_4)}")


def preact_resnet_cifar(
    *,
    depth: int,
    layers_per_unit: Literal[1, 2, 3],
    activation: Activation = "full pre-activation",
    shortcut: ShortcutType = "identity",
    on_shortcut: float | None = None,
    on_f: float | None = None,
    b_g: float | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
) -> PreActResNetCifar:
    """Return a network of Tables 1 to 4.

    ResNet-110 has 2 layers in each unit, 164 and 1001 have 3, and "1-layer" has 1. `activation` is a row of
    Table 2. `shortcut` is a row of Table 1, whose networks have units of two layers and original activation:
    "constant scaling" takes the factors `on_shortcut` and `on_f`, the two gatings take the initial bias `b_g`.
    Raises ValueError for a depth that is not 3 x layers_per_unit x n + 2, and for combinations that are not in the
    tables.
    """
    if layers_per_unit not in (1, 2, 3):
        raise ValueError(f"layers_per_unit {layers_per_unit} is not one of section 4.1: 1, 2, 3")
    check_activation(activation)
    config = shortcut_config(shortcut, on_shortcut, on_f, b_g)
    if shortcut != "identity" and (layers_per_unit, activation) != (2, "original"):
        raise ValueError(f"shortcut {shortcut!r} requires layers_per_unit 2 and activation 'original' (Table 1)")
    return PreActResNetCifar(
        depth, layers_per_unit, activation, config, num_classes=num_classes, in_channels=in_channels
    )
