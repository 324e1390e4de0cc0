"""Tree of runs that wait for others."""

from pipeline.declare.load import load_experiment
from pipeline.plan.expand import plan_runs
from pipeline.report.order import order_lines


def test_runs_that_start_from_others_and_derived_runs():
    planned = plan_runs(load_experiment("vgg/imagenet"), scale="paper", seeds=1)
    assert order_lines(planned) == [
        "vgg-11",
        "├─ vgg-13",
        "├─ vgg-16-c",
        "│  ├─ vgg-16-c-384",
        "│  │  ├─ vgg-16-c-jitter",
        "│  │  └─ vgg-7 (derived)",
        "│  └─ vgg-7 (derived)",
        "├─ vgg-16",
        "│  ├─ vgg-16-384",
        "│  │  ├─ vgg-16-jitter",
        "│  │  │  ├─ vgg-16-and-19 (derived)",
        "│  │  │  └─ vgg-7 (derived)",
        "│  │  └─ vgg-7 (derived)",
        "│  └─ vgg-7 (derived)",
        "└─ vgg-19",
        "   ├─ vgg-19-384",
        "   │  ├─ vgg-19-jitter",
        "   │  │  └─ vgg-16-and-19 (derived)",
        "   │  └─ vgg-7 (derived)",
        "   └─ vgg-7 (derived)",
    ]


def test_no_lines_without_dependencies(experiment):
    assert order_lines(plan_runs(experiment, scale="paper")) == []


def test_variants_of_several_experiments_are_told_apart():
    planned = plan_runs(load_experiment("vgg/imagenet"), scale="paper", seeds=1, variants=["vgg-13"])
    others = plan_runs(load_experiment("alexnet/imagenet"), scale="paper", seeds=5, variants=["alexnet"])
    assert order_lines([*planned, *others]) == [
        "vgg/imagenet vgg-11",
        "└─ vgg/imagenet vgg-13",
        "alexnet/imagenet alexnet",
        "├─ alexnet/imagenet alexnet-5 (derived)",
        "└─ alexnet/imagenet alexnet-sizes (derived)",
    ]


def test_a_derived_run_is_a_branch_of_its_member_in_another_experiment(declare_other):
    assert order_lines(plan_runs(declare_other(), scale="smoke")) == [
        "toy/depth plain-20",
        "└─ toy/wide mixed (derived)",
        "toy/wide wide",
        "└─ toy/wide mixed (derived)",
    ]
