"""Discs that dry out and sink with their Pfirrmann grade, in an otherwise ordinary spine.

Signal and height of the nucleus per grade follow the description of the grades (Pfirrmann et al., Spine 26:1873, 2001):
1 bright, 2 bright with a band, 3 grey, 4 dark and lower, 5 black and collapsed. Nothing else depends on a grade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from osteograde.phantom.spine import ABOVE, STEP_MM, Spine, bump, spine
from osteograde.tasks.lumbar_names import landmark
from osteograde.tasks.spine import LEVELS, SIDES

WET = ((0.90, 1.0), (0.66, 0.78), (0.42, 0.54), (0.18, 0.30), (0.0, 0.06))  # share of a healthy nucleus' signal
HEIGHT = ((0.96, 1.06), (0.94, 1.04), (0.86, 0.96), (0.66, 0.78), (0.36, 0.52))  # of the usual height
USUAL_MM = (7.5, 8.5, 9.3, 10.0, 10.0)  # height of a healthy disc per level
NARROW = 0.82  # a disc below this share of the usual height is narrowed
BULGING = 0.3  # how far a canal is closed from which on its disc bulges


@dataclass(frozen=True, eq=False)
class Worn:
    """A patient: the spine, and per level (head to feet) the grade 0..4, whether narrowed and whether bulging."""

    spine: Spine
    grades: tuple[int, ...]
    narrowed: tuple[bool, ...]
    bulging: tuple[bool, ...]


def worn(grades: Sequence[int], rng: np.random.Generator) -> Worn:
    """A random patient with these grades (class indices 0..4, one per level)."""
    bulging = rng.random(len(LEVELS)) < 0.15 + 0.15 * np.array(grades)
    stenosis = {landmark(kind, level, side): rng.uniform(0, 0.2) for kind in ("foramen", "recess") for level in LEVELS
                for side in SIDES}  # fmt: skip
    closed = np.where(bulging, rng.uniform(BULGING + 0.1, 0.7, len(LEVELS)), rng.uniform(0, BULGING - 0.1, len(LEVELS)))
    stenosis |= {landmark("canal", level): float(value) for level, value in zip(LEVELS, closed, strict=True)}
    body = spine(stenosis, rng)
    share = np.array([rng.uniform(*HEIGHT[grade]) for grade in grades])
    wet = np.array([rng.uniform(*WET[grade]) for grade in grades])
    s = body.s0 + STEP_MM * np.arange(len(body.midline))
    nucleus, height = body.tables["nucleus"].copy(), body.tables["height"].copy()
    for k, place in enumerate(body.discs[ABOVE : ABOVE + len(LEVELS)]):
        own = np.abs(s[:, None] - body.discs).argmin(1) == ABOVE + k
        height[own] = USUAL_MM[k] * body.body["size"] * share[k]
        nucleus[own] = wet[k] * bump(s[own], float(place), float(height[own][0]), 6)
    tables = {**body.tables, "nucleus": nucleus.astype(np.float32), "height": height.astype(np.float32)}
    return Worn(
        replace(body, tables=tables),
        tuple(int(grade) for grade in grades),
        tuple(bool(value) for value in share < NARROW),
        tuple(bool(value) for value in bulging),
    )
