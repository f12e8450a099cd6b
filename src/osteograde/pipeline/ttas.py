"""Test-time augmentations: the ways in which a crop is seen whose probabilities are averaged."""

from __future__ import annotations

from osteograde.tasks.spec import Grader

# (degrees, scale) in order of worth: as it is, then small turns with a slightly larger or smaller field.
TTAS = ((0.0, 1.0), (6.0, 1.06), (-6.0, 0.96), (0.0, 1.1))


def all_ttas(grader: Grader) -> list[tuple[float, float, bool]]:
    """(degrees, scale, mirrored) of every test-time augmentation of a crop, the crop as it is first.

    Where mirror images may be read, each is seen both ways.
    """
    ways = (False, True) if grader.mirror_images else (False,)
    return [(degrees, scale, mirror) for degrees, scale in TTAS for mirror in ways]


def ttas(grader: Grader, count: int) -> list[tuple[float, float, bool]]:
    """The first ``count`` of ``all_ttas``."""
    return all_ttas(grader)[:count]
