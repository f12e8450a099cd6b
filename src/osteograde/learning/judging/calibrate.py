"""Calibrations of graders from out-of-fold answers, and what those answers are with calibrations they did not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from osteograde.pipeline.calibration import Calibration, fit_calibration
from osteograde.tasks.spec import Grade, Study, Task

Graded = Mapping[str, Mapping[str, np.ndarray]]


def calibrated(
    task: Task, studies: Sequence[Study], fold_of: Mapping[str, int], graded: Graded, balance: float = 0.0
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Calibration]]:
    """(answers, {grader: calibration}): the calibrations that ship, fitted on all answers, and the answers themselves
    each calibrated by a fit on the other folds, so that no label has a part in its own answer.

    balance: classes count in the fit by their frequency to the power of minus this. 0 gives the honest probabilities;
    more of it gives rare grades and those in between their due where the likeliest grade is what is read, at a cost in
    log loss. Graders of fewer than two folds, or without labels, stay as they are.
    """
    answers = {study: dict(targets) for study, targets in graded.items()}
    shipped: dict[str, Calibration] = {}
    for group in task.grade:
        probs, labels, folds = _labelled(task, group, studies, fold_of, graded)
        if len(set(folds)) < 2:
            continue
        shipped[group.name] = fit_calibration(probs, labels, _weights(task, labels, balance))
        for k in sorted(set(folds)):
            other = fit_calibration(probs[folds != k], labels[folds != k], _weights(task, labels[folds != k], balance))
            for study, target in ((s.id, site.target) for s in studies for site in group.sites):
                if fold_of[study] == k and target in answers.get(study, {}):
                    answer = answers[study][target].copy()
                    answer[: len(task.classes)] = other(answer[: len(task.classes)])
                    answers[study][target] = answer
    return answers, shipped


def _weights(task: Task, labels: np.ndarray, balance: float) -> np.ndarray:
    """(K,) the task's class weights, times the frequency of the classes to the power of minus ``balance``."""
    counts = np.bincount(labels, minlength=len(task.classes))
    return np.asarray(task.weights) * (np.maximum(counts, 1) / len(labels)) ** -balance


def _labelled(task: Task, group: Grade, studies: Sequence[Study], fold_of: Mapping[str, int], graded: Graded):
    """(probs (n, K), labels (n,), folds (n,)) of the answers of one grader that have a label."""
    rows = [
        (fold_of[study.id], graded[study.id][site.target][: len(task.classes)], study.labels[site.target])
        for study in studies
        for site in group.sites
        if site.target in study.labels and site.target in graded.get(study.id, {})
    ]
    folds, labels = (np.array([row[i] for row in rows], dtype=int) for i in (0, 2))
    return np.array([row[1] for row in rows]).reshape(len(rows), len(task.classes)), labels, folds
