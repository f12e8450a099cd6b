"""Further out-of-fold measures: levels told apart, landmarks found where there are none, boxes of detectors, classes of
each condition, and auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from osteograde.learning import average_precision
from osteograde.pipeline.load import Loaded
from osteograde.tasks.metrics import (
    OrdinalMetric,
    accuracy,
    auc_and_precision,
    f1s,
    groups_of,
    interval,
    precisions,
    recalls,
)
from osteograde.tasks.regions import nearest_stack
from osteograde.tasks.spec import CLASSES, GRADES, YES_NO, Head, Labels, Landmark, Locator, Points, Study, Task


def right_level(locator: Locator, loaded: Sequence[Loaded], found: Mapping[str, Points]) -> float | None:
    """Share of the landmarks found whose nearest annotated landmark, of their view and side, is the one of their own
    name; None where there is none to compare.

    loaded: studies with their annotated landmarks. found: study -> what the locator found there.
    """
    right = []
    for study in loaded:
        for landmark in locator.landmarks:
            rivals = _rivals(locator, landmark, study)
            if landmark.name in rivals and landmark.name in found.get(study.study.id, {}):
                point_mm = found[study.study.id][landmark.name].mm
                nearest = min(rivals, key=lambda name: float(np.linalg.norm(point_mm - rivals[name])))
                right.append(nearest == landmark.name)
    return round(float(np.mean(right)), 4) if right else None


def _rivals(locator: Locator, landmark: Landmark, loaded: Loaded) -> dict[str, np.ndarray]:
    """{name: mm} of the annotated landmarks of a locator on the side of one, annotated on series of the same view:
    points of other views may lie in another frame of reference."""
    view_of_series = {series.id: series.view for series in loaded.study.series}
    view_of = {mark.landmark: view_of_series.get(mark.series, "") for mark in loaded.study.marks}
    return {
        other.name: loaded.marks[other.name].mm
        for other in locator.landmarks
        if other.name in loaded.marks
        and other.side == landmark.side
        and view_of.get(other.name) == view_of.get(landmark.name)
    }


def false_finds(locator: Locator, loaded: Sequence[Loaded], found: Mapping[str, Points]) -> float | None:
    """Share of the landmarks known to be absent that were found all the same; None where none is known to be absent."""
    names = {landmark.name for landmark in locator.landmarks}
    wrong = [name in found.get(study.study.id, {}) for study in loaded for name in study.absent & names]
    return round(float(np.mean(wrong)), 4) if wrong else None


def box_scores(
    locator: Locator,
    box_mm: Mapping[str, tuple[float, float]],
    loaded: Sequence[Loaded],
    found: Mapping[str, Points],
) -> dict[str, float | None]:
    """Average precision at an intersection over union of 0.5 and 0.75, and mean recall over 0.50 to 0.95, of boxes
    around the landmarks that a detector found: "ap50", "ap75" and "ar", means over its classes (channels).

    box_mm: channel -> (height, width) of the box that is taught around its landmarks. An image is an annotated slice,
    and its plane is that of the stack which shows the annotated landmark; how far a landmark lies beside this plane
    does not count, as where detectors are run on annotated slices alone. None where nothing is annotated.
    """
    images: dict[str, dict[Hashable, list[tuple[np.ndarray, float, np.ndarray]]]] = {}
    channel_of = {landmark.name: landmark.channel for landmark in locator.landmarks}
    for study in loaded:
        view_of = {series.id: series.view for series in study.study.series}
        for mark in study.study.marks:
            stacks = study.volumes.get(view_of.get(mark.series, ""), ())
            if mark.landmark not in channel_of or mark.landmark not in study.marks or not stacks:
                continue
            true_mm = study.marks[mark.landmark].mm
            axes = nearest_stack(stacks, true_mm)[0].axes[1:]
            point = found.get(study.study.id, {}).get(mark.landmark)
            away = np.full(2, np.nan) if point is None else axes @ (point.mm - true_mm)
            image = images.setdefault(channel_of[mark.landmark], {})
            slot = image.setdefault((study.study.id, mark.series, mark.instance), [])
            slot.append((away, 0.0 if point is None else point.confidence, axes @ true_mm))
    tables = [
        average_precision.table([_boxes(slot, box_mm[channel]) for slot in slots.values()])
        for channel, slots in images.items()
    ]
    names = ("ap50", "ap75", "ar")
    return {name: _plain(float(np.mean([table[name] for table in tables]))) if tables else None for name in names}


def _boxes(
    slot: Sequence[tuple[np.ndarray, float, np.ndarray]], size_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(found (N, 4), scores (N,), true (M, 4)) of one image, in mm of its plane."""
    half = np.array(size_mm, float) / 2
    true = np.array([place for _, _, place in slot])
    seen = [(place + away, score) for away, score, place in slot if np.isfinite(away).all()]
    centres = np.array([place for place, _ in seen]).reshape(-1, 2)
    scores = np.array([score for _, score in seen])
    return np.hstack([centres - half, centres + half]), scores, np.hstack([true - half, true + half])


def confusions(task: Task, labels: Labels, probs: Mapping[str, np.ndarray]) -> dict[str, list[list[int]]]:
    """{condition: (K, K) counts of labelled targets}, rows the truth, columns the most probable class.

    probs: study -> (targets, K) in the order of the task.
    """
    condition_of = {site.target: site.condition for grader in task.graders for site in grader.sites}
    tables: dict[str, np.ndarray] = {
        site.condition: np.zeros((len(task.classes),) * 2, int) for grader in task.graders for site in grader.sites
    }
    column = {target: i for i, target in enumerate(task.targets)}
    for study, known in labels.items():
        for target, label in known.items():
            tables[condition_of[target]][label, int(np.argmax(probs[study][column[target]]))] += 1
    return {condition: table.tolist() for condition, table in tables.items()}


def class_scores(confusion: np.ndarray) -> tuple[float, np.ndarray]:
    """(accuracy, (K, 3): precision, recall and F1 of each class) of a confusion matrix; NaN where undefined."""
    values = np.stack([precisions(confusion), recalls(confusion), f1s(confusion)], -1)
    return float(accuracy(confusion)), values


def condition_lines(tables: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str]) -> list[str]:
    """Precision, recall and F1 of every class, a line for each condition and one for all of them together."""
    matrices = {condition: np.array(table) for condition, table in tables.items()}
    if len(matrices) > 1:
        matrices["all conditions"] = np.sum(list(matrices.values()), axis=0)
    lines = [f"{'precision recall F1':<30}{'accuracy':>9}" + "".join(f"{name:>20}" for name in classes)]
    for condition, matrix in matrices.items():
        right, values = class_scores(matrix)
        cells = ["  ".join("  - " if np.isnan(v) else f"{v:.2f}" for v in row) for row in values]
        shown = "-" if np.isnan(right) else f"{right:.3f}"
        lines.append(f"{condition:<30}{shown:>9}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


PARTS = {  # of the score of a head, the first one being shown: as it is called, and its name in ``OrdinalMetric``
    YES_NO: {"auc": "", "average_precision": ""},
    CLASSES: {"auc": "auc", "accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy"},
    GRADES: {"quadratic_kappa": "score", "accuracy": "accuracy", "mae": "mae"},
}


def head_scores(
    task: Task, studies: Sequence[Study], graded: Mapping[str, Mapping[str, np.ndarray]], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """{head: {"kind", "rows", "share", part: {"value", "interval_95"}}} of the auxiliary heads of all graders.

    graded: study -> target -> (K + F,) as ``predict.grade`` gives it. rows: how many labelled sites were graded. share:
    those of yes, or of each class. Parts of a yes/no head: AUC and average precision; of a head of classes: mean one
    against rest AUC, accuracy and balanced accuracy; of grades: quadratic kappa, accuracy and mean absolute error.
    Intervals draw patients. A head of whose classes fewer than two occur is left out.
    """
    groups = groups_of([study.patient for study in studies])
    scores = {}
    for grader in task.graders:
        for h, head in enumerate(grader.heads):
            labels = {
                study.id: {
                    site.target: study.head_labels[head.name][site.target]
                    for site in grader.sites
                    if site.target in study.head_labels.get(head.name, {}) and site.target in graded.get(study.id, {})
                }
                for study in studies
            }
            probs = {
                study: {target: grader.split_heads(graded[study][target], len(task.classes))[1][h] for target in known}
                for study, known in labels.items()
            }
            truth = np.array([label for known in labels.values() for label in known.values()], int)
            if len(set(truth.tolist())) < 2:
                continue
            statistic = _head_statistic(head, labels, probs)
            exact = statistic(np.ones((1, len(studies))))[0]
            low, high = interval(statistic, len(studies), resamples, np.random.default_rng(seed), groups=groups)
            counts = np.bincount(truth, minlength=len(head.classes) or 2) / len(truth)
            scores[head.name] = {
                "kind": head.kind,
                "rows": len(truth),
                "share": round(float(counts[1]), 4) if head.kind == YES_NO else [round(float(c), 4) for c in counts],
                **{
                    part: {"value": _plain(v), "interval_95": [_plain(a), _plain(b)]}
                    for part, v, a, b in zip(PARTS[head.kind], exact, low, high, strict=True)
                },
            }
    return scores


def head_lines(
    scores: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str, float | None, tuple[float | None, float | None]]]:
    """(head, part, value, 95 % interval) of the scores of heads as the manifest has them."""
    return [
        (name, part, value["value"], tuple(value["interval_95"]))
        for name, parts in scores.items()
        for part, value in parts.items()
        if isinstance(value, Mapping)
    ]


def _head_statistic(
    head: Head, labels: Labels, probs: Mapping[str, Mapping[str, np.ndarray]]
) -> Callable[[np.ndarray], np.ndarray]:
    """The parts of a head's score as a function of how often each study counts: (B, studies) -> (B, parts)."""
    if head.kind == YES_NO:
        cells = [
            (i, probs[study][t][0], y) for i, (study, known) in enumerate(labels.items()) for t, y in known.items()
        ]
        index, yes, truth = (np.array(column) for column in zip(*cells, strict=True))
        values = auc_and_precision(yes, truth == 1, index.astype(int))
        return lambda counts: np.stack(values(counts.T), 1)
    targets = tuple(dict.fromkeys(target for known in labels.values() for target in known))
    nothing = np.full(len(head.classes), np.nan)
    tables = {study: np.array([known.get(target, nothing) for target in targets]) for study, known in probs.items()}
    metric = OrdinalMetric(targets, head.classes, threshold=1)
    columns = [metric.parts.index(name) for name in PARTS[head.kind].values()]
    statistic = metric.bootstrap_statistic(labels, tables)
    return lambda counts: statistic(counts)[:, columns]


def _plain(value: float) -> float | None:
    """Four decimals; None, which JSON has, where the value is not defined."""
    return round(float(value), 4) if np.isfinite(value) else None
