"""Test Figures 1 and 3 of the AlexNet paper."""

import numpy as np

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.alexnet import alexnet_figures, draw_filters
from tests.support.figure_boxes import drawn_figure
from tests.support.figure_runs import by_name, figure_data, made_up_records


def test_figure_1_compares_training_errors_with_a_line_at_25_percent():
    cifar = load_experiment("alexnet/cifar10")
    records = made_up_records(cifar, "laptop", ["alexnet-cifar", "alexnet-cifar-tanh"])
    [ax] = drawn_figure(by_name(alexnet_figures(figure_data([cifar], records)))["alexnet-figure-1"]).axes
    relu, tanh, level = ax.get_lines()
    assert (relu.get_linestyle(), tanh.get_linestyle()) == ("-", "--")
    assert list(level.get_ydata()) == [25, 25]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ReLU", "tanh"]
    assert ax.get_ylabel() == "top-1 training error (%), digits"


def test_filters_are_those_of_imagenet_if_there_are_any():
    both = [load_experiment("alexnet/imagenet"), load_experiment("alexnet/cifar10")]
    records = [
        *made_up_records(both[0], "paper", ["alexnet"], seeds=1),
        *made_up_records(both[1], "laptop", ["alexnet-cifar"], seeds=1),
    ]
    sizes = {"alexnet": (96, 3, 11, 11), "alexnet-cifar": (32, 1, 5, 5)}

    def weights(record):
        return {"conv1.weight": np.random.default_rng(0).normal(size=sizes[record.variant])}

    def caption(chosen):
        data = figure_data(both, chosen, weights=weights)
        return by_name(alexnet_figures(data))["alexnet-figure-3"].caption

    assert caption(records).startswith(
        "The 96 filters of 11 x 11 x 3 of the first convolutional layer of alexnet: imagenet, paper scale, seed 0."
    )
    assert caption(records[1:]).startswith("The 32 filters of 5 x 5 x 1 of the first convolutional layer of")
    missing = by_name(alexnet_figures(figure_data(both, records)))["alexnet-figure-3"].missing
    assert missing == (
        "No finished run with weights on this machine; start them with: repro run alexnet/cifar10 --scale laptop."
    )


def test_filters_are_scaled_to_their_own_range_with_nothing_between_them():
    filters = np.zeros((17, 3, 2, 2))
    filters[0] = np.arange(12).reshape(3, 2, 2)
    filters[16] = -filters[0]
    [ax] = draw_filters(filters, "title").axes
    sheet = np.asarray(ax.images[0].get_array())
    assert sheet.shape == (7, 49, 4)  # two rows of 16 filters, with a pixel between them
    assert (sheet[1:3, 1:3, :3] == filters[0].transpose(1, 2, 0) / 11).all()
    assert np.allclose(sheet[4:6, 1:3, :3], 1 - filters[0].transpose(1, 2, 0) / 11)
    opaque = sheet[..., 3]
    assert opaque[[1, 2, 4, 5], 1:3].all()
    assert [opaque[0].any(), opaque[:, 0].any(), opaque[4, 20].any()] == [False] * 3  # the figure's background
