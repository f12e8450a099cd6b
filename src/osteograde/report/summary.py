"""Figures of a report, computed from out-of-fold rows. Shapes: n rows, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osteograde.report.oof_tables import Evidence, Graded
from osteograde.tasks import metrics
from osteograde.tasks.metrics import BINS, confidence_bin

TRUE_CLASS = "true class"


@dataclass(frozen=True)
class Summary:
    """Figures over some labelled rows; NaN where a figure is not defined."""

    rows: int
    log_loss: float
    accuracy: float
    within_one: float  # share at most one class off
    mae: float
    kappa: float  # quadratic


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability of the largest probability in ``BINS`` equal bins, each array (BINS,).

    count: rows in a bin. confidence: their mean probability. right: the share of them that is correct; both are NaN
    where a bin is empty. ece: the expected calibration error, the mean of |confidence - right| weighted by rows (Naeini
    et al., AAAI 2015).
    """

    count: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    ece: float


def confusion(graded: Graded, chosen: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) counts of the labelled rows among ``chosen``, (n,) booleans. Rows: true class; columns: most probable
    class.
    """
    rows = chosen & graded.labelled
    code = graded.label[rows] * classes + graded.probs[rows].argmax(1)
    return np.bincount(code, minlength=classes**2).reshape(classes, classes)


def summary(graded: Graded, chosen: np.ndarray, classes: int) -> Summary:
    """The figures of the labelled rows among ``chosen`` (n,) booleans."""
    table = confusion(graded, chosen, classes)
    off = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    loss = graded.loss()[chosen & graded.labelled]
    return Summary(
        rows=int(table.sum()),
        log_loss=float(loss.mean()) if len(loss) else float("nan"),
        accuracy=float(metrics.accuracy(table)),
        within_one=float(metrics.ratio(table[off <= 1].sum(), table.sum())),
        mae=float(metrics.mean_absolute_error(table)),
        kappa=float(metrics.quadratic_kappa(table)),
    )


def reliability(graded: Graded) -> Reliability:
    """The reliability of the largest probability over all labelled rows."""
    rows = graded.labelled
    top, right = graded.probs[rows].max(1), graded.probs[rows].argmax(1) == graded.label[rows]
    bins = confidence_bin(top)
    count = np.bincount(bins, minlength=BINS)
    mean = metrics.ratio(np.bincount(bins, top, BINS), count)
    hits = metrics.ratio(np.bincount(bins, right, BINS), count)
    distance = np.nan_to_num(np.abs(mean - hits))
    return Reliability(count, mean, hits, float(metrics.ratio((distance * count).sum(), count.sum())))


def breakdown(evidence: Evidence, graded: Graded) -> dict[str, dict[str, Summary]]:
    """{grouping: {value: figures}} by condition, level, side and true class; a grouping with a single value is left
    out."""
    sites, classes = evidence.sites, evidence.task.classes
    values_of: dict[str, list[str]] = {
        name: [getattr(sites[target][1], name) for target in graded.targets] for name in ("condition", "level", "side")
    }
    values_of[TRUE_CLASS] = [classes[label] if label >= 0 else "" for label in graded.label]
    order = {
        name: list(dict.fromkeys(getattr(site, name) for _, site in sites.values())) for name in list(values_of)[:3]
    }
    order[TRUE_CLASS] = list(classes)
    return {
        name: {value: summary(graded, np.array(values_of[name], object) == value, len(classes)) for value in values}
        for name, values in order.items()
        if len(values) > 1
    }
