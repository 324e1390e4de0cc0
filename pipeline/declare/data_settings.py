"""The settings `data` of a recipe: the set, its preparation, random crops and colours, test protocols."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from lightning_modules.names import nearest
from pipeline.declare.fields import FrozenModel, NonNegativeFloat, PositiveFloat, PositiveInt, Strength, StrictBool
from pipeline.declare.protocol import parse_protocol

NOISE = "noise"  # ten easy classes, generated, for tests and trials; see pipeline.data.sources

PARTED_SET = "svhn-extra"  # the set whose training images come from two published parts

# The 4 of pad4-crop and reflect4-crop, in pixels, may be another number.
AUGMENTATIONS = ("pad4-crop", "reflect4-crop", "flip", "distort", "pca-colour", "photometric")


def check_augmentation(word: str) -> str:
    """Return `word`. Raises ValueError if it is not the name of an augmentation."""
    if not re.fullmatch(r"(pad|reflect)[1-9]\d*-crop|flip|distort|pca-colour|photometric", word):
        raise ValueError(f"unknown augmentation {word!r}{nearest(word, AUGMENTATIONS)}")
    return word


def check_protocol_name(name: str) -> str:
    """Return `name`. Raises ValueError if it is not the name of a test protocol."""
    parse_protocol(name)
    return name


Normalisation = Literal[
    "per-pixel-mean",
    "per-channel",
    "lecun98",
    "scale",
    "raw-mean-image",
    "raw-mean-colour",
    "gcn-zca",
    "local-contrast",
]

ProtocolName = Annotated[str, AfterValidator(check_protocol_name)]

Augmentation = Annotated[str, AfterValidator(check_augmentation)]


class Crop(FrozenModel):
    """Random crop of a training image of any size to a square, drawn anew each time the image is used.

    Either the image is resized to a short side and a square is cropped (AlexNet, VGG, ResNet), or a region of
    random area and aspect ratio is cropped and resized to the square (GoogLeNet).
    """

    side: PositiveInt  # of the network's input, in pixels
    # Short side of the resized image, in pixels; [low, high]: an integer drawn uniformly.
    short: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    centre: PositiveInt | None = None  # side of a central square cropped first; mean images have this size
    at: Literal["random", "five"] = "random"  # any position; five: one of the four corners or the centre
    area: tuple[PositiveFloat, PositiveFloat] | None = None  # fraction of the image's area, uniform in this range
    aspect: tuple[PositiveFloat, PositiveFloat] | None = None  # width / height, log-uniform in this range
    # bilinear and bicubic with anti-aliasing; random: drawn for each image among these, nearest and area.
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"

    @model_validator(mode="after")
    def _fits(self) -> "Crop":
        if (self.short is None) == (self.area is None):
            raise ValueError("give either 'short' (resize, then crop) or 'area' with 'aspect' (crop, then resize)")
        if (self.area is None) != (self.aspect is None):
            raise ValueError("'area' and 'aspect' must be given together")
        for key, pair in (("short", self.short), ("area", self.area), ("aspect", self.aspect)):
            if isinstance(pair, tuple) and pair[0] > pair[1]:
                raise ValueError(f"{key!r} must be increasing, not {list(pair)}")
        if self.area and (self.area[1] > 1 or self.centre or self.at != "random"):
            raise ValueError("'area' must be <= 1 and cannot be combined with 'centre' or 'at'")
        least = self.short[0] if isinstance(self.short, tuple) else self.short
        if least and not self.side <= (self.centre or least) <= least:
            raise ValueError("'side' must be <= 'centre', and 'centre' must be <= 'short'")
        return self


class PartCounts(FrozenModel):
    """Numbers of images of each class held out for validation from each published part of svhn-extra."""

    train: Annotated[int, Field(strict=True, ge=0)]
    extra: Annotated[int, Field(strict=True, ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> "PartCounts":
        if not self.train + self.extra:
            raise ValueError("one of the parts must give images")
        return self


class Jitter(FrozenModel):
    """Random colour changes of an image, as in fb.resnet.torch, which uses 0.4, 0.4, 0.4 and 0.1.

    Brightness, contrast and saturation are multiplied, in random order, by factors from 1 - strength to
    1 + strength. Then lighting noise is added along the principal components of ImageNet's colours.
    """

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    lighting: NonNegativeFloat = 0.0  # standard deviation of the factor of each eigenvalue

    @model_validator(mode="after")
    def _fits(self) -> "Jitter":
        if not (self.brightness or self.contrast or self.saturation or self.lighting):
            raise ValueError("give at least one strength > 0: brightness, contrast, saturation or lighting")
        return self


class Data(FrozenModel):
    """The images that a run trains on and is evaluated on."""

    # A known set (digits, mnist, fashion-mnist, cifar10, cifar100, svhn, svhn-extra), or a folder of class folders
    # or of shards.
    name: str
    train: PositiveInt | None = None  # number of training images; None: all that are not in `val`
    val: Annotated[int, Field(strict=True, ge=0)] = 0  # number of training images held out for validation
    # Number of training images of each class held out for validation; {train: 400, extra: 200}: of each of
    # svhn-extra's parts.
    val_per_class: PositiveInt | PartCounts | None = None
    pad_to: PositiveInt | None = None  # side in pixels to which smaller images are padded with background
    normalise: Normalisation = "per-pixel-mean"
    # pad4-crop, reflect4-crop, flip, distort; with `crop`: flip, pca-colour, photometric.
    augment: tuple[Augmentation, ...] = ()
    jitter: Jitter | None = None  # random colour changes, with `crop` only
    crop: Crop | None = None  # for images of varying size, read from shards; None: small images of one size
    test: tuple[ProtocolName, ...] = ()  # test protocols, with `crop` only; the first is also used during training
    boxes: StrictBool = False  # learn the bounding boxes of the objects, from the images that have some

    @property
    def holds_out(self) -> bool:
        """True if training images are held out for validation."""
        return self.val > 0 or self.val_per_class is not None

    def held_out(self, classes: int) -> int:
        """Return the number of validation images of a set of so many classes."""
        counts = self.val_per_class
        if isinstance(counts, PartCounts):
            return classes * (counts.train + counts.extra)
        return classes * (counts or 0) + self.val

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.boxes:
            self._fits_boxes()
        if self.val and self.val_per_class:
            raise ValueError("give either 'val' or 'val_per_class', not both")
        if isinstance(self.val_per_class, PartCounts) and self.name != PARTED_SET:
            raise ValueError(f"only {PARTED_SET} has parts; give val_per_class one number for {self.name}")
        if self.jitter and "photometric" in self.augment:
            raise ValueError("'jitter' and 'photometric' change the same colours; remove one of them")
        if self.jitter and self.jitter.lighting and "pca-colour" in self.augment:
            raise ValueError("'jitter.lighting' and 'pca-colour' add the same noise; remove one of them")
        with_crop_only = {"pca-colour", "photometric"} & set(self.augment)
        if self.crop is None:
            if self.test:
                raise ValueError("'test' needs 'crop': test protocols are for images of varying size")
            if self.jitter:
                raise ValueError("'jitter' needs 'crop': it is for images of varying size")
            if with_crop_only:
                raise ValueError(f"{min(with_crop_only)!r} needs 'crop': it is for images of varying size")
            return self
        without_crop_only = [word for word in self.augment if word != "flip" and word not in with_crop_only]
        if without_crop_only or self.pad_to:
            setting = without_crop_only[0] if without_crop_only else "pad_to"
            raise ValueError(f"{setting!r} cannot be combined with 'crop': it is for small images")
        if not self.test:
            raise ValueError("'crop' needs a 'test' protocol, such as 1-crop-224-of-256")
        return self

    def _fits_boxes(self) -> None:
        """Raise ValueError for settings under which an image has no bounding box, or no single one."""
        if self.crop is None:
            raise ValueError("'boxes' needs 'crop': only sets in shards have bounding boxes")
        for name in self.test:
            parts = parse_protocol(name).parts
            centre = len(parts) == len(parts[0].shorts) == 1 and parts[0].kind == "centre" and not parts[0].square
            if not centre or parts[0].side != self.crop.side:
                raise ValueError(
                    f"test protocol {name!r} gives several boxes, or crops of another size than in training;"
                    " networks that predict boxes are tested on the centre crop, such as"
                    f" 1-crop-{self.crop.side}-of-256, or by a derived run of kind localisation"
                )
