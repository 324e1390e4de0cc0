"""Batches against slow, obvious implementations; feeding on any number of ranks."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.data import batches
from pipeline.data.batches import Batch, BatchBuilder, InMemoryFeed, evaluation_batches, rank_slices
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.normalise import NORMALISERS, fit_normaliser, whitened
from pipeline.data.order import batch_indices, permutation


def some(n=40, height=8, width=6, channels=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=draw)
    return LabelledImages(pixels, torch.randint(0, 10, (n,), generator=draw))


def maker_of(images, name="per-pixel-mean", **options):
    return BatchBuilder(images, normalise=fit_normaliser(name, images), **options)


def nhwc(batch):
    return batch.permute(0, 2, 3, 1).numpy()


# Normalisers: what each of them is, test_normalise.py says.


@pytest.mark.parametrize("name", NORMALISERS)
def test_images_are_normalised_as_fitted(name):
    images = some()
    made, fitted = nhwc(maker_of(images, name)(torch.arange(40))), fit_normaliser(name, images)
    x = images.pixels
    x = x if fitted.whitening is None else whitened(x, fitted.whitening)
    np.testing.assert_allclose(
        made, x * fitted.scale.double() - fitted.shift, atol=1e-4 if "raw" in name else 2e-6
    )


def test_the_mean_is_the_training_part_s():
    training, test = some(seed=0), some(seed=1)
    made = BatchBuilder(test, normalise=fit_normaliser("per-pixel-mean", training))(torch.arange(40))
    mean = training.pixels.numpy().mean(0) / 255
    np.testing.assert_allclose(nhwc(made), test.pixels.numpy() / 255 - mean, atol=1e-6)


def test_normaliser_of_another_size_is_refused():
    with pytest.raises(DataError, match="fitted on 8 x 6 x 3 images and these are 9 x 6 x 3; fit it on"):
        BatchBuilder(some(height=9), normalise=fit_normaliser("per-pixel-mean", some()))
    with pytest.raises(DataError, match="fitted on 8 x 6 x 3 images and these are 8 x 6 x 1"):
        BatchBuilder(some(channels=1), normalise=fit_normaliser("per-channel", some()))


# The batch itself.


def test_batch_is_float32_in_channels_last_format():
    for channels in (1, 3):
        maker = maker_of(some(channels=channels), augment=("pad2-crop", "flip", "distort"))
        made = maker(torch.arange(5), maker.draw(0, 0, 5))
        assert made.shape == (5, channels, 8, 6)
        assert made.dtype == torch.float32
        assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [10, 11])
def test_pad_to_centres_on_background(size):
    images = some()
    made = nhwc(maker_of(images, "lecun98", pad_to=size)(torch.arange(40)))
    top, left = (size - 8) // 2, (size - 6) // 2
    expected = np.full((40, size, size, 3), -0.1)
    expected[:, top : top + 8, left : left + 6] = images.pixels.numpy() / 255 * 1.275 - 0.1
    np.testing.assert_allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["per-pixel-mean", "per-channel"])
def test_pad_to_is_normalised_as_background(name):
    images = some()
    made = maker_of(images, name, pad_to=12)(torch.arange(3))
    x = images.pixels.numpy() / 255
    corner = np.zeros(3) if name == "per-pixel-mean" else -x.mean((0, 1, 2)) / x.std((0, 1, 2))
    np.testing.assert_allclose(nhwc(made)[:, 0, 0], np.tile(corner, (3, 1)), atol=1e-6)


def test_pad_to_less_than_the_image_is_refused():
    with pytest.raises(DataError, match="pad_to 7 is smaller than the 8 x 6 images; use 8 or more"):
        maker_of(some(), pad_to=7)


def cropped(indices, draws, *, pad, flip, normalised, outside=0.0):
    """One image, one row, one column at a time: pad after normalising, crop, then flip."""
    out = []
    for index, (row_draw, column_draw, flip_draw) in zip(indices, draws[:, :3].tolist(), strict=True):
        image = normalised[index]
        height, width, channels = image.shape
        padded = np.full((height + 2 * pad, width + 2 * pad, channels), outside)
        padded[pad : pad + height, pad : pad + width] = image
        top, left = int(row_draw * (2 * pad + 1)), int(column_draw * (2 * pad + 1))
        window = padded[top : top + height, left : left + width]
        out.append(window[:, ::-1] if flip and flip_draw < 0.5 else window)
    return np.stack(out)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_match_a_slow_loop(pad, flip, channels):
    images = some(channels=channels)
    augment = (*([f"pad{pad}-crop"] if pad else []), *(["flip"] if flip else []))
    maker = maker_of(images, augment=augment)
    indices, draws = torch.arange(39, -1, -1), maker.draw(3, 5, 40)
    x = images.pixels.numpy() / 255
    expected = cropped(indices, draws, pad=pad, flip=flip, normalised=x - x.mean(0))
    np.testing.assert_allclose(nhwc(maker(indices, draws)), expected, atol=1e-6)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("pad", "pad_to"), [(1, None), (4, None), (5, None), (4, 11)])
def test_missing_pixels_are_reflected_as_numpy_pads(pad, pad_to, flip):
    images = some()
    maker = maker_of(images, augment=(f"reflect{pad}-crop", *(["flip"] if flip else [])), pad_to=pad_to)
    indices, draws = torch.arange(39, -1, -1), maker.draw(3, 5, 40)
    whole = nhwc(maker_of(images, pad_to=pad_to)(indices))
    border = (0, 0), (pad, pad), (pad, pad), (0, 0)
    found = []
    for image, (down, right, mirrored) in zip(
        np.pad(whole, border, "reflect"), draws[:, :3].tolist(), strict=True
    ):
        top, left = int(down * (2 * pad + 1)), int(right * (2 * pad + 1))
        window = image[top : top + whole.shape[1], left : left + whole.shape[2]]
        found.append(window[:, ::-1] if flip and mirrored < 0.5 else window)
    np.testing.assert_array_equal(nhwc(maker(indices, draws)), np.stack(found))


def test_an_image_with_fewer_pixels_than_are_reflected_is_refused():
    with pytest.raises(
        DataError, match="'reflect6-crop' mirrors 6 pixels beyond the border, and the images are 8 x 6"
    ):
        maker_of(some(), augment=("reflect6-crop",))


def test_padding_comes_after_mean_subtraction():
    """White images minus their mean are 0 everywhere; a border padded before would be -1."""
    white = LabelledImages(torch.full((4, 8, 8, 3), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    maker = maker_of(white, augment=("pad4-crop",))
    assert maker(torch.arange(4), maker.draw(0, 0, 4)).abs().max() < 1e-6


def test_lecun98_crops_from_background():
    images = some()
    maker = maker_of(images, "lecun98", augment=("pad4-crop",))
    draws = maker.draw(0, 0, 40)
    x = images.pixels.numpy() / 255 * 1.275 - 0.1
    expected = cropped(torch.arange(40), draws, pad=4, flip=False, normalised=x, outside=-0.1)
    np.testing.assert_allclose(nhwc(maker(torch.arange(40), draws)), expected, atol=1e-6)


# Whitened images.


def test_whitened_images_are_padded_with_0_after_it():
    images = some()
    plain, maker = maker_of(images, "gcn-zca"), maker_of(images, "gcn-zca", pad_to=11)
    expected = np.zeros((40, 11, 11, 3))
    expected[:, 1:9, 2:8] = nhwc(plain(torch.arange(40)))
    np.testing.assert_array_equal(nhwc(maker(torch.arange(40))), expected)


def test_whitened_images_are_cropped_from_0_and_flipped():
    images = some()
    maker = maker_of(images, "gcn-zca", augment=("pad2-crop", "flip"))
    plain, draws = nhwc(maker_of(images, "gcn-zca")(torch.arange(40))), maker.draw(0, 0, 40)
    expected = cropped(range(40), draws, pad=2, flip=True, normalised=plain)
    np.testing.assert_array_equal(nhwc(maker(torch.arange(40), draws)), expected.astype(np.float32))


def test_images_are_distorted_before_they_are_whitened():
    images = some()
    maker = maker_of(images, "gcn-zca", augment=("distort",))
    draws = maker.draw(0, 0, 40)
    pixels = maker_of(images, "scale", augment=("distort",))(torch.arange(40), draws) * 255
    moved = LabelledImages(pixels.permute(0, 2, 3, 1).round().to(torch.uint8), images.labels)
    expected = BatchBuilder(moved, normalise=fit_normaliser("gcn-zca", images))(torch.arange(40))
    np.testing.assert_array_equal(nhwc(maker(torch.arange(40), draws)), nhwc(expected))


@pytest.mark.parametrize("augment", [("pad2-crop", "flip"), ("pad2-crop", "flip", "distort")])
def test_a_whitened_image_is_the_same_bits_in_any_share(augment):
    images = some(height=16, width=16)
    maker = maker_of(images, "gcn-zca", augment=augment)
    draws, order = maker.draw(0, 0, 40), torch.randperm(40)
    whole = maker(order, draws)
    for world in (2, 3, 40):
        for rank in range(world):
            assert torch.equal(maker(order[rank::world], draws[rank::world]), whole[rank::world])


def test_every_offset_and_both_flips_occur_equally_often():
    pixels = torch.arange(81, dtype=torch.uint8).reshape(1, 9, 9, 1)  # the centre tells the offset
    maker = maker_of(
        LabelledImages(pixels, torch.zeros(1, dtype=torch.int64)), "scale", augment=("pad4-crop", "flip")
    )
    made = maker(torch.zeros(8100, dtype=torch.int64), maker.draw(0, 0, 8100))
    centres = (made[:, 0, 4, 4] * 255).round().long()
    counts = torch.bincount(centres, minlength=81)
    assert counts.min() > 60  # 100 expected, standard deviation 10
    assert counts.max() < 140
    flipped = (made[:, 0, 4, 3] > made[:, 0, 4, 5]) & (centres % 9 > 0) & (centres % 9 < 8)
    assert 0.46 < flipped.sum() / ((centres % 9 > 0) & (centres % 9 < 8)).sum() < 0.54


def test_largest_draw_stays_inside_the_padded_image():
    maker = maker_of(some(), augment=("pad4-crop", "flip", "distort"))
    largest = torch.full((40, 9), float(np.nextafter(1.0, 0.0)), dtype=torch.float64)
    assert maker(torch.arange(40), largest).isfinite().all()


def test_without_draws_nothing_is_augmented():
    images = some()
    plain, augmented = maker_of(images), maker_of(images, augment=("pad4-crop", "flip", "distort"))
    assert torch.equal(plain(torch.arange(40)), augmented(torch.arange(40)))
    assert not torch.equal(plain(torch.arange(40)), augmented(torch.arange(40), augmented.draw(0, 0, 40)))


def test_the_images_themselves_are_never_changed():
    images = some()
    before = images.pixels.clone()
    maker = maker_of(images, augment=("pad4-crop", "flip", "distort"))
    maker(torch.arange(40), maker.draw(0, 0, 40)).zero_()
    assert torch.equal(images.pixels, before)


@pytest.mark.parametrize(
    ("augment", "text"),
    [
        (("pad4",), "unknown augmentation 'pad4'; did you mean 'pad4-crop'?"),
        (("filp",), "unknown augmentation 'filp'; did you mean 'flip'?"),
        (("pad0-crop",), "unknown augmentation 'pad0-crop'; did you mean 'pad4-crop'?"),
        (("flip", "flip"), "flip, flip repeats one; remove it"),
        (("pad4-crop", "pad1-crop"), "pad4-crop, pad1-crop repeats one; remove it"),
        (("pad4-crop", "reflect4-crop"), "pad4-crop, reflect4-crop repeats one; remove it"),
        (("reflect-crop",), "unknown augmentation 'reflect-crop'; did you mean 'reflect4-crop'?"),
    ],
)
def test_augmentation_that_cannot_be_is_refused(augment, text):
    with pytest.raises(DataError, match=re.escape(text)):
        maker_of(some(), augment=augment)


# distort: rows of draws are (crop, crop, flip | chosen, right, down, size, squeeze, shear).


def distorted(pixels, **draws):
    """One (H, W) image distorted with the given draws, 0.5 (no change) for the others."""
    names = ("chosen", "right", "down", "size", "squeeze", "shear")
    row = [0.5, 0.5, 0.5] + [draws.get(name, 0.5) for name in names]
    images = LabelledImages(torch.as_tensor(pixels, dtype=torch.uint8)[None, :, :, None], torch.zeros(1))
    made = maker_of(images, "scale", augment=("distort",))(
        torch.tensor([0]), torch.tensor([row], dtype=torch.float64)
    )
    return (made[0, 0] * 255).numpy()


def centre_and_spread(image):
    """Centre of mass (row, column) and standard deviations (row, column) of an image's ink."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    mean = [np.average(axis, weights=image) for axis in (rows, columns)]
    spread = [
        np.sqrt(np.average((axis - m) ** 2, weights=image)) for axis, m in zip((rows, columns), mean, strict=True)
    ]
    return np.array(mean), np.array(spread)


@pytest.fixture
def blob():
    image = np.zeros((32, 32), np.uint8)
    image[10:22, 10:22] = 200
    return image


def test_distortion_of_nothing_is_nothing(blob):
    np.testing.assert_allclose(distorted(blob), blob, atol=0.01)


def test_distortion_moves_by_whole_pixels(blob):
    right, down = 0.75, 0.0  # one pixel right, two up
    assert batches.TRANSLATION == 2
    np.testing.assert_allclose(distorted(blob, right=right, down=down), np.roll(blob, (-2, 1), (0, 1)), atol=0.01)


@pytest.mark.parametrize(
    ("draws", "height", "width"),
    [({"size": 1.0}, 1.1, 1.1), ({"size": 0.0}, 0.9, 0.9), ({"squeeze": 0.0}, 1 / 0.9, 0.9)],
)
def test_distortion_scales_and_squeezes(blob, draws, height, width):
    (_, before), (centre, after) = centre_and_spread(blob), centre_and_spread(distorted(blob, **draws))
    np.testing.assert_allclose(after / before, [height, width], rtol=0.02)
    np.testing.assert_allclose(centre, [15.5, 15.5], atol=0.01)


def test_distortion_shears_rows_horizontally():
    line = np.zeros((32, 32), np.uint8)
    line[6:26, 14:18] = 200
    image = distorted(line, shear=1.0)
    columns = [np.average(np.arange(32), weights=image[row]) for row in (8, 23)]
    assert abs((columns[0] - columns[1]) / 15) == pytest.approx(batches.SHEAR, abs=0.01)


def test_distorted_background_stays_background():
    maker = maker_of(LabelledImages(torch.zeros(8, 28, 28, 1, dtype=torch.uint8), torch.zeros(8)), "lecun98",
                     augment=("distort",), pad_to=32)  # fmt: skip
    made = maker(torch.arange(8), maker.draw(0, 0, 8))
    assert torch.allclose(made, torch.tensor(-0.1))


def test_one_image_in_ten_is_not_distorted():
    images = some(1, 8, 8)
    plain, maker = maker_of(images, "scale"), maker_of(images, "scale", augment=("distort",))
    many = torch.zeros(2000, dtype=torch.int64)
    untouched = (maker(many, maker.draw(0, 0, 2000)) == plain(many)).flatten(1).all(1)
    assert 0.08 < untouched.float().mean() < 0.12


# Feeding.

ALL = ("pad2-crop", "flip", "distort")


def feed(images, **options):
    defaults = {"seed": 1, "batch_size": 8, "start_step": 0, "stop_step": 12}
    return InMemoryFeed(maker_of(images, augment=ALL), images.labels, **(defaults | options))


def test_batches_are_those_of_the_order():
    images = some()
    for step, batch in enumerate(feed(images)):
        indices = batch_indices(1, step, 8, 40)
        assert batch.step == step
        assert torch.equal(batch.labels, images.labels[indices])
        maker = maker_of(images, augment=ALL)
        assert torch.equal(batch.images, maker(indices, maker.draw(1, step, 8)))


def test_an_epoch_has_each_image_once_also_when_batches_straddle():
    pixels = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    images = LabelledImages(pixels, torch.arange(10))
    feeding = InMemoryFeed(
        maker_of(images, "scale"), images.labels, seed=0, batch_size=4, start_step=0, stop_step=5
    )
    seen = torch.cat([batch.labels for batch in feeding])
    assert torch.equal(seen, torch.cat([permutation(0, 0, 10), permutation(0, 1, 10)]))
    assert torch.equal((torch.cat([batch.images.flatten() for batch in feeding]) * 255).round().long(), seen)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("block", [1, 3])
def test_ranks_together_have_the_batches_of_one(world, block):
    images = some()
    whole = list(feed(images, block=block))
    shares = [list(feed(images, block=block, rank=rank, world=world)) for rank in range(world)]
    for number, batch in enumerate(whole):
        for rank in range(world):
            share = shares[rank][number]
            assert share.step == batch.step
            assert torch.equal(share.images, batch.images[rank::world])
            assert torch.equal(share.labels, batch.labels[rank::world])


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (1, 4), (2, 2), (4, 1), (1, 8), (4, 2), (8, 1)])
def test_groups_of_a_batch_are_the_same_images_on_any_number_of_ranks(world, parts):
    images, count = some(), world * parts
    whole = list(feed(images))
    ranks = [list(feed(images, rank=rank, world=world, parts=parts)) for rank in range(world)]
    for step, batch in enumerate(whole):
        for group in range(count):
            found = ranks[group % world][step * parts + group // world]
            assert found.step == step
            assert torch.equal(found.images, batch.images[group::count])
            assert torch.equal(found.labels, batch.labels[group::count])
    assert all(len(rank) == len(feed(images, world=world, parts=parts)) == 12 * parts for rank in ranks)


def test_parts_of_a_rank_are_its_groups_one_after_the_other():
    assert rank_slices(20, 1, 2, 2) == [slice(1, None, 4), slice(3, None, 4)]
    assert rank_slices(20, 0, 1, 1) == [slice(0, None, 1)]
    with pytest.raises(DataError, match="20 cannot be shared equally by 8 ranks"):
        rank_slices(20, 1, 2, 4)


@pytest.mark.parametrize("block", [2, 5, 100])
def test_blocks_are_consecutive_batches_joined(block):
    images = some()
    single, blocks = list(feed(images)), list(feed(images, block=block))
    assert [batch.step for batch in blocks] == list(range(0, 12, block))
    assert len(feed(images, block=block)) == len(blocks)
    assert torch.equal(torch.cat([b.images for b in blocks]), torch.cat([b.images for b in single]))
    assert torch.equal(torch.cat([b.labels for b in blocks]), torch.cat([b.labels for b in single]))


def test_resumed_feed_continues_with_the_same_bits():
    images = some()
    whole, rest = list(feed(images)), list(feed(images, start_step=7))
    assert [batch.step for batch in rest] == [7, 8, 9, 10, 11]
    for one, other in zip(whole[7:], rest, strict=True):
        assert torch.equal(one.images, other.images)


def test_draws_differ_from_step_to_step_and_image_to_image():
    maker = maker_of(some())
    first, second = maker.draw(0, 0, 8), maker.draw(0, 1, 8)
    assert len(torch.cat([first, second]).unique()) == 2 * 8 * 9


def test_a_feed_can_be_read_twice():
    feeding = feed(some())
    assert all(torch.equal(a.images, b.images) for a, b in zip(feeding, feeding, strict=True))


def test_seeds_differ():
    first, other = (next(iter(feed(some(), seed=seed))) for seed in (1, 2))
    assert not torch.equal(first.images, other.images)


HOME = Path(pipeline.__file__).parents[1]
FRESH = """
import hashlib, torch
from pipeline.data.batches import BatchMaker, Feed
from pipeline.data.images import Images
from pipeline.data.normalise import fit_normaliser
pixels = (torch.arange(40 * 8 * 6 * 3) * 7919 % 251).to(torch.uint8).reshape(40, 8, 6, 3)
images = Images(pixels, torch.arange(40) % 10)
maker = BatchMaker(
    images, normalise=fit_normaliser("per-pixel-mean", images), augment=("pad2-crop", "flip", "distort")
)
feed = Feed(maker, images.labels, seed=1, batch_size=8, start_step={start}, stop_step=12)
digest = hashlib.sha256(list(feed)[-1].images.contiguous().numpy().tobytes()).hexdigest()
"""


def test_a_fresh_process_makes_the_same_bits():
    here = {}
    exec(FRESH.format(start=0), here)
    code = FRESH.format(start=11) + "print(digest)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOME)
    there = run.stdout
    assert there.strip() == here["digest"]
    assert len(here["digest"]) == hashlib.sha256().digest_size * 2


def test_batch_size_that_ranks_cannot_share_names_the_possible_ones():
    with pytest.raises(DataError, match="8 cannot be shared equally by 3 ranks; use 1 or 2 or 4 or 8 ranks, or"):
        feed(some(), world=3)


@pytest.mark.parametrize("count", [0, 39])
def test_labels_of_other_images_are_refused(count):
    images = some()
    with pytest.raises(DataError, match=f"40 images with {count} labels cannot be fed"):
        InMemoryFeed(maker_of(images), images.labels[:count], seed=0, batch_size=8, start_step=0, stop_step=1)
    with pytest.raises(DataError, match=f"40 images with {count} labels cannot be fed"):
        list(evaluation_batches(maker_of(images), images.labels[:count], batch_size=8))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [8, 13, 39, 100])
def test_evaluation_has_each_image_once_on_any_number_of_ranks(world, batch_size):
    images = LabelledImages(some().pixels, torch.arange(40))  # the label is the image's number
    maker = maker_of(images, augment=ALL)
    plain = maker(torch.arange(40))
    seen = []
    for rank in range(world):
        for batch in evaluation_batches(maker, images.labels, batch_size=batch_size, rank=rank, world=world):
            assert isinstance(batch, Batch)
            assert 0 < len(batch.labels) <= batch_size
            assert torch.equal(batch.images, plain[batch.labels])  # not augmented
            seen += batch.labels.tolist()
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 7, 499, 10_000])
def test_evaluation_has_each_of_so_many_images_once(count, batch_size, world):
    maker = maker_of(some(count, height=1, width=1), "scale")
    numbers = torch.arange(count)
    seen = [
        batch.labels
        for rank in range(world)
        for batch in evaluation_batches(maker, numbers, batch_size=batch_size, rank=rank, world=world)
    ]
    assert torch.equal(torch.cat(seen).sort().values, numbers)


def test_last_evaluation_batch_is_smaller():
    images = some()
    assert [len(batch.labels) for batch in evaluation_batches(maker_of(images), images.labels, batch_size=16)] == [
        16,
        16,
        8,
    ]
