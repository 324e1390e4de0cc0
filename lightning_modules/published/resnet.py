"""ResNets of torchvision and timm: shortcut option B, and bottlenecks with their stride in the 3x3."""

from typing import Literal

from lightning_modules.published.weights import PublishedNetwork, RenameKey, renamer

SOURCES: tuple[Literal["torchvision", "timm"], ...] = ("torchvision", "timm")


def resnet_renamer(ours: str) -> RenameKey:
    """Return the renaming of `layer1` to `layer4` to our stages 2 to 5, in which `ours` is "conv{}_x" or "conv{}".

    torchvision and timm use these names for ResNet, ResNeXt and Wide ResNet.
    """
    return renamer(
        *(
            rule
            for stage, name in ((stage, ours.format(stage + 1)) for stage in (1, 2, 3, 4))
            for rule in (
                (rf"layer{stage}\.(\d+)\.downsample\.0\.(\w+)", rf"{name}.\1.shortcut.conv.\2"),
                (rf"layer{stage}\.(\d+)\.downsample\.1\.(\w+)", rf"{name}.\1.shortcut.bn.\2"),
                (rf"layer{stage}\.(.+)", rf"{name}.\1"),
            )
        ),
        (r"(conv1|bn1|fc)\..+", r"\g<0>"),
    )


RENAME = resnet_renamer("conv{}_x")

PUBLISHED = tuple(
    PublishedNetwork(source, f"resnet{depth}", "resnet_imagenet", {"depth": depth}, RENAME)
    if depth < 50
    else PublishedNetwork(
        source,
        f"resnet{depth}",
        "resnet_imagenet",
        {"depth": depth, "stride_in_3x3": True},
        RENAME,
        differs="stride 2 in the 3x3 of a bottleneck, not in its first 1x1",
        departure_args=("stride_in_3x3",),
    )
    for source in SOURCES
    for depth in (18, 34, 50, 101, 152)
)
