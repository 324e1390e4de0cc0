"""Box regression: loss and overlap by arithmetic, the class's own box, and one training step."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.box_regression import (
    BoxBatch,
    BoxRegressor,
    corners_of,
    euclidean_loss,
    overlap,
)
from lightning_modules.vgg_localisation import boxes_of_classes
from tests.support.box_sets import slow_overlap, small_networks, torch_boxes


def test_the_loss_is_half_the_squared_distance():
    boxes, targets = torch_boxes((1, 2, 3, 4), (0, 0, 0, 0)), torch_boxes((0, 0, 0, 0), (1, 0, 0, 2))
    assert euclidean_loss(boxes, targets).item() == ((1 + 4 + 9 + 16) / 2 + (1 + 4) / 2) / 2


def test_per_class_regression_uses_the_box_of_the_class():
    outputs = torch.arange(24.0).reshape(2, 3, 4)
    assert boxes_of_classes(outputs, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_single_class_regression_has_one_box_for_all():
    outputs = torch.arange(8.0).reshape(2, 1, 4)
    assert boxes_of_classes(outputs, torch.tensor([2, 0])).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_only_the_box_of_the_class_is_trained():
    outputs = torch.zeros(2, 3, 4, requires_grad=True)
    euclidean_loss(boxes_of_classes(outputs, torch.tensor([2, 0])), torch.ones(2, 4)).backward()
    assert outputs.grad.abs().sum(2).ne(0).tolist() == [[False, False, True], [True, False, False]]
    torch.testing.assert_close(outputs.grad[0, 2], torch.full((4,), -0.5))  # (0 - 1) / N


def test_corners_are_half_a_size_from_the_centre():
    assert corners_of(torch_boxes((0.5, 0.25, 1.0, 0.5))).tolist() == [[0.0, 0.0, 1.0, 0.5]]
    assert corners_of(torch_boxes((0.5, 0.25, -1.0, 0.5))).tolist() == [[0.5, 0.0, 0.5, 0.5]]  # no width


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),  # 2 of 6
        ((0, 0, 2, 2), (0, 0, 1, 2), 0.5),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),  # they touch
        ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),  # no area
        ((3, 3, 1, 1), (0, 0, 4, 4), 0.0),
    ],
)
def test_overlap_by_hand(first, second, expected):
    found = overlap(torch_boxes(first), torch_boxes(second)).item()
    assert found == pytest.approx(expected)
    assert found == pytest.approx(slow_overlap(np.array(first, float), np.array(second, float)))


def test_overlap_of_every_pair():
    generator = np.random.default_rng(0)
    boxes = generator.random((6, 4))
    boxes[:, 2:] += boxes[:, :2]
    found = overlap(torch.from_numpy(boxes)[:, None], torch.from_numpy(boxes)[None])
    expected = [[slow_overlap(one, other) for other in boxes] for one in boxes]
    np.testing.assert_allclose(found.numpy(), expected)


@pytest.fixture
def module():
    torch.manual_seed(0)
    with small_networks():
        return BoxRegressor(
            network="tiny_boxes",
            network_args={},
            classes=3,
            channels=3,
            loss={"name": "euclidean"},
            lr=0.1,
            lr_drops=None,
            warmup=None,
            optimizer={"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "decay": "all"},
        )


def boxes_predicted(module, monkeypatch, outputs):
    """Let the network predict `outputs`, and the optimizer be one that is not asked anything."""
    scale = nn.Parameter(torch.ones(()))
    monkeypatch.setattr(module, "_forward_network", [lambda images: outputs * scale])
    monkeypatch.setattr(module, "set_lr", lambda step: None)
    return scale


def test_a_step_counts_wrong_boxes_and_the_loss(module, monkeypatch):
    right, half, wrong = (0.5, 0.5, 1.0, 1.0), (0.25, 0.5, 0.5, 1.0), (0.5, 0.5, 0.1, 0.1)  # overlaps 1, 0.5, 0.01
    outputs = torch.tensor([right, half, wrong])[:, None].expand(3, 3, 4)
    boxes_predicted(module, monkeypatch, outputs)
    target = torch.tensor([right] * 3)
    batch = BoxBatch(0, torch.zeros(3, 3, 32, 32), torch.tensor([0, 1, 2]), target)
    loss = module.training_step(batch, 0)
    expected = ((0.25**2 + 0.5**2) / 2 + (0.9**2 + 0.9**2) / 2) / 3
    assert loss.item() == pytest.approx(expected)
    found = module.pop_window_metrics()
    assert found == pytest.approx({"train/loss": expected, "train/localisation_error_pct": 100 * 2 / 3})
    assert module.pop_window_metrics() == {}


def test_an_infinite_loss_ends_the_run(module, monkeypatch):
    boxes_predicted(module, monkeypatch, torch.full((1, 3, 4), torch.inf))
    batch = BoxBatch(7, torch.zeros(1, 3, 32, 32), torch.tensor([0]), torch.ones(1, 4))
    with pytest.raises(ArithmeticError, match="the loss became inf at step 7"):
        module.training_step(batch, 0)
