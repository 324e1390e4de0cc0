"""Test verdicts: outcomes, sentences and refused arguments. The statistics: test_statistics.py."""

import dataclasses
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judge.statistics import finite_test_set_noise
from pipeline.judge.verdict import (
    Outcome,
    Reason,
    Verdict,
    as_trend,
    cannot_judge,
    judge_bound,
    judge_exact,
    judge_metric,
    judge_ordering,
    judge_ratio,
)


def seeds(*values: float) -> dict[int, float]:
    """Return the values by seed: 0, 1, 2, ..."""
    return dict(enumerate(values))


# --- exact -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "claimed", "margin", "outcome"),
    [
        (61_706, 61_706, 0, "reproduced"),
        (61_707, 61_706, 0, "not reproduced"),
        (269_722, 270_000, 5000, "reproduced"),
        (1_000_000_000_001, 1_000_000_000_000, 0, "not reproduced"),  # a difference of 1 in 1e12 counts
        (8.8, 8.75, 0.05, "reproduced"),  # 8.8 - 8.75 is 0.05000000000000071 in binary
        (8.81, 8.75, 0.05, "not reproduced"),
        (0.1 + 0.2, 0.3, 0, "reproduced"),
        (np.int64(5), 5.0, 0, "reproduced"),
        ((6, 28, 28), [6, 28, 28], 0, "reproduced"),  # YAML loads lists
        ((6, 28, 28), (6, 24, 24), 0, "not reproduced"),
        ((6, 28, 28), (6, 28), 0, "not reproduced"),
        ((6, 28, 28), (6, 27, 28), 1, "not reproduced"),  # a margin is for numbers
        ("relu", "relu", 0, "reproduced"),
        ("relu", "tanh", 0, "not reproduced"),
        (None, None, 0, "reproduced"),
        (None, 0, 0, "not reproduced"),
        (True, 1, 0, "not reproduced"),
        (math.inf, math.inf, 0, "reproduced"),
    ],
)
def test_exact_outcomes(measured, claimed, margin, outcome):
    assert judge_exact(measured, claimed=claimed, margin=margin).outcome == outcome


@pytest.mark.parametrize(
    ("measured", "outcome", "part"),
    [
        (20, "erratum", "agrees with the correction 20 and not with the claimed 10 ± 1"),
        (10, "reproduced", "the declared correction 20 is wrong"),
        (15, "not reproduced", "or with the correction 20"),
    ],
)
def test_exact_outcomes_with_a_correction(measured, outcome, part):
    verdict = judge_exact(measured, claimed=10, margin=1, corrected=20)
    assert verdict.outcome == outcome
    assert part in verdict.sentence


def test_margin_that_covers_claim_and_correction_shows_no_erratum():
    verdict = judge_exact(15, claimed=10, margin=5, corrected=20)
    assert verdict.outcome is Outcome.REPRODUCED
    assert "it shows no erratum" in verdict.sentence


def test_erratum_of_a_shape():
    verdict = judge_exact((96, 111, 111), claimed=[96, 109, 109], corrected=[96, 111, 111])
    assert verdict.outcome is Outcome.ERRATUM
    assert verdict.measured is None


@pytest.mark.parametrize(
    ("op", "outcomes"),  # of 1, 2 and 3; claimed is 2
    [("<", "yes no no"), ("<=", "yes yes no"), (">", "no no yes"), (">=", "no yes yes"), ("=", "no yes no")],
)
def test_exact_outcomes_of_inequalities(op, outcomes):
    names = {Outcome.REPRODUCED: "yes", Outcome.NOT_REPRODUCED: "no"}
    assert [names[judge_exact(n, claimed=2, op=op).outcome] for n in (1, 2, 3)] == outcomes.split()


@pytest.mark.parametrize(
    ("measured", "corrected", "outcome"),
    [
        (8.7113, 8.7, Outcome.ERRATUM),  # to the last digit of the correction
        (8.7501, 8.7, Outcome.NOT_REPRODUCED),
        (8.65, 8.7, Outcome.ERRATUM),
        (8.7113, 8, Outcome.NOT_REPRODUCED),  # a whole number is exact
        (1.44e7, 14_000_000, Outcome.NOT_REPRODUCED),
        (271.351808, 271.35, Outcome.ERRATUM),
    ],
)
def test_correction_agrees_to_its_printed_digits(measured, corrected, outcome):
    assert judge_exact(measured, claimed=12, corrected=corrected).outcome is outcome


@pytest.mark.parametrize(
    ("measured", "corrected", "outcome"),
    [
        (3_858_000_000, 3_900_000_000, Outcome.ERRATUM),  # to the last digit that is not zero
        (3_840_000_000, 3_900_000_000, Outcome.NOT_REPRODUCED),
        (0.7555, 0.756, Outcome.ERRATUM),
        (0.77, 0.756, Outcome.NOT_REPRODUCED),  # within the margin, but not the correction
    ],
)
def test_margin_does_not_widen_the_correction(measured, corrected, outcome):
    claimed, margin = (1.0, 0.1) if corrected < 1 else (3.0e9, 5e8)
    assert judge_exact(measured, claimed=claimed, margin=margin, corrected=corrected).outcome is outcome


def test_sentence_starts_with_the_source_of_the_measured_value():
    assert judge_exact(3, claimed=3, found="The paper prints").sentence.startswith("The paper prints 3, which")


# --- outcomes and sentences --------------------------------------------------------------------------------

NARROW = (9.9, 10.0, 10.1)  # mean 10, spread 0.1: 90 % interval 10 -+ 2.920 * 0.1 / sqrt(3) = 0.169


@pytest.mark.parametrize(
    ("claimed", "margin", "outcome"),
    [
        (10, 0.2, "reproduced"),
        (10, 0.1, "cannot judge"),
        (9, 0.5, "not reproduced"),
        (11, 0.5, "better than claimed"),
        (10.3, 0.2, "cannot judge"),
    ],
)
def test_metric_outcomes(claimed, margin, outcome):
    verdict = judge_metric(seeds(*NARROW), claimed=claimed, margin=margin)
    assert verdict.outcome == outcome
    assert verdict.reason is (Reason.UNDERPOWERED if outcome == "cannot judge" else None)
    assert verdict.interval == pytest.approx((9.831, 10.169), abs=1e-3)
    assert (verdict.level, verdict.n) == (0.9, 3)


@pytest.mark.parametrize(
    ("op", "margin", "outcome"),
    [
        (">", 0.8, "reproduced"),
        (">", 1.1, "cannot judge"),
        (">", 1.2, "not reproduced"),
        ("<", 0.0, "not reproduced"),
        ("<=", 1.2, "reproduced"),
        ("<=", 0.8, "not reproduced"),
        ("~", 1.2, "reproduced"),
        ("~", 1.1, "cannot judge"),
        ("~", 0.8, "not reproduced"),
    ],
)
def test_ordering_outcomes(op, margin, outcome):  # differences 0.9, 1.0, 1.1: interval 0.831 to 1.169
    rhs = seeds(9, 5, 7)
    lhs = {seed: rhs[seed] + difference for seed, difference in seeds(0.9, 1.0, 1.1).items()}
    assert judge_ordering(lhs, rhs, op=op, margin=margin).outcome == outcome


@pytest.mark.parametrize(
    ("op", "bound", "outcome"),
    [
        ("<", 10.2, "reproduced"),
        ("<", 10.1, "cannot judge"),
        ("<", 9.8, "not reproduced"),
        (">", 9.8, "reproduced"),
        (">", 10.2, "not reproduced"),
    ],
)
def test_bound_outcomes(op, bound, outcome):
    assert judge_bound(seeds(*NARROW), op=op, bound=bound).outcome == outcome


def test_ratio_with_a_value_of_zero_is_underpowered():
    # an error on few test images may be 0
    for lhs, rhs in ((seeds(1, 2, 3), seeds(1, 0, 2)), (seeds(1, 0, 2), seeds(1, 2, 3))):
        verdict = judge_ratio(lhs, rhs, claimed=1, margin=0.1)
        assert (verdict.outcome, verdict.reason, verdict.n) == (Outcome.CANNOT_JUDGE, Reason.UNDERPOWERED, 3)
        assert "a measured value is 0 at seed 1" in verdict.sentence


@pytest.mark.parametrize(
    ("claimed", "margin", "outcome"),
    [(2.0, 0.2, "reproduced"), (1.5, 0.2, "not reproduced"), (3, 0.2, "not reproduced"), (2, 0.01, None)],
)
def test_ratio_outcomes(claimed, margin, outcome):
    verdict = judge_ratio(seeds(1.98, 4.0, 6.06), seeds(1, 2, 3), claimed=claimed, margin=margin)
    assert verdict.outcome == (outcome or "cannot judge")
    assert verdict.measured == pytest.approx(2.0, abs=1e-3)
    low, high = verdict.interval
    assert low * high == pytest.approx(verdict.measured**2)  # symmetric in logarithms


def test_sentence_has_estimate_interval_and_claimed_range():
    assert judge_metric(seeds(*NARROW), claimed=8.75, margin=0.5).sentence == (
        "The mean error of 3 seeds is 10 % (90 % interval 9.831 to 10.17 %). Claimed is 8.75 ± 0.5 %: "
        "the interval is above the claimed range."
    )


def test_sentence_names_a_best_of_n():
    verdict = judge_metric(seeds(*NARROW), claimed=9.9, margin=0.5, statistic="best of 5")
    assert "best of 5 runs, estimated from 3 seeds" in verdict.sentence


@pytest.mark.parametrize("values", [(8.75,) * 3, (0.1,) * 3, (0.0,) * 5, (1e6 / 3,) * 7])
@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_values_without_spread_are_judged_by_their_place(values, statistic):
    inside = judge_metric(seeds(*values), claimed=values[0] + 0.3, margin=0.3, statistic=statistic)
    above = judge_metric(seeds(*values), claimed=values[0] - 0.3, margin=0.2, statistic=statistic)
    below = judge_metric(seeds(*values), claimed=values[0] + 0.3, margin=0.2, statistic=statistic)
    assert [v.outcome for v in (inside, above, below)] == ["reproduced", "not reproduced", "better than claimed"]
    assert inside.interval == (inside.measured, inside.measured)
    assert inside.p_value is None
    assert "the same at every seed" in inside.sentence


def test_differences_without_spread_are_judged_by_their_place():
    rhs = seeds(8.1, 7.3, 90_700.7)
    lhs = {seed: value + 0.4 for seed, value in rhs.items()}  # 0.4 up to binary rounding
    outcomes = {
        (">", 0.3): "reproduced",
        (">", 0.4): "not reproduced",  # not more than 0.4
        ("<=", 0.4): "not reproduced",  # worse by the margin
        ("<=", 0.5): "reproduced",
        ("~", 0.4): "reproduced",  # a margin includes its end
        ("<", 0.0): "not reproduced",
    }
    for (op, margin), outcome in outcomes.items():
        verdict = judge_ordering(lhs, rhs, op=op, margin=margin)
        assert (verdict.outcome, verdict.effect) == (outcome, None)
    assert judge_ratio(rhs, rhs, claimed=1, margin=0.1).outcome is Outcome.REPRODUCED


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_run_counts_and_is_named(bad):
    values = seeds(8.7, bad, 8.8, bad, 8.7)
    for verdict in (
        judge_metric(values, claimed=8.75, margin=0.5),
        judge_bound(values, op="<", bound=9),
        judge_ordering(seeds(1, 2, 3), values, op="<"),
        judge_ratio(values, seeds(1, 2, 3, 4, 5), claimed=8.75, margin=0.5),
    ):
        assert verdict.reason is Reason.DID_NOT_CONVERGE
        assert re.search(rf"seed 1.* gave {bad} and seed 3.* gave {bad}", verdict.sentence)
        assert verdict.measured is None


@pytest.mark.parametrize("values", [(8.7,), (8.7, 8.8)])
def test_fewer_than_three_seeds_are_underpowered(values):
    for verdict in (
        judge_metric(seeds(*values), claimed=8.75, margin=5),
        judge_bound(seeds(*values), op="<", bound=50),
        judge_ordering(seeds(*values), seeds(1, 1, 1), op=">"),
        judge_ratio(seeds(*values), seeds(1, 1, 1), claimed=8.75, margin=5),
    ):
        assert (verdict.outcome, verdict.reason) == (Outcome.CANNOT_JUDGE, Reason.UNDERPOWERED)
        assert verdict.n == len(values)
        assert verdict.measured is not None
        assert "fewer than 3" in verdict.sentence


def test_unpaired_seeds_are_named():
    lhs, rhs = {1: 2.0, 2: 3.1, 3: 4.0, 7: 99.0}, {1: 1.0, 2: 2.0, 3: 3.1, 8: 0.0, 9: 0.0}
    verdict = judge_ordering(lhs, rhs, op=">")
    assert verdict.n == 3
    assert verdict.measured == pytest.approx(1.0)
    assert "not paired: seed 7 only on the left and seeds 8 and 9 only on the right" in verdict.sentence


def test_pairing_is_by_seed_and_not_by_position():
    lhs = {0: 1.1, 1: 5.0, 2: 9.1}
    rhs = {2: 8.0, 1: 4.1, 0: 0.0}
    assert judge_ordering(lhs, rhs, op=">").outcome is Outcome.REPRODUCED


def test_sides_without_a_common_seed_are_underpowered():
    verdict = judge_ordering({1: 1.0}, {2: 1.0}, op=">")
    assert (verdict.reason, verdict.n, verdict.measured) == (Reason.UNDERPOWERED, 0, None)


def made_verdict(outcome: Outcome) -> Verdict:
    reason = Reason.NOT_RUN if outcome is Outcome.CANNOT_JUDGE else None
    return Verdict(outcome, reason, 1.0, (0.5, 1.5), 0.9, 0.01, None, 5, "A sentence.")


@pytest.mark.parametrize(
    ("full", "trend"),
    [
        (Outcome.REPRODUCED, Outcome.TREND),
        (Outcome.BETTER, Outcome.TREND),
        (Outcome.NOT_REPRODUCED, Outcome.NO_TREND),
        (Outcome.ERRATUM, Outcome.ERRATUM),
        (Outcome.CANNOT_JUDGE, Outcome.CANNOT_JUDGE),
        (Outcome.TREND, Outcome.TREND),
        (Outcome.NO_TREND, Outcome.NO_TREND),
    ],
)
def test_as_trend_weakens_the_outcome(full, trend):
    verdict = as_trend(made_verdict(full), "at laptop scale on digits")
    assert verdict.outcome is trend
    assert as_trend(verdict, "elsewhere") == verdict
    sentence = "A sentence. Runs at laptop scale on digits can show a trend only, and this "
    assert verdict.sentence.startswith(sentence) == (full != trend)
    assert dataclasses.replace(verdict, outcome=full, sentence="A sentence.") == made_verdict(full)


def test_only_cannot_judge_has_a_reason():
    with pytest.raises(ValueError, match="if and only if"):
        Verdict(Outcome.CANNOT_JUDGE, None, None, None, None, None, None, 0, "")
    with pytest.raises(ValueError, match="if and only if"):
        dataclasses.replace(made_verdict(Outcome.REPRODUCED), reason=Reason.NO_DATA)
    with pytest.raises(ValueError, match="level"):
        dataclasses.replace(made_verdict(Outcome.REPRODUCED), level=None)
    verdict = cannot_judge(Reason.NO_DATA, "ImageNet is not available.")
    assert (verdict.outcome, verdict.reason, verdict.n) == (Outcome.CANNOT_JUDGE, Reason.NO_DATA, 0)


def test_reasons():
    assert set(Reason) == {
        "not-run", "no-data", "no-labels", "underpowered",
        "protocol-unspecified", "recipe-departs", "did-not-converge", "over-budget",
    }  # fmt: skip


V = seeds(1, 2, 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: judge_metric({}, claimed=1, margin=1), "no values to judge"),
        (lambda: judge_metric(V, claimed=math.nan, margin=1), "claimed must be a finite number"),
        (lambda: judge_metric(V, claimed=1, margin=0), "margin must be a finite number > 0, not 0"),
        (lambda: judge_metric(V, claimed=1, margin=-1), "> 0, not -1"),
        (lambda: judge_metric(V, claimed=1, margin=math.nan), "> 0, not nan"),
        (lambda: judge_metric(V, claimed=1, margin=1, statistic="median"), "unknown statistic 'median'"),
        (lambda: judge_metric(V, claimed=1, margin=1, statistic="best of N"), "unknown statistic"),
        (lambda: judge_metric(V, claimed=1, margin=1, statistic="best of 0"), "N from 1 to 1000"),
        (lambda: judge_bound(V, op="<", bound=math.inf), "bound must be a finite number"),
        (lambda: judge_bound(V, op="<=", bound=1), "unknown op '<='"),
        (lambda: judge_bound({}, op="<", bound=1), "no values"),
        (lambda: judge_ordering(V, V, op="=="), "unknown op '=='"),
        (lambda: judge_ordering(V, V, op="<="), "> 0"),
        (lambda: judge_ordering(V, V, op="~"), "> 0"),
        (lambda: judge_ordering(V, V, op=">", margin=-0.1), ">= 0, not -0.1"),
        (lambda: judge_ordering(V, {}, op=">"), "no values to judge on the right"),
        (lambda: judge_ratio(V, seeds(1, -1, 2), claimed=1, margin=0.1), "the right side is negative at seed 1"),
        (lambda: judge_ratio(V, V, claimed=1, margin=1), "must be above zero"),
        (lambda: judge_ratio(V, V, claimed=1, margin=0), "> 0"),
        (lambda: judge_exact([1], claimed=2, op="<"), "compares numbers"),
        (lambda: judge_exact("x", claimed=2, op=">="), "compares numbers"),
        (lambda: judge_exact(1, claimed=math.nan), "NaN"),
        (lambda: judge_exact(math.nan, claimed=1), "NaN"),
        (lambda: judge_exact(1, claimed=1, margin=-1), ">= 0"),
        (lambda: judge_exact(1, claimed=2, corrected=2), "equals the claimed value"),
        (lambda: finite_test_set_noise(101, 10), "between 0 and 100"),
        (lambda: finite_test_set_noise(10, 0), "must be >= 1"),
    ],
)
def test_invalid_arguments_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_import_loads_no_heavy_package():
    heavy = "{'numpy', 'scipy', 'statsmodels', 'torch', 'mlflow'}"
    code = f"import sys, pipeline.judge.verdict; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- properties --------------------------------------------------------------------------------------------

hundredths = st.integers(0, 10_000).map(lambda i: i / 100)
samples = st.lists(hundredths, min_size=3, max_size=6).map(lambda values: seeds(*values))
margins = st.integers(1, 1000).map(lambda i: i / 100)
seed_statistics = st.sampled_from(["mean", "best of 5"])


@settings(deadline=None)
@given(values=samples, claimed=hundredths, margin=margins, wider=margins, statistic=seed_statistics)
def test_wider_margin_keeps_a_claim_reproduced(values, claimed, margin, wider, statistic):
    narrow, wide = (
        judge_metric(values, claimed=claimed, margin=m, statistic=statistic).outcome
        for m in (margin, margin + wider)
    )
    if narrow is Outcome.REPRODUCED:
        assert wide is Outcome.REPRODUCED
    if wide in (Outcome.NOT_REPRODUCED, Outcome.BETTER):
        assert narrow is wide


@settings(deadline=None)
@given(values=samples, claimed=hundredths, margin=margins, shift=hundredths, statistic=seed_statistics)
def test_shifted_values_and_claim_give_the_same_outcome(values, claimed, margin, shift, statistic):
    shifted = {seed: value + shift for seed, value in values.items()}
    before = judge_metric(values, claimed=claimed, margin=margin, statistic=statistic)
    after = judge_metric(shifted, claimed=claimed + shift, margin=margin, statistic=statistic)
    assert after.outcome is before.outcome
    assert after.measured == pytest.approx(before.measured + shift)


@settings(deadline=None)
@given(values=samples, others=samples, data=st.data())
def test_order_of_seeds_is_irrelevant(values, others, data):
    shuffled = dict(data.draw(st.permutations(list(values.items()))))
    assert judge_metric(shuffled, claimed=50, margin=5) == judge_metric(values, claimed=50, margin=5)
    assert judge_ordering(shuffled, others, op=">") == judge_ordering(values, others, op=">")


@settings(deadline=None)
@given(lhs=samples, rhs=samples, margin=margins)
def test_swapping_sides_mirrors_an_ordering(lhs, rhs, margin):
    larger = judge_ordering(lhs, rhs, op=">", margin=margin)
    smaller = judge_ordering(rhs, lhs, op="<", margin=margin)
    assert (larger.outcome, larger.p_value) == (smaller.outcome, pytest.approx(smaller.p_value))


@settings(deadline=None)
@given(values=samples, claimed=hundredths, margin=margins, statistic=seed_statistics)
def test_estimate_interval_p_value_and_outcome_agree(values, claimed, margin, statistic):
    verdict = judge_metric(values, claimed=claimed, margin=margin, statistic=statistic)
    low, high = verdict.interval
    assert low <= verdict.measured <= high
    if verdict.p_value is not None and abs(verdict.p_value - 0.05) > 1e-9:
        assert (verdict.outcome is Outcome.REPRODUCED) == (verdict.p_value < 0.05)
