"""Ensembles, and further test protocols of one network."""

from pipeline.declare.derived import EnsembleSpec, ProtocolSpec
from pipeline.derive.context import DerivedContext, DerivedResult


def run_ensemble(context: DerivedContext) -> DerivedResult:
    """Return the errors of the averaged predictions of an ensemble, or of one network by other protocols."""
    spec = context.derived.spec
    assert isinstance(spec, EnsembleSpec | ProtocolSpec)
    metrics = context.errors(context.networks, protocols=spec.test)
    count = len(context.networks)
    ended = f"{count} networks averaged" if count > 1 else f"evaluated by {len(spec.test)} more protocols"
    return DerivedResult(metrics, ended)
