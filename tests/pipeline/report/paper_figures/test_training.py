"""Test the error curves of any experiment: panels, names, titles."""

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.figure_data import scale_runs
from pipeline.report.paper_figures.training import MOST_LINES, training_figure, training_figures
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import figure_data, made_up_curve, made_up_records


def runs_of(experiment, scale, variants=(), seeds=3):
    return scale_runs(experiment, scale, made_up_records(experiment, scale, variants, seeds=seeds))


def drawn(experiment, scale="paper", variants=(), seeds=3):
    figure = training_figure(made_up_curve, runs_of(experiment, scale, variants, seeds))
    return drawn_figure(figure)


def test_one_panel_for_each_network(experiment):
    figure = drawn(experiment)
    plain, residual = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["plain", "resnet"]
    assert [text.get_text() for text in plain.get_legend().get_texts()] == ["plain-20", "plain-32"]
    assert (len(plain.get_lines()), len(residual.get_lines())) == (4, 2)  # training and test
    assert figure.get_suptitle() == "toy/depth at paper scale on cifar10: mean and range over 3 seeds"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["test", "training"]


@pytest.mark.parametrize(("seeds", "end"), [(1, "\none seed"), (3, "\nmean and range over 3 seeds")])
def test_title_of_one_panel_has_two_lines(seeds, end):
    figure = drawn(load_experiment("resnet/imagenet"), "stand-in", ["resnet-18-a"], seeds)
    assert figure.get_suptitle().endswith(end)


def test_title_counts_the_seeds_that_have_curves(experiment):
    runs = runs_of(experiment, "paper")

    def curves(record, metric):
        return [] if record.seed == 0 else made_up_curve(record, metric)

    figure = training_figure(curves, runs)
    assert figure.caption.endswith("; mean and range over 2 seeds.")
    assert drawn_figure(figure).get_suptitle().endswith(": mean and range over 2 seeds")


def test_protocol_is_in_the_title_or_if_they_differ_in_the_legend():
    vgg = load_experiment("vgg/imagenet")
    assert drawn(vgg, variants=["vgg-16"]).get_suptitle().startswith(
        "vgg/imagenet at paper scale on imagenet, dense-of-256:\n"
    )  # fmt: skip
    figure = drawn(vgg, variants=["vgg-16", "vgg-16-384"])
    assert figure.get_suptitle().startswith("vgg/imagenet at paper scale on imagenet:\n")
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["vgg-16, dense-of-256", "vgg-16-384, dense-of-384"]


def test_data_sets_have_panels_and_axes_of_their_own():
    wide = load_experiment("wide_resnet/cifar")
    figure = drawn(wide, variants=["wrn-16-4", "wrn-16-4-cifar100"])
    assert [ax.get_title() for ax in figure.axes] == ["wide_resnet, cifar10", "wide_resnet, cifar100"]
    assert figure.axes[0].get_ylim() != figure.axes[1].get_ylim()


def test_more_variants_than_colours_have_panels_of_their_own(declare):
    count = MOST_LINES + 1
    more = "".join(f"  more-{i}: {{model: {{name: plain_cifar, depth: {6 * i + 8}}}}}\n" for i in range(count))
    declared = declare("variants:\n", f"variants:\n{more}")
    figure = drawn(declared, variants=[f"more-{i}" for i in range(count)], seeds=1)
    assert [ax.get_title() for ax in figure.axes] == ["plain (1 of 2)", "plain (2 of 2)"]
    assert [len(ax.get_lines()) for ax in figure.axes] == [2 * MOST_LINES, 2]


def test_runs_without_curves_have_no_figure(experiment):
    assert training_figure(lambda record, metric: [], runs_of(experiment, "paper")) is None


def test_trial_scales_are_drawn_only_if_chosen(experiment):
    records = made_up_records(experiment, "smoke", ["plain-20"])
    assert list(training_figures(figure_data([experiment], records))) == []
    [figure] = training_figures(figure_data([experiment], records, scales=("smoke",)))
    assert figure.name == "toy-depth-smoke"


@pytest.mark.slow
def test_long_names_do_not_cover_each_other():
    stochastic = load_experiment("stochastic_depth/cifar")
    figure = training_figure(made_up_curve, runs_of(stochastic, "paper", seeds=1))
    assert covered(drawn_figure(figure, laid_out=True)) == []
