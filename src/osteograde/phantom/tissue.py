"""Paint the tissues around a spine: one shape over the other, with soft edges, as signal of a contrast.

All functions take curved coordinates (see ``Spine``) as arrays that broadcast together: x (lateral), a (to the back)
and s (to the feet), in mm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from osteograde.phantom.spine import ABOVE, Spine
from osteograde.tasks.spine import SIDES

EDGE_MM = 0.7  # softness of borders: partial volume

# Relative signal of (T1, T2, STIR). Every patient and series varies them.
SIGNAL: Mapping[str, tuple[float, float, float]] = {
    "fat": (1.00, 0.80, 0.14),
    "muscle": (0.33, 0.20, 0.26),
    "marrow": (0.60, 0.44, 0.24),
    "cortex": (0.10, 0.07, 0.08),
    "ligament": (0.14, 0.10, 0.10),
    "annulus": (0.26, 0.13, 0.14),
    "nucleus": (0.34, 0.72, 0.62),
    "csf": (0.14, 1.00, 1.00),
    "cord": (0.42, 0.42, 0.46),
    "root": (0.38, 0.36, 0.40),
    "vessel": (0.07, 0.05, 0.06),
    "bowel": (0.38, 0.42, 0.42),
    "air": (0.01, 0.01, 0.01),
}
CONTRASTS = ("t1", "t2", "stir")


def contrast(kind: str, rng: np.random.Generator) -> dict[str, float]:
    """Draw the signal of every tissue in one series: that of SIGNAL, each tissue varied at random."""
    column = CONTRASTS.index(kind)
    return {name: float(values[column] * np.exp(rng.normal(0, 0.10))) for name, values in SIGNAL.items()}


class _Tables(dict[str, np.ndarray]):
    """The tables of a spine at given indices; each is looked up at its first use."""

    def __init__(self, spine: Spine, rows: np.ndarray) -> None:
        super().__init__()
        self.spine, self.rows = spine, rows

    def __missing__(self, name: str) -> np.ndarray:
        self[name] = self.spine.tables[name][self.rows]
        return self[name]


class Painter:
    """An image into which shapes are painted, in place."""

    def __init__(self, image: np.ndarray, signal: Mapping[str, float]) -> None:
        self.image, self.signal = image, signal

    def paint(self, distance: np.ndarray, tissue: str | np.ndarray, strength: np.ndarray | float = 1.0) -> None:
        """Paint a shape. distance: signed distance to its border in mm, negative inside. tissue: its name, or the
        signal of every point. strength: opacity, 0 to 1."""
        cover = np.clip(0.5 - distance / (2 * EDGE_MM), 0, 1) * strength
        value = self.signal[tissue] if isinstance(tissue, str) else tissue
        self.image += cover * (value - self.image)


def ellipse(u: np.ndarray, v: np.ndarray, ru, rv) -> np.ndarray:
    """Approximate signed distance to an ellipse with half axes ru, rv (arrays or numbers)."""
    r = np.sqrt((u / ru) ** 2 + (v / rv) ** 2)
    return (r - 1) * np.minimum(ru, rv)


def box(u: np.ndarray, v: np.ndarray, ru, rv, round_off: float = 0.0) -> np.ndarray:
    """Approximate signed distance to a rounded rectangle with half sides ru, rv (a superellipse of power 4).

    round_off: 0 gives the rectangle, 1 an ellipse. Only squares and roots are used: general powers cost five times as
    much.
    """
    u2, v2 = (u / ru) ** 2, (v / rv) ** 2
    r = np.sqrt(np.sqrt(u2 * u2 + v2 * v2))
    if round_off:
        r = r + round_off * (np.sqrt(u2 + v2) - r)
    return (r - 1) * np.minimum(ru, rv)


def to_disc(spine: Spine, s: np.ndarray) -> np.ndarray:
    """Distance along s to the nearest disc in mm, negative on its side towards the head."""
    k = np.clip(np.searchsorted((spine.discs[:-1] + spine.discs[1:]) / 2, s), 0, len(spine.discs) - 1)
    return (s - spine.discs[k]).astype(np.float32)


def trunk(
    spine: Spine, x: np.ndarray, a: np.ndarray, s: np.ndarray, signal: Mapping[str, float], texture: np.ndarray
) -> np.ndarray:
    """Signal of everything but the spine: bowel, vessels, muscles, fat, air. texture: as ``column`` takes it."""
    image = np.full(x.shape, signal["bowel"], np.float32)
    _trunk(Painter(image, signal), spine, x, a, s, signal, texture)
    return image


def column(
    spine: Spine,
    x: np.ndarray,
    a: np.ndarray,
    s: np.ndarray,
    signal: Mapping[str, float],
    texture: np.ndarray,
    image: np.ndarray,
) -> np.ndarray:
    """Paint the spine over ``image``. ``texture``: smooth noise of its shape, about -1..1."""
    rows = spine.index(s)
    side = np.abs(x)
    for paint, near in (  # each part is painted only where it can lie, which saves most of the work
        (_bodies, (side < 29) & (a < 27)),
        (_arch, (side < 34) & (a > 6)),
        (_canal, (side < 16) & (a > 10) & (a < 50)),
        (_foramina, (side < 31) & (a > 6) & (a < 36)),
        (_recesses, (side < 17) & (a > 10) & (a < 40)),
    ):
        part = _rectangle(near)
        if part is not None:
            table = _Tables(spine, rows[part])
            painter = Painter(image[part], signal)
            paint(painter, spine, x[part], a[part], s[part], table, texture[part])
    return image


def _rectangle(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The smallest rectangle that holds every True; None without any."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _trunk(painter, spine, x, a, s, signal, texture) -> None:
    """Paint bowel, muscles, vessels, subcutaneous fat and the air behind the back."""
    body = spine.body
    painter.image += (signal["fat"] - signal["bowel"]) * np.clip(0.45 + 0.9 * texture, 0, 1)
    for sign in (-1, 1):  # psoas, then the muscles of the back with fat between their strands
        painter.paint(ellipse(x - sign * 44, a - 2, 19, 24), signal["muscle"] * (1 + 0.15 * texture))
        streaks = np.clip(body["muscle_fat"] * (0.5 + 1.6 * texture), 0, 0.9)
        value = signal["muscle"] + (signal["fat"] - signal["muscle"]) * streaks
        painter.paint(ellipse(x - sign * 34, a - 52, 33, 25), value)
        painter.paint(ellipse(x - sign * 62, a - 30, 22, 20), value)
    painter.paint(ellipse(x - 9, a + 32, 8.5, 8.0), "vessel")
    painter.paint(ellipse(x + 14, a + 29, 10, 7.0), signal["vessel"] * 2.5)
    rows = spine.index(s)
    # The skin follows the spine's curve only half way: the lower back is hollow, the loin nearly straight.
    back = body["skin"] - 0.0011 * x**2 - 0.55 * (spine.curve[rows, 0] - spine.curve[:, 0].mean()).astype(np.float32)
    painter.paint(back - body["fat"] * 0.5 - a, signal["fat"] * (1 + 0.05 * texture))
    painter.paint(back - a, "air")


def _bodies(painter, spine, x, a, s, table, texture) -> None:
    """Paint vertebral bodies and discs."""
    disc = to_disc(spine, s)
    body = spine.body
    half_width = body["half_width"] - 3.0 * (1 - table["waist"])
    wall = table["wall"]
    marrow = painter.signal["marrow"] * (1 + 0.22 * texture)
    outline = box(x, a, half_width, wall, 0.4)
    painter.paint(outline - 1.2, "cortex")
    painter.paint(outline + 0.3, marrow)
    # A disc with convex endplates: thicker in the middle. Its back bulges with the level's canal stenosis.
    dome = 1 - np.clip((a / wall) ** 2 + (x / half_width) ** 2, 0, 1.3)
    height = table["height"] * (0.35 + 0.20 * dome)
    inside = np.abs(disc) - height
    rim = box(x, a - table["bulge"] / 2, half_width + 1.2, wall + 0.8 + table["bulge"] / 2, 0.4)
    painter.paint(np.maximum(inside - 0.9, rim), "cortex", np.clip(table["waist"] * 2, 0, 1))
    annulus, nucleus = painter.signal["annulus"], painter.signal["nucleus"]
    wet = table["nucleus"] * np.clip(1.1 - 1.5 * ((a / wall) ** 2 + (x / half_width) ** 2), 0, 1)
    painter.paint(np.maximum(inside, rim), annulus + (nucleus - annulus) * np.clip(wet, 0, 1))
    basivertebral = np.maximum(np.abs(x) - 4, ellipse(a - wall + 4, np.abs(table["waist"]) * 18, 5, 2.2))
    painter.paint(basivertebral, "csf", 0.35)


def _arch(painter, spine, x, a, s, table, texture) -> None:
    """Paint pedicles, facets, laminae, spinous processes, flaval ligaments, and the epidural fat behind the canal."""
    disc = to_disc(spine, s)
    size = spine.body["size"]
    back = table["front"] + table["depth"]  # back of the canal
    up = disc + 0.0
    for sign in (-1, 1):
        side = x * sign
        painter.paint(
            np.maximum(box(side - 14 * size, up - 13 * size, 4.6, 7.0, 0.3), np.abs(a - table["wall"] - 4) - 9),
            painter.signal["marrow"] * 0.95,
        )
        facet = ellipse(side - 18 * size, a - table["wall"] - 17, 8.0, 9.0)
        span = np.abs(up + 1) - 15
        painter.paint(np.maximum(facet - 1.0, span - 1), "cortex")
        painter.paint(np.maximum(facet + 0.6, span), painter.signal["marrow"] * 0.8)
        joint = np.abs((side - 17 * size) * 0.75 - (a - table["wall"] - 15.5) * 0.55) - 0.9
        painter.paint(np.maximum(np.maximum(joint, facet + 1.0), np.abs(up) - 8), painter.signal["csf"] * 0.5)
    lamina = np.abs(a - back - 5 - 0.35 * (11 - np.abs(x))) - 2.4
    painter.paint(np.maximum(np.maximum(lamina, np.abs(x) - 15), np.abs(up + 9) - 8.5), painter.signal["marrow"] * 0.7)
    fat = ellipse(x, a - back - 1.2, 7, 4.2)
    painter.paint(np.maximum(fat, np.abs(up - 1) - 8), "fat")
    process = np.maximum(np.abs(x) - 3.0, np.abs(a - back - 21) - 14.5)
    process = np.maximum(process, np.abs(up + 3 - 0.12 * (a - back - 8)) - 10)
    painter.paint(process - 1.0, "cortex")
    painter.paint(process + 0.4, painter.signal["marrow"])
    between = np.maximum(np.maximum(np.abs(x) - 2.0, np.abs(a - back - 21) - 13), np.abs(np.abs(up + 3) - 14) - 3.5)
    painter.paint(between, painter.signal["fat"] * 0.7)
    flavum = np.abs(a - back - 1.0 - 0.5 * table["ligament"] + 0.28 * np.abs(x)) - 0.6 - 0.55 * table["ligament"]
    painter.paint(np.maximum(np.maximum(flavum, np.abs(x) - 12), np.abs(up) - 9), "ligament")


def _canal(painter, spine, x, a, s, table, texture) -> None:
    """Paint the thecal sac: fluid, the cord down to its end, and the roots below, which crowd where the sac is
    narrow."""
    ru, rv = table["width"] / 2, table["depth"] / 2
    centre = table["front"] + rv
    painter.paint(ellipse(x, a - centre, ru + 1.6, rv + 1.4), "ligament")
    sac = ellipse(x, a - centre, ru, rv)
    end = float(spine.discs[ABOVE]) - 8  # the cord ends about L1
    root_area = 55.0  # mm2 of roots in a section; the rest of the sac is fluid
    share = np.clip(root_area / np.maximum(np.pi * ru * rv, 1), 0.1, 1)
    crowded = np.clip((share - 0.45) / 0.4, 0, 1)
    csf, root = painter.signal["csf"], painter.signal["root"]
    painter.paint(sac, csf + (root - csf) * crowded)
    for j in range(14):  # roots hang towards the back, in pairs
        side = 1 if j % 2 else -1
        along = np.clip((s - end) / 60, 0, 1)
        u = side * (0.10 + 0.11 * (j // 2)) * ru * (0.55 + 0.45 * along) + 0.5 * np.sin(s / 9 + j)
        v = (0.62 - 0.10 * (j // 2) - 0.1 * np.cos(s / 13 + 2 * j)) * rv
        dot = np.sqrt((x - u) ** 2 + (a - centre - v) ** 2) - 0.85
        painter.paint(np.maximum(dot, sac + 0.2), "root", np.where(s > end, 0.85, 0.0).astype(np.float32))
    taper = np.clip((end - s) / 25, 0, 1) ** 0.5
    painter.paint(np.where(s < end, ellipse(x, a - centre - 0.5, 4.8 * taper + 0.2, 3.6 * taper + 0.2), 9), "cord")


def _foramina(painter, spine, x, a, s, table, texture) -> None:
    """Paint the foramina: fat in the shape of a keyhole with a root in its upper part. Stenosis narrows it from all
    sides."""
    disc = to_disc(spine, s)
    size = spine.body["size"]
    for side in SIDES:
        sign = 1 if side == "left" else -1
        closed = table[f"foramen_{side}"]
        u = x * sign - spine.body["foramen_x"]
        along = np.abs(u - 2) - 8.5  # its length from the canal outwards
        front = table["wall"] + 3.6
        up = disc + spine.body["foramen_up"]
        taper = np.sqrt(np.clip(1 - ((u - 2) / 10) ** 4, 0.05, 1))  # it ends round, outside and in the canal
        half_a, half_s = size * (5.0 - 3.1 * closed) * taper, size * (9.0 - 4.6 * closed) * taper
        hole = ellipse(a - front, up, half_a, half_s)
        painter.paint(np.maximum(ellipse(a - front, up, 6.2 * size * taper, 10 * size * taper), along), "ligament")
        painter.paint(np.maximum(hole, along), "fat")
        root = ellipse(a - front - 0.3, up + size * (2.2 - 1.6 * closed), 2.0 - 0.3 * closed, 2.7 - 0.5 * closed)
        painter.paint(np.maximum(root, along), "root")


def _recesses(painter, spine, x, a, s, table, texture) -> None:
    """Paint the lateral recesses, the front corners of the canal at a disc: fluid around a root. Stenosis narrows
    them."""
    disc = to_disc(spine, s)
    for side in SIDES:
        sign = 1 if side == "left" else -1
        closed = table[f"recess_{side}"]
        u = x * sign - spine.body["recess_x"]
        v = a - table["front"] - 2.3
        span = np.abs(disc - 0.5) - 5.5
        painter.paint(np.maximum(ellipse(u - 0.6, v, 4.6, 4.0), span), "ligament", np.clip(0.3 + closed, 0, 1))
        radius = np.maximum(3.9 - 3.4 * closed, 0.4)
        painter.paint(np.maximum(ellipse(u, v, radius, radius * 0.85), span), painter.signal["csf"] * 0.92)
        root = np.sqrt((u - 0.3) ** 2 + v**2) - 1.35
        painter.paint(np.maximum(root, span), "root", 0.9)
