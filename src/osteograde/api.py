"""``import osteograde``: grading, training and scoring from Python, by the code that the command lines run.

    grader = osteograde.load(TASK)          # or a weights folder; the nets stay loaded
    table = grader.grade("studies")         # a pandas.DataFrame, one line for each row of the submission
    osteograde.train(TASK, "studies", "runs/mine")
    osteograde.score(TASK, "studies", table)

Nothing is written but what ``train`` writes. A mistake is an ``osteograde.UserError`` of one line. docs/python.md has
examples.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pandas as pd

from osteograde import arrays, cli
from osteograde.arrays import Image
from osteograde.errors import UserError
from osteograde.inference import points_file, run, submission
from osteograde.inference.points_file import with_given_points
from osteograde.inference.submission import Result, RunningSubmission
from osteograde.models import shipped
from osteograde.models.device import pick
from osteograde.models.manifest import read_manifest
from osteograde.pipeline import ensemble
from osteograde.pipeline.ensemble import Voters
from osteograde.report import heatmaps, score_table
from osteograde.tasks import NAMES, TASKS, check_name, decision, tables
from osteograde.tasks.spec import Study, Task
from osteograde.tasks.tables import PREDICTED

__all__ = ["Graded", "Grader", "Image", "UserError", "load", "score", "train"]

Data = str | Path | np.ndarray | Image | Sequence[str | Path] | Sequence[np.ndarray] | Sequence[Image]
Table = str | Path | pd.DataFrame
ROW, STUDY, TARGET, CONFIDENCE, FLAGS = tables.ROW_ID, "study_id", "target", "confidence", "flags"
NUMBERS = (*points_file.MM, *points_file.PIXEL, "confidence")  # columns of the landmarks that are numbers


class Options(TypedDict, total=False):
    """What ``Grader.grade``, ``points`` and ``run`` take beside the data; see ``Grader.grade``."""

    spacing_mm: float | Sequence[float] | None
    side: str
    orientation: str
    view: str
    points: Table | None
    limit: int
    decide: str


@dataclass(frozen=True, eq=False)
class Graded:
    """What a run said. grades: see ``Grader.grade``; points: see ``Grader.points``."""

    grades: pd.DataFrame
    points: pd.DataFrame


class Grader:
    """Weights with their nets in memory. ``load`` makes one; it may be used as often as needed.

    task: name of the task. folder: of the weights. classes, targets: names of what a row is graded into, and of what is
    graded in a study. views: names of the kinds of images that are read. device: where the nets are.
    """

    def __init__(self, task: Task, weights: ensemble.Weights, voters: Voters, workers: int = 0) -> None:
        self._task, self._weights, self._voters, self._workers = task, weights, voters, workers

    @property
    def task(self) -> str:
        return self._task.name

    @property
    def folder(self) -> Path:
        return self._weights.folder

    @property
    def classes(self) -> tuple[str, ...]:
        return self._task.classes

    @property
    def targets(self) -> tuple[str, ...]:
        return self._task.targets

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(view.name for view in self._task.views)

    @property
    def device(self) -> str:
        return str(self._voters.device)

    def __repr__(self) -> str:
        return f"Grader(task={self.task!r}, folder={str(self.folder)!r}, device={self.device!r})"

    def grade(self, data: Data, **options: Unpack[Options]) -> pd.DataFrame:
        """Grade studies. One line for each row of the submission that ``osteograde grade`` writes, in its order.

        data: a folder, an image file, several of them, or arrays: one, several, or ``Image`` values where these differ
        in what follows. spacing_mm, side, orientation, view: of arrays, see ``Image``. points: landmarks that are given
        and not looked for, as ``points`` returns them or in a file. limit: only the first so many studies, 0: all.
        decide: how the predicted class follows from the probabilities: "most-probable", "median" or "mean"
        (docs/inference.md).

        Columns: row_id, study_id, target; one for each of ``classes``, with its probability, to the digit that the
        submission has; predicted, the class that is decided for; confidence, the highest probability; flags, why a
        person should look at the row (docs/inference.md), separated by "; ", empty where there is no reason; then the
        answers of auxiliary heads, for tasks that have any, NaN where a row was not graded.

        Raises UserError where nothing can be graded: a place that is not there, or an array that lacks what the task
        needs. A file that cannot be read is no error: its rows hold the class prior, and a flag.
        """
        return self.run(data, **options).grades

    def points(self, data: Data, **options: Unpack[Options]) -> pd.DataFrame:
        """The landmarks that were found. Arguments and errors are those of ``grade``.

        Columns, as in submission.points.csv: study_id, landmark; x_mm, y_mm, z_mm, the place in DICOM patient
        coordinates (LPS); series, file, x, y, the column and the row of the pixel that shows it, NaN where no slice
        does; confidence from 0 to 1; names, filled where levels may be counted wrongly.
        """
        return self.run(data, **options).points

    def run(
        self,
        data: Data,
        *,
        spacing_mm: float | Sequence[float] | None = None,
        side: str = "",
        orientation: str = "",
        view: str = "",
        points: Table | None = None,
        limit: int = 0,
        decide: str = decision.MOST_PROBABLE,
    ) -> Graded:
        """Grades and landmarks of one run over the data. Arguments and errors are those of ``grade``."""
        decision.check(decide, self._task)
        given = _Given(spacing_mm, side, orientation, view)
        with self._studies(data, given, points, limit) as (studies, template):
            done, _ = self._graded(studies, template)
        return Graded(_grades(self._task, done, decide), _points(done.summary.points))

    def explain(
        self,
        data: Data,
        *,
        study: str = "",
        target: str = "",
        method: str = "gradcam",
        spacing_mm: float | Sequence[float] | None = None,
        side: str = "",
        orientation: str = "",
        view: str = "",
        points: Table | None = None,
    ) -> np.ndarray:
        """The picture of the evidence for the answer at one site of one study, (rows, columns, 3) RGB bytes.

        study, target: which one, where the data hold several studies, and where a study has several sites. method:
        gradcam, saliency or smoothgrad (docs/report.md). Other arguments are those of ``grade``. UserError where it is
        not said which, or the site was not graded.
        """
        if method not in cli.EXPLAIN_METHODS:
            raise UserError(f"method is {method!r}; expected one of {', '.join(cli.EXPLAIN_METHODS)}")
        with self._studies(data, _Given(spacing_mm, side, orientation, view), points, 0) as (studies, template):
            studies = [one for one in studies if not study or one.id == study]
            if len(studies) != 1:
                called = f"called {study!r}" if study else "given"
                raise UserError(f"{len(studies)} studies are {called}; explain shows one site of one study")
            if target and target not in self.targets:
                raise UserError(f"target is {target!r}; {self.task} grades {tables.some(self.targets, 30)}")
            _, results = self._graded(studies, template)
            pictures = heatmaps.pictures(results[0], self._voters, method)
        chosen = target or (next(iter(pictures)) if len(pictures) == 1 else "")
        if chosen not in pictures:
            said = f"several sites were graded: {', '.join(pictures)}" if pictures else "no site was graded"
            raise UserError(f"study {studies[0].id}: {said}; target is {target!r}")
        return np.ascontiguousarray(pictures[chosen][..., ::-1])

    def _graded(self, studies: Sequence[Study], template: Sequence[str]) -> tuple[RunningSubmission, list[Result]]:
        done = RunningSubmission(self._task, self._weights.prior, studies, Path(), template)
        job = run.Job(
            self._task,
            studies,
            self._weights,
            template,
            self._voters.device,
            workers=self._workers,
            voters=self._voters,
        )
        return done, [result for chunk in run.graded(job, done) for result in chunk.results]

    @contextmanager
    def _studies(
        self, data: Data, given: _Given, points: Table | None, limit: int
    ) -> Iterator[tuple[Sequence[Study], Sequence[str]]]:
        """The studies and the row ids of their template; files of arrays last as long as the block."""
        with tempfile.TemporaryDirectory(prefix="osteograde-") as made:
            folder = Path(made)
            path = _table_file(points, folder / "points.csv")
            images = _images(data, given)
            if images is None:
                yield run.listed(self._task, data, limit=limit, points=path)  # type: ignore[arg-type]
                return
            (folder / "images").mkdir()
            studies: Sequence[Study] = arrays.studies_of(self._task, images, folder / "images")
            studies = studies[:limit] if limit else studies
            yield (with_given_points(self._task, studies, path) if path else studies), ()


@dataclass(frozen=True)
class _Given:
    """What is said of all arrays of a call."""

    spacing_mm: float | Sequence[float] | None
    side: str
    orientation: str
    view: str


def load(weights: str | Path, *, device: str = "auto", workers: int = 0) -> Grader:
    """Load trained nets, every file held to its hash.

    weights: a task, whose weights are looked for as ``osteograde grade`` does it, or a weights folder. device: auto,
    cpu, cuda or cuda:N. workers: threads that decode images, 0: one per core. UserError where there are no weights.
    """
    folder = shipped.find(weights) if isinstance(weights, str) and weights in NAMES else Path(weights)
    if not folder.is_dir():
        raise UserError(f"{weights}: neither a weights folder nor a task; tasks are {', '.join(sorted(NAMES))}")
    task, checked = run.verified(folder)
    return Grader(task, checked, ensemble.load(checked, TASKS, pick(device)), workers)


def train(
    task: str,
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | Path | None = None,
    folds: Sequence[int] | None = None,
    device: str = "auto",
    debug: bool = False,
    resume: bool = False,
    **options: object,
) -> dict[str, Any]:
    """Train the folds of a recipe into a weights folder, as ``osteograde train`` does; the log goes to stdout.

    Returns the out-of-fold scores as the manifest in ``out`` has them: "locate", "grade" and, for some tasks,
    "findings". options: every other option of the command, with _ in the place of -, such as pseudo_labels="runs/a";
    several values as a list. UserError as the command has it, and for an option that it does not have.
    """
    given = {"recipe": recipe, "device": device, "debug": debug, "resume": resume, **options}
    if folds is not None:
        given["folds"] = ",".join(map(str, folds))
    cli.train(_parsed(cli.train_parser(), [task, "--data", str(data), "--out", str(out)], given))
    return asdict(read_manifest(Path(out)).scores)


def score(task: str, data: str | Path, table: Table, *, bootstrap: int = 200) -> dict[str, Any]:
    """Score a submission (a file, or what ``Grader.grade`` returns) by the labels in a folder.

    Returns what ``osteograde score`` prints as JSON: score, interval (95 %, over patients; none where bootstrap is 0),
    prior, studies and others (report/score_table.py). UserError where nothing can be compared.
    """
    check_name(task)
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        own = table
        if isinstance(table, pd.DataFrame):
            # A task that its data define has the classes of the table.
            beside = {ROW, STUDY, TARGET, PREDICTED, CONFIDENCE, FLAGS}
            own_classes = [str(name) for name in table.columns if name not in beside]
            columns = [ROW, *(TASKS[task].classes if TASKS[task].of_folder is None else own_classes)]
            if lost := [name for name in columns if name not in table.columns]:
                raise UserError(f"the table to score has no column {tables.some(lost)}; expected {', '.join(columns)}")
            own = table[columns]
        path = _table_file(own, Path(folder) / "submission.csv")
        assert path is not None
        return score_table.score_file(TASKS[task], Path(data), path, bootstrap)


def _parsed(parser: argparse.ArgumentParser, words: list[str], given: Mapping[str, object]) -> argparse.Namespace:
    """The arguments of a command line. UserError for an option that it does not have, and for a value it refuses."""
    known = parser._option_string_actions
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if option not in known:
            raise UserError(f"{name} is no option of {parser.prog}; there are {', '.join(sorted(known))}")
        if value is None or value is False:
            continue
        values = [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
        if known[option].nargs == 0:
            words.append(option)
        elif isinstance(known[option], argparse._AppendAction):
            words += [word for one in values for word in (option, one)]
        else:
            words += [option, *values]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parser.parse_args(words)
    except SystemExit:
        raise UserError(" ".join(said.getvalue().split())) from None


def _images(data: Data, given: _Given) -> list[Image] | None:
    """The arrays of what was given; None where it names files and folders."""
    several = [data] if isinstance(data, str | Path | np.ndarray | Image) else list(data)
    if not several:
        raise UserError("no data are given; name folders or image files, or give arrays")
    count = sum(isinstance(one, np.ndarray | Image) for one in several)
    if not count:
        if given != _Given(None, "", "", ""):
            raise UserError("spacing_mm, side, orientation and view are of arrays; files say these themselves")
        return None
    if count < len(several):
        raise UserError("arrays and files are mixed; give them in two calls")
    return [_image(one, given, i, len(several)) for i, one in enumerate(several, 1)]


def _image(one: Any, given: _Given, number: int, count: int) -> Image:
    if isinstance(one, Image):
        if given != _Given(None, "", "", ""):
            raise UserError("an Image says itself what spacing_mm, side, orientation and view are; leave them out")
        return one
    if given.spacing_mm is None:
        raise UserError("spacing_mm is missing: the distance between neighbouring pixels of the array in mm")
    name = "image" if count == 1 else f"image{number}"
    return Image(one, given.spacing_mm, given.side, given.orientation, given.view, name)


def _table_file(table: Table | None, path: Path) -> Path | None:
    """The file of a table, which is written to ``path`` where it is in memory."""
    if isinstance(table, pd.DataFrame):
        table.to_csv(path, index=False)
        return path
    return None if table is None else Path(table)


def _grades(task: Task, done: RunningSubmission, decide: str) -> pd.DataFrame:
    """The table of ``Grader.grade``."""
    cells = submission.printed(done.rows)
    ids = [row for row, *_ in cells]
    split = [tables.split_id(task, row) for row in ids]
    grades = pd.DataFrame({ROW: ids, STUDY: [a for a, _ in split], TARGET: [b for _, b in split]}, dtype=str)
    probs = np.array([[float(text) for text in row[1:]] for row in cells]).reshape(len(ids), len(task.classes))
    for k, name in enumerate(task.classes):
        grades[name] = probs[:, k]
    grades[PREDICTED] = submission.predicted_classes(cells, task.classes, decide)
    grades[CONFIDENCE] = probs.max(1, initial=0.0)
    reasons: dict[str, list[str]] = defaultdict(list)
    for row, reason, _ in done.summary.flags:
        reasons[row].append(reason)
    grades[FLAGS] = ["; ".join(reasons[row]) for row in ids]
    found = dict(done.summary.findings)
    for k, name in enumerate(submission.finding_names(task)):
        grades[name] = [found[row][k] if row in found else np.nan for row in ids]
    return grades


def _points(rows: Sequence[points_file.PointRow]) -> pd.DataFrame:
    """The table of ``Grader.points``."""
    points = pd.DataFrame(list(rows), columns=list(points_file.COLUMNS), dtype=str)
    for name in NUMBERS:
        points[name] = [float(text) if text else np.nan for text in points[name]]
    return points
