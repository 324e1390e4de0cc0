"""Test which columns can be measured, and which mini-batches count for a column.

tests/pipeline/train/test_measurements.py compares the losses with those of a plain loop.
"""

import pytest
import torch
from torch import nn

from lightning_modules.fractal_columns import ColumnClassifier, check_columns
from lightning_modules.fractalnet import fractalnet


@pytest.mark.parametrize(
    ("network", "columns", "message"),
    [
        (fractalnet(columns=2, widths=[2], dropout=[]), [1, 3], "column_losses: no column 3, the network has 2"),
        (
            fractalnet(columns=2, widths=[2], dropout=[], global_share=0),
            [1],
            "column_losses needs global drop-path",
        ),
        (nn.Linear(1, 1), [1], "column_losses needs a FractalNet, not a Linear"),
    ],
)
def test_columns_that_are_never_alone_are_refused(network, columns, message):
    with pytest.raises(ValueError, match=message):
        check_columns(network, columns)


def test_a_column_has_the_mean_loss_of_the_images_that_train_it_alone():
    module = ColumnClassifier(
        network="fractalnet", network_args={"columns": 2, "widths": [2], "dropout": []}, classes=10, channels=3,
        loss={"name": "cross-entropy"}, lr=0.1, lr_drops=None, warmup=None, optimizer={},
    )  # fmt: skip
    module.measure_columns([1, 2])
    for step, (column, images, loss) in enumerate([(2, 10, 3.0), (None, 10, 9.0), (2, 30, 1.0)]):
        module.network.lone_column = column
        module.add_step_totals(
            step, torch.tensor([images, 0, 0, images * loss, images * loss], dtype=torch.float64)
        )
    found = module.pop_window_metrics()
    assert found["train/column-2/loss"] == pytest.approx((10 * 3 + 30 * 1) / 40)
    assert "train/column-1/loss" not in found  # never alone
    assert found["train/loss"] == pytest.approx((10 * 3 + 10 * 9 + 30 * 1) / 50)
    assert module.pop_window_metrics() == {}  # of a new window


def test_the_lone_column_is_that_of_the_last_forward_pass():
    network = fractalnet(columns=3, widths=[8], dropout=[], global_share=1.0)
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        network.zero_grad()
        network(torch.rand(8, 3, 2, 2)).square().sum().backward()
        trained = {
            column + 1
            for column in range(3)
            if network.block1.fractal.column(column)[0].conv.weight.grad.abs().sum() > 0
        }
        assert trained == {network.lone_column}
        seen |= trained
    assert seen == {1, 2, 3}
    network.eval()(torch.rand(1, 3, 2, 2))
    assert network.lone_column is None
