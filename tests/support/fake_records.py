"""Records of runs that were never trained, and the console that commands print to."""

import sys
from typing import Any

import pytest

from pipeline.declare.experiment import Experiment
from pipeline.plan.expand import plan_runs
from pipeline.track.record import Record


def fake_record(
    experiment: Experiment, variant: str, seed: int, error: float, *, scale: str = "paper", **other: Any
) -> Record:
    """Return a finished record with this test error in percent, of a run as declared or with `changes`."""
    changes = other.get("changes", {})
    runs = plan_runs(experiment, scale=scale, variants=[variant], seeds=max(seed + 1, 5), changes=changes)
    run = next(run for run in runs if (run.variant, run.seed) == (variant, seed))
    fields: dict[str, Any] = {
        "identity": f"{variant}-{seed}-{scale}",
        "experiment": experiment.name,
        "scale": scale,
        "variant": variant,
        "seed": seed,
        "status": "finished",
        "ended": f"{run.recipe.train.steps} steps",
        "changes": {},
        "declaration": run.declaration,
        "manifest": f"manifest of {run.recipe.data.name}",
        "code": "code-1",
        "lock": "lock-1",
        "commit": "0123456789abcdef",
        "data": run.recipe.data.name,
        "metrics": {
            "test/top1_error_pct": error,
            "test/top5_error_pct": error / 10,
            "train/top1_error_pct": error / 2,
            "test/images": 10_000.0,
        },
        "precision": "fp32",
        "compiled": False,
        "threads": 1,
        "hardware": "one core",
        "libraries": {"torch": "2.10"},
        "seconds": 60.0,
        "finished": f"2026-01-01T00:00:0{seed}+00:00",
        "run_id": f"mlflow-{variant}-{seed}",
    }
    return Record(**(fields | other))


def set_console(monkeypatch: pytest.MonkeyPatch, console: Any) -> None:
    """Let all commands print to this console."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pipeline.cli.") and hasattr(module, "out"):
            monkeypatch.setattr(module, "out", console)
