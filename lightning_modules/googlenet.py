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
22 layers with weights lie between the image and the scores. ReLU follows every convolution, and aux's fc.

aux1 reads inception4a, aux2 inception4d (section 5): average pooling 5x5/3, 128 filters of 1x1, fc of 1024,
dropout 70 %, linear. Their losses count 0.3 each, and they are absent when evaluating.

Left open by the paper, and what is done here:
  * Padding: as large as keeps the table's sizes; poolings with stride 2 round up, so that 112 becomes 56, not 55.
  * The constants of the local response normalisation of Figure 3: those of Krizhevsky et al. (2012).
  * Initialisation: He's normal one. It keeps the size of the signal through 22 layers without batch normalisation.
  * Table 1's columns of parameters and operations do not all belong to its filters: for conv1 it prints 2.7 K,
    where 7x7 over 3 channels have 9.4 K. (8 such filters for each channel alone, then 64 of 1x1, have 2,712.)
    The filters are built as the table and Figure 3 name them.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import he_normal, lrn, require_image

# Filters of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj; None is a pooling.
TABLE_1: dict[str, tuple[int, int, int, int, int, int] | None] = {
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
HEADS = {"inception4a": "aux1", "inception4d": "aux2"}  # section 5


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a pooling side by side, 1x1 before the large ones (Figure 2b)."""

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
        three = self.conv3x3(F.relu(self.conv3x3_reduce(x)))
        five = self.conv5x5(F.relu(self.conv5x5_reduce(x)))
        return F.relu(torch.cat([self.conv1x1(x), three, five, self.pool_proj(self.pool(x))], dim=1))


class NaiveInception(nn.Module):
    """The same without 1x1 convolutions before and after: the pooling keeps all its channels (Figure 2a)."""

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


class Auxiliary(nn.Module):
    """A classifier on the maps in the middle of the network, for its gradient (section 5)."""

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
    """Table 1. When training with `aux`, three scores; aux1 and aux2 count `aux_weight` in the loss."""

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
        channels, heads = 192, {}
        for name, filters in TABLE_1.items():
            if filters is None:
                self.add_module(name, nn.MaxPool2d(3, stride=2, ceil_mode=True))
                continue
            n1x1, _, n3x3, _, n5x5, pool_proj = filters
            self.add_module(name, Inception(channels, *filters))
            channels = n1x1 + n3x3 + n5x5 + pool_proj
            if aux and name in HEADS:
                heads[HEADS[name]] = Auxiliary(channels, num_classes)
        self.avgpool = nn.AvgPool2d(7, stride=1)
        self.dropout = nn.Dropout(0.4)
        self.linear = nn.Linear(channels, num_classes)
        for name, head in heads.items():
            self.add_module(name, head)
        self.has_aux = aux
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """(N, C, 224, 224) images, mean subtracted -> (N, num_classes) scores; ValueError for another size.

        When training with auxiliary classifiers: (scores, scores of aux1, scores of aux2).
        """
        require_image(x, "googlenet", side=224)
        x, aux = self.maps(x, heads=self.training and self.has_aux)
        scores = self.linear(self.dropout(self.avgpool(x)).flatten(1))
        return (scores, *aux) if aux else scores

    def dense(self, x: Tensor) -> Tensor:
        """The network applied to a whole image: (N, C, H, W) -> (N, num_classes) scores.

        The mean of what `linear` says at each place of the last maps is what it says of the mean place, as it is
        linear; on 224 x 224 these are `forward`'s scores. ValueError below 32 x 32, which one place stands for.
        The paper shows its network crops only.
        """
        require_image(x, "googlenet, applied densely,", least=32)
        x, _ = self.maps(x, heads=False)
        return self.linear(self.dropout(x.mean((2, 3))))

    def maps(self, x: Tensor, *, heads: bool) -> tuple[Tensor, list[Tensor]]:
        """(N, C, H, W) -> (N, 1024, H / 32, W / 32), rounded up; with `heads`, the scores of aux1 and aux2."""
        x = self.lrn1(self.pool1(F.relu(self.conv1(x))))
        x = F.relu(self.conv2(F.relu(self.conv2_reduce(x))))
        x = self.pool2(self.lrn2(x))
        aux = []
        for name in TABLE_1:
            x = self.get_submodule(name)(x)
            if heads and name in HEADS:
                aux.append(self.get_submodule(HEADS[name])(x))
        return x, aux


def googlenet(*, aux: bool = True, num_classes: int = 1000, in_channels: int = 3) -> GoogLeNet:
    """The network of Table 1; without the auxiliary classifiers it is the one that evaluates."""
    return GoogLeNet(aux, num_classes=num_classes, in_channels=in_channels)


def inception_naive(*, num_classes: int = 1000, in_channels: int = 256) -> nn.Sequential:
    """The lecture's example of Figure 2a, on 28 x 28 x 256."""
    return classified(NaiveInception(in_channels, 128, 192, 96), 128 + 192 + 96 + in_channels, num_classes)


def inception_bottleneck(*, num_classes: int = 1000, in_channels: int = 256) -> nn.Sequential:
    """The lecture's example of Figure 2b, 64 filters each before 3x3, before 5x5 and after the pooling."""
    return classified(Inception(in_channels, 128, 64, 192, 64, 96, 64), 128 + 192 + 96 + 64, num_classes)


def classified(inception: nn.Module, channels: int, num_classes: int) -> nn.Sequential:
    """One module, and after it, ours, a mean and a linear layer, so that it gives scores as every network does."""
    rows = OrderedDict[str, nn.Module](
        inception=inception,
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(channels, num_classes),
    )
    return nn.Sequential(rows).apply(he_normal)
