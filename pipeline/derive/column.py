"""A column of a FractalNet, evaluated as a network of its own.

Larsson et al. 2016 (arXiv:1605.07648), Table 1 (the deepest column) and Table 4 (each column). The column keeps
the weights and the batch-norm statistics of the whole network's training, in which it is alone in some
mini-batches and joined with others in the rest. Nothing is trained, and no statistics are measured again.
"""

from torch import nn

from lightning_modules.fractalnet import FractalNet, extract_column
from pipeline.common.errors import UserError
from pipeline.common.words import plural
from pipeline.declare.derived import ColumnSpec
from pipeline.derive.context import DerivedContext, DerivedResult


def column_index(network: nn.Module, spec: ColumnSpec) -> int:
    """Return the index of the declared column; 0 is the shallowest.

    Raises UserError for a network without columns or with fewer.
    """
    if not isinstance(network, FractalNet):
        raise UserError(f"{spec.of} has no columns: its network is {type(network).__name__}, not FractalNet")
    number = network.columns if spec.column == "deepest" else spec.column
    if number > network.columns:
        raise UserError(f"{spec.of} has no column {number}: its network has {plural(network.columns, 'column')}")
    return number - 1


def run_column(context: DerivedContext) -> DerivedResult:
    """Return the errors of one column, with the run's weights and batch-norm statistics."""
    spec, network = context.derived.spec, context.networks[0]
    assert isinstance(spec, ColumnSpec)
    index = column_index(network, spec)
    assert isinstance(network, FractalNet)
    metrics = context.errors([extract_column(network, index)], protocols=spec.test)
    depth = network.column_depths[index]
    return DerivedResult(metrics, f"column {index + 1} of {network.columns}, {plural(depth, 'convolution')}")
