"""Training batches of photographs: which pictures, which parts of them, on any number of ranks and threads."""

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
from pipeline.data.crops import CropSpec, area_crop, crop_box, crop_image
from pipeline.data.images import DataError
from pipeline.data.normalise import Normaliser
from pipeline.data.order import batch_indices, permutation, seeded_generator
from pipeline.data.sharded_feed import ShardedFeed
from tests.support.making import picture, prepared

RESNET = CropSpec(16, (20, 30), None, False, None, None, "bilinear")
ALEXNET = CropSpec(16, (24, 24), 24, False, None, None, "bilinear")
ZFNET = CropSpec(16, (24, 24), 24, True, None, None, "bilinear")
GOOGLENET = CropSpec(16, None, None, False, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear")
CUTS = {"resnet": RESNET, "alexnet": ALEXNET, "zfnet": ZFNET, "googlenet": GOOGLENET}
PLAIN = Normaliser("scale", scale=torch.full((3,), 1 / 255), shift=torch.zeros(3), outside=0.0)


class Few:
    """Samples in memory."""

    def __init__(self, count=23):
        self.contents = []
        for number in range(count):
            file = io.BytesIO()
            Image.fromarray(picture(number)).save(file, "JPEG")
            self.contents.append(file.getvalue())
        self.labels = torch.arange(count) % 5

    def __len__(self):
        return len(self.contents)

    def read(self, indices):
        return [self.contents[index] for index in indices]

    def where(self, index):
        return f"few, picture {index}"


@pytest.fixture(scope="module")
def few():
    return Few()


def feed(
    samples, cut=RESNET, *, start=0, stop=6, batch=12, threads=0, rank=0, world=1, parts=1, augment=("flip",)
):
    maker = CropBatchBuilder(normalise=PLAIN, augment=augment)
    return ShardedFeed(
        samples,
        maker,
        cut,
        seed=3,
        batch_size=batch,
        start_step=start,
        stop_step=stop,
        threads=threads,
        rank=rank,
        world=world,
        parts=parts,
    )


def same(ours, theirs):
    assert [batch.step for batch in ours] == [batch.step for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


# --- which pictures, in which order --------------------------------------------------------------------------


def test_a_batch_holds_the_pictures_the_order_says(few):
    batches = list(feed(few, augment=()))
    assert len(batches) == len(feed(few)) == 6
    for batch in batches:
        order = batch_indices(3, batch.step, 12, 23)
        assert torch.equal(batch.labels, few.labels[order])
        assert batch.images.shape == (12, 3, 16, 16)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(few, cut, threads):
    same(list(feed(few, cut, threads=threads)), list(feed(few, cut)))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_same_global_batches(few, world):
    parts = [list(feed(few, rank=rank, world=world, threads=rank % 2)) for rank in range(world)]
    assert {len(part) for part in parts} == {6}  # as many steps on every rank
    for step, whole in enumerate(feed(few)):
        for rank in range(world):
            assert torch.equal(parts[rank][step].images, whole.images[rank::world])
            assert torch.equal(parts[rank][step].labels, whole.labels[rank::world])


@pytest.mark.parametrize(("world", "parts"), [(1, 3), (3, 1), (2, 3), (1, 6), (1, 12)])
def test_groups_of_a_batch_are_the_same_pictures_on_any_number_of_ranks(few, world, parts, monkeypatch):
    monkeypatch.setattr(sharded_feed, "CROP_CHUNK", 3)
    shares, count = [list(feed(few, rank=rank, world=world, parts=parts)) for rank in range(world)], world * parts
    assert all(len(share) == len(feed(few, world=world, parts=parts)) == 6 * parts for share in shares)
    for step, whole in enumerate(feed(few)):
        for group in range(count):
            found = shares[group % world][step * parts + group // world]
            assert found.step == step
            assert torch.equal(found.images, whole.images[group::count])
            assert torch.equal(found.labels, whole.labels[group::count])


def test_a_resumed_feed_goes_on_as_if_nothing_had_been(few):
    whole = list(feed(few))
    for start in (1, 4):  # within the first epoch of 23 pictures, and within the third
        same(list(feed(few, start=start, threads=2)), whole[start:])


def test_each_epoch_shows_every_picture_once_in_another_order(few):
    labels = [feed(few, stop=46, batch=1, augment=())]
    order = [int(batch_indices(3, step, 1, 23)) for step in range(46)]
    assert sorted(order[:23]) == sorted(order[23:]) == list(range(23))
    assert order[:23] != order[23:]
    assert [int(batch.labels) for batch in labels[0]] == [index % 5 for index in order]


def test_another_step_or_use_crops_anew(few):
    first = torch.cat([batch.images for batch in feed(few, stop=4)])
    flat = {tuple(image.flatten().tolist()) for image in first}
    assert len(flat) > 40  # 48 uses of 23 pictures, hardly two of them alike


def test_a_batch_that_cannot_be_shared_is_refused(few):
    with pytest.raises(DataError, match="a global batch of 12 cannot be shared equally by 5 ranks; use 1 or 2 or"):
        feed(few, world=5)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_picture_is_named_when_it_is_reached(threads):
    samples = Few()
    samples.contents[7] = samples.contents[7][:100]
    with pytest.raises(DataError, match=r"^few, picture 7 is no readable picture"):
        list(feed(samples, threads=threads))


# --- what is done to them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 4])
def test_a_batch_is_what_pillow_makes_of_each_picture(few, step):
    """Redone one by one: the crop of the middle 40 x 40, the colours, that window of the mean image, the flip."""
    draw = torch.Generator().manual_seed(1)
    mean = Normaliser("raw-mean-image", torch.ones(3), torch.rand(40, 40, 3, generator=draw) * 255, 0.0)
    vectors = torch.linalg.qr(torch.rand(3, 3, dtype=torch.float64, generator=draw)).Q
    pca = ColourPCA(torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64), vectors)
    maker = CropBatchBuilder(normalise=mean, augment=("flip", "pca-colour", "photometric"), pca=pca)
    cut = CropSpec(32, (40, 40), 40, False, None, None, "bilinear")
    [batch] = ShardedFeed(few, maker, cut, seed=3, batch_size=12, start_step=step, stop_step=step + 1, threads=0)
    drawn = torch.rand(12, 16, dtype=torch.float64, generator=seeded_generator(3, "augment", step))
    order = torch.cat([permutation(3, epoch, 23) for epoch in range(3)])[12 * step : 12 * step + 12]
    for made, number, row in zip(batch.images, order.tolist(), drawn, strict=True):
        whole = Image.open(io.BytesIO(few.contents[number]))
        short = 40 / min(whole.size)
        whole = whole.resize([int(side * short) for side in whole.size], Image.Resampling.BILINEAR)
        left, top = (round((side - 40) / 2) for side in whole.size)
        random = Random(int(float(row[0]) * 2**53))
        _, down, right = random.random(), int(random.random() * 9), int(random.random() * 9)
        crop = whole.crop((left + right, top + down, left + right + 32, top + down + 32))
        pixels = torch.from_numpy(np.array(crop)).float()[None]
        [pixels] = pca_colour(photometric(pixels, row[None, 10:]), pca, row[None, 7:10])
        pixels = pixels - mean.shift[down : down + 32, right : right + 32]
        expected = pixels.flip(1) if row[6] < 0.5 else pixels
        assert (made.permute(1, 2, 0) - expected).abs().mean() < 0.5  # of 255; what is wrong differs by 5 or more


# --- which part of a picture ---------------------------------------------------------------------------------


def draws(count):
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()


def test_short_sides_are_uniform_over_whole_numbers():
    shorts = [min(crop_box(RESNET, 40, 60, draw).size) for draw in draws(4400)]
    counts = np.bincount(shorts)[20:]
    assert len(counts) == 11  # 20 to 30, both ends
    assert counts.min() > 320  # of 400: four deviations
    assert counts.max() < 480


def test_crops_reach_every_place_of_the_resized_picture_and_none_beyond():
    places = {crop_box(ALEXNET, 24, 24, draw).crop for draw in draws(3000)}
    assert places == {(row, column) for row in range(9) for column in range(9)}  # 24 - 16 + 1


def test_crops_of_the_centre_never_leave_it_and_say_where_in_it_they_are():
    for draw in draws(300):
        found = crop_box(ALEXNET, 48, 96, draw)
        assert found.size == (24, 48)
        assert (found.crop[0], found.crop[1] - 12) == found.corner  # the central 24 of 48 begins at 12
        assert 0 <= min(found.corner) <= max(found.corner) <= 8


def test_five_places_are_the_corners_and_the_centre():
    found = [crop_box(ZFNET, 24, 24, draw).corner for draw in draws(1000)]
    assert set(found) == {(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)}
    assert min(map(found.count, set(found))) > 150  # of 200


def test_areas_and_aspects_are_within_the_papers_ranges():
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


def test_a_part_is_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    ours = [crop_box(GOOGLENET, 375, 500, draw).box for draw in draws(3000)]
    for values in (lambda b: b[0], lambda b: b[1], lambda b: b[2] * b[3], lambda b: b[3] / b[2]):
        from scipy.stats import ks_2samp

        assert ks_2samp([values(box) for box in ours], [values(box) for box in theirs]).pvalue > 1e-3


def test_a_picture_that_no_part_fits_gives_its_middle():
    assert area_crop(10, 100, (0.9, 1.0), (3 / 4, 4 / 3), lambda: 0.5) == (0, 43, 10, 13)
    assert area_crop(100, 10, (0.9, 1.0), (3 / 4, 4 / 3), lambda: 0.5) == (43, 0, 13, 10)
    assert area_crop(1, 1, (0.08, 1.0), (3 / 4, 4 / 3), lambda: 0.0) == (0, 0, 1, 1)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (17, 16), (500, 375)])
def test_a_picture_of_any_size_gives_a_whole_crop(cut, size):
    image = picture(0, height=size[0], width=size[1])
    for draw in draws(20):
        pixels, _ = crop_image(cut, image, draw)
        assert pixels.shape == (16, 16, 3)
        assert pixels.dtype == torch.uint8


def test_a_crop_is_pillows_resize_and_a_cut():
    image = picture(1, height=90, width=140)
    for draw in draws(10):
        found = crop_box(RESNET, 90, 140, draw)
        resized = Image.fromarray(image).resize(found.size[::-1], Image.Resampling.BILINEAR)
        row, column = found.crop
        theirs = np.asarray(resized)[row : row + 16, column : column + 16].astype(int)
        ours = crop_image(RESNET, image, draw)[0].numpy().astype(int)
        assert np.abs(ours - theirs).max() <= 1
        assert np.abs(ours - theirs).mean() < 0.2


# --- nothing is left behind ------------------------------------------------------------------------------------


def resident_mb():
    """Memory of this process that is in use, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
def test_memory_stays_flat_over_fifty_epochs_and_nothing_is_left_running(tmp_path):
    samples = prepared(tmp_path, train=20).train
    epochs = 50
    steps = epochs * len(samples) // 12
    gc.collect()  # what earlier tests left open
    threads, files = threading.active_count(), len([*Path("/proc/self/fd").iterdir()])
    children = psutil.Process().children()
    used = []
    for batch in feed(samples, stop=steps, threads=2):
        if batch.step in (steps // 10, steps - 1):
            gc.collect()
            used.append(resident_mb())
    assert used[1] - used[0] < 8  # a leak of one decoded picture of 60 x 60 in three would be 10 MB
    assert threading.active_count() == threads
    assert len([*Path("/proc/self/fd").iterdir()]) == files
    assert psutil.Process().children() == children


def test_a_feed_left_in_the_middle_ends_its_threads(few):
    before = threading.active_count()
    batches = iter(feed(few, threads=3, stop=50))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
