"""VGG in torchvision and timm: the same functions on 224 x 224; in timm fc6 and fc7 are convolutions."""

from lightning_modules.published.weights import Published, Rename, renamer
from lightning_modules.vgg import TABLE_1


def names(configuration: str) -> Rename:
    """Both number convolutions, ReLUs and poolings in `features` from 0."""
    rules, place = [], 0
    for stage, kernels in enumerate(TABLE_1[configuration], start=1):
        for row in range(1, len(kernels) + 1):
            rules.append((rf"features\.{place}\.(\w+)", rf"conv{stage}_{row}.\1"))
            place += 2  # the convolution and its ReLU
        place += 1  # the pooling
    return renamer(
        *rules,
        (r"(classifier\.0|pre_logits\.fc1)\.(\w+)", r"fc6.\2"),
        (r"(classifier\.3|pre_logits\.fc2)\.(\w+)", r"fc7.\2"),
        (r"(classifier\.6|head\.fc)\.(\w+)", r"fc8.\2"),
    )


CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}  # not the _bn ones: no paper of ours
TORCHVISION = tuple(
    Published("torchvision", model, "vgg", {"configuration": configuration}, names(configuration))
    for model, configuration in CONFIGURATIONS.items()
)
TIMM = tuple(
    Published("timm", model, "vgg", {"configuration": configuration}, names(configuration))
    for model, configuration in CONFIGURATIONS.items()
)
PUBLISHED = TORCHVISION + TIMM
