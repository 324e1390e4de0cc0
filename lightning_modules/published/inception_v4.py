"""Inception-v4 and Inception-ResNet-v2 of timm: the functions of the authors' code, not of the paper."""

from lightning_modules.published.weights import PublishedNetwork, renamer


def block_rules(theirs: str, ours: str, indices: range) -> list[tuple[str, str]]:
    """Return the rules for blocks at `indices` of timm's sequence, which we number from 1."""
    return [(rf"{theirs}\.{index}\.(.*)", rf"{ours}{i}.\1") for i, index in enumerate(indices, start=1)]


def residual_block_rules(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Return the rules for a residual block: a linear convolution and, with us, one module of all branches."""
    return [
        (rf"{theirs}\.conv2d\.(\w+)", rf"{ours}.linear.\1"),
        (rf"{theirs}\.(branch.*)", rf"{ours}.branches.\1"),
    ]


def inception_c_rules(indices: range) -> list[tuple[str, str]]:
    """Return the rules for the branches of Inception-C, whose two last convolutions timm marks with a and b."""
    return [
        rule
        for i, index in enumerate(indices, start=1)
        for rule in (
            (rf"features\.{index}\.(branch\d)_(\d)a\.(.*)", rf"inception_c{i}.\1.\2.branch0.\3"),
            (rf"features\.{index}\.(branch\d)_(\d)b\.(.*)", rf"inception_c{i}.\1.\2.branch1.\3"),
            (rf"features\.{index}\.(branch\d)_(\d)\.(.*)", rf"inception_c{i}.\1.\2.\3"),
        )
    ]


INCEPTION_V4 = renamer(
    *((rf"features\.{i}\.(conv|bn)\.(\w+)", rf"stem.conv{i + 1}.\1.\2") for i in range(3)),
    (r"features\.3\.conv\.(.*)", r"stem.mixed1.branch1.\1"),
    (r"features\.4\.(.*)", r"stem.mixed2.\1"),
    (r"features\.5\.conv\.(.*)", r"stem.mixed3.branch0.\1"),
    *block_rules("features", "inception_a", range(6, 10)),
    (r"features\.10\.(.*)", r"reduction_a.\1"),
    *block_rules("features", "inception_b", range(11, 18)),
    (r"features\.18\.(.*)", r"reduction_b.\1"),
    *inception_c_rules(range(19, 22)),
    *block_rules("features", "inception_c", range(19, 22)),
    (r"last_linear\.(\w+)", r"fc.\1"),
)

INCEPTION_RESNET_V2 = renamer(
    (r"conv2d_1a\.(.*)", r"stem.conv1.\1"),
    (r"conv2d_2a\.(.*)", r"stem.conv2.\1"),
    (r"conv2d_2b\.(.*)", r"stem.conv3.\1"),
    (r"conv2d_3b\.(.*)", r"stem.conv4.\1"),
    (r"conv2d_4a\.(.*)", r"stem.conv5.\1"),
    (r"mixed_5b\.(.*)", r"stem.mixed.\1"),
    *(rule for i in range(10) for rule in residual_block_rules(rf"repeat\.{i}", f"inception_resnet_a{i + 1}")),
    (r"mixed_6a\.(.*)", r"reduction_a.\1"),
    *(rule for i in range(20) for rule in residual_block_rules(rf"repeat_1\.{i}", f"inception_resnet_b{i + 1}")),
    (r"mixed_7a\.(.*)", r"reduction_b.\1"),
    *(rule for i in range(9) for rule in residual_block_rules(rf"repeat_2\.{i}", f"inception_resnet_c{i + 1}")),
    *residual_block_rules("block8", "inception_resnet_c10"),
    (r"conv2d_7b\.(.*)", r"conv.\1"),
    (r"classif\.(\w+)", r"fc.\1"),
)

HALF = (0.5, 0.5, 0.5)  # maps pixels to [-1, 1]

PUBLISHED = (
    PublishedNetwork(
        source="timm",
        model="inception_v4",
        network="inception_v4",
        args={"released": True},
        rename=INCEPTION_V4,
        differs="1x7 and 7x1 (and 1x3 and 3x1) swapped in the stem and the longest branches of Inception-B and -C",
        departure_args=("released",),
        mean=HALF,
        std=HALF,
        protocol="1-crop-299-of-341-bicubic",  # of tf_in1k: resized to 299 / 0.875, rounded down
    ),
    PublishedNetwork(
        source="timm",
        model="inception_resnet_v2",
        network="inception_resnet_v2",
        args={"released": True},
        rename=INCEPTION_RESNET_V2,
        differs=(
            "another stem, 10, 20 and 10 blocks on 320, 1088 and 2080 maps instead of 5, 10 and 5 on 384, 1152 and"
            " 2144, neither scale nor ReLU in the last block, a 1x1 convolution to 1536 maps before the pooling"
        ),
        departure_args=("released",),
        mean=HALF,
        std=HALF,
        protocol="1-crop-299-of-333-bicubic",  # of tf_in1k: resized to 299 / 0.8975, rounded down
    ),
)
