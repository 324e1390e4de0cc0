"""Views by test protocols against loops with Pillow, and against torchvision's crops."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from pipeline.data import views as views_module
from pipeline.data.views import grid, protocol_views, squares
from pipeline.declare.protocol import parse_protocol
from tests.support import pillow_protocols

SIZES = [(48, 60), (60, 48), (50, 50), (32, 32), (300, 200), (7, 20), (20, 7), (400, 9), (9, 400), (1, 1), (1, 30)]


def views_by_part(pixels, name):
    """Return the groups of views of each part of a protocol."""
    return [protocol_views(pixels, part) for part in parse_protocol(name).parts]


def difference(pixels, name):
    """Return mean and maximum difference from Pillow's views, of 255; infinite if number or size differ."""
    views, expected = [], []
    for groups, way in zip(views_by_part(pixels, name), pillow_protocols.PROTOCOLS[name], strict=True):
        for group, short in zip(groups, way.shorts, strict=True):
            theirs = pillow_protocols.views(pixels, way, short)
            if group.pixels.shape != (len(theirs), *theirs[0][0].shape):
                return math.inf, math.inf
            assert group.pixels.dtype == torch.uint8
            views.append(group.pixels.numpy().ravel())
            expected.append(np.concatenate([view.ravel() for view, _ in theirs]))
    errors = np.abs(np.concatenate(views).astype(int) - np.concatenate(expected))
    return errors.mean(), errors.max()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_views_of_any_size_equal_a_loop_with_pillow(name, size):
    mean, maximum = difference(pillow_protocols.picture(*size), name)
    assert mean < 0.25  # the two round differently
    assert maximum <= (4 if "bicubic" in name else 2)


def wrong_centre(height, width, side):
    return (height - side) // 2, (width - side + 2) // 2


@pytest.mark.parametrize(
    ("name", "function", "fault"),
    [
        ("1-crop-24-of-32", "centre_offset", wrong_centre),
        ("10-crop-23-of-square-32", "centre_offset", wrong_centre),
        ("144-crop-24-of-32-36-40-44", "centre_offset", wrong_centre),
        ("144-crop-24-of-32-36-40-44", "squares", lambda *size: squares(*size)[:1] * 3),
        (
            "144-crop-24-of-32-36-40-44",
            "squares",
            lambda h, w: [(0, 0, min(h, w), min(h, w))] * 2 + squares(h, w)[2:],
        ),
        ("1-crop-21-of-32-bicubic", "size_for_short_side", lambda height, width, short: (short, short)),
    ],
)
def test_fault_in_the_views_is_detected(monkeypatch, name, function, fault):
    pixels = pillow_protocols.picture(48, 60)
    assert difference(pixels, name)[1] <= 4
    monkeypatch.setattr(views_module, function, fault)
    assert difference(pixels, name)[1] > 8


@pytest.mark.parametrize("size", [(40, 54), (54, 40), (40, 40), (40, 53), (41, 40)])
def test_ten_crops_equal_torchvisions(size):
    """torchvision crops the mirrored image, and the paper mirrors the crops. This gives another order of the
    corners, and another centre if half a pixel is rounded."""
    pixels = pillow_protocols.picture(*size)
    [[group]] = views_by_part(pixels, "10-crop-24-of-40")  # the short side is 40: nothing is resized
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = TF.ten_crop(planes, [24, 24])
    crops = group.pixels.permute(0, 3, 1, 2)
    assert group.mirror
    assert torch.equal(crops, torch.stack(expected[:5]))
    order = [1, 0, 3, 2, 4] if size[1] % 2 == 0 else [1, 0, 3, 2]
    assert torch.equal(crops.flip(3)[order], torch.stack(expected[5:])[: len(order)])
    [[centre]] = views_by_part(pixels, "1-crop-23-of-40")
    assert torch.equal(centre.pixels[0].permute(2, 0, 1), TF.center_crop(planes, [23, 23]))
    assert not centre.mirror


@pytest.mark.parametrize("size", [(48, 60), (60, 48), (33, 33)])
def test_crops_of_a_square_have_their_corners_in_it(size):
    pixels = pillow_protocols.picture(*size)
    [[whole]] = views_by_part(pixels, "1-crop-32-of-square-32")
    assert (whole.frame, whole.corners.tolist()) == (32, [[0, 0]])
    [[group]] = views_by_part(pixels, "10-crop-23-of-square-32")
    assert (group.frame, group.corners.dtype) == (32, torch.int64)
    assert group.corners.tolist() == [[0, 0], [0, 9], [9, 0], [9, 9], [4, 4]]
    for view, (row, column) in zip(group.pixels, group.corners.tolist(), strict=True):
        assert torch.equal(view, whole.pixels[0][row : row + 23, column : column + 23])


@pytest.mark.parametrize("name", ["1-crop-24-of-32", "10-crop-24-of-32", "50-crop-24-of-32", "dense-of-32"])
def test_other_views_have_no_corners(name):
    [[group]] = views_by_part(pillow_protocols.picture(40, 50), name)
    assert (group.corners, group.frame) == (None, None)


def test_grid_is_regular_and_touches_the_borders():
    positions = grid(256, 344, 224)  # 32 and 120 pixels to spare
    assert positions[:5] == [(0, 0), (0, 30), (0, 60), (0, 90), (0, 120)]
    assert [row for row, _ in positions[::5]] == [0, 8, 16, 24, 32]
    assert len(set(positions)) == 25
    assert set(grid(224, 224, 224)) == {(0, 0)}


def test_googlenets_squares_are_at_the_ends_and_the_centre():
    assert squares(256, 300) == [(0, 0, 256, 256), (0, 22, 256, 256), (0, 44, 256, 256)]
    assert squares(300, 256) == [(0, 0, 256, 256), (22, 0, 256, 256), (44, 0, 256, 256)]
    assert squares(256, 256) == [(0, 0, 256, 256)] * 3


def test_dense_protocol_has_the_whole_image_and_its_mirror_image_at_each_scale():
    [groups] = views_by_part(pillow_protocols.picture(50, 75), "dense-of-24-36")
    assert [group.pixels.shape for group in groups] == [(1, 24, 36, 3), (1, 36, 54, 3)]
    assert all(group.dense and group.mirror for group in groups)


@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_number_of_views_is_that_of_the_protocol(name):
    groups = [group for part in views_by_part(pillow_protocols.picture(44, 70), name) for group in part]
    assert sum(len(group.pixels) * (1 + group.mirror) for group in groups) == parse_protocol(name).views


def test_image_is_not_changed_and_can_be_read_only():
    pixels = pillow_protocols.picture(24, 24)
    before = pixels.copy()
    pixels.flags.writeable = False
    for [group] in (*views_by_part(pixels, "dense-of-24"), *views_by_part(pixels, "1-crop-24-of-24")):
        assert np.array_equal(group.pixels[0].numpy(), before)
        group.pixels.zero_()
    assert np.array_equal(pixels, before)
