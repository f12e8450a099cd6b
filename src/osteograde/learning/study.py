"""The part of a search that Optuna does: which setting is tried next, which trial ends early, what matters.

One study for every outer fold, all in one file, ``optuna.journal`` in the folder of the search. It is Optuna's
JournalStorage: a log to which processes of several machines append under a lock that holds on network file systems.
SQLite, the other storage in one file, is not safe on these.

Every trial is drawn by a sampler of its own, whose seed follows from (seed, outer fold, number of the trial). So a
search that was interrupted goes on with the trials that it would have had, and the trials before decide the rest.
"""

from __future__ import annotations

import logging
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osteograde.learning.nested import DONE, PRUNED, Search, Trial
from osteograde.learning.space import Choice, Dimension, Point, grid

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

FILE = "optuna.journal"
JOB = "job"  # attribute of a trial: its number in the search
TPE, RANDOM, GRID = "tpe", "random", "grid"
METHODS = (TPE, RANDOM, GRID)
MEDIAN, HYPERBAND, NO_PRUNING = "median", "hyperband", "none"
PRUNERS = (MEDIAN, HYPERBAND, NO_PRUNING)
STEPS = 1000  # of pruning in a trial: a step is a thousandth of the epochs of all of its graders' nets
WARM_UP = 100  # step before which no trial ends: losses of the first epochs say little about those of the last
LEAST_STARTUP, MOST_STARTUP = 3, 10  # trials, see ``startup_trials``; a quarter between these

log = logging.getLogger("osteograde.learning")


def startup_trials(trials: int) -> int:
    """Trials that are drawn at random before TPE uses those that are finished, and that are finished before the median
    of their losses ends any other.

    >>> startup_trials(8), startup_trials(24), startup_trials(100)
    (3, 6, 10)
    """
    return max(LEAST_STARTUP, min(MOST_STARTUP, trials // 4))


def seed_of(seed: int, fold: int, number: int) -> int:
    """The seed of the sampler of one trial."""
    return zlib.crc32(f"{seed} {fold} {number}".encode())


class JournalLock:
    """Optuna's lock of its journal; under it, the line that a killed process or a full disk left unfinished is cut off.
    Optuna would append the next line to it, and neither could be read again."""

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileSymlinkLock

        self._path = path.absolute()  # the lock is a link to it: a relative one would lead from its folder to nowhere,
        self._lock = JournalFileSymlinkLock(str(self._path))  # and where a process was killed, be waited for for ever

    def acquire(self) -> bool:
        """Wait for the lock."""
        acquired = self._lock.acquire()
        known = self._path.read_bytes()
        if known and not known.endswith(b"\n"):
            os.truncate(self._path, known.rfind(b"\n") + 1)
        return acquired

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


class FoldStudy:
    """The trials of one outer fold in Optuna's storage. higher: whether a higher score is better."""

    def __init__(self, search: Search, out: Path, fold: int, *, higher: bool) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        path = out / FILE
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.search, self.fold = search, fold
        self.study: optuna.Study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path), JournalLock(path))),
            study_name=f"outer{fold}",
            direction="maximize" if higher else "minimize",
            pruner=_pruner(search),
            load_if_exists=True,
        )

    def ask(self, number: int, first: Point | None) -> tuple[optuna.Trial, Point]:
        """The trial of a number, and its point. One that was begun by a process that has ended is begun anew with the
        same point. first: the point of trial 0, which is the recipe as it is; None draws it like the others."""
        fixed: Mapping[str, Any] | None = None
        if (begun := self._begun(number)) is not None:
            fixed = begun.params
            self.study.tell(begun.number, state=_states().FAIL, skip_if_finished=True)
        elif self.search.method == GRID:
            fixed = self._values(grid(self.search.dimensions, self.search.trials)[number])
        elif number == 0 and first is not None:
            fixed = self._values(first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a sampler is experimental
            self.study.sampler = self._sampler(number, fixed)
            trial = self.study.ask({one.key: _distribution(one) for one in self.search.dimensions})
        trial.set_user_attr(JOB, number)
        if begun is not None:
            for step, value in begun.intermediate_values.items():
                trial.report(value, step)  # its training goes on from its last epoch, and does not tell these again
        return trial, self.point(trial.params)

    def _begun(self, number: int) -> optuna.trial.FrozenTrial | None:
        running = self.study.get_trials(deepcopy=False, states=(_states().RUNNING,))
        return next((one for one in running if one.user_attrs.get(JOB) == number), None)

    def point(self, params: Mapping[str, Any]) -> Point:
        """Optuna's parameters as texts that ``--set`` reads."""
        return {
            one.key: params[one.key] if isinstance(one, Choice) else one.text(params[one.key])
            for one in self.search.dimensions
        }

    def _values(self, point: Point) -> dict[str, Any]:
        kinds: dict[str, type] = {one.key: _kind(one) for one in self.search.dimensions}
        return {key: kinds[key](text) for key, text in point.items()}

    def _sampler(self, number: int, fixed: Mapping[str, Any] | None) -> BaseSampler:
        from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

        seed = seed_of(self.search.seed, self.fold, number)
        sampler: BaseSampler = RandomSampler(seed=seed)
        if self.search.method == TPE:
            sampler = TPESampler(seed=seed, n_startup_trials=startup_trials(self.search.trials), multivariate=True)
        return sampler if fixed is None else PartialFixedSampler(dict(fixed), sampler)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell the storage of finished trials that it does not know the end of: that of this process, or one whose
        process ended before it could."""
        by_number = {trial.number: trial for trial in trials}
        for one in self.study.get_trials(deepcopy=False, states=(_states().RUNNING,)):
            trial = by_number.get(one.user_attrs.get(JOB, -1))
            if trial is not None and trial.state == DONE:
                self.study.tell(one.number, trial.score, skip_if_finished=True)
            elif trial is not None:
                state = _states().PRUNED if trial.state == PRUNED else _states().FAIL
                self.study.tell(one.number, state=state, skip_if_finished=True)

    def losses(self, asked: optuna.Trial) -> dict[str, float]:
        """{step: mean held-out log loss} as they were told of a trial, with the sign that they had there."""
        steps = self.study.get_trials(deepcopy=False)[asked.number].intermediate_values
        return {str(step): round(abs(float(value)), 5) for step, value in sorted(steps.items())}

    def importances(self) -> dict[str, float]:
        """{key: share of the variance of scores that it explains} of the finished trials by fANOVA (Hutter, Hoos and
        Leyton-Brown, ICML 2014), which Optuna computes with scikit-learn; none where trials are too few or alike."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        done = self.study.get_trials(deepcopy=False, states=(_states().COMPLETE,))
        if len(done) < 2 or len({one.value for one in done}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=self.search.seed))
        return {key: round(float(value), 4) for key, value in found.items()}


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _kind(one: Dimension) -> type:
    return str if isinstance(one, Choice) else int if one.whole else float


def _distribution(one: Dimension) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(one, Choice):
        return CategoricalDistribution(list(one.options))
    if one.whole:
        return IntDistribution(round(one.low), round(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _pruner(search: Search) -> BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if search.prune == MEDIAN:
        return MedianPruner(n_startup_trials=startup_trials(search.trials), n_warmup_steps=WARM_UP)
    if search.prune == HYPERBAND:
        return HyperbandPruner(min_resource=WARM_UP, max_resource=STEPS)
    return NopPruner()
