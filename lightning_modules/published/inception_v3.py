"""Inception-v3 of torchvision and timm, which count the padding in average pooling; the authors' code does not."""

from lightning_modules.published.weights import PublishedNetwork, renamer

# Their convolution -> its place in our block.
INCEPTION_A = {
    "branch1x1": "branch0",
    "branch5x5_1": "branch1.0",
    "branch5x5_2": "branch1.1",
    "branch3x3dbl_1": "branch2.0",
    "branch3x3dbl_2": "branch2.1",
    "branch3x3dbl_3": "branch2.2",
    "branch_pool": "branch3.1",
}
REDUCTION_A = {
    "branch3x3": "branch0",
    "branch3x3dbl_1": "branch1.0",
    "branch3x3dbl_2": "branch1.1",
    "branch3x3dbl_3": "branch1.2",
}
INCEPTION_B = {
    "branch1x1": "branch0",
    **{f"branch7x7_{i}": f"branch1.{i - 1}" for i in range(1, 4)},
    **{f"branch7x7dbl_{i}": f"branch2.{i - 1}" for i in range(1, 6)},
    "branch_pool": "branch3.1",
}
REDUCTION_B = {
    "branch3x3_1": "branch0.0",
    "branch3x3_2": "branch0.1",
    **{f"branch7x7x3_{i}": f"branch1.{i - 1}" for i in range(1, 5)},
}
INCEPTION_C = {
    "branch1x1": "branch0",
    "branch3x3_1": "branch1.0",
    "branch3x3_2a": "branch1.1.branch0",
    "branch3x3_2b": "branch1.1.branch1",
    "branch3x3dbl_1": "branch2.0",
    "branch3x3dbl_2": "branch2.1",
    "branch3x3dbl_3a": "branch2.2.branch0",
    "branch3x3dbl_3b": "branch2.2.branch1",
    "branch_pool": "branch3.1",
}
BLOCKS = {  # their block -> ours, and the places of its convolutions
    "Mixed_5b": ("inception_a1", INCEPTION_A),
    "Mixed_5c": ("inception_a2", INCEPTION_A),
    "Mixed_5d": ("inception_a3", INCEPTION_A),
    "Mixed_6a": ("reduction_a", REDUCTION_A),
    "Mixed_6b": ("inception_b1", INCEPTION_B),
    "Mixed_6c": ("inception_b2", INCEPTION_B),
    "Mixed_6d": ("inception_b3", INCEPTION_B),
    "Mixed_6e": ("inception_b4", INCEPTION_B),
    "Mixed_7a": ("reduction_b", REDUCTION_B),
    "Mixed_7b": ("inception_c1", INCEPTION_C),
    "Mixed_7c": ("inception_c2", INCEPTION_C),
}
STEM = {
    "Conv2d_1a_3x3": "conv1",
    "Conv2d_2a_3x3": "conv2",
    "Conv2d_2b_3x3": "conv3",
    "Conv2d_3b_1x1": "conv4",
    "Conv2d_4a_3x3": "conv5",
}

INCEPTION_V3 = renamer(
    *((rf"{theirs}\.(.*)", rf"{ours}.\1") for theirs, ours in STEM.items()),
    *(
        (rf"{their_block}\.{theirs}\.(.*)", rf"{our_block}.{ours}.\1")
        for their_block, (our_block, places) in BLOCKS.items()
        for theirs, ours in places.items()
    ),
    (r"AuxLogits\.conv0\.(.*)", r"aux.conv1.\1"),
    (r"AuxLogits\.conv1\.(.*)", r"aux.conv2.\1"),
    (r"AuxLogits\.fc\.(.*)", r"aux.fc.\1"),
)

HALF = (0.5, 0.5, 0.5)  # maps pixels to [-1, 1]; torchvision's pretrained network does so inside
COUNTS_PADDING = "the average pooling of the modules counts the zeros at the border"

PUBLISHED = (
    PublishedNetwork(
        source="torchvision",
        model="inception_v3",
        network="inception_v3",
        args={"count_padding": True},
        rename=INCEPTION_V3,
        differs=COUNTS_PADDING,
        departure_args=("count_padding",),
        mean=HALF,
        std=HALF,
        protocol="1-crop-299-of-342",
    ),
    PublishedNetwork(
        source="timm",
        model="inception_v3",
        network="inception_v3",
        args={"aux": False, "count_padding": True},
        rename=INCEPTION_V3,
        differs=COUNTS_PADDING,
        departure_args=("count_padding",),
        mean=HALF,
        std=HALF,
        protocol="1-crop-299-of-341-bicubic",  # timm resizes to 299 / 0.875, rounded down
    ),
)
