"""Inception-v3. Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, arXiv:1512.00567, Table 1 and Figures 5 to 8.

    layer             output (C x H x W)   parameters   branches, written as in `inception_v4`
    conv1               32 x 149 x 149            928   3x3 32 /2 V
    conv2               32 x 147 x 147          9,280   3x3 32 V
    conv3               64 x 147 x 147         18,560   3x3 64
    pool1               64 x  73 x  73                  max /2 V
    conv4               80 x  73 x  73          5,280   1x1 80
    conv5              192 x  71 x  71        138,624   3x3 192 V
    pool2              192 x  35 x  35                  max /2 V
    inception_a1       256 x  35 x  35        255,904   1x1 64 | 1x1 48, 5x5 64 | 1x1 64, 3x3 96, 3x3 96
                                                          | avg, 1x1 32
    inception_a2       288 x  35 x  35        277,472   the same with 64 instead of 32
    inception_a3       288 x  35 x  35        285,152   as inception_a2
    reduction_a        768 x  17 x  17      1,153,280   3x3 384 /2 V | 1x1 64, 3x3 96, 3x3 96 /2 V | max /2 V
    inception_b1..4    768 x  17 x  17                  1x1 192 | 1x1 c, 1x7 c, 7x1 192
                                                          | 1x1 c, 7x1 c, 1x7 c, 7x1 c, 1x7 192 | avg, 1x1 192
                                            1,297,408     c = 128 in inception_b1
                                        2 x 1,691,008     c = 160 in inception_b2 and inception_b3
                                            2,141,952     c = 192 in inception_b4
    reduction_b       1280 x   8 x   8      1,698,304   1x1 192, 3x3 320 /2 V
                                                          | 1x1 192, 1x7 192, 7x1 192, 3x3 192 /2 V | max /2 V
    inception_c1      2048 x   8 x   8      5,044,608   1x1 320 | 1x1 384, [1x3 384 | 3x1 384]
                                                          | 1x1 448, 3x3 384, [1x3 384 | 3x1 384] | avg, 1x1 192
    inception_c2      2048 x   8 x   8      6,076,800   the same
    pool              2048                              average
    dropout           2048                              keep 0.8
    fc                1000                  2,049,000
    aux               1000                  3,326,696   after inception_b4: average 5x5 /3, 1x1 128, 5x5 768 V, fc
27,161,264 parameters; 23,834,568 without the auxiliary classifier, which is not used in evaluation.
5,713,216,096 multiply-adds. 48 layers with weights on the longest path.

Modules a, b and c are those of Figures 5, 6 and 7, the reductions those of Figure 10, aux that of Figure 8 with
batch normalisation. The paper does not print their filters; it refers to a file, model.txt, that is not available.
The network is the one that the authors released (https://github.com/tensorflow/models, slim/nets/inception_v3).

Departures from the paper, all in the released network:
  * Table 1 has three 3x3 convolutions after pool1 (71 x 71 x 80, then with stride 2 35 x 35 x 192, then 288 maps).
    The released network has conv4 of 1x1, conv5, and a pooling, so that inception_a1 reads 192 maps and not 288.
  * Figure 5 has no 5x5 convolution: the second branch is 1x1, 3x3.
  * Table 1 has five modules of Figure 6; the released network has four and reduction_a.
  * The paper prints 4.8 billion operations (Table 3) or 5 billion (abstract), and 42 layers.

Left open by the paper, and what is done here:
  * Batch normalisation, the order of a concatenation, average pooling at the border, initialisation: as in
    `inception_v4`. Libraries that count the padding in average pooling (`count_padding`) compute another function.
  * The weight of the auxiliary loss: 0.4, as released.
  * The last pooling is global, so images of other sizes than 299 x 299 can be read; aux needs 299 x 299 or more.
"""

from collections import OrderedDict

from torch import Tensor, nn

from lightning_modules.inception_v4 import MIN_IMAGE_SIDE, BranchSpec, Concat, ConvBnRelu, name_blocks
from lightning_modules.layers import check_image_size, he_normal

AUX_INPUT = "inception_b4"  # the last module with 17 x 17 maps (Figure 8)
MIN_SIDE_WITH_AUX = 299  # pixels; gives aux maps of 17 x 17


class InceptionA(Concat):
    """Figure 5: maps of 35 x 35."""

    def __init__(self, channels: int, pool_filters: int) -> None:
        three_by_three = ("1x1 64", "3x3 96", "3x3 96")
        super().__init__(channels, "1x1 64", ("1x1 48", "5x5 64"), three_by_three, ("avg", f"1x1 {pool_filters}"))


class ReductionA(Concat):
    """Figure 10: 288 maps of 35 x 35 -> 768 of 17 x 17."""

    def __init__(self) -> None:
        super().__init__(288, "3x3 384 /2 V", ("1x1 64", "3x3 96", "3x3 96 /2 V"), "max /2 V")


class InceptionB(Concat):
    """Figure 6 with n = 7: 768 maps of 17 x 17."""

    def __init__(self, c: int) -> None:
        short = (f"1x1 {c}", f"1x7 {c}", "7x1 192")
        long = (f"1x1 {c}", f"7x1 {c}", f"1x7 {c}", f"7x1 {c}", "1x7 192")
        super().__init__(768, "1x1 192", short, long, ("avg", "1x1 192"))


class ReductionB(Concat):
    """Figure 10: 768 maps of 17 x 17 -> 1280 of 8 x 8."""

    def __init__(self) -> None:
        long = ("1x1 192", "1x7 192", "7x1 192", "3x3 192 /2 V")
        super().__init__(768, ("1x1 192", "3x3 320 /2 V"), long, "max /2 V")


class InceptionC(Concat):
    """Figure 7: maps of 8 x 8 -> 2048 maps."""

    def __init__(self, channels: int) -> None:
        fork: BranchSpec = ["1x3 384", "3x1 384"]
        super().__init__(channels, "1x1 320", ("1x1 384", fork), ("1x1 448", "3x3 384", fork), ("avg", "1x1 192"))


class AuxiliaryClassifier(nn.Sequential):
    """Figure 8: a classifier on the last 17 x 17 maps, with batch normalisation (sections 4 and 10)."""

    def __init__(self, num_classes: int) -> None:
        rows = OrderedDict[str, nn.Module](
            pool=nn.AvgPool2d(5, stride=3),
            conv1=ConvBnRelu(768, "1x1 128"),
            conv2=ConvBnRelu(128, "5x5 768 V"),  # (N, 128, 5, 5) -> (N, 768, 1, 1)
            average=nn.AdaptiveAvgPool2d(1),  # of larger images, which have more places
            flatten=nn.Flatten(),
            fc=nn.Linear(768, num_classes),
        )
        super().__init__(rows)


class InceptionV3(nn.Module):
    """The layers of the table in order. `aux_weight` is the weight of the loss of aux."""

    aux_weight: float = 0.4  # released code

    def __init__(self, aux: bool, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        rows: dict[str, nn.Module] = {
            "conv1": ConvBnRelu(in_channels, "3x3 32 /2 V"),
            "conv2": ConvBnRelu(32, "3x3 32 V"),
            "conv3": ConvBnRelu(32, "3x3 64"),
            "pool1": nn.MaxPool2d(3, stride=2),
            "conv4": ConvBnRelu(64, "1x1 80"),
            "conv5": ConvBnRelu(80, "3x3 192 V"),
            "pool2": nn.MaxPool2d(3, stride=2),
            **name_blocks("inception_a", [InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)]),
            "reduction_a": ReductionA(),
            **name_blocks("inception_b", [InceptionB(c) for c in (128, 160, 160, 192)]),
            "reduction_b": ReductionB(),
            **name_blocks("inception_c", [InceptionC(1280), InceptionC(2048)]),
            "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "dropout": nn.Dropout(0.2),  # keep 0.8
            "fc": nn.Linear(2048, num_classes),
        }
        for name, layer in rows.items():
            self.add_module(name, layer)
        self.rows, self.has_aux = tuple(rows), aux
        if aux:
            self.aux = AuxiliaryClassifier(num_classes)
        self.apply(he_normal)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, H, W) images, 299 x 299 in the paper -> (N, num_classes) scores. ValueError below 75 x 75.

        In training with the auxiliary classifier returns (scores, scores of aux); ValueError below 299 x 299.
        """
        check_image_size(x, "inception_v3", min_side=MIN_IMAGE_SIDE)
        aux_scores = None
        if self.training and self.has_aux:
            check_image_size(x, "inception_v3, trained with its auxiliary classifier,", min_side=MIN_SIDE_WITH_AUX)
        for name in self.rows:
            x = self.get_submodule(name)(x)
            if name == AUX_INPUT and self.training and self.has_aux:
                aux_scores = self.aux(x)
        return x if aux_scores is None else (x, aux_scores)


def inception_v3(
    *, aux: bool = True, count_padding: bool = False, num_classes: int = 1000, in_channels: int = 3
) -> InceptionV3:
    """Build Inception-v3 (Table 1, as released): (N, 3, 299, 299) -> scores (N, 1000).

    Args:
        aux: with the auxiliary classifier of training.
        count_padding: count the zeros at the border in the average pooling of the modules, as torchvision and timm
            do, for their published weights. The authors' code does not.
    """
    network = InceptionV3(aux, num_classes=num_classes, in_channels=in_channels)
    for module in network.modules():
        if isinstance(module, nn.AvgPool2d) and module.padding:
            module.count_include_pad = count_padding
    return network
