"""Random crops: sizes and positions, on images of any size."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.crops import RANDOM_INTERPOLATIONS, area_crop, crop_box, crop_image
from pipeline.data.jpeg import resize
from tests.support.crop_specs import ALEXNET, GOOGLENET, RANDOM, RESNET, SPECS, ZFNET
from tests.support.image_sets import random_image


def draws(count):
    """Return `count` uniform draws."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()


def test_short_sides_are_uniform_over_integers():
    shorts = [min(crop_box(RESNET, 40, 60, draw).size) for draw in draws(4400)]
    counts = np.bincount(shorts)[20:]
    assert len(counts) == 11  # 20 to 30, inclusive
    assert counts.min() > 320  # of 400: four standard deviations
    assert counts.max() < 480


def test_crops_reach_every_position_of_the_resized_image():
    positions = {crop_box(ALEXNET, 24, 24, draw).crop for draw in draws(3000)}
    assert positions == {(row, column) for row in range(9) for column in range(9)}  # 24 - 16 + 1


def test_crops_of_the_centre_stay_in_it_and_have_corners_in_it():
    for draw in draws(300):
        box = crop_box(ALEXNET, 48, 96, draw)
        assert box.size == (24, 48)
        assert (box.crop[0], box.crop[1] - 12) == box.corner  # the centre 24 of 48 begins at 12
        assert 0 <= min(box.corner) <= max(box.corner) <= 8


def test_five_positions_are_the_corners_and_the_centre():
    corners = [crop_box(ZFNET, 24, 24, draw).corner for draw in draws(1000)]
    assert set(corners) == {(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)}
    assert min(map(corners.count, set(corners))) > 150  # of 200


def test_areas_and_aspects_are_in_the_ranges_of_the_paper():
    height, width = 375, 500
    boxes = [crop_box(GOOGLENET, height, width, draw).box for draw in draws(4000)]
    areas = np.array([tall * wide / (height * width) for _, _, tall, wide in boxes])
    aspects = np.array([wide / tall for _, _, tall, wide in boxes])
    assert 0.079 < areas.min() < 0.1
    assert 0.9 < areas.max() <= 1
    assert 0.74 < aspects.min() < 0.77
    assert 1.3 < aspects.max() < 1.35
    for row, column, tall, wide in boxes:
        assert 0 <= row <= row + tall <= height
        assert 0 <= column <= column + wide <= width


def test_area_crops_are_distributed_as_in_torchvision():
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    expected = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    boxes = [crop_box(GOOGLENET, 375, 500, draw).box for draw in draws(3000)]
    for value in (lambda b: b[0], lambda b: b[1], lambda b: b[2] * b[3], lambda b: b[3] / b[2]):
        assert ks_2samp([value(box) for box in boxes], [value(box) for box in expected]).pvalue > 1e-3


def test_image_that_no_draw_fits_gives_its_centre():
    assert area_crop(10, 100, (0.9, 1.0), (3 / 4, 4 / 3), lambda: 0.5) == (0, 43, 10, 13)
    assert area_crop(100, 10, (0.9, 1.0), (3 / 4, 4 / 3), lambda: 0.5) == (43, 0, 13, 10)
    assert area_crop(1, 1, (0.08, 1.0), (3 / 4, 4 / 3), lambda: 0.0) == (0, 0, 1, 1)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (17, 16), (500, 375)])
def test_image_of_any_size_gives_a_full_crop(spec, size):
    image = random_image(0, height=size[0], width=size[1])
    for draw in draws(20):
        pixels, _ = crop_image(spec, image, draw)
        assert pixels.shape == (16, 16, 3)
        assert pixels.dtype == torch.uint8


def test_random_interpolations_are_equally_frequent():
    assert sorted(RANDOM_INTERPOLATIONS) == ["area", "bicubic", "bilinear", "nearest"]  # GoogLeNet, section 6
    found = [crop_box(RANDOM, 40, 60, draw).interpolation for draw in draws(4000)]
    for name in RANDOM_INTERPOLATIONS:
        assert 890 < found.count(name) < 1110, name  # 1000 expected, standard deviation 27


def test_random_interpolation_changes_no_position():
    short = dataclasses.replace(RESNET, interpolation="random")
    for draw in draws(50):
        for random, fixed in ((RANDOM, GOOGLENET), (short, RESNET)):
            expected = crop_box(fixed, 40, 60, draw)
            assert crop_box(random, 40, 60, draw)._replace(interpolation="bilinear") == expected


def test_crop_is_resized_by_the_interpolation_drawn():
    image = random_image(2, height=70, width=90)
    for draw in draws(40):
        box = crop_box(RANDOM, 70, 90, draw)
        assert torch.equal(crop_image(RANDOM, image, draw)[0], resize(image, box.box, (16, 16), box.interpolation))


def test_crop_equals_pillows_resize_and_crop():
    image = random_image(1, height=90, width=140)
    for draw in draws(10):
        box = crop_box(RESNET, 90, 140, draw)
        resized = Image.fromarray(image).resize(box.size[::-1], Image.Resampling.BILINEAR)
        row, column = box.crop
        expected = np.asarray(resized)[row : row + 16, column : column + 16].astype(int)
        crop = crop_image(RESNET, image, draw)[0].numpy().astype(int)
        assert np.abs(crop - expected).max() <= 1
        assert np.abs(crop - expected).mean() < 0.2
