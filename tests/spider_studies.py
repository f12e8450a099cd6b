"""Real sagittal T2-SPACE stacks as competition-layout studies with one series, and where their levels are.

The images are PNG/WebP slices with masks (0 background, 1 disc, 2 vertebra, 3 canal) of the SPIDER collection; only the
left-right direction of their numbering is not known, which no sagittal measure needs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from osteograde.tasks.lumbar_names import CLASSES, SERIES_DESCRIPTIONS, TEMPLATE_TARGETS
from osteograde.tasks.spine import LEVELS
from tests.dicom_files import SAGITTAL, dataset, write

DISC, CANAL = 1, 3
SMALLEST_DISC_MM2 = 60.0
REACH_MM = 60.0  # how far behind a disc's centre the canal is looked for
SKIPPED = 1.6  # a step of so many median steps passes over a disc that the mask lacks


@dataclass(frozen=True, eq=False)
class Reference:
    """Per level, LPS mm: the disc's centre and the canal point; levels that no disc was found for are absent."""

    discs: dict[str, np.ndarray]
    canal: dict[str, np.ndarray]


def patients(source: Path) -> list[str]:
    return sorted({path.name.split("_")[0] for path in (source / "t2space" / "images").iterdir()}, key=int)


def slices(source: Path, patient: str) -> list[Path]:
    found = (source / "t2space" / "images").glob(f"{patient}_t2_SPACE_slice*.webp")
    return sorted(found, key=lambda path: int(path.stem.rpartition("slice")[2]))


def spacings(source: Path) -> dict[str, tuple[float, float]]:
    """patient -> (pixel spacing, slice step) in mm."""
    with (source / "overview.csv").open(newline="") as file:
        rows = {row["new_file_name"]: row for row in csv.DictReader(file)}
    found = {}
    for patient in patients(source):
        row = rows[f"{patient}_t2_SPACE"]
        pixel = json.loads(row["PixelSpacing"].replace("[.", "[0.").replace(" .", " 0."))[0]
        found[patient] = (float(pixel), float(row["SpacingBetweenSlices"] or row["SliceThickness"]))
    return found


def write_studies(source: Path, out: Path, only: Sequence[str] | None = None) -> dict[str, Reference]:
    """Write the test part of a data set that holds one sagittal T2 series per patient; {study: reference}."""
    sizes, references = spacings(source), {}
    chosen = list(only) if only is not None else patients(source)
    for patient in chosen:
        pixel, step = sizes[patient]
        study = f"9{int(patient):05d}"
        paths = slices(source, patient)
        for i, path in enumerate(paths):
            image = grey(path)
            position = ((i - (len(paths) - 1) / 2) * step, 0.0, 0.0)
            made = dataset(
                image.astype(np.uint16) * 8,
                position=position,
                orientation=SAGITTAL,
                spacing=(pixel, pixel),
                instance=i + 1,
            )
            made.SpacingBetweenSlices = made.SliceThickness = step
            write(out / "test_images" / study / f"{study}1" / f"{i + 1}.dcm", made)
        references[study] = reference(source, paths, pixel, step)
    table(out / "test_series_descriptions.csv", ("study_id", "series_id", "series_description"),
           [(study, f"{study}1", SERIES_DESCRIPTIONS["sag_t2"]) for study in references])  # fmt: skip
    rows = [
        (f"{study}_{target}", *[f"{1 / len(CLASSES):.6f}"] * 3) for study in references for target in TEMPLATE_TARGETS
    ]
    table(out / "sample_submission.csv", ("row_id", *CLASSES), rows)
    return references


def reference(source: Path, paths: Sequence[Path], pixel: float, step: float) -> Reference:
    """Levels counted up from the lowest disc, on the slice that shows most of the canal."""
    best, mask = middle_mask(source, paths)
    x = (best - (len(paths) - 1) / 2) * step
    discs, canal = {}, {}
    for level, blob in by_level(disc_blobs(mask, pixel)).items():
        rows, columns = np.nonzero(blob)
        centre = np.array([rows.mean(), columns.mean()])
        discs[level] = np.array([x, centre[1] * pixel, -centre[0] * pixel])
        found = behind(mask, rows, columns, centre, pixel)
        if found is not None:
            canal[level] = np.array([x, found[1] * pixel, -found[0] * pixel])
    return Reference(discs, canal)


def middle_mask(source: Path, paths: Sequence[Path]) -> tuple[int, np.ndarray]:
    """Number and mask (Y, X) of the slice that shows most of the canal."""
    masks = [grey(source / "t2space" / "masks" / f"{path.stem}.png") for path in paths]
    best = int(np.argmax([np.count_nonzero(mask == CANAL) for mask in masks]))
    return best, masks[best]


def grey(path: Path) -> np.ndarray:
    """(Y, X) uint8. ValueError, which names the file, where it is absent or no image."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f"{path}: no image that can be read")
    return image.astype(np.uint8, copy=False)


def disc_blobs(mask: np.ndarray, pixel: float) -> list[np.ndarray]:
    """Discs of a slice, lowest first."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats((mask == DISC).astype(np.uint8))
    kept = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] * pixel**2 >= SMALLEST_DISC_MM2]
    return [labels == k for k in sorted(kept, key=lambda k: -centres[k][1])]


def by_level(blobs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The discs (lowest first) of the five levels; a level is skipped where its disc is missing between two others."""
    rows = [-np.nonzero(blob)[0].mean() for blob in blobs]
    steps = np.diff(rows)
    number, named = 0, {}
    for i, blob in enumerate(blobs):
        number += int(i > 0) + int(i > 0 and steps[i - 1] > SKIPPED * np.median(steps))
        if number < len(LEVELS):
            named[LEVELS[::-1][number]] = blob
    return named


def behind(mask, rows, columns, centre, pixel) -> np.ndarray | None:
    """(row, column): the middle of the canal along the disc's long axis."""
    spread = np.cov(np.stack([rows, columns]))
    axis = np.linalg.eigh(spread)[1][:, -1]
    axis = axis if axis[1] > 0 else -axis  # to the back
    steps = np.arange(0, REACH_MM / pixel, 0.5)
    line = np.rint(centre + steps[:, None] * axis).astype(int)
    inside = np.all((line >= 0) & (line < mask.shape), 1)
    hits = np.flatnonzero(inside & (mask[tuple(np.clip(line, 0, np.array(mask.shape) - 1).T)] == CANAL))
    if not len(hits):
        return None
    breaks = np.flatnonzero(np.diff(hits) > 4)  # the canal nearest to the disc, small holes allowed
    first = hits[: breaks[0] + 1] if len(breaks) else hits
    return centre + steps[[first[0], first[-1]]].mean() * axis


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
