"""Normalisation of images for imported weights: the publisher's, or the one given with --normalise."""

from dataclasses import dataclass
from typing import Literal

import torch

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.data.images import LabelledImages
from pipeline.data.normalise import NORMALISERS, Normaliser, fit_normaliser

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of each channel, pixels in [0, 1]

FORMS = (
    "MEAN/STD of pixels in [0, 1], as in 0.5/0.5 or 0.49,0.48,0.45/0.25,0.24,0.26, imagenet, or a recipe's name"
)


@dataclass(frozen=True)
class InputNormalisation:
    """(pixels / 255 - mean) / std, or a normalisation of recipes, whose statistics are of the training images."""

    mean: tuple[float, ...] = ()  # of each channel, or one for all; pixels in [0, 1]
    std: tuple[float, ...] = ()
    recipe: str = ""  # one of NORMALISERS: then there are no mean and std

    def describe(self, channels: int = 3) -> str:
        """Return the normalisation as text: "mean 0.5, 0.5, 0.5 and standard deviation 0.5, 0.5, 0.5"."""
        if self.recipe:
            return f"{self.recipe} with statistics of the training images"
        mean, std = (
            ", ".join(f"{value:g}" for value in expand(values, channels)) for values in (self.mean, self.std)
        )
        return f"mean {mean} and standard deviation {std}"

    def normaliser(self, channels: int, train: LabelledImages | None = None) -> Normaliser:
        """Return the normaliser for images of `channels` channels. `train`: for statistics of a recipe's name.

        Raises UserError for a recipe's name without training images, and DataError if it does not fit them.
        """
        if not self.recipe:
            mean, std = (torch.tensor(expand(values, channels)) for values in (self.mean, self.std))
            return Normaliser("published", scale=1 / (255 * std), shift=mean / std, pad_value=0.0)
        if train is None:
            raise UserError(
                f"--normalise {self.recipe} needs the training images of a set of small images; give MEAN/STD"
            )
        return fit_normaliser(self.recipe, train)


def expand(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return one value per channel."""
    return values * channels if len(values) == 1 else values[:channels]


def parse_normalisation(text: str) -> InputNormalisation:
    """Return the normalisation of the option --normalise. Raises UserError if it has another form."""
    if text == "imagenet":
        return InputNormalisation(IMAGENET_MEAN, IMAGENET_STD)
    if text in NORMALISERS:
        return InputNormalisation(recipe=text)
    mean, slash, std = text.partition("/")
    if not slash:
        raise UserError(f"--normalise {text}: must be {FORMS}{nearest(text, [*NORMALISERS, 'imagenet'])}")
    return InputNormalisation(_numbers(text, mean, "mean"), _numbers(text, std, "standard deviation"))


def _numbers(text: str, part: str, what: Literal["mean", "standard deviation"]) -> tuple[float, ...]:
    """Return the numbers of one half of MEAN/STD. UserError unless there are one or three, in [0, 1]."""
    try:
        values = tuple(float(number) for number in part.split(","))
    except ValueError:
        raise UserError(f"--normalise {text}: must be {FORMS}") from None
    smallest = "0 < it" if what == "standard deviation" else "0 <= it"
    in_range = all(0 <= value <= 1 and (value or what == "mean") for value in values)
    if len(values) not in (1, 3) or not in_range:
        raise UserError(
            f"--normalise {text}: the {what} must be one number or three, for pixels in [0, 1] ({smallest} <= 1)"
        )
    return values
