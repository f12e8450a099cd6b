"""Levels told apart by the rhythm of a spine: against brute force, and on spines that are easily counted wrongly."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from osteograde.imaging.geometry import Roi, Volume, affine, roi_at
from osteograde.inference.submission import flags_of
from osteograde.models.locators.levels import (
    ABSENT,
    Limits,
    Scoring,
    choose,
    find_places,
    largest_step,
    masses,
)
from osteograde.pipeline import levels as together
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Point, Study
from osteograde.tasks.spine import CANAL_RHYTHM, DISC_RHYTHM, LEVELS, SAGITTAL, Rhythm

SCORING = Scoring()
BOUNDS = (0.0, 0.0, 96.0, 96.0)
STEPS = (4.0, 30.0)


def spine(rhythm: Rhythm, start=(14.0, 40.0), step: float = 12.0, count: int = 5) -> np.ndarray:
    """(count, 2) places of a spine that keeps the rhythm exactly; below the last level its last turn goes on."""
    places, turn = [np.array(start)], rhythm.turns[-1][0]
    for k in range(count - 1):
        i = min(k, len(rhythm.lengths) - 1)
        angle = np.radians(rhythm.directions[i][0] + turn * (k - i))
        length = step * rhythm.lengths[i][0]
        places.append(places[-1] + length * np.array([np.cos(angle), np.sin(angle)]))
    return np.array(places)


def slow_score(places, logs, chain, rhythm: Rhythm) -> float | None:
    """The score of one chain (place or ABSENT per level) as its definition says; None where it is not allowed."""
    present = [i for i, k in enumerate(chain) if k != ABSENT]
    points = {i: places[chain[i]] for i in present}
    gaps = [i for i in range(present[0], present[-1]) if i not in present]
    if len(present) < 3 or len(gaps) > 1:
        return None
    total = sum(logs[chain[i], i] for i in present) + SCORING.skipped * len(gaps)
    total += SCORING.absent * (len(chain) - len(present) - len(gaps))
    lengths, ways, want = [], [], []
    for a, b in itertools.pairwise(present):
        down, back = points[b] - points[a]
        length = math.hypot(down, back)
        if down <= 0 or not STEPS[0] <= length / (b - a) <= STEPS[1]:
            return None
        lengths.append(length)
        ways.append(math.degrees(math.atan2(back, down)))
        own = range(a, b)
        want.append(
            (
                sum(rhythm.lengths[i][0] for i in own),
                math.sqrt(sum(rhythm.lengths[i][1] ** 2 for i in own)),
                sum(rhythm.directions[i][0] for i in own) / len(own),
                max(rhythm.directions[i][1] for i in own),
            )
        )
    unit = sum(lengths) / sum(w[0] for w in want)
    squares = [((length / unit - w[0]) / w[1]) ** 2 for length, w in zip(lengths, want, strict=True)]
    squares += [((way - w[2]) / w[3]) ** 2 for way, w in zip(ways, want, strict=True)]
    for i in range(len(ways) - 1):
        turn, expected = ways[i + 1] - ways[i], want[i + 1][2] - want[i][2]
        squares.append(((turn - expected) / rhythm.turns[present[i + 1] - 1][1]) ** 2)
    for end, sign in ((present[0], -1), (present[-1], 1)):
        if (end > 0) if sign < 0 else (end < len(chain) - 1):
            number, near = (end - 1, end) if sign < 0 else (end, end - 1)
            way = ways[0] if sign < 0 else ways[-1]
            angle = math.radians(way + rhythm.directions[number][0] - rhythm.directions[near][0])
            length = unit * rhythm.lengths[number][0]
            row = points[end][0] + sign * length * math.cos(angle)
            column = points[end][1] + sign * length * math.sin(angle)
            if BOUNDS[0] < row < BOUNDS[2] and BOUNDS[1] < column < BOUNDS[3]:
                return None
    for k in range(len(places)):
        above = present[0] == 0 and places[k][0] <= points[present[0]][0]
        below = present[-1] == len(chain) - 1 and places[k][0] >= points[present[-1]][0]
        if k not in chain and max(logs[k]) >= math.log(SCORING.sure) and not above and not below:
            total += SCORING.passed
    return total - 0.5 * sum(min(z / SCORING.widen**2, SCORING.farthest**2) for z in squares)


def slow_choice(places, logs, rhythm):
    """Every way to give each level one of the places or none: {chain: score}."""
    numbers = [ABSENT, *range(len(places))]
    scored = {}
    for chain in itertools.product(numbers, repeat=logs.shape[1]):
        used = [k for k in chain if k != ABSENT]
        if len(used) >= 3 and len(set(used)) == len(used):
            score = slow_score(places, logs, chain, rhythm)
            if score is not None:
                scored[chain] = score
    return scored


def random_places(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rhythm_places = spine(DISC_RHYTHM, (rng.uniform(2, 40), 40.0), rng.uniform(9, 15)) + rng.normal(0, 1, (5, 2))
    places = np.concatenate([rhythm_places, rng.uniform(0, 96, (2, 2))])
    return places, np.log(rng.uniform(1e-3, 1, (7, 5)))


@pytest.mark.parametrize("seed", range(6))
def test_the_chosen_chain_its_margin_and_its_names_are_those_of_brute_force(seed):
    places, logs = random_places(seed)
    rhythm = (DISC_RHYTHM, CANAL_RHYTHM)[seed % 2]
    every = slow_choice(places, logs, rhythm)
    best = max(every, key=lambda chain: every[chain])
    found = choose(places, logs, rhythm, bounds=BOUNDS, steps_px=STEPS, scoring=SCORING)
    assert found is not None
    assert tuple(found.place) == best
    assert found.score == pytest.approx(every[best])
    other = [
        score
        for chain, score in every.items()
        if any(best[i] == k != ABSENT for i in range(5) for j, k in enumerate(chain) if i != j)
    ]
    assert found.margin == pytest.approx(every[best] - max(other))
    weight = {chain: math.exp(score - every[best]) for chain, score in every.items()}
    for i, j in itertools.product(range(5), repeat=2):
        if best[j] != ABSENT:
            share = sum(w for chain, w in weight.items() if chain[i] == best[j]) / sum(weight.values())
            assert found.names[i, j] == pytest.approx(share, abs=1e-9)
    assert np.allclose(found.names.sum(1), 1)


def logs_of(places: np.ndarray, owner: dict[int, dict[int, float]]) -> np.ndarray:
    """Log probabilities from {place: {level: probability}}, the floor elsewhere."""
    logs = np.full((len(places), 5), np.log(SCORING.floor))
    for place, levels in owner.items():
        for level, probability in levels.items():
            logs[place, level] = np.log(probability)
    return logs


def chosen(places, logs, rhythm=DISC_RHYTHM, bounds=BOUNDS):
    found = choose(places, logs, rhythm, bounds=bounds, steps_px=STEPS, scoring=SCORING)
    assert found is not None
    return found


def test_a_disc_that_the_maps_pass_over_gets_its_level_back():
    discs = spine(DISC_RHYTHM, (2.0, 40.0), count=6)  # the first is one above the lumbar spine
    # The net jumps over the third lumbar disc and names all above it one too high; the truth is a little less likely.
    maps = {0: {0: 0.55}, 1: {0: 0.4, 1: 0.55}, 2: {1: 0.4, 2: 0.55}, 3: {2: 0.05}, 4: {3: 0.9}, 5: {4: 0.9}}
    assert chosen(discs, logs_of(discs, maps)).place.tolist() == [1, 2, 3, 4, 5]


def test_a_shifted_chain_is_told_by_the_turn_into_the_sacrum():
    discs = spine(CANAL_RHYTHM, (14.0, 40.0), count=6)  # the last one lies below the lumbar spine
    half = {k: {level: 0.5 for level in (k, k - 1) if 0 <= level < 5} for k in range(6)}
    assert chosen(discs, logs_of(discs, half), CANAL_RHYTHM).place.tolist() == [0, 1, 2, 3, 4]


def test_two_namings_that_are_as_likely_are_in_doubt_and_share_the_probability():
    places = np.array([[10.0 + 12 * k, 40.0] for k in range(6)])
    loose = Rhythm(((1.0, 1.0),) * 4, ((0.0, 90.0),) * 4, ((0.0, 90.0),) * 3)
    half = {k: {level: 0.5 for level in (k, k - 1) if 0 <= level < 5} for k in range(6)}
    found = chosen(places, logs_of(places, half), loose)
    assert found.margin == pytest.approx(0)
    assert found.in_doubt(Limits())
    assert found.names[2, 2] == pytest.approx(0.5, abs=0.01)
    assert np.allclose(found.names.sum(1), 1)


def test_a_usual_spine_is_not_in_doubt():
    discs = spine(DISC_RHYTHM)
    found = chosen(discs, logs_of(discs, {k: {k: 0.9} for k in range(5)}))
    assert found.place.tolist() == [0, 1, 2, 3, 4]
    assert found.anchored
    assert found.deviation == pytest.approx(0, abs=1e-9)
    assert not found.in_doubt(Limits())


def test_a_vertebra_twice_as_tall_puts_the_names_in_doubt():
    discs = spine(DISC_RHYTHM, (2.0, 40.0), step=11.0, count=6)
    kept = np.delete(discs, 2, axis=0)  # a disc is missing: one step is twice as long
    found = chosen(kept, logs_of(kept, {k: {k: 0.9} for k in range(5)}))
    assert found.largest_step > 1.8
    assert found.in_doubt(Limits())


def test_a_place_that_only_the_rhythm_asks_for_puts_the_names_in_doubt():
    discs = spine(DISC_RHYTHM)
    maps = {k: {k: 0.9} for k in range(5)} | {1: {1: 0.04}}
    found = chosen(discs, logs_of(discs, maps))
    assert found.place.tolist() == [0, 1, 2, 3, 4]
    assert found.weakest == pytest.approx(0.04)
    assert found.in_doubt(Limits())


def test_levels_beyond_the_border_are_absent_and_not_made_up():
    discs = spine(DISC_RHYTHM, (6.0, 40.0))
    cut = discs[1:] - [discs[1, 0] - 4.0, 0]  # the image begins just above the second level
    noise = np.concatenate([cut, [[float(cut[-1, 0]) + 10, 55.0]]])
    found = chosen(noise, logs_of(noise, {k: {k + 1: 0.9} for k in range(4)} | {4: {0: 0.01, 4: 0.01}}))
    assert found.place.tolist() == [ABSENT, 0, 1, 2, 3]
    assert not found.in_doubt(Limits())  # the sacrum is there to count from


def test_an_image_that_ends_below_its_lowest_level_is_in_doubt():
    discs = spine(DISC_RHYTHM)
    logs = logs_of(discs, {k: {k: 0.9} for k in range(5)})
    low = chosen(discs, logs, bounds=(0.0, 0.0, float(discs[-1, 0]) + 4.0, 96.0))
    assert not low.anchored
    assert low.in_doubt(Limits())


def test_fewer_than_three_places_are_no_chain():
    discs = spine(DISC_RHYTHM)[:2]
    assert choose(discs, np.zeros((2, 5)), DISC_RHYTHM, bounds=BOUNDS, steps_px=STEPS, scoring=SCORING) is None
    assert largest_step(discs) == 1.0


def maps_of(places: np.ndarray, names: list[int], slices: int = 3) -> torch.Tensor:
    """(slices, 5, 64, 64) maps with a gaussian of level names[k] at places[k], on the middle slice."""
    rows, columns = np.mgrid[:64, :64]
    maps = np.zeros((slices, 5, 64, 64))
    for (row, column), level in zip(places, names, strict=True):
        blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2)
        maps[slices // 2, level] += blob / blob.sum()
    return torch.from_numpy(maps / np.maximum(maps.sum((0, 2, 3), keepdims=True), 1)).float()


def shown(maps: torch.Tensor, origin=(0.0, 0.0, 0.0)) -> together.Shown:
    """A region of 128 x 128 pixels of 1.5 mm, seen with a stride of 2."""
    axes, spacing = np.array(SAGITTAL), np.array([4.0, 1.5, 1.5])
    volume = Volume(np.zeros((len(maps), 128, 128), np.uint8), affine(np.array(origin), axes, spacing))
    grid: Roi = roi_at(volume.centre_mm, axes, spacing, (len(maps), 128, 128))
    return together.Shown(maps, grid, volume, 2, 3.0)


def test_places_are_apart_and_masses_are_those_of_their_squares():
    discs = np.rint(spine(DISC_RHYTHM, (8.0, 30.0), 10.0))
    maps = maps_of(discs, [0, 1, 2, 3, 4]).sum(0).numpy()
    places = find_places(maps, 3.0, SCORING)[:5]
    assert sorted(map(tuple, places)) == sorted(map(tuple, discs.astype(int)))
    own = masses(maps, discs.astype(int), 3.0, SCORING)
    assert np.all(np.diag(own) > 0.98)
    assert np.all(masses(maps, np.array([[-20, 5], [5, 99]]), 3.0, SCORING) == 0)


def test_two_views_of_one_spine_are_named_as_one_where_they_agree_in_mm():
    discs = spine(DISC_RHYTHM, (4.0, 30.0), 9.0, count=6)
    sure = maps_of(discs[:5], [0, 1, 2, 3, 4])
    wrong = maps_of(discs[1:], [0, 1, 2, 3, 4])  # one level too low throughout
    alone = together.name_levels([shown(wrong)], DISC_RHYTHM, (12.0, 80.0))
    named = together.name_levels([shown(sure), shown(wrong)], DISC_RHYTHM, (12.0, 80.0))
    other = together.name_levels([shown(sure), shown(wrong, (0.0, 0.0, 400.0))], DISC_RHYTHM, (12.0, 80.0))
    rows = lambda found: found.peak[:, 1].tolist()  # noqa: E731
    assert rows(alone[0]) == np.rint(discs[1:, 0]).tolist()
    assert rows(named[0]) == np.rint(discs[:5, 0]).tolist()
    assert rows(named[1])[1:] == np.rint(discs[1:5, 0]).tolist()  # of the first level it sees nothing
    assert named[1].source.tolist() == [0, 0, 1, 2, 3]  # the peaks lie in the maps of the levels that see them
    assert rows(other[1]) == rows(alone[0])
    assert other[0] is not None
    assert rows(other[0]) == rows(named[0])


def test_every_landmark_of_a_chain_in_doubt_says_so():
    names = ["a", "b", "c", "d", "e"]
    points = {name: Point(np.zeros(3)) for name in names}
    places = np.array([[10.0 + 12 * k, 40.0] for k in range(6)])
    loose = Rhythm(((1.0, 1.0),) * 4, ((0.0, 90.0),) * 4, ((0.0, 90.0),) * 3)
    half = {k: {level: 0.5 for level in (k, k - 1) if 0 <= level < 5} for k in range(6)}
    found = together.with_doubt(names, points, chosen(places, logs_of(places, half), loose))
    assert all(point.in_doubt for point in found.values())
    assert sum(found["c"].names.values()) == pytest.approx(1, abs=0.01)
    assert 0.4 < found["c"].names["c"] < 0.5
    assert all(point.in_doubt for point in together.with_doubt(names, points, None).values())


def grades_and_points() -> tuple[dict[str, np.ndarray], dict[str, Point]]:
    task = TASKS["spider"]
    graded = {}
    for k, level in enumerate(LEVELS):
        graded[level] = np.concatenate([np.eye(5)[k], [0.1 * k, 0.5]])
    names = [site.landmarks[0] for site in task.graders[0].sites]
    return graded, {name: Point(np.zeros(3)) for name in names}


def test_grades_of_levels_that_are_not_in_doubt_stay_as_they_are():
    graded, points = grades_and_points()
    mixed = together.mixed_over_names(TASKS["spider"], points, graded, TASKS["spider"].prior)
    assert all(np.array_equal(mixed[level], graded[level]) for level in LEVELS)


def test_grades_in_doubt_are_those_of_the_levels_that_they_may_be_of():
    graded, points = grades_and_points()
    prior = dict.fromkeys(LEVELS, (0.2,) * 5)
    names = list(points)
    shifted = {names[3]: 0.5, names[4]: 0.25}  # the fourth level: half sure, a quarter one lower, the rest unknown
    points[names[3]] = Point(np.zeros(3), in_doubt=True, names=shifted)
    mixed = together.mixed_over_names(TASKS["spider"], points, graded, prior)
    assert np.allclose(mixed[LEVELS[3]][:5], [0.05, 0.05, 0.05, 0.55, 0.3])
    assert np.array_equal(mixed[LEVELS[3]][5:], graded[LEVELS[3]][5:])
    assert np.array_equal(mixed[LEVELS[2]], graded[LEVELS[2]])
    del graded[LEVELS[4]]  # what was not graded there counts with the prior
    mixed = together.mixed_over_names(TASKS["spider"], points, graded, prior)
    assert np.allclose(mixed[LEVELS[3]][:5], [0.1, 0.1, 0.1, 0.6, 0.1])


def test_levels_above_the_border_of_an_image_are_likely_to_be_named_one_too_low():
    discs = spine(DISC_RHYTHM)
    logs = logs_of(discs, {k: {k: 0.9} for k in range(5)})
    names = together.names_in_doubt(chosen(discs, logs, bounds=(0.0, 0.0, float(discs[-1, 0]) + 4.0, 96.0)))
    assert names[3, 3] == pytest.approx(0.5, abs=0.01)
    assert names[3, 4] == pytest.approx(0.5, abs=0.01)
    assert names[4].sum() == pytest.approx(0.5, abs=0.01)  # the lowest may not be in the image at all


@pytest.mark.parametrize("odd", [{"largest_step": 1.6}, {"deviation": 5.0}, {"margin": 2.0}, {"weakest": 0.05}])
def test_each_limit_alone_puts_a_chain_in_doubt(odd):
    discs = spine(DISC_RHYTHM)
    usual = chosen(discs, logs_of(discs, {k: {k: 0.9} for k in range(5)}))
    assert not usual.in_doubt(Limits())
    assert replace(usual, **odd).in_doubt(Limits())


def test_every_row_of_a_study_in_doubt_is_flagged():
    graded, points = grades_and_points()
    loaded = Loaded(Study("s", "s", ()), {})
    flagged = lambda: [row for row, code, _ in flags_of(TASKS["spider"], loaded, points, graded) if "doubt" in code]  # noqa: E731
    assert flagged() == []
    name = next(iter(points))
    points[name] = replace(points[name], in_doubt=True)
    assert flagged() == [f"s_{level}" for level in LEVELS]
