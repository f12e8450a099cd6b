"""Does the jobs of a search, one by one, whichever of them: trials on inner folds, and settings on an outer fold.

Several processes, also of several machines that share the folder, may do the jobs of one search: a job is done by the
process that holds the lock of its folder, and a lock ends with its process.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from osteograde.errors import UserError
from osteograde.imaging.files import atomic_write
from osteograde.learning import folds, jobs, loop, nested, reuse, space, study, train
from osteograde.learning.nested import CHOSEN, DEFAULT, DONE, JUDGED, PRUNED, REFUSED, TRIAL, Search, SearchJob, Trial
from osteograde.learning.recipe import Recipe
from osteograde.learning.space import Point
from osteograde.logs import duration
from osteograde.models.manifest import MANIFEST
from osteograde.tasks.spec import Study

if TYPE_CHECKING:
    import optuna

LOCK, BEGUN = "lock", "begun"
POLL_S = 2.0  # between two looks at trials that other processes do
NETS = ("locate", "grade")  # folders of nets in a weights folder
log = logging.getLogger("osteograde.search")


class Pruned(Exception):
    """A trial is so much worse than others at the same step that it ends early."""


@dataclass(frozen=True, eq=False)
class Session:
    """What does the jobs of a search. recipe: the default one, with its outer folds. studies: those of the search, of
    as many patients as the scope of the recipe says."""

    search: Search
    recipe: Recipe
    studies: Sequence[Study]
    data: Path
    out: Path
    device: torch.device

    @property
    def higher(self) -> bool:
        """Whether a higher score is better."""
        return "score" in self.recipe.task.metric.higher_is_better

    def do(self, key: str) -> None:
        """Do one job; its result is in the folder of the search when this returns, unless another process does it."""
        job = next(one for one in nested.jobs_of(self.search) if one.key == key)
        if job.what == TRIAL:
            self._try(job)
            return
        self._finish_trials(job.fold)
        while not (self.out / key / JUDGED).is_file():
            with locked(self.out / key) as mine:
                if mine and not (self.out / key / JUDGED).is_file():
                    self._judge(job)
            if not mine:
                time.sleep(POLL_S)

    def _finish_trials(self, k: int) -> None:
        """Wait for the trials that other processes do, and do those whose process has ended."""
        own = [job for job in nested.jobs_of(self.search) if job.fold == k and job.what == TRIAL]
        while left := [job for job in own if not (self.out / job.key / TRIAL).is_file()]:
            for job in left:
                self._try(job)
            if any(not (self.out / job.key / TRIAL).is_file() for job in left):
                time.sleep(POLL_S)

    def _try(self, job: SearchJob) -> None:
        folder = self.out / job.key
        with locked(folder) as mine:
            if not mine or (folder / TRIAL).is_file():
                return
            optuna_study = study.FoldStudy(self.search, self.out, job.fold, higher=self.higher)
            optuna_study.tell(nested.trials_of(self.out, job.fold))
            first = None if job.number else space.default_point(self.search.dimensions, self.recipe)
            asked, point = optuna_study.ask(job.number, first)
            with timed(folder) as seconds:
                trial = self._run_trial(job, point, asked)
            trial = replace(trial, seconds=round(seconds(), 1), losses=optuna_study.losses(asked))
            nested.save_trial(trial, folder)
            optuna_study.tell([trial])
            self._tidy(folder)
        self._say(job, trial)

    def _run_trial(self, job: SearchJob, point: Point, asked: optuna.Trial) -> Trial:
        """Train on the inner folds and score there. Settings that make no sense together, or by which a loss is not
        finite, are refused; the search goes on."""
        folder = self.out / job.key
        try:
            recipe = nested.inner_recipe(self.recipe, point, self.search.inner)
        except UserError as error:
            return Trial(job.number, point, REFUSED, why=str(error))
        split = folds.read(self.out / folds.FILE)
        inner = nested.inner_studies(split, self.studies, job.fold)
        self._take_nets(self.out / f"outer{job.fold}", folder, recipe)
        try:
            with quiet(logging.ERROR):  # what is wrong with the data is told where the outer folds judge
                scores = train.train(
                    recipe, self.data, folder, only=None, device=self.device, resume=True, studies=inner,
                    judge=judge_of(recipe, asked, higher=self.higher), volumes=self.out / "work" / "volumes",
                )  # fmt: skip
        except Pruned:
            return Trial(job.number, point, PRUNED)
        except loop.Diverged as error:
            return Trial(job.number, point, REFUSED, why=str(error))
        score = scores["grade"]["model"]["score"]
        if score is None:
            return Trial(job.number, point, REFUSED, why="the score is not defined on the inner folds")
        return Trial(job.number, point, DONE, score)

    def _judge(self, job: SearchJob) -> None:
        """Train on the training part of an outer fold, and score on the fold itself: the default, or the setting that
        is best on inner folds. Equal settings are judged by the same nets."""
        folder, around = self.out / job.key, self.out / f"outer{job.fold}"
        point: Point = {}
        number = None
        if job.what == CHOSEN:
            best = nested.best_of(nested.trials_of(self.out, job.fold), higher=self.higher)
            if best is None:
                raise UserError(f"{around}: no trial has a score, so nothing can be chosen; widen or mend the space")
            point, number = dict(best.point), best.number
        recipe = nested.outer_recipe(self.recipe, point)
        with timed(folder) as seconds:
            if job.what == CHOSEN:
                self._take_nets(around, folder, recipe, names=(DEFAULT,))
            folds.take(self.out, folder)
            with quiet(logging.WARNING):
                scores = train.train(
                    recipe, self.data, folder, only=(job.fold,), device=self.device, resume=True, studies=self.studies,
                    volumes=self.out / "work" / "volumes",
                )  # fmt: skip
        score = scores["grade"]["model"]["score"]
        nested.save_judged(folder, score, number, seconds())
        log.info("outer fold %d, %s: score %s on the outer fold, %s", job.fold, job.what, _text(score),
                 duration(seconds()))  # fmt: skip

    def _take_nets(self, around: Path, folder: Path, recipe: Recipe, names: Sequence[str] = ("trial*",)) -> None:
        """Copy nets of a finished run on the same folds whose plans are the same, such as those of locators, if only
        graders are searched for."""
        for pattern in names:
            for path in sorted(around.glob(f"{pattern}/{MANIFEST}")):
                if path.parent != folder and (path.parent / NETS[1]).is_dir():
                    reuse.reuse_nets(path.parent, folder, recipe)
                    return

    def _tidy(self, folder: Path) -> None:
        """Remove the nets of a trial, but of the first one that has all of them, from which others may take some."""
        shutil.rmtree(folder / "work", ignore_errors=True)
        kept = [path.parent for path in folder.parent.glob(f"trial*/{MANIFEST}") if (path.parent / NETS[1]).is_dir()]
        if kept != [folder]:
            for name in NETS:
                shutil.rmtree(folder / name, ignore_errors=True)

    def _say(self, job: SearchJob, trial: Trial) -> None:
        best = nested.best_of(nested.trials_of(self.out, job.fold), higher=self.higher)
        told = f"score {_text(trial.score)} on inner folds" if trial.state == DONE else trial.state
        why = f" ({trial.why})" if trial.why else ""
        so_far = "" if best is None else f"; best so far {_text(best.score)}, trial {best.number}"
        log.info("outer fold %d, trial %d: %s: %s%s, %s%s", job.fold, trial.number, _settings(trial.point), told, why,
                 duration(trial.seconds), so_far)  # fmt: skip


def chosen_studies(recipe: Recipe, data: Path) -> list[Study]:
    """The labelled studies of as many patients as the scope of a recipe says, in the order of their ids."""
    given = recipe.task.read(data, "train")
    return train.chosen_patients(sorted(given, key=lambda one: one.id), recipe)


def begin(search: Search, recipe: Recipe, studies: Sequence[Study], out: Path) -> None:
    """Write what is searched for and the outer folds, or check those that are there. UserError as ``nested.begin``, for
    other studies than those of the folds, and for too few patients."""
    nested.check_begun(search, out)
    path = out / folds.FILE
    if path.is_file():
        folds.load(path, studies)
    split = (
        folds.read(path)
        if path.is_file()
        else folds.assign(recipe.task, studies, recipe.scope.folds, recipe.scope.seed)
    )
    for k in search.folds:
        patients = {study.patient for study in nested.inner_studies(split, studies, k)}
        if len(patients) < search.inner:
            raise UserError(f"--inner {search.inner}: outer fold {k} leaves {len(patients)} patients; give fewer")
    nested.begin(search, out)
    if not path.is_file():
        folds.save(split, path)


def judge_of(recipe: Recipe, asked: optuna.Trial, *, higher: bool) -> Callable[[str, int, float], None]:
    """What is called after every epoch of a grader's net in a trial: it tells Optuna the mean held-out log loss of the
    nets so far, each by its last epoch, and raises Pruned where Optuna says that this is the end.

    A step counts the epochs of all nets of the graders, in the order of training, in thousandths. higher: whether a
    higher score is better; Optuna is then told minus the loss, as it compares both in one direction.
    """
    listed = jobs.jobs_of(recipe, range(recipe.scope.folds))
    nets = {job.work_name: job.epochs for job in listed if job.kind == jobs.NET and job.net.kind == NETS[1]}
    order, last = list(nets), dict[str, float]()

    def judge(name: str, epochs: int, loss: float) -> None:
        last[name] = loss
        share = (order.index(name) + epochs / max(1, nets[name])) / len(order)
        mean = sum(last.values()) / len(last)
        asked.report(-mean if higher else mean, min(study.STEPS, int(study.STEPS * share)))
        if asked.should_prune():
            raise Pruned

    return judge


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process alone may work in a folder; the lock ends with the block, or with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def timed(folder: Path) -> Iterator[Callable[[], float]]:
    """A function that says the seconds of the block, with those of earlier calls that did not come to their end."""
    path, clock = folder / BEGUN, time.monotonic()
    before = _seconds_in(path)
    ended: list[float] = []

    def seconds() -> float:
        return before + (ended[0] if ended else time.monotonic() - clock)

    is_whole = False
    try:
        yield seconds
        is_whole = True
    finally:
        ended.append(time.monotonic() - clock)
        if is_whole:
            path.unlink(missing_ok=True)
        else:
            atomic_write(path, f"{seconds():.1f}")


def _seconds_in(path: Path) -> float:
    """0 where there is no such file, or one that a full disk left empty."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return float(text) if text else 0.0


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """The training of a trial says nothing below a level: of a search, a line a trial is read."""
    learning = logging.getLogger("osteograde.learning")
    before = learning.level
    learning.setLevel(level)
    try:
        yield
    finally:
        learning.setLevel(before)


def _settings(point: Mapping[str, str]) -> str:
    return " ".join(space.settings_of(point))


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
