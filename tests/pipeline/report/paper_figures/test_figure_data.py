"""Test what figures say about the runs that they show."""

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.figure_data import scale_runs
from tests.support.figure_runs import made_up_records


@pytest.mark.parametrize(("seeds", "text"), [(1, "one seed"), (3, "mean and range over 3 seeds")])
def test_one_seed_has_no_range(seeds, text):
    depth = load_experiment("resnet/cifar10_depth")
    assert (
        scale_runs(depth, "laptop", made_up_records(depth, "laptop", ["plain-20"], seeds=seeds)).spread() == text
    )
