"""One knee or both, and which one: decided by the joints in the image where neither header, table nor name says it.

A film is read as its shape says at first. Each of its other readings (``knee_files.other_readings``) puts the same
pixels elsewhere or in another size, and the locator says what it finds there:

* both knees, where each half has a joint and the two lie apart as two knees do: what is found in both halves of one
  knee lies side by side at the midline;
* else one knee, in the size in which its joint is found most surely;
* else what the shape says.

The side of a knee that nothing names is the half of a film in which it lies alone, else right; where the weights can
tell by the anatomy that it is the other one, that one is graded. Thresholds: bench/knee_counts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from osteograde.tasks.knee_files import COUNTED_BY_JOINTS, ONE_KNEE_ASSUMED, SIDE_ASSUMED, SIDE_BY_ANATOMY, SIDES
from osteograde.tasks.spec import SIDE_MM, Points, Study

LEAST = 0.1  # confidence of the weaker of two joints
APART_MM = 90.0  # least distance of two joints from right to left
CLEAR = 0.5  # confidence of a joint in the middle of a picture that needs no other reading
SURE = 0.7  # fit of a size after which no other is tried
ALONE = 0.3  # confidence of the joint of one knee
MIDDLE_MM = 15.0  # a joint this near to the middle of an image is not one of two, in any size that is tried
HALF_MM = 35.0  # one knee this far from the middle of a film for two lies in its half
GAIN = 0.1  # by how much another size must fit better than the one that was assumed
_SIGN = {"right": -1.0, "left": 1.0}

PointsOf = Callable[[Study], Points]


def settle(study: Study, points_of: PointsOf, is_other_side: Callable[[Study], bool]) -> Study:
    """The reading of an image that the joints in it fit. See ``spec.Task`` for the arguments."""
    chosen = _counted(study, points_of)
    if SIDE_ASSUMED not in chosen.notes:
        return chosen
    ways = [chosen, *(way for way in study.readings if _is_like(way, chosen))]
    if not study.targets:
        away_mm = _away_mm(chosen, points_of(chosen))
        half = SIDES[away_mm > 0] if abs(away_mm) > HALF_MM else SIDES[0]
        chosen = _of_side(ways, half, chosen.notes) or chosen
    if is_other_side(chosen):
        other = SIDES[chosen.targets[0] == SIDES[0]]
        notes = tuple(SIDE_BY_ANATOMY if note == SIDE_ASSUMED else note for note in chosen.notes)
        chosen = _of_side(ways, other, notes) or chosen
    return chosen


def _counted(study: Study, points_of: PointsOf) -> Study:
    """The reading with the right number of knees, in the size that fits."""
    if study.targets and _is_clear(study, points_of(study)):
        return _noted(study, study)
    ways = (study, *study.readings)
    two = [way for way in ways if not way.targets]
    one = [way for way in ways if way.targets]
    one = [way for way in one if way.targets == one[0].targets]  # the other side is the same picture
    for same, fit, least in ((two, _fit_of_two, LEAST), (one, _fit_of_one, ALONE)):
        best, score = _best(same, points_of, fit)
        if best is not None and score >= least:
            return _noted(study, best)
    return study


def _best(
    ways: Sequence[Study], points_of: PointsOf, fit: Callable[[Study, Points], float]
) -> tuple[Study | None, float]:
    """The reading that fits best, and how well; the first one is kept where it is sure or no other is better by
    ``GAIN``."""
    best, score = None, -GAIN
    for way in ways:
        new = fit(way, points_of(way))
        if new > score + GAIN:
            best, score = way, new
        if score >= SURE:
            break
    return best, score


def _fit_of_two(study: Study, points: Points) -> float:
    if not {*SIDES} <= {*points} or points["left"].mm[0] - points["right"].mm[0] < APART_MM:
        return 0.0
    return min(points[side].confidence for side in SIDES)


def _fit_of_one(study: Study, points: Points) -> float:
    (side,) = study.targets
    return points[side].confidence if side in points else 0.0


def _is_clear(study: Study, points: Points) -> bool:
    """Whether a picture of one knee has a joint that is found surely and lies in its middle."""
    return _fit_of_one(study, points) >= CLEAR and abs(_away_mm(study, points)) <= MIDDLE_MM


def _away_mm(study: Study, points: Points) -> float:
    """How far the joint of one knee lies to the patient's left of the image's middle, as the film is hung."""
    (side,) = study.targets
    return float(points[side].mm[0]) - _SIGN[side] * SIDE_MM if side in points else 0.0


def _noted(study: Study, chosen: Study) -> Study:
    """The reading with notes that say what the image told of the number of knees."""
    notes = tuple(note for note in chosen.notes if note != ONE_KNEE_ASSUMED)
    if bool(chosen.targets) != bool(study.targets):
        notes += (COUNTED_BY_JOINTS,)
    return replace(chosen, notes=notes)


def _is_like(way: Study, chosen: Study) -> bool:
    """Whether two readings of one knee are of the same size."""
    return bool(way.targets) and way.series[0].spacing_mm == chosen.series[0].spacing_mm


def _of_side(ways: Sequence[Study], side: str, notes: tuple[str, ...]) -> Study | None:
    """The reading of a side, with notes."""
    return next((replace(way, notes=notes) for way in ways if way.targets == (side,)), None)
