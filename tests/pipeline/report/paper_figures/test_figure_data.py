"""Test what figures say about the runs that they show."""

import pytest

from pipeline.report.paper_figures.figure_data import over_seeds, seeds_text


@pytest.mark.parametrize(
    ("counts", "text"), [([], "0 seeds"), ([1], "1 seed"), ([3, 3], "3 seeds"), ([3, 1, 2], "1 to 3 seeds")]
)
def test_seeds_are_counted_of_each_thing(counts, text):
    assert seeds_text(counts) == text


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ("1 seed", "one seed"),
        ("1 seed (2 runs did not converge)", "one seed (2 runs did not converge)"),
        ("1 to 3 seeds", "mean over 1 to 3 seeds"),
        ("10 seeds", "mean over 10 seeds"),
    ],
)
def test_a_mean_is_over_more_than_one_seed(seeds, text):
    assert over_seeds("mean", seeds) == text
