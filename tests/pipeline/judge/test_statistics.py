"""Test the statistics against published tables, scipy, statsmodels and ten thousand simulated experiments.

With the true value exactly at the margin, at most 5 % of experiments may be judged `reproduced`, or `reached` with
a recipe that departs from the paper's.
"""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from pipeline.judge import statistics
from pipeline.judge.rules import conclude
from pipeline.judge.statistics import expected_best, finite_test_set_noise
from pipeline.judge.trained import judge_bound, judge_gain, judge_metric, judge_ordering, judge_ratio
from pipeline.judge.verdict import Outcome, Verdict

EXPERIMENTS = 10_000
MAX_FALSE = 0.055  # 5 %, plus 2.3 standard errors of a share of 10,000
MIN_FALSE = 0.045  # where the test is exact; a test that never rejects would have fewer


def seeds(*values: float) -> dict[int, float]:
    """Return the values by seed: 0, 1, 2, ..."""
    return dict(enumerate(values))


# --- published tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draws", "c"),  # Tippett 1925; in closed form 1/sqrt(pi) and 3/(2 sqrt(pi)) for 2 and 3
    [(1, 0.0), (2, 0.56419), (3, 0.84628), (4, 1.02938), (5, 1.16296), (10, 1.53875), (100, 2.50759)],
)
def test_expected_best_matches_the_table(draws, c):
    assert expected_best(draws) == pytest.approx(c, abs=6e-6)


@pytest.mark.parametrize("draws", [2, 3, 5, 50, 1000])
def test_expected_best_is_the_integral(draws):
    def outside(x):
        return 1 - stats.norm.cdf(x) ** draws - stats.norm.cdf(-x) ** draws

    assert expected_best(draws) == pytest.approx(integrate.quad(outside, 0, 40, points=[4])[0], abs=1e-9)


@pytest.mark.parametrize(("n", "t"), [(3, 2.920), (5, 2.132), (10, 1.833)])  # Student's t, 95 %, n - 1 df
def test_interval_of_the_mean_has_the_tabulated_quantile(n, t):
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


def test_noise_of_impossible_numbers_is_refused():
    with pytest.raises(ValueError, match="between 0 and 100"):
        finite_test_set_noise(101, 10)
    with pytest.raises(ValueError, match="must be >= 1"):
        finite_test_set_noise(10, 0)


def test_effect_is_mean_difference_over_spread():
    verdict = judge_ordering(seeds(1, 2, 3), seeds(0, 0, 0), op=">")
    assert verdict.effect == pytest.approx(2.0)  # mean 2, spread 1
    assert verdict.measured == pytest.approx(2.0)


# --- agreement with scipy and statsmodels ------------------------------------------------------------------

SAMPLES = [np.random.default_rng(i).normal(8.75, 0.3, (2, n)) for i, n in enumerate([3, 5, 5, 8, 20])]


@pytest.mark.parametrize("sample", SAMPLES)
def test_metric_agrees_with_statsmodels(sample):
    verdict = judge_metric(seeds(*sample[0]), claimed=8.75, margin=0.5)
    expected = DescrStatsW(sample[0])
    assert verdict.p_value == pytest.approx(expected.ttost_mean(8.25, 9.25)[0], rel=1e-9)
    assert verdict.interval == pytest.approx(expected.tconfint_mean(alpha=0.1), rel=1e-9)
    assert (verdict.outcome is Outcome.REPRODUCED) == (verdict.p_value <= 0.05)


@pytest.mark.parametrize("sample", SAMPLES)
def test_paired_equivalence_agrees_with_statsmodels(sample):
    verdict = judge_ordering(seeds(*sample[0]), seeds(*sample[1]), op="~", margin=0.4)
    assert verdict.p_value == pytest.approx(ttost_paired(sample[0], sample[1], -0.4, 0.4)[0], rel=1e-9)


@pytest.mark.parametrize("sample", SAMPLES)
def test_gain_agrees_with_statsmodels(sample):
    verdict = judge_gain(seeds(*sample[0]), seeds(*sample[1]), claimed=0.3, margin=0.2)
    assert verdict.p_value == pytest.approx(ttost_paired(sample[1], sample[0], 0.1, 0.5)[0], rel=1e-9)
    assert verdict.interval == pytest.approx(
        tuple(stats.ttest_rel(sample[1], sample[0]).confidence_interval(0.9)), rel=1e-9
    )


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(
    ("op", "alternative", "shift"), [(">", "greater", 0.2), ("<", "less", -0.2), ("<=", "less", 0.2)]
)
def test_orderings_agree_with_scipy(sample, op, alternative, shift):
    verdict = judge_ordering(seeds(*sample[0]), seeds(*sample[1]), op=op, margin=0.2)
    expected = stats.ttest_rel(sample[0], sample[1] + shift, alternative=alternative)
    assert verdict.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    interval = stats.ttest_rel(sample[0], sample[1]).confidence_interval(0.9)
    assert verdict.interval == pytest.approx(tuple(interval), rel=1e-9)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(("op", "alternative"), [("<", "less"), (">", "greater")])
def test_bounds_agree_with_scipy(sample, op, alternative):
    verdict = judge_bound(seeds(*sample[0]), op=op, bound=8.9)
    assert verdict.p_value == pytest.approx(stats.ttest_1samp(sample[0], 8.9, alternative=alternative).pvalue)


@pytest.mark.parametrize("sample", SAMPLES)
def test_ratio_agrees_with_statsmodels_on_logarithms(sample):
    verdict = judge_ratio(seeds(*sample[0]), seeds(*sample[1]), claimed=1.0, margin=0.1)
    expected = ttost_paired(sample[0], sample[1], 0.9, 1.1, transform=np.log)
    assert verdict.p_value == pytest.approx(expected[0], rel=1e-9)
    assert verdict.measured == pytest.approx(stats.gmean(sample[0] / sample[1]))


def suggested(verdict: Verdict) -> int:
    """Return the number of seeds that a sentence suggests."""
    return int(re.search(r"about (\d+) seeds would probably be enough", verdict.sentence)[1])


@pytest.mark.parametrize("distance", [0.4, 0.5, 0.7, 1.0])  # of the mean from the bound, in spreads
def test_suggested_seeds_match_a_power_calculation(distance):
    verdict = judge_bound(seeds(-1, 0, 1), op="<", bound=distance)
    expected = TTestPower().solve_power(distance, alpha=0.05, power=0.8, alternative="larger")
    assert expected <= suggested(verdict) <= expected + 10
    if expected <= 10:
        assert suggested(verdict) == math.ceil(expected)


def test_mean_at_the_limit_gets_no_suggested_number_of_seeds():
    assert "not even 100 seeds" in judge_bound(seeds(-1, 0, 1), op="<", bound=0.001).sentence


def test_suggested_seeds_clear_only_the_nearest_limit_from_outside():
    to_the_bound = judge_bound(seeds(-1, 0, 1), op=">", bound=-0.5)
    to_the_margin = judge_metric(seeds(-1, 0, 1), claimed=-0.51, margin=0.01)  # the far limit is at -0.52
    assert suggested(to_the_margin) == suggested(to_the_bound)


@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_suggested_seeds_decide_about_four_times_in_five(statistic):
    values = seeds(9.7, 9.9, 10.1, 10.3, 10.5)
    spread = math.sqrt(0.1)  # squared deviations 0.16, 0.04, 0, 0.04, 0.16 over n - 1 = 4
    truth = 10.1 - (1.16296 * spread if statistic == "best of 5" else 0)

    def judge(row: dict[int, float]) -> Verdict:
        return judge_metric(row, claimed=truth - 0.1, margin=0.3, statistic=statistic)

    draws = np.random.default_rng(1).normal(10.1, spread, (2000, suggested(judge(values))))
    assert 0.75 < share(judge, draws) < 0.92


def test_expected_median_of_normal_draws_is_their_mean():
    draws = np.random.default_rng(0).normal(10, 1, (200_000, 5))
    assert np.median(draws, axis=1).mean() == pytest.approx(
        10 + statistics.statistic_sigmas("median of 5"), abs=0.01
    )
    assert draws.min(axis=1).mean() == pytest.approx(10 + statistics.statistic_sigmas("best of 5"), abs=0.01)


# --- simulated experiments ---------------------------------------------------------------------------------


def share(judge: Callable[..., Verdict], *draws: np.ndarray, outcome: Outcome = Outcome.REPRODUCED) -> float:
    """Return the share of experiments (rows of every array; columns are seeds) with this outcome."""
    with pytest.MonkeyPatch.context() as patch:
        # the suggested number of seeds takes half the time and does not change the outcome
        patch.setattr(statistics, "_enough_seeds", lambda *_: None)
        experiments = zip(*(array.tolist() for array in draws), strict=True)
        outcomes = [judge(*(dict(enumerate(row)) for row in rows)).outcome for rows in experiments]
    return outcomes.count(outcome) / len(outcomes)


def paired_draws(n: int, difference: float, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return errors of two networks that share a part per seed; the true mean of lhs is higher by `difference`."""
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
    ("spread", "side", "least"), [(0.05, 1, MIN_FALSE), (0.1, -1, MIN_FALSE), (0.3, 1, 0), (1.0, 1, 0)]
)
def test_mean_at_the_margin_is_falsely_reproduced_in_five_percent(n, spread, side, least):
    assert least <= false_reproduced_of_means(n, spread, side) <= MAX_FALSE


@pytest.mark.parametrize(
    ("n", "spread", "side", "least"),
    [(5, 0.05, 1, MIN_FALSE), (5, 0.05, -1, MIN_FALSE), (5, 0.3, 1, 0), (5, 0.3, -1, 0), (3, 0.05, -1, MIN_FALSE)],
)
def test_best_of_five_at_the_margin_is_falsely_reproduced_in_five_percent(n, spread, side, least):
    assert least <= false_reproduced_of_bests(n, spread, side) <= MAX_FALSE


@pytest.mark.parametrize("outcome", [Outcome.NOT_REPRODUCED, Outcome.BETTER])
def test_mean_at_the_margin_is_falsely_rejected_in_five_percent(outcome):
    truth = 10.5 if outcome is Outcome.NOT_REPRODUCED else 9.5
    draws = np.random.default_rng(3).normal(truth, 0.3, (EXPERIMENTS, 5))
    assert (
        MIN_FALSE <= share(lambda r: judge_metric(r, claimed=10, margin=0.5), draws, outcome=outcome) <= MAX_FALSE
    )


@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_value_at_the_bound_is_falsely_reproduced_in_five_percent(statistic):
    truth = 10 + (1.16296 * 0.3 if statistic == "best of 5" else 0)
    draws = np.random.default_rng(4).normal(truth, 0.3, (EXPERIMENTS, 5))
    judged = share(lambda row: judge_bound(row, op="<", bound=10, statistic=statistic), draws)
    assert MIN_FALSE <= judged <= MAX_FALSE


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
def test_difference_at_the_margin_is_falsely_reproduced_in_five_percent(n, op, margin, difference):
    lhs, rhs = paired_draws(n, difference, spread=0.05)
    judged = share(lambda a, b: judge_ordering(a, b, op=op, margin=margin), lhs, rhs)
    assert MIN_FALSE <= judged <= MAX_FALSE


@pytest.mark.parametrize(("n", "truth"), [(3, 1.7), (5, 1.1), (5, 1.7)])
def test_gain_at_the_margin_is_falsely_reproduced_in_five_percent(n, truth):
    lhs, rhs = paired_draws(n, -truth, spread=0.05)
    judged = share(lambda a, b: judge_gain(a, b, claimed=1.4, margin=0.3), lhs, rhs)
    assert MIN_FALSE <= judged <= MAX_FALSE


def at_the_margin(kind: str) -> list[Verdict]:
    """Return the verdicts of simulated experiments of a kind of claim whose true value is at the margin."""
    rng = np.random.default_rng(9)
    means = rng.normal(10.5, 0.1, (EXPERIMENTS, 5))
    worse, base = paired_draws(5, 0.5, spread=0.05)
    ratio = base * 1.1 * rng.lognormal(0, 0.01, base.shape)
    judge, *draws = {
        "metric": (lambda a: judge_metric(a, claimed=10, margin=0.5), means),
        "bound": (lambda a: judge_bound(a, op="<", bound=10.5), means),
        "ordering": (lambda a, b: judge_ordering(a, b, op=">", margin=0.5), worse, base),
        "gain": (lambda a, b: judge_gain(a, b, claimed=0.2, margin=0.3), base, worse),
        "ratio": (lambda a, b: judge_ratio(a, b, claimed=1.0, margin=0.1), ratio, base),
    }[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_enough_seeds", lambda *_: None)
        rows = zip(*(array.tolist() for array in draws), strict=True)
        return [judge(*(dict(enumerate(row)) for row in sides)) for sides in rows]


@pytest.mark.parametrize("kind", ["metric", "bound", "ordering", "gain", "ratio"])
def test_rules_give_a_good_word_falsely_in_five_percent(kind):
    verdicts = at_the_margin(kind)
    choices, departures = {"choices": ["A choice."]}, {"departures": ["A departure."]}
    for deviations, outcome in (
        ({}, Outcome.REPRODUCED),
        (choices, Outcome.REPRODUCED),
        (departures, Outcome.REACHED),
        (choices | departures, Outcome.REACHED),
    ):
        concluded = [conclude(verdict, number=kind != "ordering", full=True, **deviations) for verdict in verdicts]
        outcomes = [verdict.outcome for verdict in concluded]
        good = {Outcome.REPRODUCED, Outcome.REACHED, Outcome.TREND}
        assert good & set(outcomes) == {outcome}
        assert MIN_FALSE <= outcomes.count(outcome) / EXPERIMENTS <= MAX_FALSE


@pytest.mark.parametrize(("n", "truth"), [(3, 1.1), (5, 0.9), (5, 1.1)])
def test_ratio_at_the_margin_is_falsely_reproduced_in_five_percent(n, truth):
    rng = np.random.default_rng(n)
    rhs = rng.lognormal(2, 0.5, (EXPERIMENTS, n))
    lhs = rhs * truth * rng.lognormal(0, 0.01, rhs.shape)
    judged = share(lambda a, b: judge_ratio(a, b, claimed=1.0, margin=0.1), lhs, rhs)
    assert MIN_FALSE <= judged <= MAX_FALSE


def test_errors_of_few_test_images_are_falsely_reproduced_in_about_five_percent():
    # 360 test images: differences are discrete, and three equal ones have no spread
    rng = np.random.default_rng(6)
    lhs, rhs = (rng.binomial(360, 0.02, (EXPERIMENTS, 3)) / 3.6 for _ in range(2))
    assert share(lambda a, b: judge_ordering(a, b, op=">"), lhs, rhs) <= 0.06


@pytest.mark.parametrize("statistic", ["mean", "best of 5"])
def test_true_claim_with_a_small_spread_is_reproduced(statistic):
    truth = 10 + (1.16296 * 0.1 if statistic == "best of 5" else 0)
    draws = np.random.default_rng(7).normal(truth, 0.1, (2000, 5))
    assert share(lambda r: judge_metric(r, claimed=10, margin=0.5, statistic=statistic), draws) > 0.99


@pytest.mark.parametrize(("op", "difference"), [(">", 1.0), ("<", -1.0), ("<=", 0.0), ("~", 0.0)])
def test_true_ordering_with_a_small_spread_is_reproduced(op, difference):
    lhs, rhs = (draws[:2000] for draws in paired_draws(5, difference, spread=0.07))
    assert share(lambda a, b: judge_ordering(a, b, op=op, margin=0.5), lhs, rhs) > 0.99


@pytest.mark.parametrize(("n", "statistic", "below"), [(10, "best of 2", 0.56419), (3, "best of 5", 1.16296)])
def test_best_of_n_is_estimated_without_bias_from_more_or_fewer_seeds(n, statistic, below):
    draws = np.random.default_rng(8).normal(10, 1, (EXPERIMENTS, n))
    measured = [
        judge_metric(dict(enumerate(row)), claimed=10, margin=90, statistic=statistic).measured
        for row in draws.tolist()
    ]
    assert np.mean(measured) == pytest.approx(10 - below, abs=0.03)


# --- faults that the simulations detect --------------------------------------------------------------------


def test_normal_quantiles_are_detected(monkeypatch):
    monkeypatch.setattr(statistics, "t_quantile", lambda probability, *_: 1.645 if probability > 0.5 else -1.645)
    assert false_reproduced_of_means(3) > MAX_FALSE


def test_level_of_ten_percent_is_detected(monkeypatch):
    monkeypatch.setattr(statistics, "ALPHA", 0.1)
    assert false_reproduced_of_means() > MAX_FALSE


def test_estimate_without_interval_is_detected(monkeypatch):
    monkeypatch.setattr(statistics, "t_quantile", lambda *_: 0.0)
    assert false_reproduced_of_means() > MAX_FALSE


def test_interval_of_the_mean_for_a_best_is_detected(monkeypatch):
    original = statistics.t_quantile
    monkeypatch.setattr(statistics, "t_quantile", lambda probability, df, _: original(probability, df, 0.0))
    assert false_reproduced_of_bests(side=-1) > MAX_FALSE


def test_ignored_uncertainty_of_the_spread_is_detected(monkeypatch):
    original = statistics.t_quantile

    def shifted(probability: float, df: int, nc: float) -> float:
        return original(probability, df, 0.0) + nc

    monkeypatch.setattr(statistics, "t_quantile", shifted)
    assert max(false_reproduced_of_bests(side=side) for side in (1, -1)) > MAX_FALSE
