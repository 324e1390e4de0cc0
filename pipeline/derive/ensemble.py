"""Ensembles, and further test protocols of one network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.declare.derived import BY_MEMBER, EnsembleSpec, ProtocolSpec
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.derive.predictions import Predictions, predict
from pipeline.train.evaluate import ErrorCounts


def run_ensemble(context: DerivedContext) -> DerivedResult:
    """Return the errors of the averaged predictions of an ensemble, or of one network by other protocols."""
    spec = context.derived.spec
    assert isinstance(spec, EnsembleSpec | ProtocolSpec)
    count = len(context.networks)
    if isinstance(spec, EnsembleSpec) and spec.member_test:
        errors = context.cached(f"test/{BY_MEMBER}", lambda: errors_by_member(context, spec.protocol_of_each))
        metrics = errors.metrics(f"test/{BY_MEMBER}") | errors.metrics("test")
        return DerivedResult(metrics, f"{count} networks averaged, each by its own test protocol")
    metrics = context.errors(context.networks, protocols=spec.test)
    ended = f"{count} networks averaged" if count > 1 else f"evaluated by {len(spec.test)} more protocols"
    return DerivedResult(metrics, ended)


def errors_by_member(context: DerivedContext, protocols: Sequence[str]) -> ErrorCounts:
    """Return the errors of the networks' averaged probabilities, each network evaluated by its own test protocol.

    `protocols` has one protocol for each network. The sum of probabilities and those of one network are kept in
    memory, 8 bytes for each image and class.
    """
    total: Tensor | None = None  # log of the sum of probabilities, float64 (images, classes)
    labels = torch.empty(0)
    for network, data, protocol in zip(context.networks, context.datasets, protocols, strict=True):
        context.options.report(f"evaluating {data.test_count:,} test images by {protocol}")
        found = predict([network], [data], "test", protocol, bf16=context.bf16)
        logs, labels = torch.cat([batch[0] for batch in found.logs]), torch.cat(list(found.labels))
        total = logs if total is None else torch.logaddexp(total, logs)
    assert total is not None
    average = Predictions([total[None] - math.log(len(protocols))], [labels], found.count, torch.device("cpu"))
    return average.errors([0])
