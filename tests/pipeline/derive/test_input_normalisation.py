"""The option --normalise: its forms, its arithmetic, and texts that are refused."""

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.data.images import LabelledImages
from pipeline.derive.input_normalisation import InputNormalisation, parse_normalisation


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("0.5/0.5", (0.5,), (0.5,)),
        ("0/1", (0.0,), (1.0,)),
        ("0.49,0.48,0.45/0.25", (0.49, 0.48, 0.45), (0.25,)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_mean_and_deviation_are_read(text, mean, std):
    assert parse_normalisation(text) == InputNormalisation(mean, std)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_mapped_by_mean_and_deviation(channels):
    """(255 / 255 - 0.25) / 0.5 = 1.5, and (0 - 0.25) / 0.5 = -0.5."""
    normaliser = parse_normalisation("0.25/0.5").normaliser(channels)
    assert normaliser.scale.shape == (channels,)
    for pixel, value in ((255, 1.5), (0, -0.5)):
        torch.testing.assert_close(pixel * normaliser.scale - normaliser.shift, torch.full((channels,), value))


def test_a_recipes_normalisation_has_the_statistics_of_the_training_images():
    train = LabelledImages(torch.tensor([0, 102], dtype=torch.uint8).reshape(2, 1, 1, 1), torch.zeros(2).long())
    normaliser = parse_normalisation("per-pixel-mean").normaliser(1, train)
    assert (255 * normaliser.scale - normaliser.shift).item() == pytest.approx(1 - 0.2)  # mean 51 of 255
    with pytest.raises(UserError, match="--normalise per-pixel-mean needs the training images of a set of small"):
        parse_normalisation("per-pixel-mean").normaliser(1)


def test_the_normalisation_is_described():
    assert parse_normalisation("0.5/0.25").describe(3) == (
        "mean 0.5, 0.5, 0.5 and standard deviation 0.25, 0.25, 0.25"
    )
    assert parse_normalisation("scale").describe(3) == "scale with statistics of the training images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("per-pixel", "must be MEAN/STD of pixels in [0, 1], as in 0.5/0.5"),
        ("per-pixel", "did you mean 'per-pixel-mean'?"),
        ("a/b", "must be MEAN/STD"),
        ("123.7/58.4", "the mean must be one number or three, for pixels in [0, 1] (0 <= it <= 1)"),
        ("0.5/0", "the standard deviation must be one number or three, for pixels in [0, 1] (0 < it <= 1)"),
        ("0.5,0.5/1", "the mean must be one number or three"),
        ("nan/1", "the mean must be one number or three"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        parse_normalisation(text)
    assert message in str(caught.value)
