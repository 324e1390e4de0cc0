"""Test Figures 1, 4, 6 and 7 of the ResNet paper. Errors: Table 6 and Figure 6 of arXiv:1512.03385."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.resnet import layer_responses, resnet_figures
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import by_name, figure_data, made_up_curve, made_up_records

TABLE_6 = {"resnet-20": 8.75, "resnet-32": 7.51, "resnet-44": 7.17, "resnet-56": 6.97, "resnet-110": 6.61}


@pytest.fixture(scope="module")
def depth():
    """The experiment on depth."""
    return load_experiment("resnet/cifar10_depth")


def figures(depth, scale, variants=(), **other):
    records = made_up_records(depth, scale, variants, seeds=2)
    return by_name(resnet_figures(figure_data([depth], records, **other)))


def diamonds(ax):
    return sorted(line.get_ydata()[0] for line in ax.get_lines() if line.get_marker() == "D")


def test_figure_6_has_plain_networks_left_and_residual_networks_right(depth):
    figure = drawn_figure(figures(depth, "paper", ["plain-20", "resnet-20-wd-1e-5", *TABLE_6])["resnet-figure-6"])
    plain, residual = figure.axes
    assert (plain.get_title(), residual.get_title()) == ("plain networks", "residual networks")
    names = [text.get_text() for text in residual.get_legend().get_texts()]
    assert names == list(TABLE_6)  # without the weight decay of the lecture
    assert [text.get_text() for text in plain.get_legend().get_texts()] == ["plain-20"]
    assert diamonds(residual) == sorted(TABLE_6.values())
    assert diamonds(plain) == [9.5]


def test_papers_errors_are_not_drawn_on_other_data(depth):
    found = figures(depth, "laptop")["resnet-figure-6"]
    figure = drawn_figure(found)
    assert [diamonds(ax) for ax in figure.axes] == [[], []]
    assert figure.axes[0].get_ylabel() == "top-1 error (%), digits"
    assert "digits, laptop scale; mean and range over 2 seeds." in found.caption
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["test", "training"]


def test_paper_scale_is_preferred(depth):
    records = [
        *made_up_records(depth, "laptop", ["plain-20", "plain-56"], seeds=1),
        *made_up_records(depth, "paper", ["plain-20", "plain-56"], seeds=1),
    ]
    captions = {
        scales: by_name(resnet_figures(figure_data([depth], records, scales=scales)))["resnet-figure-1"].caption
        for scales in ((), ("laptop",))
    }
    assert "cifar10, paper scale" in captions[()]
    assert "digits, laptop scale" in captions["laptop",]


def test_figure_1_has_training_left_and_test_right(depth):
    figure = drawn_figure(figures(depth, "laptop")["resnet-figure-1"])
    training, test = figure.axes
    assert (training.get_title(), test.get_title()) == ("training error", "test error")
    ends = [[line.get_ydata()[-1] for line in ax.get_lines()] for ax in (training, test)]
    assert ends[1] == pytest.approx([9.55, 13.55])  # means of two seeds: the paper's, and that plus 0.1
    assert ends[0] != ends[1]


def test_captions_name_only_the_panels_that_are_drawn(depth):
    both = figures(depth, "laptop")["resnet-figure-6"].caption
    assert "of plain networks (left) and residual networks (right); bold: test" in both
    residual = figures(depth, "laptop", ["resnet-20", "resnet-56"])["resnet-figure-6"]
    assert len([ax for ax in drawn_figure(residual).axes if ax.get_visible()]) == 1
    assert "optimizer steps, of residual networks; bold: test" in residual.caption

    def only_tests(record, metric):
        return made_up_curve(record, metric) if metric.startswith("test/") else []

    figure_1 = figures(depth, "laptop", curves=only_tests)["resnet-figure-1"]
    assert figure_1.caption.startswith("Top-1 test error in percent against optimizer steps, of plain networks")
    assert "left" not in figure_1.caption


def test_without_runs_the_command_is_named(depth):
    found = by_name(resnet_figures(figure_data([depth, load_experiment("resnet/imagenet")], [])))
    assert list(found) == ["resnet-figure-1", "resnet-figure-4", "resnet-figure-6", "resnet-figure-7"]
    end = "No scale has finished runs of 2 of its networks; start them with: repro run "
    assert found["resnet-figure-6"].missing == f"{end}resnet/cifar10_depth --scale laptop."
    assert found["resnet-figure-4"].missing == f"{end}resnet/imagenet --scale paper."


def test_responses_follow_from_scales_and_shifts():
    """The standard deviation of all responses of a layer, against a batch normalisation applied to a batch."""
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -3.0]))
        norm.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    responses = norm(torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    [found] = layer_responses({f"bn1.{name}": value.detach() for name, value in norm.named_parameters()})
    assert found == pytest.approx(float(responses.detach().std(correction=0)), rel=1e-4)
    assert found == pytest.approx(np.sqrt((1 + 4 + 9) / 3 + np.var([0.5, -1.0, 2.0])))


def test_responses_are_in_the_order_of_the_layers():
    names = ["map8.0.bn1", "map32.10.bn2", "map32.2.bn1", "bn1", "map16.0.bn1"]
    order = ["bn1", "map32.2.bn1", "map32.10.bn2", "map16.0.bn1", "map8.0.bn1"]
    tensors = {f"{name}.weight": np.full(4, order.index(name) + 1.0) for name in names}
    tensors |= {f"{name}.bias": np.zeros(4) for name in names} | {"fc.weight": np.ones((10, 64))}
    assert layer_responses(tensors) == [1, 2, 3, 4, 5]


def test_figure_7_is_drawn_from_the_weights_that_are_here(depth):
    scales = {"plain-20": 3.0, "resnet-20": 1.0}

    def weights(record):
        if record.variant not in scales or record.seed:
            return None
        return {"bn1.weight": np.full(4, scales[record.variant]), "bn1.bias": np.zeros(4)}

    found = figures(depth, "paper", ["plain-20", "resnet-20", "resnet-56"], weights=weights)["resnet-figure-7"]
    left, right = drawn_figure(found).axes
    assert [line.get_ydata().tolist() for line in left.get_lines()] == [[3.0], [1.0]]
    assert [line.get_linestyle() for line in right.get_lines()] == ["--", "-"]
    without = figures(depth, "paper", ["plain-20", "resnet-20"])["resnet-figure-7"]
    assert without.missing.startswith("The weights of the finished runs are not on this machine")


def test_all_depths_of_figure_6_cover_nothing(depth):
    found = figures(depth, "paper")["resnet-figure-6"]
    assert covered(drawn_figure(found, laid_out=True)) == []
