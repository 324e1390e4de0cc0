"""Normalisation against numpy and scipy in float64, straight from the definitions."""

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.data import normalise
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.normalise import Normaliser, contrast_normalised, fit_normaliser, normalise_crops, whitened


def some(n=40, height=8, width=6, channels=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=draw)
    return LabelledImages(pixels, torch.randint(0, 10, (n,), generator=draw))


def natural(n=200, side=8, seed=0):
    """Images as photographs are: neighbours are alike, and contrasts differ."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, side, side, 3)).cumsum(1).cumsum(2) * draw.uniform(2, 20, (n, 1, 1, 1)) + 128
    return LabelledImages(torch.from_numpy(x.clip(0, 255).astype(np.uint8)), torch.zeros(n, dtype=torch.int64))


def applied(name, images):
    """The images normalised by their own statistics; float64 (N, H, W, C)."""
    return normalise_crops(fit_normaliser(name, images), images.pixels).permute(0, 2, 3, 1).double().numpy()


def test_per_pixel_mean_subtracts_the_mean_image():
    x = some().pixels.numpy() / 255
    np.testing.assert_allclose(applied("per-pixel-mean", some()), x - x.mean(0), atol=1e-6)


def test_per_channel_gives_mean_0_and_deviation_1():
    x = some().pixels.numpy() / 255
    expected = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    np.testing.assert_allclose(applied("per-channel", some()), expected, atol=1e-5)


def test_scale_gives_0_to_1():
    np.testing.assert_allclose(applied("scale", some()), some().pixels.numpy() / 255, atol=1e-6)


def test_raw_mean_image_is_subtracted_from_raw_pixels():
    x = some().pixels.numpy().astype(np.float64)
    np.testing.assert_allclose(applied("raw-mean-image", some()), x - x.mean(0), atol=1e-4)


def test_raw_mean_colour_is_subtracted_from_raw_pixels():
    x = some().pixels.numpy().astype(np.float64)
    np.testing.assert_allclose(applied("raw-mean-colour", some()), x - x.mean((0, 1, 2)), atol=1e-4)


def test_lecun98_gives_the_paper_s_levels():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    made = applied("lecun98", LabelledImages(pixels, torch.zeros(2, dtype=torch.int64)))
    np.testing.assert_allclose(made.flatten(), [-0.1, 1.175], atol=1e-6)


def test_constant_channel_cannot_be_divided_by_its_deviation():
    with pytest.raises(DataError, match="one channel never varies; use 'per-pixel-mean' or 'scale'"):
        fit_normaliser("per-channel", LabelledImages(torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(2)))


def test_unknown_normaliser_names_the_nearest_one():
    with pytest.raises(DataError, match=r"unknown normalisation 'per-pixel'; did you mean 'per-pixel-mean'\?"):
        fit_normaliser("per-pixel", some())


# Global contrast normalisation and whitening.


def contrast(pixels):
    """float64 (N, D): minus the image's mean, to a length of 55; nothing where there is nothing."""
    x = pixels.reshape(len(pixels), -1).astype(np.float64)
    x = x - x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(55 * x, length, out=np.zeros_like(x), where=length > 1e-8)


def test_contrast_normalised_images_have_mean_0_and_length_55():
    made = contrast_normalised(some().pixels.flatten(1)).numpy()
    np.testing.assert_allclose(made.mean(1), 0, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 55, rtol=1e-14)
    np.testing.assert_allclose(made, contrast(some().pixels.numpy()), atol=1e-12)


def test_an_image_of_one_grey_becomes_0():
    assert not contrast_normalised(torch.full((2, 27), 200, dtype=torch.uint8)).any()


def test_gcn_zca_is_the_formula_in_scipy():
    images = natural()
    x = contrast(images.pixels.numpy())
    centred = x - x.mean(0)
    root = scipy.linalg.sqrtm(centred.T @ centred / len(x) + 0.1 * np.eye(192))
    expected = centred @ np.linalg.inv(root)
    fitted = fit_normaliser("gcn-zca", images)
    made = whitened(images.pixels, fitted.whitening) * fitted.scale - fitted.shift
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(made.flatten(1).numpy(), expected, atol=1e-4)


def test_covariance_of_whitened_training_images_is_what_the_bias_leaves():
    """A direction of variance v comes out with v / (v + 0.1): nearly 1 for the strong, nearly 0 for the weak."""
    images = natural()
    variances, directions = np.linalg.eigh(np.cov(contrast(images.pixels.numpy()).T, bias=True))
    fitted = fit_normaliser("gcn-zca", images)
    made = (whitened(images.pixels, fitted.whitening) * fitted.scale - fitted.shift).flatten(1).double().numpy()
    left = directions.T @ np.cov(made.T, bias=True) @ directions
    expected = np.diag(variances / (variances + 0.1))
    assert expected.max() > 0.99
    assert expected.diagonal().min() < 0.01
    np.testing.assert_allclose(left, expected, atol=1e-4)
    np.testing.assert_allclose(made.mean(0), 0, atol=1e-5)


def test_whitening_keeps_the_picture_where_it_was():
    """ZCA and not PCA: of all whitened images these are nearest to the originals, so the matrix is symmetric."""
    matrix = fit_normaliser("gcn-zca", natural()).whitening
    assert (matrix - matrix.T).abs().max() <= 1  # in units of the last place
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_whitened_sums_are_exact():
    """Bits are enough for 55 * 1/sqrt(0.1) with 45 bits behind it, and for a block's products when fitting."""
    assert 55 / 0.1**0.5 * 2 ** (normalise.IMAGE_BITS + normalise.MATRIX_BITS) < 2**53
    assert normalise.WHITENING_BLOCK * (55 * 2**normalise.FIT_BITS + 1) ** 2 < 2**53
    fitted, images = fit_normaliser("gcn-zca", natural()), natural(5, seed=1)
    x = (contrast_normalised(images.pixels.flatten(1)) * 2**normalise.IMAGE_BITS).round()
    exact = np.array(x.tolist(), dtype=object).astype(int) @ fitted.whitening.long().numpy().astype(object)
    made = whitened(images.pixels, fitted.whitening).flatten(1)
    assert made.tolist() == [[float(np.float32(value)) for value in row] for row in exact]


def test_whitening_is_fitted_in_blocks(monkeypatch):
    whole = fit_normaliser("gcn-zca", natural())
    monkeypatch.setattr(normalise, "WHITENING_BLOCK", 64)
    blocks = fit_normaliser("gcn-zca", natural())
    assert torch.equal(whole.whitening, blocks.whitening)
    assert torch.equal(whole.shift, blocks.shift)


def test_whitening_of_large_images_is_refused_before_it_takes_the_memory():
    images = LabelledImages(torch.zeros(1, 224, 224, 3, dtype=torch.uint8), torch.zeros(1))
    with pytest.raises(DataError, match="needs a matrix of 150528 x 150528 numbers for images of 224 x 224 x 3"):
        fit_normaliser("gcn-zca", images)


@pytest.fixture
def threads():
    own = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(own)


@pytest.mark.parametrize("name", [name for name in normalise.NORMALISERS if name != "gcn-zca"])
def test_statistics_are_the_same_bits_on_any_number_of_threads(threads, name):
    images, found = natural(300, side=16), []
    for count in (1, 2, 5):
        threads(count)
        found.append(fit_normaliser(name, images))
    assert all(torch.equal(one.shift, found[0].shift) and torch.equal(one.scale, found[0].scale) for one in found)


def test_whitened_images_are_the_same_bits_on_any_number_of_threads(threads):
    images = natural(100, side=16)
    matrix = torch.randint(-(2**20), 2**20, (768, 768), generator=torch.Generator().manual_seed(0)).double()
    made = []
    for count in (1, 2, 5):
        threads(count)
        made.append(whitened(images.pixels, matrix))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


# Photographs.


def fitted_on(side, channels=3):
    draw = torch.Generator().manual_seed(5)
    mean = torch.rand(side, side, channels, generator=draw)
    return Normaliser("per-pixel-mean", torch.full((channels,), 1 / 255), mean, 0.0)


def photographs(n=7, height=6, width=6, seed=0):
    return some(n, height, width, seed=seed).pixels


def test_pixels_of_the_frame_s_size_lose_the_whole_mean_image():
    fitted, x = fitted_on(6), photographs()
    made = normalise_crops(fitted, x, torch.full((7, 2), 3), 6).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(made, x.numpy() / 255 - fitted.shift.numpy(), atol=1e-6)


def test_a_crop_loses_its_own_window_of_the_mean_image():
    fitted, x = fitted_on(9), photographs(height=6, width=5)
    corners = torch.tensor([[0, 0], [3, 4], [0, 4], [3, 0], [1, 2], [2, 1], [1, 1]])
    made = normalise_crops(fitted, x, corners, 9).permute(0, 2, 3, 1).numpy()
    for i, (row, column) in enumerate(corners.tolist()):
        window = fitted.shift[row : row + 6, column : column + 5].numpy()
        np.testing.assert_allclose(made[i], x[i].numpy() / 255 - window, atol=1e-6)


@pytest.mark.parametrize(("corners", "frame"), [(None, None), (torch.zeros(7, 2, dtype=torch.int64), 8)])
def test_what_has_no_place_in_the_mean_image_loses_its_mean_colour(corners, frame):
    fitted, x = fitted_on(9), photographs(height=12, width=5)
    made = normalise_crops(fitted, x, corners, frame).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(made, x.numpy() / 255 - fitted.shift.numpy().mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize("fitted", [fitted_on(6), fitted_on(9), fit_normaliser("per-channel", some())])
@pytest.mark.parametrize("kind", ["uint8", "float", "planes"])
def test_photographs_come_as_float32_in_channels_last_format_and_stay_what_they_were(fitted, kind):
    x = photographs() if kind == "uint8" else photographs().float()
    x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if kind == "planes" else x
    before = x.clone()
    made = normalise_crops(fitted, x, torch.zeros(7, 2, dtype=torch.int64), 9)
    assert made.shape == (7, 3, 6, 6)
    assert made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)
    assert torch.equal(made, normalise_crops(fitted, photographs(), torch.zeros(7, 2, dtype=torch.int64), 9))
