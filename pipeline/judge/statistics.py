"""Statistical tests behind the verdicts. Pure."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

ALPHA = 0.05  # of each one-sided test

LEVEL = 1 - 2 * ALPHA  # confidence level of every interval

MIN_SEEDS = 3  # fewer hardly show a spread

MAX_SUGGESTED_SEEDS = 100  # verdicts never suggest more

POWER = 0.8  # of the suggested number of seeds

ROUNDING = 1e-12  # relative difference that counts as floating-point rounding


def finite_test_set_noise(error_pct: float, images: int) -> float:
    """Return the binomial standard error, in percentage points, of an error rate measured on `images` images."""
    if not 0 <= error_pct <= 100:
        raise ValueError(f"an error rate must be between 0 and 100 %, not {error_pct}")
    if images < 1:
        raise ValueError(f"the number of images must be >= 1, not {images}")
    share = error_pct / 100
    return 100 * math.sqrt(share * (1 - share) / images)


@dataclass(frozen=True)
class IntervalTest:
    """Estimate, its interval, and the place of the interval with respect to a claimed region."""

    place: Literal["inside", "above", "below", "across"]
    estimate: float
    low: float  # the interval's ends
    high: float
    p_value: float | None  # None if the values have no spread
    mean_over_spread: float | None
    n: int
    enough: int | None  # for "across": seeds that would probably decide; None: over MAX_SUGGESTED_SEEDS


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
    noncentrality -k sqrt(n). A region with one limit excludes it ("more than"), one with two includes both (a
    margin); this matters only for values without spread. `scale` is the size of the numbers whose differences
    `values` are: a spread below its rounding error counts as none.
    """
    n, mean = len(values), average(values)
    limits = [limit for limit in (low, high) if math.isfinite(limit)]
    rounding = ROUNDING * max(scale, *(abs(x) for x in (*values, *limits)))
    if max(values) - min(values) <= rounding:
        slack = rounding if len(limits) == 2 else -rounding
        place = _place(mean, mean, low - slack, high + slack)
        return IntervalTest(place, mean, mean, mean, None, None, n, None)
    spread = sample_spread(values)
    error = spread / math.sqrt(n)
    df, nc = n - 1, -k * math.sqrt(n)
    lower = mean - t_quantile(1 - ALPHA, df, nc) * error
    upper = mean - t_quantile(ALPHA, df, nc) * error
    estimate = mean + k * spread / _c4(n)
    place = _place(lower, upper, low, high)
    # one p-value per limit: probability of an estimate at least this far inside if the true value is at the limit
    p_low = t_probability_below(-(mean - low) / error, df, -nc) if low in limits else 0.0
    p_high = t_probability_below((mean - high) / error, df, nc) if high in limits else 0.0
    enough = _enough_seeds(n, estimate, spread, low, high, k) if place == "across" else None
    return IntervalTest(place, estimate, lower, upper, max(p_low, p_high), mean / spread, n, enough)


def _place(lower: float, upper: float, low: float, high: float) -> Literal["inside", "above", "below", "across"]:
    """Return the place of the interval lower..upper with respect to the region low..high."""
    if low <= lower and upper <= high:
        return "inside"
    if lower > high:
        return "above"
    if upper < low:
        return "below"
    return "across"


def _enough_seeds(n: int, estimate: float, spread: float, low: float, high: float, k: float) -> int | None:
    """Return the number of seeds with which the interval would probably cross no limit.

    None if it is over MAX_SUGGESTED_SEEDS. A rough guide: it takes estimate and spread as exact, and is rounded.
    """
    if low <= estimate <= high:  # inside: the interval must clear every limit; outside: the nearest
        distances = [abs(limit - estimate) for limit in (low, high) if math.isfinite(limit)]
    else:
        distances = [low - estimate if estimate < low else estimate - high]

    def power(seeds: int) -> float:
        error = spread * math.sqrt(1 / seeds + k * k / (2 * (seeds - 1)))
        needed = t_quantile(1 - ALPHA, seeds - 1, 0.0)
        nearby = [d / error for d in distances if d < 30 * error]  # beyond, the probability is 0
        return 1 - sum(t_probability_below(needed, seeds - 1, d) for d in nearby)

    more = range(n + 1, MAX_SUGGESTED_SEEDS + 1)
    found = bisect_left(more, POWER, key=power)
    if found == len(more):
        return None
    step = 1 if more[found] <= 10 else 5 if more[found] <= 30 else 10
    return math.ceil(more[found] / step) * step


@cache
def t_quantile(probability: float, df: int, nc: float) -> float:
    """Return a quantile of the noncentral t distribution; nc = 0 is Student's t."""
    from scipy import special

    return float(special.nctdtrit(df, nc, probability) if nc else special.stdtrit(df, probability))


def t_probability_below(t: float, df: int, nc: float) -> float:
    """Return P(T < t) for the noncentral t distribution; nc = 0 is Student's t."""
    from scipy import special

    return float(special.nctdtr(df, nc, t) if nc else special.stdtr(df, t))


@cache
def expected_best(draws: int) -> float:
    """Return c_N: the expected smallest of N normal draws is c_N sigma below the mean.

    Half of Tippett's integral for the range: 1 - Phi(x)^N - (1 - Phi(x))^N over all x; c_1 = 0. The integrand is
    even, smooth and vanishes at both ends, so that the trapezoidal rule has no error beyond rounding. Importing
    scipy.integrate takes a quarter of a second.
    """
    step, last = 1 / 16, 12.0  # beyond 12 sigma the integrand is below 1e-29 for 1,000 draws

    def outside(x: float) -> float:
        tail = math.erfc(x / math.sqrt(2)) / 2  # 1 - Phi(x)
        return -math.expm1(draws * math.log1p(-tail)) - tail**draws

    return step * math.fsum([outside(0) / 2, *(outside(step * k) for k in range(1, round(last / step)))])


def _c4(n: int) -> float:
    """Return E[s] / sigma for n normal draws; dividing s by it removes the bias of mean + k s."""
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def statistic_sigmas(statistic: str) -> float:
    """Return the k of mu + k sigma that a statistic estimates.

    0 for "mean" and for "median of N": the expected median of normal draws is their mean.
    """
    if statistic == "mean":
        return 0.0
    name, _, draws = statistic.partition(" of ")
    if name not in ("best", "median") or not (draws.isascii() and draws.isdigit() and 1 <= int(draws) <= 1000):
        raise ValueError(
            f"unknown statistic {statistic!r}; use 'mean', 'median of N' or 'best of N', N from 1 to 1000"
        )
    return -expected_best(int(draws)) if name == "best" and int(draws) > 1 else 0.0


def average(values: Sequence[float]) -> float:
    """Return the mean, summed without rounding errors."""
    return math.fsum(values) / len(values)


def sample_spread(values: Sequence[float]) -> float:
    """Return the standard deviation of at least two values; statistics.stdev takes ten times as long."""
    mean = average(values)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))
