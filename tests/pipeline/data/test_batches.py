"""Batches against slow, simple implementations; feeds on any number of ranks."""

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
from pipeline.data.normalise import NORMALISERS, fit_normaliser, locally_normalised, whitened
from pipeline.data.order import batch_indices, permutation


def random_images(n=40, height=8, width=6, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)
    return LabelledImages(pixels, torch.randint(0, 10, (n,), generator=generator))


def builder_of(images, name="per-pixel-mean", **options):
    """Return a builder with the normalisation fitted on the images themselves."""
    return BatchBuilder(images, normalise=fit_normaliser(name, images), **options)


def nhwc(batch):
    """Return a batch (N, C, H, W) as a numpy array (N, H, W, C)."""
    return batch.permute(0, 2, 3, 1).numpy()


# Normalisers; their values are tested in test_normalise.py.


@pytest.mark.parametrize("name", NORMALISERS)
def test_images_are_normalised_as_fitted(name):
    images = random_images()
    result, fitted = nhwc(builder_of(images, name)(torch.arange(40))), fit_normaliser(name, images)
    x = images.pixels
    x = x if fitted.whitening is None else whitened(x, fitted.whitening)
    x = locally_normalised(x) if fitted.local_contrast else x
    np.testing.assert_allclose(
        result, x * fitted.scale.double() - fitted.shift, atol=1e-4 if "raw" in name else 2e-6
    )


def test_mean_is_that_of_the_training_part():
    training, test = random_images(seed=0), random_images(seed=1)
    result = BatchBuilder(test, normalise=fit_normaliser("per-pixel-mean", training))(torch.arange(40))
    mean = training.pixels.numpy().mean(0) / 255
    np.testing.assert_allclose(nhwc(result), test.pixels.numpy() / 255 - mean, atol=1e-6)


def test_normaliser_of_another_size_is_rejected():
    with pytest.raises(DataError, match="fitted on 8 x 6 x 3 images, but these are 9 x 6 x 3; fit it on"):
        BatchBuilder(random_images(height=9), normalise=fit_normaliser("per-pixel-mean", random_images()))
    with pytest.raises(DataError, match="fitted on 8 x 6 x 3 images, but these are 8 x 6 x 1"):
        BatchBuilder(random_images(channels=1), normalise=fit_normaliser("per-channel", random_images()))


# Format and padding.


def test_batch_is_float32_in_channels_last_format():
    for channels in (1, 3):
        builder = builder_of(random_images(channels=channels), augment=("pad2-crop", "flip", "distort"))
        result = builder(torch.arange(5), builder.draw(0, 0, 5))
        assert result.shape == (5, channels, 8, 6)
        assert result.dtype == torch.float32
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [10, 11])
def test_pad_to_centres_on_background(size):
    images = random_images()
    result = nhwc(builder_of(images, "lecun98", pad_to=size)(torch.arange(40)))
    top, left = (size - 8) // 2, (size - 6) // 2
    expected = np.full((40, size, size, 3), -0.1)
    expected[:, top : top + 8, left : left + 6] = images.pixels.numpy() / 255 * 1.275 - 0.1
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["per-pixel-mean", "per-channel"])
def test_pad_to_is_normalised_as_background(name):
    images = random_images()
    result = builder_of(images, name, pad_to=12)(torch.arange(3))
    x = images.pixels.numpy() / 255
    corner = np.zeros(3) if name == "per-pixel-mean" else -x.mean((0, 1, 2)) / x.std((0, 1, 2))
    np.testing.assert_allclose(nhwc(result)[:, 0, 0], np.tile(corner, (3, 1)), atol=1e-6)


def test_images_that_are_not_padded_are_not_copied():
    images = random_images()
    assert builder_of(images).pixels.data_ptr() == images.pixels.data_ptr()


def test_pad_to_below_the_image_size_is_rejected():
    with pytest.raises(DataError, match="pad_to 7 is smaller than the 8 x 6 images; use 8 or more"):
        builder_of(random_images(), pad_to=7)


def slow_crops(indices, draws, *, pad, flip, normalised, pad_value=0.0):
    """Return the crops result one image at a time: pad the normalised image, crop, flip."""
    out = []
    for index, (row_draw, column_draw, flip_draw) in zip(indices, draws[:, :3].tolist(), strict=True):
        image = normalised[index]
        height, width, channels = image.shape
        padded = np.full((height + 2 * pad, width + 2 * pad, channels), pad_value)
        padded[pad : pad + height, pad : pad + width] = image
        top, left = int(row_draw * (2 * pad + 1)), int(column_draw * (2 * pad + 1))
        window = padded[top : top + height, left : left + width]
        out.append(window[:, ::-1] if flip and flip_draw < 0.5 else window)
    return np.stack(out)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_equal_a_slow_loop(pad, flip, channels):
    images = random_images(channels=channels)
    augment = (*([f"pad{pad}-crop"] if pad else []), *(["flip"] if flip else []))
    builder = builder_of(images, augment=augment)
    indices, draws = torch.arange(39, -1, -1), builder.draw(3, 5, 40)
    x = images.pixels.numpy() / 255
    expected = slow_crops(indices, draws, pad=pad, flip=flip, normalised=x - x.mean(0))
    np.testing.assert_allclose(nhwc(builder(indices, draws)), expected, atol=1e-6)


def test_pad_crop_is_a_translation_by_up_to_as_many_pixels_filled_with_0():
    """NiN and the maxout network move CIFAR-10's images: pad8-crop moves them by -8 to 8 pixels each way."""
    images = random_images(n=1, height=20, width=18)
    builder = builder_of(images, "gcn-zca", augment=("pad8-crop",))
    plain, draws = nhwc(builder(torch.tensor([0])))[0], builder.draw(0, 0, 400)
    found = nhwc(builder(torch.zeros(400, dtype=torch.int64), draws))
    moves = set()
    for image, (down, right) in zip(found, (8 - (draws[:, :2] * 17).long()).tolist(), strict=True):
        expected = np.zeros_like(plain)
        expected[max(down, 0) : 20 + down, max(right, 0) : 18 + right] = plain[
            max(-down, 0) : 20 - down, max(-right, 0) : 18 - right
        ]
        np.testing.assert_array_equal(image, expected)
        moves.add((down, right))
    assert {down for down, _ in moves} == {right for _, right in moves} == set(range(-8, 9))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("pad", "pad_to"), [(1, None), (4, None), (5, None), (4, 11)])
def test_reflected_border_equals_numpys(pad, pad_to, flip):
    images = random_images()
    builder = builder_of(images, augment=(f"reflect{pad}-crop", *(["flip"] if flip else [])), pad_to=pad_to)
    indices, draws = torch.arange(39, -1, -1), builder.draw(3, 5, 40)
    whole = nhwc(builder_of(images, pad_to=pad_to)(indices))
    border = (0, 0), (pad, pad), (pad, pad), (0, 0)
    expected = []
    for image, (down, right, mirrored) in zip(
        np.pad(whole, border, "reflect"), draws[:, :3].tolist(), strict=True
    ):
        top, left = int(down * (2 * pad + 1)), int(right * (2 * pad + 1))
        window = image[top : top + whole.shape[1], left : left + whole.shape[2]]
        expected.append(window[:, ::-1] if flip and mirrored < 0.5 else window)
    np.testing.assert_array_equal(nhwc(builder(indices, draws)), np.stack(expected))


def test_image_smaller_than_its_reflection_is_rejected():
    with pytest.raises(
        DataError, match="'reflect6-crop' mirrors 6 pixels at the border, but the images are 8 x 6"
    ):
        builder_of(random_images(), augment=("reflect6-crop",))


def test_padding_comes_after_mean_subtraction():
    """White images minus their mean are 0; a border padded before the subtraction would be -1."""
    white = LabelledImages(torch.full((4, 8, 8, 3), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    builder = builder_of(white, augment=("pad4-crop",))
    assert builder(torch.arange(4), builder.draw(0, 0, 4)).abs().max() < 1e-6


def test_lecun98_pads_crops_with_background():
    images = random_images()
    builder = builder_of(images, "lecun98", augment=("pad4-crop",))
    draws = builder.draw(0, 0, 40)
    x = images.pixels.numpy() / 255 * 1.275 - 0.1
    expected = slow_crops(torch.arange(40), draws, pad=4, flip=False, normalised=x, pad_value=-0.1)
    np.testing.assert_allclose(nhwc(builder(torch.arange(40), draws)), expected, atol=1e-6)


# Images whose normalisation needs the whole image.

OF_WHOLE_IMAGES = pytest.mark.parametrize("name", ["gcn-zca", "local-contrast"])


@OF_WHOLE_IMAGES
def test_images_are_padded_with_0_after_their_normalisation(name):
    images = random_images()
    plain, builder = builder_of(images, name), builder_of(images, name, pad_to=11)
    expected = np.zeros((40, 11, 11, 3))
    expected[:, 1:9, 2:8] = nhwc(plain(torch.arange(40)))
    np.testing.assert_array_equal(nhwc(builder(torch.arange(40))), expected)


@OF_WHOLE_IMAGES
def test_normalised_images_are_cropped_with_0_and_flipped(name):
    images = random_images()
    builder = builder_of(images, name, augment=("pad2-crop", "flip"))
    plain, draws = nhwc(builder_of(images, name)(torch.arange(40))), builder.draw(0, 0, 40)
    expected = slow_crops(range(40), draws, pad=2, flip=True, normalised=plain)
    np.testing.assert_array_equal(nhwc(builder(torch.arange(40), draws)), expected.astype(np.float32))


@OF_WHOLE_IMAGES
def test_images_are_distorted_before_their_normalisation(name):
    images = random_images()
    builder = builder_of(images, name, augment=("distort",))
    draws = builder.draw(0, 0, 40)
    pixels = builder_of(images, "scale", augment=("distort",))(torch.arange(40), draws) * 255
    moved = LabelledImages(pixels.permute(0, 2, 3, 1).round().to(torch.uint8), images.labels)
    expected = BatchBuilder(moved, normalise=fit_normaliser(name, images))(torch.arange(40))
    np.testing.assert_array_equal(nhwc(builder(torch.arange(40), draws)), nhwc(expected))


@OF_WHOLE_IMAGES
@pytest.mark.parametrize("augment", [("pad2-crop", "flip"), ("pad2-crop", "flip", "distort")])
def test_normalised_image_has_the_same_bits_in_any_micro_batch(name, augment):
    images = random_images(height=16, width=16)
    builder = builder_of(images, name, augment=augment)
    draws, order = builder.draw(0, 0, 40), torch.randperm(40)
    whole = builder(order, draws)
    for world in (2, 3, 40):
        for rank in range(world):
            assert torch.equal(builder(order[rank::world], draws[rank::world]), whole[rank::world])


def test_offsets_and_flips_are_uniform():
    pixels = torch.arange(81, dtype=torch.uint8).reshape(1, 9, 9, 1)  # the centre pixel identifies the offset
    builder = builder_of(
        LabelledImages(pixels, torch.zeros(1, dtype=torch.int64)), "scale", augment=("pad4-crop", "flip")
    )
    result = builder(torch.zeros(8100, dtype=torch.int64), builder.draw(0, 0, 8100))
    centres = (result[:, 0, 4, 4] * 255).round().long()
    counts = torch.bincount(centres, minlength=81)
    assert counts.min() > 60  # 100 expected, standard deviation 10
    assert counts.max() < 140
    flipped = (result[:, 0, 4, 3] > result[:, 0, 4, 5]) & (centres % 9 > 0) & (centres % 9 < 8)
    assert 0.46 < flipped.sum() / ((centres % 9 > 0) & (centres % 9 < 8)).sum() < 0.54


def test_largest_draw_stays_in_the_padded_image():
    builder = builder_of(random_images(), augment=("pad4-crop", "flip", "distort"))
    largest = torch.full((40, 9), float(np.nextafter(1.0, 0.0)), dtype=torch.float64)
    assert builder(torch.arange(40), largest).isfinite().all()


def test_batch_without_draws_is_not_augmented():
    images = random_images()
    plain, augmented = builder_of(images), builder_of(images, augment=("pad4-crop", "flip", "distort"))
    assert torch.equal(plain(torch.arange(40)), augmented(torch.arange(40)))
    assert not torch.equal(plain(torch.arange(40)), augmented(torch.arange(40), augmented.draw(0, 0, 40)))


def test_images_are_not_changed():
    images = random_images()
    before = images.pixels.clone()
    builder = builder_of(images, augment=("pad4-crop", "flip", "distort"))
    builder(torch.arange(40), builder.draw(0, 0, 40)).zero_()
    assert torch.equal(images.pixels, before)


@pytest.mark.parametrize(
    ("augment", "text"),
    [
        (("pad4",), "unknown augmentation 'pad4'; did you mean 'pad4-crop'?"),
        (("filp",), "unknown augmentation 'filp'; did you mean 'flip'?"),
        (("pad0-crop",), "unknown augmentation 'pad0-crop'; did you mean 'pad4-crop'?"),
        (("flip", "flip"), "flip, flip names one kind twice; remove one"),
        (("pad4-crop", "pad1-crop"), "pad4-crop, pad1-crop names one kind twice; remove one"),
        (("pad4-crop", "reflect4-crop"), "pad4-crop, reflect4-crop names one kind twice; remove one"),
        (("reflect-crop",), "unknown augmentation 'reflect-crop'; did you mean 'reflect4-crop'?"),
    ],
)
def test_invalid_augmentation_is_rejected(augment, text):
    with pytest.raises(DataError, match=re.escape(text)):
        builder_of(random_images(), augment=augment)


# distort: columns of draws are (crop, crop, flip | is distorted, right, down, size, squeeze, shear).


def distorted(pixels, **draws):
    """Return one (H, W) image distorted with the given draws, and 0.5 (no change) for the others."""
    names = ("is_distorted", "right", "down", "size", "squeeze", "shear")
    row = [0.5, 0.5, 0.5] + [draws.get(name, 0.5) for name in names]
    images = LabelledImages(torch.as_tensor(pixels, dtype=torch.uint8)[None, :, :, None], torch.zeros(1))
    result = builder_of(images, "scale", augment=("distort",))(
        torch.tensor([0]), torch.tensor([row], dtype=torch.float64)
    )
    return (result[0, 0] * 255).numpy()


def centre_and_spread(image):
    """Return centre of mass and standard deviations, (row, column) each, of an image's pixel values."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    mean = [np.average(axis, weights=image) for axis in (rows, columns)]
    spread = [
        np.sqrt(np.average((axis - m) ** 2, weights=image)) for axis, m in zip((rows, columns), mean, strict=True)
    ]
    return np.array(mean), np.array(spread)


@pytest.fixture
def blob():
    """A square of 12 x 12 in an image of 32 x 32."""
    image = np.zeros((32, 32), np.uint8)
    image[10:22, 10:22] = 200
    return image


def test_distortion_by_the_middle_draws_changes_nothing(blob):
    np.testing.assert_allclose(distorted(blob), blob, atol=0.01)


def test_distortion_translates_by_whole_pixels(blob):
    right, down = 0.75, 0.0  # one pixel right, two up
    assert batches.MAX_TRANSLATION == 2
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
    assert abs((columns[0] - columns[1]) / 15) == pytest.approx(batches.MAX_SHEAR, abs=0.01)


def test_distorted_background_stays_background():
    builder = builder_of(LabelledImages(torch.zeros(8, 28, 28, 1, dtype=torch.uint8), torch.zeros(8)), "lecun98",
                     augment=("distort",), pad_to=32)  # fmt: skip
    result = builder(torch.arange(8), builder.draw(0, 0, 8))
    assert torch.allclose(result, torch.tensor(-0.1))


def test_one_image_in_ten_is_not_distorted():
    images = random_images(1, 8, 8)
    plain, builder = builder_of(images, "scale"), builder_of(images, "scale", augment=("distort",))
    many = torch.zeros(2000, dtype=torch.int64)
    unchanged = (builder(many, builder.draw(0, 0, 2000)) == plain(many)).flatten(1).all(1)
    assert 0.08 < unchanged.float().mean() < 0.12


# Feeds.

ALL = ("pad2-crop", "flip", "distort")


def feed(images, **options):
    defaults = {"seed": 1, "batch_size": 8, "start_step": 0, "stop_step": 12}
    return InMemoryFeed(builder_of(images, augment=ALL), images.labels, **(defaults | options))


def test_batches_follow_the_order():
    images = random_images()
    for step, batch in enumerate(feed(images)):
        indices = batch_indices(1, step, 8, 40)
        assert batch.step == step
        assert torch.equal(batch.labels, images.labels[indices])
        builder = builder_of(images, augment=ALL)
        assert torch.equal(batch.images, builder(indices, builder.draw(1, step, 8)))


def test_epoch_has_each_image_once_when_batches_span_epochs():
    pixels = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    images = LabelledImages(pixels, torch.arange(10))
    training = InMemoryFeed(
        builder_of(images, "scale"), images.labels, seed=0, batch_size=4, start_step=0, stop_step=5
    )
    seen = torch.cat([batch.labels for batch in training])
    assert torch.equal(seen, torch.cat([permutation(0, 0, 10), permutation(0, 1, 10)]))
    assert torch.equal((torch.cat([batch.images.flatten() for batch in training]) * 255).round().long(), seen)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("block", [1, 3])
def test_ranks_share_the_batches_of_one_rank(world, block):
    images = random_images()
    expected = list(feed(images, block=block))
    ranks = [list(feed(images, block=block, rank=rank, world=world)) for rank in range(world)]
    for number, batch in enumerate(expected):
        for rank in range(world):
            part = ranks[rank][number]
            assert part.step == batch.step
            assert torch.equal(part.images, batch.images[rank::world])
            assert torch.equal(part.labels, batch.labels[rank::world])


@pytest.mark.parametrize(("world", "accumulation_steps"), [(1, 1), (1, 4), (2, 2), (4, 1), (1, 8), (4, 2), (8, 1)])
def test_micro_batches_are_the_same_on_any_number_of_ranks(world, accumulation_steps):
    images, count = random_images(), world * accumulation_steps
    options = {"world": world, "accumulation_steps": accumulation_steps}
    ranks = [list(feed(images, rank=rank, **options)) for rank in range(world)]
    for step, batch in enumerate(feed(images)):
        for number in range(count):
            micro_batch = ranks[number % world][step * accumulation_steps + number // world]
            assert micro_batch.step == step
            assert torch.equal(micro_batch.images, batch.images[number::count])
            assert torch.equal(micro_batch.labels, batch.labels[number::count])
    assert all(len(batches) == len(feed(images, **options)) == 12 * accumulation_steps for batches in ranks)


def test_rank_slices_are_the_micro_batches_of_a_rank():
    assert rank_slices(20, 1, 2, 2) == [slice(1, None, 4), slice(3, None, 4)]
    assert rank_slices(20, 0, 1, 1) == [slice(0, None, 1)]
    with pytest.raises(
        DataError, match="batch of 20 images cannot be split into 8 equal micro-batches; use a batch size that"
    ):
        rank_slices(20, 1, 2, 4)


@pytest.mark.parametrize("block", [2, 5, 100])
def test_blocks_are_consecutive_batches(block):
    images = random_images()
    single, blocks = list(feed(images)), list(feed(images, block=block))
    assert [batch.step for batch in blocks] == list(range(0, 12, block))
    assert len(feed(images, block=block)) == len(blocks)
    assert torch.equal(torch.cat([b.images for b in blocks]), torch.cat([b.images for b in single]))
    assert torch.equal(torch.cat([b.labels for b in blocks]), torch.cat([b.labels for b in single]))


def test_resumed_feed_continues_with_the_same_bits():
    images = random_images()
    whole, rest = list(feed(images)), list(feed(images, start_step=7))
    assert [batch.step for batch in rest] == [7, 8, 9, 10, 11]
    for batch, resumed in zip(whole[7:], rest, strict=True):
        assert torch.equal(batch.images, resumed.images)


def test_draws_differ_between_steps_and_images():
    builder = builder_of(random_images())
    first, second = builder.draw(0, 0, 8), builder.draw(0, 1, 8)
    assert len(torch.cat([first, second]).unique()) == 2 * 8 * 9


def test_feed_can_be_iterated_twice():
    batches = feed(random_images())
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, batches, strict=True))


def test_batches_differ_between_seeds():
    first, other = (next(iter(feed(random_images(), seed=seed))) for seed in (1, 2))
    assert not torch.equal(first.images, other.images)


HOME = Path(pipeline.__file__).parents[1]
NEW_PROCESS = """
import hashlib, torch
from pipeline.data.batches import BatchBuilder, InMemoryFeed
from pipeline.data.images import LabelledImages
from pipeline.data.normalise import fit_normaliser
pixels = (torch.arange(40 * 8 * 6 * 3) * 7919 % 251).to(torch.uint8).reshape(40, 8, 6, 3)
images = LabelledImages(pixels, torch.arange(40) % 10)
builder = BatchBuilder(
    images, normalise=fit_normaliser("per-pixel-mean", images), augment=("pad2-crop", "flip", "distort")
)
feed = InMemoryFeed(builder, images.labels, seed=1, batch_size=8, start_step={start}, stop_step=12)
digest = hashlib.sha256(list(feed)[-1].images.contiguous().numpy().tobytes()).hexdigest()
"""


def test_new_process_makes_the_same_bits():
    namespace = {}
    exec(NEW_PROCESS.format(start=0), namespace)
    code = NEW_PROCESS.format(start=11) + "print(digest)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOME)
    assert run.stdout.strip() == namespace["digest"]
    assert len(namespace["digest"]) == hashlib.sha256().digest_size * 2


def test_feed_rejects_a_batch_that_ranks_cannot_share():
    with pytest.raises(DataError, match="batch of 8 images cannot be split into 3 equal micro-batches"):
        feed(random_images(), world=3)


@pytest.mark.parametrize("count", [0, 39])
def test_number_of_labels_must_match(count):
    images = random_images()
    with pytest.raises(DataError, match=f"{count} labels do not match 40 images"):
        InMemoryFeed(builder_of(images), images.labels[:count], seed=0, batch_size=8, start_step=0, stop_step=1)
    with pytest.raises(DataError, match=f"{count} labels do not match 40 images"):
        list(evaluation_batches(builder_of(images), images.labels[:count], batch_size=8))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [8, 13, 39, 100])
def test_evaluation_has_each_image_once_on_any_number_of_ranks(world, batch_size):
    images = LabelledImages(random_images().pixels, torch.arange(40))  # the label is the image's number
    builder = builder_of(images, augment=ALL)
    plain = builder(torch.arange(40))
    labels = []
    for rank in range(world):
        for batch in evaluation_batches(builder, images.labels, batch_size=batch_size, rank=rank, world=world):
            assert isinstance(batch, Batch)
            assert 0 < len(batch.labels) <= batch_size
            assert torch.equal(batch.images, plain[batch.labels])  # not augmented
            labels += batch.labels.tolist()
    assert sorted(labels) == list(range(40))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 7, 499, 10_000])
def test_evaluation_has_each_image_of_any_number_once(count, batch_size, world):
    builder = builder_of(random_images(count, height=1, width=1), "scale")
    numbers = torch.arange(count)
    labels = [
        batch.labels
        for rank in range(world)
        for batch in evaluation_batches(builder, numbers, batch_size=batch_size, rank=rank, world=world)
    ]
    assert torch.equal(torch.cat(labels).sort().values, numbers)


def test_last_evaluation_batch_is_smaller():
    images = random_images()
    assert [
        len(batch.labels) for batch in evaluation_batches(builder_of(images), images.labels, batch_size=16)
    ] == [
        16,
        16,
        8,
    ]
