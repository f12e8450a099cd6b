"""Grades of knees on composed films against those of the same knees as crops, or of two trainings, out-of-fold.

    python bench/film_grades.py --data DIR --films F --weights W [--against W2] [--views 2] [--folds 0,1]

F is where the films are or will be composed (W/work/synthetic of `train_folds.py knee-xray --out W`). Every film
shows knees of one patient; it and the crops it is made of are graded by the nets of the fold that held him out, around
the points of oof_points.csv. Answers are not calibrated. With W2 both folders grade the films, else W grades films and
crops. A film is scaled, turned, cut off, exposed and noisy, so some of the difference is lost for good.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from osteograde.inference import run
from osteograde.learning import folds
from osteograde.learning.compare import compare_out_of_fold
from osteograde.learning.cross_fit import net_name
from osteograde.learning.ensemble import OofTables
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import films
from osteograde.tasks.metrics import groups_of
from osteograde.tasks.spec import Grader, Point, Study

TASK = TASKS["knee-xray"]
CHUNK = 8  # studies that go through the nets together


def points_of(path: Path) -> dict[str, dict[str, Point]]:
    """Study -> what was found in it by a net that never saw it."""
    found: dict[str, dict[str, Point]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["x_mm"]:
                place = np.array([float(row[f"{axis}_mm"]) for axis in "xyz"])
                found.setdefault(row["study_id"], {})[row["landmark"]] = Point(place, float(row["confidence"]))
    return found


def grader_of(weights: Path) -> Grader:
    """The task's grader as these weights read it."""
    (grader,) = run.verified(weights)[0].graders
    return grader


def nets_of(weights: Path, k: int) -> predict.Nets:
    manifest = bundle.read_manifest(weights)
    name = net_name("grade", "kl", k)
    net = bundle.load_net(bundle.place(weights, name), manifest.files[name].net)
    return predict.Nets([net], manifest.pixels["kl"], torch.device("cpu"))


def graded(weights: Path, studies: Sequence[Study], split: folds.Split, views: int) -> dict[str, dict[str, np.ndarray]]:
    """Study -> side -> probabilities (K,) of knees that were found, by the nets of the fold that held it out."""
    found, grader = points_of(weights / "oof_points.csv"), grader_of(weights)
    seen = [study for study in studies if study.id in found]
    said: dict[str, dict[str, np.ndarray]] = {study.id: {} for study in studies}
    for k in sorted({split.fold_of(study) for study in seen}):
        nets, held = nets_of(weights, k), split.held_out(seen, k)
        for i in range(0, len(held), CHUNK):
            some = held[i : i + CHUNK]
            loaded, points = [load_study(study, TASK) for study in some], [found[study.id] for study in some]
            for study, own in zip(some, predict.grade(grader, loaded, points, nets, views=views), strict=True):
                said[study.id] = dict(own)
    return said


def answers(
    names: tuple[str, str], made: Sequence[Study], sides: Sequence[dict[str, dict[str, np.ndarray]]]
) -> OofTables:
    """Both sides of the comparison, on the knees that both have."""
    labels = {
        film.id: {side: grade for side, grade in film.labels.items() if all(side in one[film.id] for one in sides)}
        for film in made
    }
    labels = {film: own for film, own in labels.items() if own}
    kept = [film for film in made if film.id in labels]
    table = np.full((2, len(kept), len(TASK.targets), len(TASK.classes)), np.nan)
    for i, film in enumerate(kept):
        for side in labels[film.id]:
            for s, one in enumerate(sides):
                table[s, i, TASK.targets.index(side)] = one[film.id][side] / one[film.id][side].sum()
    group = groups_of([film.patient for film in kept])
    names_of = tuple(film.id for film in kept)
    return OofTables(TASK, names, names_of, table, labels, np.zeros(len(kept), int), group, "")


def _of_crops(film: Study, crop_of: dict[tuple[str, str], Study], said: dict[str, dict]) -> dict[str, np.ndarray]:
    """Side -> what was said of the crop that the knee of a film is made of."""
    crops = {side: said[crop_of[film.patient, side].id] for side in film.labels}
    return {side: own[side] for side, own in crops.items() if side in own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--films", "--weights"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--bootstrap", type=int, default=1000)
    args = parser.parse_args()
    recipe = RECIPES[TASK.name]()
    studies = sorted(TASK.read(args.data, "train"), key=lambda study: study.id)
    split = folds.read(args.weights / folds.FILE)
    made = films(studies, args.films, np.random.default_rng(recipe.scope.seed))
    chosen = {int(k) for k in args.folds.split(",")}
    made = [film for film in made if film.labels and split.fold_of(film) in chosen]
    on_films = graded(args.weights, made, split, args.views)
    if args.against:
        if folds.digest(args.against / folds.FILE) != folds.digest(args.weights / folds.FILE):
            raise SystemExit(f"{args.against}: other folds than {args.weights}")
        sides = [on_films, graded(args.against, made, split, args.views)]
        names = (f"{args.weights.name} on films", f"{args.against.name} on films")
    else:
        crop_of = {(study.patient, study.series[0].side): study for study in studies}
        crops = {crop.id: crop for film in made for side in film.labels for crop in [crop_of[film.patient, side]]}
        said = graded(args.weights, list(crops.values()), split, args.views)
        sides = [{film.id: _of_crops(film, crop_of, said) for film in made}, on_films]
        names = (f"{args.weights.name} on crops", f"{args.weights.name} on films")
    both = answers(names, made, sides)
    compared = compare_out_of_fold(both.task, both.sides(), resamples=args.bootstrap)
    print(f"{sum(len(own) for own in both.labels.values())} knees, {args.views} views")
    print(*compared.lines(), sep="\n")
    print(json.dumps(compared.plain()))


if __name__ == "__main__":
    main()
