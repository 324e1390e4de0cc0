"""What several papers share, against the papers' own formulas."""

import pytest
import torch
from torch import nn

from lightning_modules.layers import (
    PadShortcut,
    Projection,
    as_convolution,
    he_normal,
    lrn,
    require_image,
    shortcut_for,
)


def test_lrn_is_the_formula_of_alexnets_section_3_3():
    """b_i = a_i / (k + alpha * sum over n neighbouring maps of a_j^2) ^ beta, with alpha not divided by n."""
    a = 30 * torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(0))  # large, so that alpha matters
    b = lrn(n=5, k=2.0, alpha=1e-4, beta=0.75)(a)
    for i in range(7):
        near = a[:, max(0, i - 2) : min(6, i + 2) + 1]
        expected = a[:, i] / (2.0 + 1e-4 * near.square().sum(1)) ** 0.75
        torch.testing.assert_close(b[:, i], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(b, nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(a), rtol=1e-3)


@pytest.mark.parametrize(("side", "height", "width"), [(3, 3, 3), (3, 5, 8), (1, 2, 4)])
def test_a_fully_connected_layer_as_a_convolution_is_itself_at_each_place(side, height, width):
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


def test_padding_keeps_the_identity_and_adds_zeros():
    x = torch.randn(1, 4, 6, 6)
    after, around = PadShortcut(4, 2)(x), PadShortcut(4, 2, first=2)(x)
    assert after.shape == around.shape == (1, 8, 3, 3)
    assert torch.equal(after[:, :4], x[:, :, ::2, ::2])
    assert torch.equal(around[:, 2:6], x[:, :, ::2, ::2])
    assert after[:, 4:].abs().sum() == around[:, :2].abs().sum() == around[:, 6:].abs().sum() == 0


@pytest.mark.parametrize(
    ("option", "same", "wider"),
    [("A", nn.Identity, PadShortcut), ("B", nn.Identity, Projection), ("C", Projection, Projection)],
)
def test_options_where_the_size_stays_and_where_it_changes(option, same, wider):
    assert type(shortcut_for(option, 16, 16, 1)) is same
    assert type(shortcut_for(option, 16, 32, 2)) is wider


@pytest.mark.parametrize(
    ("size", "limits", "words"),
    [
        ((224, 224), {"side": 227}, "AlexNet reads images of 227 x 227 pixels, not 224 x 224"),
        ((227, 224), {"side": 227}, "AlexNet reads images of 227 x 227 pixels, not 227 x 224"),
        ((30, 40), {"least": 32}, "AlexNet reads images of 32 x 32 pixels or more, not 30 x 40"),
    ],
)
def test_a_wrong_image_is_named_with_the_right_one(size, limits, words):
    with pytest.raises(ValueError, match=words):
        require_image(torch.zeros(1, 3, *size), "AlexNet", **limits)


def test_a_right_image_passes():
    require_image(torch.zeros(1, 3, 227, 227), "AlexNet", side=227)
    require_image(torch.zeros(1, 3, 32, 99), "AlexNet", least=32)
