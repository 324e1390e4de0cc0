"""What a protocol shows of a picture, against Pillow and plain loops, and torchvision's crops."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as second_opinion

from pipeline.data import views as under_test
from pipeline.data.views import grid, protocol_views, squares
from pipeline.declare.protocol import parse_protocol
from tests.support import pillow_protocols

SIZES = [(48, 60), (60, 48), (50, 50), (32, 32), (300, 200), (7, 20), (20, 7), (400, 9), (9, 400), (1, 1), (1, 30)]


def shown(pixels, name):
    """Each part of a protocol: its groups."""
    return [protocol_views(pixels, part) for part in parse_protocol(name).parts]


def difference(pixels, name):
    """Mean and greatest difference of 255 from Pillow's views; infinite where number or size differ."""
    found, expected = [], []
    for groups, way in zip(shown(pixels, name), pillow_protocols.PROTOCOLS[name], strict=True):
        for group, short in zip(groups, way.shorts, strict=True):
            theirs = pillow_protocols.views(pixels, way, short)
            if group.pixels.shape != (len(theirs), *theirs[0][0].shape):
                return math.inf, math.inf
            assert group.pixels.dtype == torch.uint8
            found.append(group.pixels.numpy().ravel())
            expected.append(np.concatenate([view.ravel() for view, _ in theirs]))
    gap = np.abs(np.concatenate(found).astype(int) - np.concatenate(expected))
    return gap.mean(), gap.max()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_views_are_those_of_a_loop_with_pillow_whatever_the_pictures_size(name, size):
    mean, greatest = difference(pillow_protocols.picture(*size), name)
    assert mean < 0.25  # the two round differently
    assert greatest <= (4 if "bicubic" in name else 2)


def wrong_centre(height, width, side):
    return (height - side) // 2, (width - side + 2) // 2


@pytest.mark.parametrize(
    ("name", "function", "fault"),
    [
        ("1-crop-24-of-32", "middle", wrong_centre),
        ("10-crop-23-of-square-32", "middle", wrong_centre),
        ("144-crop-24-of-32-36-40-44", "middle", wrong_centre),
        ("144-crop-24-of-32-36-40-44", "squares", lambda *size: squares(*size)[:1] * 3),
        (
            "144-crop-24-of-32-36-40-44",
            "squares",
            lambda h, w: [(0, 0, min(h, w), min(h, w))] * 2 + squares(h, w)[2:],
        ),
        ("1-crop-21-of-32-bicubic", "short_side", lambda height, width, short: (short, short)),
    ],
)
def test_a_fault_would_show(monkeypatch, name, function, fault):
    pixels = pillow_protocols.picture(48, 60)
    assert difference(pixels, name)[1] <= 4
    monkeypatch.setattr(under_test, function, fault)
    assert difference(pixels, name)[1] > 8


@pytest.mark.parametrize("size", [(40, 54), (54, 40), (40, 40), (40, 53), (41, 40)])
def test_second_opinion_torchvisions_ten_crops(size):
    """Torchvision cuts the mirrored picture, where the paper mirrors what is cut: another order of the corners,
    and with half a pixel to round another middle."""
    pixels = pillow_protocols.picture(*size)
    [[group]] = shown(pixels, "10-crop-24-of-40")  # the short side as it is: nothing is resized
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    theirs = second_opinion.ten_crop(planes, [24, 24])
    ours = group.pixels.permute(0, 3, 1, 2)
    assert group.mirror
    assert torch.equal(ours, torch.stack(theirs[:5]))
    order = [1, 0, 3, 2, 4] if size[1] % 2 == 0 else [1, 0, 3, 2]
    assert torch.equal(ours.flip(3)[order], torch.stack(theirs[5:])[: len(order)])
    [[middle]] = shown(pixels, "1-crop-23-of-40")
    assert torch.equal(middle.pixels[0].permute(2, 0, 1), second_opinion.center_crop(planes, [23, 23]))
    assert not middle.mirror


@pytest.mark.parametrize("size", [(48, 60), (60, 48), (33, 33)])
def test_corners_of_crops_out_of_a_square_are_their_places_in_it(size):
    pixels = pillow_protocols.picture(*size)
    [[whole]] = shown(pixels, "1-crop-32-of-square-32")
    assert (whole.frame, whole.corners.tolist()) == (32, [[0, 0]])
    [[group]] = shown(pixels, "10-crop-23-of-square-32")
    assert (group.frame, group.corners.dtype) == (32, torch.int64)
    assert group.corners.tolist() == [[0, 0], [0, 9], [9, 0], [9, 9], [4, 4]]
    for view, (row, column) in zip(group.pixels, group.corners.tolist(), strict=True):
        assert torch.equal(view, whole.pixels[0][row : row + 23, column : column + 23])


@pytest.mark.parametrize("name", ["1-crop-24-of-32", "10-crop-24-of-32", "50-crop-24-of-32", "dense-of-32"])
def test_what_is_not_cut_out_of_a_square_has_no_place_in_one(name):
    [[group]] = shown(pillow_protocols.picture(40, 50), name)
    assert (group.corners, group.frame) == (None, None)


def test_the_grid_is_regular_and_touches_the_borders():
    places = grid(256, 344, 224)  # 32 and 120 pixels to spare
    assert places[:5] == [(0, 0), (0, 30), (0, 60), (0, 90), (0, 120)]
    assert [row for row, _ in places[::5]] == [0, 8, 16, 24, 32]
    assert len(set(places)) == 25
    assert set(grid(224, 224, 224)) == {(0, 0)}


def test_googlenets_squares_lie_left_middle_and_right_or_top_middle_and_bottom():
    assert squares(256, 300) == [(0, 0, 256, 256), (0, 22, 256, 256), (0, 44, 256, 256)]
    assert squares(300, 256) == [(0, 0, 256, 256), (22, 0, 256, 256), (44, 0, 256, 256)]
    assert squares(256, 256) == [(0, 0, 256, 256)] * 3


def test_dense_shows_the_whole_picture_and_its_mirror_image_once_at_each_scale():
    [groups] = shown(pillow_protocols.picture(50, 75), "dense-of-24-36")
    assert [group.pixels.shape for group in groups] == [(1, 24, 36, 3), (1, 36, 54, 3)]
    assert all(group.dense and group.mirror for group in groups)


@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_views_and_mirror_images_are_as_many_as_the_protocol_counts(name):
    groups = [group for part in shown(pillow_protocols.picture(44, 70), name) for group in part]
    assert sum(len(group.pixels) * (1 + group.mirror) for group in groups) == parse_protocol(name).views


def test_the_picture_is_not_changed_and_may_be_read_only():
    pixels = pillow_protocols.picture(24, 24)
    before = pixels.copy()
    pixels.flags.writeable = False
    for [group] in (*shown(pixels, "dense-of-24"), *shown(pixels, "1-crop-24-of-24")):
        assert np.array_equal(group.pixels[0].numpy(), before)
        group.pixels.zero_()
    assert np.array_equal(pixels, before)
