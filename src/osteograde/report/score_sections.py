"""The sections of a report that tell how good the weights are: the result first, then what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from osteograde.learning.compare import HEADLINE, Comparison
from osteograde.learning.ensemble import score_rows
from osteograde.learning.evaluate import head_lines
from osteograde.report import charts, class_figures
from osteograde.report.charts import between, number, table
from osteograde.report.class_figures import ClassFigures
from osteograde.report.oof_tables import Evidence, Graded
from osteograde.report.words import plain

NO_LABELS = "No labels: oof.csv holds none. Give the labelled studies with --data."
BY_CLASS = ("precision_", "recall_", "f1_")  # parts that the table of classes shows
HEAD_WORDS = {
    "auc": "area under the ROC curve",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic weighted kappa",
    "mae": "mean absolute error, classes",
}
Ends = tuple[float | None, float | None]
NONE: Ends = (None, None)


def missing(graded: Graded | None) -> str:
    """Says why a section is empty."""
    return "<p>oof.csv is not in the folder.</p>" if graded is None else f"<p>{NO_LABELS}</p>"


def result(evidence: Evidence) -> str:
    """The official score: its name, its value, its interval as a bar, and the answer of the prior."""
    metric, scores = evidence.task.metric, evidence.manifest.scores.grade
    if evidence.voters:
        row = evidence.chosen["nested"]
        value, ends, prior, studies = row["score"], tuple(row["interval_95"]), None, evidence.chosen["studies"]
        said = "Each fold is answered by the members and the rule that were chosen on the other folds (nested)."
    elif scores and scores["model"].get(HEADLINE) is not None:
        value, prior = scores["model"][HEADLINE], scores.get("prior", {}).get(HEADLINE)
        ends, studies = _ends(scores, HEADLINE), scores.get("studies")
        said = "Every study is graded by nets that never saw its patient."
    else:
        return "<p>The manifest holds no scores.</p>"
    better = HEADLINE in metric.higher_is_better
    known = [v for v in (value, *ends, prior) if v is not None]
    scale = (min(0.0, *known), 1.0) if better else (0.0, 1.1 * max(known))
    words = metric.words[HEADLINE]
    span = f" (95 % interval {between(*ends)})" if None not in ends else ""
    label = f"{words} {number(value)}{span}, prior {number(prior)}"
    count = f"{studies} held-out studies. " if studies is not None else ""
    interval = "The interval resamples patients. " if span else ""
    known_prior = "The prior knows only how frequent the classes are. " if prior is not None else ""
    return (
        f'<div class="headline"><div><p>{escape(words[:1].upper() + words[1:])}, '
        f'{"higher" if better else "lower"} is better</p><p class="big">{number(value)}</p>'
        f"<p>{escape(span.strip(' ()'))}</p></div><div>"
        f"{charts.interval_bar(value, ends, prior, scale, label)}"
        f"<p>{escape(count + said)} {interval}{known_prior}</p></div></div>"
    )


def _ends(scores: Mapping[str, Any], name: str) -> Ends:
    """The 95 % interval of a part of the score, as the manifest holds it."""
    low, high = scores.get("interval_95", {}).get(name, NONE)
    return low, high


def comparison(compared: Comparison, words: Mapping[str, str]) -> str:
    """What other weights folders have more than the first one, part by part."""
    first, *others = compared.names
    said = (
        f"<p>{compared.rows} labelled rows of {compared.studies} studies and {compared.patients} patients, which all "
        f"folders have. Differences are paired: intervals resample the same patients for both sides. Each folder is "
        f"compared with {escape(first)}.</p>"
    )
    notes = "".join(f"<p>Note: {escape(note)}.</p>" for note in compared.notes)
    parts = sorted(compared.parts, key=lambda part: part.name != HEADLINE)
    blocks = []
    for i, other in enumerate(others):
        body = [
            [words[part.name], "higher" if part.higher_is_better else "lower", number(part.values[0], 4),
             number(part.values[i + 1], 4), f"{part.differences[i]:+.4f}" if np.isfinite(part.differences[i]) else "-",
             _signed(part.intervals[i]), part.verdict(i)]
            for part in parts
        ]  # fmt: skip
        head = ["score", "better", first, other, "difference", "95 % interval", "verdict"]
        blocks.append(f"<h3>{escape(other)} against {escape(first)}</h3>" + table(head, body, words=2))
    rows = [
        (other, compared.headline.differences[i], *compared.headline.intervals[i]) for i, other in enumerate(others)
    ]
    better = "right" if compared.headline.higher_is_better else "left"
    label = f"Differences of {words[HEADLINE]} from {first}"
    chart = charts.forest(rows, f"difference from {first}; better: {better}", label)
    title = f"<h3>{escape(words[HEADLINE][:1].upper() + words[HEADLINE][1:])}</h3>"
    return said + notes + title + chart + "".join(blocks)


def _signed(ends: tuple[float, float]) -> str:
    """The interval of a difference, or a dash."""
    return f"{ends[0]:+.4f} to {ends[1]:+.4f}" if np.isfinite(ends).all() else "-"


def scores(evidence: Evidence) -> str:
    """All parts of the score as the manifest holds them, in words; the official one first."""
    told = evidence.manifest.scores.grade
    if evidence.voters:
        return _ensemble_scores(evidence.chosen)
    if not told:
        return "<p>The manifest holds no scores.</p>"
    metric, prior = evidence.task.metric, told.get("prior", {})
    by_class = evidence.graded is not None and bool(evidence.graded.labelled.any())  # are shown in their own table
    names = sorted(told["model"], key=lambda name: name != HEADLINE)
    body: list[list[object]] = []
    for name in names:
        if by_class and name.startswith(BY_CLASS):
            continue
        value, ends, better = told["model"][name], _ends(told, name), name in metric.higher_is_better
        known = [v for v in (value, *ends, prior.get(name)) if v is not None]
        top = 1.0 if better else 1.05 * max([*known, 1e-9])
        span = charts.small_span(value, ends, prior.get(name), top)
        words = metric.words.get(name, plain(name))
        body.append([words, "higher" if better else "lower", number(value, 4), between(*ends, 4),
                     number(prior.get(name), 4), span])  # fmt: skip
    head = ["score", "better", "model", "95 % interval", "prior", "model and prior"]
    key = "Dot and line: the value and its interval; upright: the prior. Scales begin at 0."
    return table(head, body, key, words=2)


def _ensemble_scores(chosen: Mapping[str, Any]) -> str:
    """The official score of every member and of the choice, as ensemble.json holds them."""
    body = [
        [name, number(row["score"], 4), between(row["interval_95"][0], row["interval_95"][1], 4)]
        for name, row in score_rows(chosen)
    ]
    words = (
        f"Official score, {chosen['better']} is better; {chosen['studies']} studies of {chosen['patients']} patients. "
        "The nested score is the one to report: each fold is answered by what was chosen on the other folds."
    )
    return table(["out-of-fold", "score", "95 % interval"], body, words)


def heads(evidence: Evidence) -> str:
    """The scores of auxiliary heads; "" where the manifest holds none."""
    told = evidence.manifest.scores.findings
    body: list[list[object]] = []
    for name, part, value, (low, high) in head_lines(told):
        top = 1.0 if part != "mae" else max([1.0, *(v for v in (value, low, high) if v is not None)])
        span = charts.small_span(value, (low, high), None, top)
        row: list[object] = [plain(name), HEAD_WORDS.get(part, plain(part)), told[name].get("rows", "-")]
        body.append([*row, number(value, 4), between(low, high, 4), span])
    head = ["question", "score", "rows", "value", "95 % interval", ""]
    note = (
        "What the graders answer beside the grade. It is written to the table of findings and is not part of the score."
    )
    return table(head, body, note, words=2) if body else ""


def figures(evidence: Evidence, rng: np.random.Generator) -> dict[str, ClassFigures]:
    """The figures of all rows and, where there are several conditions, of each of them; none without labels."""
    graded = evidence.graded
    if graded is None or not graded.labelled.any():
        return {}
    of = lambda rows: class_figures.of_rows(graded, rows, len(evidence.task.classes), evidence.patient, rng)  # noqa: E731
    found = {"All rows": of(np.ones(len(graded.ids), bool))}
    conditions = dict.fromkeys(site.condition for _, site in evidence.sites.values())
    for condition in conditions if len(conditions) > 1 else ():
        rows = np.array([evidence.sites[target][1].condition == condition for target in graded.targets])
        if (rows & graded.labelled).any():
            found[plain(condition)] = of(rows)
    return found


def classes(evidence: Evidence, found: Mapping[str, ClassFigures]) -> str:
    """Precision, recall and F1 of every class of every condition, and the confusion matrices."""
    if not found:
        return missing(evidence.graded)
    names = [plain(name) for name in evidence.task.classes]
    body: list[list[object]] = []
    for condition, one in found.items():
        for k, name in enumerate(names):
            row: list[object] = [name, *([condition] if len(found) > 1 else []), int(one.confusion[k].sum())]
            for s in range(3):
                ends = between(one.scores.low[k, s], one.scores.high[k, s], 2).replace(" to ", "-")
                row += [number(one.scores.value[k, s]), f"({ends})" if ends != "-" else "-"]
            body.append(row)
    several = ["condition"] if len(found) > 1 else []
    head = ["class", *several, "rows", "precision", "", "recall", "", "F1", ""]
    accuracies = "; ".join(
        f"{condition.lower()} {number(float(one.accuracy.value))} "
        f"({between(float(one.accuracy.low), float(one.accuracy.high))})"
        for condition, one in found.items()
    )
    matrices = "".join(charts.confusion_table(one.confusion, names, condition) for condition, one in found.items())
    note = "<p>Predicted: the most probable class. In small print the share of the true class; shading follows it.</p>"
    return (
        f"<p>Accuracy: {escape(accuracies)}. In brackets 95 % intervals over patients.</p>"
        f'{table(head, body, words=1 + len(several))}{note}<div class="grid">{matrices}</div>'
    )


def areas(evidence: Evidence, found: Mapping[str, ClassFigures]) -> str:
    """The ROC and precision-recall curves of every class of every condition, and the areas below them."""
    if not found:
        return missing(evidence.graded)
    names = [plain(name) for name in evidence.task.classes]
    shown = range(1, 2) if len(names) == 2 else range(len(names))  # of two classes one mirrors the other
    blocks = []
    for condition, one in found.items():
        body = [
            [charts.swatch(k, names[k]), number(one.auc.value[k]), between(one.auc.low[k], one.auc.high[k]),
             number(one.average_precision.value[k]),
             between(one.average_precision.low[k], one.average_precision.high[k]),
             number(float(one.confusion[k].sum() / one.confusion.sum()))]
            for k in shown
        ]  # fmt: skip
        head = ["class", "area under ROC", "95 % interval", "average precision", "95 % interval", "share of rows"]
        roc = [(k, class_figures.thinned(one.roc[k])) for k in shown if len(one.roc[k])]
        recall = [(k, class_figures.thinned(one.precision_recall[k])) for k in shown if len(one.precision_recall[k])]
        said = ", ".join(f"{names[k]} {number(one.auc.value[k])}" for k in shown)
        pair = (
            charts.curve_chart(roc, "false positive rate", "sensitivity", f"ROC curves. Areas: {said}", diagonal=True),
            charts.curve_chart(recall, "recall", "precision", f"Precision-recall curves of {', '.join(names)}"),
        )
        drawn = "".join(f"<figure>{chart}</figure>" for chart in pair)
        title = f"<h3>{escape(condition)}</h3>" if len(found) > 1 else ""
        blocks.append(f'{title}<div class="charts">{drawn}<div>{table(head, body)}</div></div>')
    note = (
        "<p>Each class against all others, by its probability. Average precision is the area below the second curve; "
        "an answer by chance has the share of the class. Intervals resample patients.</p>"
    )
    return note + "".join(blocks)
