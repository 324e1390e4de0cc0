"""ResNeXts of torchvision and timm that are in the paper; 32x8d, which both publish, is not in it."""

from typing import Literal

from lightning_modules.published.resnet import resnet_renamer
from lightning_modules.published.weights import PublishedNetwork

RENAME = resnet_renamer("conv{}")


def resnext_entry(
    source: Literal["torchvision", "timm"], depth: int, cardinality: int, width: int, resize: int = 256
) -> PublishedNetwork:
    """Return the entry of ResNeXt-`depth` with `cardinality` paths of `width` channels.

    `resize`: short side in pixels of the images that the library tests it on.
    """
    args = {"depth": depth, "cardinality": cardinality, "width": width}
    name, protocol = f"resnext{depth}_{cardinality}x{width}d", f"1-crop-224-of-{resize}"
    return PublishedNetwork(source, name, "resnext_imagenet", args, RENAME, protocol=protocol)


PUBLISHED = (
    resnext_entry("torchvision", 50, 32, 4),
    resnext_entry("torchvision", 101, 64, 4, resize=232),
    resnext_entry("timm", 50, 32, 4),
    resnext_entry("timm", 101, 32, 4),
    resnext_entry("timm", 101, 64, 4),
)
