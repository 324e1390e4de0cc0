"""Statistical tests behind the verdicts. Pure."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

ALPHA = 0.05  # of each one-sided test

LEVEL = 1 - 2 * ALPHA  # of every interval

MIN_SEEDS = 3  # fewer say next to nothing about a spread

MAX_SUGGESTED_SEEDS = 100  # more are not suggested to anybody

POWER = 0.8  # "probably enough" seeds: four times in five

ROUNDING = 1e-12  # relative; closer than this, two numbers differ by floating-point rounding only


def finite_test_set_noise(error_pct: float, images: int) -> float:
    """Standard error, in points of percent, of an error rate counted on `images` test images (binomial)."""
    if not 0 <= error_pct <= 100:
        raise ValueError(f"an error rate lies between 0 and 100 %, not at {error_pct}")
    if images < 1:
        raise ValueError(f"an error rate needs at least one image, not {images}")
    share = error_pct / 100
    return 100 * math.sqrt(share * (1 - share) / images)


@dataclass(frozen=True)
class IntervalTest:
    """Where the interval of an estimate lies with respect to a claimed region."""

    place: Literal["inside", "above", "below", "across"]
    estimate: float
    low: float  # the interval's ends
    high: float
    p_value: float | None  # None: the values have no spread, so there is nothing to test
    mean_over_spread: float | None
    n: int
    enough: int | None  # "across": seeds that would probably decide; None: more than MOST_SEEDS


def interval_test(
    values: Sequence[float],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    k: float = 0.0,
    scale: float = 0.0,
) -> IntervalTest:
    """Test whether mu + k sigma of the normal population behind `values` lies in the region low..high.

    sqrt(n) (mean - (mu + k sigma)) / s follows a noncentral t with n - 1 degrees of freedom and
    noncentrality -k sqrt(n). A region with one limit leaves it out ("more than"), one with two includes them
    (a margin does); this matters only for values without spread. `scale` is the size of the numbers that the
    values are differences of, for telling a spread from rounding.
    """
    n, mean = len(values), average(values)
    limits = [limit for limit in (low, high) if math.isfinite(limit)]
    rounding = ROUNDING * max(scale, *(abs(x) for x in (*values, *limits)))
    if max(values) - min(values) <= rounding:
        slack = rounding if len(limits) == 2 else -rounding
        place = _place(mean, mean, low - slack, high + slack)
        return IntervalTest(place, mean, mean, mean, None, None, n, None)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    error = spread / math.sqrt(n)
    df, nc = n - 1, -k * math.sqrt(n)
    lower = mean - t_quantile(1 - ALPHA, df, nc) * error
    upper = mean - t_quantile(ALPHA, df, nc) * error
    estimate = mean + k * spread / _c4(n)
    place = _place(lower, upper, low, high)
    # one p per limit: how probable is an estimate as far inside, if the truth were at that limit?
    p_low = t_probability_below(-(mean - low) / error, df, -nc) if low in limits else 0.0
    p_high = t_probability_below((mean - high) / error, df, nc) if high in limits else 0.0
    enough = _enough_seeds(n, estimate, spread, low, high, k) if place == "across" else None
    return IntervalTest(place, estimate, lower, upper, max(p_low, p_high), mean / spread, n, enough)


def _place(lower: float, upper: float, low: float, high: float) -> Literal["inside", "above", "below", "across"]:
    """Where the interval lower..upper lies with respect to the region low..high."""
    if low <= lower and upper <= high:
        return "inside"
    if lower > high:
        return "above"
    if upper < low:
        return "below"
    return "across"


def _enough_seeds(n: int, estimate: float, spread: float, low: float, high: float, k: float) -> int | None:
    """Seeds with which the interval would probably no longer lie across a limit; None: over MOST_SEEDS.

    Takes estimate and spread for the truth: a rough guide, and rounded like one.
    """
    if low <= estimate <= high:  # then every limit must be cleared, else the nearest
        distances = [abs(limit - estimate) for limit in (low, high) if math.isfinite(limit)]
    else:
        distances = [low - estimate if estimate < low else estimate - high]

    def power(seeds: int) -> float:
        error = spread * math.sqrt(1 / seeds + k * k / (2 * (seeds - 1)))
        needed = t_quantile(1 - ALPHA, seeds - 1, 0.0)
        nearby = [d / error for d in distances if d < 30 * error]  # further off is certain
        return 1 - sum(t_probability_below(needed, seeds - 1, d) for d in nearby)

    more = range(n + 1, MAX_SUGGESTED_SEEDS + 1)
    found = bisect_left(more, POWER, key=power)
    if found == len(more):
        return None
    step = 1 if more[found] <= 10 else 5 if more[found] <= 30 else 10
    return math.ceil(more[found] / step) * step


@cache
def t_quantile(probability: float, df: int, nc: float) -> float:
    """Quantile of the noncentral t distribution; nc = 0 is Student's."""
    from scipy import special

    return float(special.nctdtrit(df, nc, probability) if nc else special.stdtrit(df, probability))


def t_probability_below(t: float, df: int, nc: float) -> float:
    """P(T < t) for a noncentral t; nc = 0 is Student's."""
    from scipy import special

    return float(special.nctdtr(df, nc, t) if nc else special.stdtr(df, t))


@cache
def expected_best(draws: int) -> float:
    """c_N: the least of N draws from a normal population is expected c_N sigma below its mean.

    Half of Tippett's integral for the range, of 1 - Phi(x)^N - (1 - Phi(x))^N over all x; c_1 = 0.
    """
    from scipy import integrate, special

    def outside(x: float) -> float:
        return float(1 - special.ndtr(x) ** draws - special.ndtr(-x) ** draws)

    # the integrand is even; beyond 40 sigma it is zero for any N
    return float(integrate.quad(outside, 0, 40, points=[4], epsabs=1e-12)[0])


def _c4(n: int) -> float:
    """E[s] / sigma for n normal draws: dividing s by it removes the bias of mean + k s."""
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def statistic_sigmas(statistic: str) -> float:
    """The k of mu + k sigma that a statistic estimates."""
    if statistic == "mean":
        return 0.0
    draws = statistic.removeprefix("best of ")
    if draws == statistic or not (draws.isascii() and draws.isdigit() and 1 <= int(draws) <= 1000):
        raise ValueError(f"unknown statistic {statistic!r}; use 'mean' or 'best of N', N from 1 to 1000")
    return -expected_best(int(draws)) if int(draws) > 1 else 0.0


def average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
