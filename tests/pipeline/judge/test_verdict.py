"""Verdicts: arithmetic, published tables, other people's statistics, and ten thousand simulated experiments.

The promise that matters: with the truth exactly at the margin, a false `reproduced` in at most 5 % of cases.
"""

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from pipeline.judge import statistics
from pipeline.judge.statistics import expected_best, finite_test_set_noise
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

EXPERIMENTS = 10_000
AT_MOST = 0.055  # 5 %, plus 2.3 standard errors of a share of 10,000
AT_LEAST = 0.045  # where the test is exact: fewer would be a test that never says anything


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


# --- exact -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "claimed", "margin", "outcome"),
    [
        (61_706, 61_706, 0, "reproduced"),
        (61_707, 61_706, 0, "not reproduced"),
        (269_722, 270_000, 5000, "reproduced"),
        (1_000_000_000_001, 1_000_000_000_000, 0, "not reproduced"),  # one in 1e12 still counts
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
def test_exact_compares_with_the_claim(measured, claimed, margin, outcome):
    assert judge_exact(measured, claimed=claimed, margin=margin).outcome == outcome


@pytest.mark.parametrize(
    ("measured", "outcome", "words"),
    [
        (20, "erratum", "agrees with the correction 20 and not with the claimed 10 ± 1"),
        (10, "reproduced", "the erratum declared (20) was itself wrong"),
        (15, "not reproduced", "nor with the correction 20"),
    ],
)
def test_exact_with_a_declared_erratum(measured, outcome, words):
    verdict = judge_exact(measured, claimed=10, margin=1, corrected=20)
    assert verdict.outcome == outcome
    assert words in verdict.sentence


def test_a_margin_that_covers_claim_and_correction_shows_no_erratum():
    verdict = judge_exact(15, claimed=10, margin=5, corrected=20)
    assert verdict.outcome is Outcome.REPRODUCED
    assert "no erratum is shown" in verdict.sentence


def test_exact_erratum_of_a_shape():
    verdict = judge_exact((96, 111, 111), claimed=[96, 109, 109], corrected=[96, 111, 111])
    assert verdict.outcome is Outcome.ERRATUM
    assert verdict.measured is None


# --- published tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "outcomes"),  # of 1, 2 and 3 beside a claimed 2
    [("<", "yes no no"), ("<=", "yes yes no"), (">", "no no yes"), (">=", "no yes yes"), ("=", "no yes no")],
)
def test_a_side_of_a_number(op, outcomes):
    said = {Outcome.REPRODUCED: "yes", Outcome.NOT_REPRODUCED: "no"}
    assert [said[judge_exact(n, claimed=2, op=op).outcome] for n in (1, 2, 3)] == outcomes.split()


@pytest.mark.parametrize(
    ("measured", "corrected", "outcome"),
    [
        (8.7113, 8.7, Outcome.ERRATUM),  # to the digit that the correction shows
        (8.7501, 8.7, Outcome.NOT_REPRODUCED),
        (8.65, 8.7, Outcome.ERRATUM),
        (8.7113, 8, Outcome.NOT_REPRODUCED),  # a whole number is exact
        (1.44e7, 14_000_000, Outcome.NOT_REPRODUCED),
        (271.351808, 271.35, Outcome.ERRATUM),
    ],
)
def test_a_correction_agrees_to_the_digits_it_shows(measured, corrected, outcome):
    assert judge_exact(measured, claimed=12, corrected=corrected).outcome is outcome


@pytest.mark.parametrize(
    ("measured", "corrected", "outcome"),
    [
        (3_858_000_000, 3_900_000_000, Outcome.ERRATUM),  # to the last digit that is not zero
        (3_840_000_000, 3_900_000_000, Outcome.NOT_REPRODUCED),
        (0.7555, 0.756, Outcome.ERRATUM),
        (0.77, 0.756, Outcome.NOT_REPRODUCED),  # within the claim's margin, and not what the correction says
    ],
)
def test_a_claims_margin_does_not_widen_its_correction(measured, corrected, outcome):
    claimed, margin = (1.0, 0.1) if corrected < 1 else (3.0e9, 5e8)
    assert judge_exact(measured, claimed=claimed, margin=margin, corrected=corrected).outcome is outcome


def test_who_says_the_measured_value_begins_the_sentence():
    assert judge_exact(3, claimed=3, found="The paper prints").sentence.startswith("The paper prints 3, which")


@pytest.mark.parametrize(
    ("draws", "c"),  # Tippett 1925; in closed form 1/sqrt(pi) and 3/(2 sqrt(pi)) for 2 and 3
    [(1, 0.0), (2, 0.56419), (3, 0.84628), (4, 1.02938), (5, 1.16296), (10, 1.53875), (100, 2.50759)],
)
def test_expected_best_matches_the_table(draws, c):
    assert expected_best(draws) == pytest.approx(c, abs=6e-6)


@pytest.mark.parametrize(("n", "t"), [(3, 2.920), (5, 2.132), (10, 1.833)])  # Student's t, 95 %, n - 1 df
def test_interval_of_the_mean_has_the_table_s_quantile(n, t):
    values = seeds(*([9.0, 11.0] * n)[:n])
    spread = np.std(list(values.values()), ddof=1)
    low, high = judge_metric(values, claimed=10, margin=50).interval
    assert (high - low) / 2 == pytest.approx(t * spread / math.sqrt(n), rel=3e-4)


@pytest.mark.parametrize(("n", "factor"), [(3, 7.656), (5, 4.203), (10, 2.911)])
def test_interval_of_mu_plus_k_sigma_matches_the_tolerance_factors(n, factor):
    # one-sided normal tolerance limits, 95 % of the population at 95 % confidence (Odeh and Owen 1980)
    values = [float(x) for x in range(n)]
    upper = statistics.interval_test(values, high=0.0, k=1.644854).high
    assert (upper - np.mean(values)) / np.std(values, ddof=1) == pytest.approx(factor, abs=6e-4)


@pytest.mark.parametrize("n", [3, 5, 20])
@pytest.mark.parametrize("draws", [2, 5, 1000])
def test_noncentral_quantiles_invert_the_defining_integral(n, draws):
    df, nc = n - 1, expected_best(draws) * math.sqrt(n)
    for probability in (0.05, 0.95):
        q = statistics.t_quantile(probability, df, nc)

        def below(chi, q=q):
            return stats.norm.cdf(q * chi / math.sqrt(df) - nc) * stats.chi.pdf(chi, df)

        assert integrate.quad(below, 0, 20, limit=200)[0] == pytest.approx(probability, abs=1e-6)


def test_binomial_noise_of_a_test_set():
    assert finite_test_set_noise(10, 10_000) == pytest.approx(0.3)  # sqrt(0.1 * 0.9 / 10,000)
    assert finite_test_set_noise(0, 10_000) == 0


def test_effect_is_the_mean_difference_over_its_spread():
    verdict = judge_ordering(seeds(1, 2, 3), seeds(0, 0, 0), op=">")
    assert verdict.effect == pytest.approx(2.0)  # mean 2, spread 1
    assert verdict.measured == pytest.approx(2.0)


# --- second opinions ---------------------------------------------------------------------------------------

SAMPLES = [np.random.default_rng(i).normal(8.75, 0.3, (2, n)) for i, n in enumerate([3, 5, 5, 8, 20])]


@pytest.mark.parametrize("sample", SAMPLES)
def test_metric_agrees_with_statsmodels(sample):
    ours = judge_metric(seeds(*sample[0]), claimed=8.75, margin=0.5)
    theirs = DescrStatsW(sample[0])
    assert ours.p_value == pytest.approx(theirs.ttost_mean(8.25, 9.25)[0], rel=1e-9)
    assert ours.interval == pytest.approx(theirs.tconfint_mean(alpha=0.1), rel=1e-9)
    assert (ours.outcome is Outcome.REPRODUCED) == (ours.p_value <= 0.05)


@pytest.mark.parametrize("sample", SAMPLES)
def test_paired_equivalence_agrees_with_statsmodels(sample):
    ours = judge_ordering(seeds(*sample[0]), seeds(*sample[1]), op="~", margin=0.4)
    assert ours.p_value == pytest.approx(ttost_paired(sample[0], sample[1], -0.4, 0.4)[0], rel=1e-9)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(
    ("op", "alternative", "shift"), [(">", "greater", 0.2), ("<", "less", -0.2), ("<=", "less", 0.2)]
)
def test_orderings_agree_with_scipy(sample, op, alternative, shift):
    ours = judge_ordering(seeds(*sample[0]), seeds(*sample[1]), op=op, margin=0.2)
    theirs = stats.ttest_rel(sample[0], sample[1] + shift, alternative=alternative)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    interval = stats.ttest_rel(sample[0], sample[1]).confidence_interval(0.9)
    assert ours.interval == pytest.approx(tuple(interval), rel=1e-9)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(("op", "alternative"), [("<", "less"), (">", "greater")])
def test_bounds_agree_with_scipy(sample, op, alternative):
    ours = judge_bound(seeds(*sample[0]), op=op, bound=8.9)
    assert ours.p_value == pytest.approx(stats.ttest_1samp(sample[0], 8.9, alternative=alternative).pvalue)


@pytest.mark.parametrize("sample", SAMPLES)
def test_ratio_agrees_with_statsmodels_on_logarithms(sample):
    ours = judge_ratio(seeds(*sample[0]), seeds(*sample[1]), claimed=1.0, margin=0.1)
    theirs = ttost_paired(sample[0], sample[1], 0.9, 1.1, transform=np.log)
    assert ours.p_value == pytest.approx(theirs[0], rel=1e-9)
    assert ours.measured == pytest.approx(stats.gmean(sample[0] / sample[1]))


def suggested(verdict: Verdict) -> int:
    return int(re.search(r"about (\d+) seeds would probably be enough", verdict.sentence)[1])


@pytest.mark.parametrize("distance", [0.4, 0.5, 0.7, 1.0])  # of the mean from the bound, in spreads
def test_seeds_suggested_match_a_power_calculation(distance):
    verdict = judge_bound(seeds(-1, 0, 1), op="<", bound=distance)
    theirs = TTestPower().solve_power(distance, alpha=0.05, power=0.8, alternative="larger")
    assert theirs <= suggested(verdict) <= theirs + 10
    if theirs <= 10:
        assert suggested(verdict) == math.ceil(theirs)


def test_no_number_of_seeds_is_promised_for_a_mean_at_the_limit():
    assert "not even 100 seeds" in judge_bound(seeds(-1, 0, 1), op="<", bound=0.001).sentence


def test_an_estimate_outside_needs_to_clear_the_nearest_limit_only():
    to_the_bound = judge_bound(seeds(-1, 0, 1), op=">", bound=-0.5)
    to_the_margin = judge_metric(seeds(-1, 0, 1), claimed=-0.51, margin=0.01)  # the far limit is at -0.52
    assert suggested(to_the_margin) == suggested(to_the_bound)


@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_seeds_suggested_do_decide_about_four_times_in_five(statistic):
    values = seeds(9.7, 9.9, 10.1, 10.3, 10.5)
    spread = math.sqrt(0.1)  # squared deviations 0.16, 0.04, 0, 0.04, 0.16 over n - 1 = 4
    truth = 10.1 - (1.16296 * spread if statistic == "best of 5" else 0)

    def judge(row: dict[int, float]) -> Verdict:
        return judge_metric(row, claimed=truth - 0.1, margin=0.3, statistic=statistic)

    draws = np.random.default_rng(1).normal(10.1, spread, (2000, suggested(judge(values))))
    assert 0.75 < share(judge, draws) < 0.92


# --- simulated experiments ---------------------------------------------------------------------------------


def share(judge: Callable[..., Verdict], *draws: np.ndarray, outcome: Outcome = Outcome.REPRODUCED) -> float:
    """The share of experiments (rows of every array; columns are seeds) with this outcome."""
    with pytest.MonkeyPatch.context() as patch:
        # half the time, and no part of the outcome: how many seeds a sentence suggests
        patch.setattr(statistics, "_enough_seeds", lambda *_: None)
        experiments = zip(*(array.tolist() for array in draws), strict=True)
        outcomes = [judge(*(dict(enumerate(row)) for row in rows)).outcome for rows in experiments]
    return outcomes.count(outcome) / len(outcomes)


def paired_draws(n: int, difference: float, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two networks whose errors share a part per seed; lhs is worse by `difference` in truth."""
    rng = np.random.default_rng(seed)
    common = rng.normal(10, 1.0, (EXPERIMENTS, n))
    return (
        common + difference + rng.normal(0, spread, common.shape),
        common + rng.normal(0, spread, common.shape),
    )


def false_reproduced_of_means(n: int = 5, spread: float = 0.1, side: int = 1) -> float:
    draws = np.random.default_rng(n).normal(10 + side * 0.5, spread, (EXPERIMENTS, n))
    return share(lambda row: judge_metric(row, claimed=10, margin=0.5), draws)


def false_reproduced_of_bests(n: int = 5, spread: float = 0.1, side: int = 1) -> float:
    truth = 10 + side * 0.5  # of the expected best of five
    draws = np.random.default_rng(n).normal(truth + 1.16296 * spread, spread, (EXPERIMENTS, n))
    return share(lambda row: judge_metric(row, claimed=10, margin=0.5, statistic="best of 5"), draws)


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize(
    ("spread", "side", "least"), [(0.05, 1, AT_LEAST), (0.1, -1, AT_LEAST), (0.3, 1, 0), (1.0, 1, 0)]
)
def test_a_mean_at_the_margin_is_falsely_reproduced_in_five_percent(n, spread, side, least):
    assert least <= false_reproduced_of_means(n, spread, side) <= AT_MOST


@pytest.mark.parametrize(
    ("n", "spread", "side", "least"),
    [(5, 0.05, 1, AT_LEAST), (5, 0.05, -1, AT_LEAST), (5, 0.3, 1, 0), (5, 0.3, -1, 0), (3, 0.05, -1, AT_LEAST)],
)
def test_a_best_of_five_at_the_margin_is_falsely_reproduced_in_five_percent(n, spread, side, least):
    assert least <= false_reproduced_of_bests(n, spread, side) <= AT_MOST


@pytest.mark.parametrize("outcome", [Outcome.NOT_REPRODUCED, Outcome.BETTER])
def test_a_mean_at_the_margin_is_falsely_rejected_in_five_percent(outcome):
    truth = 10.5 if outcome is Outcome.NOT_REPRODUCED else 9.5
    draws = np.random.default_rng(3).normal(truth, 0.3, (EXPERIMENTS, 5))
    assert AT_LEAST <= share(lambda r: judge_metric(r, claimed=10, margin=0.5), draws, outcome=outcome) <= AT_MOST


@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_a_value_at_the_bound_is_falsely_reproduced_in_five_percent(statistic):
    truth = 10 + (1.16296 * 0.3 if statistic == "best of 5" else 0)
    draws = np.random.default_rng(4).normal(truth, 0.3, (EXPERIMENTS, 5))
    judged = share(lambda row: judge_bound(row, op="<", bound=10, statistic=statistic), draws)
    assert AT_LEAST <= judged <= AT_MOST


@pytest.mark.parametrize(
    ("n", "op", "margin", "difference"),
    [
        (3, ">", 0.0, 0.0),
        (5, ">", 0.0, 0.0),
        (5, ">", 0.5, 0.5),
        (5, "<", 0.5, -0.5),
        (3, "<=", 0.5, 0.5),
        (5, "<=", 0.5, 0.5),
        (3, "~", 0.5, 0.5),
        (5, "~", 0.5, -0.5),
    ],
)
def test_a_difference_at_the_margin_is_falsely_reproduced_in_five_percent(n, op, margin, difference):
    lhs, rhs = paired_draws(n, difference, spread=0.05)
    judged = share(lambda a, b: judge_ordering(a, b, op=op, margin=margin), lhs, rhs)
    assert AT_LEAST <= judged <= AT_MOST


@pytest.mark.parametrize(("n", "truth"), [(3, 1.1), (5, 0.9), (5, 1.1)])
def test_a_ratio_at_the_margin_is_falsely_reproduced_in_five_percent(n, truth):
    rng = np.random.default_rng(n)
    rhs = rng.lognormal(2, 0.5, (EXPERIMENTS, n))
    lhs = rhs * truth * rng.lognormal(0, 0.01, rhs.shape)
    judged = share(lambda a, b: judge_ratio(a, b, claimed=1.0, margin=0.1), lhs, rhs)
    assert AT_LEAST <= judged <= AT_MOST


def test_errors_counted_in_whole_images_stay_near_five_percent():
    # 360 test images: differences come in steps, and the same one three times looks like no spread at all
    rng = np.random.default_rng(6)
    lhs, rhs = (rng.binomial(360, 0.02, (EXPERIMENTS, 3)) / 3.6 for _ in range(2))
    assert share(lambda a, b: judge_ordering(a, b, op=">"), lhs, rhs) <= 0.06


@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_a_true_claim_is_reproduced_when_the_spread_is_small(statistic):
    truth = 10 + (1.16296 * 0.1 if statistic == "best of 5" else 0)
    draws = np.random.default_rng(7).normal(truth, 0.1, (2000, 5))
    assert share(lambda r: judge_metric(r, claimed=10, margin=0.5, statistic=statistic), draws) > 0.99


@pytest.mark.parametrize(("op", "difference"), [(">", 1.0), ("<", -1.0), ("<=", 0.0), ("~", 0.0)])
def test_a_true_ordering_is_reproduced_when_the_spread_is_small(op, difference):
    lhs, rhs = (draws[:2000] for draws in paired_draws(5, difference, spread=0.07))
    assert share(lambda a, b: judge_ordering(a, b, op=op, margin=0.5), lhs, rhs) > 0.99


@pytest.mark.parametrize(("n", "statistic", "below"), [(10, "best of 2", 0.56419), (3, "best of 5", 1.16296)])
def test_the_best_of_n_is_estimated_without_bias_from_more_or_fewer_seeds(n, statistic, below):
    draws = np.random.default_rng(8).normal(10, 1, (EXPERIMENTS, n))
    measured = [
        judge_metric(dict(enumerate(row)), claimed=10, margin=90, statistic=statistic).measured
        for row in draws.tolist()
    ]
    assert np.mean(measured) == pytest.approx(10 - below, abs=0.03)


# --- the simulations catch faults --------------------------------------------------------------------------


def test_fault_normal_quantiles_for_so_few_seeds_are_caught(monkeypatch):
    monkeypatch.setattr(statistics, "t_quantile", lambda probability, *_: 1.645 if probability > 0.5 else -1.645)
    assert false_reproduced_of_means(3) > AT_MOST


def test_fault_a_level_of_ten_percent_is_caught(monkeypatch):
    monkeypatch.setattr(statistics, "ALPHA", 0.1)
    assert false_reproduced_of_means() > AT_MOST


def test_fault_the_estimate_alone_inside_the_margin_is_caught(monkeypatch):
    monkeypatch.setattr(statistics, "t_quantile", lambda *_: 0.0)
    assert false_reproduced_of_means() > AT_MOST


def test_fault_a_best_judged_by_the_interval_of_the_mean_is_caught(monkeypatch):
    original = statistics.t_quantile
    monkeypatch.setattr(statistics, "t_quantile", lambda probability, df, _: original(probability, df, 0.0))
    assert false_reproduced_of_bests(side=-1) > AT_MOST


def test_fault_a_best_with_its_uncertain_spread_ignored_is_caught(monkeypatch):
    original = statistics.t_quantile

    def shifted(probability: float, df: int, nc: float) -> float:
        return original(probability, df, 0.0) + nc

    monkeypatch.setattr(statistics, "t_quantile", shifted)
    assert max(false_reproduced_of_bests(side=side) for side in (1, -1)) > AT_MOST


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


def test_no_ratio_is_formed_with_an_error_of_zero():
    """Few test images, and none of them missed: not a mistake of the user's, and no evidence either."""
    for lhs, rhs in ((seeds(1, 2, 3), seeds(1, 0, 2)), (seeds(1, 0, 2), seeds(1, 2, 3))):
        verdict = judge_ratio(lhs, rhs, claimed=1, margin=0.1)
        assert (verdict.outcome, verdict.reason, verdict.n) == (Outcome.CANNOT_JUDGE, Reason.UNDERPOWERED, 3)
        assert "0 was measured at seed 1" in verdict.sentence


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


def test_a_sentence_says_what_was_compared_with_what():
    assert judge_metric(seeds(*NARROW), claimed=8.75, margin=0.5).sentence == (
        "The mean error of 3 seeds is 10 % (90 % interval 9.831 to 10.17 %); claimed is 8.75 ± 0.5 %, "
        "and the whole interval lies above that."
    )


def test_a_best_of_n_is_named_as_one():
    verdict = judge_metric(seeds(*NARROW), claimed=9.9, margin=0.5, statistic="best of 5")
    assert "best of 5 runs, estimated from 3 seeds" in verdict.sentence


@pytest.mark.parametrize("values", [(8.75,) * 3, (0.1,) * 3, (0.0,) * 5, (1e6 / 3,) * 7])
@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_seeds_without_spread_are_judged_by_where_they_lie(values, statistic):
    inside = judge_metric(seeds(*values), claimed=values[0] + 0.3, margin=0.3, statistic=statistic)
    above = judge_metric(seeds(*values), claimed=values[0] - 0.3, margin=0.2, statistic=statistic)
    below = judge_metric(seeds(*values), claimed=values[0] + 0.3, margin=0.2, statistic=statistic)
    assert [v.outcome for v in (inside, above, below)] == ["reproduced", "not reproduced", "better than claimed"]
    assert inside.interval == (inside.measured, inside.measured)
    assert inside.p_value is None
    assert "the same at every seed" in inside.sentence


def test_differences_without_spread_are_judged_by_where_they_lie():
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
def test_a_run_that_diverged_counts_and_is_named(bad):
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


def test_seeds_present_on_one_side_only_are_left_out_and_named():
    lhs, rhs = {1: 2.0, 2: 3.1, 3: 4.0, 7: 99.0}, {1: 1.0, 2: 2.0, 3: 3.1, 8: 0.0, 9: 0.0}
    verdict = judge_ordering(lhs, rhs, op=">")
    assert verdict.n == 3
    assert verdict.measured == pytest.approx(1.0)
    assert "left out: seed 7 only on the left and seeds 8 and 9 only on the right" in verdict.sentence


def test_pairing_is_by_seed_and_not_by_position():
    lhs = {0: 1.1, 1: 5.0, 2: 9.1}
    rhs = {2: 8.0, 1: 4.1, 0: 0.0}
    assert judge_ordering(lhs, rhs, op=">").outcome is Outcome.REPRODUCED


def test_no_seed_in_common_cannot_be_judged():
    verdict = judge_ordering({1: 1.0}, {2: 1.0}, op=">")
    assert (verdict.reason, verdict.n, verdict.measured) == (Reason.UNDERPOWERED, 0, None)


def made(outcome: Outcome) -> Verdict:
    reason = Reason.NOT_RUN if outcome is Outcome.CANNOT_JUDGE else None
    return Verdict(outcome, reason, 1.0, (0.5, 1.5), 0.9, 0.01, None, 5, "It was so.")


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
def test_a_smaller_run_speaks_of_a_trend_at_most(full, trend):
    verdict = as_trend(made(full), "at laptop scale on digits")
    assert verdict.outcome is trend
    assert as_trend(verdict, "elsewhere") == verdict
    assert ("; at laptop scale on digits, this" in verdict.sentence) == (full != trend)
    assert ("trend only" in verdict.sentence) == (full != trend)
    assert dataclasses.replace(verdict, outcome=full, sentence="It was so.") == made(full)


def test_a_reason_goes_with_cannot_judge_and_only_with_it():
    with pytest.raises(ValueError, match="only with it"):
        Verdict(Outcome.CANNOT_JUDGE, None, None, None, None, None, None, 0, "")
    with pytest.raises(ValueError, match="only with it"):
        dataclasses.replace(made(Outcome.REPRODUCED), reason=Reason.NO_DATA)
    with pytest.raises(ValueError, match="level"):
        dataclasses.replace(made(Outcome.REPRODUCED), level=None)
    verdict = cannot_judge(Reason.NO_DATA, "ImageNet is not here.")
    assert (verdict.outcome, verdict.reason, verdict.n) == (Outcome.CANNOT_JUDGE, Reason.NO_DATA, 0)


def test_reasons_are_those_of_the_design():
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
        (lambda: judge_metric(V, claimed=1, margin=0), "needs a finite margin above zero, not 0"),
        (lambda: judge_metric(V, claimed=1, margin=-1), "above zero, not -1"),
        (lambda: judge_metric(V, claimed=1, margin=math.nan), "above zero, not nan"),
        (lambda: judge_metric(V, claimed=1, margin=1, statistic="median"), "unknown statistic 'median'"),
        (lambda: judge_metric(V, claimed=1, margin=1, statistic="best of N"), "unknown statistic"),
        (lambda: judge_metric(V, claimed=1, margin=1, statistic="best of 0"), "N from 1 to 1000"),
        (lambda: judge_bound(V, op="<", bound=math.inf), "bound must be a finite number"),
        (lambda: judge_bound(V, op="<=", bound=1), "unknown op '<='"),
        (lambda: judge_bound({}, op="<", bound=1), "no values"),
        (lambda: judge_ordering(V, V, op="=="), "unknown op '=='"),
        (lambda: judge_ordering(V, V, op="<="), "above zero"),
        (lambda: judge_ordering(V, V, op="~"), "above zero"),
        (lambda: judge_ordering(V, V, op=">", margin=-0.1), "zero or above, not -0.1"),
        (lambda: judge_ordering(V, {}, op=">"), "no values to judge on the right"),
        (lambda: judge_ratio(V, seeds(1, -1, 2), claimed=1, margin=0.1), "right side has none at seed 1"),
        (lambda: judge_ratio(V, V, claimed=1, margin=1), "a ratio is positive"),
        (lambda: judge_ratio(V, V, claimed=1, margin=0), "above zero"),
        (lambda: judge_exact([1], claimed=2, op="<"), "compares numbers"),
        (lambda: judge_exact("x", claimed=2, op=">="), "compares numbers"),
        (lambda: judge_exact(1, claimed=math.nan), "NaN"),
        (lambda: judge_exact(math.nan, claimed=1), "NaN"),
        (lambda: judge_exact(1, claimed=1, margin=-1), "zero or above"),
        (lambda: judge_exact(1, claimed=2, corrected=2), "is the claimed value itself"),
        (lambda: finite_test_set_noise(101, 10), "between 0 and 100"),
        (lambda: finite_test_set_noise(10, 0), "at least one image"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_importing_the_module_loads_no_heavy_package():
    heavy = "{'numpy', 'scipy', 'statsmodels', 'torch', 'mlflow'}"
    code = f"import sys, pipeline.verdict; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- properties --------------------------------------------------------------------------------------------

hundredths = st.integers(0, 10_000).map(lambda i: i / 100)
samples = st.lists(hundredths, min_size=3, max_size=6).map(lambda values: seeds(*values))
margins = st.integers(1, 1000).map(lambda i: i / 100)
seed_statistics = st.sampled_from(["mean", "best of 5"])


@settings(deadline=None)
@given(values=samples, claimed=hundredths, margin=margins, wider=margins, statistic=seed_statistics)
def test_a_wider_margin_keeps_a_claim_reproduced(values, claimed, margin, wider, statistic):
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
def test_shifting_values_and_claim_together_changes_nothing(values, claimed, margin, shift, statistic):
    shifted = {seed: value + shift for seed, value in values.items()}
    before = judge_metric(values, claimed=claimed, margin=margin, statistic=statistic)
    after = judge_metric(shifted, claimed=claimed + shift, margin=margin, statistic=statistic)
    assert after.outcome is before.outcome
    assert after.measured == pytest.approx(before.measured + shift)


@settings(deadline=None)
@given(values=samples, others=samples, data=st.data())
def test_the_order_of_seeds_is_irrelevant(values, others, data):
    shuffled = dict(data.draw(st.permutations(list(values.items()))))
    assert judge_metric(shuffled, claimed=50, margin=5) == judge_metric(values, claimed=50, margin=5)
    assert judge_ordering(shuffled, others, op=">") == judge_ordering(values, others, op=">")


@settings(deadline=None)
@given(lhs=samples, rhs=samples, margin=margins)
def test_swapping_sides_mirrors_an_ordering(lhs, rhs, margin):
    there = judge_ordering(lhs, rhs, op=">", margin=margin)
    back = judge_ordering(rhs, lhs, op="<", margin=margin)
    assert (there.outcome, there.p_value) == (back.outcome, pytest.approx(back.p_value))


@settings(deadline=None)
@given(values=samples, claimed=hundredths, margin=margins, statistic=seed_statistics)
def test_estimate_interval_p_value_and_outcome_agree(values, claimed, margin, statistic):
    verdict = judge_metric(values, claimed=claimed, margin=margin, statistic=statistic)
    low, high = verdict.interval
    assert low <= verdict.measured <= high
    if verdict.p_value is not None and abs(verdict.p_value - 0.05) > 1e-9:
        assert (verdict.outcome is Outcome.REPRODUCED) == (verdict.p_value < 0.05)
