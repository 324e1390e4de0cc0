"""Pre-activation and its rivals on CIFAR. He et al. 2016, arXiv:1603.05027 (ImageNet: `preact_resnet_imagenet`).

    layer   output (C x H x W)                                     weight layers of a unit
            1-layer, 110   164, 1001      units                    1-layer  110         164, 1001
    conv1   16 x 32 x 32    16 x 32 x 32  3x3, 16; then BN, ReLU
    map32   16 x 32 x 32    64 x 32 x 32  n                        3x3, 16  3x3, 16 x2  1x1, 16; 3x3, 16; 1x1, 64
    map16   32 x 16 x 16   128 x 16 x 16  n, the first: stride 2   3x3, 32  3x3, 32 x2  1x1, 32; 3x3, 32; 1x1, 128
    map8    64 x  8 x  8   256 x  8 x  8  n, the first: stride 2   3x3, 64  3x3, 64 x2  1x1, 64; 3x3, 64; 1x1, 256
    last    64 x  8 x  8   256 x  8 x  8  after pre-activation units: one more activation
    pool    64             256            global average
    fc      10 or 100                     softmax
3 n l + 2 weighted layers, l of them to a unit: n = 36, l = 1 for the 110 layers whose shortcuts skip one layer;
n = 18, l = 2 for 110 (section 3.1); n = 18 and 111, l = 3 for 164 and 1001 (section 4.1).

    activation (Figure 4)       a unit of two weight layers; BN and ReLU always stand between two
    original                            weight BN ReLU weight BN       addition ReLU
    BN after addition                   weight BN ReLU weight          addition BN ReLU
    ReLU before addition                weight BN ReLU weight BN ReLU  addition
    ReLU-only pre-activation       ReLU weight BN ReLU weight BN       addition
    full pre-activation         BN ReLU weight BN ReLU weight          addition
The pre-activation of the first unit stands right after conv1, before the paths split, and one more stands after
the last addition. Where the size changes, the shortcut of units of one and two layers is option A of
arXiv:1512.03385; that of three is a projection, which a pre-activation precedes, too (appendix).

Parameters (weights, batch-norm scale and shift, fc bias), 10 classes: 1,727,962 (110 and 1-layer) with every
activation; 1,703,258 (164) and 10,327,706 (1001) with full pre-activation, 896 more with another. Table 4 prints
1.7, 1.7 and 10.2 million: weights alone, as 1001 has 10,178,480 of them.

Left open by the paper, and what is done here:
  * Batch-norm of projections: after them as in arXiv:1512.03385, save with full pre-activation, where it would
    stand between weight and addition; the authors' resnet-1k-layers has none there either.
  * The stride of a unit of three layers is in its first 1x1, as in arXiv:1512.03385 and resnet-1k-layers.
  * Table 1 where the size changes: what is scaled, gated or dropped is option A's shortcut, and a gate has the
    unit's stride. The 1x1 convolutions of shortcuts are batch-normalised (Figure 2's caption), gates are not.
  * "Initialised as in" arXiv:1502.01852 allows fan-in or fan-out: fan-in, see `layers.he_normal`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import Projection, he_normal, require_image, shortcut_for

Activation = Literal[
    "original", "BN after addition", "ReLU before addition", "ReLU-only pre-activation", "full pre-activation"
]
FIGURE_4: dict[str, tuple[str, str, str]] = {  # before the first weight layer, after the last, after the addition
    "original": ("", "BN", "ReLU"),
    "BN after addition": ("", "", "BN ReLU"),
    "ReLU before addition": ("", "BN ReLU", ""),
    "ReLU-only pre-activation": ("ReLU", "BN", ""),
    "full pre-activation": ("BN ReLU", "", ""),
}
Shortcut = Literal[  # Table 1, where the first is called "original"
    "identity",
    "constant scaling",
    "exclusive gating",
    "shortcut-only gating",
    "1x1 conv shortcut",
    "dropout shortcut",
]
WORDS: dict[type[nn.Module], str] = {nn.Conv2d: "weight", nn.BatchNorm2d: "BN", nn.ReLU: "ReLU"}
Weights = Sequence[tuple[int, int]]  # side and number of the filters of a unit's weight layers
WIDTHS = {"map32": 16, "map16": 32, "map8": 64}


@dataclass(frozen=True)
class Joint:
    """A row of Table 1: how shortcut and F come together. `b_g` is the initial bias of gates."""

    shortcut: Shortcut = "identity"
    on_shortcut: float = 1.0
    on_f: float = 1.0
    b_g: float = 0.0


class Addition(nn.Module):
    """Shortcut and F added, each times a constant: 1 save for constant scaling (Figure 2a, b)."""

    def __init__(self, on_shortcut: float, on_f: float) -> None:
        super().__init__()
        self.on_shortcut, self.on_f = on_shortcut, on_f

    def forward(self, x: Tensor, shortcut: Tensor, f: Tensor) -> Tensor:
        """x is the unit's input, not needed here; the others have its output's shape."""
        if self.on_shortcut == self.on_f == 1:
            return shortcut + f
        return self.on_shortcut * shortcut + self.on_f * f


class Gating(nn.Module):
    """The shortcut times 1 - g(x), F times g(x) if exclusive (Figure 2c, d); g(x) = sigmoid(W_g x + b_g)."""

    def __init__(self, channels: int, width: int, stride: int, *, exclusive: bool, b_g: float) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, width, 1, stride=stride)
        self.exclusive, self.b_g = exclusive, b_g

    def forward(self, x: Tensor, shortcut: Tensor, f: Tensor) -> Tensor:
        """x is the unit's input; the others have its output's shape."""
        g = self.gate(x).sigmoid()
        return (1 - g) * shortcut + (g * f if self.exclusive else f)


class Unit(nn.Module):
    """A residual unit (Figures 2 and 4); the first of a net finds its pre-activation done (appendix)."""

    def __init__(
        self, channels: int, weights: Weights, stride: int, activation: Activation, joint: Joint, *, first: bool
    ) -> None:
        super().__init__()
        before, after_last, after_addition = FIGURE_4[activation]
        self.pre = layers("" if first else before, channels)
        self.residual = nn.Sequential()
        inputs = channels
        for i, (kernel, width) in enumerate(weights, start=1):
            step = stride if i == 1 else 1
            conv = nn.Conv2d(inputs, width, kernel, stride=step, padding=kernel // 2, bias=False)
            self.residual.add_module(f"conv{i}", conv)
            for name, layer in layers(after_last if i == len(weights) else "BN ReLU", width).named_children():
                self.residual.add_module(f"{name}{i}", layer)
            inputs = width
        option: Literal["A", "B", "C"] = "B" if len(weights) == 3 else "A"
        if joint.shortcut == "1x1 conv shortcut":
            option = "C"
        self.shortcut = shortcut_for(option, channels, width, stride)
        self.projects = isinstance(self.shortcut, Projection)
        if self.projects and activation == "full pre-activation":
            conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv))
        if joint.shortcut == "dropout shortcut":
            self.shortcut = nn.Sequential(OrderedDict(identity=self.shortcut, dropout=nn.Dropout(0.5)))
        self.addition: nn.Module = Addition(joint.on_shortcut, joint.on_f)
        if "gating" in joint.shortcut:
            exclusive = joint.shortcut == "exclusive gating"
            self.addition = Gating(channels, width, stride, exclusive=exclusive, b_g=joint.b_g)
        self.post = layers(after_addition, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width of the last weight layer, H / stride, W / stride)."""
        activated = self.pre(x)
        shortcut = self.shortcut(activated if self.projects else x)
        return self.post(self.addition(x, shortcut, self.residual(activated)))

    @property
    def order(self) -> str:
        """What stands where, read off the layers in Figure 4's words."""
        path = (*self.pre, *self.residual, self.addition, *self.post)
        return " ".join(WORDS.get(type(layer), "addition") for layer in path)


def layers(words: str, channels: int) -> nn.Sequential:
    """What Figure 4 calls "BN ReLU", "BN", "ReLU" or nothing."""
    made = [("bn", nn.BatchNorm2d(channels)) if word == "BN" else ("relu", nn.ReLU()) for word in words.split()]
    return nn.Sequential(OrderedDict[str, nn.Module](made))


def stack(
    units: int, channels: int, weights: Weights, stride: int, activation: Activation, joint: Joint
) -> nn.Sequential:
    """The units on maps of one size; `stride` is the first one's, 1 for those right after conv1."""
    made = nn.Sequential()
    for i in range(units):
        first = i == 0 and stride == 1
        made.append(Unit(channels, weights, stride if i == 0 else 1, activation, joint, first=first))
        channels = weights[-1][1]
    return made


def bottleneck(width: int) -> Weights:
    """The unit of three layers: 1x1 reduces, 3x3, 1x1 restores (section 4.1)."""
    return [(1, width), (3, width), (1, 4 * width)]


class CifarNet(nn.Module):
    """conv1, `per_unit` weight layers to a unit, n units to a size of map, fc (section 3.1, appendix)."""

    def __init__(
        self,
        depth: int,
        per_unit: int,
        activation: Activation,
        joint: Joint,
        *,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        n = units_per_map(depth, per_unit)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for name, width in WIDTHS.items():
            weights = bottleneck(width) if per_unit == 3 else [(3, width)] * per_unit
            self.add_module(name, stack(n, channels, weights, 1 if name == "map32" else 2, activation, joint))
            channels = weights[-1][1]
        self.last = layers(FIGURE_4[activation][0], channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(he_normal)
        for module in self.modules():
            if isinstance(module, Gating):
                nn.init.constant_(module.get_parameter("gate.bias"), module.b_g)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images, mean subtracted, H and W from 4 -> (N, num_classes) scores."""
        require_image(x, "a pre-activation ResNet for CIFAR", least=4)  # a pixel of map8 stands for 4 of the image
        x = F.relu(self.bn1(self.conv1(x)))
        for name in WIDTHS:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool(self.last(x)).flatten(1))


def units_per_map(depth: int, per_unit: int) -> int:
    """n of depth = 3 n per_unit + 2; ValueError names the depths that would fit."""
    step = 3 * per_unit
    n, rest = divmod(depth - 2, step)
    if rest or n < 1:
        below, above = step * max(n, 1) + 2, step * max(n + 1, 2) + 2
        raise ValueError(f"depth {depth} is not {step}n + 2 (section 3.1); the nearest that are: {below}, {above}")
    return n


def table_1(shortcut: Shortcut, on_shortcut: float | None, on_f: float | None, b_g: float | None) -> Joint:
    """A row of Table 1; ValueError where a number of its is missing, or another's is given."""
    if shortcut not in get_args(Shortcut):
        raise ValueError(f"shortcut {shortcut!r} is not one of Table 1: {', '.join(get_args(Shortcut))}")
    numbers = {"on_shortcut": on_shortcut, "on_f": on_f, "b_g": b_g}
    given = {name: value for name, value in numbers.items() if value is not None}
    needed = ["b_g"] if "gating" in shortcut else ["on_shortcut", "on_f"] if "scaling" in shortcut else []
    if list(given) != needed:
        takes, got = " and ".join(needed) or "no number", " and ".join(given) or "none"
        raise ValueError(f"shortcut {shortcut!r} takes {takes} (Table 1), and was given {got}")
    return Joint(shortcut, **given)


def require_activation(activation: str) -> None:
    """ValueError unless it is one of Figure 4."""
    if activation not in FIGURE_4:
        raise ValueError(f"activation {activation!r} is not one of Figure 4: {', '.join(FIGURE_4)}")


def preact_resnet_cifar(
    *,
    depth: int,
    layers_per_unit: Literal[1, 2, 3],
    activation: Activation = "full pre-activation",
    shortcut: Shortcut = "identity",
    on_shortcut: float | None = None,
    on_f: float | None = None,
    b_g: float | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
) -> CifarNet:
    """The nets of Tables 1 to 4; ResNet-110 has 2 layers to a unit, 164 and 1001 have 3, "1 layer" has 1.

    `activation` is a row of Table 2. `shortcut` is a row of Table 1, which has units of two layers and original
    activation: "constant scaling" takes the factors `on_shortcut` and `on_f`, a gating its initial bias `b_g`.
    ValueError for a depth that is not 3 x layers_per_unit x n + 2, and for what the tables do not have.
    """
    if layers_per_unit not in (1, 2, 3):
        raise ValueError(f"layers_per_unit {layers_per_unit} is not one of section 4.1: 1, 2, 3")
    require_activation(activation)
    joint = table_1(shortcut, on_shortcut, on_f, b_g)
    if shortcut != "identity" and (layers_per_unit, activation) != (2, "original"):
        raise ValueError(f"shortcut {shortcut!r} needs layers_per_unit 2 and activation 'original' (Table 1)")
    return CifarNet(depth, layers_per_unit, activation, joint, num_classes=num_classes, in_channels=in_channels)
