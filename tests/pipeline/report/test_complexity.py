"""Test rows and cells of the tables of `repro analyse`."""

import pytest
import torch
from torch import nn

from lightning_modules.lenet5 import lenet5
from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.catalogue import NetworkCost
from pipeline.analyse.network import NetworkAnalysis
from pipeline.report.complexity import (
    chart_cells,
    complexity_cells,
    kernel_summary,
    kernel_text,
    layer_cells,
    layer_rows,
    milliseconds,
)


def test_rows_of_lenet5_match_the_paper():
    # LeCun et al. 1998, section II-B: maps, and 60,000 parameters in total
    rows = layer_rows(NetworkAnalysis(lenet5(), (1, 32, 32)))
    assert [row["layer"] for row in rows] == ["c1", "s2", "c3", "s4", "c5", "f6", "output", "total"]
    assert [row["output"] for row in rows[:4]] == [[6, 28, 28], [6, 14, 14], [16, 10, 10], [16, 5, 5]]
    assert [row["parameters"] for row in rows] == [156, 12, 1516, 32, 48120, 10164, 0, 60000]
    assert [row["receptive_field"] for row in rows[:5]] == [5, 6, 14, 16, 32]
    assert sum(row["multiply_adds"] for row in rows[:-1]) == rows[-1]["multiply_adds"]


def test_rows_add_up_to_the_total():
    rows = layer_rows(NetworkAnalysis(resnet_cifar(depth=20), (3, 32, 32)))
    for what in ("parameters", "multiply_adds", "activations"):
        assert sum(row[what] for row in rows[:-1]) == rows[-1][what]
    by_name = {row["layer"]: row for row in rows}
    assert by_name["bn1"]["receptive_field"] is None  # does not enlarge the receptive field
    assert by_name["map16"]["kernel"] == "3x3/2, 5 x 3x3"
    assert by_name["pool"]["kernel"] == "global avg"


def test_layer_unused_in_evaluation_has_parameters_only():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network.aux = nn.Linear(4, 4)
    network.forward = lambda x: network[0](x)
    row = layer_rows(NetworkAnalysis(network, (3, 8, 8)))[1]
    assert (row["layer"], row["output"], row["multiply_adds"], row["parameters"]) == ("aux", None, 0, 20)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Conv2d(4, 4, 3), "3x3"),
        (nn.Conv2d(4, 4, (1, 7), stride=2), "1x7/2"),
        (nn.Conv2d(4, 4, 5, groups=2), "5x5 g2"),
        (nn.MaxPool2d(3, 2), "max 3x3/2"),
        (nn.MaxPool2d(2), "max 2x2/2"),
        (nn.AvgPool2d(7), "avg 7x7/7"),
        (nn.AdaptiveAvgPool2d((1, 1)), "global avg"),
        (nn.AdaptiveAvgPool2d(6), "avg to 6"),
        (nn.ReLU(), ""),
    ],
)
def test_kernel_text(module, text):
    assert kernel_text(module) == text


def test_equal_kernels_are_counted():
    assert (
        kernel_summary(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))) == "2 x 1x1, 3x3"
    )


def row(**changes) -> NetworkCost:
    base = {
        "name": "alexnet",
        "paper": "alexnet",
        "image": (3, 227, 227),
        "layers": 8,
        "parameters": 60_965_224,
        "multiply_adds": 724_406_816,
        "activations": 650_000,
        "memory_mb": 247.15,
        "top1_pct": 54.5,
        "forward_s": (0.030, 0.020, 0.025),
    }
    return NetworkCost(**(base | changes))


def test_cells_of_one_network():
    assert complexity_cells(row()) == {
        "network": "alexnet",
        "input": "3x227x227",
        "layers": "8",
        "parameters": "60.97 M",
        "multiply-adds": "724.41 M",
        "activations": "0.65 M",
        "memory MB": "247.2",
    }


def test_operations_are_twice_the_multiply_adds():
    cells = chart_cells(row())
    assert (cells["G ops"], cells["top-1 %"], cells["forward ms"]) == ("1.45", "54.5", "25.0 (20.0 to 30.0)")
    assert chart_cells(row(top1_pct=None))["top-1 %"] == ""
    assert milliseconds(()) == ""


def test_cells_of_a_layer_without_counts_are_empty():
    cells = layer_cells(
        {
            "layer": "relu",
            "output": None,
            "kernel": "",
            "parameters": 0,
            "multiply_adds": 0,
            "activations": 0,
            "receptive_field": None,
        }
    )
    assert {value for key, value in cells.items() if key != "layer"} == {""}


def test_rows_on_the_meta_device_are_the_same():
    with torch.device("meta"):
        network = resnet_cifar(depth=8)
    assert layer_rows(NetworkAnalysis(network, (3, 32, 32))) == layer_rows(
        NetworkAnalysis(resnet_cifar(depth=8), (3, 32, 32))
    )
