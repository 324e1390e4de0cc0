"""Greedy merging of boxes, by hand and against a slow version."""

import numpy as np
import pytest

from pipeline.derive.merge_boxes import best_merged_box, merge_boxes, overlap_matrix
from tests.support.box_sets import slow_overlap


def slow_merge(corners, scores, threshold):
    """The procedure of Sermanet et al. 2014, section 4.3, step by step on a list."""
    boxes = [(list(map(float, box)), float(score)) for box, score in zip(corners, scores, strict=True)]
    while len(boxes) > 1:
        pairs = [
            (slow_overlap(boxes[i][0], boxes[j][0]), -i, -j)
            for i in range(len(boxes))
            for j in range(i + 1, len(boxes))
        ]
        best, i, j = max(pairs)
        i, j = -i, -j
        if best <= threshold:
            break
        merged = [(one + other) / 2 for one, other in zip(boxes[i][0], boxes[j][0], strict=True)]
        boxes[i] = merged, boxes[i][1] + boxes[j][1]
        del boxes[j]
    return np.array([box for box, _ in boxes]), np.array([score for _, score in boxes])


def test_two_near_boxes_become_their_mean_and_beat_one_of_a_higher_score():
    corners = np.array([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.4, 0.5], [0.6, 0.6, 1.0, 1.0]])  # overlap 0.8 and 0
    merged, scores = merge_boxes(corners, np.array([0.3, 0.4, 0.6]), 0.5)
    np.testing.assert_allclose(merged, [[0.0, 0.0, 0.4, 0.45], [0.6, 0.6, 1.0, 1.0]])
    np.testing.assert_allclose(scores, [0.7, 0.6])
    best = best_merged_box(corners, np.array([0.3, 0.4, 0.6]), 0.5)
    np.testing.assert_allclose(best, [0.0, 0.0, 0.4, 0.45])
    np.testing.assert_allclose(best_merged_box(corners, np.array([0.3, 0.4, 0.6]), 0.9), corners[2])


def test_the_best_pair_is_merged_first():
    """A and B overlap by 0.9, B and C by 0.6. The mean of A and B overlaps with C by 0.57 only."""
    corners = np.array([[0.0, 0, 1.0, 1], [0.0, 0, 0.9, 1], [0.0, 0, 0.54, 1]])
    merged, scores = merge_boxes(corners, np.ones(3), 0.59)
    np.testing.assert_allclose(merged, [[0, 0, 0.95, 1], [0, 0, 0.54, 1]])
    np.testing.assert_allclose(scores, [2, 1])
    merged, scores = merge_boxes(corners, np.ones(3), 0.5)
    np.testing.assert_allclose(merged, [[0, 0, 0.745, 1]])  # the mean of 0.95 and 0.54
    np.testing.assert_allclose(scores, [3])


def test_equal_scores_give_the_first_box():
    corners = np.array([[0.0, 0.0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6]])
    assert best_merged_box(corners, np.ones(2), 0.5).tolist() == corners[0].tolist()


def test_boxes_without_an_area_are_not_merged():
    corners = np.array([[0.2, 0.2, 0.2, 0.5], [0.2, 0.2, 0.2, 0.5]])
    merged, _ = merge_boxes(corners, np.ones(2), 0.5)
    assert len(merged) == 2
    assert overlap_matrix(corners, corners).tolist() == [[0, 0], [0, 0]]


def test_a_single_box_stays():
    merged, scores = merge_boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([0.5]), 0.5)
    assert (merged.tolist(), scores.tolist()) == ([[0, 0, 1, 1]], [0.5])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_random_boxes_as_in_the_slow_version(seed, threshold):
    generator = np.random.default_rng(seed)
    centres = generator.random((3, 2))[generator.integers(0, 3, 25)] + generator.normal(0, 0.05, (25, 2))
    sizes = generator.uniform(0.2, 0.5, (25, 2))
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
    scores, before = generator.random(25), corners.copy()
    merged, sums = merge_boxes(corners, scores, threshold)
    expected, expected_sums = slow_merge(corners, scores, threshold)
    assert len(merged) < 25 or threshold == 0.8
    np.testing.assert_allclose(merged, expected)
    np.testing.assert_allclose(sums, expected_sums)
    assert (corners == before).all()  # the input is not changed
