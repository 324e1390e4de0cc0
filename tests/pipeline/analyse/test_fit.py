"""Test the fits of measured times on points with a known relation."""

import pytest

from pipeline.analyse.fit import hyperbola_r_squared, line_r_squared, rank_correlation

TIMES = [1.0, 2.0, 4.0, 8.0]
HYPERBOLA = [80 - 20 / time for time in TIMES]


def test_points_on_a_line_are_explained_by_it():
    assert line_r_squared([1, 2, 3], [5, 7, 9]) == pytest.approx(1)


def test_explained_variance_is_that_of_the_definition():
    # y = x fits (0, 0), (1, 2), (2, 1), (3, 3) best as y = 0.3 + 0.8 x: 1 - 1.8 / 5 = 0.64
    assert line_r_squared([0, 1, 2, 3], [0, 2, 1, 3]) == pytest.approx(0.64)


def test_hyperbola_explains_a_hyperbola_and_a_line_does_not():
    assert hyperbola_r_squared(TIMES, HYPERBOLA) == pytest.approx(1)
    assert line_r_squared(TIMES, HYPERBOLA) < 0.8


def test_hyperbola_does_not_explain_a_line():
    line = [60 + 2 * time for time in TIMES]
    assert hyperbola_r_squared(TIMES, line) < 0.8 < line_r_squared(TIMES, line)


def test_accuracies_that_fall_with_time_are_no_hyperbola():
    assert hyperbola_r_squared(TIMES, [-accuracy for accuracy in HYPERBOLA]) == 0


def test_rank_correlation_ignores_distances():
    assert rank_correlation([1, 2, 100], [3, 4, 5]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 - 6 * 4 / (4 * 15))


@pytest.mark.parametrize(
    ("fit", "x", "y", "message"),
    [
        (line_r_squared, [1, 2], [1, 2], "three points or more"),
        (line_r_squared, [1, 2, 3], [1, 2], "not 3 and 2"),
        (rank_correlation, [1, 2], [1, 2], "three points or more"),
        (hyperbola_r_squared, [0, 1, 2], [1, 2, 3], "times must be > 0, not 0"),
    ],
)
def test_too_few_or_impossible_points_are_refused(fit, x, y, message):
    with pytest.raises(ValueError, match=message):
        fit(x, y)
