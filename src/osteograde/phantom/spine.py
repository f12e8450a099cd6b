"""A synthetic lumbar spine as smooth implicit shapes, and how grades change it.

Points are described in curved coordinates (x, a, s), mm: x to the patient's left of the spine's own midline, a to the
back of the curve through the vertebral bodies, s along that curve towards the feet. Discs are perpendicular to the
curve, so lordosis tilts them by itself. Every shape is a function of (x, a) whose sizes are tables over s.

``worn`` gives discs that lose water and height with their Pfirrmann grade, in an otherwise normal spine. Signal and
height of the nucleus follow the description of the grades (Pfirrmann et al., Spine 26:1873, 2001): 1 bright, 2 bright
with a band, 3 grey, 4 dark and lower, 5 black and collapsed. Nothing else depends on a grade.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from osteograde.tasks.lumbar_names import landmark
from osteograde.tasks.spine import LEVELS, SIDES

STEP_MM = 0.25  # of the tables over s; fine enough to be read without interpolation
ABOVE = 2  # modelled discs above L1/L2
BELOW = 1  # and below L5/S1: the rudimentary S1/S2


@dataclass(frozen=True, eq=False)
class Spine:
    """curve: (n, 2) mm (y, z) of the body centres every STEP_MM along s from s0; tables: name -> (n,) over the same s.

    discs: s of every modelled disc, head to feet. stenosis: landmark -> 0 (wide) .. 1 (closed).
    """

    s0: float
    curve: np.ndarray
    tangent: np.ndarray  # (n, 2) unit, towards the feet
    midline: np.ndarray  # (n,) patient x of the spine's midline
    discs: np.ndarray
    heights: np.ndarray  # of the discs
    tables: Mapping[str, np.ndarray]
    stenosis: Mapping[str, float]
    body: Mapping[str, float]  # scalar sizes

    def index(self, s: np.ndarray) -> np.ndarray:
        """Index into the tables at s; beyond their ends it is that of the first or last entry."""
        return np.clip((s - self.s0) / STEP_MM + 0.5, 0, len(self.midline) - 1).astype(np.int32)

    def at(self, name: str, s: float) -> float:
        """The value of a table at s."""
        return float(self.tables[name][self.index(np.array(s))])

    def to_curved(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(a, s) of points (y, z) in mm, found by a few steps of projection onto the curve."""
        s = np.interp(-z, -self.curve[:, 1], self.s0 + STEP_MM * np.arange(len(self.curve))).astype(np.float32)
        frame = np.column_stack([self.curve, self.tangent]).astype(np.float32)
        for _ in range(6):
            cy, cz, ty, tz = np.moveaxis(frame[self.index(s)], -1, 0)
            s = s + np.clip(0.7 * ((y - cy) * ty + (z - cz) * tz), -15, 15)
        cy, cz, ty, tz = np.moveaxis(frame[self.index(s)], -1, 0)
        return (y - cy) * -tz + (z - cz) * ty, s

    def to_mm(self, x: float, a: float, s: float) -> np.ndarray:
        """LPS mm of one point (x, a, s)."""
        i = int(self.index(np.array(s)))
        (cy, cz), (ty, tz) = self.curve[i], self.tangent[i]
        rest = s - (self.s0 + STEP_MM * i)  # less than half a step
        return np.array([x + self.midline[i], cy - a * tz + rest * ty, cz + a * ty + rest * tz])

    def points(self) -> dict[str, np.ndarray]:
        """Landmark -> (3,) LPS mm."""
        points = {}
        for k, level in enumerate(LEVELS):
            s = float(self.discs[ABOVE + k])
            front, depth = (self.at(name, s) for name in ("front", "depth"))
            points[landmark("canal", level)] = self.to_mm(0, front + depth / 2, s)
            for side in SIDES:
                sign = 1 if side == "left" else -1
                points[landmark("foramen", level, side)] = self.to_mm(
                    sign * self.body["foramen_x"], front + 2.5, s - self.body["foramen_up"]
                )
                points[landmark("recess", level, side)] = self.to_mm(sign * self.body["recess_x"], front + 2.5, s)
        return points


def bump(s: np.ndarray, centre: float, half: float, edge: float) -> np.ndarray:
    """1 where s is within ``half`` of ``centre``, falling smoothly to 0 over a further ``edge``; all in mm."""
    t = np.clip((np.abs(s - centre) - half) / edge, 0, 1)
    return 1 - t * t * (3 - 2 * t)


def spine(
    stenosis: Mapping[str, float],
    rng: np.random.Generator,
    *,
    s1_s2_mm: float | None = None,
    tall: int | None = None,
    lumbar: int = len(LEVELS),
) -> Spine:
    """Draw a spine whose canal, foramina and recesses are narrowed by ``stenosis``, landmark -> 0 (wide) to 1 (closed).

    s1_s2_mm: height of the disc below L5/S1, which is rudimentary unless the spine is transitional. tall: number of a
    vertebral body, from the head, that is twice as tall as usual. lumbar: number of lumbar vertebrae; with six of them
    the thoracic ones, which are smaller, begin one higher. Levels are counted up from L5/S1 in any case.
    """
    size = rng.normal(1.0, 0.06)
    count = ABOVE + len(LEVELS) + BELOW
    more = lumbar - len(LEVELS)
    bodies = size * (_growing(24.5, 27.5, count + 1, more) + rng.normal(0, 0.6, count + 1))
    heights = size * (_growing(6.5, 10.5, count, more) + rng.normal(0, 0.8, count))
    heights[-1] = rng.uniform(2, 4)
    heights[-1] = heights[-1] if s1_s2_mm is None else s1_s2_mm
    if tall is not None:
        bodies[tall] *= 2
    narrow = np.array([stenosis[landmark("canal", level)] for level in LEVELS])
    heights[ABOVE:-BELOW] *= 1 - 0.35 * narrow * rng.uniform(0.3, 1, len(LEVELS))
    edges = np.concatenate([[0], np.cumsum(np.ravel(np.column_stack([bodies[:-1], heights])))])
    discs = edges[1:-1:2] + heights / 2
    total = edges[-1] + bodies[-1] + 60
    s0, n = -60.0, int((total + 60) / STEP_MM)
    s = s0 + STEP_MM * np.arange(n)
    lordosis = np.deg2rad(rng.normal(46, 9))
    l3, l5 = discs[ABOVE + 2] - 12, discs[ABOVE + 4]
    bend = (s - l3) / (l5 - l3)
    # angle of the curve against straight down: leaning back above, forward at L5, strongly back in the sacrum
    angle = lordosis * (0.62 * np.where(bend > 0, np.clip(bend, 0, 1) ** 1.5, bend * 0.28))
    sacrum = np.clip((s - l5 - 4) / 60, 0, 1.0)
    angle = angle + np.deg2rad(rng.uniform(8, 28)) * sacrum
    angle = np.convolve(np.pad(angle, 60, "edge"), np.hanning(121) / np.hanning(121).sum(), "valid")
    tangent = np.column_stack([np.sin(angle), -np.cos(angle)])
    curve = np.cumsum(tangent, 0) * STEP_MM
    curve -= curve[np.argmin(abs(s - l3))] + np.array([-rng.normal(0, 6), rng.normal(0, 8)])
    midline = rng.normal(0, 2.0) + rng.normal(0, 3.0) * np.sin((s - l3) / 90 + rng.uniform(0, 6))
    body = {
        "half_depth": size * rng.normal(17, 1.0), "half_width": size * rng.normal(23.5, 1.3),
        "foramen_x": size * rng.normal(16.5, 0.8), "foramen_up": size * rng.normal(6, 0.8),
        "recess_x": size * rng.normal(8.5, 0.4), "skin": rng.normal(84, 10), "fat": rng.uniform(10, 40),
        "muscle_fat": rng.uniform(0, 0.6), "size": size,
    }  # fmt: skip
    tables = _tables(s, discs, heights, bodies, stenosis, body, rng)
    tables = {name: table.astype(np.float32) for name, table in tables.items()}
    return Spine(s0, curve, tangent, midline, discs, heights, tables, dict(stenosis), body)


def _growing(least: float, most: float, count: int, more: int) -> np.ndarray:
    """(count,) sizes that rise evenly towards the feet, and are reached ``more`` places earlier, the last one kept."""
    return np.interp(np.arange(count) + more, np.arange(count), np.linspace(least, most, count))


def _tables(s, discs, heights, bodies, stenosis, body, rng) -> dict[str, np.ndarray]:
    """The tables of a spine: name -> (n,) sizes over s, in mm; nucleus, waist, recess and foramen are shares, 0 to
    1."""
    size = body["size"]
    nearest = np.abs(s[:, None] - discs).argmin(1)
    tables: dict[str, np.ndarray] = {"height": heights[nearest], "nucleus": np.zeros_like(s)}
    bulge, depth, width, ligament = (np.zeros_like(s) for _ in range(4))
    depth += size * rng.normal(15.8, 0.9) - 0.012 * (s - s.mean()).clip(0)
    width += size * (21 + 0.02 * (s - s.mean()))
    recess = {side: np.zeros_like(s) for side in SIDES}
    foramen = {side: np.zeros_like(s) for side in SIDES}
    waist = np.zeros_like(s)
    for k, (centre, height) in enumerate(zip(discs, heights, strict=True)):
        waist = np.maximum(waist, bump(s, centre, height / 2 + 2, bodies[k] / 2 - 2))
        level = k - ABOVE
        if not 0 <= level < len(LEVELS):
            tables["nucleus"] += rng.uniform(0.3, 1) * bump(s, centre, height, 6)
            continue
        tight = stenosis[landmark("canal", LEVELS[level])]
        tables["nucleus"] += np.clip(rng.normal(0.75 - 0.6 * tight, 0.2), 0, 1) * bump(s, centre, height, 6)
        local = bump(s, centre, height / 2 + 1.5, 5)
        closed = depth[np.argmin(abs(s - centre))] * (0.06 + 0.66 * tight)  # share of the depth that is lost
        ahead = rng.uniform(0.4, 0.65)
        bulge += local * (0.6 + closed * ahead)
        ligament += local * (1.2 + closed * (1 - ahead))
        width -= local * size * 7.0 * tight
        for side in SIDES:
            recess[side] += local * stenosis[landmark("recess", LEVELS[level], side)]
            foramen[side] += bump(s, centre - 6, 14, 6) * stenosis[landmark("foramen", LEVELS[level], side)]
    for side in SIDES:
        tables[f"recess_{side}"], tables[f"foramen_{side}"] = recess[side], foramen[side]
    wall = body["half_depth"] - size * 1.8 * (1 - waist)
    tables |= {
        "wall": wall,  # back of the vertebral body
        "front": wall + 1.0 + bulge,  # front of the canal
        "depth": depth - bulge - ligament + 1.8,  # front to back of the canal
        "width": width,
        "ligament": ligament,
        "bulge": bulge,
        "waist": waist,
    }
    return tables


# By Pfirrmann grade: ranges of the share of a healthy nucleus' signal, and of a healthy disc's height.
WET = ((0.90, 1.0), (0.66, 0.78), (0.42, 0.54), (0.18, 0.30), (0.0, 0.06))
HEIGHT = ((0.96, 1.06), (0.94, 1.04), (0.86, 0.96), (0.66, 0.78), (0.36, 0.52))
USUAL_MM = (7.5, 8.5, 9.3, 10.0, 10.0)  # height of a healthy disc per level
NARROW = 0.82  # a disc below this share of a healthy disc's height is narrowed
BULGING = 0.3  # a disc bulges where the canal is narrowed by more than this


@dataclass(frozen=True, eq=False)
class Worn:
    """A spine with worn discs; per level, head to feet: the class index 0 to 4 of the grade, whether the disc is
    narrowed, and whether it bulges."""

    spine: Spine
    grades: tuple[int, ...]
    narrowed: tuple[bool, ...]
    bulging: tuple[bool, ...]


def worn(grades: Sequence[int], rng: np.random.Generator) -> Worn:
    """Draw a spine with these grades: class indices 0 to 4, one per level."""
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
    for k, centre in enumerate(body.discs[ABOVE : ABOVE + len(LEVELS)]):
        near = np.abs(s[:, None] - body.discs).argmin(1) == ABOVE + k
        height[near] = USUAL_MM[k] * body.body["size"] * share[k]
        nucleus[near] = wet[k] * bump(s[near], float(centre), float(height[near][0]), 6)
    tables = {**body.tables, "nucleus": nucleus.astype(np.float32), "height": height.astype(np.float32)}
    return Worn(
        replace(body, tables=tables),
        tuple(int(grade) for grade in grades),
        tuple(bool(value) for value in share < NARROW),
        tuple(bool(value) for value in bulging),
    )
