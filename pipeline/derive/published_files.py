"""Weights files of publishers: whether a file is the published one, and how its publisher tests it.

torchvision, and others after it, put the first digits of a file's sha256 into its name (resnet50-0676ba61.pth).
timm describes its weights in config.json beside them. A file that neither confirms may hold anything.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning_modules.published.weights import PublishedNetwork
from pipeline.common.errors import UserError
from pipeline.common.files import file_sha256

TORCHVISION, TIMM = "torchvision", "timm"
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z]+$")
TIMM_CONFIG = "config.json"
TIMM_CROP = 0.875  # of timm's weights that name no other share of the image


@dataclass(frozen=True)
class PublisherSettings:
    """How a publisher tests weights, and its result."""

    weights: str  # "torchvision ResNet50_Weights.IMAGENET1K_V1"
    protocol: str
    mean: tuple[float, ...]  # of each channel of the input, pixels in [0, 1]
    std: tuple[float, ...]
    stated_top1_error_pct: float | None


def single_crop_protocol(crop: int, resize: int, interpolation: str = "bilinear") -> str:
    """Return the name of the single-crop protocol of these sizes in pixels: "1-crop-224-of-256"."""
    return f"1-crop-{crop}-of-{resize}" + ("" if interpolation == "bilinear" else f"-{interpolation}")


def check_cached_download(url: str) -> None:
    """Raise UserError if torch's cache holds a file for `url` that is not the published one.

    torch checks a file only when it downloads it, and then reads whatever lies under its name.
    """
    import torch

    name = Path(urlsplit(url).path).name
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    expected = HASH_IN_NAME.search(name)
    if expected is None or not file.is_file():
        return
    try:
        found = file_sha256(file) if file.stat().st_size else ""
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {(error.strerror or str(error)).lower()}; fix this and run again"
        ) from None
    if not found.startswith(expected[1]):
        problem = f"its sha256 begins with {found[: len(expected[1])]}" if found else "it is empty"
        raise UserError(
            f"{file} is not the file published at {url}: {problem}; delete it and run again to download it"
        )


def has_published_name(file: Path, sha256: str) -> bool:
    """Return True if a file's name contains the first digits of its sha256."""
    expected = HASH_IN_NAME.search(file.name)
    return expected is not None and sha256.startswith(expected[1])


def name_contradiction(file: Path, sha256: str) -> str:
    """Return that a file's name contains the first digits of another sha256 than the file's, or ""."""
    expected = HASH_IN_NAME.search(file.name)
    if expected is None or sha256.startswith(expected[1]):
        return ""
    found = sha256[: len(expected[1])]
    return f"its sha256 begins with {found}, and not with {expected[1]} as its name says: the file was changed"


def find_settings(file: Path, sha256: str, entries: Iterable[PublishedNetwork]) -> PublisherSettings | None:
    """Return how the publisher of a weights file tests it; None if it is not known to be a published file.

    `sha256`: of the file. `entries`: the networks of other libraries that have the file's names.
    """
    for entry in entries:
        settings = None
        if entry.source == TORCHVISION:
            settings = _torchvision_settings_of(entry, sha256)
        elif entry.source == TIMM:
            settings = _timm_settings(file, entry)
        elif has_published_name(file, sha256):
            name = f"{entry.source} {file.name}"
            settings = PublisherSettings(name, entry.protocol, entry.mean, entry.std, entry.stated_top1_error_pct)
        if settings:
            return settings
    return None


def torchvision_settings(entry: PublishedNetwork, weights: Any) -> PublisherSettings:
    """Return how torchvision tests `weights`, a member of an enumeration such as ResNet50_Weights.

    The normalisation is the entry's: torchvision's Inception-v3 changes its input again in the network.
    """
    transforms = weights.transforms()
    error = 100 - weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return PublisherSettings(
        weights=f"{TORCHVISION} {weights}",
        protocol=single_crop_protocol(
            transforms.crop_size[0], transforms.resize_size[0], transforms.interpolation.value
        ),
        mean=entry.mean,
        std=entry.std,
        stated_top1_error_pct=None if math.isnan(error) else error,
    )


def _torchvision_settings_of(entry: PublishedNetwork, sha256: str) -> PublisherSettings | None:
    """Return the settings of torchvision's weights of this network with this hash; None if there are none."""
    import torchvision

    for weights in torchvision.models.get_model_weights(entry.model):
        expected = HASH_IN_NAME.search(Path(urlsplit(weights.url).path).name)
        if expected and sha256.startswith(expected[1]):
            return torchvision_settings(entry, weights)
    return None


def _timm_settings(file: Path, entry: PublishedNetwork) -> PublisherSettings | None:
    """Return the settings in timm's config.json beside the file; None if there is none of this network."""
    try:
        config = json.loads((file.parent / TIMM_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    about = config.get("pretrained_cfg") if isinstance(config, dict) else None
    if not isinstance(about, Mapping) or config.get("architecture") != entry.model:
        return None
    try:
        side = int((about.get("test_input_size") or about["input_size"])[-1])
        share = float(about.get("test_crop_pct") or about.get("crop_pct") or TIMM_CROP)
        interpolation = str(about["interpolation"])
        mean, std = (tuple(float(value) for value in about[name]) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    if interpolation not in ("bilinear", "bicubic") or about.get("crop_mode", "center") != "center":
        return None
    name = f"{TIMM} {entry.model}.{about.get('tag') or 'untagged'}"
    resized = math.floor(side / share)  # as timm rounds
    return PublisherSettings(name, single_crop_protocol(side, resized, interpolation), mean, std, None)
