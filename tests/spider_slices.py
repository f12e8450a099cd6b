"""Real near-midline sagittal slices of SPIDER as competition-layout series, with canal points derived from disc boxes.

Boxes name discs and not the canal. On stacks with masks both are known, so there ``fit`` learns where the canal point
lies from a disc's box (``CanalRule``); ``canal_points`` then tells it for slices that have boxes alone. How far such
points lie from those of the masks: ``python bench/canal_from_boxes.py``.

Boxes are (top, left, bottom, right) and points (row, column), both in mm from the middle of the first pixel; discs are
counted from the lowest one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteograde.tasks.lumbar_names import SERIES_DESCRIPTIONS
from osteograde.tasks.spine import LEVELS
from tests.dicom_files import SAGITTAL, dataset, write
from tests.spider_studies import Reference, behind, by_level, disc_blobs, grey, middle_mask, slices, spacings, table

BORDER_PX = 9.0  # boxes.csv has boxes this much larger on each side than the discs of the masks (median of 8 stacks)
STEP_MM, WIDTH_MM = 35.6, 36.3  # of neighbouring discs' centres, and front to back of a disc's box; means of 31 stacks
STEPS_MM, WIDTHS_MM = (30.0, 42.0), (27.0, 47.0)  # means of one patient that are believed
RIDGE = 0.01
KINDS = ("t1", "t2", "t2_SPACE")
THICKNESS_MM = 4.0
CONFIDENCE = 0.3  # of the least certain disc of a slice whose discs were found; of 85 with boxes 95 % have right levels


@dataclass(frozen=True, eq=False)
class CanalRule:
    """From a disc's box to the canal point behind it, in units of the patient's disc spacing.

    weights: (6, 2); of each of the five levels (lowest first) and of the box's width, for the way from the box's middle
    to the back, at right angles to the line of the discs, and for the way towards the head along that line.
    """

    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice with boxes. pixel_mm: (row, column), see ``pixel_size``; boxes: (n, 4) in mm, without their border."""

    name: str
    patient: str
    pixel_mm: tuple[float, float]
    boxes: np.ndarray


def middles(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) -> (n, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _frame(centres: np.ndarray, i: int) -> np.ndarray:
    """(2, 2): unit directions to the back and to the head at disc i, by the line of its neighbours' centres."""
    up = centres[min(i + 1, len(centres) - 1)] - centres[max(i - 1, 0)]
    up = up / np.linalg.norm(up)
    back = np.array([up[1], -up[0]])
    return np.stack([back if back[1] > 0 else -back, up])


def spacing_mm(boxes: np.ndarray) -> float:
    """Median step between the middles of the five lowest discs."""
    return float(np.median(np.linalg.norm(np.diff(middles(boxes)[: len(LEVELS)], axis=0), axis=1)))


def _features(boxes: np.ndarray, i: int, spacing: float) -> np.ndarray:
    return np.array([*np.eye(len(LEVELS))[i], (boxes[i, 3] - boxes[i, 1]) / spacing])


def known_stacks(source: Path) -> dict[str, tuple[np.ndarray, dict[int, np.ndarray]]]:
    """patient -> boxes (n, 4) of the discs of its stack's mask, and number of the disc -> the canal point of the mask.

    Patients with a gap between their discs are left out.
    """
    found = {}
    for patient, (pixel, _) in spacings(source).items():
        mask = middle_mask(source, slices(source, patient))[1]
        blobs = disc_blobs(mask, pixel)
        if list(by_level(blobs)) != list(reversed(LEVELS)) or len(blobs) < len(LEVELS):
            continue
        boxes, canal = [], {}
        for i, blob in enumerate(blobs):
            rows, columns = np.nonzero(blob)
            edges = rows.min() - 0.5, columns.min() - 0.5, rows.max() + 0.5, columns.max() + 0.5
            boxes.append(np.array(edges) * pixel)
            point = behind(mask, rows, columns, np.array([rows.mean(), columns.mean()]), pixel)
            if i < len(LEVELS) and point is not None:
                canal[i] = point * pixel
        found[patient] = np.array(boxes), canal
    return found


def fit(known: Sequence[tuple[np.ndarray, Mapping[int, np.ndarray]]]) -> CanalRule:
    """known: of each patient the boxes (n, 4), and number of the disc -> its canal point."""
    rows, ways = [], []
    for boxes, canal in known:
        centres, spacing = middles(boxes), spacing_mm(boxes)
        for i, point in canal.items():
            rows.append(_features(boxes, i, spacing))
            ways.append(_frame(centres, i) @ (point - centres[i]) / spacing)
    x, y = np.array(rows), np.array(ways)
    return CanalRule(np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y))


def canal_points(rule: CanalRule, boxes: np.ndarray) -> np.ndarray:
    """(5, 2) canal points behind the five lowest of the discs (n, 4)."""
    centres, spacing = middles(boxes), spacing_mm(boxes)
    return np.stack([
        centres[i] + spacing * (_features(boxes, i, spacing) @ rule.weights) @ _frame(centres, i)
        for i in range(len(LEVELS))
    ])  # fmt: skip


def pixel_size(boxes_px: np.ndarray, header_mm: float) -> tuple[float, float]:
    """(row, column) mm of a pixel. Slices were stretched since their header was written, so it is believed only where
    the discs of (n, 4) boxes in pixels, without border, have a human size; else they are given the usual one."""
    step = float(np.linalg.norm(np.diff(middles(boxes_px)[: len(LEVELS)], axis=0), axis=1).mean()) * header_mm
    width = float((boxes_px[:, 3] - boxes_px[:, 1])[: len(LEVELS)].mean()) * header_mm
    down = 1.0 if STEPS_MM[0] <= step <= STEPS_MM[1] else STEP_MM / step
    across = down if WIDTHS_MM[0] <= width * down <= WIDTHS_MM[1] else 1.0  # both alike where that fits
    if not WIDTHS_MM[0] <= width * across <= WIDTHS_MM[1]:
        across = WIDTH_MM / width
    return down * header_mm, across * header_mm


def slices_with_boxes(source: Path) -> list[Slice]:
    """Every slice of boxes.csv that shows the five levels, by name."""
    header_mm = _header_mm(source)
    boxes: dict[str, dict[int, list[float]]] = {}
    with (source / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            edges = [float(row[edge]) for edge in ("y0", "x0", "y1", "x1")]
            boxes.setdefault(row["slice"], {})[int(row["ivd_label"])] = edges
    found = []
    for name, by_label in sorted(boxes.items()):
        if not set(range(1, len(LEVELS) + 1)) <= set(by_label):
            continue
        with_border = np.array([by_label[label] for label in sorted(by_label)]) - 0.5  # x0 <= pixel < x1
        discs = with_border + BORDER_PX * np.array([1, 1, -1, -1])
        trusted = name.endswith("SPACE")  # these lie among the stacks, whose header is right
        size = (header_mm[name],) * 2 if trusted else pixel_size(discs, header_mm[name])
        found.append(Slice(name, name.split("_")[0], size, discs * [*size, *size]))
    return found


def slices_with_points(source: Path, points: Path) -> list[Slice]:
    """Every T2 slice without boxes on which spider weights found all five discs with confidence, by name.

    points: their oof_points.csv. Each disc gets the width that discs usually have beside their spacing, and no height.
    """
    header_mm, made = _header_mm(source), []
    known = {one.name for one in slices_with_boxes(source)}
    for name, (places, confidence) in sorted(_found_discs(points).items()):
        path = source / "slices" / f"{name}.webp"  # stacks have none
        if view_of(name) != "t2" or name in known or len(places) < len(LEVELS) or not path.is_file():
            continue
        if confidence < CONFIDENCE:
            continue
        middle = (np.array(grey(path).shape) - 1) / 2  # where the task lays 0 mm
        centres = middle + np.array([places[level] for level in reversed(LEVELS)]) / header_mm[name]
        width = WIDTH_MM / STEP_MM * np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1))
        half = np.array([0.0, width / 2])
        boxes = np.concatenate([centres - half, centres + half], 1)
        size = pixel_size(boxes, header_mm[name])
        made.append(Slice(name, name.split("_")[0], size, boxes * [*size, *size]))
    return made


def _found_discs(points: Path) -> dict[str, tuple[dict[str, tuple[float, float]], float]]:
    """Series -> (level -> the disc that was found, (down, to the back) in mm, and the least confidence of them)."""
    found: dict[str, tuple[dict[str, tuple[float, float]], float]] = {}
    with points.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            view, level = row["landmark"].split("_disc_")
            places, least = found.get(name := f"{row['study_id']}_{view}", ({}, 1.0))
            places[level] = -float(row["z_mm"]), float(row["y_mm"])
            found[name] = places, min(least, float(row["confidence"]))
    return found


def view_of(name: str) -> str:
    """t1, t2 or t2_SPACE."""
    return name.split("_", 1)[1]


def _header_mm(source: Path) -> dict[str, float]:
    """Series -> mm of a pixel, by its scanner's header."""
    with (source / "overview.csv").open(newline="") as file:
        spacing = {row["new_file_name"]: row["PixelSpacing"] for row in csv.DictReader(file)}
    return {
        name: float(json.loads(text.replace("[.", "[0.").replace(" .", " 0."))[0]) for name, text in spacing.items()
    }


def study_of(slice_: Slice, *, cut: bool) -> str:
    """The id of a slice's study, and of the one with a smaller field of view."""
    kind = KINDS.index(view_of(slice_.name)) + 1
    return f"8{int(slice_.patient):05d}{kind + (len(KINDS) if cut else 0)}"


def write_slices(
    source: Path, out: Path, rule: CanalRule, chosen: Sequence[Slice], *, cuts: bool = False
) -> dict[str, Reference]:
    """Write each chosen slice as a study with one sagittal series of one slice below ``out``/test_images, and the table
    of their series; {study: reference}. T1 is called T2/STIR too: the canal is looked for on that view alone.

    cuts: of each slice a second study, whose image ends at random rows between the next disc above L1/L2 and below
    L5/S1 and the places where those are just seen.
    """
    references: dict[str, Reference] = {}
    for one in chosen:
        image = grey(source / "slices" / f"{one.name}.webp")
        points, discs = canal_points(rule, one.boxes), middles(one.boxes)[: len(LEVELS)]
        for cut in (False, True) if cuts else (False,):
            study = study_of(one, cut=cut)
            first, last = _rows(one, image.shape[0], study) if cut else (0, image.shape[0])
            made = dataset(
                image[first:last].astype(np.uint16) * 8,
                orientation=SAGITTAL,
                spacing=one.pixel_mm,
                SpacingBetweenSlices=THICKNESS_MM,
                SliceThickness=THICKNESS_MM,
            )
            write(out / "test_images" / study / f"{study}1" / "1.dcm", made)
            top = np.array([first * one.pixel_mm[0], 0.0])
            references[study] = Reference(_named(discs - top), _named(points - top))
    described = [(study, f"{study}1", SERIES_DESCRIPTIONS["sag_t2"]) for study in references]
    table(out / "test_series_descriptions.csv", ("study_id", "series_id", "series_description"), described)
    return references


def _rows(one: Slice, height: int, study: str) -> tuple[int, int]:
    """First and last-plus-one row of the cut image of a slice."""
    rng, discs = np.random.default_rng(int(study)), middles(one.boxes)[: len(LEVELS)]
    above, below = rng.uniform(0.4, 1.4, 2) * spacing_mm(one.boxes)
    first, last = (discs[-1, 0] - above) / one.pixel_mm[0], (discs[0, 0] + below) / one.pixel_mm[0]
    return max(int(first), 0), min(int(last), height)


def _named(points: np.ndarray) -> dict[str, np.ndarray]:
    """(5, 2) (row, column) mm, lowest first -> level -> LPS mm on the slice at x = 0. Index 0 is a pixel's middle, and
    so is LPS 0."""
    return {level: np.array([0.0, p[1], -p[0]]) for level, p in zip(reversed(LEVELS), points, strict=True)}
