"""WRN-50-2-bottleneck of torchvision and timm: the paper's own, stride in the 3x3 included."""

from lightning_modules.published.resnet import stages
from lightning_modules.published.weights import Published

RENAME = stages("conv{}")

PUBLISHED = tuple(
    Published(source, "wide_resnet50_2", "wide_resnet_imagenet", {"depth": 50, "k": 2}, RENAME)
    for source in ("torchvision", "timm")
)
