"""Synthetic images: reproducible, distinct by class, not separable by trivial features."""

import hashlib
import io

import numpy as np
from PIL import Image

from pipeline.data.jpeg import decode
from pipeline.data.prepare.synthetic_images import (
    PALETTES,
    SPECIAL_EVERY,
    SyntheticImage,
    class_appearance,
    draw_image,
    encode_image,
    shape_mask,
    texture_mask,
)

# sha256 of the joined pixels of 20 images. To regenerate it:
# hashlib.sha256(b"".join(draw_image(image).tobytes() for image in plan_images("train", 2)[:20])).hexdigest()
PIXELS = "842b20688474a2bd7d3e6961d43e8064fd21e729a6c10dc7f5b815e90df5d421"


def plan_images(split, each, *, classes=10, side=48):
    """Return `each` images of every class, numbered as by make_stand_in."""
    return [
        SyntheticImage(0, split, label * each + i, label, "x.JPEG", side)
        for label in range(classes)
        for i in range(each)
    ]


def test_the_pixels_are_the_same_on_every_machine():
    pixels = b"".join(draw_image(image).tobytes() for image in plan_images("train", 2)[:20])
    assert hashlib.sha256(pixels).hexdigest() == PIXELS


def test_some_images_are_greyscale_some_cmyk_and_some_png():
    kinds = {}
    for number in range(SPECIAL_EVERY * 2):
        if number % SPECIAL_EVERY < 5 or number % SPECIAL_EVERY == SPECIAL_EVERY - 1:
            content = encode_image(SyntheticImage(0, "train", number, 0, "x.JPEG", 32))
            with Image.open(io.BytesIO(content)) as image:
                kinds[number] = image.format, image.mode
            pixels = decode(content, "x")
            assert pixels.shape == draw_image(SyntheticImage(0, "train", number, 0, "x.JPEG", 32)).shape
    special = {0: ("JPEG", "L"), 1: ("JPEG", "CMYK"), 2: ("PNG", "RGB")}
    assert kinds == {number: special.get(number % SPECIAL_EVERY, ("JPEG", "RGB")) for number in kinds}


def test_an_encoded_image_decodes_to_the_drawn_one():
    for number, most in ((1, 8.0), (2, 0.0), (3, 8.0)):  # CMYK, PNG, JPEG: mean difference of 255
        image = SyntheticImage(0, "train", number, 1, "x.JPEG", 64)
        difference = abs(decode(encode_image(image), "x").astype(int) - draw_image(image))
        assert difference.mean() <= most


def test_images_differ_in_size_and_aspect():
    shapes = np.array([draw_image(image).shape[:2] for image in plan_images("train", 10)])
    short, long = shapes.min(1), shapes.max(1)
    assert short.min() >= 48
    assert short.max() <= 72
    assert (long >= short).all()
    assert (long <= 2 * short).all()
    assert len(np.unique(shapes, axis=0)) > 80
    wide = (shapes[:, 1] > shapes[:, 0]).mean()
    assert 0.3 < wide < 0.7


def test_all_1000_classes_look_different():
    assert len({class_appearance(label) for label in range(1000)}) == 1000
    for cue in range(3):
        assert len({class_appearance(label)[cue] for label in range(10)}) == 10
    assert {value for label in range(1000) for value in class_appearance(label)} == set(range(10))


def test_all_shapes_and_textures_differ():
    y, x = np.arange(-40, 41)[:, None], np.arange(-40, 41)[None, :]
    shapes = [np.broadcast_to(shape_mask(kind, y, x, 30), (81, 81)) for kind in range(10)]
    assert len({shape.tobytes() for shape in shapes}) == 10
    for shape in shapes:
        assert 0.05 < shape.mean() < 0.6
        assert shape.sum() == shape[9:-9, 9:-9].sum()  # within the radius
    textures = [texture_mask(kind, y, x, 30, 7) for kind in range(10)]
    assert len({texture.tobytes() for texture in textures}) == 10
    for texture in textures:
        assert 0.4 < texture.mean() < 0.6
    assert len(set(PALETTES)) == 10


def linear_accuracy(features):
    """Return the test accuracy of a linear model, with 60 training and 40 test images for each of ten classes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = {}
    for split, each in (("train", 60), ("test", 40)):
        images = plan_images(split, each)
        data[split] = (
            np.array([features(draw_image(image)) for image in images]),
            [image.label for image in images],
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*data["train"])
    return model.score(*data["test"])


CHANCE, SPREAD = 0.1, 0.015  # standard deviation of 400 guesses: sqrt(0.1 x 0.9 / 400)


def test_the_mean_colour_does_not_predict_the_class():
    assert linear_accuracy(lambda pixels: pixels.mean((0, 1))) < CHANCE + 4 * SPREAD


def test_one_pixel_hardly_predicts_the_class():
    assert linear_accuracy(lambda pixels: pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]) < 2 * CHANCE


def test_size_and_aspect_do_not_predict_the_class():
    assert linear_accuracy(lambda pixels: np.array(pixels.shape[:2])) < CHANCE + 4 * SPREAD
