"""The list of jobs of a training: what is trained, what each job waits for, and how long it takes on so many workers.

A job is one net of one fold, the epochs that several folds share, or what the nets of a fold predict for the studies
that they hold out. Locators of all folds can be trained side by side. Graders learn from the errors that the locators
of all folds made on held-out studies, so they wait for all of these. The list follows from the recipe alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from osteograde.errors import UserError
from osteograde.learning import cross_fit, history, out_of_fold, schedule
from osteograde.learning.cross_fit import Net, Run, nets_of, own_epochs, sharing_folds
from osteograde.learning.recipe import Recipe
from osteograde.logs import duration
from osteograde.models import bundle
from osteograde.tasks.spec import Points

SHARED, NET, HELD_OUT = "shared epochs", "net", "held-out studies"


@dataclass(frozen=True)
class Job:
    """One job. key: its name, which begins with the folder of its nets. after: keys of the jobs that it waits for.

    nets: what it trains, one; or all members of a stage, whose predictions it makes. fold: of the nets; of shared
    epochs the first of the folds that share them. epochs: that it trains.
    """

    key: str
    kind: str
    nets: tuple[Net, ...]
    fold: int
    after: tuple[str, ...] = ()
    epochs: int = 0

    @property
    def net(self) -> Net:
        return self.nets[0]

    @property
    def work_name(self) -> str:
        """The name of the checkpoint and the history of what is trained."""
        return self.net.work_name(f"common-{self.fold}" if self.kind == SHARED else self.fold)


def jobs_of(recipe: Recipe, folds: Sequence[int]) -> list[Job]:
    """All jobs of the folds of a recipe, each behind those that it waits for: the order of a run in one process."""
    made: list[Job] = []
    for locator in recipe.locators_in_order:
        nets = nets_of("locate", locator.name, [recipe.locators[locator.name]])
        seen = {k: [job.key for job in made if job.kind == HELD_OUT and job.fold == k] for k in folds}
        made += _stage_jobs(recipe, nets, folds, (), seen)
    located = tuple(job.key for job in made if job.kind == HELD_OUT)
    for grader in recipe.graders_in_order:
        nets = nets_of("grade", grader.name, recipe.graders[grader.name])
        made += _stage_jobs(recipe, nets, folds, located, {k: [] for k in folds})
    return made


def _stage_jobs(
    recipe: Recipe, nets: Sequence[Net], folds: Sequence[int], first: tuple[str, ...], seen: Mapping[int, Sequence[str]]
) -> Iterator[Job]:
    """The jobs of a locator or grader. first: what all of its nets wait for. seen: fold -> what its predictions wait
    for beside its own nets."""
    begun: set[str] = set()
    for k in folds:
        own = []
        for net in nets:
            after, start = first, net.plan.start
            if start.shared_epochs:
                shared = _key(net, f"shared{sharing_folds(recipe.scope.folds, k)[0]}")
                if shared not in begun:
                    begun.add(shared)
                    first_fold = sharing_folds(recipe.scope.folds, k)[0]
                    yield Job(shared, SHARED, (net,), first_fold, first, start.shared_epochs)
                after = (*after, shared)
            if start.stage:
                member = recipe.source_member(net.kind, net.plan, net.member)
                after = (*after, _key(replace(net, stage=start.stage, member=member), f"fold{k}"))
            own.append(Job(_key(net, f"fold{k}"), NET, (net,), k, after, own_epochs(net.plan)))
        yield from own
        waits = (*(job.key for job in own), *seen[k])
        yield Job(f"{nets[0].kind}/{nets[0].stage}/held-out{k}", HELD_OUT, tuple(nets), k, waits)


def _key(net: Net, name: str) -> str:
    member = f"member{net.member}-" if net.member else ""
    return f"{net.kind}/{net.stage}/{member}{name}"


def chosen(jobs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """The jobs whose keys fit one of the patterns, as file names do. UserError where a pattern fits none."""
    for pattern in patterns:
        if not any(fnmatchcase(job.key, pattern) for job in jobs):
            raise UserError(f"--only {pattern!r} fits no job; --plan lists them, such as {jobs[0].key}")
    return [job for job in jobs if any(fnmatchcase(job.key, pattern) for pattern in patterns)]


def finished(jobs: Sequence[Job], out: Path) -> set[str]:
    """The keys of the jobs whose results are in a weights folder already."""
    done = {job.key for job in jobs if job.kind == NET and cross_fit.is_finished(out, job.net, job.fold)}
    for job in jobs:
        if job.kind == SHARED:
            users = [one.key for one in jobs if job.key in one.after]
            if cross_fit.is_shared_finished(out, job.net, job.fold) or done.issuperset(users):
                done.add(job.key)
        elif job.kind == HELD_OUT and done.issuperset(job.after) and _is_predicted(job, out):
            done.add(job.key)
    return done


def _is_predicted(job: Job, out: Path) -> bool:
    """Whether the nets of a fold, as they are now, have predicted. A file that is older than a net is not enough; one
    that does not fit for another reason is noticed where it is read, and made again."""
    path = out_of_fold.predictions_path(out, job.net, job.fold)
    markers = [net.done_marker(out, job.fold) for net in job.nets]
    return path.is_file() and all(path.stat().st_mtime_ns >= marker.stat().st_mtime_ns for marker in markers)


def begin_anew(jobs: Sequence[Job], out: Path) -> None:
    """Remove what earlier runs left of these jobs in ``work``, so that none of it is taken for a result of this one."""
    for job in jobs:
        checkpoint = out / "work" / "nets" / f"{job.work_name}.pt"
        checkpoint.unlink(missing_ok=True)
        checkpoint.with_suffix(".sha256").unlink(missing_ok=True)
        out_of_fold.predictions_path(out, job.net, job.fold).unlink(missing_ok=True)


class Session:
    """Does the jobs of a run one by one, whichever of them; what several need is read once and kept.

    The run must resume: results of other jobs are read from its folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.jobs = {job.key: job for job in jobs_of(run.recipe, run.folds)}
        self._stages: dict[tuple[str, str], out_of_fold.LocatorStage | out_of_fold.GraderStage] = {}
        self._located: tuple[Mapping[str, Points], Mapping[str, Points]] | None = None

    def do(self, key: str) -> None:
        """Do one job; its results are in the folder of the run when it returns. UserError as in ``train.train``."""
        job, run = self.jobs[key], self.run
        stage = self._stage(job)
        if job.kind == SHARED:
            cross_fit.train_shared_epochs(run, stage, job.net, sharing_folds(run.recipe.scope.folds, job.fold))
            checkpoint = job.net.shared_checkpoint(run.out, job.fold)
            checkpoint.with_suffix(".sha256").write_text(bundle.sha256(checkpoint))
        elif job.kind == NET and not cross_fit.is_done(run, job.net, job.fold):
            shared: dict[str, nn.Module] = {}
            cross_fit.train_net(run, stage, job.net, job.fold, shared)  # its checkpoint goes at the end of the run
        elif job.kind == HELD_OUT:
            self._predict(job, stage)

    def _stage(self, job: Job) -> out_of_fold.LocatorStage | out_of_fold.GraderStage:
        kind, name = job.net.kind, job.net.stage
        if (kind, name) not in self._stages:
            recipe = self.run.recipe
            if kind == "locate":
                locator = next(one for one in recipe.locators_in_order if one.name == name)
                self._stages[kind, name] = out_of_fold.locator_stage(self.run, locator)
            else:
                grader = next(one for one in recipe.graders_in_order if one.name == name)
                found, points = self._landmarks()
                errors = out_of_fold.errors_mm(self.run, found)
                self._stages[kind, name] = out_of_fold.grader_stage(self.run, grader, points, errors)
        return self._stages[kind, name]

    def _landmarks(self) -> tuple[Mapping[str, Points], Mapping[str, Points]]:
        if self._located is None:
            self._located = out_of_fold.locate_out_of_fold(self.run)
        return self._located

    def _predict(self, job: Job, stage: out_of_fold.LocatorStage | out_of_fold.GraderStage) -> None:
        run = self.run
        fold = cross_fit.finished_fold(run, stage, job.fold)
        if job.net.kind == "locate":
            _, points = out_of_fold.locate_out_of_fold(replace(run, folds=(job.fold,)), before=job.net.stage)
            out_of_fold.cached_predictions(stage, fold, fold.held_out, points)
        else:
            given = {study.id for study in run.studies}
            studies = [study for study in fold.held_out if study.id in given]
            out_of_fold.cached_predictions(stage, fold, studies, out_of_fold.judged_points(run, self._landmarks()[1]))


def do_chosen(run: Run, patterns: Sequence[str]) -> list[str]:
    """Do the jobs that fit the patterns and are not finished, in this process; returns their keys. UserError where one
    waits for a job that is neither finished nor among them."""
    session = Session(run)
    jobs = list(session.jobs.values())
    done = finished(jobs, run.out)
    todo = [job for job in chosen(jobs, patterns) if job.key not in done]
    ahead = set(done)
    for job in todo:
        if missing := [key for key in job.after if key not in ahead]:
            raise UserError(
                f"--only: {job.key} waits for {short(missing)}, not finished in {run.out}; "
                "do that first, or name it too"
            )
        ahead.add(job.key)
    for job in todo:
        session.do(job.key)
    return [job.key for job in todo]


def seconds_of(jobs: Sequence[Job], folders: Sequence[Path]) -> dict[str, float]:
    """{key: seconds} of the jobs that train, from histories in weights folders, the first that has any: of the same
    net, else of another fold or member. Jobs that nobody has trained, or that do not train, are not in it."""
    known: dict[str, float] = {}
    for job in jobs:
        for folder in folders if job.epochs else ():
            files = sorted((folder / history.FOLDER).glob(f"{job.net.kind}-{job.net.stage}-*.jsonl"))
            alike = [path for path in files if ("-common-" in path.stem) == (job.kind == SHARED)]
            own = [path for path in alike if path.stem == job.work_name] or alike
            rows = [row["seconds"] for path in own for row in history.read(path) if row.get("seconds") is not None]
            if rows:
                known[job.key] = sum(rows) / len(rows) * job.epochs
                break
    return known


def span(jobs: Sequence[Job], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds from the first to the last of these jobs on so many workers, each taking the first job in the list that
    waits for nothing; jobs without a time take none. What is not in the list counts as finished."""
    return schedule.simulate(jobs, seconds, workers).makespan_s


def short(keys: Collection[str]) -> str:
    """Keys for people: those that differ in their last number are one.

    >>> short(["locate/joint/held-out0", "locate/joint/held-out1", "grade/kl/fold3"])
    'locate/joint/held-out0,1 grade/kl/fold3'
    """
    numbers: dict[str, list[str]] = {}
    for key in keys:
        name = key.rstrip("0123456789")
        numbers.setdefault(name, []).append(key[len(name) :])
    return " ".join(name + ",".join(found) for name, found in numbers.items())


def plan_lines(jobs: Sequence[Job], done: Collection[str], seconds: Mapping[str, float], workers: int) -> Iterator[str]:
    """The list for people: what is done, how long the rest takes, and what it waits for."""
    width = max(len(job.key) for job in jobs) + 2
    left = [job for job in jobs if job.key not in done]
    for job in jobs:
        epochs = (
            f"{job.epochs} epoch{'s' if job.epochs > 1 else ''}"
            if job.epochs
            else "predictions"
            if job.kind == HELD_OUT
            else "as it starts"
        )
        time = "done" if job.key in done else duration(seconds[job.key]) if job.key in seconds else "-"
        waits = [key for key in job.after if key not in done]
        after = f"after {short(waits)}" if waits and job.key not in done else ""
        yield f"{job.key:<{width}}{epochs:>12}{time:>14}  {after}".rstrip()
    yield f"{len(jobs)} jobs, {len(jobs) - len(left)} done"
    trained = [job for job in left if job.epochs]
    if not trained:
        yield "nothing is left to be trained"
    elif all(job.key in seconds for job in trained):
        counts = dict.fromkeys([1, workers] if workers > 1 else [1, 2, 4, 8])
        times = ", ".join(f"{count}: {duration(span(left, seconds, count))}" for count in counts)
        yield f"time left by the epochs of the earlier run, without predictions, by the number of workers: {times}"
    else:
        yield "time left: not known, as no earlier run has trained all of it; histories are looked for here and beside"


def width(jobs: Sequence[Job]) -> int:
    """How many jobs may be under way at once at most, by the folds and members of one stage."""
    counts: dict[tuple[str, str], int] = {}
    for job in jobs:
        if job.kind == NET:
            counts[job.net.kind, job.net.stage] = counts.get((job.net.kind, job.net.stage), 0) + 1
    return max(counts.values(), default=1)
