"""Statistics of sharded images against slow loops, and their cache."""

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
from pipeline.declare.data_settings import Crop
from tests.support.in_memory_samples import InMemorySamples

CROP = Crop(side=12, short=20, centre=16)


def fit_samples(name, samples, crop, **options):
    """Return the normalisation fitted on samples."""
    return statistics.fit_sharded_normaliser(name, pixel_statistics(samples, crop, **options))


def colour_pca(samples, crop, **options):
    """Return the principal components of the colours of samples."""
    return principal_colours(pixel_statistics(samples, crop, **options))


FITTED = ("per-pixel-mean", "per-channel", "raw-mean-image", "raw-mean-colour")


def jpeg(height, width, seed):
    """Return a JPEG whose colours correlate, as in photographs."""
    generator = np.random.default_rng(seed)
    light = generator.normal(size=(height, width, 1)).cumsum(0).cumsum(1) * 8 + generator.uniform(60, 200)
    pixels = light * [1.0, 0.9, 0.8] + generator.normal(size=(height, width, 3)) * [6, 3, 9]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def jpeg_samples(count=11):
    """Return JPEGs of different sizes."""
    return InMemorySamples([jpeg(18 + 5 * (i % 4), 30 - 4 * (i % 5), i) for i in range(count)])


def frames(samples, frame):
    """Return the frames, uint8 (N, S, S, 3), made one by one."""
    found = []
    for index, content in enumerate(samples.files):
        image = decode(content, samples.where(index))
        tall, wide = size_for_short_side(*image.shape[:2], frame.short)
        whole = resize(image, (0, 0, *image.shape[:2]), (tall, wide), frame.interpolation).numpy()
        top, left = round((tall - frame.side) / 2), round((wide - frame.side) / 2)
        found.append(whole[top : top + frame.side, left : left + frame.side])
    return np.stack(found)


def same(fitted, other):
    """Return True if two normalisations have equal scale and shift."""
    return all(torch.equal(getattr(fitted, name), getattr(other, name)) for name in ("scale", "shift"))


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
def test_frame_is_the_centre_of_the_smallest_resized_image(crop, short, side):
    assert statistics_frame(crop) == Frame(short, side, "bilinear")


def test_frame_has_the_declared_interpolation():
    assert statistics_frame(Crop(side=8, short=9, interpolation="bicubic")).interpolation == "bicubic"


def test_frame_of_a_random_interpolation_is_bilinear():
    assert statistics_frame(Crop(side=8, short=9, interpolation="random")) == Frame(9, 8, "bilinear")


def test_frame_is_the_centre_of_the_image():
    """Pixel values are column numbers: of 40 x 20 pixels at short side 20, the centre 16 are columns 12 to 27."""
    image = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (20, 1, 3))
    made = extract_frame(image, Frame(20, 16, "bilinear"))
    assert made.shape == (16, 16, 3)
    assert (made == np.arange(12, 28)[None, :, None]).all()
    assert (
        extract_frame(image.transpose(1, 0, 2), Frame(20, 16, "bilinear")) == np.arange(12, 28)[:, None, None]
    ).all()


def test_small_image_is_enlarged_to_its_frame():
    assert (
        extract_frame(np.full((3, 5, 3), 77, np.uint8), Frame(20, 16, "bilinear")).tolist()
        == [[[77] * 3] * 16] * 16
    )


# Sums.


@pytest.mark.parametrize("frame", [statistics_frame(CROP), Frame(64, 60, "bicubic")])
def test_sums_equal_a_slow_loop(frame):
    samples = jpeg_samples()
    found, slow = frame_sums(samples, frame, threads=0), frames(samples, frame).astype(object)
    assert found.count == 11
    assert found.total.tolist() == slow.sum(0).tolist()
    flat = slow.reshape(-1, 3)
    assert found.products.tolist() == (flat.T @ flat).tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_any_number_of_threads_gives_the_same_sums(monkeypatch, threads, chunk):
    samples = jpeg_samples()
    expected = frame_sums(samples, statistics_frame(CROP), threads=0)
    monkeypatch.setattr(statistics, "SUM_CHUNK", chunk)
    sums = frame_sums(samples, statistics_frame(CROP), threads=threads)
    assert sums.count == expected.count
    assert torch.equal(sums.total, expected.total)
    assert torch.equal(sums.products, expected.products)


def test_ten_million_white_frames_of_256_do_not_overflow():
    count, side = 10**7, 256
    products = count * side**2 * 255**2
    assert products < 2**63
    white = PixelStatistics(
        count, torch.full((side, side, 3), 255 * count), torch.full((3, 3), products, dtype=torch.int64)
    )
    assert white.colours == ([Fraction(255)] * 3, [[Fraction(0)] * 3] * 3)


@pytest.mark.parametrize("threads", [0, 2])
def test_stop_request_ends_the_pass(monkeypatch, threads):
    monkeypatch.setattr(statistics, "SUM_CHUNK", 4)
    stops = iter([False, True])
    with pytest.raises(StopRequested):
        frame_sums(jpeg_samples(), statistics_frame(CROP), threads=threads, stop=lambda: next(stops))


def test_only_a_pass_over_the_images_is_reported(tmp_path):
    messages = []
    for _ in range(2):
        pixel_statistics(jpeg_samples(), CROP, threads=0, cache=tmp_path, key="abc", report=messages.append)
    assert messages == ["reading 11 images once to compute their mean and the covariance of their colours"]


def test_changed_code_makes_another_file(tmp_path, monkeypatch):
    fit(tmp_path)
    statistics._code.cache_clear()
    monkeypatch.setattr(statistics, "code_digest", lambda files: "changed")
    fit(tmp_path)
    statistics._code.cache_clear()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_broken_image_is_named():
    samples = jpeg_samples()
    samples.files[7] = samples.files[7][:200]
    with pytest.raises(DataError, match="image 7 is not a readable image"):
        frame_sums(samples, statistics_frame(CROP), threads=2)


# Normalisations and colours.


@pytest.mark.parametrize("name", [*FITTED, "scale"])
def test_normalisation_equals_that_of_the_frames_in_memory(name):

    samples = jpeg_samples()
    pixels = torch.from_numpy(frames(samples, statistics_frame(CROP)))
    expected = fit_normaliser(name, LabelledImages(pixels, samples.labels))
    found = fit_samples(name, samples, CROP, threads=0, cache=None, key="")
    assert (found.name, found.pad_value, found.whitening) == (name, 0.0, None)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.shift, expected.shift, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["lecun98", "gcn-zca", "per-colour"])
def test_normalisation_for_images_in_memory_is_rejected(name):
    with pytest.raises(
        DataError, match=f"'{name}' needs images of one size in memory; for sharded images use one of per-"
    ):
        statistics.fit_sharded_normaliser(name, None)


def test_scale_needs_no_statistics():
    found = statistics.fit_sharded_normaliser("scale", None)
    assert (found.scale * 255).tolist() == pytest.approx([1, 1, 1])
    assert found.shift.tolist() == [0, 0, 0]


def test_per_channel_rejects_images_of_one_colour():
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (128, 128, 128)).save(file, "JPEG")
    with pytest.raises(DataError, match="one channel is constant"):
        fit_samples("per-channel", InMemorySamples([file.getvalue()] * 3), CROP, threads=0, cache=None, key="")


def test_principal_colours_equal_numpys():
    samples = jpeg_samples()
    pixels = frames(samples, statistics_frame(CROP)).reshape(-1, 3) / 255
    values, vectors = np.linalg.eigh(np.cov(pixels.T, bias=True))
    found = colour_pca(samples, CROP, threads=0, cache=None, key="")
    np.testing.assert_allclose(found.values, values[::-1], rtol=1e-9)
    np.testing.assert_allclose(found.vectors.abs(), np.abs(vectors[:, ::-1]), atol=1e-7)
    covariance = found.vectors @ found.values.diag() @ found.vectors.T
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), atol=1e-12)


def test_principal_colours_are_sorted_and_have_a_fixed_sign():
    found = colour_pca(jpeg_samples(), CROP, threads=0, cache=None, key="")
    assert found.values[0] > found.values[1] > found.values[2] > 0
    assert (found.vectors.gather(0, found.vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_greys_have_one_principal_colour():
    """Equally many black and white pixels: variance 1/4 of each colour, so 3/4 along grey and 0 elsewhere."""
    total = torch.full((2, 2, 3), 255)  # two images: one black, one white
    found = principal_colours(PixelStatistics(2, total, torch.full((3, 3), 4 * 255**2)))
    np.testing.assert_allclose(found.values, [0.75, 0, 0], atol=1e-15)
    np.testing.assert_allclose(found.vectors[:, 0], [3**-0.5] * 3, atol=1e-15)


# The cache.


def fit(cache, samples=None, name="raw-mean-image", key="abc", crop=CROP):
    return fit_samples(name, samples or jpeg_samples(), crop, threads=0, cache=cache, key=key)


def file_in(cache):
    """Return the only cache file."""
    (file,) = cache.glob("*.safetensors")
    return file


def test_one_pass_serves_all_statistics(tmp_path):
    first, samples = jpeg_samples(), jpeg_samples()
    fitted = [fit(tmp_path / "cache", first, name) for name in FITTED]
    reads = first.reads
    cached = [fit(tmp_path / "cache", samples, name) for name in FITTED]
    found = colour_pca(samples, CROP, threads=0, cache=tmp_path / "cache", key="abc")
    assert (reads, samples.reads) == (1, 0)
    assert all(same(one, other) for one, other in zip(fitted, cached, strict=True))
    assert torch.equal(found.values, colour_pca(samples, CROP, threads=0, cache=None, key="").values)


@pytest.mark.parametrize(
    "other",
    [
        {"key": "abd"},
        {"samples": InMemorySamples(jpeg_samples().files[:10])},
        {"crop": Crop(side=12, short=21, centre=16)},
        {"crop": Crop(side=12, short=20, centre=15)},
        {"crop": Crop(side=12, short=20, centre=16, interpolation="bicubic")},
    ],
)
def test_other_images_or_frames_are_another_file(tmp_path, other):
    fit(tmp_path)
    uncached = fit(None, **other)
    assert same(fit(tmp_path, **other), uncached)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_file_does_not_depend_on_the_crop_in_the_same_centre(tmp_path):
    fit(tmp_path)
    samples = jpeg_samples()
    fit(tmp_path, samples, crop=Crop(side=10, short=20, centre=16))
    assert samples.reads == 0


def flip_bit(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "noise": lambda content: b"x" * len(content),
    "last bit": lambda content: flip_bit(content, len(content) - 1),
    "a bit of the sums": lambda content: flip_bit(content, len(content) // 2),
    "a bit of the metadata": lambda content: flip_bit(content, content.index(b"sha256") + 12),
    "another key": lambda content: content.replace(b"abc", b"abd"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    expected, file = fit(tmp_path), file_in(tmp_path)
    whole = file.read_bytes()
    assert damage(whole) != whole
    file.write_bytes(damage(whole))
    assert same(fit(tmp_path), expected)
    assert file.read_bytes() == whole


def test_flipped_bits_of_a_cache_are_detected(tmp_path):
    fit(tmp_path, crop=Crop(side=2, short=3))
    file = file_in(tmp_path)
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.choice(len(whole), 200, replace=False).tolist():
        file.write_bytes(flip_bit(whole, position))
        samples = jpeg_samples(11)
        fit(tmp_path, samples, crop=Crop(side=2, short=3))
        assert samples.reads == 1, position


def test_failed_pass_leaves_no_file(tmp_path):
    samples = jpeg_samples()
    samples.files[3] = b""
    with pytest.raises(DataError, match="image 3"):
        fit(tmp_path, samples)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_unwritable_folder_is_skipped(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert same(fit(file / "cache"), fit(None))


def test_full_disk_is_skipped(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics, "write_atomically", fail)
    assert same(fit(tmp_path), fit(None))
    assert not list(tmp_path.glob("*.safetensors"))


def test_concurrent_callers_read_the_images_once(tmp_path):
    class SlowSamples(InMemorySamples):
        def read(self, indices):
            time.sleep(0.2)
            return super().read(indices)

    samples, start = SlowSamples(jpeg_samples().files), threading.Barrier(3)

    def fit_at_once(_):
        start.wait()
        return fit(tmp_path, samples)

    with ThreadPoolExecutor(3) as pool:
        fitted = list(pool.map(fit_at_once, range(3)))
    assert samples.reads == 1
    assert all(same(each, fit(None)) for each in fitted)


def random_images(count=60):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 5, 4, 3), dtype=torch.uint8, generator=generator)
    return LabelledImages(pixels, torch.zeros(count))


def test_whitening_is_cached_exactly(tmp_path, monkeypatch):
    expected = fit_normaliser("gcn-zca", random_images())
    first = fit_in_memory_normaliser("gcn-zca", random_images(), cache=tmp_path, key="abc")
    monkeypatch.setattr(statistics, "fit_normaliser", None)
    for found in (first, fit_in_memory_normaliser("gcn-zca", random_images(), cache=tmp_path, key="abc")):
        assert (found.name, found.pad_value) == ("gcn-zca", 0.0)
        assert same(found, expected)
        assert torch.equal(found.whitening, expected.whitening)
        assert found.whitening.dtype == torch.float64


def test_whitening_of_other_images_is_another_file(tmp_path):
    fit_in_memory_normaliser("gcn-zca", random_images(), cache=tmp_path, key="abc")
    found = fit_in_memory_normaliser("gcn-zca", random_images(50), cache=tmp_path, key="abd")
    assert torch.equal(found.whitening, fit_normaliser("gcn-zca", random_images(50)).whitening)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("name", ["per-pixel-mean", "lecun98", "scale"])
def test_other_normalisations_are_not_cached(tmp_path, name):
    assert same(
        fit_in_memory_normaliser(name, random_images(), cache=tmp_path, key="abc"),
        fit_normaliser(name, random_images()),
    )
    assert not list(tmp_path.iterdir())
