"""Films to learn joint centres and grades from, composed out of a data set's own crops, patient by patient."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from osteograde.imaging import image_files
from osteograde.phantom.knees.knee_film import SIDES, compose
from osteograde.tasks.knee.files import VIEW
from osteograde.tasks.spec import Mark, Series, Study

VERSION = 1  # change it when films are composed otherwise: those in a folder are made anew then
FILMS = 1500
EMPTY, ALONE, SINGLE = 0.12, 0.2, 0.2  # shares: no knee; one knee on a film for two; one knee on its own film
NOBODY = "nobody"  # films without a knee belong to no patient


def films(studies: Sequence[Study], folder: Path, rng: np.random.Generator, share: float = 1.0) -> list[Study]:
    """Studies of composed films, written into ``folder`` as PNG; the same films from the same rng and crops. A knee
    whose joint is on the film has the grade of its crop."""
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
    return [
        _film(f"film{i:05d}", patient, crops[patient], grades[patient], folder, rng)
        for i, patient in enumerate(patients[p] for p in picked)
    ]


def _film(
    name: str, patient: str, crops: dict[str, Path], grades: dict[str, int], folder: Path, rng: np.random.Generator
) -> Study:
    own = np.random.default_rng([int(rng.integers(2**31)), zlib.crc32(patient.encode())])
    kind, sides = own.random(), [side for side in SIDES if side in crops]
    layout, pixel_mm = "bilateral", float(own.uniform(0.45, 0.7))
    if kind < EMPTY:
        sides, patient = [], NOBODY
    elif kind < EMPTY + ALONE + SINGLE:
        sides = [str(own.choice(sides))]
        layout = "single" if kind < EMPTY + SINGLE else layout
    path, sidecar = folder / f"{name}.png", folder / f"{name}.json"
    made = json.dumps([VERSION, own.bit_generator.state, layout, pixel_mm, _state(crops, sides)], default=str)
    told = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() and path.is_file() else {}
    if told.get("made") != made:  # else the film is there, and its time stays: caches hold
        knees = [(image_files.read_pixels(crops[side]), side) for side in sides]
        film = compose(knees, own, layout=layout, pixel_mm=pixel_mm)
        cv2.imwrite(str(path), film.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        told = {"made": made, "joints": dict(film.joints)}
        sidecar.write_text(json.dumps(told), encoding="utf-8")  # last: it vouches for the film
    joints = {side: (float(x), float(y)) for side, (x, y) in told["joints"].items()}
    shown = tuple(sides) if layout == "single" else SIDES
    series = Series(name, VIEW, folder, (path,), (4.0, pixel_mm, pixel_mm), side=sides[0] if layout == "single" else "")
    labels = {side: grades[side] for side in joints if side in grades}
    return Study(name, patient, (series,), labels, marks=_marks(joints, name, shown), targets=shown)


def _state(crops: dict[str, Path], sides: Sequence[str]) -> list[tuple[str, int, int]]:
    """What says that the crops of a film are unchanged."""
    return [(crops[side].name, (stat := crops[side].stat()).st_size, stat.st_mtime_ns) for side in sides]


def _marks(joints: Mapping[str, tuple[float, float]], name: str, shown: Sequence[str]) -> tuple[Mark, ...]:
    nan = (float("nan"), float("nan"))
    return tuple(Mark(side, name, name, *joints.get(side, nan)) for side in shown)
