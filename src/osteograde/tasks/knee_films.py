"""Synthetic films of both knees, composed out of the single-knee crops of a data set, patient by patient.

Nets learn joint centres and grades from them: both are known exactly.

A crop shows 140 mm x 140 mm of one knee, its joint at the centre. Each is continued into a leg that ends in air,
turned, scaled and put on a film with borders, shutters, markers, grain and uneven exposure; some films show one knee, a
knee cut by the border, or none. Pixels are (row, column); positions are (x, y), an integer is a pixel centre.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from osteograde.imaging import image_files
from osteograde.tasks.knee_files import VIEW
from osteograde.tasks.spec import Mark, Series, Study

log = logging.getLogger(__name__)

CROP_MM = 140.0
LEG_MM = 170.0  # of leg beyond each border of the crop
SIDES = ("right", "left")  # the right knee of the patient is on the left of the image


@dataclass(frozen=True, eq=False)
class Film:
    """A composed film. pixels: (H, W) uint8, bone bright. joints: side -> (x, y) of the joint centres that lie on
    it."""

    pixels: np.ndarray
    pixel_mm: float
    joints: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Leg:
    """A crop of a knee that was continued on all sides. value: (H, W) float32 grey values. cover: (H, W) opacity,
    0..1."""

    value: np.ndarray
    cover: np.ndarray
    pixel_mm: float

    @property
    def centre(self) -> np.ndarray:
        """(x, y) of the joint, in pixels."""
        return (np.array(self.value.shape[::-1]) - 1) / 2


def compose(
    knees: Sequence[tuple[np.ndarray, str]],
    rng: np.random.Generator,
    *,
    layout: str = "bilateral",
    pixel_mm: float = 0.5,
    size_mm: tuple[float, float] | None = None,
    place: tuple[float, float] = (0.3, 0.7),
) -> Film:
    """Compose a film of up to two knees, each given as (uint8 crop, side).

    layout: "bilateral" puts knees on their halves of the film, "single" puts one knee anywhere. size_mm: (width,
    height) of the film; None: a usual one is drawn. place: where across the film one knee may lie, as shares of its
    width. ValueError for another layout or two knees of a side.
    """
    if layout not in ("bilateral", "single") or len({side for _, side in knees}) < len(knees):
        shown = [side for _, side in knees]
        raise ValueError(f"layout {layout!r} with knees {shown}; expected bilateral or single, each side once")
    size_mm = size_mm or _size_mm(layout, rng)
    width, height = (round(length / pixel_mm) for length in size_mm)
    air = rng.uniform(0.0, 0.12)
    film = np.full((height, width), air, np.float32)
    joints = {}
    centres_mm = _joint_centres_mm(layout, [side for _, side in knees], size_mm, place, rng)
    for (crop, side), centre_mm in zip(knees, centres_mm, strict=True):
        joints[side] = _put(film, leg(crop, rng), np.asarray(centre_mm) / pixel_mm, pixel_mm, rng)
    if not knees:
        _distract(film, rng)
    film = _expose(film, rng)
    film = _collimate(film, joints, pixel_mm, rng)
    _mark(film, rng)
    noisy = film + rng.normal(0, rng.uniform(0.003, 0.03), film.shape).astype(np.float32)
    pixels = (np.clip(noisy, 0, 1) * 255).astype(np.uint8)
    inside = {side: xy for side, xy in joints.items() if 0 <= xy[0] <= width - 1 and 0 <= xy[1] <= height - 1}
    return Film(pixels, pixel_mm, inside)


def leg(crop: np.ndarray, rng: np.random.Generator) -> Leg:
    """Continue a crop by shafts and soft tissue that end in air, so that no square border shows where the crop was."""
    grey = crop.astype(np.float32)
    low, high = np.percentile(grey, [1, 99])
    grey = np.clip((grey - low) / max(high - low, 1.0), 0, 1.2)
    pixel_mm = CROP_MM / crop.shape[1]
    pad = round(LEG_MM / pixel_mm)
    value = cv2.copyMakeBorder(grey, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    soft = cv2.blur(value, (9, 61))
    inner = np.zeros(value.shape, np.float32)
    inner[pad:-pad, pad:-pad] = 1
    inner = cv2.blur(cv2.erode(inner, np.ones((9, 9), np.uint8)), (9, 9))
    texture = cv2.resize(rng.normal(0, 0.02, (value.shape[0] // 4, value.shape[1] // 4)).astype(np.float32),
                         value.shape[::-1])  # fmt: skip
    value = value * inner + (soft + texture) * (1 - inner)
    return Leg(_narrowed(value, pad, rng), _narrowed(_outline(value.shape, pad, pixel_mm, rng), pad, rng), pixel_mm)


def _outline(shape: tuple[int, ...], pad: int, pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity of a leg: 1 over the crop, falling to 0 at a wavy distance beside it."""
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    columns = np.abs(np.arange(shape[1], dtype=np.float32) - (shape[1] - 1) / 2)[None]
    wave = np.sin(rows * rng.uniform(0.004, 0.01) + rng.uniform(0, 6)) * rng.uniform(0, 6)
    flesh_mm = rng.uniform(2, 40) + wave
    beyond_mm = (columns - (shape[1] - 1) / 2 + pad) * pixel_mm
    return np.clip((flesh_mm - beyond_mm) / rng.uniform(3, 15) + 0.5, 0, 1).astype(np.float32)


def _narrowed(image: np.ndarray, pad: int, rng: np.random.Generator) -> np.ndarray:
    """Narrow the rows beyond the crop towards the axis, because shafts are narrower than joints."""
    height, width = image.shape
    beyond = np.maximum(np.abs(np.arange(height) - (height - 1) / 2) - (height - 1) / 2 + pad, 0) / pad
    wider = 1 + 0.5 * beyond**0.7
    centre = (width - 1) / 2
    x = centre + (np.arange(width)[None] - centre) * wider[:, None]
    y = np.broadcast_to(np.arange(height)[:, None], x.shape)
    return cv2.remap(
        image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )


def _put(
    film: np.ndarray, part: Leg, joint: np.ndarray, pixel_mm: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Draw a leg into ``film``, rotated and scaled at random, with its joint at the pixel ``joint`` (x, y). Returns
    that position."""
    angle, scale = np.deg2rad(rng.uniform(-8, 8)), rng.uniform(0.88, 1.12) * part.pixel_mm / pixel_mm
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    move = np.column_stack([turn, joint - turn @ part.centre])
    size = film.shape[::-1]
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    value, cover = (cv2.warpAffine(image, move, size, flags=mode) for image in (part.value, part.cover))
    tone = np.clip(value, 0, 1.2) ** rng.uniform(0.7, 1.4) * rng.uniform(0.55, 0.95) + rng.uniform(0.02, 0.15)
    film *= 1 - cover
    film += cover * tone
    return float(joint[0]), float(joint[1])


def _size_mm(layout: str, rng: np.random.Generator) -> tuple[float, float]:
    """Draw the width and the height of a film."""
    if layout == "single":
        return rng.uniform(170, 300), rng.uniform(220, 400)
    return rng.uniform(300, 430), rng.uniform(200, 430)


def _joint_centres_mm(
    layout: str,
    sides: Sequence[str],
    size_mm: tuple[float, float],
    place: tuple[float, float],
    rng: np.random.Generator,
) -> list[tuple[float, float]]:
    """Draw the joint centre (x, y) in mm of each knee. Some of them lie near the border of the film, or beyond it."""
    width, height = size_mm
    level = height * rng.uniform(0.32, 0.68)
    if layout == "single":
        return [(width * rng.uniform(*place), level) for _ in sides]
    apart = rng.uniform(140, min(260, width - 90)) if width > 235 else 140
    middle = width / 2 + rng.uniform(-0.25, 0.25) * min(apart, width - apart)
    centres = []
    for side in sides:
        x = middle + (apart / 2 if side == "left" else -apart / 2)
        if rng.random() < 0.08:  # cut by the border
            x = rng.uniform(-15, 25) if side == "right" else width - rng.uniform(-15, 25)
        x = max(x, width / 2 + 12) if side == "left" else min(x, width / 2 - 12)  # knees lie on their own halves
        centres.append((x, level + rng.uniform(-15, 15)))
    return centres


def _expose(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The film with uneven exposure, a random gamma and, half of the time, blur."""
    height, width = film.shape
    slope = rng.uniform(-0.25, 0.25, 2)
    rows, columns = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None]
    uneven = (1 + slope[0] * rows + slope[1] * columns).astype(np.float32)
    if rng.random() < 0.5:
        film = cv2.GaussianBlur(film, (0, 0), float(rng.uniform(0.3, 1.2)))
    return (np.clip(film, 0, 1.3) * uneven) ** np.float32(rng.uniform(0.7, 1.4))


def _collimate(film: np.ndarray, joints: Mapping, pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
    """The film as shutters leave it: black or white outside of a slightly rotated rectangle that holds the joints."""
    if rng.random() < 0.45:
        return film
    height, width = film.shape
    cut = rng.uniform(0, 0.12, 4) * (width, width, height, height)
    for x, y in joints.values():
        keep = 25 / pixel_mm
        cut = np.minimum(cut, np.maximum([x - keep, width - x - keep, y - keep, height - y - keep], 0))
    left, right, top, bottom = cut[0], width - cut[1], cut[2], height - cut[3]
    box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    angle = np.deg2rad(rng.uniform(-3, 3))
    middle = np.array([width, height]) / 2
    box = (box - middle) @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + middle
    mask = cv2.fillConvexPoly(np.zeros(film.shape, np.uint8), np.rint(box).astype(np.int32), 1)
    border = 1.0 if rng.random() < 0.25 else rng.uniform(0, 0.05)
    return np.where(mask == 1, film, np.float32(border)).astype(np.float32)


def _mark(film: np.ndarray, rng: np.random.Generator) -> None:
    """Write side letters, labels and rulers into ``film``."""
    height, width = film.shape
    for text, x in (("R", rng.uniform(0.03, 0.4)), ("L", rng.uniform(0.6, 0.95))):
        if rng.random() < 0.45:
            at = (round(x * width), round(height * rng.choice([rng.uniform(0.08, 0.2), rng.uniform(0.85, 0.97)])))
            _write(film, text, at, rng.uniform(0.8, 2.2), int(rng.integers(1, 5)), 1.0)
    if rng.random() < 0.3:
        label = "".join(rng.choice(list("ABCDEFGHKMNPRSTUVXYZ0123456789 ")) for _ in range(rng.integers(5, 14)))
        at = (round(width * rng.uniform(0.02, 0.6)), round(height * rng.uniform(0.03, 0.98)))
        _write(film, label, at, rng.uniform(0.3, 0.8), 1, float(rng.uniform(0.7, 1)))
    if rng.random() < 0.2:
        x, step = round(width * rng.uniform(0.4, 0.6)), max(4, round(height / 40))
        for y in range(round(height * 0.1), round(height * 0.9), step):
            cv2.circle(film, (x, y), max(1, step // 8), 1.0, -1)


def _write(film: np.ndarray, text: str, at: tuple[int, int], size: float, thick: int, tone: float) -> None:
    """Write text into ``film``, as bright as ``tone``."""
    letters = cv2.putText(np.zeros(film.shape, np.uint8), text, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255, thick)
    np.maximum(film, letters * np.float32(tone / 255), out=film)


def _distract(film: np.ndarray, rng: np.random.Generator) -> None:
    """Draw into ``film`` what films without knees show: nothing, or long and round bones, with or without noise."""
    height, width = film.shape
    kind = rng.integers(4)
    for _ in range(int(rng.integers(1, 6)) * (kind > 0)):
        centre = (round(rng.uniform(0, width)), round(rng.uniform(0, height)))
        axes = (rng.uniform(0.03, 0.15) * width, rng.uniform(0.05, 0.9 if kind == 1 else 0.2) * height)
        layer = np.zeros_like(film)
        for share, tone in ((1.6, 0.25), (1.0, 0.5), (0.75, 0.4)):
            size = tuple(max(1, round(axis * share)) for axis in axes)
            cv2.ellipse(layer, centre, size, rng.uniform(-30, 30), 0, 360, float(tone * rng.uniform(0.7, 1.3)), -1)
        layer = cv2.GaussianBlur(layer, (0, 0), float(rng.uniform(1, 12)))
        np.maximum(film, layer, out=film)
    if kind == 3:
        rough = cv2.resize(rng.random((9, 9)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        film += 0.5 * np.clip(rough, 0, 1)


VERSION = 1  # change it when films are composed otherwise; the films in a folder are then composed again
FILMS = 1500
EMPTY, ALONE, SINGLE = 0.12, 0.2, 0.2  # shares: no knee; one knee on a film for two; one knee on its own film
NOBODY = "nobody"  # films without a knee belong to no patient


def films(studies: Sequence[Study], folder: Path, rng: np.random.Generator, share: float = 1.0) -> list[Study]:
    """Compose films, write them into ``folder`` as PNG, and return their studies. The same crops and the same state of
    ``rng`` give the same films.

    studies: labelled ones of single knees; each film is made of the crops of one patient and belongs to that patient.
    Films without a knee belong to no patient. share: of the full number of films. A knee whose joint is on the film has
    the grade of its crop.
    """
    crops: dict[str, dict[str, Path]] = {}
    grades: dict[str, dict[str, int]] = {}
    for study in studies:
        if study.targets and study.series[0].side:
            crops.setdefault(study.patient, {})[study.series[0].side] = study.series[0].files[0]
            grades.setdefault(study.patient, {}).update(study.labels)
    patients = sorted(crops)
    if not patients:
        return []
    count = max(8, round(FILMS * share))
    folder.mkdir(parents=True, exist_ok=True)
    picked = rng.permutation(np.arange(count) % len(patients))
    made = [
        _readable_film(f"film{i:05d}", patient, crops[patient], grades[patient], folder, rng)
        for i, patient in enumerate(patients[p] for p in picked)
    ]
    kept = [film for film in made if film is not None]
    if len(kept) < len(made):
        log.warning("%d of %d composed films left out: a crop cannot be read", len(made) - len(kept), len(made))
    return kept


def _readable_film(
    name: str, patient: str, crops: dict[str, Path], grades: dict[str, int], folder: Path, rng: np.random.Generator
) -> Study | None:
    """The study of a composed film; None where a crop cannot be read. Reading that crop's own study reports it."""
    try:
        return _film(name, patient, crops, grades, folder, rng)
    except image_files.UnreadableImage:
        return None


def _film(
    name: str, patient: str, crops: dict[str, Path], grades: dict[str, int], folder: Path, rng: np.random.Generator
) -> Study:
    """Compose one film of a patient, unless it is in ``folder`` already, and return its study."""
    film_rng = np.random.default_rng([int(rng.integers(2**31)), zlib.crc32(patient.encode())])
    kind, sides = film_rng.random(), [side for side in SIDES if side in crops]
    layout, pixel_mm = "bilateral", float(film_rng.uniform(0.45, 0.7))
    if kind < EMPTY:
        sides, patient = [], NOBODY
    elif kind < EMPTY + ALONE + SINGLE:
        sides = [str(film_rng.choice(sides))]
        layout = "single" if kind < EMPTY + SINGLE else layout
    path, sidecar = folder / f"{name}.png", folder / f"{name}.json"
    made = json.dumps([VERSION, film_rng.bit_generator.state, layout, pixel_mm, _state(crops, sides)], default=str)
    written = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() and path.is_file() else {}
    if written.get("made") != made:  # an unchanged film keeps its time, so that caches of it stay valid
        knees = [(image_files.read_pixels(crops[side]), side) for side in sides]
        film = compose(knees, film_rng, layout=layout, pixel_mm=pixel_mm)
        cv2.imwrite(str(path), film.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        written = {"made": made, "joints": dict(film.joints)}
        sidecar.write_text(json.dumps(written), encoding="utf-8")  # last: a film without it is composed again
    joints = {side: (float(x), float(y)) for side, (x, y) in written["joints"].items()}
    shown = tuple(sides) if layout == "single" else SIDES
    series = Series(name, VIEW, folder, (path,), (4.0, pixel_mm, pixel_mm), side=sides[0] if layout == "single" else "")
    labels = {side: grades[side] for side in joints if side in grades}
    return Study(name, patient, (series,), labels, marks=_marks(joints, name, shown), targets=shown)


def _state(crops: dict[str, Path], sides: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, size and time of the crops of a film: if they are the same, the crops are unchanged."""
    return [(crops[side].name, (stat := crops[side].stat()).st_size, stat.st_mtime_ns) for side in sides]


def _marks(joints: Mapping[str, tuple[float, float]], name: str, shown: Sequence[str]) -> tuple[Mark, ...]:
    """The marks of a film, a joint centre per side; NaN where the film does not show that joint."""
    nan = (float("nan"), float("nan"))
    return tuple(Mark(side, name, name, *joints.get(side, nan)) for side in shown)
