"""Test what figures say about the runs that they show."""

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.figure_data import over_seeds, scale_runs
from tests.support.figure_runs import made_up_records


@pytest.mark.parametrize(("seeds", "text"), [(1, "one seed"), (3, "mean and range over 3 seeds")])
def test_one_seed_has_no_range(seeds, text):
    depth = load_experiment("resnet/cifar10_depth")
    assert (
        scale_runs(depth, "laptop", made_up_records(depth, "laptop", ["plain-20"], seeds=seeds)).spread() == text
    )


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
