"""Disc centres as boxes and masks give them. Levels are counted up from the lowest disc."""

from __future__ import annotations

from collections import defaultdict

import cv2
import numpy as np
import pandas as pd

from osteograde.imaging import image_files
from osteograde.tasks.spine import LEVELS
from osteograde.tasks.study import Mark, Series

DISC, VERTEBRA, CANAL = 1, 2, 3
SMALL = 0.3  # a component below this share of the median disc's area is a fragment


def landmark(view: str, level: str) -> str:
    return f"{view}_disc_{level}"


def of_boxes(table: pd.DataFrame) -> dict[str, list[Mark]]:
    """series -> marks at the middles of boxes, x0 <= pixel < x1, of the five lowest discs."""
    found: dict[str, list[Mark]] = defaultdict(list)
    for row in table.to_dict("records"):
        label, series = int(row["ivd_label"]), str(row["slice"])
        if 1 <= label <= len(LEVELS):
            view = "t1" if series.endswith("_t1") else "t2"
            x, y = (row["x0"] + row["x1"] - 1) / 2, (row["y0"] + row["y1"] - 1) / 2
            found[series].append(Mark(landmark(view, LEVELS[-label]), series, series, float(x), float(y)))
    return dict(found)


def of_masks(series: Series) -> list[Mark]:
    """The five lowest discs of a stack, each where its middle slice of the canal shows it.

    The slice is the one with most canal in it: the midline, as the data set's own slices are near it.
    """
    masks = [image_files.read_pixels(path) for path in series.masks]
    middle = int(np.argmax([(mask == CANAL).sum() for mask in masks]))
    discs = discs_of(masks[middle])
    return [
        Mark(landmark(series.view, level), series.id, series.files[middle].stem, float(x), float(y))
        for level, (x, y) in zip(reversed(LEVELS), discs, strict=False)
    ]


def discs_of(mask: np.ndarray) -> list[tuple[float, float]]:
    """(x, y) middles of the bounding boxes of the discs of a label image (H, W), the lowest first."""
    count, _, stats, centres = cv2.connectedComponentsWithStats((mask == DISC).astype(np.uint8), connectivity=8)
    if count < 2:
        return []
    stats, centres = stats[1:], centres[1:]
    kept = stats[:, cv2.CC_STAT_AREA] >= SMALL * np.median(stats[:, cv2.CC_STAT_AREA])
    left, top, width, height = (stats[kept, i] for i in range(4))
    middles = np.stack([left + (width - 1) / 2, top + (height - 1) / 2], 1)
    return [(float(x), float(y)) for x, y in middles[np.argsort(-centres[kept][:, 1])]]
