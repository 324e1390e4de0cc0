"""Ensembles and further test protocols."""

from pipeline.declare.derived import EnsembleStep, ProtocolStep
from pipeline.derive.context import Bench, Done


def judge_together(bench: Bench) -> Done:
    """An ensemble, or one network by other protocols: errors of the averaged answers."""
    step = bench.step.step
    assert isinstance(step, EnsembleStep | ProtocolStep)
    metrics = bench.errors(bench.networks, protocols=step.test)
    count = len(bench.networks)
    ended = f"{count} networks averaged" if count > 1 else f"judged by {len(step.test)} more protocols"
    return Done(metrics, ended)
