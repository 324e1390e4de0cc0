"""Test claims on seeds: outcomes, sentences, refused arguments, properties. The statistics: test_statistics.py."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judge.trained import judge_bound, judge_gain, judge_metric, judge_ordering, judge_ratio
from pipeline.judge.verdict import Outcome, Reason


def seeds(*values: float) -> dict[int, float]:
    """Return the values by seed: 0, 1, 2, ..."""
    return dict(enumerate(values))


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
    ("claimed", "margin", "outcome"),
    [
        (1.1, 0.3, "reproduced"),
        (1.1, 0.25, "cannot judge"),
        (1.4, 0.2, "not reproduced"),  # a smaller gain
        (0.5, 0.2, "not reproduced"),  # a larger gain
    ],
)
def test_gain_outcomes(claimed, margin, outcome):  # gains 0.9, 1.0, 1.1: interval 0.831 to 1.169
    lhs = seeds(9, 5, 7)
    rhs = {seed: lhs[seed] + gain for seed, gain in seeds(0.9, 1.0, 1.1).items()}
    verdict = judge_gain(lhs, rhs, claimed=claimed, margin=margin)
    assert verdict.outcome == outcome
    assert verdict.measured == pytest.approx(1.0)
    assert verdict.interval == pytest.approx((0.831, 1.169), abs=1e-3)
    assert judge_gain(rhs, lhs, claimed=claimed, margin=margin).outcome == "not reproduced"  # a loss


def test_sentence_of_a_gain_names_its_sides():
    verdict = judge_gain(seeds(1, 2, 3), seeds(2, 3, 4), claimed=1.4, margin=0.5, names=("with LRN", "without"))
    assert verdict.sentence == (
        "The mean of without minus with LRN over 3 paired seeds is 1, the same at every seed. "
        "Claimed is 1.4 ± 0.5: this value is inside the claimed range."
    )


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


@pytest.mark.parametrize("value", [0, -1])  # an error on few test images may be 0, a log-likelihood negative
def test_ratio_with_a_value_not_above_zero_is_underpowered(value):
    for lhs, rhs in ((seeds(1, 2, 3), seeds(1, value, 2)), (seeds(1, value, 2), seeds(1, 2, 3))):
        verdict = judge_ratio(lhs, rhs, claimed=1, margin=0.1)
        assert (verdict.outcome, verdict.reason, verdict.n) == (Outcome.CANNOT_JUDGE, Reason.UNDERPOWERED, 3)
        assert "a measured value is not above 0 at seed 1" in verdict.sentence


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


@pytest.mark.parametrize(
    ("op", "claimed", "outcome"),
    [
        ("<", 2.2, "reproduced"),
        ("<", 1.8, "not reproduced"),
        (">", 1.8, "reproduced"),
        (">", 2.2, "not reproduced"),
    ],
)
def test_ratio_below_or_above_a_number(op, claimed, outcome):
    verdict = judge_ratio(seeds(1.98, 4.0, 6.06), seeds(1, 2, 3), op=op, claimed=claimed)
    assert verdict.outcome == outcome
    assert f"less than {claimed}" in verdict.sentence if op == "<" else f"more than {claimed}" in verdict.sentence
    # An interval on both sides of the number decides nothing.
    assert judge_ratio(seeds(1.98, 4.0, 6.06), seeds(1, 2, 3), op=op, claimed=2.0).outcome == "cannot judge"


def test_sentence_has_estimate_interval_and_claimed_range():
    assert judge_metric(seeds(*NARROW), claimed=8.75, margin=0.5).sentence == (
        "The mean error of 3 seeds is 10 % (90 % interval 9.831 to 10.17 %). Claimed is 8.75 ± 0.5 %: "
        "the interval is above the claimed range."
    )


def test_sides_of_a_gain_are_named_as_declared():
    """Also in the sentence of a run that did not converge."""
    verdict = judge_gain(seeds(1.0, float("nan"), 1.0), seeds(2.0, 2.0, 2.0), claimed=1.0, margin=0.5)
    assert "seed 1 on the left gave nan" in verdict.sentence
    unpaired = judge_gain({0: 1.0, 1: 1.1, 2: 0.9, 7: 1.0}, seeds(2.0, 2.1, 2.2), claimed=1.0, margin=0.5)
    assert "seed 7 only on the left" in unpaired.sentence


def test_median_of_runs_is_judged_by_the_mean_of_seeds():
    """The expected median of normal draws is their mean."""
    median = judge_metric(seeds(*NARROW), claimed=9.9, margin=0.5, statistic="median of 5")
    mean = judge_metric(seeds(*NARROW), claimed=9.9, margin=0.5)
    assert (median.outcome, median.measured, median.interval) == (mean.outcome, mean.measured, mean.interval)
    assert "The expected error of the median of 5 runs, estimated from 3 seeds, is 10 %" in median.sentence


@pytest.mark.parametrize(
    ("claimed", "margin", "outcome"),
    [(10, 0.2, "reproduced"), (9, 0.5, "better than claimed"), (11, 0.5, "not reproduced")],
)
def test_a_higher_ratio_is_better(claimed, margin, outcome):
    verdict = judge_metric(seeds(*NARROW), claimed=claimed, margin=margin, measure="ratio")
    assert verdict.outcome == outcome
    measured = "The mean ratio of 3 seeds is 10 (90 % interval 9.831 to 10.17)"
    assert verdict.sentence.startswith(f"{measured}. Claimed is {claimed} ± {margin}: the interval is ")


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
        judge_gain(seeds(1, 2, 3), values, claimed=1, margin=0.5),
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
        judge_gain(seeds(*values), seeds(1, 1, 1), claimed=1, margin=0.5),
        judge_ratio(seeds(*values), seeds(1, 1, 1), claimed=8.75, margin=5),
    ):
        assert (verdict.outcome, verdict.reason) == (Outcome.CANNOT_JUDGE, Reason.UNDERPOWERED)
        assert verdict.n == len(values)
        assert verdict.measured is not None
        assert "fewer than 3" in verdict.sentence


def test_underpowered_verdict_has_the_number_of_seeds_that_its_sentence_suggests():
    verdict = judge_bound(seeds(-1, 0, 1), op="<", bound=1.0)
    assert f"about {verdict.enough} seeds" in verdict.sentence
    assert judge_bound(seeds(-1, 0, 1), op="<", bound=0.001).enough is None  # not even 100
    assert judge_bound(seeds(-1, 0, 1), op="<", bound=50).enough is None  # judged


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
        (lambda: judge_ratio(V, V, claimed=1, op="<="), "unknown op '<='"),
        (lambda: judge_gain(V, V, claimed=math.inf, margin=1), "claimed must be a finite number"),
        (lambda: judge_gain(V, V, claimed=1, margin=0), "> 0, not 0"),
        (lambda: judge_ratio(V, V, claimed=1, margin=1), "must be above zero"),
        (lambda: judge_ratio(V, V, claimed=1, margin=0), "> 0"),
    ],
)
def test_invalid_arguments_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


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
@given(lhs=samples, rhs=samples, margin=margins)
def test_a_gain_around_zero_is_an_equality(lhs, rhs, margin):
    gain = judge_gain(lhs, rhs, claimed=0, margin=margin)
    equal = judge_ordering(rhs, lhs, op="~", margin=margin)
    assert (gain.outcome, gain.interval, gain.p_value) == (equal.outcome, equal.interval, equal.p_value)


@settings(deadline=None)
@given(values=samples, claimed=hundredths, margin=margins, statistic=seed_statistics)
def test_estimate_interval_p_value_and_outcome_agree(values, claimed, margin, statistic):
    verdict = judge_metric(values, claimed=claimed, margin=margin, statistic=statistic)
    low, high = verdict.interval
    assert low <= verdict.measured <= high
    if verdict.p_value is not None and abs(verdict.p_value - 0.05) > 1e-9:
        assert (verdict.outcome is Outcome.REPRODUCED) == (verdict.p_value < 0.05)


@pytest.mark.parametrize(
    ("claimed", "outcome"),
    [(84.0, Outcome.BETTER), (88.0, Outcome.REPRODUCED), (92.0, Outcome.NOT_REPRODUCED)],
)
def test_a_higher_score_is_better(claimed, outcome):
    verdict = judge_metric(seeds(87.9, 88.0, 88.1), claimed=claimed, margin=1.0, measure="score")
    assert verdict.outcome is outcome
    assert verdict.sentence.startswith("The mean score of 3 seeds is 88 % (")
    swapped = {Outcome.BETTER: Outcome.NOT_REPRODUCED, Outcome.NOT_REPRODUCED: Outcome.BETTER}
    as_error = judge_metric(seeds(87.9, 88.0, 88.1), claimed=claimed, margin=1.0)
    assert as_error.outcome is swapped.get(outcome, outcome)
