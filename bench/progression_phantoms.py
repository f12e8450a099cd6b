"""What covariates add to an image on phantoms, whose progression depends on both: paired, by patient, out-of-fold.

    python bench/progression_phantoms.py --out W [--patients 400] [--seed 11]

Phantom tables in OAI's form become labels (osteograde targets); two nets of each of three folds are fitted on the
frozen ImageNet features of their crops, one with the covariates of the tables and one without (head_fit). The third row
is a regression on the covariates alone. Crops are cut at the annotated joints.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from progression_floors import of_table
from sklearn.linear_model import LogisticRegression

from osteograde import phantom
from osteograde.learning import folds
from osteograde.learning.recipe import Recipe, Start, for_grader
from osteograde.learning.recipes.progression import KNOWN, fusion_frozen
from osteograde.learning.train import train
from osteograde.logs import to_stdout
from osteograde.tasks import TASKS
from osteograde.tasks.covariates import values_of
from osteograde.tasks.metrics import auc_and_precision, groups_of, interval

TASK = TASKS["knee-progression"]
(GRADER,) = TASK.graders


def recipe(covariates: tuple[str, ...]) -> Recipe:
    """The last layer on features of ImageNet; a locator that finds nothing, so that annotated joints are used."""
    base = fusion_frozen()
    (plan,) = base.graders[GRADER.name]
    net = {**plan.net, "backbone": "tf_efficientnet_lite0", "stages": 4}
    net.pop("covariates", None)
    start = Start(weights="pip:efficientnet-lite0")
    plan = replace(plan, net=net, pixels=(96, 128), covariates=covariates, drop_covariate=0.0, start=start)
    (locator,) = base.locators.values()
    return replace(
        base,
        name="phantom",
        locators={TASK.locators[0].name: replace(locator, start=Start())},
        graders={GRADER.name: (for_grader(plan, GRADER, TASK),)},
        scope=replace(base.scope, folds=3, annotated_points=True),
    )


def covariates_alone(data: Path, out: Path, rows: list[str]) -> np.ndarray:
    """(N,) probabilities of a logistic regression on the covariates, fitted on the other folds."""
    split = folds.read(out / folds.FILE)
    studies = {study.id: study for study in TASK.read(data, "train")}
    places = [(studies[row.rpartition("_")[0]], row.rpartition("_")[2]) for row in rows]
    columns = values_of(TASK.covariates, places)
    known = np.column_stack([column for one in TASK.covariates for column in _columns(one, columns[one.name])])
    fold = np.array([split.fold[study.id] for study, _ in places])
    truth = np.array([study.labels[side] for study, side in places])
    said = np.zeros(len(rows))
    for k in np.unique(fold):
        mean = np.nanmean(known[fold != k], 0)
        filled = np.where(np.isnan(known), mean, known)
        spread = filled[fold != k].std(0) + 1e-9
        model = LogisticRegression(C=1.0, max_iter=1000).fit(((filled - mean) / spread)[fold != k], truth[fold != k])
        said[fold == k] = model.predict_proba(((filled - mean) / spread)[fold == k])[:, 1]
    return said


def _columns(covariate, values: np.ndarray) -> list[np.ndarray]:
    if covariate.kind == "number":
        return [values]
    return [np.where(np.isnan(values), np.nan, values == i) for i in range(len(covariate.categories))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    to_stdout()
    data = args.out / "data"
    if not data.is_dir():
        phantom.write("knee-progression", data, studies=args.patients, seed=args.seed)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, covariates in (("image", ()), ("image and covariates", KNOWN)):
        out = args.out / name.replace(" ", "-")
        train(recipe(covariates), data, out, only=None, device=torch.device("cpu"), resume=True)
        found[name] = of_table(out / "oof.csv")
    studies = {study.id: study for study in TASK.read(data, "train")}
    rows = [f"{study.id}_{side}" for study in studies.values() for side in study.labels]
    truth = np.array([studies[row.rpartition("_")[0]].labels[row.rpartition("_")[2]] for row in rows])
    groups = groups_of([studies[row.rpartition("_")[0]].patient for row in rows])
    said = {name: np.array([table[row][1] for row in rows]) for name, table in found.items()}
    said["covariates"] = covariates_alone(data, args.out / "image", rows)
    areas = {name: auc_and_precision(yes, truth == 1, np.arange(len(rows))) for name, yes in said.items()}
    print(f"{len(rows)} knees of {groups.max() + 1} patients, {truth.sum()} progressed")
    for name, area in areas.items():
        _line(name, lambda counts, a=area: a(counts.T)[0], len(rows), groups)
    for name in ("image", "covariates"):
        _line(
            f"image and covariates - {name}",
            lambda counts, b=areas[name]: areas["image and covariates"](counts.T)[0] - b(counts.T)[0],
            len(rows),
            groups,
        )


def _line(name: str, statistic, count: int, groups: np.ndarray) -> None:
    low, high = interval(statistic, count, 2000, np.random.default_rng(0), groups=groups)
    print(f"{name:36} AUC {statistic(np.ones((1, count)))[0]:+.4f} ({low:+.4f} - {high:+.4f})")


if __name__ == "__main__":
    main()
