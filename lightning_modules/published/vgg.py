"""VGG of torchvision and timm: the same functions on 224 x 224; in timm fc6 and fc7 are convolutions."""

from lightning_modules.published.weights import PublishedNetwork, RenameKey, renamer
from lightning_modules.vgg import CONFIGURATIONS


def vgg_renamer(configuration: str) -> RenameKey:
    """Return the renaming for one configuration; both libraries number all layers in `features` from 0."""
    rules, index = [], 0
    for stage, kernels in enumerate(CONFIGURATIONS[configuration], start=1):
        for number in range(1, len(kernels) + 1):
            rules.append((rf"features\.{index}\.(\w+)", rf"conv{stage}_{number}.\1"))
            index += 2  # the convolution and its ReLU
        index += 1  # the pooling
    return renamer(
        *rules,
        (r"(classifier\.0|pre_logits\.fc1)\.(\w+)", r"fc6.\2"),
        (r"(classifier\.3|pre_logits\.fc2)\.(\w+)", r"fc7.\2"),
        (r"(classifier\.6|head\.fc)\.(\w+)", r"fc8.\2"),
    )


# Models with batch normalisation (vgg11_bn, ...) are not in the paper.
MODEL_CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
TORCHVISION = tuple(
    PublishedNetwork("torchvision", model, "vgg", {"configuration": configuration}, vgg_renamer(configuration))
    for model, configuration in MODEL_CONFIGURATIONS.items()
)
TIMM = tuple(
    PublishedNetwork("timm", model, "vgg", {"configuration": configuration}, vgg_renamer(configuration))
    for model, configuration in MODEL_CONFIGURATIONS.items()
)
PUBLISHED = TORCHVISION + TIMM
