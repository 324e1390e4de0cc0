"""A column of a FractalNet, evaluated as a network of its own.

Larsson et al. 2016 (arXiv:1605.07648), Table 1 (the deepest column) and Table 4 (each column). The column keeps
the weights and the batch-norm statistics of the whole network's training, in which it is alone in some
mini-batches and joined with others in the rest. Nothing is trained, and no statistics are measured again.

Images in memory are all evaluated, those of the training part too, without augmentation: `trainset/loss` is the
training loss of a column of Table 4.
"""

import torch.nn.functional as F
from torch import nn

from lightning_modules.fractalnet import FractalNet, extract_column
from pipeline.common.errors import UserError
from pipeline.common.words import plural
from pipeline.data.batches import evaluation_batches
from pipeline.declare.derived import ColumnSpec
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.train.evaluate import EVAL_BATCH, ErrorCounts, evaluate_batches
from pipeline.train.in_memory import InMemoryData


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
    column, data = extract_column(network, index), context.datasets[0]
    metrics = context.errors([column], protocols=spec.test)
    if isinstance(data, InMemoryData):
        found = context.cached("trainset", lambda: training_errors(column, data, bf16=context.bf16))
        metrics |= found.metrics("trainset")
    depth = network.column_depths[index]
    return DerivedResult(metrics, f"column {index + 1} of {network.columns}, {plural(depth, 'convolution')}")


def training_errors(network: nn.Module, data: InMemoryData, *, bf16: bool) -> ErrorCounts:
    """Return the errors on all training images, without augmentation, as a run measures its `trainset` errors."""
    images = data.training
    batches = evaluation_batches(data.batch_builder(images), images.labels, batch_size=EVAL_BATCH)
    return evaluate_batches(network, batches, F.cross_entropy, expected=len(images), bf16=bf16)
