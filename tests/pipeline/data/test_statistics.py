"""Statistics of photographs against one picture, one pixel at a time; their cache and what may happen to it."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import statistics
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.jpeg import decode, resize, size_for_short_side
from pipeline.data.normalise import fit_normaliser
from pipeline.data.prefetch import StopRequested
from pipeline.data.statistics import (
    Frame,
    PixelStatistics,
    extract_frame,
    fit_in_memory_normaliser,
    frame_sums,
    pixel_statistics,
    principal_colours,
    statistics_frame,
)
from pipeline.declare.recipe import Crop

CROP = Crop(side=12, short=20, centre=16)


def fit_photographs(name, samples, crop, **options):
    return statistics.fit_sharded_normaliser(name, pixel_statistics(samples, crop, **options))


def colour_pca(samples, crop, **options):
    return principal_colours(pixel_statistics(samples, crop, **options))


FITTED = ("per-pixel-mean", "per-channel", "raw-mean-image", "raw-mean-colour")


class Pictures:
    """Samples in memory."""

    def __init__(self, files):
        self.files, self.labels = files, torch.zeros(len(files), dtype=torch.int64)
        self.reads = 0

    def __len__(self):
        return len(self.files)

    def read(self, indices):
        self.reads += 1
        return [self.files[i] for i in indices]

    def where(self, index):
        return f"picture {index}"


def jpeg(height, width, seed):
    """A picture whose colours vary together, as those of photographs do."""
    draw = np.random.default_rng(seed)
    light = draw.normal(size=(height, width, 1)).cumsum(0).cumsum(1) * 8 + draw.uniform(60, 200)
    pixels = light * [1.0, 0.9, 0.8] + draw.normal(size=(height, width, 3)) * [6, 3, 9]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def pictures(count=11):
    return Pictures([jpeg(18 + 5 * (i % 4), 30 - 4 * (i % 5), i) for i in range(count)])


def frames(samples, frame):
    """uint8 (N, S, S, 3), one by one."""
    found = []
    for index, content in enumerate(samples.files):
        image = decode(content, samples.where(index))
        tall, wide = size_for_short_side(*image.shape[:2], frame.short)
        whole = resize(image, (0, 0, *image.shape[:2]), (tall, wide), frame.interpolation).numpy()
        top, left = round((tall - frame.side) / 2), round((wide - frame.side) / 2)
        found.append(whole[top : top + frame.side, left : left + frame.side])
    return np.stack(found)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("scale", "shift"))


# Frames.


@pytest.mark.parametrize(
    ("crop", "short", "side"),
    [
        (Crop(side=227, short=256, centre=256), 256, 256),  # AlexNet
        (Crop(side=224, short=384), 384, 224),  # VGG
        (Crop(side=224, short=(256, 480)), 256, 224),  # ResNet
        (Crop(side=224, area=(0.08, 1.0), aspect=(0.75, 1.25)), 256, 224),  # GoogLeNet
        (Crop(side=299, area=(0.08, 1.0), aspect=(0.75, 1.25)), 342, 299),
    ],
)
def test_the_frame_is_the_middle_of_the_recipe_s_smallest_picture(crop, short, side):
    assert statistics_frame(crop) == Frame(short, side, "bilinear")


def test_a_frame_is_resized_as_declared():
    assert statistics_frame(Crop(side=8, short=9, interpolation="bicubic")).interpolation == "bicubic"


def test_the_middle_of_a_picture_is_framed():
    """Columns number themselves: of 40 x 20 pixels at short side 20, the middle 16 are columns 12 to 27."""
    image = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (20, 1, 3))
    made = extract_frame(image, Frame(20, 16, "bilinear"))
    assert made.shape == (16, 16, 3)
    assert (made == np.arange(12, 28)[None, :, None]).all()
    assert (
        extract_frame(image.transpose(1, 0, 2), Frame(20, 16, "bilinear")) == np.arange(12, 28)[:, None, None]
    ).all()


def test_a_small_picture_is_enlarged_to_its_frame():
    assert (
        extract_frame(np.full((3, 5, 3), 77, np.uint8), Frame(20, 16, "bilinear")).tolist()
        == [[[77] * 3] * 16] * 16
    )


# Sums.


@pytest.mark.parametrize("frame", [statistics_frame(CROP), Frame(64, 60, "bicubic")])
def test_sums_are_those_of_a_slow_loop(frame):
    samples = pictures()
    found, slow = frame_sums(samples, frame, threads=0), frames(samples, frame).astype(object)
    assert found.count == 11
    assert found.total.tolist() == slow.sum(0).tolist()
    flat = slow.reshape(-1, 3)
    assert found.products.tolist() == (flat.T @ flat).tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_any_number_of_threads_gives_the_same_sums(monkeypatch, threads, chunk):
    samples = pictures()
    one = frame_sums(samples, statistics_frame(CROP), threads=0)
    monkeypatch.setattr(statistics, "SUM_CHUNK", chunk)
    other = frame_sums(samples, statistics_frame(CROP), threads=threads)
    assert (one.count, one.total.tolist(), one.products.tolist()) == (
        other.count, other.total.tolist(), other.products.tolist()
    )  # fmt: skip


def test_ten_million_white_frames_of_256_do_not_overflow():
    count, side = 10**7, 256
    products = count * side**2 * 255**2
    assert products < 2**63
    white = PixelStatistics(
        count, torch.full((side, side, 3), 255 * count), torch.full((3, 3), products, dtype=torch.int64)
    )
    assert white.colours == ([Fraction(255)] * 3, [[Fraction(0)] * 3] * 3)


@pytest.mark.parametrize("threads", [0, 2])
def test_it_ends_when_asked_to(monkeypatch, threads):
    monkeypatch.setattr(statistics, "SUM_CHUNK", 4)
    asked = iter([False, True])
    with pytest.raises(StopRequested):
        frame_sums(pictures(), statistics_frame(CROP), threads=threads, stop=lambda: next(asked))


def test_a_long_wait_is_told_and_only_then(tmp_path):
    told = []
    for _ in range(2):
        pixel_statistics(pictures(), CROP, threads=0, cache=tmp_path, key="abc", tell=told.append)
    assert told == ["going once through 11 pictures, for their mean and their colours"]


def test_other_code_makes_another_file(tmp_path, monkeypatch):
    fitted(tmp_path)
    statistics._code.cache_clear()
    monkeypatch.setattr(statistics, "code_digest", lambda files: "changed")
    fitted(tmp_path)
    statistics._code.cache_clear()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_broken_picture_is_named():
    samples = pictures()
    samples.files[7] = samples.files[7][:200]
    with pytest.raises(DataError, match="picture 7 is no readable picture"):
        frame_sums(samples, statistics_frame(CROP), threads=2)


# What is made of them.


@pytest.mark.parametrize("name", [*FITTED, "scale"])
def test_photographs_are_fitted_as_their_frames_would_be(name):
    """A second opinion: the frames as a small set in memory."""
    samples = pictures()
    pixels = torch.from_numpy(frames(samples, statistics_frame(CROP)))
    expected = fit_normaliser(name, LabelledImages(pixels, samples.labels))
    found = fit_photographs(name, samples, CROP, threads=0, cache=None, key="")
    assert (found.name, found.outside, found.whitening) == (name, 0.0, None)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.shift, expected.shift, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["lecun98", "gcn-zca", "per-colour"])
def test_a_normalisation_that_is_not_for_photographs_is_refused(name):
    with pytest.raises(
        DataError, match=f"'{name}' is for small images of one size; for photographs use one of per-"
    ):
        statistics.fit_sharded_normaliser(name, None)


def test_scale_needs_no_statistics():
    found = statistics.fit_sharded_normaliser("scale", None)
    assert (found.scale * 255).tolist() == pytest.approx([1, 1, 1])
    assert found.shift.tolist() == [0, 0, 0]


def test_photographs_of_one_colour_cannot_be_divided_by_its_deviation():
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (128, 128, 128)).save(file, "JPEG")
    with pytest.raises(DataError, match="one channel never varies"):
        fit_photographs("per-channel", Pictures([file.getvalue()] * 3), CROP, threads=0, cache=None, key="")


def test_principal_colours_are_numpy_s():
    samples = pictures()
    pixels = frames(samples, statistics_frame(CROP)).reshape(-1, 3) / 255
    values, vectors = np.linalg.eigh(np.cov(pixels.T, bias=True))
    found = colour_pca(samples, CROP, threads=0, cache=None, key="")
    np.testing.assert_allclose(found.values, values[::-1], rtol=1e-9)
    np.testing.assert_allclose(found.vectors.abs(), np.abs(vectors[:, ::-1]), atol=1e-7)
    together = found.vectors @ found.values.diag() @ found.vectors.T
    np.testing.assert_allclose(together, np.cov(pixels.T, bias=True), atol=1e-12)


def test_principal_colours_fall_and_have_one_sign():
    found = colour_pca(pictures(), CROP, threads=0, cache=None, key="")
    assert found.values[0] > found.values[1] > found.values[2] > 0
    assert (found.vectors.gather(0, found.vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_greys_have_one_principal_colour():
    """Of black and white pixels in equal number: variance 1/4 in each colour, so 3/4 along grey, 0 elsewhere."""
    total = torch.full((2, 2, 3), 255)  # two pictures: one black, one white
    found = principal_colours(PixelStatistics(2, total, torch.full((3, 3), 4 * 255**2)))
    np.testing.assert_allclose(found.values, [0.75, 0, 0], atol=1e-15)
    np.testing.assert_allclose(found.vectors[:, 0], [3**-0.5] * 3, atol=1e-15)


# The cache.


def fitted(cache, samples=None, name="raw-mean-image", key="abc", crop=CROP):
    return fit_photographs(name, samples or pictures(), crop, threads=0, cache=cache, key=key)


def file_in(cache):
    (file,) = cache.glob("*.safetensors")
    return file


def test_one_pass_serves_all_statistics(tmp_path):
    first, samples = pictures(), pictures()
    made = [fitted(tmp_path / "cache", first, name) for name in FITTED]
    reads = first.reads
    again = [fitted(tmp_path / "cache", samples, name) for name in FITTED]
    found = colour_pca(samples, CROP, threads=0, cache=tmp_path / "cache", key="abc")
    assert (reads, samples.reads) == (1, 0)
    assert all(same(one, other) for one, other in zip(made, again, strict=True))
    assert torch.equal(found.values, colour_pca(samples, CROP, threads=0, cache=None, key="").values)


@pytest.mark.parametrize(
    "other",
    [
        {"key": "abd"},
        {"samples": Pictures(pictures().files[:10])},
        {"crop": Crop(side=12, short=21, centre=16)},
        {"crop": Crop(side=12, short=20, centre=15)},
        {"crop": Crop(side=12, short=20, centre=16, interpolation="bicubic")},
    ],
)
def test_other_pictures_or_frames_are_another_file(tmp_path, other):
    fitted(tmp_path)
    alone = fitted(None, **other)
    assert same(fitted(tmp_path, **other), alone)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_crop_s_own_side_does_not_matter_within_a_centre(tmp_path):
    fitted(tmp_path)
    samples = pictures()
    fitted(tmp_path, samples, crop=Crop(side=10, short=20, centre=16))
    assert samples.reads == 0


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "noise": lambda content: b"x" * len(content),
    "last bit": lambda content: flipped(content, len(content) - 1),
    "a bit of the sums": lambda content: flipped(content, len(content) // 2),
    "a bit of the metadata": lambda content: flipped(content, content.index(b"sha256") + 12),
    "other pictures'": lambda content: content.replace(b"abc", b"abd"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    expected, file = fitted(tmp_path), file_in(tmp_path)
    whole = file.read_bytes()
    assert damage(whole) != whole
    file.write_bytes(damage(whole))
    assert same(fitted(tmp_path), expected)
    assert file.read_bytes() == whole


def test_every_flipped_bit_of_a_cache_goes_noticed(tmp_path):
    fitted(tmp_path, crop=Crop(side=2, short=3))
    file = file_in(tmp_path)
    whole = file.read_bytes()
    draw = np.random.default_rng(0)
    for place in draw.choice(len(whole), 200, replace=False).tolist():
        file.write_bytes(flipped(whole, place))
        samples = pictures(11)
        fitted(tmp_path, samples, crop=Crop(side=2, short=3))
        assert samples.reads == 1, place


def test_a_failed_pass_leaves_nothing(tmp_path):
    samples = pictures()
    samples.files[3] = b""
    with pytest.raises(DataError, match="picture 3"):
        fitted(tmp_path, samples)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert same(fitted(in_the_way / "cache"), fitted(None))


def test_a_full_disk_costs_only_time(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics, "write_atomically", full)
    assert same(fitted(tmp_path), fitted(None))
    assert not list(tmp_path.glob("*.safetensors"))


def test_two_at_once_read_the_pictures_once(tmp_path):
    class Slow(Pictures):
        def read(self, indices):
            time.sleep(0.2)
            return super().read(indices)

    samples, start = Slow(pictures().files), threading.Barrier(3)

    def one(_):
        start.wait()
        return fitted(tmp_path, samples)

    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(one, range(3)))
    assert samples.reads == 1
    assert all(same(one, fitted(None)) for one in made)


def small(count=60):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 5, 4, 3), dtype=torch.uint8, generator=draw)
    return LabelledImages(pixels, torch.zeros(count))


def test_whitening_is_kept_whole_in_a_cache(tmp_path, monkeypatch):
    expected = fit_normaliser("gcn-zca", small())
    first = fit_in_memory_normaliser("gcn-zca", small(), cache=tmp_path, key="abc")
    monkeypatch.setattr(statistics, "fit_normaliser", None)
    for made in (first, fit_in_memory_normaliser("gcn-zca", small(), cache=tmp_path, key="abc")):
        assert (made.name, made.outside) == ("gcn-zca", 0.0)
        assert same(made, expected)
        assert torch.equal(made.whitening, expected.whitening)
        assert made.whitening.dtype == torch.float64


def test_whitening_of_other_images_is_another_file(tmp_path):
    fit_in_memory_normaliser("gcn-zca", small(), cache=tmp_path, key="abc")
    made = fit_in_memory_normaliser("gcn-zca", small(50), cache=tmp_path, key="abd")
    assert torch.equal(made.whitening, fit_normaliser("gcn-zca", small(50)).whitening)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("name", ["per-pixel-mean", "lecun98", "scale"])
def test_what_is_quickly_fitted_is_not_kept(tmp_path, name):
    assert same(fit_in_memory_normaliser(name, small(), cache=tmp_path, key="abc"), fit_normaliser(name, small()))
    assert not list(tmp_path.iterdir())
