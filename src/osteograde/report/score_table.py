"""Scores of a submission: the official score with intervals over patients, beside those of the prior and of uniform
probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.tasks import tables
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.priors import as_rows
from osteograde.tasks.spec import Task
from osteograde.tasks.tables import some

TRUTHS = ("test_truth.csv", "train.csv")  # in this order; the one that knows most of the submission's studies counts

Labels = Mapping[str, Mapping[str, int]]


def score_file(task: Task, data: Path, submission: Path, bootstrap: int, *, split: str = "") -> dict[str, Any]:
    """``score_submission`` of the task as the data define it; the same table gets the same intervals every time."""
    classes = tables.read_rows(submission)[0][1:]
    known, rng = task.for_data(data, classes), np.random.default_rng(0)
    return score_submission(known, data, submission, bootstrap, rng, split=split)


def score_submission(
    task: Task, data: Path, submission: Path, bootstrap: int, rng: np.random.Generator, *, split: str = ""
) -> dict[str, Any]:
    """Scores of the studies that are both submitted and labelled, as plain data for a table and for JSON.

    bootstrap: resamples of patients behind the 95 % intervals; 0 = no intervals. split: of a published set, whose
    labels are the truth (``Task.read_split``). Keys: task, truth, studies,
    unlabelled and unsubmitted (counts), unsubmitted_rows (labels of submitted studies that have no row), score
    {part: value}, interval {part: [low, high]}, prior and uniform {part: value}, better {part: "higher" or "lower"},
    classes, confusion (rows: truth) and confusion_interval (numbers of cells), None where the task counts none. Parts
    that no label speaks of are None. UserError where nothing can be compared.
    """
    probs = submitted(task, submission)
    truth, labels = _labels_of_split(task, data, split, probs) if split else _truth(task, data, probs)
    submitted_labels = {
        study: _with_rows(task, given, probs[study]) for study, given in labels.items() if study in probs
    }
    both = {study: given for study, given in submitted_labels.items() if given}
    shape = (len(task.targets), len(task.classes))
    prior, uniform = as_rows(task.prior, task.targets), np.full(shape, 1 / shape[1])
    names = list(task.metric.score(both, probs))
    ends: list[tuple[float, float]] = []
    if bootstrap:
        groups = groups_of([task.patient_of(study) for study in both])
        low, high = interval(task.metric.bootstrap_statistic(both, probs), len(both), bootstrap, rng, groups=groups)
        ends = list(zip(low, high, strict=True))
    return {
        "task": task.name,
        "truth": truth.name,
        "studies": len(both),
        "unlabelled": len(set(probs) - set(both)),
        "unsubmitted": len(set(labels) - set(both)),
        "unsubmitted_rows": sum(len(labels[study]) - len(given) for study, given in both.items()),
        "bootstrap": bootstrap,
        "official": task.metric.words.get("score", "score"),
        "score": _plain(task.metric.score(both, probs)),
        "interval": {name: [_finite(a), _finite(b)] for name, (a, b) in zip(names, ends, strict=False)},
        "prior": _plain(task.metric.score(both, dict.fromkeys(both, prior))),
        "uniform": _plain(task.metric.score(both, dict.fromkeys(both, uniform))),
        "better": {name: "higher" if name in task.metric.higher_is_better else "lower" for name in names},
        "classes": list(task.classes),
        **_confusion(task, both, probs, bootstrap, rng),
    }


def _with_rows(task: Task, given: Mapping[str, int], probs: np.ndarray) -> dict[str, int]:
    """Those labels of a study whose rows were submitted, because a submission may hold fewer rows than the truth."""
    has = dict(zip(task.targets, np.isfinite(probs).all(1), strict=True))
    return {target: grade for target, grade in given.items() if has[target] or not task.per_study_targets}


def submitted(task: Task, path: Path) -> dict[str, np.ndarray]:
    """{study: (targets, classes)} probabilities of a submission. UserError names what is missing, occurs twice or
    belongs to another task."""
    columns, ids, values = tables.read_rows(path)
    if columns != [tables.ROW_ID, *task.classes]:
        raise UserError(f"{path}: wrong columns: expected {(tables.ROW_ID, *task.classes)}, found {tuple(columns)}")
    if doubled := tables.duplicates(ids):
        raise UserError(f"{path}: row ids more than once: {some(doubled)}")
    try:
        return tables.by_study(task, dict(zip(ids, values, strict=True)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def format_table(result: Mapping[str, Any]) -> str:
    """The result as lines of text; the last column says which way is better.

    >>> plain = {"score": 0.5}
    >>> print(format_table({"task": "t", "truth": "train.csv", "studies": 3, "unlabelled": 0, "unsubmitted": 0,
    ...     "bootstrap": 9, "score": plain, "interval": {"score": [0.4, 0.6]}, "prior": plain, "uniform": plain,
    ...     "better": {"score": "higher"}, "classes": ["no", "yes"], "confusion": [[1, 0], [1, 1]],
    ...     "confusion_interval": [[[0, 2], [0, 0]], [[0, 3], [0, 2.5]]]}))
    t: 3 studies of train.csv
                          score     95 % interval      prior    uniform  better
    score                0.5000   0.4000 - 0.6000     0.5000     0.5000  higher
    confusion (rows: truth, columns: most probable class)
                         no  yes
    no                    1    0
    yes                   1    1
    95 % interval
                         no  yes
    no                  0-2  0-0
    yes                 0-3  0-2
    """
    lines = [f"{result['task']}: {result['studies']} studies of {result['truth']}"]
    for key, what in (("unlabelled", "submitted, but without truth"), ("unsubmitted", "with truth, but not submitted")):
        if result[key]:
            lines.append(f"{result[key]} studies are {what}: left out")
    if result.get("unsubmitted_rows"):
        lines.append(f"{result['unsubmitted_rows']} labelled rows of these studies are not submitted: left out")
    lines.append(f"{'':18}{'score':>9}{'95 % interval':>18}{'prior':>11}{'uniform':>11}  better")
    for name in result["score"]:
        low, high = result["interval"].get(name, (None, None))
        between = f"{_text(low)} - {_text(high)}" if result["interval"] else "-"
        score, prior, uniform = (_text(result[key][name]) for key in ("score", "prior", "uniform"))
        lines.append(f"{name:18}{score:>9}{between:>18}{prior:>11}{uniform:>11}  {result['better'][name]}")
    if "score" in result["score"] and result.get("official", "score") != "score":
        lines.append(f"score: {result['official']}")
    if result["confusion"] is not None:
        lines += _confusion_lines(result)
    return "\n".join(lines)


def _confusion(
    task: Task, labels: Labels, probs: Mapping[str, np.ndarray], bootstrap: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The confusion matrix and the intervals of its cells, as ``score_submission`` describes them."""
    matrices = [task.metric.confusion({study: given}, probs) for study, given in labels.items()]
    counted = [matrix for matrix in matrices if matrix is not None]
    if not counted:
        return {"confusion": None, "confusion_interval": None}
    by_study = np.array(counted)
    ends = None
    if bootstrap:
        groups = groups_of([task.patient_of(study) for study in labels])
        low_high = interval(
            lambda counts: np.tensordot(counts, by_study, 1), len(labels), bootstrap, rng, groups=groups
        )
        ends = np.stack(low_high, -1).tolist()
    return {"confusion": by_study.sum(0).tolist(), "confusion_interval": ends}


def _confusion_lines(result: Mapping[str, Any]) -> list[str]:
    """The matrix, and the intervals of its cells where there are any."""
    tables = [("confusion (rows: truth, columns: most probable class)", result["confusion"])]
    if result["confusion_interval"]:
        ends = [[f"{low:.0f}-{high:.0f}" for low, high in row] for row in result["confusion_interval"]]
        tables.append(("95 % interval", ends))
    lines, classes = [], result["classes"]
    for title, table in tables:
        cells = [classes, *table]
        width = 2 + max(len(str(cell)) for row in cells for cell in row)
        lines.append(title)
        for name, row in zip(["", *classes], cells, strict=True):
            lines.append(f"{name:18}" + "".join(f"{cell!s:>{width}}" for cell in row))
    return lines


def _truth(task: Task, data: Path, probs: Mapping[str, np.ndarray]) -> tuple[Path, Labels]:
    """The table of truth that knows most of the submitted studies, and its labels."""
    paths = [path for name in TRUTHS if (path := Path(data) / name).is_file()]
    if not paths:
        return _own_labels(task, data, probs)
    labels = [(path, {study: given for study, given in task.read_labels(path).items() if given}) for path in paths]
    best = max(labels, key=lambda pair: len(set(pair[1]) & set(probs)))  # the first of equals
    if not set(best[1]) & set(probs):
        raise UserError(
            f"none of the {len(probs)} submitted studies is labelled in {' or '.join(map(str, paths))}; "
            f"submitted: {some(probs, 3)}; is this the right folder?"
        )
    return best


def _labels_of_split(task: Task, data: Path, split: str, probs: Mapping[str, np.ndarray]) -> tuple[Path, Labels]:
    """The labels of one split of a published set, and the name it is told by."""
    if task.read_split is None:
        raise UserError(f"{task.name}: its data have no published splits; leave out --split {split}")
    labels = {study.id: study.labels for study in task.read_split(Path(data), split)}
    if not set(labels) & set(probs):
        raise UserError(
            f"none of the {len(probs)} submitted studies is one of the {len(labels)} of split {split} in {data}; "
            f"submitted: {some(probs, 3)}; of the split: {some(labels, 3)}"
        )
    return Path(split), labels


def _own_labels(task: Task, data: Path, probs: Mapping[str, np.ndarray]) -> tuple[Path, Labels]:
    """The labels with which the task reads the data for training, such as grade folders or tables of other names."""
    try:
        studies = task.read(Path(data), "train")
    except UserError as error:
        named = " nor ".join(TRUTHS)
        raise UserError(f"{data}: holds neither {named}, nor labels of its own ({error}); nothing to score") from error
    labels = {study.id: study.labels for study in studies if study.labels}
    if not set(labels) & set(probs):
        raise UserError(
            f"none of the {len(probs)} submitted studies is labelled in {data}; submitted: {some(probs, 3)}; "
            "is this the right folder?"
        )
    return Path(data), labels


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None  # JSON has no NaN


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
