"""ResNeXts of torchvision and timm that are in the paper; 32x8d, which both publish, is not in it."""

from typing import Literal

from lightning_modules.published.resnet import resnet_renamer
from lightning_modules.published.weights import PublishedNetwork

RENAME = resnet_renamer("conv{}")


def resnext_entry(
    source: Literal["torchvision", "timm"], depth: int, cardinality: int, width: int
) -> PublishedNetwork:
    """Return the entry of ResNeXt-`depth` with `cardinality` paths of `width` channels."""
    args = {"depth": depth, "cardinality": cardinality, "width": width}
    return PublishedNetwork(source, f"resnext{depth}_{cardinality}x{width}d", "resnext_imagenet", args, RENAME)


PUBLISHED = (
    resnext_entry("torchvision", 50, 32, 4),
    resnext_entry("torchvision", 101, 64, 4),
    resnext_entry("timm", 50, 32, 4),
    resnext_entry("timm", 101, 32, 4),
    resnext_entry("timm", 101, 64, 4),
)
