"""DenseNets of torchvision and timm: the same functions with other parameter names.

torchvision's published files are older than its code and have `norm.1` for `norm1`; the rules match both. timm's
densenetblur121d and densenet264d have other stems and are not in the paper.
"""

from lightning_modules.densenet import IMAGENET_NETS
from lightning_modules.published.weights import PublishedNetwork, renamer

LAYER = r"features\.denseblock(\d)\.denselayer(\d+)"
TRANSITION = r"features\.transition(\d)"
RENAME = renamer(
    (r"features\.conv0\.(\w+)", r"conv1.\1"),
    (r"features\.norm0\.(\w+)", r"bn1.\1"),
    (LAYER + r"\.norm\.?1\.(\w+)", r"block\1.layer\2.conv1x1.bn.\3"),
    (LAYER + r"\.conv\.?1\.(\w+)", r"block\1.layer\2.conv1x1.conv.\3"),
    (LAYER + r"\.norm\.?2\.(\w+)", r"block\1.layer\2.conv3x3.bn.\3"),
    (LAYER + r"\.conv\.?2\.(\w+)", r"block\1.layer\2.conv3x3.conv.\3"),
    (TRANSITION + r"\.norm\.(\w+)", r"transition\1.conv.bn.\2"),
    (TRANSITION + r"\.conv\.(\w+)", r"transition\1.conv.conv.\2"),
    (r"features\.norm5\.(\w+)", r"bn.\1"),
    (r"classifier\.(\w+)", r"fc.\1"),
)

PUBLISHED = tuple(
    PublishedNetwork(source, f"densenet{depth}", "densenet_imagenet", {"depth": depth}, RENAME)
    for source in ("torchvision", "timm")
    for depth in sorted(IMAGENET_NETS)
    if depth != 264
)
