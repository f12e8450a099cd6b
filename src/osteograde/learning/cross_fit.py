"""The nets of every fold of a locator or a grader, each handed out with the studies that it has never seen.

The leak rule: no net answers about a study that it was trained on, nor about another study of the same patient. It is
``folds.Split.training``, which says for every net, of one fold or shared by several, what it may be trained on. All
locators and graders use the same folds.csv.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from osteograde import logs
from osteograde.learning import folds, head_fit, history, loop, pretrained
from osteograde.learning.cache import cached
from osteograde.learning.loop import AfterEpoch, Data, Job, Loss
from osteograde.learning.recipe import LBFGS, GraderPlan, Plan, Recipe
from osteograde.learning.stage_start import net_from_stage
from osteograde.models import bundle
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Study

BuildNet = Callable[[], nn.Module]
Judge = Callable[[str, int, float], None]  # (name of a net in training, finished epochs, held-out log loss)


@dataclass(frozen=True, eq=False)
class Run:
    """One call of train_folds.py: the recipe, the studies and where everything goes.

    synthetic: studies made out of the given ones. Nets are trained on them, and their landmarks are predicted and
    scored; they are never graded. tensorboard: events of TensorBoard are written beside the history of every net.
    teacher: a weights folder with the same folds.csv, from whose answers graders learn at sites without a label.
    progress: what is shown of all nets together, in epochs; None shows every net alone. judge: is called with the
    held-out log loss of every grader's net after every epoch, and may end the run by an exception of its own. volumes:
    where the given studies are kept as they were decoded, if several runs share them.
    """

    recipe: Recipe
    studies: Sequence[Study]
    synthetic: Sequence[Study]
    split: folds.Split
    folds: tuple[int, ...]
    out: Path
    device: torch.device
    resume: bool
    tensorboard: bool = False
    teacher: Path | None = None
    progress: logs.Progress | None = None
    judge: Judge | None = None
    volumes: Path | None = None

    @property
    def work(self) -> Path:
        """Caches and checkpoints: needed to resume a run, not to use the weights."""
        return self.out / "work"

    @property
    def everything(self) -> list[Study]:
        """The given studies, then the synthetic ones."""
        return [*self.studies, *self.synthetic]

    def loaded(self, studies: Sequence[Study]) -> list[Loaded]:
        """The volumes of studies, decoded at the first call and read from a cache afterwards."""
        return [cached(study, self.recipe.task, self._volumes_of(study)) for study in studies]

    def _volumes_of(self, study: Study) -> Path:
        """The folder of a decoded study; synthetic ones are of one run, whatever their names are in another."""
        is_own = self.volumes is None or study.id in self._made
        return self.work / "volumes" if is_own or self.volumes is None else self.volumes

    @cached_property
    def _made(self) -> frozenset[str]:
        return frozenset(study.id for study in self.synthetic)


def net_name(kind: str, stage: str, k: int, member: int = 0) -> str:
    """The name of a net in the weights folder; those of further members sort behind the first ones of all folds.

    >>> net_name("grade", "kl", 0), net_name("grade", "kl", 0, 1)
    ('grade/kl/fold0.safetensors', 'grade/kl/member1-fold0.safetensors')
    """
    return f"{kind}/{stage}/{_prefix(member)}fold{k}.safetensors"


def _prefix(member: int) -> str:
    return f"member{member}-" if member else ""


@dataclass(frozen=True)
class Net:
    """One net of every fold: its folder (``kind``), its locator or grader, how it is trained, and its place.

    member: its place among the members of the ensemble. repeat: how many earlier members have the same plan; it is
    added to the random seed, so that a repeated plan gives another net.
    """

    kind: str
    stage: str
    plan: Plan
    member: int = 0
    repeat: int = 0

    def file(self, k: int) -> str:
        """The name of the net of fold k in the weights folder."""
        return net_name(self.kind, self.stage, k, self.member)

    def work_name(self, fold: str | int) -> str:
        """The name of its checkpoint and done marker, without the ending."""
        return f"{self.kind}-{self.stage}-{_prefix(self.member)}{fold}"

    def done_marker(self, out: Path, k: int) -> Path:
        """A file with the SHA-256 of the finished net of fold k, written after the net itself."""
        return out / "work" / "nets" / f"{self.work_name(k)}.sha256"

    def shared_checkpoint(self, out: Path, k: int) -> Path:
        """The checkpoint of the epochs that several folds share (``train_shared_epochs``), of which k is the first."""
        return out / "work" / "nets" / f"{self.work_name(f'common-{k}')}.pt"


def nets_of(kind: str, stage: str, plans: Sequence[Plan]) -> list[Net]:
    """The nets of a fold, one for every plan."""
    return [Net(kind, stage, plan, member, repeats(plans, member)) for member, plan in enumerate(plans)]


def repeats(plans: Sequence[object], member: int) -> int:
    """How many plans before a member's are the same as its own.

    >>> [repeats(["a", "b", "a", "a"], member) for member in range(4)]
    [0, 0, 1, 2]
    """
    return sum(plan == plans[member] for plan in plans[:member])


class Stage(Protocol):
    """What cross-fitting needs of a locator or a grader: its nets, the data they are trained on, and their loss."""

    @property
    def nets(self) -> Sequence[Net]: ...

    def data(self, studies: Sequence[Study], plan: Plan, taught_by: int | None = None) -> Data:
        """taught_by: the fold that trains on these studies; its teacher may give pseudo-labels. None: labels alone."""
        ...

    def loss(self, plan: Plan) -> Loss: ...

    def watch(self, plan: Plan, held_out: Data, job: Job) -> AfterEpoch | None:
        """What is measured on held-out data after every epoch for the log, if anything."""
        ...


@dataclass(frozen=True, eq=False)
class Fold:
    """The finished nets of one fold, one for every member, and the studies that none of them was trained on."""

    k: int
    nets: Sequence[nn.Module]
    held_out: Sequence[Study]


def cross_fit(run: Run, stage: Stage) -> Iterator[Fold]:
    """Train the nets of every fold, or load those that an earlier call has finished."""
    shared: dict[str, nn.Module] = {}  # nets of shared epochs, by checkpoint; trained when the first fold needs one
    for k in run.folds:
        for net in stage.nets:
            if not is_done(run, net, k):
                train_net(run, stage, net, k, shared)
            _checkpoint(run, net, k).unlink(missing_ok=True)  # several times the net, and of no more use
        yield finished_fold(run, stage, k)
    _remove_shared_checkpoints(run, stage)


def train_net(run: Run, stage: Stage, net: Net, k: int, shared: dict[str, nn.Module]) -> None:
    """Train the net of fold k and write it, then its done marker. shared: nets of shared epochs by checkpoint; one that
    is missing there is trained first, or loaded where a run that resumes finds it finished."""
    path, marker = run.out / net.file(k), net.done_marker(run.out, k)
    build: BuildNet | None = None
    if net.plan.start.shared_epochs:
        together = sharing_folds(run.recipe.scope.folds, k)
        name = net.work_name(together[0])
        if name not in shared:
            with _counting(run, net.plan.start.shared_epochs):
                shared[name] = train_shared_epochs(run, stage, net, together)
        build = partial(_copy_to_train, shared[name])
    with _counting(run, own_epochs(net.plan)):
        trained = _train_fold(run, stage, net, k, build)
    bundle.save_net(trained, path)
    marker.parent.mkdir(parents=True, exist_ok=True)  # a net of no epochs has no checkpoint there
    marker.write_text(bundle.sha256(path))


def finished_fold(run: Run, stage: Stage, k: int) -> Fold:
    """The finished nets of fold k. What ships is judged: the fp16 file as it will be loaded, not the net in memory."""
    nets = [bundle.load_net(run.out / net.file(k), net.plan.net) for net in stage.nets]
    return Fold(k, [bundle.on_device(net, run.device) for net in nets], run.split.held_out(run.everything, k))


def _remove_shared_checkpoints(run: Run, stage: Stage) -> None:
    """Those of epochs that folds share, where each of these folds has its net."""
    later = replace(run, resume=True)  # as a later call would find them
    for net in stage.nets:
        for k in run.folds if net.plan.start.shared_epochs else ():
            together = sharing_folds(run.recipe.scope.folds, k)
            if all(is_done(later, net, j) for j in together):
                _checkpoint_named(run, _shared_name(net, together)).unlink(missing_ok=True)


def is_done(run: Run, net: Net, k: int) -> bool:
    """Whether an earlier call has finished the net of fold k, and this one takes it."""
    return run.resume and is_finished(run.out, net, k)


def is_finished(out: Path, net: Net, k: int) -> bool:
    """Whether a weights folder holds the net of fold k as its done marker says."""
    path, marker = out / net.file(k), net.done_marker(out, k)
    return marker.is_file() and path.is_file() and marker.read_text() == bundle.sha256(path)


def own_epochs(plan: Plan) -> int:
    """The epochs that the net of a fold is trained for alone."""
    return plan.training.epochs - plan.start.shared_epochs


def to_train(run: Run) -> tuple[int, int]:
    """(nets that are left to be trained, their epochs), those of shared epochs included."""
    nets, epochs = 0, 0
    for (kind, stage), plans in run.recipe.plans().items():
        for net in nets_of(kind, stage, plans):
            left = [k for k in run.folds if not is_done(run, net, k)]
            together = {sharing_folds(run.recipe.scope.folds, k) for k in left} if net.plan.start.shared_epochs else ()
            nets += len(left)
            epochs += len(left) * own_epochs(net.plan) + len(together) * net.plan.start.shared_epochs
    return nets, epochs


@contextmanager
def _counting(run: Run, epochs: int) -> Iterator[None]:
    """A net that is trained in the block counts as so many epochs, also where it stops early or was begun before."""
    begun = 0 if run.progress is None else run.progress.done
    yield
    if run.progress is not None:
        run.progress.advance(begun + epochs - run.progress.done)


def _train_fold(run: Run, stage: Stage, net: Net, k: int, shared: BuildNet | None) -> nn.Module:
    """The net of fold k. shared: makes the net of the shared epochs, if the plan has any."""
    plan = net.plan if shared is None else after_shared_epochs(net.plan)
    data = stage.data(run.split.training(run.everything, k), plan, k)
    held_out = stage.data(run.split.held_out(run.everything, k), plan)
    job = _job(run, net, k, net.work_name(k))
    loss = stage.loss(plan)
    build = shared or partial(_new_net, run, net, k, data, loss, job)
    if plan.training.optimiser == LBFGS:
        return head_fit.fit_head(build, plan, data, held_out, loss, job)
    watch = stage.watch(plan, held_out, job)
    return loop.train(build, plan, data, held_out, loss, job, resume=run.resume, after_epoch=watch)


def _new_net(run: Run, net: Net, k: int, data: Data, loss: Loss, job: Job) -> nn.Module:
    """The net of a plan as it starts, which knows of its training data alone."""
    stage = net.plan.start.stage
    if stage:  # from the net of another stage of the same fold
        member = run.recipe.source_member(net.kind, net.plan, net.member)
        config = run.recipe.plans()[net.kind, stage][member].net
        made = net_from_stage(net.plan.net, run.out / net_name(net.kind, stage, k, member), config)
    else:
        made = pretrained.net_of(net.plan, data, loss, job, net.member)
    data.fit(made)
    return made


def sharing_folds(count: int, k: int) -> tuple[int, ...]:
    """The folds whose nets start with the same shared epochs as fold k: its half of all folds.

    >>> sharing_folds(5, 1), sharing_folds(5, 4)
    ((0, 1, 2), (3, 4))
    """
    first = tuple(range(-(-count // 2)))
    return first if k in first else tuple(range(len(first), count))


def train_shared_epochs(run: Run, stage: Stage, net: Net, together: tuple[int, ...]) -> nn.Module:
    """The net that several folds continue from. It is trained on the studies that none of them holds out.

    These epochs are paid for once and not per fold, and they are over fewer studies.
    """
    plan = shared_epochs_of(net.plan)
    data = stage.data(run.split.training(run.everything, *together), plan)
    job = _job(run, net, together[0], _shared_name(net, together), together)
    if run.resume and is_shared_finished(run.out, net, together[0]):
        job = replace(job, history=None)  # nothing is left to be trained, and other processes may do the same
    loss = stage.loss(plan)
    build = partial(_new_net, run, net, together[0], data, loss, job)
    return loop.train(build, plan, data, None, loss, job, resume=run.resume)


def is_shared_finished(out: Path, net: Net, first: int) -> bool:
    """Whether the checkpoint of shared epochs was marked as finished (``jobs``); a run in one process marks none."""
    checkpoint = net.shared_checkpoint(out, first)
    marker = checkpoint.with_suffix(".sha256")
    return marker.is_file() and checkpoint.is_file() and marker.read_text() == bundle.sha256(checkpoint)


def shared_epochs_of(plan: Plan) -> Plan:
    """The shared epochs of a plan: no restart, no early stopping and no synthetic studies, which come later."""
    plan = replace(
        plan,
        training=replace(plan.training, epochs=plan.start.shared_epochs, patience=0),
        schedule=replace(plan.schedule, restarts={}),
    )
    return replace(plan, synthetic_epochs=0) if isinstance(plan, GraderPlan) else plan


def after_shared_epochs(plan: Plan) -> Plan:
    """What a fold trains by itself after the shared epochs: the other epochs, from half of the learning rate."""
    shared, schedule = plan.start.shared_epochs, plan.schedule
    plan = replace(
        plan,
        training=replace(plan.training, epochs=plan.training.epochs - shared, lr=plan.training.lr / 2),
        schedule=replace(
            schedule, restarts={epoch - shared: share for epoch, share in schedule.restarts.items() if epoch > shared}
        ),
        start=replace(plan.start, head_epochs=0),
    )
    if isinstance(plan, GraderPlan):
        plan = replace(plan, heads_only_epochs=max(0, plan.heads_only_epochs - shared))
        if plan.resizing:
            plan = replace(plan, resizing=replace(plan.resizing, epochs=max(0, plan.resizing.epochs - shared)))
    return plan


def _job(run: Run, net: Net, fold: int, name: str, shared_by: tuple[int, ...] = ()) -> Job:
    seed = run.recipe.scope.seed + net.repeat
    return Job(
        net.stage,
        fold,
        seed,
        run.device,
        _checkpoint_named(run, name),
        shared_by,
        history=run.out / history.FOLDER / f"{name}.jsonl",
        tensorboard=run.tensorboard,
        progress=run.progress,
    )


def _checkpoint(run: Run, net: Net, k: int) -> Path:
    """The checkpoint of fold k alone; that of epochs which folds share is another one."""
    return _checkpoint_named(run, net.work_name(k))


def _checkpoint_named(run: Run, name: str) -> Path:
    return run.work / "nets" / f"{name}.pt"


def _shared_name(net: Net, together: Sequence[int]) -> str:
    return net.work_name(f"common-{together[0]}")


def _copy_to_train(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).requires_grad_(True)
