"""Levels of one study named together: from the maps of all its regions to peaks, and what doubt does to its grades.

A study may show one spine several times, for example on sagittal T1 and T2 images. Where the places that its regions
find agree in millimetres, the regions are named as one: each place has the mean of their log probabilities.

Shape legend: R regions of one study, N slices (all regions one after the other), L levels, K places, h w map pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from osteograde.imaging.geometry import Roi, Volume, apply, to_index
from osteograde.models.locators import levels
from osteograde.models.locators.levels import ABSENT, LIMITS, SCORING, Chain, Limits, Scoring
from osteograde.tasks.spec import Point, Task
from osteograde.tasks.spine import Rhythm

SURE = 0.3  # a level's probability at a place that a region surely sees as a disc
AGREE_MM = 8.0  # places of two regions that lie no further apart are the same
AGREE_SHARE = 0.6  # of the sure places of each region must be the other's too
OFF_BY_ONE = 0.1  # parts of the probability of a name in doubt; measured on held-out images, see docs/experiments.md
OFF_BY_ONE_UNANCHORED = 0.5


@dataclass(frozen=True, eq=False)
class Shown:
    """What one region shows: maps (n, L, h, w) of its slices, the grid on which its net sees the volume, the stride of
    the maps, and the size of a map pixel as the locator's distances are measured (``Locator.field_mm``)."""

    maps: torch.Tensor
    grid: Roi
    volume: Volume
    stride: int
    pixel_mm: float

    def to_mm(self, places: np.ndarray) -> np.ndarray:
        """(K, 2) map pixels -> (K, 3) LPS mm on the middle slice."""
        rows = (places + 0.5) * self.stride - 0.5
        middle = np.full((len(places), 1), (self.grid.shape[0] - 1) / 2)
        return apply(self.grid.to_mm, np.concatenate([middle, rows], 1))

    def from_mm(self, mm: np.ndarray) -> np.ndarray:
        """(K, 3) LPS mm -> (K, 2) map pixels, wherever along the slices' normal they lie."""
        return (to_index(self.grid, mm)[:, 1:] + 0.5) / self.stride - 0.5

    def bounds(self) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) of the volume in map pixels, cut to the map."""
        depth, height, width = self.volume.voxels.shape
        corners = np.array([[depth // 2, y, x] for y in (0, height - 1) for x in (0, width - 1)], float)
        seen = self.from_mm(apply(self.volume.to_mm, corners))
        low = np.maximum(seen.min(0), 0)
        high = np.minimum(seen.max(0), np.array(self.maps.shape[-2:]) - 1)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


@dataclass(frozen=True, eq=False)
class Named:
    """Peaks of one region's levels: peak (L, 3) whole map pixels (slice, row, column), (-1, -1, -1) where the level is
    not shown; source (L,) the level in whose map the peak lies; chain: how sure the names are, None where no three
    places could be put in order."""

    peak: np.ndarray
    source: np.ndarray
    chain: Chain | None


def name_levels(
    regions: Sequence[Shown], rhythm: Rhythm, steps_mm: tuple[float, float], scoring: Scoring = SCORING
) -> list[Named | None]:
    """The levels of all regions of one study; None for a region in which no three places can be put in order.

    Regions that agree with the first about where discs are share one chain; each other has its own.
    """
    seen = [region.maps.sum(0).float().cpu().numpy() for region in regions]
    found = [levels.find_places(maps, r.pixel_mm, scoring) for maps, r in zip(seen, regions, strict=True)]
    named: list[Named | None] = [None] * len(regions)
    left = list(range(len(regions)))
    while left:
        first = left[0]
        group = [i for i in left if i == first or _agree(regions, seen, found, first, i, scoring)]
        left = [i for i in left if i not in group]
        chain, places = _chain([(regions[i], seen[i], found[i]) for i in group], rhythm, steps_mm, scoring)
        if chain is None:
            continue
        mm = regions[first].to_mm(places)
        for i in group:
            named[i] = _peaks(regions[i], seen[i], regions[i].from_mm(mm), chain, scoring)
    return named


def _agree(
    regions: Sequence[Shown],
    seen: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    a: int,
    b: int,
    scoring: Scoring,
) -> bool:
    """Whether two regions see discs at the same places of the patient."""
    sure = []
    for i in (a, b):
        mass = levels.masses(seen[i], found[i], regions[i].pixel_mm, scoring)
        sure.append(regions[i].to_mm(found[i][mass.max(1, initial=0) > SURE])[:, 1:])
    if not all(map(len, sure)):
        return False
    near = np.linalg.norm(sure[0][:, None] - sure[1][None], axis=-1) <= AGREE_MM
    return bool(min(near.any(1).mean(), near.any(0).mean()) >= AGREE_SHARE)


def _chain(
    group: Sequence[tuple[Shown, np.ndarray, np.ndarray]],
    rhythm: Rhythm,
    steps_mm: tuple[float, float],
    scoring: Scoring,
) -> tuple[Chain | None, np.ndarray]:
    """The chain of regions that are named as one, and its places in map pixels of the first."""
    first = group[0][0]
    places = group[0][2].astype(float)
    for region, _, own in group[1:]:
        others = first.from_mm(region.to_mm(own))
        far = np.abs(others[:, None] - places[None]).max(-1).min(1, initial=np.inf) > scoring.apart_mm / first.pixel_mm
        places = np.concatenate([places, others[far]])
    logs, shown = np.zeros((len(places), len(group[0][1]))), np.zeros((len(places), 1))
    for region, maps, _ in group:
        at = np.rint(region.from_mm(first.to_mm(places))).astype(int)
        top, left, bottom, right = region.bounds()
        inside = (at[:, 0] >= top) & (at[:, 0] <= bottom) & (at[:, 1] >= left) & (at[:, 1] <= right)
        mass = levels.masses(maps, at, region.pixel_mm, scoring)
        logs += np.log(np.maximum(mass, scoring.floor)) * inside[:, None]
        shown += inside[:, None]
    logs = np.where(shown > 0, logs / np.maximum(shown, 1), np.log(scoring.floor))
    kept = np.argsort(-logs.max(1, initial=-np.inf), kind="stable")[: scoring.places]
    places, logs = places[kept], logs[kept]
    steps_px = (steps_mm[0] / first.pixel_mm, steps_mm[1] / first.pixel_mm)
    chain = levels.choose(places, logs, rhythm, bounds=first.bounds(), steps_px=steps_px, scoring=scoring)
    return chain, places


def _peaks(region: Shown, seen: np.ndarray, places: np.ndarray, chain: Chain, scoring: Scoring) -> Named:
    """The region's own peaks nearest to the places of a chain, each in the map of the level that sees most there."""
    count, (height, width) = len(chain.place), seen.shape[1:]
    peak, source = np.full((count, 3), -1), np.arange(count)
    reach = round(scoring.reach_mm / region.pixel_mm)
    at = np.rint(places).astype(int)
    mass = levels.masses(seen, at, region.pixel_mm, scoring)
    for level, k in enumerate(chain.place):
        if k == ABSENT or not (0 <= at[k, 0] < height and 0 <= at[k, 1] < width):
            continue
        source[level] = level if mass[k, level] >= mass[k].max() else int(mass[k].argmax())
        top, left = max(at[k, 0] - reach, 0), max(at[k, 1] - reach, 0)
        patch = region.maps[:, source[level], top : at[k, 0] + reach + 1, left : at[k, 1] + reach + 1]
        best = np.unravel_index(int(patch.argmax()), tuple(patch.shape))
        peak[level] = (best[0], best[1] + top, best[2] + left)
    return Named(peak, source, chain)


def with_doubt(
    landmarks: Sequence[str], points: Mapping[str, Point], chain: Chain | None, limits: Limits = LIMITS
) -> dict[str, Point]:
    """The points of one region's levels, those of a chain whose names are in doubt marked so.

    landmarks: of the chain, top level first. Without a chain nothing is known of the names.
    """
    if chain is not None and not chain.in_doubt(limits):
        return dict(points)
    names = np.zeros((len(landmarks), len(landmarks))) if chain is None else names_in_doubt(chain)
    marked = {}
    for name, point in points.items():
        row = names[landmarks.index(name)]
        shares = {other: float(p) for other, p in zip(landmarks, row, strict=True) if p > 0}
        marked[name] = replace(point, in_doubt=True, names=shares)
    return marked


def names_in_doubt(chain: Chain) -> np.ndarray:
    """(L, L) probability that level i (row) lies at the point of level j, of a chain whose names are in doubt.

    Chains know only what their score knows, and their probabilities are too sure. So a part of each is given to the
    neighbouring levels: ``OFF_BY_ONE``, half of it to each side, or ``OFF_BY_ONE_UNANCHORED`` where the image ends
    below the chain; then all levels are likely to be named one too low, and lie at the point of the next one below.
    """
    levels_count = len(chain.place)
    shift = np.eye(levels_count, k=1)  # level i lies at the point named i + 1
    part, shifted = OFF_BY_ONE_UNANCHORED, shift
    if chain.anchored:
        part, shifted = OFF_BY_ONE, (shift + shift.T) / 2
    return (1 - part) * chain.names[:, :-1] + part * shifted


def mixed_over_names(
    task: Task,
    points: Mapping[str, Point],
    graded: Mapping[str, np.ndarray],
    prior: Mapping[str, Sequence[float]],
) -> dict[str, np.ndarray]:
    """The grades of one study, those of levels in doubt averaged over the levels that they may truly be of.

    A site's class probabilities become the sum over all levels of the probability that its own level lies at that
    level's point (``Point.names``) times what was graded there: the same condition and side. What is left to 1, and
    levels that were not graded, count with the site's prior. Outputs of auxiliary heads stay as they are.
    """
    level_of = {name: site.level for grader in task.graders for site in grader.sites for name in site.landmarks}
    names: dict[str, dict[str, float]] = {}
    for name, point in points.items():
        if point.in_doubt and name in level_of:
            names.setdefault(level_of[name], {level_of[other]: p for other, p in point.names.items()})
    mixed, classes = dict(graded), len(task.classes)
    for grader in task.graders if names else ():
        target = {(site.condition, site.side, site.level): site.target for site in grader.sites}
        for site in grader.sites:
            if site.target not in graded or site.level not in names:
                continue
            own, total = np.asarray(prior[site.target], float), np.zeros(classes)
            for level, p in names[site.level].items():
                there = target.get((site.condition, site.side, level), "")
                total += p * (graded[there][:classes] if there in graded else own)
            total += max(0.0, 1 - sum(names[site.level].values())) * own
            mixed[site.target] = np.concatenate([total / total.sum(), graded[site.target][classes:]])
    return mixed
