"""WRN-50-2-bottleneck of torchvision and timm: the paper's network, with the stride in the 3x3."""

from lightning_modules.published.resnet import resnet_renamer
from lightning_modules.published.weights import PublishedNetwork

RENAME = resnet_renamer("conv{}")

PUBLISHED = tuple(
    PublishedNetwork(source, "wide_resnet50_2", "wide_resnet_imagenet", {"depth": 50, "k": 2}, RENAME)
    for source in ("torchvision", "timm")
)
