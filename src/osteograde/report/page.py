"""The report of a weights folder: one HTML page that loads no other file.

The page is light or dark as the reader's system is, uses its font, and can be read on a phone and on paper.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging import files
from osteograde.learning import compare
from osteograde.learning.compare import Comparison
from osteograde.learning.reuse import current_form
from osteograde.report import charts, curves, leaderboard, score_sections, summary
from osteograde.report import worst_cases as cases
from osteograde.report.charts import number, table
from osteograde.report.oof_tables import Evidence, labels_of, read
from osteograde.report.score_sections import missing
from osteograde.report.style import document
from osteograde.report.words import plain
from osteograde.tasks.spec import Study, Task

log = logging.getLogger("osteograde.report")
POINT_HEAD = (
    "locator", "annotated", "found", "median, mm", "95th percentile, mm", "right level", "found where there is none",
)  # fmt: skip
SEED = 0  # of the resamples of patients: a page made again shows the same intervals


def write(
    folder: Path,
    out: Path,
    tasks: Mapping[str, Task],
    *,
    data: Path | None,
    made: datetime,
    others: Sequence[Path] = (),
    submitted: Sequence[leaderboard.Entry] = (),
) -> Evidence:
    """Write the report of a weights folder to ``out``. tasks: all tasks by name. data: the labelled studies, which give
    labels and worst cases. made: the time that the page states. others: weights folders that are compared with it.
    submitted: what submissions of the task scored on its leaderboard.

    UserError where a folder is no weights folder, the data are not those it was trained on, or folders cannot be
    compared. Nothing is written then.
    """
    log.info("report of %s: reading its tables", folder)
    evidence = read(folder, tasks)
    studies: Sequence[Study] | None = None
    if data is not None:
        studies = evidence.task.read(data, "train")
        evidence = read(folder, tasks, labels_of(list(studies)))
        if evidence.fold and not {study.id for study in studies} & set(evidence.fold):
            raise UserError(f"{data}: holds none of the studies of {folder / 'folds.csv'}; give what was trained on")
    compared = None
    if others:
        log.info("comparing %d weights folders", 1 + len(others))
        sides = [compare.read_out_of_fold(one, tasks) for one in (folder, *others)]
        compared = compare.compare_out_of_fold(evidence.task, sides)
    text = page(evidence, studies, made, compared, submitted)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(out, text)
    return evidence


def page(
    evidence: Evidence,
    studies: Sequence[Study] | None,
    made: datetime,
    compared: Comparison | None = None,
    submitted: Sequence[leaderboard.Entry] = (),
) -> str:
    """The HTML of the page. studies: the labelled studies, for the worst cases; None leaves these out. compared: with
    other weights folders; None leaves the section out. submitted: as of ``write``."""
    title = f"{evidence.task.name}: report of {evidence.folder.resolve().name}"
    log.info("scores of classes: resampling patients")
    found = score_sections.figures(evidence, np.random.default_rng(SEED))
    sections = {
        "Result": score_sections.result(evidence),
        "Comparison": score_sections.comparison(compared, evidence.task.metric.words) if compared else "",
        "Scores": score_sections.scores(evidence),
        "Leaderboard": leaderboard.section(
            submitted, "higher" if "score" in evidence.task.metric.higher_is_better else "lower"
        ),
        "Classes": score_sections.classes(evidence, found),
        "ROC and precision-recall": score_sections.areas(evidence, found),
        "Auxiliary heads": score_sections.heads(evidence),
        "Calibration": calibration(evidence),
        "Landmark errors": landmarks(evidence),
        "By level, side and class": parts(evidence),
        "Training": curves.section(evidence.folder),
        "Worst cases": worst_cases(evidence, studies),
        "Folds": fold_table(evidence),
        "Weights": about(evidence, made),
    }
    sections = {name: text for name, text in sections.items() if text}
    return document(title, sections)


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
    head = ["stage", "kind", "trunk", "pixels", "epochs", "learning rate"]
    return table(head, body, words=3) if body else ""


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
    head = ["held out", "studies", "patients", *(("labelled rows", *map(plain, classes)) if shows_labels else ())]
    return table(head, body, _patients_sentence(evidence))


def _patients_sentence(evidence: Evidence) -> str:
    """Says that no patient is in two folds, and how many studies do not name their patient."""
    if evidence.task.patient_of is str:
        return "No patient is in two folds."
    nameless = sum(patient == study for study, patient in evidence.patient.items())
    unknown = f" {nameless} of {len(evidence.patient)} studies name no patient and count as one each."
    known = "No patient is in two folds, as far as the names of the files tell patients apart."
    return known + (unknown if nameless else "")


def calibration(evidence: Evidence) -> str:
    """The reliability diagram of the probability of the predicted class."""
    graded = evidence.graded
    if graded is None or not graded.labelled.any():
        return missing(graded)
    reliability = summary.reliability(graded)
    rows = int(reliability.count.sum())
    words = f"Expected calibration error (ECE) {number(reliability.ece, 4)} over {rows} rows, of the predicted class."
    label = f"Reliability curve. {words}"
    return f"<p>{words}</p>" + charts.reliability_chart(
        reliability.confidence, reliability.right, reliability.count, label
    )


def landmarks(evidence: Evidence) -> str:
    """Distances of out-of-fold landmarks from the annotated ones, per locator; without oof_points.csv the figures of
    the manifest. "" for a task that looks for nothing, since it grades whole images."""
    if not evidence.task.locators:
        return ""
    located, scores = evidence.located, evidence.manifest.scores.locate
    if located is None:
        note = "<p>oof_points.csv is not in the folder: these are the figures of the manifest, without a histogram.</p>"
        return note + _located_table(scores) + _box_table(scores)
    body, plots = [], []
    for locator in evidence.task.locators:
        names = {landmark.name for landmark in locator.landmarks}
        errors, points = located.errors_mm(names), located.annotated(names)
        middle, far = (float(np.percentile(errors, p)) if len(errors) else None for p in (50, 95))
        share = f"{100 * len(errors) / points:.1f} %" if points else "-"
        told = scores.get(locator.name, {})
        body.append([plain(locator.name), points, share, number(middle, 2), number(far, 2), _share(told, "right_level"),
                     _share(told, "false")])  # fmt: skip
        if len(errors):
            label = f"{locator.name}: {len(errors)} distances, median {number(middle, 2)} mm, 95 % {number(far, 2)} mm"
            plots.append(f"<figure><h3>{escape(plain(locator.name))}</h3>{charts.histogram(errors, label)}</figure>")
    return table(POINT_HEAD, body) + _box_table(scores) + f'<div class="charts">{"".join(plots)}</div>'


def _located_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The landmark errors as the manifest holds them; empty where it holds none."""
    body = [
        [plain(stage), row.get("points", "-"), _share(row, "found"), number(row.get("median_mm"), 2),
         number(row.get("p95_mm"), 2), _share(row, "right_level"), _share(row, "false")]
        for stage, row in scores.items()
    ]  # fmt: skip
    return table(POINT_HEAD, body) if body else ""


def _share(row: Mapping[str, Any], key: str) -> str:
    """A share of the manifest in per cent, or a dash."""
    value = row.get(key)
    return "-" if value is None else f"{100 * value:.1f} %"


def _box_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Precision and recall of the boxes of detectors; empty where there is none."""
    body = [[stage, *(number(row[key]) for key in ("ap50", "ap75", "ar"))]
            for stage, row in scores.items() if "ap50" in row]  # fmt: skip
    head = ["boxes of", "AP at 0.5", "AP at 0.75", "AR over 0.50 to 0.95"]
    note = "Boxes of the size that is taught, around found and annotated points, in the plane of the annotated slice."
    return table(head, body, note) if body else ""


def parts(evidence: Evidence) -> str:
    """Tables of figures by condition, level, side and true class."""
    graded = evidence.graded
    if graded is None or not graded.labelled.any():
        return missing(graded)
    head = ["rows", "log loss", "accuracy", "within one", "mean error", "quadratic kappa"]
    tables = []
    for name, values in summary.breakdown(evidence, graded).items():
        shown = head[:-1] if name == summary.TRUE_CLASS else head  # kappa of one true class says nothing
        body = [
            [plain(value) or "-", s.rows, *map(number, (s.log_loss, s.accuracy, s.within_one, s.mae, s.kappa))]
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
        f"<p>The {len(worst)} labelled rows whose true class got the least probability. Maps are Grad-CAM of the net"
        " that never saw the study, bright where the evidence lies, on the slice where they are strongest. Crops are as"
        " the net reads them: left sites are mirrored. The slice is as it was taken, with the crop's outline. The bar"
        " of the true class is orange.</p>"
    )
    cards = "".join(cases.card(case, i, evidence, graded) for i, case in enumerate(worst, 1))
    return f'{note}<div class="cases">{cards}</div>'
