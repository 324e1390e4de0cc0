"""Single runs and derived runs of a declaration, for tests of plans, declarations and identities."""

from typing import Any

from pipeline.declare.experiment import Experiment
from pipeline.plan.expand import DerivedRun, Run, plan_runs

DERIVED_OF_PLAIN_20 = """derived:
  pair: {kind: ensemble, members: {plain-20: 2}}
  mixed: {kind: ensemble, members: {plain-20: 2, plain-32: 1}}
  small: {kind: compression, of: plain-20, density: 0.5, conv_bits: 8, fc_bits: 5}
scales:
"""  # replaces "scales:\n" in the declaration of tests/pipeline/conftest.py


def first_run(experiment: Experiment, variant: str = "plain-20", scale: str = "paper", **options: Any) -> Run:
    """Return the run of a variant with its first seed."""
    run = plan_runs(experiment, scale=scale, variants=[variant], seeds=1, **options)[0]
    assert isinstance(run, Run)
    return run


def first_derived(experiment: Experiment, name: str = "pair", **options: Any) -> DerivedRun:
    """Return the first derived run of this name at paper scale."""
    run = next(run for run in plan_runs(experiment, scale="paper", **options) if run.variant == name)
    assert isinstance(run, DerivedRun)
    return run
