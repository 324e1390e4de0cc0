"""ResNeXts of torchvision and timm that the paper has too; 32x8d, which both publish, is not in it."""

from typing import Literal

from lightning_modules.published.weights import Published, renamer

RENAME = renamer(
    *(
        rule
        for stage in (1, 2, 3, 4)
        for rule in (
            (rf"layer{stage}\.(\d+)\.downsample\.0\.(\w+)", rf"conv{stage + 1}.\1.shortcut.conv.\2"),
            (rf"layer{stage}\.(\d+)\.downsample\.1\.(\w+)", rf"conv{stage + 1}.\1.shortcut.bn.\2"),
            (rf"layer{stage}\.(.+)", rf"conv{stage + 1}.\1"),
        )
    ),
    (r"(conv1|bn1|fc)\..+", r"\g<0>"),
)


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
