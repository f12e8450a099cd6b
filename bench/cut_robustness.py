"""What a grader loses where its crops are cut otherwise: shifted, scaled or turned about the place that was found.

    python bench/cut_robustness.py --weights weights/knee-xray --data KNEES [--folds 0] [--limit 600] [--views 6]

Out-of-fold: each study is graded by the nets of the fold that held its patient out, around the points of
oof_points.csv. Every kind of cut is tried in all its directions (a shift to all sides, a scale and a turn both ways),
and each direction counts alike. Answers are not calibrated. Printed are the score as it is and what each kind
loses, paired, with 95 % intervals over patients. Composed films are cut by the locator: bench/film_grades.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from film_grades import points_of

from osteograde.imaging.geometry import Roi
from osteograde.inference import run
from osteograde.learning import folds
from osteograde.learning.compare import OofTable, compare_out_of_fold
from osteograde.learning.cross_fit import net_name
from osteograde.models import bundle
from osteograde.models.device import keep_all_freed_memory
from osteograde.pipeline import predict
from osteograde.pipeline.crops import turned
from osteograde.pipeline.load import load_study
from osteograde.tasks.spec import Boxes, Grader, Study, Task

Change = Callable[[Roi], Roi]
CHUNK = 8  # studies that go through the nets together
SHOWN = ("score", "accuracy", "mae")


def shifted(rows_mm: float, columns_mm: float) -> Change:
    """Move a crop in its own plane."""

    def change(roi: Roi) -> Roi:
        to_mm = roi.to_mm.copy()
        for axis, mm in ((1, rows_mm), (2, columns_mm)):
            to_mm[:3, 3] += mm * to_mm[:3, axis] / np.linalg.norm(to_mm[:3, axis])
        return Roi(to_mm, roi.shape)

    return change


CUTS: dict[str, tuple[Change, ...]] = {
    "shifted by 10 mm": (shifted(10, 0), shifted(-10, 0), shifted(0, 10), shifted(0, -10)),
    "scaled by 15 %": tuple(partial(turned, degrees=0.0, scale=scale) for scale in (1.15, 1 / 1.15)),
    "turned by 10 degrees": tuple(partial(turned, degrees=degrees, scale=1.0) for degrees in (10.0, -10.0)),
}


def cut(grader: Grader, change: Change) -> Grader:
    """The grader with all its crops changed."""

    def regions(volumes, points, pixels) -> Boxes:
        found = grader.regions(volumes, points, pixels)
        return {
            target: {name: (volume, change(box)) for name, (volume, box) in boxes.items()}
            for target, boxes in found.items()
        }

    return replace(grader, regions=regions)


def graded(
    task: Task, grader: Grader, weights: Path, held: dict[int, list[Study]], views: int
) -> dict[str, np.ndarray]:
    """Study -> (T, K) answers of the nets that never saw its patient; NaN where there are none."""
    manifest, found = bundle.read_manifest(weights), points_of(weights / "oof_points.csv")
    said = {}
    for k, studies in held.items():
        name = net_name("grade", grader.name, k)
        net = bundle.load_net(bundle.place(weights, name), manifest.files[name].net)
        nets = predict.Nets([net], manifest.pixels[grader.name], torch.device("cpu"))
        for begin in range(0, len(studies), CHUNK):
            some = studies[begin : begin + CHUNK]
            loaded, points = [load_study(study, task) for study in some], [found.get(study.id, {}) for study in some]
            for study, own in zip(some, predict.grade(grader, loaded, points, nets, views=views), strict=True):
                table = np.full((len(task.targets), len(task.classes)), np.nan)
                for target, probs in own.items():
                    classes = probs[: len(task.classes)]
                    table[task.targets.index(target)] = classes / classes.sum()
                said[study.id] = table
    return said


def tables_of(
    name: str, task: Task, weights: Path, held: dict[int, list[Study]], changes: Sequence[Change], views: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    """(ids, id -> answers) with one id for each study and direction."""
    (grader,) = task.graders
    said: dict[str, np.ndarray] = {}
    for number, change in enumerate(changes):
        for study, table in graded(task, cut(grader, change), weights, held, views).items():
            said[f"{study}#{number}"] = table
    print(f"{name}: {len(said)} answers", flush=True)
    return list(said), said


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=lambda text: [int(k) for k in text.split(",")], default=[0])
    parser.add_argument("--limit", type=int, default=0, help="studies of each fold; 0: all")
    parser.add_argument("--views", type=int, default=6)
    args = parser.parse_args(argv)
    keep_all_freed_memory()
    task, split = run.verified(args.weights)[0], folds.read(args.weights / folds.FILE)
    studies = [study for study in sorted(task.read(args.data, "train"), key=lambda one: one.id) if study.labels]
    held = {k: split.held_out(studies, k)[: args.limit or None] for k in args.folds}
    by_id = {study.id: (study, k) for k, some in held.items() for study in some}
    plain = graded(task, task.graders[0], args.weights, held, args.views)
    for name, changes in CUTS.items():
        ids, said = tables_of(name, task, args.weights, held, changes, args.views)
        of = {one: one.rpartition("#")[0] for one in ids}
        common = (
            {one: by_id[of[one]][0].labels for one in ids},
            {one: by_id[of[one]][0].patient for one in ids},
            {one: by_id[of[one]][1] for one in ids},
        )
        sides = [
            OofTable("as it is", task.name, {one: plain[of[one]] for one in ids}, *common),
            OofTable(name, task.name, said, *common),
        ]
        compared = compare_out_of_fold(task, sides)
        parts = tuple(part for part in compared.parts if part.name in SHOWN)
        print("\n".join(replace(compared, parts=parts).lines()), flush=True)


if __name__ == "__main__":
    main()
