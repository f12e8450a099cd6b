"""Average precision and recall of boxes as COCO counts them: greedy matching by score, 101 points of recall.

Boxes are (x0, y0, x1, y1), pixel edges. One class; images are matched one by one and pooled by score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALLS = np.linspace(0, 1, 101)
THRESHOLDS = np.arange(0.5, 0.96, 0.05)


def overlaps(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4)."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (found, true)]
    return inside / np.maximum(areas[0][:, None] + areas[1][None] - inside, 1e-12)


def hits(found: np.ndarray, scores: np.ndarray, true: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) whether each box, the surest first, takes a true box that no surer one took: the best overlapping one."""
    free = np.ones(len(true), bool)
    hit = np.zeros(len(found), bool)
    table = overlaps(found, true)
    for i in np.argsort(-scores, kind="stable"):
        row = np.where(free, table[i], -1.0)
        if len(row) and row.max() >= threshold:
            free[row.argmax()] = False
            hit[i] = True
    return hit


def precision_and_recall(
    images: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], threshold: float
) -> tuple[float, float]:
    """(average precision, recall) over images of (found (N, 4), scores (N,), true (M, 4)); NaN without true boxes."""
    total = sum(len(true) for _, _, true in images)
    if not total:
        return float("nan"), float("nan")
    scores = np.concatenate([scores for _, scores, _ in images])
    hit = np.concatenate([hits(*image, threshold) for image in images])
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hit[order])
    if not len(right):
        return 0.0, 0.0
    precision, recall = right / np.arange(1, len(right) + 1), right / total
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the highest precision at this recall or more
    place = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best, 0.0)[np.minimum(place, len(best))].mean()), float(recall[-1])


def table(images: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """ap50, ap75 and ar (mean recall over IoU 0.50 to 0.95)."""
    by = {round(float(t), 2): precision_and_recall(images, float(t)) for t in THRESHOLDS}
    recalls = [recall for _, recall in by.values()]
    return {"ap50": by[0.5][0], "ap75": by[0.75][0], "ar": float(np.mean(recalls))}
