"""GoogLeNet. Szegedy et al. 2014, arXiv:1409.4842, Table 1 and Figure 3.

    layer         output (C x H x W)   1x1   3x3 reduce   3x3   5x5 reduce   5x5   pool proj      weights
    conv1           64 x 112 x 112     7x7/2                                                        9,408
    pool1           64 x  56 x  56     max 3x3/2
    lrn1            64 x  56 x  56
    conv2_reduce    64 x  56 x  56     1x1/1                                                        4,096
    conv2          192 x  56 x  56     3x3/1                                                      110,592
    lrn2           192 x  56 x  56
    pool2          192 x  28 x  28     max 3x3/2
    inception3a    256 x  28 x  28      64       96       128       16        32      32          163,328
    inception3b    480 x  28 x  28     128      128       192       32        96      64          388,096
    pool3          480 x  14 x  14     max 3x3/2
    inception4a    512 x  14 x  14     192       96       208       16        48      64          375,552
    inception4b    512 x  14 x  14     160      112       224       24        64      64          448,512
    inception4c    512 x  14 x  14     128      128       256       24        64      64          509,440
    inception4d    528 x  14 x  14     112      144       288       32        64      64          604,672
    inception4e    832 x  14 x  14     256      160       320       32       128     128          867,328
    pool4          832 x   7 x   7     max 3x3/2
    inception5a    832 x   7 x   7     256      160       320       32       128     128        1,042,432
    inception5b   1024 x   7 x   7     384      192       384       48       128     128        1,442,816
    avgpool       1024 x   1 x   1     7x7/1
    dropout       1024 x   1 x   1     40 %
    linear        1000                                                                          1,024,000
6,998,552 parameters with biases, 13,378,280 with both auxiliary classifiers; 1,582,671,872 multiply-adds.
22 layers with weights on the path from the image to the scores. ReLU follows every convolution, and the fc of aux1
and aux2.

aux1 reads inception4a, aux2 inception4d (section 5): average pooling 5x5/3, 128 filters of 1x1, fc of 1024,
dropout 70 %, linear. Their losses have weight 0.3 each. They are not used in evaluation.

Left open by the paper, and what is done here:
  * Padding: the padding that gives the table's output sizes; poolings with stride 2 round up, 112 to 56, not 55.
  * Constants of the local response normalisation of Figure 3: those of Krizhevsky et al. (2012).
  * Initialisation: He normal. It preserves the signal's variance through 22 layers without batch normalisation.
  * Some parameters and operations of Table 1 do not match its filters: for conv1 it prints 2.7 K, while 7x7
    filters over 3 channels have 9.4 K. (8 depthwise filters per channel, then 64 filters of 1x1, have 2,712.) The
    filters here are those that the table and Figure 3 name.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import check_image_size, he_normal, lrn

# Rows 3a to 5b of Table 1. Filters: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj. None: max pooling.
INCEPTION_ROWS: dict[str, tuple[int, int, int, int, int, int] | None] = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "pool3": None,
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "pool4": None,
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
AUX_CLASSIFIERS = {"inception4a": "aux1", "inception4d": "aux2"}  # input layer: name (section 5)


class Inception(nn.Module):
    """Parallel 1x1, 3x3 and 5x5 convolutions and max pooling, with 1x1 reductions (Figure 2b)."""

    def __init__(
        self, channels: int, n1x1: int, n3x3_reduce: int, n3x3: int, n5x5_reduce: int, n5x5: int, pool_proj: int
    ) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, n1x1, 1)
        self.conv3x3_reduce = nn.Conv2d(channels, n3x3_reduce, 1)
        self.conv3x3 = nn.Conv2d(n3x3_reduce, n3x3, 3, padding=1)
        self.conv5x5_reduce = nn.Conv2d(channels, n5x5_reduce, 1)
        self.conv5x5 = nn.Conv2d(n5x5_reduce, n5x5, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_proj = nn.Conv2d(channels, pool_proj, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, n1x1 + n3x3 + n5x5 + pool_proj, H, W)."""
        y3x3 = self.conv3x3(F.relu(self.conv3x3_reduce(x)))
        y5x5 = self.conv5x5(F.relu(self.conv5x5_reduce(x)))
        return F.relu(torch.cat([self.conv1x1(x), y3x3, y5x5, self.pool_proj(self.pool(x))], dim=1))


class NaiveInception(nn.Module):
    """Inception module without 1x1 reductions: the pooling branch keeps all channels (Figure 2a)."""

    def __init__(self, channels: int, n1x1: int, n3x3: int, n5x5: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, n1x1, 1)
        self.conv3x3 = nn.Conv2d(channels, n3x3, 3, padding=1)
        self.conv5x5 = nn.Conv2d(channels, n5x5, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, n1x1 + n3x3 + n5x5 + channels, H, W)."""
        convolved = F.relu(torch.cat([self.conv1x1(x), self.conv3x3(x), self.conv5x5(x)], dim=1))
        return torch.cat([convolved, self.pool(x)], dim=1)


class AuxiliaryClassifier(nn.Module):
    """Classifier on intermediate feature maps, which adds gradient to the lower layers (section 5)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv = nn.Conv2d(channels, 128, 1)
        self.fc = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, 14, 14) -> (N, num_classes) scores."""
        x = F.relu(self.conv(self.pool(x))).flatten(1)  # (N, 128, 4, 4) -> (N, 2048)
        return self.linear(self.dropout(F.relu(self.fc(x))))


class GoogLeNet(nn.Module):
    """The network of Table 1. `aux_weight` is the weight of the losses of aux1 and aux2."""

    aux_weight: float = 0.3  # section 5

    def __init__(self, aux: bool, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.lrn1 = lrn()
        self.conv2_reduce = nn.Conv2d(64, 64, 1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.lrn2 = lrn()
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        channels, aux_classifiers = 192, {}
        for name, filters in INCEPTION_ROWS.items():
            if filters is None:
                self.add_module(name, nn.MaxPool2d(3, stride=2, ceil_mode=True))
                continue
            n1x1, _, n3x3, _, n5x5, pool_proj = filters
            self.add_module(name, Inception(channels, *filters))
            channels = n1x1 + n3x3 + n5x5 + pool_proj
            if aux and name in AUX_CLASSIFIERS:
                aux_classifiers[AUX_CLASSIFIERS[name]] = AuxiliaryClassifier(channels, num_classes)
        self.avgpool = nn.AvgPool2d(7, stride=1)
        self.dropout = nn.Dropout(0.4)
        self.linear = nn.Linear(channels, num_classes)
        for name, classifier in aux_classifiers.items():
            self.add_module(name, classifier)
        self.has_aux = aux
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """(N, C, 224, 224) images, mean subtracted -> (N, num_classes) scores. ValueError for another size.

        In training with auxiliary classifiers returns (scores, scores of aux1, scores of aux2).
        """
        check_image_size(x, "googlenet", side=224)
        x, aux_scores = self.feature_maps(x, aux=self.training and self.has_aux)
        scores = self.linear(self.dropout(self.avgpool(x)).flatten(1))
        return (scores, *aux_scores) if aux_scores else scores

    def dense(self, x: Tensor) -> Tensor:
        """Return the mean scores over all places of the last feature maps: (N, C, H, W) -> (N, num_classes).

        Applies `linear` to the mean of the feature maps; it is linear, so this is the mean of its scores. Equals
        `forward` on 224 x 224 in evaluation mode. Raises ValueError below 32 x 32. Not in the paper, which
        evaluates crops only.
        """
        check_image_size(x, "googlenet, applied densely,", min_side=32)
        x, _ = self.feature_maps(x, aux=False)
        return self.linear(self.dropout(x.mean((2, 3))))

    def feature_maps(self, x: Tensor, *, aux: bool) -> tuple[Tensor, list[Tensor]]:
        """Return the feature maps of inception5b, and with `aux` the scores of aux1 and aux2.

        (N, C, H, W) -> (N, 1024, H / 32, W / 32), rounded up.
        """
        x = self.lrn1(self.pool1(F.relu(self.conv1(x))))
        x = F.relu(self.conv2(F.relu(self.conv2_reduce(x))))
        x = self.pool2(self.lrn2(x))
        aux_scores = []
        for name in INCEPTION_ROWS:
            x = self.get_submodule(name)(x)
            if aux and name in AUX_CLASSIFIERS:
                aux_scores.append(self.get_submodule(AUX_CLASSIFIERS[name])(x))
        return x, aux_scores


def googlenet(*, aux: bool = True, num_classes: int = 1000, in_channels: int = 3) -> GoogLeNet:
    """Build the network of Table 1, with or without the auxiliary classifiers of training."""
    return GoogLeNet(aux, num_classes=num_classes, in_channels=in_channels)


def inception_naive(*, num_classes: int = 1000, in_channels: int = 256) -> nn.Sequential:
    """Build the example of Figure 2a in Stanford CS231n, lecture 9, for 256 maps of 28 x 28."""
    return with_classifier(NaiveInception(in_channels, 128, 192, 96), 128 + 192 + 96 + in_channels, num_classes)


def inception_bottleneck(*, num_classes: int = 1000, in_channels: int = 256) -> nn.Sequential:
    """Build the same lecture's example of Figure 2b, with 64 filters in each 1x1 reduction and projection."""
    return with_classifier(Inception(in_channels, 128, 64, 192, 64, 96, 64), 128 + 192 + 96 + 64, num_classes)


def with_classifier(inception: nn.Module, channels: int, num_classes: int) -> nn.Sequential:
    """Append global average pooling and a linear layer, not in the lecture: every network must return scores."""
    rows = OrderedDict[str, nn.Module](
        inception=inception,
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(channels, num_classes),
    )
    return nn.Sequential(rows).apply(he_normal)
