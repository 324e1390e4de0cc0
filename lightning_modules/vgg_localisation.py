"""VGG's networks for localisation. Simonyan and Zisserman 2014, arXiv:1409.1556, appendix A.1.

A network of Table 1 whose last layer, fc8, predicts bounding boxes instead of class scores:

    regression      boxes   outputs of fc8   parameters of D
    single-class        1                4   134,276,932    one box for all classes (SCR)
    per-class        1000             4000   150,648,544    one box per class (PCR)

A box is its centre (x, y), width and height, as fractions of the side of the network's input; (0, 0) is the
input's top left corner. The paper prints neither the unit nor the origin.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_modules.vgg import CONFIGURATIONS, IMAGE_SIZE, VGG, Configuration, Initialisation

Regression = Literal["single-class", "per-class"]


class VGGBoxes(VGG):
    """Network of Table 1 that predicts boxes in images of 224 x 224; `box_map` accepts larger ones."""

    predicts_boxes = True
    window, stride = IMAGE_SIZE, 32  # pixels: of the windows of `box_map`

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 224, 224) images -> (N, boxes, 4); ValueError for other sizes."""
        return super().forward(x).unflatten(1, (-1, 4))

    def box_map(self, x: Tensor) -> Tensor:
        """Apply the network to whole images: (N, C, H, W) -> (N, boxes, 4, H / 32 - 6, W / 32 - 6), rounded down.

        The box at row i and column j is relative to the window of 224 x 224 pixels whose top left corner is at row
        32 i and column 32 j. Raises ValueError for images smaller than 224 x 224.
        """
        return self.score_map(x).unflatten(1, (-1, 4))

    def dense(self, x: Tensor) -> Tensor:
        """Raise ValueError: the mean of boxes at different positions means nothing."""
        raise ValueError("a network that predicts boxes cannot be evaluated densely by itself")


def boxes_of_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the box of each image's class: (N, boxes, 4) and (N,) -> (N, 4). A single box serves all classes."""
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    return outputs[torch.arange(len(outputs), device=outputs.device), labels]


def vgg_boxes(
    *,
    configuration: Configuration,
    regression: Regression,
    init: Initialisation = "glorot",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> VGGBoxes:
    """Return the network of a column of Table 1 that predicts one box, or one box per class (appendix A.1).

    Raises ValueError for a configuration, initialisation or regression that is not in the paper.
    """
    names = ((configuration, CONFIGURATIONS), (init, get_args(Initialisation)), (regression, get_args(Regression)))
    for name, known in names:
        if name not in known:
            raise ValueError(f"{name!r} is not one of: {', '.join(known)}")
    boxes = 1 if regression == "single-class" else num_classes
    return VGGBoxes(configuration, init, num_classes=4 * boxes, in_channels=in_channels)
