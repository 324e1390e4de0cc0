"""Test the type of a verdict."""

import dataclasses
import subprocess
import sys

import pytest

from pipeline.judge.verdict import CONTRADICTIONS, Outcome, Reason, Verdict, cannot_judge

GOOD = Verdict(Outcome.REPRODUCED, None, 1.0, (0.5, 1.5), 0.9, 0.01, None, 5, "A sentence.")


def test_only_cannot_judge_has_a_reason():
    with pytest.raises(ValueError, match="if and only if"):
        Verdict(Outcome.CANNOT_JUDGE, None, None, None, None, None, None, 0, "")
    with pytest.raises(ValueError, match="if and only if"):
        dataclasses.replace(GOOD, reason=Reason.NO_DATA)
    with pytest.raises(ValueError, match="level"):
        dataclasses.replace(GOOD, level=None)
    verdict = cannot_judge(Reason.NO_DATA, "ImageNet is not available.")
    assert (verdict.outcome, verdict.reason, verdict.n) == (Outcome.CANNOT_JUDGE, Reason.NO_DATA, 0)


def test_reasons():
    assert set(Reason) == {
        "not-run", "no-data", "no-labels", "underpowered",
        "recipe-unspecified", "protocol-unspecified", "recipe-departs", "did-not-converge", "over-budget",
    }  # fmt: skip


def test_outcomes_against_a_claim():
    assert set(CONTRADICTIONS) == {"not confirmed", "departs", "not reproduced"}


def test_import_loads_no_heavy_package():
    heavy = "{'numpy', 'scipy', 'statsmodels', 'torch', 'mlflow'}"
    modules = "pipeline.judge.exact, pipeline.judge.rules, pipeline.judge.trained"
    code = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
