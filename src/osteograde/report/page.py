"""The report of a weights folder: one HTML page that loads no other file.

The page is light, has one column and the reader's own system font, and can be read on a phone and on paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.learning.ensemble import score_rows
from osteograde.learning.evaluate import class_scores, head_lines
from osteograde.learning.reuse import current_form
from osteograde.report import charts, curves, summary
from osteograde.report import worst_cases as cases
from osteograde.report.charts import number, table
from osteograde.report.oof_tables import Evidence, Graded, labels_of, read
from osteograde.report.style import CSS
from osteograde.tasks.spec import Study, Task

NO_LABELS = "No labels: oof.csv holds none. Give the labelled studies with --data."


def write(folder: Path, out: Path, tasks: Mapping[str, Task], *, data: Path | None, made: datetime) -> Evidence:
    """Write the report of a weights folder to ``out``. tasks: all tasks by name. data: the labelled studies, which give
    labels and worst cases. made: the time that the page states.

    UserError where the folder is no weights folder or the data are not those it was trained on. Nothing is written
    then.
    """
    evidence = read(folder, tasks)
    studies: Sequence[Study] | None = None
    if data is not None:
        studies = evidence.task.read(data, "train")
        evidence = read(folder, tasks, labels_of(list(studies)))
        if evidence.fold and not {study.id for study in studies} & set(evidence.fold):
            raise UserError(f"{data}: holds none of the studies of {folder / 'folds.csv'}; give what was trained on")
    text = page(evidence, studies, made)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(out)
    return evidence


def page(evidence: Evidence, studies: Sequence[Study] | None, made: datetime) -> str:
    """The HTML of the page. studies: the labelled studies, for the worst cases; None leaves these out."""
    title = f"{evidence.task.name}: report of {evidence.folder.resolve().name}"
    sections = {
        "Summary": about(evidence, made),
        "Folds": fold_table(evidence),
        "Out-of-fold scores": score_table(evidence),
        "Confusion": confusion(evidence),
        "Calibration": calibration(evidence),
        "Landmark errors": landmarks(evidence),
        "By level, side and grade": parts(evidence),
        "Training": curves.section(evidence.folder),
        "Worst cases": worst_cases(evidence, studies),
    }
    sections = {name: text for name, text in sections.items() if text or name != "Training"}
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{text}</section>' for name, text in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main><h1>{escape(title)}</h1><nav>{links}</nav>{body}</main></body></html>\n"
    )


def _anchor(name: str) -> str:
    """The name of a section as the target of a link."""
    return name.lower().replace(" ", "-").replace(",", "")


def about(evidence: Evidence, made: datetime) -> str:
    """The summary: task, recipe, data and versions, and a table of the nets."""
    manifest = evidence.manifest
    recipe, source = manifest.recipe, manifest.data
    size = sum(entry.bytes for entry in manifest.files.values())
    facts = [
        ("Task", evidence.task.name),
        ("Recipe", recipe.get("name", "not stated")),
        ("Nets", f"{len(manifest.files)} files, {size / 1e6:.1f} MB"),
        ("Data", source.get("source", "not stated")),
        ("Licence of the data", source.get("licence", "not stated")),
        ("Trained with", ", ".join(f"{name} {v}" for name, v in manifest.versions.items()) or "not stated"),
        ("Use", manifest.use),
        ("Page made", made.strftime("%Y-%m-%d %H:%M")),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts)
    return f"<dl>{items}</dl>{_stages(evidence)}"


def _stages(evidence: Evidence) -> str:
    """A line per locator and grader of the recipe: the first net of a fold and how it was trained."""
    recipe = current_form(evidence.manifest.recipe)
    firsts = [*recipe["locators"].items(), *((stage, members[0]) for stage, members in recipe["graders"].items())]
    body = []
    for stage, plan in firsts:
        net, training = plan["net"], plan["training"]
        trunk = net.get("backbone") or net.get("encoder_name") or "-"
        shape = plan["pixels"] if isinstance(plan["pixels"], int) else " x ".join(map(str, plan["pixels"]))
        body.append([stage, net["kind"], trunk, shape, training["epochs"], f"{training['lr']:g}"])
    return table(["stage", "kind", "trunk", "pixels", "epochs", "lr"], body, words=3) if body else ""


def fold_table(evidence: Evidence) -> str:
    """Studies, patients and labelled rows per held-out fold."""
    if not evidence.fold:
        return "<p>folds.csv is not in the folder.</p>"
    graded, classes = evidence.graded, evidence.task.classes
    trained = evidence.manifest.folds.trained if evidence.manifest.folds else ()
    shows_labels = graded is not None and bool(graded.labelled.any())
    body: list[list[object]] = []
    for k in sorted(set(evidence.fold.values())):
        held_out = [study for study, fold in evidence.fold.items() if fold == k]
        row: list[object] = [f"fold {k}" if not trained or k in trained else f"fold {k} (not trained)"]
        row += [len(held_out), len({evidence.patient[study] for study in held_out})]
        if graded is not None and shows_labels:
            counts = np.bincount(graded.label[graded.labelled & (graded.fold == k)], minlength=len(classes))
            row += [int(counts.sum()), *map(int, counts)]
        body.append(row)
    body.append(["all", *(sum(int(row[i]) for row in body) for i in range(1, len(body[0])))])  # type: ignore[call-overload]
    head = ["held out", "studies", "patients", *(("labelled rows", *classes) if shows_labels else ())]
    return table(head, body, _patients_sentence(evidence))


def _patients_sentence(evidence: Evidence) -> str:
    """Says that no patient is in two folds, and how many studies do not name their patient."""
    if evidence.task.patient_of is str:
        return "No patient is in two folds."
    nameless = sum(patient == study for study, patient in evidence.patient.items())
    unknown = f" {nameless} of {len(evidence.patient)} studies name no patient and count as one each."
    known = "No patient is in two folds, as far as the names of the files tell patients apart."
    return known + (unknown if nameless else "")


def score_table(evidence: Evidence) -> str:
    """The scores of the grades, and of auxiliary heads where there are any, as the manifest holds them."""
    scores = evidence.manifest.scores.grade
    if evidence.voters:
        return ensemble_scores(evidence.chosen)
    if not scores:
        return "<p>The manifest holds no scores.</p>"
    better, prior = evidence.task.metric.higher_is_better, scores.get("prior", {})
    body = []
    for name, value in scores["model"].items():
        low, high = scores.get("interval_95", {}).get(name, (None, None))
        span = "-" if low is None or high is None else f"{number(low, 4)} to {number(high, 4)}"
        arrow = "higher" if name in better else "lower"
        body.append([name, arrow, number(value, 4), span, number(prior.get(name), 4)])
    head = ["score", "better", "model", "95 % interval", "prior"]
    heads = [
        [name, part, number(value, 4), f"{number(low, 4)} to {number(high, 4)}"]
        for name, part, value, (low, high) in head_lines(evidence.manifest.scores.findings)
    ]
    below = table(["auxiliary head", "score", "value", "95 % interval"], heads, words=2) if heads else ""
    words = f"{scores['studies']} held-out studies; intervals resample patients." if "studies" in scores else ""
    return table(head, body, words, words=2) + below


def ensemble_scores(chosen: Mapping[str, Any]) -> str:
    """The official score of every member and of the choice, as ensemble.json holds them."""
    body = []
    for name, row in score_rows(chosen):
        low, high = row["interval_95"]
        span = "-" if low is None or high is None else f"{number(low, 4)} to {number(high, 4)}"
        body.append([name, number(row["score"], 4), span])
    words = (
        f"Official score, {chosen['better']} is better; {chosen['studies']} studies of {chosen['patients']} patients. "
        "The nested score is the one to report: each fold is answered by what was chosen on the other folds."
    )
    return table(["out-of-fold", "score", "95 % interval"], body, words)


def confusion(evidence: Evidence) -> str:
    """Precision, recall and F1 of every class, and confusion matrices: over all rows and, where there are several
    conditions, for each of them."""
    graded = evidence.graded
    if graded is None or not graded.labelled.any():
        return _missing(graded)
    classes = evidence.task.classes
    every = np.ones(len(graded.ids), bool)
    matrices = [charts.confusion_table(summary.confusion(graded, every, len(classes)), classes, "all rows")]
    counts = {"all rows": summary.confusion(graded, every, len(classes))}
    conditions = dict.fromkeys(site.condition for _, site in evidence.sites.values())
    for condition in conditions if len(conditions) > 1 else ():
        rows = np.array([evidence.sites[target][1].condition == condition for target in graded.targets])
        counts[condition] = summary.confusion(graded, rows, len(classes))
        matrices.append(charts.confusion_table(counts[condition], classes, condition))
    note = "<p>Predicted: the most probable class. In small print the share of the true class; shading follows it.</p>"
    return _class_scores(counts, classes) + note + f'<div class="grid">{"".join(matrices)}</div>'


def _class_scores(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    """Accuracy of each condition; precision, recall and F1 of its classes."""
    body: list[list[object]] = []
    for condition, matrix in counts.items():
        right, values = class_scores(matrix)
        for name, row, known in zip(classes, values, matrix.sum(1), strict=True):
            body.append([condition, name, int(known), *map(number, row), number(right)])
    head = ["condition", "class", "rows", "precision", "recall", "F1", "accuracy of the condition"]
    return table(head, body, words=2)


def calibration(evidence: Evidence) -> str:
    """The reliability diagram of the probability of the predicted class."""
    graded = evidence.graded
    if graded is None or not graded.labelled.any():
        return _missing(graded)
    reliability = summary.reliability(graded)
    words = f"Expected calibration error (ECE) {number(reliability.ece, 4)} over {int(reliability.count.sum())} rows."
    label = f"Reliability curve. {words}"
    return f"<p>{words}</p>" + charts.reliability_chart(
        reliability.confidence, reliability.right, reliability.count, label
    )


def landmarks(evidence: Evidence) -> str:
    """Distances of out-of-fold landmarks from the annotated ones, per locator; without oof_points.csv the figures of
    the manifest."""
    located, scores = evidence.located, evidence.manifest.scores.locate
    if located is None:
        stages = [{"locator": stage, **row} for stage, row in scores.items()]
        note = "<p>oof_points.csv is not in the folder: no histogram.</p>"
        return note + (table(list(stages[0]), [[_cell(v) for v in row.values()] for row in stages]) if stages else "")
    body, plots = [], []
    for locator in evidence.task.locators:
        names = {landmark.name for landmark in locator.landmarks}
        errors, points = located.errors_mm(names), located.annotated(names)
        middle, far = (float(np.percentile(errors, p)) if len(errors) else None for p in (50, 95))
        share = f"{100 * len(errors) / points:.1f} %" if points else "-"
        body.append([locator.name, points, share, number(middle, 2), number(far, 2)])
        if len(errors):
            label = f"{locator.name}: {len(errors)} distances, median {number(middle, 2)} mm, 95 % {number(far, 2)} mm"
            plots.append(f"<h3>{escape(locator.name)}</h3>{charts.histogram(errors, label)}")
    head = ["locator", "annotated", "found", "median, mm", "95th percentile, mm"]
    return table(head, body) + _box_table(scores) + "".join(plots)


def _box_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Precision and recall of the boxes of detectors; empty where there is none."""
    body = [[stage, *(number(row[key]) for key in ("ap50", "ap75", "ar"))]
            for stage, row in scores.items() if "ap50" in row]  # fmt: skip
    head = ["boxes of", "AP at 0.5", "AP at 0.75", "AR over 0.50 to 0.95"]
    note = "Boxes of the size that is taught, around found and annotated points, in the plane of the annotated slice."
    return table(head, body, note) if body else ""


def _cell(value: object) -> str:
    """A value of the manifest as text."""
    return number(value) if isinstance(value, (int, float)) or value is None else str(value)


def parts(evidence: Evidence) -> str:
    """Tables of figures by condition, level, side and true class."""
    graded = evidence.graded
    if graded is None or not graded.labelled.any():
        return _missing(graded)
    head = ["rows", "log loss", "accuracy", "within one", "mean error", "quadratic kappa"]
    tables = []
    for name, values in summary.breakdown(evidence, graded).items():
        shown = head[:-1] if name == summary.TRUE_CLASS else head  # kappa of one true class says nothing
        body = [
            [value or "-", s.rows, *map(number, (s.log_loss, s.accuracy, s.within_one, s.mae, s.kappa))]
            for value, s in values.items()
        ]
        tables.append(table([name, *shown], [row[: len(shown) + 1] for row in body]))
    note = "<p>Within one: at most one class off. Mean error: in classes. Log loss: without class weights.</p>"
    return note + "".join(tables)


def worst_cases(evidence: Evidence, studies: Sequence[Study] | None) -> str:
    """The rows with the largest loss, with pictures."""
    if studies is None:
        return "<p>Cases are left out: the page was made without --data, the folder of labelled studies.</p>"
    graded = evidence.graded
    if graded is None or evidence.located is None or not graded.labelled.any():
        return "<p>Cases need oof.csv and oof_points.csv of labelled studies.</p>"
    worst = cases.worst(evidence, studies)
    note = (
        f"<p>The {len(worst)} labelled rows with the largest -log p of the true class. Maps are Grad-CAM of the net"
        " that never saw the study, bright where the evidence lies, on the slice where they are strongest. Crops are as"
        " the net reads them: left sites are mirrored. The slice is as it was taken, with the crop's outline.</p>"
    )
    return note + "".join(cases.card(case, i, evidence, graded) for i, case in enumerate(worst, 1))


def _missing(graded: Graded | None) -> str:
    """Says why a section is empty."""
    return "<p>oof.csv is not in the folder.</p>" if graded is None else f"<p>{NO_LABELS}</p>"
