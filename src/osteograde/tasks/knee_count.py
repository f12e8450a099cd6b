"""One knee or both, and which one: decided by the joints in the image where neither header, table nor name says it.

A film is read as its shape says at first. Each of its other readings (``knee_files.other_readings``) puts the same
pixels elsewhere or in another size, and the locator says what it finds there:

* both knees, where each half has a joint and the two lie apart as two knees do: what is found in both halves of one
  knee lies side by side at the midline;
* else one knee, in the size in which its joint is found most surely;
* else what the shape says.

A film for two on which a knee that nothing names lies alone in its own half keeps both rows: the knee is of the side of
that half, and the other row keeps the prior. The side of any other knee that nothing names is right. Where the weights
can tell by the anatomy that it is the other one, that one is graded alone. Thresholds: bench/knee_counts.py.
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
    if SIDE_ASSUMED in chosen.notes and is_other_side(chosen):
        (side,) = chosen.targets or {*SIDES} & {*points_of(chosen)}
        notes = tuple(SIDE_BY_ANATOMY if note == SIDE_ASSUMED else note for note in chosen.notes)
        others = [way for way in study.readings if way.targets == (SIDES[side == SIDES[0]],)]
        like = [way for way in others if way.series[0].spacing_mm == chosen.series[0].spacing_mm]
        other, _ = (like[0], 1.0) if like else _best(others, points_of, _fit_of_one)
        chosen = replace(other, notes=notes) if other is not None else chosen
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
            return _noted(study, _in_its_half(study, best, points_of))
    return study


def _in_its_half(study: Study, best: Study, points_of: PointsOf) -> Study:
    """The reading of one knee itself; of a film for two on which nothing names that knee and it lies in its own half,
    the reading of both in the same size, whose side is then assumed."""
    if study.targets or not best.targets or SIDE_ASSUMED not in best.notes:
        return best
    if abs(_away_mm(best, points_of(best))) <= HALF_MM:
        return best
    two = [way for way in (study, *study.readings) if not way.targets]
    found = [way for way in two if len(points_of(way)) == 1]
    if not found:
        return best
    surest = max(
        found, key=lambda way: max(point.confidence for point in points_of(way).values())
    )  # the first of equals
    return replace(surest, notes=(*surest.notes, SIDE_ASSUMED))


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
    if bool(chosen.targets) != bool(study.targets) or (not chosen.targets and SIDE_ASSUMED in notes):
        notes += (COUNTED_BY_JOINTS,)
    return replace(chosen, notes=notes)
