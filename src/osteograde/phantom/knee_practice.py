"""Films to learn joint centres from, composed out of a data set's own crops, patient by patient."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from osteograde.imaging import raster
from osteograde.phantom.knee_film import SIDES, Film, compose
from osteograde.tasks.contract import Mark, Series, Study
from osteograde.tasks.knee_files import VIEW

FILMS = 1500
EMPTY, ALONE, SINGLE = 0.12, 0.2, 0.2  # shares: no knee; one knee on a film for two; one knee on its own film
NOBODY = "nobody"  # films without a knee belong to no patient


def films(studies: Sequence[Study], folder: Path, rng: np.random.Generator, share: float = 1.0) -> list[Study]:
    """Studies of composed films, written into ``folder`` as PNG; the same films from the same rng and crops."""
    crops: dict[str, dict[str, Path]] = {}
    for study in studies:
        if study.targets and study.series[0].side:
            crops.setdefault(study.patient, {})[study.series[0].side] = study.series[0].files[0]
    patients = sorted(crops)
    if not patients:
        return []
    count = max(8, round(FILMS * share))
    folder.mkdir(parents=True, exist_ok=True)
    picked = rng.permutation(np.arange(count) % len(patients))
    return [_film(f"film{i:05d}", patients[p], crops[patients[p]], folder, rng) for i, p in enumerate(picked)]


def _film(name: str, patient: str, crops: dict[str, Path], folder: Path, rng: np.random.Generator) -> Study:
    own = np.random.default_rng([int(rng.integers(2**31)), zlib.crc32(patient.encode())])
    kind, sides = own.random(), [side for side in SIDES if side in crops]
    layout, pixel_mm = "bilateral", float(own.uniform(0.45, 0.7))
    if kind < EMPTY:
        sides, patient = [], NOBODY
    elif kind < EMPTY + ALONE + SINGLE:
        sides = [str(own.choice(sides))]
        layout = "single" if kind < EMPTY + SINGLE else layout
    path = folder / f"{name}.png"
    film = compose([(raster.read_pixels(crops[side]), side) for side in sides], own, layout=layout, pixel_mm=pixel_mm)
    part = path.with_suffix(".part.png")
    cv2.imwrite(str(part), film.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not (path.is_file() and path.read_bytes() == part.read_bytes()):  # an unchanged file keeps its time: caches hold
        part.replace(path)
    part.unlink(missing_ok=True)
    shown = tuple(sides) if layout == "single" else SIDES
    series = Series(name, VIEW, folder, (path,), (4.0, pixel_mm, pixel_mm), side=sides[0] if layout == "single" else "")
    return Study(name, patient, (series,), marks=_marks(film, name, shown), targets=shown)


def _marks(film: Film, name: str, shown: Sequence[str]) -> tuple[Mark, ...]:
    nan = (float("nan"), float("nan"))
    return tuple(Mark(side, name, name, *film.joints.get(side, nan)) for side in shown)
