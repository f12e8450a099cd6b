"""Grades of a synthetic patient: a severity per place, its class, and the class as a reader wrote it down.

Severities are gaussian with correlations between the places of one patient, cut at the quantiles that give the
published class frequencies per condition and level. Anatomy is drawn from the severity, with a gap between classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from osteograde.tasks.lumbar_mr import COUNTS, SEVERE_PERCENT
from osteograde.tasks.lumbar_names import CLASSES, TARGET_OF, Target
from osteograde.tasks.spine import LEVELS

LABEL_NOISE = 0.03  # share of labels that are one class off
CLOSED = ((0.0, 0.24), (0.40, 0.58), (0.74, 1.0))  # how far a place is closed, per class: they do not touch


def thresholds(target: Target) -> tuple[float, float]:
    """The two severities (standard normal) at which a place becomes moderate and severe."""
    severe = SEVERE_PERCENT[target.condition][LEVELS.index(target.level)] / 100
    by_level = np.sqrt(np.array(SEVERE_PERCENT[target.condition]) / 100)
    moderate = COUNTS[target.condition][1] / sum(COUNTS[target.condition])
    moderate *= by_level[LEVELS.index(target.level)] / by_level.mean()
    normal = NormalDist()
    return normal.inv_cdf(1 - severe - moderate), normal.inv_cdf(1 - severe)


def severities(rng: np.random.Generator) -> dict[str, float]:
    """target -> standard normal: a patient's share, a level's share, and the place's own."""
    patient, level = rng.normal(), dict(zip(LEVELS, rng.normal(size=len(LEVELS)), strict=True))
    own = rng.normal(size=len(TARGET_OF))
    return {
        name: float(0.55 * patient + 0.45 * level[target.level] + np.sqrt(1 - 0.55**2 - 0.45**2) * noise)
        for (name, target), noise in zip(TARGET_OF.items(), own, strict=True)
    }


def grades(severity: Mapping[str, float]) -> dict[str, int]:
    """target -> class index."""
    return {name: int(np.searchsorted(thresholds(TARGET_OF[name]), value)) for name, value in severity.items()}


def closed(severity: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    """landmark -> 0 (wide) .. 1 (closed): the place within its class's range follows the severity."""
    found = {}
    for name, value in severity.items():
        low, high = thresholds(TARGET_OF[name])
        k = int(np.searchsorted((low, high), value))
        inside = ((value + 3) / (low + 3), (value - low) / (high - low), (value - high) / 1.2)[k]
        share = np.clip(0.6 * inside + 0.4 * rng.random(), 0, 1)
        found[TARGET_OF[name].landmark] = float(CLOSED[k][0] + share * (CLOSED[k][1] - CLOSED[k][0]))
    return found


def labelled(truth: Mapping[str, int], rng: np.random.Generator) -> dict[str, int]:
    """What a reader wrote: now and then a class beside the right one."""
    off = rng.random(len(truth)) < LABEL_NOISE
    steps = rng.choice((-1, 1), len(truth))
    last = len(CLASSES) - 1
    return {
        name: (value + step if 0 <= value + step <= last else value - step) if wrong else value
        for (name, value), wrong, step in zip(truth.items(), off, steps.tolist(), strict=True)
    }
