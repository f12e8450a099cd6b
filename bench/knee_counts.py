"""How often a film is read with the right number of knees, on the right sides and in the right place.

    python bench/knee_counts.py --data DIR --weights weights/knee-xray [--films 100] [--sized] [--named]

DIR: the crops that the weights were trained on, in grade folders. Films are composed of the crops of patients of fold
0 and looked at by the nets of fold 0 alone, which never saw them. They are written as PNG of unknown size, or with
--sized as DICOM, under names that say nothing, or with --named the side. "before" is what size, header and name alone
say, "after" what the joints in the image say. Of all films are counted

* rows: those of whose rows as many are graded as the film has knees (the row of an empty half keeps the prior);
* place: those of them whose joints all lie within 20 mm of where the crop's centre was put;
* side: those whose rows are of the right sides;
* told: the same, or the flag says that the side of one knee is assumed.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from osteograde.imaging import image_files
from osteograde.imaging.geometry import apply
from osteograde.inference import run
from osteograde.inference.deadline import Effort
from osteograde.models import bundle
from osteograde.phantom.dicom_writer import write_film
from osteograde.pipeline import image_checks, predict, readings
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import SIDES, Film, compose
from osteograde.tasks.spec import Points, Study

FOLD = "0"
NEAR_MM = 20.0


@dataclass(frozen=True)
class Kind:
    """knees: on a film. width_mm: of the film. ratio: its width over its height. place: of one knee, as a share of the
    width from the left."""

    knees: int
    width_mm: tuple[float, float]
    ratio: tuple[float, float]
    place: tuple[float, float] = (0.3, 0.7)
    pixel_mm: tuple[float, float] = (0.45, 0.7)


KINDS = {
    "one, centred, portrait": Kind(1, (170, 300), (0.72, 0.98), (0.42, 0.58)),
    "one, off centre, wide": Kind(1, (250, 430), (1.15, 1.8), (0.2, 0.8)),
    "one, small square": Kind(1, (135, 160), (0.98, 1.02), (0.47, 0.53)),
    "both, square": Kind(2, (300, 430), (0.95, 1.05)),
    "both, wide": Kind(2, (300, 430), (1.15, 1.8)),
    "both, tall": Kind(2, (300, 430), (0.6, 0.9)),
    "both, small square": Kind(2, (300, 430), (0.97, 1.03), pixel_mm=(0.9, 1.5)),
}


@dataclass
class Count:
    films: int = 0
    rows: int = 0
    placed: int = 0
    sides: int = 0
    told: int = 0


def made(kind: Kind, crops: Mapping[str, Path], rng: np.random.Generator) -> Film:
    """A film of a patient's knees."""
    sides = SIDES if kind.knees == 2 else (str(rng.choice(SIDES)),)
    width = rng.uniform(*kind.width_mm)
    size_mm = width, width / rng.uniform(*kind.ratio)
    knees = [(image_files.read_pixels(crops[side]), side) for side in sides]
    layout = "bilateral" if kind.knees == 2 else "single"
    while True:
        film = compose(
            knees, rng, layout=layout, pixel_mm=rng.uniform(*kind.pixel_mm), size_mm=size_mm, place=kind.place
        )
        if len(film.joints) == kind.knees:  # none is cut off
            return film


def judged(film: Film, loaded: Loaded, points: Points) -> tuple[bool, bool, bool, bool]:
    """(right rows, joints in place, sides right, sides right or flagged) of a film as it is read."""
    study = loaded.study
    sides = study.targets or tuple(side for side in SIDES if side in points)
    (volume,) = loaded.volumes["film"]
    places = {}
    for side in sides:
        if side in points:
            index = apply(np.linalg.inv(volume.to_mm), points[side].mm)
            places[side] = index[2], index[1]
    rows = len(sides) == len(film.joints)
    truth = dict(zip(sides, film.joints.values(), strict=True)) if rows and len(sides) == 1 else film.joints
    placed = rows and all(
        side in places and np.hypot(*np.subtract(places[side], xy)) * film.pixel_mm <= NEAR_MM
        for side, xy in truth.items()
    )
    right = rows and {*sides} == {*film.joints}
    return rows, placed, right, right or (rows and loaded.faults["side_assumed"] > 0)


def read(folder: Path, name: str, film: Film, sized: bool, named: bool) -> Study:
    """The study of a film that is written as a file."""
    side = next(iter(film.joints)) if named and len(film.joints) == 1 else ""
    path = folder / (f"{name}_{side}" if side else name)
    if sized:
        write_film(path.with_name(path.name + ".dcm"), film.pixels, film.pixel_mm, name)
    else:
        cv2.imwrite(f"{path}.png", film.pixels)
    (study,) = TASKS["knee-xray"].read(folder, "test")
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--films", type=int, default=100)
    parser.add_argument("--sized", action="store_true")
    parser.add_argument("--named", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    nets = bundle.load(args.weights, TASKS, torch.device("cpu"))
    locators, graders = (run.nets_of(nets, kind, Effort(1, 1)) for kind in ("locate", "grade"))
    with (args.weights / "folds.csv").open(newline="", encoding="utf-8") as file:
        held = {row["patient"] for row in csv.DictReader(file) if row["fold"] == FOLD}
    crops: dict[str, dict[str, Path]] = defaultdict(dict)
    for study in TASKS["knee-xray"].read(args.data, "train"):
        if study.patient in held:
            crops[study.patient][study.series[0].side] = study.series[0].files[0]
    patients = sorted(patient for patient, own in crops.items() if len(own) == len(SIDES))
    other_side = partial(image_checks.is_other_side, nets, graders)
    print(f"{'kind':26}{'':8}{'films':>6}{'rows':>6}{'place':>6}{'side':>6}{'told':>6}")
    for number, (name, kind) in enumerate(KINDS.items()):
        counts = {"before": Count(), "after": Count()}
        for i in range(args.films):
            rng = np.random.default_rng([number, i])
            film = made(kind, crops[patients[rng.integers(len(patients))]], rng)
            with tempfile.TemporaryDirectory() as folder:
                loaded = load_study(read(Path(folder), f"film{i:04d}", film, args.sized, args.named), nets.task)
                seen = predict.locate_all(nets.task, [loaded], locators)[1]
                after, found = readings.settled(nets.task, [loaded], locators, other_side)
            for when, own, points in (("before", loaded, seen[0]), ("after", after[0], found[0])):
                rows, placed, side, told = judged(film, own, points)
                count = counts[when]
                count.films += 1
                count.rows += rows
                count.placed += placed
                count.sides += side
                count.told += told
        for when, count in counts.items():
            figures = (count.films, count.rows, count.placed, count.sides, count.told)
            print(f"{name:26}{when:8}" + "".join(f"{figure:6}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
