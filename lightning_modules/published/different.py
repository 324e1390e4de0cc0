"""Networks of torchvision that have a paper's name and compute another function: their weights do not fit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DifferentNetwork:
    """A network of torchvision and its difference from ours of the same paper."""

    model: str  # name in torchvision
    network: str  # name of our builder in `networks.NETWORKS`
    reason: str  # "has batch normalisation, ..."


BATCH_NORM = "has batch normalisation, which the paper's networks do not have"

DIFFERENT_NETWORKS = (
    DifferentNetwork(
        "alexnet",
        "alexnet",
        "has 64, 192, 384, 256 and 256 filters, each reading all maps, and no response normalisation",
    ),
    DifferentNetwork(
        "googlenet",
        "googlenet",
        "has batch normalisation, 3x3 convolutions in place of the 5x5, and no response normalisation",
    ),
    *(DifferentNetwork(f"vgg{depth}_bn", "vgg", BATCH_NORM) for depth in (11, 13, 16, 19)),
)
