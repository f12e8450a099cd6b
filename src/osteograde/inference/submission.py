"""What a run writes: the submission, the tables beside it, and the summary for the log.

submission.csv is written whole or not at all, with the same bytes for the same numbers, and can be checked against a
template. submission.flags.csv lists rows that a person should look at before believing them, and why; it holds no
patient data. submission.points.csv holds the landmarks that the rows stand on (points_file.py).
submission.findings.csv holds answers of the auxiliary heads of graders, for tasks that have any. Where it is asked for,
a last column names the most probable class; the submission of a competition stays as its rules have it, and
submission.predicted.csv holds the names.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import TypeVar

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging import files
from osteograde.inference.points_file import PointRow, points_path, rows_of, write_points
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS, decision, tables
from osteograde.tasks.spec import Point, Site, Study, Task, row_id
from osteograde.tasks.tables import PREDICTED, ROW_ID, duplicates, some

log = logging.getLogger("osteograde.inference")

TEMPLATE = "sample_submission.csv"
FLOOR = 1e-6  # the least probability written: what one confident mistake may cost is bounded
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
DIGITS = 9  # rows still sum to 1 within 1e-6 after rounding

T = TypeVar("T")
Rows = Mapping[str, np.ndarray]  # row id -> (classes,) probabilities, in the order of writing


@dataclass(frozen=True)
class Problem:
    """What is wrong with a submission. ``repairable``: nothing but the order has to change (see ``ordered``)."""

    what: str
    repairable: bool = False

    def __str__(self) -> str:
        return self.what


def priors_rows(
    task: Task, row_ids: Iterable[str], prior: Mapping[str, Sequence[float]] | None = None
) -> dict[str, np.ndarray]:
    """{row id: the prior of its target}; the task's own prior where none is given.

    UserError where a row id ends in no target of the task: then the template is another competition's.
    """
    table = task.prior if prior is None else prior
    return {row: np.asarray(table[tables.split_id(task, row)[1]], dtype=float) for row in row_ids}


def ordered(rows: Rows, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The same rows: those a template names first, in its order, then the rest in theirs."""
    first = [row for row in ids if row in rows]
    named = set(first)
    return {row: rows[row] for row in (*first, *(row for row in rows if row not in named))}


def written(probs: np.ndarray) -> np.ndarray:
    """Probabilities (rows, classes) as they are written: at least ``FLOOR`` (before the last division), summing to 1.

    ValueError where one is not finite or negative, or a row is all zero.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if not np.isfinite(probs).all() or (probs < 0).any() or not (probs.sum(-1) > 0).all():
        raise ValueError("probabilities to be written are not finite, negative, or all zero in some row")
    clipped = np.clip(probs / probs.sum(-1, keepdims=True), FLOOR, 1.0)
    return clipped / clipped.sum(-1, keepdims=True)


def printed(rows: Rows) -> list[tuple[str, ...]]:
    """The cells of every row as they are written: its id, then its probabilities (see ``written``)."""
    table = written(np.stack(list(rows.values()))).tolist() if rows else []
    return [(row, *(f"{p:.{DIGITS}f}" for p in probs)) for row, probs in zip(rows, table, strict=True)]


def predicted_classes(table: Sequence[Sequence[str]], classes: Sequence[str], rule: str) -> list[str]:
    """The class that a rule of ``tasks.decision`` makes of every row of ``printed``."""
    probs = np.array([[float(text) for text in cells[1:]] for cells in table]).reshape(-1, len(classes))
    return [classes[k] for k in decision.RULES[rule](probs).tolist()]


def write_submission(path: Path, rows: Rows, columns: Sequence[str], *, decide: str = "") -> None:
    """Replace ``path`` by a table of all rows in one step: at every moment it is the old file or the new one.

    columns: names of the classes. decide: a rule of ``tasks.decision``; with it, a last column names the class that it
    makes of the row. An existing file's permissions are kept. Raises ValueError before touching the file where a
    probability cannot be written (see ``written``), OSError where the folder cannot be written.
    """
    path = Path(path).resolve()
    table = printed(rows)
    if table and len(table[0]) != 1 + len(columns):
        raise ValueError(f"{path}: rows have {len(table[0]) - 1} classes, the columns are {list(columns)}")
    text = StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow((ROW_ID, *columns, *([PREDICTED] if decide else [])))
    named = predicted_classes(table, columns, decide) if decide else ()
    out.writerows([(*row, name) for row, name in zip(table, named, strict=True)] if decide else table)
    files.atomic_write(path, text.getvalue())


def read_submission(path: Path) -> dict[str, np.ndarray]:
    """{row id: (classes,)} of a submission, in its order. UserError where it is unreadable or a row appears twice."""
    _, ids, values = tables.read_rows(path)
    if doubled := duplicates(ids):
        raise UserError(f"{path}: row ids more than once: {some(doubled)}")
    return dict(zip(ids, values, strict=True))


def template_ids(path: Path) -> list[str] | None:
    """The row ids of a template, in its order. UserError where it is unreadable.

    Of a folder of data: those of its sample_submission.csv, None where there is none, where it cannot be read (this is
    logged), or where the folder has no test part (the template then speaks of other studies).
    """
    if not Path(path).is_dir():
        return tables.read_rows(path)[1]
    if not (Path(path) / TEMPLATE).is_file() or not (Path(path) / "test_images").is_dir():
        return None
    try:
        return tables.read_rows(Path(path) / TEMPLATE)[1]
    except UserError as error:
        log.warning("%s; rows are written in the order of the studies", error)
        return None


def validate(submission: Path, template: Path) -> list[Problem]:
    """Everything that is wrong with a submission; an empty list says it may be sent.

    UserError where the template itself cannot be read: then nothing can be said about the submission.
    """
    columns, wanted, _ = tables.read_rows(template)
    if doubled := duplicates(wanted):
        raise UserError(f"{template}: the template names row ids more than once: {some(doubled)}")
    try:
        found, ids, values = tables.read_rows(submission)
    except UserError as error:
        return [Problem(str(error))]
    if found != columns:
        return [Problem(f"wrong columns: expected {','.join(columns)}, found {','.join(found)}")]
    if is_official(columns[1:]) and PREDICTED in tables.header_of(submission):
        return [Problem(f"wrong columns: a competition takes {','.join(columns)} alone, found {PREDICTED} as well")]
    return _id_problems(ids, wanted) + _value_problems(ids, values)


def is_official(classes: Sequence[str]) -> bool:
    """Whether a table with these classes is the submission of a competition, which has no column beside them."""
    return any(task.slug and list(task.classes) == list(classes) for task in TASKS.values())


def _id_problems(ids: list[str], wanted: list[str]) -> list[Problem]:
    given, needed = set(ids), set(wanted)
    problems = []
    for what, rows in (
        ("missing", [row for row in wanted if row not in given]),
        ("that the template does not have", [row for row in dict.fromkeys(ids) if row not in needed]),
        ("more than once", duplicates(ids)),
    ):
        if rows:
            problems.append(Problem(f"{len(rows)} row ids {what}: {some(rows)}"))
    if not problems and ids != wanted:
        first = next(i for i, (a, b) in enumerate(zip(ids, wanted, strict=True)) if a != b)
        problems.append(
            Problem(
                f"wrong order: row {first + 1} is {ids[first]}, the template has {wanted[first]}; "
                "repairable: all rows are there, sort them like the template",
                repairable=True,
            )
        )
    return problems


def _value_problems(ids: list[str], values: np.ndarray) -> list[Problem]:
    finite = np.isfinite(values).all(1)
    negative = finite & (values < 0).any(1)
    off = finite & ~negative & ~(np.abs(values.sum(1) - 1) <= SUM_TOLERANCE)
    named = (("not a finite number", ~finite), ("negative", negative), ("not summing to 1", off))
    return [
        Problem(f"{int(bad.sum())} rows with values {what}: {some(np.array(ids)[bad])}")
        for what, bad in named
        if bad.any()
    ]


Flag = tuple[str, str, int]  # row id, reason, how often
FLAG_COLUMNS = ("row_id", "reason", "count")
LOW_CONFIDENCE = 0.5  # of a landmark: less than this share of its probability lies within 10 mm of it
MANY = 0.5  # share of studies in which nothing is found that makes the task itself doubtful
UNCERTAIN = 0.35  # no class is more probable than this

NOT_GRADED = "not_graded"  # the row holds the class prior
NOT_SEEN = "low_confidence"
UNSURE = "uncertain_grade"
UNLIKE = ("out_of_domain", "other_body_part")  # the images are not what the weights or the task are for
NOTHING_FOUND = "nothing_found"  # every row of the study is one of the first two: it may show something else
LEVELS_IN_DOUBT = "levels_in_doubt"  # levels may be counted wrongly: the row may be another level's


def flags_of(task: Task, loaded: Loaded, points: Mapping[str, Point], graded: Mapping[str, np.ndarray]) -> list[Flag]:
    """The flags of one study's rows: what was lost in reading it, rows on the prior, landmarks and grades in doubt."""
    sites = {site.target: site for group in task.graders for site in group.sites}
    study, found = loaded.study, []
    for target in task.targets_of(study.targets):
        row = row_id(study.id, target)
        faults = {**loaded.faults, **loaded.target_faults.get(target, {})}
        found += [(row, code, count) for code, count in sorted(faults.items())]
        found += [(row, LEVELS_IN_DOUBT, 1)] if any(point.in_doubt for point in points.values()) else []
        found += [(row, reason, 1) for reason in _doubts(task, sites[target], points, graded)]
    return found


def result_flags(task: Task, result: Result) -> list[Flag]:
    """All flags of the rows of a finished study, also that nothing was found in it."""
    study = result.loaded.study
    flags = flags_of(task, result.loaded, result.points, result.graded)
    if result.loaded.readable and _nothing_found(task, study, flags):
        flags += [(row, NOTHING_FOUND, 1) for row in task.rows(study.id, study.targets)]
    return flags


def _nothing_found(task: Task, study: Study, flags: Sequence[Flag]) -> bool:
    """Whether every row of a study is on the prior or stands on landmarks in doubt."""
    doubted = {row for row, reason, _ in flags if reason in (NOT_GRADED, NOT_SEEN)}
    return doubted >= {*task.rows(study.id, study.targets)}


def flags_of_unreached(task: Task, study: Study, why: str) -> list[Flag]:
    """The flags of a study that the run ended before."""
    return [(row, reason, 1) for row in task.rows(study.id, study.targets) for reason in (why, NOT_GRADED)]


def _doubts(task: Task, site: Site, points: Mapping[str, Point], graded: Mapping[str, np.ndarray]) -> list[str]:
    if site.target not in graded:
        return [NOT_GRADED]
    seen = [points[name].confidence for name in site.landmarks if name in points]
    low = [NOT_SEEN] if site.landmarks and max(seen, default=0.0) < LOW_CONFIDENCE else []
    return low + ([UNSURE] if graded[site.target][: len(task.classes)].max() < UNCERTAIN else [])


def write_flags(path: Path, flags: Sequence[Flag]) -> None:
    """The flags as a table of ``COLUMNS``; only its first line where there are none."""
    lines = [",".join(FLAG_COLUMNS), *(f"{row},{reason},{count}" for row, reason, count in flags)]
    files.atomic_write(path, "\n".join(lines) + "\n")


def flags_path(out: Path) -> Path:
    """Where the flags of a submission go: submission.csv -> submission.flags.csv."""
    return out.with_name(out.stem + ".flags.csv")


Finding = tuple[str, tuple[float, ...]]  # row id, probability of each column of the auxiliary heads


def finding_names(task: Task) -> tuple[str, ...]:
    """The columns of the auxiliary heads of a task, in the order of its graders."""
    return tuple(dict.fromkeys(name for grader in task.graders for head in grader.heads for name in head.columns))


def findings_of(task: Task, study: str, graded: Mapping[str, np.ndarray]) -> list[Finding]:
    """The auxiliary heads' probabilities of one study's graded rows; NaN where a row's grader lacks the head."""
    columns, found = finding_names(task), []
    for grader in task.graders:
        names = [name for head in grader.heads for name in head.columns]
        for site in grader.sites:
            if names and site.target in graded:
                probs = dict(zip(names, graded[site.target][len(task.classes) :], strict=True))
                found.append((row_id(study, site.target), tuple(float(probs.get(name, np.nan)) for name in columns)))
    return found


def write_findings(path: Path, columns: Sequence[str], rows: Sequence[Finding]) -> None:
    lines = [",".join(["row_id", *columns])]
    lines += [",".join([row, *("" if np.isnan(v) else f"{v:.6f}" for v in values)]) for row, values in rows]
    files.atomic_write(path, "\n".join(lines) + "\n")


def findings_path(out: Path) -> Path:
    """submission.csv -> submission.findings.csv."""
    return out.with_name(out.stem + ".findings.csv")


def predicted_path(out: Path) -> Path:
    """submission.csv -> submission.predicted.csv."""
    return out.with_name(out.stem + ".predicted.csv")


def write_predicted(path: Path, rows: Rows, classes: Sequence[str], decide: str) -> None:
    """The class that the rule ``decide`` makes of every row, in the order of the submission."""
    table = printed(rows)
    named = predicted_classes(table, classes, decide)
    lines = [f"{ROW_ID},{PREDICTED}", *(f"{cells[0]},{name}" for cells, name in zip(table, named, strict=True))]
    files.atomic_write(path, "\n".join(lines) + "\n")


@dataclass(frozen=True, eq=False)
class Result:
    """Everything one study came to."""

    loaded: Loaded
    points: Mapping[str, Point]  # found and completed
    graded: Mapping[str, np.ndarray]  # target -> (K + F,) of the targets that could be seen, see ``pipeline.graders``


@dataclass
class RunSummary:
    """What happened in a run: for the log, the flags file and the benchmark.

    unread: studies of which nothing could be read. on_prior: targets whose rows hold the class prior. rows: of the
    studies that are done. faults: code -> how often. seconds: stage -> seconds spent. flags, findings, points: rows of
    the tables beside the submission.
    """

    studies: int = 0
    unread: int = 0
    on_prior: int = 0
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    flags: list[Flag] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    points: list[PointRow] = field(default_factory=list)


def with_rows_of(task: Task, studies: Sequence[Study], template: Sequence[str]) -> list[Study]:
    """The studies, without those other readings that have rows which a template that names the study does not."""
    named = {*template}

    def fits(study: Study, reading: Study) -> bool:
        return named >= {*task.rows(study.id, reading.targets)}

    return [
        replace(study, readings=tuple(reading for reading in study.readings if fits(study, reading)))
        if study.readings and named & {*task.rows(study.id)}
        else study
        for study in studies
    ]


def with_other_rows(rows: Mapping[str, T], planned: Sequence[str], new: Sequence[str], value: T) -> dict[str, T]:
    """Rows in which ``new`` ones stand where the ``planned`` ones of a study did; those in both keep their values, the
    others have ``value``. Where none is added, all that stay keep their places, as a template may have them.

    >>> with_other_rows({"a_r": 1, "a_l": 2, "b_r": 3}, ["a_r", "a_l"], ["a_l"], 0)
    {'a_l': 2, 'b_r': 3}
    """
    if all(name in rows for name in new):
        return {row: kept for row, kept in rows.items() if row not in planned or row in new}
    changed: dict[str, T] = {}
    for row, kept in rows.items():
        if row == planned[0]:
            changed |= {name: rows.get(name, value) for name in new}
        elif row not in planned:
            changed[row] = kept
    return changed


class RunningSubmission:
    """The submission of a run under way: class priors at first, replaced study by study, written whole each time.

    Rows are those of the template, in its order, and then those of studies that a stale template does not know. The
    tables of flags, landmarks and findings lie beside the submission and are written with it.

    done: number of studies graded so far; they are the first ones of ``studies``. saved: ids of those whose rows are
    on disk. settled: the rows of studies that have other ones than were planned, see ``Study.readings``.
    """

    def __init__(
        self,
        task: Task,
        prior: Mapping[str, Sequence[float]],
        studies: Sequence[Study],
        out: Path,
        template: Sequence[str] = (),
        *,
        decide: str = "",
    ) -> None:
        self.task, self.prior, self.studies, self.out, self.decide = task, prior, studies, out, decide
        self.summary, self.done, self.saved = RunSummary(studies=len(studies)), 0, tuple[str, ...]()
        own = [row for study in studies for row in self.task.rows(study.id, study.targets)]
        self.rows = priors_rows(self.task, dict.fromkeys((*template, *own)), self.prior)
        self.template = frozenset(template)
        self.settled: dict[str, tuple[str, ...]] = {}

    def add(self, result: Result) -> None:
        """Replace the priors of the next study by its result; where the image has other targets than the files said,
        its rows too, but for those of the template, which keep their priors. Nothing is written."""
        study, summary = result.loaded.study, self.summary
        planned = self.task.rows(study.id, self.studies[self.done].targets)
        rows = self.task.rows(study.id, study.targets)
        fixed = [row for row in planned if row in self.template and row not in rows]
        if rows != planned:
            self.settled[study.id] = tuple(rows)
            self.rows = dict(with_other_rows(self.rows, planned, [*rows, *fixed], np.empty(0)))
        table = predict.probability_rows(self.task, result.graded, self.prior, study.targets)
        self.rows |= dict(zip(self.task.rows(study.id, study.targets), table, strict=True))
        self.done += 1
        summary.findings += findings_of(self.task, study.id, result.graded)
        summary.points += rows_of(self.task, result.loaded, result.points)
        flags = result_flags(self.task, result)
        if any(reason == NOTHING_FOUND for _, reason, _ in flags):
            summary.faults[NOTHING_FOUND] += 1
        flags += [(row, code, count) for row in fixed for code, count in sorted(result.loaded.faults.items())]
        summary.flags += [*flags, *((row, NOT_GRADED, 1) for row in fixed)]
        summary.on_prior += len(rows) - len(result.graded) + len(fixed)
        summary.rows += len(rows) + len(fixed)

    def mark_unreached(self, reason: str) -> None:
        """Flag the rows of all studies that the run ended before; they keep their priors."""
        left = self.studies[self.done :]
        self.summary.flags += [flag for study in left for flag in flags_of_unreached(self.task, study, reason)]
        if left:
            self.summary.faults[reason] += len(left)

    def write(self) -> None:
        """Replace the submission and the tables beside it. OSError: what was written before is in place."""
        write_submission(self.out, self.rows, self.task.classes, decide="" if self.task.slug else self.decide)
        write_beside(self.task, self.summary, self.out)
        if self.decide and self.task.slug:
            write_predicted(predicted_path(self.out), self.rows, self.task.classes, self.decide)
        self.saved = tuple(study.id for study in self.studies[: self.done])

    def try_to_write(self) -> None:
        """Write, unless the disk is full or gone for the moment: then this is counted, and grading goes on."""
        try:
            self.write()
        except OSError:
            self.summary.faults["not_written_yet"] += 1


def write_beside(task: Task, summary: RunSummary, out: Path) -> None:
    """Write the tables beside the submission: flags, landmarks, and findings of tasks that have any."""
    write_flags(flags_path(out), summary.flags)
    write_points(points_path(out), summary.points)
    if columns := finding_names(task):
        write_findings(findings_path(out), columns, summary.findings)


def written_files(task: Task, out: Path, *, predicted: bool = False) -> list[Path]:
    """What a run writes: the submission and the tables beside it."""
    besides = [findings_path(out)] if finding_names(task) else []
    besides += [predicted_path(out)] if predicted and task.slug else []
    return [out, flags_path(out), points_path(out), *besides]


def remove_stale_tables(task: Task, out: Path, *, predicted: bool = False) -> list[Path]:
    """Remove the tables that an earlier run left beside ``out`` and that this run does not write, and return them.

    A reader would take them for a part of this run. Only names that the kit gives to a table of ``out`` are looked at,
    and only a file whose header is that of such a table is removed. predicted: as for ``written_files``. OSError where
    a table may not be removed.
    """
    own = written_files(task, out, predicted=predicted)
    heads = {findings_path(out): f"{ROW_ID},", predicted_path(out): f"{ROW_ID},{PREDICTED}\n"}
    stale = [path for path, head in heads.items() if path not in own and path.is_file() and _begins_with(path, head)]
    for path in stale:
        path.unlink()
    return stale


def _begins_with(path: Path, head: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(head)) == head.encode()


def summary_lines(summary: RunSummary, done: int) -> list[str]:
    """Times, faults and counts as a reader of the log wants them, one line each."""
    lines = [f"time: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in summary.seconds.items())}"]
    if summary.faults:
        lines.append("faults: " + ", ".join(f"{code} x {count}" for code, count in sorted(summary.faults.items())))
    empty = summary.faults[NOTHING_FOUND]
    besides = f", {empty} with nothing found" if empty else ""
    lines.append(
        f"{done - empty} of {summary.studies} studies graded ({summary.unread} unreadable{besides}), "
        f"{summary.on_prior} targets on the prior"
    )
    warning = doubt(summary, done)
    return [*lines, warning] if warning else lines


def doubt(summary: RunSummary, done: int) -> str:
    """A warning where most studies or rows of a run are not to be believed, as where the images show something else
    than the task grades; "" otherwise. done: studies that the run reached."""
    empty, unread = summary.faults[NOTHING_FOUND], summary.unread
    if empty > MANY * max(done - unread, 1):
        return (
            f"warning: in {empty} of {done - unread} readable studies nothing that this task grades was found "
            "with confidence; do the images show what the task is for?"
        )
    if unread > MANY * max(done, 1):
        return f"warning: of {unread} of {done} studies nothing could be read; do the files hold what the task is for?"
    doubted = len({row for row, reason, _ in summary.flags if reason in (NOT_GRADED, NOT_SEEN)})
    if doubted > MANY * max(summary.rows, 1) and not unread:
        return f"warning: {doubted} of {summary.rows} rows hold the class prior or stand on landmarks in doubt"
    unknown = len({row for row, reason, _ in summary.flags if reason.rpartition(":")[2] in UNLIKE})
    if unknown > MANY * max(summary.rows, 1):
        return f"warning: {unknown} of {summary.rows} rows are about images unlike those that the weights know"
    return ""
