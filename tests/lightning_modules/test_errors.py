"""Who is wrong among the best k."""

import pytest
import torch

from lightning_modules.errors import wrong_in_top


def slow_wrong(scores, labels, k) -> int:
    """As obvious as can be: sort, look."""
    wrong = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda c: -row[c])[:k]
        wrong += label not in best
    return wrong


@pytest.mark.parametrize("k", [1, 2, 5])
def test_wrong_in_top_is_what_sorting_says(k):
    scores, labels = torch.randn(200, 10), torch.randint(0, 10, (200,))
    assert wrong_in_top(scores, labels, k).item() == slow_wrong(scores, labels, k)


def test_a_network_that_cannot_decide_is_wrong():
    labels = torch.arange(10)
    assert wrong_in_top(torch.zeros(10, 10), labels, 1).item() == 10
    assert wrong_in_top(torch.zeros(10, 10), labels, 5).item() == 10


def test_a_score_that_is_not_a_number_is_wrong():
    scores = torch.zeros(2, 10)
    scores[:, 3] = torch.tensor([float("nan"), 1.0])
    assert wrong_in_top(scores, torch.tensor([3, 3]), 1).item() == 1


def test_five_of_three_classes_are_never_wrong():
    assert wrong_in_top(torch.randn(7, 3), torch.zeros(7, dtype=torch.int64), 5).item() == 0
