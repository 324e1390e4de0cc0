"""Fits of measured times: lines and hyperbolas through the points of several networks."""

from collections.abc import Sequence


def line_r_squared(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the part of the variance of y that the least-squares line in x explains, from 0 to 1.

    Raises ValueError for fewer than three points, or if all x are equal.
    """
    from scipy.stats import linregress

    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"a fit needs three points or more, with x and y of each, not {len(x)} and {len(y)}")
    return float(linregress(x, y).rvalue ** 2)


def hyperbola_r_squared(times: Sequence[float], accuracies: Sequence[float]) -> float:
    """Return the part of the variance of accuracies that accuracy = a - b / time explains, from 0 to 1.

    The hyperbola has two parameters, as a line has, so that neither fits better by having more. The result is 0 if
    accuracies fall with time, b < 0. Raises ValueError for a time that is not above zero.
    """
    if min(times) <= 0:
        raise ValueError(f"times must be > 0, not {min(times)}")
    rises = rank_correlation(times, accuracies) > 0
    return line_r_squared([1 / time for time in times], accuracies) if rises else 0.0


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation of x and y, from -1 to 1. ValueError for fewer than three points."""
    from scipy.stats import spearmanr

    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"a correlation needs three points or more, not {len(x)} and {len(y)}")
    return float(spearmanr(x, y).statistic)
