"""Normalisation against its definitions in numpy and scipy, in float64."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.data import normalise
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.normalise import (
    Normaliser,
    contrast_normalised,
    fit_normaliser,
    locally_normalised,
    normalise_crops,
    whitened,
)


def random_images(n=40, height=8, width=6, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)
    return LabelledImages(pixels, torch.randint(0, 10, (n,), generator=generator))


def natural_images(n=200, side=8, seed=0):
    """Return images in which neighbouring pixels correlate and contrasts differ, as in photographs."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, side, side, 3)).cumsum(1).cumsum(2) * draw.uniform(2, 20, (n, 1, 1, 1)) + 128
    return LabelledImages(torch.from_numpy(x.clip(0, 255).astype(np.uint8)), torch.zeros(n, dtype=torch.int64))


def normalised(name, images):
    """Return the images normalised by their own statistics, float64 (N, H, W, C)."""
    return normalise_crops(fit_normaliser(name, images), images.pixels).permute(0, 2, 3, 1).double().numpy()


def test_per_pixel_mean_subtracts_the_mean_image():
    x = random_images().pixels.numpy() / 255
    np.testing.assert_allclose(normalised("per-pixel-mean", random_images()), x - x.mean(0), atol=1e-6)


def test_per_channel_gives_mean_0_and_standard_deviation_1():
    x = random_images().pixels.numpy() / 255
    expected = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    np.testing.assert_allclose(normalised("per-channel", random_images()), expected, atol=1e-5)


def test_scale_gives_0_to_1():
    np.testing.assert_allclose(
        normalised("scale", random_images()), random_images().pixels.numpy() / 255, atol=1e-6
    )


def test_raw_mean_image_is_subtracted_from_raw_pixels():
    x = random_images().pixels.numpy().astype(np.float64)
    np.testing.assert_allclose(normalised("raw-mean-image", random_images()), x - x.mean(0), atol=1e-4)


def test_raw_mean_colour_is_subtracted_from_raw_pixels():
    x = random_images().pixels.numpy().astype(np.float64)
    np.testing.assert_allclose(normalised("raw-mean-colour", random_images()), x - x.mean((0, 1, 2)), atol=1e-4)


def test_lecun98_gives_the_levels_of_the_paper():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    result = normalised("lecun98", LabelledImages(pixels, torch.zeros(2, dtype=torch.int64)))
    np.testing.assert_allclose(result.flatten(), [-0.1, 1.175], atol=1e-6)


def test_per_channel_rejects_a_constant_channel():
    with pytest.raises(DataError, match="one channel is constant; use 'per-pixel-mean' or 'scale'"):
        fit_normaliser("per-channel", LabelledImages(torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(2)))


def test_unknown_normaliser_names_the_nearest_one():
    with pytest.raises(DataError, match=r"unknown normalisation 'per-pixel'; did you mean 'per-pixel-mean'\?"):
        fit_normaliser("per-pixel", random_images())


# Global contrast normalisation and whitening.


def contrast(pixels):
    """Subtract each image's mean and scale it to length 55; constant images give 0. Return float64 (N, D)."""
    x = pixels.reshape(len(pixels), -1).astype(np.float64)
    x = x - x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(55 * x, length, out=np.zeros_like(x), where=length > 1e-8)


def test_contrast_normalised_images_have_mean_0_and_length_55():
    result = contrast_normalised(random_images().pixels.flatten(1)).numpy()
    np.testing.assert_allclose(result.mean(1), 0, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 55, rtol=1e-14)
    np.testing.assert_allclose(result, contrast(random_images().pixels.numpy()), atol=1e-12)


def test_constant_image_becomes_0():
    assert not contrast_normalised(torch.full((2, 27), 200, dtype=torch.uint8)).any()


def test_gcn_zca_equals_the_formula_in_scipy():
    images = natural_images()
    x = contrast(images.pixels.numpy())
    centred = x - x.mean(0)
    root = scipy.linalg.sqrtm(centred.T @ centred / len(x) + 0.1 * np.eye(192))
    expected = centred @ np.linalg.inv(root)
    fitted = fit_normaliser("gcn-zca", images)
    result = whitened(images.pixels, fitted.whitening) * fitted.scale - fitted.shift
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(result.flatten(1).numpy(), expected, atol=1e-4)


def test_covariance_of_whitened_images_has_the_variances_that_the_bias_gives():
    """Variance v becomes v / (v + 0.1): nearly 1 in strong directions, nearly 0 in weak ones."""
    images = natural_images()
    variances, directions = np.linalg.eigh(np.cov(contrast(images.pixels.numpy()).T, bias=True))
    fitted = fit_normaliser("gcn-zca", images)
    result = (whitened(images.pixels, fitted.whitening) * fitted.scale - fitted.shift).flatten(1).double().numpy()
    covariance = directions.T @ np.cov(result.T, bias=True) @ directions
    expected = np.diag(variances / (variances + 0.1))
    assert expected.max() > 0.99
    assert expected.diagonal().min() < 0.01
    np.testing.assert_allclose(covariance, expected, atol=1e-4)
    np.testing.assert_allclose(result.mean(0), 0, atol=1e-5)


def test_whitening_matrix_is_symmetric():
    """ZCA, unlike PCA: of all whitened images these are nearest to the originals."""
    matrix = fit_normaliser("gcn-zca", natural_images()).whitening
    assert (matrix - matrix.T).abs().max() <= 1  # unit in the last place
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_whitened_sums_are_exact():
    """float64 has enough bits for 55 * 1/sqrt(0.1) with 45 fractional bits, and for the products of a block."""
    assert 55 / 0.1**0.5 * 2 ** (normalise.IMAGE_BITS + normalise.MATRIX_BITS) < 2**53
    assert normalise.WHITENING_BLOCK * (55 * 2**normalise.FIT_BITS + 1) ** 2 < 2**53
    fitted, images = fit_normaliser("gcn-zca", natural_images()), natural_images(5, seed=1)
    x = (contrast_normalised(images.pixels.flatten(1)) * 2**normalise.IMAGE_BITS).round()
    exact = np.array(x.tolist(), dtype=object).astype(int) @ fitted.whitening.long().numpy().astype(object)
    result = whitened(images.pixels, fitted.whitening).flatten(1)
    assert result.tolist() == [[float(np.float32(value)) for value in row] for row in exact]


def test_whitening_does_not_depend_on_the_block_size(monkeypatch):
    whole = fit_normaliser("gcn-zca", natural_images())
    monkeypatch.setattr(normalise, "WHITENING_BLOCK", 64)
    blocks = fit_normaliser("gcn-zca", natural_images())
    assert torch.equal(whole.whitening, blocks.whitening)
    assert torch.equal(whole.shift, blocks.shift)


def test_whitening_of_large_images_is_rejected_before_memory_is_allocated():
    images = LabelledImages(torch.zeros(1, 224, 224, 3, dtype=torch.uint8), torch.zeros(1))
    with pytest.raises(DataError, match="needs a matrix of 150528 x 150528 values for images of 224 x 224 x 3"):
        fit_normaliser("gcn-zca", images)


@pytest.fixture
def threads():
    """A function that sets the number of torch's threads; it is restored after the test."""
    own = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(own)


@pytest.mark.parametrize("name", [name for name in normalise.NORMALISERS if name != "gcn-zca"])
def test_statistics_have_the_same_bits_on_any_number_of_threads(threads, name):
    images, found = natural_images(300, side=16), []
    for count in (1, 2, 5):
        threads(count)
        found.append(fit_normaliser(name, images))
    first = found[0]
    assert all(torch.equal(each.shift, first.shift) and torch.equal(each.scale, first.scale) for each in found)


def test_whitened_images_have_the_same_bits_on_any_number_of_threads(threads):
    images = natural_images(100, side=16)
    matrix = torch.randint(-(2**20), 2**20, (768, 768), generator=torch.Generator().manual_seed(0)).double()
    result = []
    for count in (1, 2, 5):
        threads(count)
        result.append(whitened(images.pixels, matrix))
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[0], result[2])


def test_levels_are_counted_in_blocks(monkeypatch):
    """A set of 600,000 images is never copied as a whole."""
    whole = fit_normaliser("per-channel", random_images(50))
    monkeypatch.setattr(normalise, "COUNT_BLOCK", 7)
    blocks = fit_normaliser("per-channel", random_images(50))
    assert torch.equal(whole.scale, blocks.scale)
    assert torch.equal(whole.shift, blocks.shift)


# Local contrast.


def slow_local_contrast(image):
    """Return one image (H, W, C) after global and local contrast normalisation, pixel by pixel, in float64."""
    x = image.astype(np.float64) - image.mean()
    x /= np.linalg.norm(x)
    height, width, channels = x.shape
    weights = {(a, b): math.exp(-(a * a + b * b) / 8) for a in range(-3, 4) for b in range(-3, 4)}
    total = sum(weights.values())
    centred, deviation = np.zeros_like(x), np.zeros_like(x)
    for i, j, c in itertools.product(range(height), range(width), range(channels)):
        mean = square = 0.0
        for (a, b), weight in weights.items():
            if 0 <= i + a < height and 0 <= j + b < width:  # 0 beyond the border
                mean += weight / total * x[i + a, j + b, c]
                square += weight / total * x[i + a, j + b, c] ** 2
        centred[i, j, c], deviation[i, j, c] = x[i, j, c] - mean, math.sqrt(square)
    return centred / np.maximum(np.maximum(deviation, deviation.mean((0, 1))), 1e-4)


@pytest.mark.parametrize("images", [natural_images(3, side=12), random_images(2, 5, 9), random_images(2, 8, 8, 1)])
def test_local_contrast_equals_a_slow_loop(images):
    result = locally_normalised(images.pixels)
    assert result.dtype == torch.float32
    for found, image in zip(result.numpy(), images.pixels.numpy(), strict=True):
        np.testing.assert_allclose(found, slow_local_contrast(image), atol=2e-5)


def test_local_contrast_does_not_depend_on_brightness_and_contrast():
    """Pixels 2 x + 40 give the result of x: the mean and the length of the whole image are removed first."""
    pixels = random_images().pixels // 4
    torch.testing.assert_close(locally_normalised(2 * pixels + 40), locally_normalised(pixels), rtol=0, atol=1e-6)


def test_constant_image_has_no_local_contrast():
    assert not locally_normalised(torch.full((2, 9, 9, 3), 200, dtype=torch.uint8)).any()


def test_local_contrast_needs_no_statistics():
    first, other = (fit_normaliser("local-contrast", random_images(seed=seed)) for seed in (0, 1))
    assert first.local_contrast
    assert torch.equal(first.scale, torch.ones(3))
    assert torch.equal(first.shift, other.shift)
    assert not first.shift.any()


def test_locally_normalised_images_have_the_same_bits_on_any_number_of_threads(threads):
    images, result = natural_images(100, side=16), []
    for count in (1, 2, 5):
        threads(count)
        result.append(locally_normalised(images.pixels))
        assert torch.equal(locally_normalised(images.pixels[7:8])[0], result[-1][7])
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[0], result[2])


# Crops of sharded images.


def random_mean_image(side, channels=3):
    """Return a normaliser with a random mean image."""
    generator = torch.Generator().manual_seed(5)
    mean = torch.rand(side, side, channels, generator=generator)
    return Normaliser("per-pixel-mean", torch.full((channels,), 1 / 255), mean, 0.0)


def random_crops(n=7, height=6, width=6, seed=0):
    return random_images(n, height, width, seed=seed).pixels


def test_whole_mean_image_is_subtracted_from_the_whole_frame():
    fitted, x = random_mean_image(6), random_crops()
    result = normalise_crops(fitted, x, torch.full((7, 2), 3), 6).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(result, x.numpy() / 255 - fitted.shift.numpy(), atol=1e-6)


def test_window_of_the_mean_image_is_subtracted_from_a_crop():
    fitted, x = random_mean_image(9), random_crops(height=6, width=5)
    corners = torch.tensor([[0, 0], [3, 4], [0, 4], [3, 0], [1, 2], [2, 1], [1, 1]])
    result = normalise_crops(fitted, x, corners, 9).permute(0, 2, 3, 1).numpy()
    for i, (row, column) in enumerate(corners.tolist()):
        window = fitted.shift[row : row + 6, column : column + 5].numpy()
        np.testing.assert_allclose(result[i], x[i].numpy() / 255 - window, atol=1e-6)


@pytest.mark.parametrize(("corners", "frame"), [(None, None), (torch.zeros(7, 2, dtype=torch.int64), 8)])
def test_mean_colour_is_subtracted_from_other_views(corners, frame):
    fitted, x = random_mean_image(9), random_crops(height=12, width=5)
    result = normalise_crops(fitted, x, corners, frame).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(result, x.numpy() / 255 - fitted.shift.numpy().mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "fitted", [random_mean_image(6), random_mean_image(9), fit_normaliser("per-channel", random_images())]
)
@pytest.mark.parametrize("kind", ["uint8", "float", "planes"])
def test_crops_become_float32_in_channels_last_format_and_are_not_changed(fitted, kind):
    x = random_crops() if kind == "uint8" else random_crops().float()
    x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if kind == "planes" else x
    before = x.clone()
    result = normalise_crops(fitted, x, torch.zeros(7, 2, dtype=torch.int64), 9)
    assert result.shape == (7, 3, 6, 6)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)
    assert torch.equal(result, normalise_crops(fitted, random_crops(), torch.zeros(7, 2, dtype=torch.int64), 9))
