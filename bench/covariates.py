"""What covariates add to the answers of trained nets: logistic regressions on out-of-fold tables, with and without.

    python bench/covariates.py TASK --data DIR --weights W [--covariates sex,age] [--bootstrap 2000]

W holds a table of answers by nets that never saw the study. In every fold a regression learns from the other folds to
correct the log probabilities; a second one is told the covariates as well, as a grader's net would be. Both are set
against each other with the paired bootstrap of ``osteograde runs --compare``: patients are drawn. Seconds, and no
net is trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from osteograde.learning.compare import compare_out_of_fold
from osteograde.learning.ensemble import OofTables, side_by_side
from osteograde.models.covariates import CovariateFeatures
from osteograde.tasks import TASKS
from osteograde.tasks.covariates import values_of
from osteograde.tasks.spec import Covariate, Study

LEAST = 1e-4  # probability below which a class is as good as excluded
STRENGTH = 0.3  # inverse of the weights' penalty


def columns(covariates: Sequence[Covariate], values: dict[str, np.ndarray], train: np.ndarray) -> np.ndarray:
    """(N, columns) of N rows as a net is given them, measured on the rows ``train`` (N,) alone."""
    features = CovariateFeatures([vars(one) for one in covariates])
    features.fit({name: column[train] for name, column in values.items()})
    parts, missing = features.columns({name: torch.from_numpy(v) for name, v in values.items()}, len(train))
    return torch.cat([*parts, missing.float()], 1).numpy()


def corrected(oof: OofTables, studies: Sequence[Study], covariates: Sequence[Covariate]) -> np.ndarray:
    """The first table of ``oof``, (S, T, K), each labelled row by a regression of the other folds."""
    targets = oof.task.targets
    at = [(s, t) for s, study in enumerate(studies) for t, name in enumerate(targets) if name in study.labels]
    rows = np.array(at)
    label = np.array([studies[s].labels[targets[t]] for s, t in at])
    fold = oof.fold[rows[:, 0]]
    logs = np.log(np.clip(oof.tables[0][rows[:, 0], rows[:, 1]], LEAST, 1))
    values = values_of(covariates, [(studies[s], targets[t]) for s, t in at])
    result = oof.tables[0].copy()
    for k in np.unique(fold):
        train = fold != k
        inputs = np.hstack([logs, columns(covariates, values, train)]) if covariates else logs
        model = LogisticRegression(C=STRENGTH, max_iter=3000).fit(inputs[train], label[train])
        answers = np.zeros((int((~train).sum()), logs.shape[1]))
        answers[:, model.classes_] = model.predict_proba(inputs[~train])
        result[tuple(rows[~train].T)] = answers
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    for name in ("--data", "--weights"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--covariates", help="comma-separated; all of the task if not given")
    parser.add_argument("--bootstrap", type=int, default=2000)
    args = parser.parse_args()
    task = TASKS[args.task]
    names = args.covariates.split(",") if args.covariates else [one.name for one in task.covariates]
    chosen = [one for one in task.covariates if one.name in names]
    oof = side_by_side(task, [args.weights], args.data)
    by_id = {study.id: study for study in task.read(args.data, "train")}
    studies = [by_id[name] for name in oof.studies]
    tables = np.array([corrected(oof, studies, ()), corrected(oof, studies, chosen)])
    both = replace(oof, members=("answers alone", "answers and " + ", ".join(names)), tables=tables)
    compared = compare_out_of_fold(task, both.sides(), resamples=args.bootstrap)
    print(*compared.lines(), sep="\n")
    print(json.dumps(compared.plain()))


if __name__ == "__main__":
    main()
