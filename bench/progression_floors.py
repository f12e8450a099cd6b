"""Progression of knees: what recipes add to three floors, on the same knees, folds and resamples of patients.

    python bench/progression_floors.py --data KNEES --grades weights/knee-xray --runs image=W1 fusion=W2 ...

The floors are logistic regressions, fitted on the other folds: on the reader's grade of today (the labels' column kl),
on the probabilities of the five grades that the net of the fold, which never saw the patient, gives (oof.csv of
--grades), and on both. --runs: weights folders of train_folds.py knee-progression, whose oof.csv is read. Every row is
a score with its 95 % interval over patients; then each run minus the floor of the same inputs: "graded" runs are named
with a + in front of the folder (fusion=+W2) and stand against both, all others against the net's probabilities.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from osteograde.learning import folds
from osteograde.tasks import TASKS
from osteograde.tasks.knee_progression import read_rows, table_of
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.tables import read_rows as read_table

TASK = TASKS["knee-progression"]
PARTS = ("score", "average_precision", "brier", "log_loss", "ece", "sensitivity_at_80", "sensitivity_at_90")
RESAMPLES = 2000
SMALLEST = 1e-4  # probabilities are cut off before their logarithm is taken


def of_table(path: Path) -> dict[str, np.ndarray]:
    """Row id -> probabilities of an oof.csv; its columns fold and label are left out."""
    columns, rows, values = read_table(path)
    classes = [i for i, name in enumerate(columns[1:]) if name not in ("fold", "label")]
    return dict(zip(rows, values[:, classes], strict=True))


def floors(
    rows: list[str], grade: np.ndarray, probs: np.ndarray, truth: np.ndarray, fold: np.ndarray
) -> dict[str, np.ndarray]:
    """Name of a floor -> probability of progression (N,), each knee by a regression on the other folds."""
    one_hot, logs = np.eye(5)[grade], np.log(np.clip(probs, SMALLEST, 1))
    inputs = {"reader's grade": one_hot, "net's probabilities": logs, "both": np.hstack([one_hot, logs])}
    found = {name: np.zeros(len(rows)) for name in inputs}
    for name, values in inputs.items():
        for k in np.unique(fold):
            mean, spread = values[fold != k].mean(0), values[fold != k].std(0) + 1e-9
            model = LogisticRegression(C=1.0, max_iter=1000).fit((values[fold != k] - mean) / spread, truth[fold != k])
            found[name][fold == k] = model.predict_proba((values[fold == k] - mean) / spread)[:, 1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--grades", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=[], metavar="NAME=[+]FOLDER")
    args = parser.parse_args()
    labels, split = read_rows(table_of(args.data)), folds.read(args.grades / folds.FILE)
    graded = of_table(args.grades / "oof.csv")
    knees = [
        (study, side, labels[split.patient[study], side])
        for study in split.fold
        for side in ("right", "left")
        if study.endswith(side[0].upper()) and (split.patient[study], side) in labels
    ]
    rows = [f"{study}_{side}" for study, side, _ in knees]
    truth = np.array([row.progressed for *_, row in knees])
    grade = np.array([int(str(row.known["kl"])) for *_, row in knees])
    fold = np.array([split.fold[study] for study, *_ in knees])
    found = floors(rows, grade, np.array([graded[row] for row in rows]), truth, fold)
    against: dict[str, str] = {}
    for run in args.runs:
        name, _, folder = run.partition("=")
        table = of_table(Path(folder.removeprefix("+")) / "oof.csv")
        found[name] = np.array([table[row][1] for row in rows])
        against[name] = "both" if folder.startswith("+") else "net's probabilities"
    report(rows, truth, [split.patient[study] for study, *_ in knees], found, against)


def report(
    rows: list[str], truth: np.ndarray, patients: list[str], found: Mapping[str, np.ndarray], against: Mapping[str, str]
) -> None:
    """Print every score with its interval, then the paired differences."""
    labels = {row: {"right": int(label)} for row, label in zip(rows, truth, strict=True)}
    statistics = {}
    for name, yes in found.items():
        probs = {row: np.array([[1 - p, p], [np.nan] * 2]) for row, p in zip(rows, yes, strict=True)}
        statistics[name] = TASK.metric.bootstrap_statistic(labels, probs)
    columns, groups = [TASK.metric.parts.index(part) for part in PARTS], groups_of(patients)
    print(f"{len(rows)} knees of {groups.max() + 1} patients, {truth.sum()} progressed")
    print(f"{'':24}" + "".join(f"{part:>26}" for part in PARTS))
    for name, statistic in statistics.items():
        print(f"{name:24}" + _cells(statistic, len(rows), groups, columns))
    for name, floor in against.items():
        one, other = statistics[name], statistics[floor]
        print(f"{name} - {floor}")
        print(f"{'':24}" + _cells(lambda counts, a=one, b=other: a(counts) - b(counts), len(rows), groups, columns))


def _cells(statistic, count: int, groups: np.ndarray, columns: list[int]) -> str:
    exact = statistic(np.ones((1, count)))[0]
    low, high = interval(statistic, count, RESAMPLES, np.random.default_rng(0), groups=groups)
    return "".join(f"{f'{exact[i]:.4f} ({low[i]:.4f} - {high[i]:.4f})':>26}" for i in columns)


if __name__ == "__main__":
    main()
