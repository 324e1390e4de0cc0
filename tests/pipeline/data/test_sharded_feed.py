"""Training batches of sharded images: which images and crops, on any number of ranks and threads."""

import gc
import io
import os
import threading
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipeline.data import sharded_feed
from pipeline.data.colour import ColourPCA, CropBatchBuilder, pca_colour, photometric
from pipeline.data.crops import CropSpec
from pipeline.data.images import DataError
from pipeline.data.normalise import Normaliser
from pipeline.data.order import batch_indices, permutation, seeded_generator
from pipeline.data.sharded_feed import ShardedFeed
from pipeline.declare.data_settings import Jitter
from tests.support.crop_specs import RANDOM, RESNET, SPECS
from tests.support.image_sets import prepare_random_set, random_image
from tests.support.in_memory_samples import InMemorySamples

SCALE = Normaliser("scale", scale=torch.full((3,), 1 / 255), shift=torch.zeros(3), pad_value=0.0)
COUNT = 23


def make_samples():
    """Return 23 JPEGs in 5 classes."""
    files = []
    for number in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(random_image(number)).save(file, "JPEG")
        files.append(file.getvalue())
    return InMemorySamples(files, torch.arange(COUNT) % 5)


@pytest.fixture(scope="module")
def samples():
    """23 JPEGs in 5 classes; tests must not change them."""
    return make_samples()


def feed(
    samples,
    crop=RESNET,
    *,
    start=0,
    stop=6,
    batch=12,
    threads=0,
    rank=0,
    world=1,
    accumulation_steps=1,
    augment=("flip",),
    jitter=None,
):
    return ShardedFeed(
        samples,
        CropBatchBuilder(normalise=SCALE, augment=augment, jitter=jitter),
        crop,
        seed=3,
        batch_size=batch,
        start_step=start,
        stop_step=stop,
        threads=threads,
        rank=rank,
        world=world,
        accumulation_steps=accumulation_steps,
    )


def assert_equal(batches, expected):
    assert [batch.step for batch in batches] == [batch.step for batch in expected]
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)


# --- which images, in which order ----------------------------------------------------------------------------


def test_batch_holds_the_images_of_the_order(samples):
    batches = list(feed(samples, augment=()))
    assert len(batches) == len(feed(samples)) == 6
    for batch in batches:
        order = batch_indices(3, batch.step, 12, COUNT)
        assert torch.equal(batch.labels, samples.labels[order])
        assert batch.images.shape == (12, 3, 16, 16)


@pytest.mark.parametrize("crop", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_do_not_depend_on_threads(samples, crop, threads):
    assert_equal(list(feed(samples, crop, threads=threads)), list(feed(samples, crop)))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_same_global_batches(samples, world):
    ranks = [list(feed(samples, rank=rank, world=world, threads=rank % 2)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {6}  # as many steps on every rank
    for step, batch in enumerate(feed(samples)):
        for rank in range(world):
            assert torch.equal(ranks[rank][step].images, batch.images[rank::world])
            assert torch.equal(ranks[rank][step].labels, batch.labels[rank::world])


@pytest.mark.parametrize(("world", "accumulation_steps"), [(1, 3), (3, 1), (2, 3), (1, 6), (1, 12)])
def test_micro_batches_are_the_same_on_any_number_of_ranks(samples, world, accumulation_steps, monkeypatch):
    monkeypatch.setattr(sharded_feed, "CROP_CHUNK", 3)
    options, count = {"world": world, "accumulation_steps": accumulation_steps}, world * accumulation_steps
    ranks = [list(feed(samples, rank=rank, **options)) for rank in range(world)]
    assert all(len(batches) == len(feed(samples, **options)) == 6 * accumulation_steps for batches in ranks)
    for step, batch in enumerate(feed(samples)):
        for number in range(count):
            micro_batch = ranks[number % world][step * accumulation_steps + number // world]
            assert micro_batch.step == step
            assert torch.equal(micro_batch.images, batch.images[number::count])
            assert torch.equal(micro_batch.labels, batch.labels[number::count])


def test_resumed_feed_continues_with_the_same_batches(samples):
    batches = list(feed(samples))
    for start in (1, 4):  # in the first epoch of 23 images, and in the third
        assert_equal(list(feed(samples, start=start, threads=2)), batches[start:])


def test_random_interpolation_and_jitter_are_the_same_on_all_ranks_and_after_a_resume(samples):
    options = {"crop": RANDOM, "jitter": Jitter(brightness=0.4, contrast=0.4, saturation=0.4, lighting=0.1)}
    batches = list(feed(samples, **options))
    assert_equal(list(feed(samples, start=2, threads=2, **options)), batches[2:])
    ranks = [list(feed(samples, rank=rank, world=3, threads=rank, **options)) for rank in range(3)]
    for step, batch in enumerate(batches):
        for rank in range(3):
            assert torch.equal(ranks[rank][step].images, batch.images[rank::3])
    plain = list(feed(samples, crop=RANDOM))
    assert all(not torch.equal(batch.images, other.images) for batch, other in zip(batches, plain, strict=True))


def test_each_epoch_has_every_image_once_in_another_order(samples):
    batches = feed(samples, stop=46, batch=1, augment=())
    order = [int(batch_indices(3, step, 1, COUNT)) for step in range(46)]
    assert sorted(order[:23]) == sorted(order[23:]) == list(range(23))
    assert order[:23] != order[23:]
    assert [int(batch.labels) for batch in batches] == [index % 5 for index in order]


def test_each_use_of_an_image_has_a_new_crop(samples):
    images = torch.cat([batch.images for batch in feed(samples, stop=4)])
    different = {tuple(image.flatten().tolist()) for image in images}
    assert len(different) > 40  # of 48 uses of 23 images; hardly two are equal


def test_batch_that_ranks_cannot_share_is_rejected(samples):
    with pytest.raises(DataError, match="of 12 images cannot be split into 5 equal micro-batches; use a"):
        feed(samples, world=5)


def test_empty_training_part_is_rejected():
    with pytest.raises(DataError, match="the training part has no images"):
        feed(InMemorySamples([]))


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_image_is_named_when_it_is_reached(threads):
    samples = make_samples()
    samples.files[7] = samples.files[7][:100]
    with pytest.raises(DataError, match=r"^image 7 is not a readable image"):
        list(feed(samples, threads=threads))


# --- augmentation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 4])
def test_batch_equals_pillows_crops_of_each_image(samples, step):
    """Repeat one by one: a crop of the centre 40 x 40, the colours, that window of the mean image, the flip."""
    generator = torch.Generator().manual_seed(1)
    mean = Normaliser("raw-mean-image", torch.ones(3), torch.rand(40, 40, 3, generator=generator) * 255, 0.0)
    vectors = torch.linalg.qr(torch.rand(3, 3, dtype=torch.float64, generator=generator)).Q
    pca = ColourPCA(torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64), vectors)
    builder = CropBatchBuilder(normalise=mean, augment=("flip", "pca-colour", "photometric"), pca=pca)
    crop = CropSpec(32, (40, 40), 40, False, None, None, "bilinear")
    [batch] = ShardedFeed(
        samples, builder, crop, seed=3, batch_size=12, start_step=step, stop_step=step + 1, threads=0
    )
    draws = torch.rand(12, 16, dtype=torch.float64, generator=seeded_generator(3, "augment", step))
    order = torch.cat([permutation(3, epoch, COUNT) for epoch in range(3)])[12 * step : 12 * step + 12]
    for image, number, row in zip(batch.images, order.tolist(), draws, strict=True):
        whole = Image.open(io.BytesIO(samples.files[number]))
        short = 40 / min(whole.size)
        whole = whole.resize([int(side * short) for side in whole.size], Image.Resampling.BILINEAR)
        left, top = (round((side - 40) / 2) for side in whole.size)
        random = Random(int(float(row[0]) * 2**53))
        _, down, right = random.random(), int(random.random() * 9), int(random.random() * 9)
        part = whole.crop((left + right, top + down, left + right + 32, top + down + 32))
        pixels = torch.from_numpy(np.array(part)).float()[None]
        [pixels] = pca_colour(photometric(pixels, row[None, 10:]), pca, row[None, 7:10])
        pixels = pixels - mean.shift[down : down + 32, right : right + 32]
        expected = pixels.flip(1) if row[6] < 0.5 else pixels
        assert (image.permute(1, 2, 0) - expected).abs().mean() < 0.5  # of 255; a wrong image differs by 5 or more


# --- resources -----------------------------------------------------------------------------------------------


def resident_mb():
    """Return the resident memory of this process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
def test_fifty_epochs_leak_no_memory_threads_files_or_processes(tmp_path):
    train = prepare_random_set(tmp_path, train=20).train
    epochs = 50
    steps = epochs * len(train) // 12
    gc.collect()  # closes what earlier tests left open
    threads, files = threading.active_count(), len([*Path("/proc/self/fd").iterdir()])
    children = psutil.Process().children()
    used = []
    for batch in feed(train, stop=steps, threads=2):
        if batch.step in (steps // 10, steps - 1):
            gc.collect()
            used.append(resident_mb())
    assert used[1] - used[0] < 8  # leaking every third decoded image of 60 x 60 would be 10 MB
    assert threading.active_count() == threads
    assert len([*Path("/proc/self/fd").iterdir()]) == files
    assert psutil.Process().children() == children


def test_closed_feed_ends_its_threads(samples):
    before = threading.active_count()
    batches = iter(feed(samples, threads=3, stop=50))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
