"""Small networks that try single ideas of a lecture. Stanford CS231n, lecture 9, "CNN architectures".

The lecture compares ImageNet networks that differ in many ways. Each pair here differs in one, and reads small
images. C is `WIDTH` = 32. Convolutions keep the size of the map, and ReLU follows each of them.

    stack_cnn: three 3x3 layers or one 7x7 layer (on VGG)     lrn_cnn: normalisation or none (on AlexNet and VGG)
    conv1    C, 3x3                                           conv1    C, 3x3; lrn1; pool1, max 2x2
    stack    3 x [C, 3x3] or 1 x [C, 7x7]                     conv2    2C, 3x3; lrn2; pool2, max 2x2
    pool1    max 2x2                                          conv3    2C, 3x3
    conv2    2C, 3x3                                          pool     global average
    pool     global average                                   fc       classes
    fc       classes

    head_cnn: global average or full connections (on          inception_cnn: 1x1 reductions or none, auxiliary
    NIN, GoogLeNet and ResNet)                                classifier or none (on GoogLeNet)
    conv1    C, 3x3; pool1, max 2x2                           conv1        C, 3x3
    conv2    2C, 3x3                                          inception1   16, 32, 16 maps, and the pooling branch
    conv3    2C, 3x3                                          pool1        max 2x2
    pool     global average, or average to 4x4                inception2   inception3   inception4
    fc1      128, only with full connections                  pool         global average
    fc       classes                                          fc           classes

    chain_cifar: DenseNet's layers without dense connections (on DenseNet): as `densenet_cifar`, but each layer
    reads the one before it alone.

Left open by the lecture, and what is done here:
  * All sizes. The lecture gives none for networks that differ in a single idea.
  * Initialisation: He normal. Only `chain_cifar` has batch normalisation.
  * The auxiliary classifier reads inception2: global average pooling and a linear layer; its loss has GoogLeNet's
    weight, 0.3 (arXiv:1409.4842, section 5). It is not used in evaluation.
"""

from collections import OrderedDict
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.googlenet import Inception, NaiveInception
from lightning_modules.layers import he_normal, lrn

WIDTH = 32  # C
HEAD_MAP, HEAD_UNITS = 4, 128  # side of the maps that full connections read, and their hidden units
BRANCHES = 16, 32, 16  # maps of the 1x1, 3x3 and 5x5 branches
REDUCED = 16  # maps of each 1x1 reduction and of the pooling branch's projection
INCEPTIONS, AUX_INPUT = ("inception1", "inception2", "inception3", "inception4"), "inception2"
GROUPS, CHAIN_START = 3, 16  # densenet_cifar's blocks, and its first convolution's filters

Relu = Literal["every", "last"]
Head = Literal["average", "fc"]
Module = Literal["naive", "bottleneck"]


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")


def same_conv_relu(channels: int, filters: int, kernel: int = 3, *, relu: bool = True) -> nn.Sequential:
    """Return a convolution that keeps the size of the map, with ReLU unless `relu` is false."""
    layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(channels, filters, kernel, padding=kernel // 2))
    return nn.Sequential(layers | ({"relu": nn.ReLU()} if relu else {}))


def average_head(channels: int, num_classes: int) -> dict[str, nn.Module]:
    """Return global average pooling and a linear layer: (N, channels, H, W) -> (N, num_classes)."""
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, num_classes)}


def stack_cnn(
    *, kernel: int, layers: int, relu: Relu = "every", num_classes: int = 10, in_channels: int = 3
) -> nn.Sequential:
    """Return a network with a stack of `layers` convolutions of `kernel` x `kernel`: (N, C, H, W) -> (N, classes).

    With `relu="last"` the layers inside the stack are linear, which separates depth from non-linearity. Raises
    ValueError for an even kernel size, or layers < 1.
    """
    require_choice("relu", relu, get_args(Relu))
    if kernel < 1 or kernel % 2 == 0 or layers < 1:
        raise ValueError(f"kernel must be an odd integer >= 1 and layers >= 1, not {kernel} and {layers}")
    stack = OrderedDict[str, nn.Module](
        (f"layer{number}", same_conv_relu(WIDTH, WIDTH, kernel, relu=relu == "every" or number == layers))
        for number in range(1, layers + 1)
    )
    rows = OrderedDict[str, nn.Module](
        conv1=same_conv_relu(in_channels, WIDTH),
        stack=nn.Sequential(stack),
        pool1=nn.MaxPool2d(2),
        conv2=same_conv_relu(WIDTH, 2 * WIDTH),
    )
    return nn.Sequential(rows | average_head(2 * WIDTH, num_classes)).apply(he_normal)


def lrn_cnn(*, normalise: bool, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Return a network with local response normalisation, or without: (N, C, H, W) -> (N, num_classes) scores."""
    rows = OrderedDict[str, nn.Module](conv1=same_conv_relu(in_channels, WIDTH))
    if normalise:
        rows["lrn1"] = lrn()
    rows |= {"pool1": nn.MaxPool2d(2), "conv2": same_conv_relu(WIDTH, 2 * WIDTH)}
    if normalise:
        rows["lrn2"] = lrn()
    rows |= {"pool2": nn.MaxPool2d(2), "conv3": same_conv_relu(2 * WIDTH, 2 * WIDTH)}
    return nn.Sequential(rows | average_head(2 * WIDTH, num_classes)).apply(he_normal)


def head_cnn(*, head: Head, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Return a network that ends with global average pooling or with full connections: (N, C, H, W) -> scores.

    Images have at least 8 x 8 pixels, so that full connections read maps of 4 x 4.
    """
    require_choice("head", head, get_args(Head))
    rows = OrderedDict[str, nn.Module](
        conv1=same_conv_relu(in_channels, WIDTH),
        pool1=nn.MaxPool2d(2),
        conv2=same_conv_relu(WIDTH, 2 * WIDTH),
        conv3=same_conv_relu(2 * WIDTH, 2 * WIDTH),
    )
    if head == "average":
        return nn.Sequential(rows | average_head(2 * WIDTH, num_classes)).apply(he_normal)
    rows |= {
        "pool": nn.AdaptiveAvgPool2d(HEAD_MAP),
        "flatten": nn.Flatten(),  # (N, 64, 4, 4) -> (N, 1024)
        "fc1": nn.Linear(2 * WIDTH * HEAD_MAP**2, HEAD_UNITS),
        "relu1": nn.ReLU(),
        "fc": nn.Linear(HEAD_UNITS, num_classes),
    }
    return nn.Sequential(rows).apply(he_normal)


class InceptionCnn(nn.Module):
    """Four Inception modules, with 1x1 reductions or without. `aux_weight` is the weight of the auxiliary loss."""

    aux_weight: float = 0.3  # arXiv:1409.4842, section 5

    def __init__(self, module: Module, *, aux: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = same_conv_relu(in_channels, WIDTH)
        self.pool1 = nn.MaxPool2d(2)
        n1x1, n3x3, n5x5 = BRANCHES
        channels = WIDTH
        for name in INCEPTIONS:
            if module == "naive":  # the pooling branch keeps all channels
                self.add_module(name, NaiveInception(channels, n1x1, n3x3, n5x5))
                channels += n1x1 + n3x3 + n5x5
            else:
                self.add_module(name, Inception(channels, n1x1, REDUCED, n3x3, REDUCED, n5x5, REDUCED))
                channels = n1x1 + n3x3 + n5x5 + REDUCED
            if name == AUX_INPUT and aux:
                self.aux = nn.Sequential(OrderedDict(average_head(channels, num_classes)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.has_aux = aux
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, H, W) images -> (N, num_classes) scores; in training with `aux` also the auxiliary scores."""
        x, aux_scores = self.conv1(x), None
        for name in INCEPTIONS:
            x = self.get_submodule(name)(x)
            if name == "inception1":
                x = self.pool1(x)
            if name == AUX_INPUT and self.training and self.has_aux:
                aux_scores = self.aux(x)
        scores = self.fc(self.pool(x).flatten(1))
        return scores if aux_scores is None else (scores, aux_scores)


def inception_cnn(
    *, module: Module, aux: bool = False, num_classes: int = 10, in_channels: int = 3
) -> InceptionCnn:
    """Return a network of Inception modules as in Figure 2a (naive) or 2b (bottleneck) of arXiv:1409.4842."""
    require_choice("module", module, get_args(Module))
    return InceptionCnn(module, aux=aux, num_classes=num_classes, in_channels=in_channels)


class ChainLayer(nn.Module):
    """Batch normalisation, ReLU and a 3x3 convolution: a layer of a dense block, which here replaces its input."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, filters, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, filters, H, W)."""
        return self.conv(F.relu(self.bn(x)))


def chain_cifar(*, depth: int, k: int, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Return the chain of a DenseNet's layers: 3 groups of (depth - 4) / 3 layers with k filters each.

    Between the groups, average pooling halves the maps, after a 1x1 layer, as in DenseNet's transitions
    (arXiv:1608.06993, section 3). Raises ValueError if depth is not 3n + 4.
    """
    layers, rest = divmod(depth - 4, GROUPS)
    if rest or layers < 1:
        raise ValueError(f"depth {depth} is not 3n + 4, with n >= 1")
    rows = OrderedDict[str, nn.Module](conv1=nn.Conv2d(in_channels, CHAIN_START, 3, padding=1, bias=False))
    channels = CHAIN_START
    for group in range(1, GROUPS + 1):
        for number in range(1, layers + 1):
            rows[f"group{group}_{number}"] = ChainLayer(channels, k)
            channels = k
        if group < GROUPS:
            rows[f"transition{group}_bn"] = nn.BatchNorm2d(k)
            rows[f"transition{group}_relu"] = nn.ReLU()
            rows[f"transition{group}_conv"] = nn.Conv2d(k, k, 1, bias=False)
            rows[f"transition{group}_pool"] = nn.AvgPool2d(2)
    rows |= {"bn": nn.BatchNorm2d(k), "relu": nn.ReLU()}
    return nn.Sequential(rows | average_head(k, num_classes)).apply(he_normal)
