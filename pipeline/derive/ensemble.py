"""Ensembles and further test protocols."""

from pipeline.declare.derived import EnsembleSpec, ProtocolSpec
from pipeline.derive.context import DerivedContext, DerivedResult


def run_ensemble(bench: DerivedContext) -> DerivedResult:
    """An ensemble, or one network by other protocols: errors of the averaged answers."""
    step = bench.derived.spec
    assert isinstance(step, EnsembleSpec | ProtocolSpec)
    metrics = bench.errors(bench.networks, protocols=step.test)
    count = len(bench.networks)
    ended = f"{count} networks averaged" if count > 1 else f"judged by {len(step.test)} more protocols"
    return DerivedResult(metrics, ended)
