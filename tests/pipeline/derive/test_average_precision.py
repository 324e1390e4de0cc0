"""Test average precision against the development kits' loops, and against precisions counted by hand."""

import numpy as np
import pytest

from pipeline.derive.average_precision import average_precision


def voc_2007(scores, marks):
    """VOCevalcls.m of 2007, line by line."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    true = false = 0
    recall, precision = [], []
    for i in order:
        true += marks[i] > 0
        false += marks[i] < 0
        recall.append(true / sum(mark > 0 for mark in marks))
        precision.append(true / (true + false) if true + false else 0.0)
    total = 0.0
    for t in range(11):
        total += max((p for r, p in zip(recall, precision, strict=True) if r >= t / 10), default=0.0) / 11
    return total


def voc_2012(scores, marks):
    """VOCap.m, line by line."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    true = false = 0
    recall, precision = [0.0], [0.0]
    for i in order:
        true += marks[i] > 0
        false += marks[i] < 0
        recall.append(true / sum(mark > 0 for mark in marks))
        precision.append(true / (true + false) if true + false else 0.0)
    recall, precision = [*recall, 1.0], [*precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))


# In order of score: true, false, difficult, true, false. Precision is 1 up to recall 1/2, then 2/3.
SCORES = np.array([0.9, 0.1, 0.7, 0.8, 0.5])
MARKS = np.array([1, -1, 0, -1, 1], np.int8)


def test_difficult_images_do_not_count():
    assert average_precision(SCORES, MARKS, "area") == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert average_precision(SCORES, MARKS, "11-point") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    counted = np.where(MARKS == 0, -1, MARKS)  # if they counted as false
    assert average_precision(SCORES, counted, "area") == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)


def test_a_perfect_ranking_has_1_and_the_worst_the_share_of_positives():
    marks = np.array([1] * 3 + [-1] * 7, np.int8)
    falling = np.arange(10, 0, -1.0)
    for kind in ("area", "11-point"):
        assert average_precision(falling, marks, kind) == pytest.approx(1)
        assert average_precision(-falling, marks, kind) == pytest.approx(3 / 10)


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_the_development_kits(seed):
    generator = np.random.default_rng(seed)
    scores, marks = (
        generator.normal(size=40),
        generator.choice([1, 0, -1], 40, p=[0.25, 0.15, 0.6]).astype(np.int8),
    )
    assert average_precision(scores, marks, "11-point") == pytest.approx(voc_2007(scores, marks))
    assert average_precision(scores, marks, "area") == pytest.approx(voc_2012(scores, marks))


def test_a_class_without_positive_images_has_none():
    with pytest.raises(ValueError, match="at least one positive image"):
        average_precision(SCORES, np.array([-1, -1, 0, -1, 0], np.int8), "area")
