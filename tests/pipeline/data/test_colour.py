"""Colours of photographs against torchvision, Pillow and numpy, one image at a time."""

import itertools
import statistics

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional as F

from pipeline.data.colour import ORDERS, ColourPCA, CropBatchBuilder, pca_colour, photometric, random_flip
from pipeline.data.images import DataError
from pipeline.data.normalise import Normaliser, normalise_crops

PLAIN = Normaliser("scale", torch.full((3,), 1 / 255), torch.zeros(3), 0.0)
LARGEST = float(np.nextafter(1.0, 0.0))
ALL = ("flip", "pca-colour", "photometric")


def some(n=6, height=8, width=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=draw)


def turned(seed=0):
    """Three components at right angles, with ImageNet's eigenvalues."""
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return ColourPCA(torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64), torch.from_numpy(vectors))


def maker_of(augment=(), **options):
    return CropBatchBuilder(**({"normalise": PLAIN, "augment": augment, "pca": turned()} | options))


def row(order=(0, 1, 2), brightness=1.0, contrast=1.0, colour=1.0):
    """Draws for one image: the changes in that order, by these amounts."""
    return [(ORDERS.index(tuple(order)) + 0.5) / 6, brightness - 0.5, contrast - 0.5, colour - 0.5, 0.1, 0.9]


def draws_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# PCA colour.


def test_pca_adds_the_components_times_eigenvalue_and_a_normal_number():
    pixels, pca = some().float(), turned()
    draws = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = pca_colour(pixels, pca, draws).numpy()
    normal = statistics.NormalDist(0, 0.1)
    for i in range(6):
        alpha = np.array([normal.inv_cdf(u) for u in draws[i].tolist()])
        shift = pca.vectors.numpy() @ (alpha * pca.values.numpy())  # of pixels / 255
        np.testing.assert_allclose(made[i] / 255, pixels[i].numpy() / 255 + shift, atol=1e-6)


def test_pca_shifts_by_a_few_levels():
    """Deviation of the first component: 0.1 x 0.2175 x 255 = 5.5 levels along it; in levels' own units it would be
    a hundred times as much."""
    pca = turned()
    draws = torch.rand(20000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along = pca_colour(torch.zeros(20000, 1, 1, 3), pca, draws).view(-1, 3).double() @ pca.vectors
    np.testing.assert_allclose(along.std(0), 0.1 * 255 * pca.values, rtol=0.03)
    np.testing.assert_allclose(along.mean(0) / along.std(0), 0, atol=0.03)


def test_the_median_draw_adds_nothing():
    assert torch.equal(pca_colour(some().float(), turned(), torch.full((6, 3), 0.5)), some().float())


@pytest.mark.parametrize("draw", [0.0, LARGEST])
def test_the_least_and_the_largest_draw_are_finite(draw):
    draws = torch.full((6, 3), draw, dtype=torch.float64)
    assert (pca_colour(some().float(), turned(), draws) - some()).abs().max() < 8.5 * 0.1 * 255 * 0.25


# Photometric distortions.


def reference(image, order, brightness, contrast, colour):
    """One uint8 (h, w, 3) image by torchvision's functions on floats; float (h, w, 3) of 0..255."""
    x = image.permute(2, 0, 1).double() / 255
    changes = (
        lambda x: F.adjust_brightness(x, brightness),
        lambda x: F.adjust_contrast(x, contrast),
        lambda x: F.adjust_saturation(x, colour),
    )
    for change in order:
        x = changes[change](x)
    return x.permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("order", ORDERS)
def test_photometric_is_torchvision_s_in_every_order(order):
    """Up to red's share of grey, which torchvision rounds to 0.2989: 0.03 of 255 at most, more by each step."""
    pixels = some(20)
    amounts = np.random.default_rng(0).uniform(0.5, 1.5, (20, 3))
    draws = draws_of(*(row(order, *three) for three in amounts))
    made = photometric(pixels.float(), draws).numpy()
    for i, three in enumerate(amounts.tolist()):
        np.testing.assert_allclose(made[i], reference(pixels[i], order, *three), atol=0.06)


@pytest.mark.parametrize("amount", [0.5, 0.8, 1.0, 1.3, 1.5])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("colour", ImageEnhance.Color)],
)
def test_each_change_is_pillow_s_up_to_its_roundings(name, enhance, amount):
    pixels = some(1, 30, 30)
    expected = np.asarray(enhance(Image.fromarray(pixels[0].numpy())).enhance(amount))
    made = photometric(pixels.float(), draws_of(row(**{name: amount})))[0].numpy()
    assert np.abs(made - expected.astype(np.float64)).max() < 1.6  # Pillow cuts decimals off, and rounds its greys


def test_an_amount_of_1_changes_nothing():
    made = photometric(some().float(), draws_of(*[row()] * 6))
    np.testing.assert_allclose(made, some(), atol=1e-4)


def test_orders_are_all_there_are_and_equally_often():
    assert sorted(ORDERS) == sorted(itertools.permutations(range(3)))
    pixels = some(1).float().expand(6000, 8, 7, 3)
    draws = draws_of(*[row((0, 1, 2), 1.4, 0.6, 1.4)] * 6000)
    draws[:, 0] = torch.rand(6000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = photometric(pixels, draws).flatten(1)
    expected = [photometric(some(1).float(), draws_of(row(order, 1.4, 0.6, 1.4))).flatten() for order in ORDERS]
    found = torch.stack([(made == one).all(1) for one in expected])
    assert (found.sum(0) == 1).all()  # each image in one of the orders, and all six are different
    assert found.sum(1).min() > 880  # 1000 expected, standard deviation 29
    assert found.sum(1).max() < 1120


def test_amounts_reach_from_a_half_to_one_and_a_half():
    grey = torch.full((2, 2, 2, 3), 100.0)
    made = photometric(grey, torch.tensor([[0.0] * 6, [LARGEST] * 6], dtype=torch.float64))
    np.testing.assert_allclose(made[:, 0, 0, 0], [50, 150], atol=1e-4)


def test_photometric_never_leaves_0_to_255():
    draws = torch.rand(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = photometric(some(200).float(), draws)
    assert (made.min(), made.max()) == (0, 255)


def test_given_pixels_are_not_changed():
    pixels = some().float()
    photometric(pixels, torch.rand(6, 6, dtype=torch.float64))
    pca_colour(pixels, turned(), torch.rand(6, 3, dtype=torch.float64))
    assert torch.equal(pixels, some().float())


# Flips.


def test_flip_mirrors_where_the_draw_is_below_a_half():
    x = torch.arange(4 * 3 * 2 * 5.0).view(4, 3, 2, 5)
    made = random_flip(x.clone(), torch.tensor([0.0, 0.5, 0.499999, LARGEST], dtype=torch.float64))
    assert torch.equal(made, torch.stack([x[0].flip(2), x[1], x[2].flip(2), x[3]]))


def test_flip_of_none_and_of_all():
    x = torch.rand(3, 3, 4, 5)
    assert torch.equal(random_flip(x.clone(), torch.ones(3)), x)
    assert torch.equal(random_flip(x.clone(), torch.zeros(3)), x.flip(3))


# The batch.


def test_the_order_is_photometric_pca_normalise_flip():
    mean = torch.rand(12, 12, 3, generator=torch.Generator().manual_seed(0))
    fitted = Normaliser("per-pixel-mean", torch.full((3,), 1 / 255), mean, 0.0)
    maker, pixels = maker_of(ALL, normalise=fitted), some(20)
    draws, corners = maker.draw(1, 2, 20), torch.randint(0, 5, (20, 2))
    made = maker(pixels, corners, 12, draws).permute(0, 2, 3, 1).numpy()
    x = photometric(pixels.float(), draws[:, 10:16])
    x = pca_colour(x, turned(), draws[:, 7:10]).numpy()
    for i, (top, left) in enumerate(corners.tolist()):
        expected = x[i] / 255 - mean[top : top + 8, left : left + 7].numpy()
        expected = expected[:, ::-1] if draws[i, 6] < 0.5 else expected
        np.testing.assert_allclose(made[i], expected, atol=2e-6)


@pytest.mark.parametrize("augment", [(), ("flip",), ("pca-colour",), ("photometric",), ALL])
def test_batches_are_float32_in_channels_last_format(augment):
    maker, pixels = maker_of(augment), some()
    made = maker(pixels, draws=maker.draw(0, 0, 6))
    assert made.shape == (6, 3, 8, 7)
    assert made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, some())


def test_without_draws_pictures_are_only_normalised():
    maker = maker_of(ALL)
    assert torch.equal(maker(some()), normalise_crops(PLAIN, some()))
    assert not torch.equal(maker(some(), draws=maker.draw(0, 0, 6)), normalise_crops(PLAIN, some()))


@pytest.mark.parametrize("augment", [("flip",), ("pca-colour",), ("photometric",)])
def test_each_augmentation_looks_at_its_own_draws(augment):
    """Adding one changes nothing of another, nor of the crop, whose draws are the first six."""
    maker, columns = maker_of(augment), {"flip": [6], "pca-colour": [7, 8, 9], "photometric": [10, 11, 12, 13]}
    draws, pixels = maker.draw(0, 0, 40), some(40)
    before = maker(pixels, draws=draws)
    for column in range(16):
        others = draws.clone()
        others[:, column] = (others[:, column] + 0.5) % 1
        assert torch.equal(maker(pixels, draws=others), before) != (column in columns[augment[0]]), column


def test_draws_are_16_uniform_columns_of_their_own_seed_and_step():
    maker = maker_of()
    draws = maker.draw(0, 3, 5000)
    assert (draws.shape, draws.dtype) == ((5000, 16), torch.float64)
    assert 0 <= draws.min() < draws.max() < 1
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.02)  # deviation 0.004
    assert torch.equal(draws, maker_of(ALL).draw(0, 3, 5000))
    assert not torch.equal(draws, maker.draw(0, 4, 5000))
    assert not torch.equal(draws, maker.draw(1, 3, 5000))


@pytest.mark.parametrize("world", [2, 3, 24])
def test_an_image_is_the_same_bits_in_any_share(world):
    maker, pixels = maker_of(ALL), some(24, 30, 31)
    draws = maker.draw(0, 0, 24)
    whole = maker(pixels, draws=draws)
    for rank in range(world):
        assert torch.equal(maker(pixels[rank::world], draws=draws[rank::world]), whole[rank::world])


def test_any_number_of_threads_gives_the_same_bits():
    own, made = torch.get_num_threads(), []
    maker = maker_of(ALL)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made.append(maker(some(2, 200, 200), draws=maker.draw(0, 0, 2)))
        made[-1] = torch.cat([made[-1], maker(some(1, 300, 300), draws=maker.draw(0, 1, 1))[:, :, :200, :200]])
    torch.set_num_threads(own)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_unknown_augmentation_names_the_nearest_one():
    with pytest.raises(DataError, match=r"unknown augmentation 'pca-color'; did you mean 'pca-colour'\?"):
        maker_of(("pca-color",))


def test_pca_without_components_is_refused():
    with pytest.raises(DataError, match="'pca-colour' needs the principal components"):
        maker_of(("pca-colour",), pca=None)
    maker_of(("flip",), pca=None)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_batch():
    here, there = maker_of(ALL), maker_of(ALL, device="cuda")
    draws = here.draw(0, 0, 24)
    made = there(some(24, 30, 31), draws=draws).cpu()
    torch.testing.assert_close(made, here(some(24, 30, 31), draws=draws), rtol=0, atol=1e-5)
