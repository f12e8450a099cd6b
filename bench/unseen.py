"""Points and grades on phantoms of a seed that no weights were trained on, with all views and with some removed.

    python bench/unseen.py --weights weights/lumbar-mr-phantom --studies 64 --seed 777001 [--work DIR]

Errors are measured against the anatomy's exact points (truth) and against the annotated pixels (marks).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from osteograde import phantom
from osteograde.inference import run
from osteograde.inference.deadline import Budget, Voter
from osteograde.inference.submission import Result, RunSummary
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.pipeline import predict
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import interval
from osteograde.tasks.spec import Study

TASK = TASKS["lumbar-mr"]
REMOVED = {"all views": (), "no axial": ("axi_t2",), "no sagittal T1": ("sag_t1",)}
BOOTSTRAP = 1000


def read_truth(path: Path) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            mm = np.array([float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")])
            found.setdefault(row["study_id"], {})[row["landmark"]] = mm
    return found


def errors(results: list[Result], truth: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict]:
    """Per structure: distance of net-found points in mm (truth and marks), found share, right level share."""
    table = {}
    for stage in TASK.locators:
        names = [landmark.name for landmark in stage.landmarks]
        true_mm, mark_mm, right, seen, found_count = [], [], [], 0, 0
        for result in results:
            true = truth[result.loaded.study.id]
            for name in names:
                if name not in result.loaded.marks:
                    continue  # not annotated: no slice shows it
                seen += 1
                point = result.points.get(name)
                if point is None or point.confidence <= 0.02:  # filled in by geometry
                    continue
                found_count += 1
                true_mm.append(np.linalg.norm(point.mm - true[name]))
                mark_mm.append(np.linalg.norm(point.mm - result.loaded.marks[name].mm))
                side = [other for other in names if other.rsplit("_", 2)[0] == name.rsplit("_", 2)[0]]
                right.append(min(side, key=lambda other: np.linalg.norm(point.mm - true[other])) == name)
        table[stage.name] = {
            "points": seen,
            "found": round(found_count / max(seen, 1), 4),
            "right_level": round(float(np.mean(right)), 4) if right else None,
            **{
                f"{kind}_{what}_mm": round(float(value(values)), 3)
                for kind, values in (("truth", true_mm), ("marks", mark_mm))
                for what, value in (("median", np.median), ("p95", lambda v: np.percentile(v, 95)))
                if values
            },
        }
    return table


def scores(results: list[Result], prior: Mapping, studies: Mapping[str, Study]) -> dict:
    labels = {result.loaded.study.id: studies[result.loaded.study.id].labels for result in results}
    own = {result.loaded.study.id: predict.probability_rows(TASK, result.graded, prior) for result in results}
    constant = dict.fromkeys(labels, predict.probability_rows(TASK, {}, prior))
    uniform = dict.fromkeys(labels, np.full((len(TASK.targets), len(TASK.classes)), 1 / len(TASK.classes)))
    low, high = interval(TASK.metric.bootstrap_statistic(labels, own), len(labels), BOOTSTRAP, np.random.default_rng(0))
    names = TASK.metric.parts
    found = {
        name: TASK.metric.score(labels, table)
        for name, table in (("model", own), ("prior", constant), ("uniform", uniform))
    }
    return {name: {part: round(float(v), 4) for part, v in values.items()} for name, values in found.items()} | {
        "interval_95": {
            name: [round(float(a), 4), round(float(b), 4)] for name, a, b in zip(names, low, high, strict=True)
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=64)
    parser.add_argument("--seed", type=int, default=777001)
    parser.add_argument("--work", type=Path, help="keep the phantoms here")
    args = parser.parse_args()
    weights = bundle.load(args.weights, TASKS, pick("auto"))
    folds = max(len(nets) for nets in weights.locators.values())
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        data = args.work or Path(folder)
        if not (data / "train.csv").is_file():
            phantom.write(TASK.name, data, studies=args.studies, seed=args.seed, workers=os.cpu_count() or 1)
        studies = TASK.read(data, "train")
        truth = read_truth(data / "truth_points.csv")
        for name, gone in REMOVED.items():
            kept = [replace(study, series=tuple(s for s in study.series if s.view not in gone)) for study in studies]
            budget = Budget(None, (Voter(weights.test_views, folds),))
            results = [result for chunk in run.graded_chunks(weights, kept, budget, RunSummary()) for result in chunk]
            report[name] = {
                "points": errors(results, truth),
                "scores": scores(results, weights.prior, {study.id: study for study in studies}),
            }
            show(name, report[name])
    print(json.dumps({"studies": args.studies, "seed": args.seed, **report}))


def show(name: str, report: dict) -> None:
    print(f"\n{name}")
    keys = ("points", "found", "right_level", "truth_median_mm", "truth_p95_mm", "marks_median_mm", "marks_p95_mm")
    print(f"{'locator':<10}" + "".join(f"{key:>17}" for key in keys))
    for stage, row in report["points"].items():
        print(f"{stage:<10}" + "".join(f"{row.get(key, '-')!s:>17}" for key in keys))
    print(f"{'part':<20}{'model':>9}{'95 % interval':>20}{'prior':>9}{'uniform':>9}")
    own = report["scores"]
    for part, value in own["model"].items():
        low, high = own["interval_95"][part]
        constants = "".join(f"{own[name][part]:>9.4f}" for name in ("prior", "uniform"))
        print(f"{part:<20}{value:>9.4f}{f'{low:.4f} - {high:.4f}':>20}{constants}")


if __name__ == "__main__":
    main()
