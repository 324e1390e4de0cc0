"""CIFAR ResNets of github.com/akamaster/pytorch_resnet_cifar10: option A with zero channels on both sides."""

from lightning_modules.published.weights import PublishedNetwork, renamer

RENAME = renamer(
    (r"layer1\.(.+)", r"map32.\1"),
    (r"layer2\.(.+)", r"map16.\1"),
    (r"layer3\.(.+)", r"map8.\1"),
    (r"linear\.(.+)", r"fc.\1"),
    (r"(conv1|bn1)\..+", r"\g<0>"),
)

PUBLISHED = tuple(
    PublishedNetwork(
        "pytorch_resnet_cifar10",
        f"resnet{depth}",
        "resnet_cifar",
        {"depth": depth, "pad_around": True},
        RENAME,
        differs="option A puts half of its new channels before the old ones",
        departure_args=("pad_around",),
        stated_top1_error_pct=error,
    )
    # Errors from the project's README.
    for depth, error in ((20, 8.27), (32, 7.37), (44, 6.90), (56, 6.61), (110, 6.32), (1202, 6.18))
)
