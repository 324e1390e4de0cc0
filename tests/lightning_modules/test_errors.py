"""Top-k errors against a slow reference."""

import pytest
import torch

from lightning_modules.errors import wrong_in_top


def reference_errors(scores, labels, k) -> int:
    """Reference implementation by sorting."""
    wrong = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda c: -row[c])[:k]
        wrong += label not in best
    return wrong


@pytest.mark.parametrize("k", [1, 2, 5])
def test_wrong_in_top_equals_sorting(k):
    scores, labels = torch.randn(200, 10), torch.randint(0, 10, (200,))
    assert wrong_in_top(scores, labels, k).item() == reference_errors(scores, labels, k)


def test_equal_scores_are_wrong():
    labels = torch.arange(10)
    assert wrong_in_top(torch.zeros(10, 10), labels, 1).item() == 10
    assert wrong_in_top(torch.zeros(10, 10), labels, 5).item() == 10


def test_non_finite_score_is_wrong():
    scores = torch.zeros(2, 10)
    scores[:, 3] = torch.tensor([float("nan"), 1.0])
    assert wrong_in_top(scores, torch.tensor([3, 3]), 1).item() == 1


def test_top_5_of_three_classes_is_never_wrong():
    assert wrong_in_top(torch.randn(7, 3), torch.zeros(7, dtype=torch.int64), 5).item() == 0
