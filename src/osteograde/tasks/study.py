"""What a study is: a patient's examination as paths and what is known of it, and points in it. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from osteograde.imaging.geometry import Volume

Volumes = Mapping[str, Sequence[Volume]]  # view -> stacks, each oriented along the view's directions


@dataclass(frozen=True, eq=False)
class Point:
    """One landmark found: (3,) LPS mm, and a confidence in [0, 1]."""

    mm: np.ndarray
    confidence: float = 1.0


Points = Mapping[str, Point]  # landmark -> Point; absent landmarks are absent, never zero


@dataclass(frozen=True)
class Series:
    """Files of one view; nothing is read until somebody asks.

    files: image files or films by name; none = every DICOM file of the folder. spacing_mm: (slice, row, column) of
    image files whose pixels have no size of their own; None where nobody knows (``View.width_mm``). side: "right" or
    "left" where the whole image shows that side of the patient only. masks: label images of ``files``, one for one.
    """

    id: str
    view: str
    folder: Path
    files: tuple[Path, ...] = ()
    spacing_mm: tuple[float, float, float] | None = None
    side: str = ""
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Mark:
    """An annotated landmark as the tables give it: pixel (x, y) on one file of one series.

    x and y are NaN where it is known that the series does not show the landmark.
    """

    landmark: str
    series: str
    instance: str
    x: float
    y: float


@dataclass(frozen=True)
class Study:
    """A patient's examination: which series hold which view, and what is known of it (labels, marks).

    targets: the rows asked of this study; none = all of the task's. findings: finding -> target -> yes or no.
    """

    id: str
    patient: str
    series: tuple[Series, ...]
    labels: Mapping[str, int] = field(default_factory=dict)  # target -> class index; unlabelled targets are absent
    marks: tuple[Mark, ...] = ()
    targets: tuple[str, ...] = ()
    findings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
