"""Training of a FractalNet that measures each column: Larsson et al. 2016, arXiv:1605.07648, Figure 4.

With global drop-path a mini-batch trains one column alone (section 3). The loss of a column is the mean over these
mini-batches since the last report, as `train/loss` is the mean over all of them. It needs no further forward pass
and changes no bit of training.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.classifier import Classifier
from lightning_modules.fractalnet import FractalNet


def check_columns(network: object, columns: Sequence[int]) -> FractalNet:
    """Return the network. Raises ValueError if it does not train these columns alone, 1 for the shallowest."""
    if not isinstance(network, FractalNet):
        raise ValueError(f"column_losses needs a FractalNet, not a {type(network).__name__}")
    if not network.global_share:
        raise ValueError("column_losses needs global drop-path, which trains a column alone: set global_share > 0")
    if largest := [column for column in columns if column > network.columns]:
        raise ValueError(f"column_losses: no column {largest[0]}, the network has {network.columns}")
    return network


class ColumnClassifier(Classifier):
    """Train a FractalNet with cross-entropy, and measure the training loss of its columns."""

    measured_columns: tuple[int, ...] = ()

    def measure_columns(self, columns: Sequence[int]) -> None:
        """Measure these columns from now on. Raises ValueError if the network does not train them alone."""
        check_columns(self.network, columns)
        self.measured_columns = tuple(columns)
        # Of each column since the last report: images, sum of losses. A buffer, so that a resumed run has them.
        self.register_buffer("column_totals", torch.zeros(len(columns), 2, dtype=torch.float64))

    def add_step_totals(self, step: int, totals: Tensor) -> None:
        """Add the totals of one optimizer step, also to those of the column that it trained alone."""
        super().add_step_totals(step, totals)
        if (column := self.network.lone_column) in self.measured_columns:
            self.column_totals[self.measured_columns.index(column)] += totals[[0, 3]]

    def pop_window_metrics(self) -> dict[str, float]:
        """Return the metrics of the window, with the loss of each column that it trained alone; reset it."""
        totals = self.column_totals.tolist()
        self.column_totals.zero_()
        losses = {
            f"train/column-{column}/loss": loss / images
            for column, (images, loss) in zip(self.measured_columns, totals, strict=True)
            if images
        }
        return super().pop_window_metrics() | losses
