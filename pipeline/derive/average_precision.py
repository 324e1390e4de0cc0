"""Average precision of a class, as the development kits of PASCAL VOC compute it."""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.transfer_sets.images import DIFFICULT, POSITIVE, AveragePrecision

RECALLS = np.arange(11) / 10  # of the 11-point average precision


def average_precision(scores: NDArray[np.float64], marks: NDArray[np.int8], kind: AveragePrecision) -> float:
    """Return the average precision of a class, from 0 to 1.

    `scores` (N,): higher means more probable; `marks` (N,): POSITIVE, NEGATIVE or DIFFICULT. Difficult images are
    neither true nor false positives. "11-point" is the mean over the recalls 0, 0.1, ..., 1 of the highest
    precision at this recall or a higher one (VOCevalcls.m of 2007); "area" is the area below that curve (VOCap.m,
    since 2010). Images of equal score count in their order. Raises ValueError if no image is positive.
    """
    counted = marks != DIFFICULT
    order = np.argsort(-scores[counted], kind="stable")
    positive = (marks[counted] == POSITIVE)[order]
    if not positive.any():
        raise ValueError("average precision needs at least one positive image")
    true = np.cumsum(positive)
    recall, precision = true / true[-1], true / np.arange(1, len(true) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    if kind == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * highest))
    first = np.searchsorted(recall, RECALLS)  # index at which each recall is reached
    return float(np.mean(highest[first]))
