"""WRN-50-2-bottleneck of torchvision and timm: the paper's own, stride in the 3x3 included."""

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

PUBLISHED = tuple(
    Published(source, "wide_resnet50_2", "wide_resnet_imagenet", {"depth": 50, "k": 2}, RENAME)
    for source in ("torchvision", "timm")
)
