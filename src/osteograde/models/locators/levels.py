"""Levels of a spine told apart by the rhythm of its steps.

A net scores every place of an image for every level. Where it takes the sacrum for the last vertebra above it, or
passes over a disc, each level alone still looks plausible; the chain of all levels does not. So the places of all
levels are put into one list, and every chain of places that goes down the image is scored:

    sum of log probability of each level at its place
    - 1/2 sum of squared deviations of lengths, directions and turns from the rhythm of real spines

The deviations are in standard deviations of the rhythm times ``Scoring.widen``. Levels that lie beyond the border of
the image may be absent, and one level in between may be passed over, each at a price. All chains together give the
probability that a place bears the name that it was given, which is what doubt is measured by.

Shape legend: L levels (head to feet), K places, M chains, h w map pixels. Places are (row, column) in map pixels; the
rows of the image run to the patient's feet and the columns to the patient's back. Pure numpy: no images, no nets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from osteograde.tasks.spine import Rhythm

ABSENT = -1  # place of a level that the image does not show
_ANCHOR = 0.75  # steps of image below the lowest level that show the sacrum


@dataclass(frozen=True)
class Scoring:
    """The numbers of the score; defaults as measured on held-out real images (docs/experiments.md).

    places: how many are considered. apart_mm: places lie at least so far apart in rows or in columns. reach_mm: half
    the side of the square over which a level's probability is summed. least: probability of a place of any level below
    which it is none. floor: the least probability that counts, so that one level's mistake cannot outweigh all others.
    widen: factor on the standard deviations of the rhythm. farthest: the greatest deviation that counts, in these
    standard deviations, so that a broken vertebra cannot outweigh everything else. absent: log probability of a level
    that lies beyond the border. skipped: the same of a level between two others, which no place is taken for. passed:
    the price of every place between or beyond its levels that a chain leaves out although some level has a probability
    of ``sure`` or more there; beyond the end of a complete chain there is nothing to explain. temperature: by which
    scores are divided before they become probabilities of chains.
    """

    places: int = 12
    apart_mm: float = 12.0
    reach_mm: float = 9.5
    least: float = 1e-3
    floor: float = 1e-3
    widen: float = 1.3
    farthest: float = 4.0
    absent: float = -5.0
    skipped: float = -18.0
    passed: float = -4.0
    sure: float = 0.3
    temperature: float = 1.0


@dataclass(frozen=True)
class Limits:
    """Beyond these a chain's names are in doubt. Of 130 annotated real chains none has a longer step, 1 % a greater
    deviation; the margin is where two namings are less than 20 to 1 apart. A place that no level sees with a
    probability of ``weakest`` was put there by the rhythm alone; of 98 annotated real chains that are named rightly
    none has one."""

    largest_step: float = 1.5
    deviation: float = 4.9
    margin: float = 3.0
    weakest: float = 0.1


SCORING, LIMITS = Scoring(), Limits()


@dataclass(frozen=True, eq=False)
class Chain:
    """The chosen chain and how sure it is.

    place: (L,) number of each level's place, ABSENT where it has none. names: (L, L + 1) probability that level i (row)
    truly lies at the place of the chosen chain's level j; the last column: at another place or outside of the image.
    score: of the chain. margin: by how much the score exceeds that of the best chain that gives one of its places to
    another level; infinite where there is none. largest_step: the longest step over the median of the others, where a
    step over a level that was passed over is one step; 1 with fewer than three steps. deviation: mean squared deviation
    of lengths, directions and turns from the rhythm, in standard deviations that are not widened. weakest: the least
    probability, over the chain's places, of the level that sees most there. anchored: whether the image goes on below
    the lowest level by three quarters of a step, so that the sacrum can be seen: an image that ends there may just as
    well end one level higher.
    """

    place: np.ndarray
    names: np.ndarray
    score: float
    margin: float
    largest_step: float
    deviation: float
    weakest: float
    anchored: bool

    def in_doubt(self, limits: Limits) -> bool:
        """Whether the names of the chain's levels are not to be relied on."""
        regular = self.largest_step <= limits.largest_step and self.deviation <= limits.deviation
        seen = self.anchored and self.weakest >= limits.weakest
        return not (regular and seen and self.margin >= limits.margin)


def find_places(maps: np.ndarray, pixel_mm: float, scoring: Scoring) -> np.ndarray:
    """(K, 2) the likeliest places of any level, the likeliest first: maps (L, h, w), probabilities summed over slices.

    A place that is taken takes the square of ``apart_mm`` around it.
    """
    pooled = maps.sum(0)
    apart = round(scoring.apart_mm / pixel_mm)
    found: list[tuple[int, int]] = []
    while len(found) < scoring.places:
        row, column = np.unravel_index(int(pooled.argmax()), pooled.shape)
        if pooled[row, column] <= 0 or masses(maps, np.array([[row, column]]), pixel_mm, scoring).max() < scoring.least:
            break
        found.append((int(row), int(column)))
        pooled[max(row - apart, 0) : row + apart + 1, max(column - apart, 0) : column + apart + 1] = 0
    return np.array(found, dtype=int).reshape(-1, 2)


def masses(maps: np.ndarray, places: np.ndarray, pixel_mm: float, scoring: Scoring) -> np.ndarray:
    """(K, L) probability of every level around every place; 0 for places outside of the map."""
    reach = round(scoring.reach_mm / pixel_mm)
    found = np.zeros((len(places), len(maps)))
    for k, (row, column) in enumerate(places):
        rows = slice(max(row - reach, 0), max(row + reach + 1, 0))
        columns = slice(max(column - reach, 0), max(column + reach + 1, 0))
        found[k] = maps[:, rows, columns].sum((1, 2))
    return found


def choose(
    places: np.ndarray,
    logs: np.ndarray,
    rhythm: Rhythm,
    *,
    bounds: tuple[float, float, float, float],
    steps_px: tuple[float, float],
    scoring: Scoring,
) -> Chain | None:
    """The best chain of at least three levels over ``places`` (K, 2) with log probabilities ``logs`` (K, L).

    bounds: (top, left, bottom, right) of the image in map pixels: beyond it a level may be absent. steps_px: the
    shortest and the longest step allowed per level. None where no three places can follow each other.
    """
    levels = logs.shape[1]
    order = np.argsort(places[:, 0], kind="stable")
    chains, scores = [], []
    for present, price in _patterns(levels, scoring):
        picked = _descending(places, order, present, steps_px)
        if len(picked):
            score, allowed = _score(places, logs, picked, present, rhythm, bounds, scoring)
            full = np.full((len(picked), levels), ABSENT)
            full[:, present] = picked
            chains.append(full[allowed])
            scores.append(score[allowed] + price)
    if not sum(map(len, chains)):
        return None
    return _summarised(places, logs, np.concatenate(chains), np.concatenate(scores), rhythm, bounds, scoring)


def _patterns(levels: int, scoring: Scoring) -> Iterator[tuple[tuple[int, ...], float]]:
    """(levels that have a place, price of the others): at least three, absent ones at the ends, at most one between."""
    for first in range(levels):
        for last in range(first + 2, levels):
            ends = scoring.absent * (levels - 1 - last + first)
            run = tuple(range(first, last + 1))
            yield run, ends
            if len(run) > 3:
                for gap in run[1:-1]:
                    yield tuple(i for i in run if i != gap), ends + scoring.skipped


def _descending(
    places: np.ndarray, order: np.ndarray, present: Sequence[int], steps_px: tuple[float, float]
) -> np.ndarray:
    """(M, n) numbers of places, top level first, of all chains whose steps go down and are of a possible length."""
    count = len(present)
    picked = np.array(list(combinations(order, count)), dtype=int).reshape(-1, count)
    steps = np.diff(places[picked], axis=1).astype(float)
    per_level = np.hypot(steps[..., 0], steps[..., 1]) / np.diff(present)
    good = (steps[..., 0] > 0) & (per_level >= steps_px[0]) & (per_level <= steps_px[1])
    return picked[good.all(1)]


def _expected(rhythm: Rhythm, present: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(2, n - 1), (2, n - 1), (2, n - 2): mean and deviation of lengths, directions and turns between these levels.

    A step over an absent level is as long as both together and goes in the direction between theirs.
    """
    lengths, directions = (np.array(part).T for part in (rhythm.lengths, rhythm.directions))
    spans = [slice(a, b) for a, b in pairwise(present)]
    long = np.array([(lengths[0, s].sum(), np.hypot.reduce(lengths[1, s])) for s in spans]).T
    down = np.array([(directions[0, s].mean(), directions[1, s].max()) for s in spans]).T
    spread = np.array(rhythm.turns)[:, 1]
    turned = np.array([(down[0, i + 1] - down[0, i], spread[present[i + 1] - 1]) for i in range(len(spans) - 1)]).T
    return long, down, turned


def _measured(chains: np.ndarray, expected_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths (relative), directions and turns of chains of points (M, n, 2); directions in degrees."""
    steps = np.diff(chains, axis=1).astype(float)
    lengths = np.hypot(steps[..., 0], steps[..., 1])
    directions = np.degrees(np.arctan2(steps[..., 1], steps[..., 0]))
    unit = lengths.sum(1, keepdims=True) / expected_lengths.sum()
    return lengths / unit, directions, np.diff(directions, axis=1)


def _deviations(chains: np.ndarray, rhythm: Rhythm, present: Sequence[int]) -> np.ndarray:
    """(M, 3 n - 4) deviations from the rhythm in its standard deviations."""
    expected = _expected(rhythm, present)
    measured = _measured(chains, expected[0][0])
    return np.concatenate([(m - e[0]) / e[1] for m, e in zip(measured, expected, strict=True)], 1)


def _score(
    places: np.ndarray,
    logs: np.ndarray,
    picked: np.ndarray,
    present: Sequence[int],
    rhythm: Rhythm,
    bounds: tuple[float, float, float, float],
    scoring: Scoring,
) -> tuple[np.ndarray, np.ndarray]:
    """((M,) scores, (M,) whether every level that is absent at an end would lie beyond the border)."""
    chains = places[picked].astype(float)
    deviations = _deviations(chains, rhythm, present) / scoring.widen
    score = logs[picked, list(present)].sum(1) - 0.5 * np.minimum(deviations**2, scoring.farthest**2).sum(1)
    score += scoring.passed * _passed(places, logs, picked, present, scoring)
    allowed = np.ones(len(picked), dtype=bool)
    if present[0] > 0:
        allowed &= _beyond(chains, rhythm, present, bounds, above=True)
    if present[-1] < logs.shape[1] - 1:
        allowed &= _beyond(chains, rhythm, present, bounds, above=False)
    return score, allowed


def _passed(
    places: np.ndarray, logs: np.ndarray, picked: np.ndarray, present: Sequence[int], scoring: Scoring
) -> np.ndarray:
    """(M,) number of sure places that a chain leaves out: between its ends, and above or below where levels are
    absent there."""
    sure = np.flatnonzero(logs.max(1) >= np.log(scoring.sure))
    top = places[picked[:, 0], 0] if present[0] == 0 else np.full(len(picked), -np.inf)
    bottom = places[picked[:, -1], 0] if present[-1] == logs.shape[1] - 1 else np.full(len(picked), np.inf)
    between = (places[sure, 0] > top[:, None]) & (places[sure, 0] < bottom[:, None])
    used = (picked[:, :, None] == sure).any(1)
    return (between & ~used).sum(1)


def _goes_on_below(points: np.ndarray, rhythm: Rhythm, bounds: tuple[float, float, float, float]) -> bool:
    """Whether the place ``_ANCHOR`` steps below the lowest of points (n, 2) lies inside of the image."""
    steps = np.diff(points, axis=0)
    angle = np.arctan2(steps[-1, 1], steps[-1, 0]) + np.radians(rhythm.turns[-1][0])
    way = _ANCHOR * np.hypot(steps[:, 0], steps[:, 1]).mean() * np.array([np.cos(angle), np.sin(angle)])
    row, column = points[-1] + way
    top, left, bottom, right = bounds
    return bool(top < row < bottom and left < column < right)


def _beyond(
    chains: np.ndarray,
    rhythm: Rhythm,
    present: Sequence[int],
    bounds: tuple[float, float, float, float],
    *,
    above: bool,
) -> np.ndarray:
    """(M,) whether the next level above (below) the chain is to be expected outside of the image.

    It is expected in the direction of the last step, turned as the rhythm turns there, at the rhythm's length.
    """
    expected, _, _ = _expected(rhythm, present)
    steps = np.diff(chains, axis=1)
    unit = np.hypot(steps[..., 0], steps[..., 1]).sum(1) / expected[0].sum()
    directions = np.array(rhythm.directions)[:, 0]
    if above:
        last, near, number = steps[:, 0], present[0], present[0] - 1
    else:
        last, near, number = steps[:, -1], present[-1] - 1, present[-1]
    angle = np.arctan2(last[:, 1], last[:, 0]) + np.radians(directions[number] - directions[near])
    step = (unit * rhythm.lengths[number][0])[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    next_place = chains[:, 0] - step if above else chains[:, -1] + step
    top, left, bottom, right = bounds
    inside = (next_place[:, 0] > top) & (next_place[:, 0] < bottom)
    return ~(inside & (next_place[:, 1] > left) & (next_place[:, 1] < right))


def _summarised(
    places: np.ndarray,
    logs: np.ndarray,
    chains: np.ndarray,
    scores: np.ndarray,
    rhythm: Rhythm,
    bounds: tuple[float, float, float, float],
    scoring: Scoring,
) -> Chain:
    """The best of the chains (M, L), and what the others say about it."""
    best = int(scores.argmax())
    place, levels = chains[best], chains.shape[1]
    weight = np.exp((scores - scores[best]) / scoring.temperature)
    names = np.zeros((levels, levels + 1))
    for i in range(levels):
        for j in range(levels):
            if place[j] != ABSENT:
                names[i, j] = weight[chains[:, i] == place[j]].sum()
    names /= weight.sum()
    for i in range(levels):
        if place[i] == ABSENT:  # a level that is absent in both is named alike
            names[i, i] = weight[chains[:, i] == ABSENT].sum() / weight.sum()
    names[:, -1] = (1 - names[:, :-1].sum(1)).clip(0)
    otherwise = np.zeros(len(chains), dtype=bool)  # one of the places has another level's name
    for i in range(levels):
        if place[i] != ABSENT:
            others = np.delete(chains, i, 1) == place[i]
            otherwise |= others.any(1)
    margin = float(scores[best] - scores[otherwise].max()) if otherwise.any() else float("inf")
    present = tuple(int(i) for i in np.flatnonzero(place != ABSENT))
    points = places[place[list(present)]].astype(float)
    deviation = float((_deviations(points[None], rhythm, present) ** 2).mean())
    anchored = present[-1] == levels - 1 and _goes_on_below(points, rhythm, bounds)
    step = largest_step(points)
    weakest = float(np.exp(logs[place[list(present)]].max(1).min()))
    return Chain(place, names, float(scores[best]), margin, step, deviation, weakest, anchored)


def largest_step(points: np.ndarray) -> float:
    """The longest step over the median of the others: points (n, 2), top first. 1 with fewer than three steps.

    >>> largest_step(np.array([[0, 0], [10, 0], [20, 0], [40, 0]]))
    2.0
    """
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if len(lengths) < 3:
        return 1.0
    longest = int(lengths.argmax())
    return float(lengths[longest] / np.median(np.delete(lengths, longest)))
