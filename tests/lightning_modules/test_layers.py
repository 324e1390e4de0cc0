"""Shared layers against the formulas of their papers."""

import pytest
import torch
from torch import nn

from lightning_modules.layers import (
    PadShortcut,
    Projection,
    as_convolution,
    check_image_size,
    he_normal,
    lrn,
    shortcut_for,
)


def test_lrn_is_the_formula_of_alexnet_section_3_3():
    """b_i = a_i / (k + alpha * sum over n neighbouring maps of a_j^2) ^ beta, with alpha not divided by n."""
    a = 30 * torch.randn(
        2, 7, 3, 3, generator=torch.Generator().manual_seed(0)
    )  # large values, so that alpha changes the output
    b = lrn(n=5, k=2.0, alpha=1e-4, beta=0.75)(a)
    for i in range(7):
        neighbours = a[:, max(0, i - 2) : min(6, i + 2) + 1]
        expected = a[:, i] / (2.0 + 1e-4 * neighbours.square().sum(1)) ** 0.75
        torch.testing.assert_close(b[:, i], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(b, nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(a), rtol=1e-3)


@pytest.mark.parametrize(("side", "height", "width"), [(3, 3, 3), (3, 5, 8), (1, 2, 4)])
def test_as_convolution_equals_the_linear_layer_at_each_place(side, height, width):
    torch.manual_seed(0)
    fc, x = nn.Linear(4 * side**2, 6), torch.randn(2, 4, height, width)
    scores = as_convolution(fc, x)
    assert scores.shape == (2, 6, height - side + 1, width - side + 1)
    for i in range(scores.shape[2]):
        for j in range(scores.shape[3]):
            window = x[:, :, i : i + side, j : j + side]
            torch.testing.assert_close(scores[:, :, i, j], fc(window.flatten(1)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(16, 64, 3), nn.Linear(144, 640)])
def test_he_initialisation_has_variance_2_over_fan_in(layer):
    torch.manual_seed(0)
    he_normal(layer)
    assert layer.weight.var().item() == pytest.approx(2 / 144, rel=0.05)
    assert layer.bias.abs().max() == 0


def test_pad_shortcut_subsamples_and_appends_zero_channels():
    x = torch.randn(1, 4, 6, 6)
    y = PadShortcut(4, 2)(x)
    assert y.shape == (1, 8, 3, 3)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert not y[:, 4:].any()


@pytest.mark.parametrize(
    ("option", "same", "wider"),
    [("A", nn.Identity, PadShortcut), ("B", nn.Identity, Projection), ("C", Projection, Projection)],
)
def test_shortcut_options_for_equal_and_for_changed_shapes(option, same, wider):
    assert type(shortcut_for(option, 16, 16, 1)) is same
    assert type(shortcut_for(option, 16, 32, 2)) is wider


@pytest.mark.parametrize(
    ("size", "limits", "message"),
    [
        ((224, 224), {"side": 227}, "AlexNet reads images of 227 x 227 pixels, not 224 x 224"),
        ((227, 224), {"side": 227}, "AlexNet reads images of 227 x 227 pixels, not 227 x 224"),
        ((30, 40), {"min_side": 32}, "AlexNet reads images of 32 x 32 pixels or more, not 30 x 40"),
    ],
)
def test_wrong_image_size_raises_with_the_valid_size(size, limits, message):
    with pytest.raises(ValueError, match=message):
        check_image_size(torch.zeros(1, 3, *size), "AlexNet", **limits)


def test_valid_image_sizes_pass():
    check_image_size(torch.zeros(1, 3, 227, 227), "AlexNet", side=227)
    check_image_size(torch.zeros(1, 3, 32, 99), "AlexNet", min_side=32)
