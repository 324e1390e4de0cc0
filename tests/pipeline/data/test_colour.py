"""Colour augmentation and batches of crops against torchvision, Pillow and numpy, one image at a time."""

import itertools
import statistics

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional as F

from pipeline.data.colour import (
    ADJUSTMENT_ORDERS,
    IMAGENET_COLOURS,
    ColourPCA,
    CropBatchBuilder,
    colour_jitter,
    pca_colour,
    photometric,
    random_flip,
)
from pipeline.data.images import DataError
from pipeline.data.normalise import Normaliser, normalise_crops
from pipeline.declare.data_settings import Jitter

SCALE = Normaliser("scale", torch.full((3,), 1 / 255), torch.zeros(3), 0.0)
LARGEST = float(np.nextafter(1.0, 0.0))
ALL = ("flip", "pca-colour", "photometric")
JITTER = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, lighting=0.1)  # fb.resnet.torch's


def random_pixels(n=6, height=8, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def random_pca(seed=0):
    """Return three orthogonal components with ImageNet's eigenvalues."""
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return ColourPCA(torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64), torch.from_numpy(vectors))


def builder_of(augment=(), **options):
    return CropBatchBuilder(**({"normalise": SCALE, "augment": augment, "pca": random_pca()} | options))


def row(order=(0, 1, 2), brightness=1.0, contrast=1.0, colour=1.0):
    """Return the draws of one image: the adjustments in that order, with these factors."""
    return [
        (ADJUSTMENT_ORDERS.index(tuple(order)) + 0.5) / 6,
        brightness - 0.5,
        contrast - 0.5,
        colour - 0.5,
        0.1,
        0.9,
    ]


def draws_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# PCA colour.


def test_pca_adds_the_components_times_eigenvalue_and_normal_draw():
    pixels, pca = random_pixels().float(), random_pca()
    draws = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = pca_colour(pixels, pca, draws).numpy()
    normal = statistics.NormalDist(0, 0.1)
    for i in range(6):
        alpha = np.array([normal.inv_cdf(u) for u in draws[i].tolist()])
        shift = pca.vectors.numpy() @ (alpha * pca.values.numpy())  # of pixels / 255
        np.testing.assert_allclose(result[i] / 255, pixels[i].numpy() / 255 + shift, atol=1e-6)


def test_pca_shifts_by_a_few_levels():
    """Standard deviation along the first component: 0.1 x 0.2175 x 255 = 5.5 levels. With eigenvalues for pixels
    0..255 it would be 100 times as large."""
    pca = random_pca()
    draws = torch.rand(20000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along = pca_colour(torch.zeros(20000, 1, 1, 3), pca, draws).view(-1, 3).double() @ pca.vectors
    np.testing.assert_allclose(along.std(0), 0.1 * 255 * pca.values, rtol=0.03)
    np.testing.assert_allclose(along.mean(0) / along.std(0), 0, atol=0.03)


def test_median_draw_adds_nothing():
    assert torch.equal(
        pca_colour(random_pixels().float(), random_pca(), torch.full((6, 3), 0.5)), random_pixels().float()
    )


@pytest.mark.parametrize("draw", [0.0, LARGEST])
def test_smallest_and_largest_draw_give_finite_colours(draw):
    draws = torch.full((6, 3), draw, dtype=torch.float64)
    assert (
        pca_colour(random_pixels().float(), random_pca(), draws) - random_pixels()
    ).abs().max() < 8.5 * 0.1 * 255 * 0.25


# Photometric distortions.


def reference(image, order, brightness, contrast, colour):
    """Adjust one uint8 (h, w, 3) image with torchvision on floats; return float (h, w, 3), 0..255."""
    x = image.permute(2, 0, 1).double() / 255
    adjustments = (
        lambda x: F.adjust_brightness(x, brightness),
        lambda x: F.adjust_contrast(x, contrast),
        lambda x: F.adjust_saturation(x, colour),
    )
    for adjustment in order:
        x = adjustments[adjustment](x)
    return x.permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("order", ADJUSTMENT_ORDERS)
def test_photometric_equals_torchvision_in_every_order(order):
    """torchvision rounds red's weight in grey to 0.2989: a difference of up to 0.03 of 255 per adjustment."""
    pixels = random_pixels(20)
    factors = np.random.default_rng(0).uniform(0.5, 1.5, (20, 3))
    draws = draws_of(*(row(order, *three) for three in factors))
    result = photometric(pixels.float(), draws).numpy()
    for i, three in enumerate(factors.tolist()):
        np.testing.assert_allclose(result[i], reference(pixels[i], order, *three), atol=0.06)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.3, 1.5])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("colour", ImageEnhance.Color)],
)
def test_each_adjustment_equals_pillows_up_to_rounding(name, enhance, factor):
    pixels = random_pixels(1, 30, 30)
    expected = np.asarray(enhance(Image.fromarray(pixels[0].numpy())).enhance(factor))
    result = photometric(pixels.float(), draws_of(row(**{name: factor})))[0].numpy()
    assert np.abs(result - expected.astype(np.float64)).max() < 1.6  # Pillow truncates, and rounds its greys


def test_factor_1_changes_nothing():
    result = photometric(random_pixels().float(), draws_of(*[row()] * 6))
    np.testing.assert_allclose(result, random_pixels(), atol=1e-4)


def test_all_orders_are_equally_frequent():
    assert sorted(ADJUSTMENT_ORDERS) == sorted(itertools.permutations(range(3)))
    pixels = random_pixels(1).float().expand(6000, 8, 7, 3)
    draws = draws_of(*[row((0, 1, 2), 1.4, 0.6, 1.4)] * 6000)
    draws[:, 0] = torch.rand(6000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = photometric(pixels, draws).flatten(1)
    expected = [
        photometric(random_pixels(1).float(), draws_of(row(order, 1.4, 0.6, 1.4))).flatten()
        for order in ADJUSTMENT_ORDERS
    ]
    matches = torch.stack([(result == image).all(1) for image in expected])
    assert (matches.sum(0) == 1).all()  # each image has one of the orders, and all six differ
    assert matches.sum(1).min() > 880  # 1000 expected, standard deviation 29
    assert matches.sum(1).max() < 1120


def test_factors_range_from_0_5_to_1_5():
    grey = torch.full((2, 2, 2, 3), 100.0)
    result = photometric(grey, torch.tensor([[0.0] * 6, [LARGEST] * 6], dtype=torch.float64))
    np.testing.assert_allclose(result[:, 0, 0, 0], [50, 150], atol=1e-4)


def test_photometric_pixels_stay_in_0_to_255():
    draws = torch.rand(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = photometric(random_pixels(200).float(), draws)
    assert (result.min(), result.max()) == (0, 255)


def test_input_pixels_are_not_changed():
    pixels = random_pixels().float()
    photometric(pixels, torch.rand(6, 6, dtype=torch.float64))
    pca_colour(pixels, random_pca(), torch.rand(6, 3, dtype=torch.float64))
    assert torch.equal(pixels, random_pixels().float())


# Jitter and lighting.


def slow_jitter(image, order, strengths, uniform):
    """ColorJitter of fb.resnet.torch on one image of floats in 0..1, (h, w, 3), adjustment by adjustment."""
    for adjustment in order:
        alpha = 1 + strengths[adjustment] * (2 * uniform[adjustment] - 1)
        grey = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
        other = [np.zeros_like(grey), np.full_like(grey, grey.mean()), grey][adjustment]
        image = alpha * image + (1 - alpha) * other[..., None]
    return image


@pytest.mark.parametrize("order", ADJUSTMENT_ORDERS)
@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4), (0.9, 0.0, 0.2)])
def test_jitter_equals_a_slow_loop_in_every_order(order, strengths):
    pixels, uniform = random_pixels(20), np.random.default_rng(0).uniform(0, 1, (20, 3))
    draws = draws_of(*([(ADJUSTMENT_ORDERS.index(order) + 0.5) / 6, *three, 0.1, 0.9] for three in uniform))
    declared = Jitter(**dict(zip(("brightness", "contrast", "saturation"), strengths, strict=True)))
    result = colour_jitter(pixels.float(), declared, draws).numpy() / 255
    for i, three in enumerate(uniform):
        expected = slow_jitter(pixels[i].double().numpy() / 255, order, strengths, three)
        np.testing.assert_allclose(result[i], expected, atol=2e-5)


def test_jitter_does_not_clip_pixels():
    bright = torch.full((1, 2, 2, 3), 250.0)
    result = colour_jitter(bright, Jitter(brightness=0.4), torch.tensor([[0.0, LARGEST, 0.5, 0.5, 0, 0]]).double())
    np.testing.assert_allclose(result, 350, rtol=1e-6)


def test_jitter_without_brightness_keeps_the_mean_grey():
    """Contrast and saturation blend with a grey image of the same mean."""
    pixels, weights = random_pixels(30).double(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    draws = torch.rand(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = colour_jitter(pixels.float(), Jitter(contrast=0.8, saturation=0.8), draws).double()
    np.testing.assert_allclose((result @ weights).mean((1, 2)), (pixels @ weights).mean((1, 2)), rtol=1e-4)


def test_published_components_of_imagenet_are_orthogonal_and_of_length_1():
    product = IMAGENET_COLOURS.vectors.T @ IMAGENET_COLOURS.vectors
    np.testing.assert_allclose(product, np.eye(3), atol=2e-4)  # they are published to four decimals


def test_lighting_is_pca_noise_of_the_published_components():
    builder, pixels = builder_of(jitter=Jitter(lighting=0.2), pca=None), random_pixels(20)
    draws = builder.draw(0, 0, 20)
    result = builder(pixels, draws=draws).permute(0, 2, 3, 1).numpy()
    normal, values = statistics.NormalDist(0, 0.2), (0.2175, 0.0188, 0.0045)
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    for i in range(20):
        alpha = [normal.inv_cdf(u) for u in draws[i, 7:10].tolist()]
        rgb = [sum(vectors[c][k] * alpha[k] * values[k] for k in range(3)) for c in range(3)]
        np.testing.assert_allclose(result[i], pixels[i].numpy() / 255 + rgb, atol=1e-6)


def test_order_is_jitter_lighting_normalise_flip():
    fitted = Normaliser("per-channel", torch.tensor([0.01, 0.02, 0.03]), torch.tensor([0.4, 0.5, 0.6]), 0.0)
    builder, pixels = builder_of(("flip",), jitter=JITTER, normalise=fitted), random_pixels(20)
    draws = builder.draw(1, 2, 20)
    x = colour_jitter(pixels.float(), JITTER, draws[:, 10:16])
    x = pca_colour(x, IMAGENET_COLOURS, draws[:, 7:10], deviation=0.1)
    x = x * fitted.scale - fitted.shift
    flipped = draws[:, 6] < 0.5
    expected = torch.where(flipped[:, None, None, None], x.flip(2), x).permute(0, 3, 1, 2)
    torch.testing.assert_close(builder(pixels, draws=draws), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("jitter", "columns"),
    [
        (JITTER, [7, 8, 9, 10, 11, 12, 13]),
        (Jitter(lighting=0.1), [7, 8, 9]),
        (Jitter(brightness=0.1, saturation=0.1), [11, 13]),
    ],
)
def test_jitter_uses_its_own_draws(jitter, columns):
    builder = builder_of(jitter=jitter, pca=None)
    draws, pixels = builder.draw(0, 0, 40), random_pixels(40)
    before, changed = builder(pixels, draws=draws), []
    for column in range(16):
        others = draws.clone()
        others[:, column] = (others[:, column] + 0.5) % 1
        if not torch.allclose(builder(pixels, draws=others), before, atol=1e-4):
            changed.append(column)
    assert set(columns) <= {*changed, 10}
    assert set(changed) <= {*columns, 10}  # 10: the order


def test_images_of_an_evaluation_are_not_jittered():
    builder = builder_of(jitter=JITTER)
    assert torch.equal(builder(random_pixels()), normalise_crops(SCALE, random_pixels()))


@pytest.mark.parametrize("world", [2, 3])
def test_jittered_image_has_the_same_bits_in_any_micro_batch(world):
    builder, pixels = builder_of(("flip",), jitter=JITTER), random_pixels(24, 30, 31)
    draws = builder.draw(0, 0, 24)
    whole = builder(pixels, draws=draws)
    for rank in range(world):
        assert torch.equal(builder(pixels[rank::world], draws=draws[rank::world]), whole[rank::world])


# Flips.


def test_flip_mirrors_images_with_a_draw_below_0_5():
    x = torch.arange(4 * 3 * 2 * 5.0).view(4, 3, 2, 5)
    result = random_flip(x.clone(), torch.tensor([0.0, 0.5, 0.499999, LARGEST], dtype=torch.float64))
    assert torch.equal(result, torch.stack([x[0].flip(2), x[1], x[2].flip(2), x[3]]))


def test_flip_of_no_and_of_all_images():
    x = torch.rand(3, 3, 4, 5)
    assert torch.equal(random_flip(x.clone(), torch.ones(3)), x)
    assert torch.equal(random_flip(x.clone(), torch.zeros(3)), x.flip(3))


# The batch.


def test_order_is_photometric_pca_normalise_flip():
    mean = torch.rand(12, 12, 3, generator=torch.Generator().manual_seed(0))
    fitted = Normaliser("per-pixel-mean", torch.full((3,), 1 / 255), mean, 0.0)
    builder, pixels = builder_of(ALL, normalise=fitted), random_pixels(20)
    draws, corners = builder.draw(1, 2, 20), torch.randint(0, 5, (20, 2))
    result = builder(pixels, corners, 12, draws).permute(0, 2, 3, 1).numpy()
    x = photometric(pixels.float(), draws[:, 10:16])
    x = pca_colour(x, random_pca(), draws[:, 7:10]).numpy()
    for i, (top, left) in enumerate(corners.tolist()):
        expected = x[i] / 255 - mean[top : top + 8, left : left + 7].numpy()
        expected = expected[:, ::-1] if draws[i, 6] < 0.5 else expected
        np.testing.assert_allclose(result[i], expected, atol=2e-6)


@pytest.mark.parametrize("augment", [(), ("flip",), ("pca-colour",), ("photometric",), ALL])
def test_batches_are_float32_in_channels_last_format(augment):
    builder, pixels = builder_of(augment), random_pixels()
    result = builder(pixels, draws=builder.draw(0, 0, 6))
    assert result.shape == (6, 3, 8, 7)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, random_pixels())


def test_batch_without_draws_is_only_normalised():
    builder = builder_of(ALL)
    assert torch.equal(builder(random_pixels()), normalise_crops(SCALE, random_pixels()))
    assert not torch.equal(
        builder(random_pixels(), draws=builder.draw(0, 0, 6)), normalise_crops(SCALE, random_pixels())
    )


@pytest.mark.parametrize("augment", [("flip",), ("pca-colour",), ("photometric",)])
def test_each_augmentation_uses_its_own_draws(augment):
    """Adding an augmentation changes no other one, and no crop, whose draws are the first six."""
    builder, columns = builder_of(augment), {"flip": [6], "pca-colour": [7, 8, 9], "photometric": [10, 11, 12, 13]}
    draws, pixels = builder.draw(0, 0, 40), random_pixels(40)
    before = builder(pixels, draws=draws)
    for column in range(16):
        others = draws.clone()
        others[:, column] = (others[:, column] + 0.5) % 1
        assert torch.equal(builder(pixels, draws=others), before) != (column in columns[augment[0]]), column


def test_draws_are_16_uniform_columns_of_their_own_seed_and_step():
    builder = builder_of()
    draws = builder.draw(0, 3, 5000)
    assert (draws.shape, draws.dtype) == ((5000, 16), torch.float64)
    assert 0 <= draws.min() < draws.max() < 1
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.02)  # standard deviation 0.004
    assert torch.equal(draws, builder_of(ALL).draw(0, 3, 5000))
    assert not torch.equal(draws, builder.draw(0, 4, 5000))
    assert not torch.equal(draws, builder.draw(1, 3, 5000))


@pytest.mark.parametrize("world", [2, 3, 24])
def test_image_has_the_same_bits_in_any_micro_batch(world):
    builder, pixels = builder_of(ALL), random_pixels(24, 30, 31)
    draws = builder.draw(0, 0, 24)
    whole = builder(pixels, draws=draws)
    for rank in range(world):
        assert torch.equal(builder(pixels[rank::world], draws=draws[rank::world]), whole[rank::world])


def test_any_number_of_threads_gives_the_same_bits():
    own, result = torch.get_num_threads(), []
    builder = builder_of(ALL)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        result.append(builder(random_pixels(2, 200, 200), draws=builder.draw(0, 0, 2)))
        result[-1] = torch.cat(
            [result[-1], builder(random_pixels(1, 300, 300), draws=builder.draw(0, 1, 1))[:, :, :200, :200]]
        )
    torch.set_num_threads(own)
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[0], result[2])


def test_unknown_augmentation_names_the_nearest_one():
    with pytest.raises(DataError, match=r"unknown augmentation 'pca-color'; did you mean 'pca-colour'\?"):
        builder_of(("pca-color",))


def test_pca_without_components_is_rejected():
    with pytest.raises(DataError, match="'pca-colour' needs the principal components"):
        builder_of(("pca-colour",), pca=None)
    builder_of(("flip",), pca=None)


@pytest.mark.gpu
def test_gpu_makes_the_same_batch():
    on_cpu, on_gpu = builder_of(ALL), builder_of(ALL, device="cuda")
    draws = on_cpu.draw(0, 0, 24)
    result = on_gpu(random_pixels(24, 30, 31), draws=draws).cpu()
    torch.testing.assert_close(result, on_cpu(random_pixels(24, 30, 31), draws=draws), rtol=0, atol=1e-5)
