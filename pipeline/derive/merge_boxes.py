"""Greedy merging of bounding boxes: Sermanet et al. 2014, arXiv:1312.6229, section 4.3.

Of all boxes, the two that match best are replaced by their average, again and again, until no two match well
enough. The class scores of merged boxes are added, and the box with the highest score is the prediction. The
paper's match score, "the sum of the distance between centers of the two bounding boxes and the intersection area
of the boxes", has no unit, and its threshold is not printed; here two boxes match by their intersection over
union.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.boxes import Corners

Scores = NDArray[np.float64]  # (n,)


def best_merged_box(corners: Corners, scores: Scores, merge_overlap: float) -> Corners:
    """Return the merged box with the highest score, (n, 4) and (n,) -> (4,); of equal ones, the first.

    Boxes are merged as long as two of them have an overlap above `merge_overlap`.
    """
    merged, sums = merge_boxes(corners, scores, merge_overlap)
    best: Corners = merged[int(sums.argmax())]
    return best


def merge_boxes(corners: Corners, scores: Scores, merge_overlap: float) -> tuple[Corners, Scores]:
    """Return the merged boxes and the sums of their scores, in the order of the first box of each."""
    corners, scores = corners.copy(), scores.copy()
    overlaps = overlap_matrix(corners, corners)
    np.fill_diagonal(overlaps, -1.0)
    kept = np.ones(len(corners), dtype=bool)
    while len(corners) > 1:
        first, second = sorted(divmod(int(overlaps.argmax()), len(corners)))
        if overlaps[first, second] <= merge_overlap:
            break
        corners[first] = (corners[first] + corners[second]) / 2
        scores[first] += scores[second]
        kept[second] = False
        row = np.where(kept, overlap_matrix(corners[first : first + 1], corners)[0], -1.0)
        row[first] = -1.0
        overlaps[first], overlaps[:, first] = row, row
        overlaps[second], overlaps[:, second] = -1.0, -1.0
    return corners[kept], scores[kept]


def overlap_matrix(first: Corners, second: Corners) -> NDArray[np.float64]:
    """Return the intersection over union of each of (n, 4) with each of (m, 4), as (n, m); 0 without an area."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (high - low).clip(min=0).prod(2)
    areas = [(corners[:, 2:] - corners[:, :2]).clip(min=0).prod(1) for corners in (first, second)]
    union = areas[0][:, None] + areas[1][None] - intersection
    found: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return found
