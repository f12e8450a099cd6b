"""Grades of a synthetic patient: a severity per site, its class, and the class that a reader wrote down.

Severities are standard normal and correlated between the sites of one patient. They are cut at the quantiles that give
the published class frequencies per condition and level. Anatomy is drawn from the severity, with a gap between classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from osteograde.tasks.lumbar_mr import COUNTS, SEVERE_PERCENT
from osteograde.tasks.lumbar_names import CLASSES, TARGET_OF, Target
from osteograde.tasks.spine import LEVELS

LABEL_NOISE = 0.03  # share of labels that are one class off
# Per class: the range of the narrowing, 0 (wide) to 1 (closed). The ranges do not touch.
CLOSED = ((0.0, 0.24), (0.40, 0.58), (0.74, 1.0))


def thresholds(target: Target) -> tuple[float, float]:
    """The two severities (standard normal) at which a site becomes moderate and severe."""
    severe = SEVERE_PERCENT[target.condition][LEVELS.index(target.level)] / 100
    by_level = np.sqrt(np.array(SEVERE_PERCENT[target.condition]) / 100)
    moderate = COUNTS[target.condition][1] / sum(COUNTS[target.condition])
    moderate *= by_level[LEVELS.index(target.level)] / by_level.mean()
    normal = NormalDist()
    return normal.inv_cdf(1 - severe - moderate), normal.inv_cdf(1 - severe)


def severities(rng: np.random.Generator) -> dict[str, float]:
    """target -> severity, standard normal: the sum of a part that the patient's sites share, a part that the sites of a
    level share, and the site's own part."""
    patient, level = rng.normal(), dict(zip(LEVELS, rng.normal(size=len(LEVELS)), strict=True))
    site = rng.normal(size=len(TARGET_OF))
    return {
        name: float(0.55 * patient + 0.45 * level[target.level] + np.sqrt(1 - 0.55**2 - 0.45**2) * noise)
        for (name, target), noise in zip(TARGET_OF.items(), site, strict=True)
    }


def grades(severity: Mapping[str, float]) -> dict[str, int]:
    """target -> class index."""
    return {name: int(np.searchsorted(thresholds(TARGET_OF[name]), value)) for name, value in severity.items()}


def closed(severity: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    """landmark -> narrowing, 0 (wide) to 1 (closed). Within the range of its class it follows the severity."""
    narrowing = {}
    for name, value in severity.items():
        low, high = thresholds(TARGET_OF[name])
        k = int(np.searchsorted((low, high), value))
        inside = ((value + 3) / (low + 3), (value - low) / (high - low), (value - high) / 1.2)[k]
        share = np.clip(0.6 * inside + 0.4 * rng.random(), 0, 1)
        narrowing[TARGET_OF[name].landmark] = float(CLOSED[k][0] + share * (CLOSED[k][1] - CLOSED[k][0]))
    return narrowing


def labelled(truth: Mapping[str, int], rng: np.random.Generator) -> dict[str, int]:
    """target -> class that a reader wrote down: a share of LABEL_NOISE is one class off the truth."""
    off = rng.random(len(truth)) < LABEL_NOISE
    steps = rng.choice((-1, 1), len(truth))
    last = len(CLASSES) - 1
    return {
        name: (value + step if 0 <= value + step <= last else value - step) if wrong else value
        for (name, value), wrong, step in zip(truth.items(), off, steps.tolist(), strict=True)
    }
