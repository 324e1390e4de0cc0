"""ResNeXts of torchvision and timm that the paper has too; 32x8d, which both publish, is not in it."""

from typing import Literal

from lightning_modules.published.resnet import stages
from lightning_modules.published.weights import Published

RENAME = stages("conv{}")


def published(source: Literal["torchvision", "timm"], depth: int, cardinality: int, width: int) -> Published:
    args = {"depth": depth, "cardinality": cardinality, "width": width}
    return Published(source, f"resnext{depth}_{cardinality}x{width}d", "resnext_imagenet", args, RENAME)


PUBLISHED = (
    published("torchvision", 50, 32, 4),
    published("torchvision", 101, 64, 4),
    published("timm", 50, 32, 4),
    published("timm", 101, 32, 4),
    published("timm", 101, 64, 4),
)
