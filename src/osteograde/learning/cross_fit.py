"""The nets of every fold of every stage, each with the studies it never saw.

The leakage rule lives in ``cross_fit``: a net is only ever handed out with studies that it did not train on. All stages
use the same folds.csv.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from osteograde.learning import folds, loop, pretrained
from osteograde.learning.cache import cached
from osteograde.learning.loop import Data, Loss, Where
from osteograde.learning.recipe import Fit, Recipe
from osteograde.models import bundle
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Study

Log = Callable[[str], None]
DataOf = Callable[[Sequence[Study], Fit], Data]  # some studies as a plan learns from them


@dataclass(frozen=True, eq=False)
class Run:
    """One call of train_folds.py: the recipe, the studies and where everything goes."""

    recipe: Recipe
    studies: Sequence[Study]
    practice: Sequence[Study]  # made of these: learnt from as well; their landmarks are found, they are not graded
    split: folds.Split
    folds: tuple[int, ...]
    out: Path
    device: torch.device
    resume: bool
    log: Log

    @property
    def work(self) -> Path:
        """Caches and checkpoints: needed to resume, not to use the weights."""
        return self.out / "work"

    @property
    def everything(self) -> list[Study]:
        return [*self.studies, *self.practice]

    def loaded(self, studies: Sequence[Study]) -> list[Loaded]:
        return [cached(study, self.recipe.task, self.work / "volumes") for study in studies]


def net_name(kind: str, stage: str, k: int, member: int = 0) -> str:
    """The name of a net in the weights; those of further members sort behind the first ones of all folds.

    >>> net_name("grade", "kl", 0), net_name("grade", "kl", 0, 1)
    ('grade/kl/fold0.safetensors', 'grade/kl/member1-fold0.safetensors')
    """
    return f"{kind}/{stage}/{_prefix(member)}fold{k}.safetensors"


def _prefix(member: int) -> str:
    return f"member{member}-" if member else ""


@dataclass(frozen=True)
class Net:
    """One net of a fold: what it is called and how it learns. member: its place among the nets of the fold."""

    kind: str
    stage: str
    plan: Fit
    member: int = 0

    def file(self, k: int) -> str:
        return net_name(self.kind, self.stage, k, self.member)

    def work(self, name: str | int) -> str:
        """Its name among checkpoints and vouchers."""
        return f"{self.kind}-{self.stage}-{_prefix(self.member)}{name}"


def nets_of(kind: str, stage: str, plan: Fit) -> list[Net]:
    return [Net(kind, stage, own, member) for member, own in enumerate(plan.members)]


def cross_fit(
    run: Run,
    kind: str,
    stage: str,
    plan: Fit,
    data_of: DataOf,
    loss_of: Callable[[Fit], Loss],
) -> Iterator[tuple[int, list[nn.Module], list[Study]]]:
    """Train the nets of every fold, or load those that are there; yields (fold, nets as shipped, held-out studies)."""
    starts: dict[str, nn.Module] = {}
    for k in run.folds:
        nets = []
        for one in nets_of(kind, stage, plan):
            path = run.out / one.file(k)
            done = run.work / "nets" / f"{one.work(k)}.sha256"  # vouches for a net that was finished
            if not (run.resume and done.is_file() and path.is_file() and done.read_text() == bundle.sha256(path)):
                net = _trained(run, one, k, data_of, loss_of, starts)
                bundle.save_net(net, path)
                done.write_text(bundle.sha256(path))
            # What ships is judged: the fp16 file as it will be loaded, not the net in memory.
            nets.append(bundle.on_device(bundle.load_net(path, one.plan.net), run.device))
        yield k, nets, run.split.held_out(run.everything, k)


def _trained(
    run: Run, one: Net, k: int, data_of: DataOf, loss_of: Callable[[Fit], Loss], starts: dict[str, nn.Module]
) -> nn.Module:
    """A net of fold k. starts: nets that several folds go on from, made when the first of them asks."""
    loss = loss_of(one.plan)
    where = Where(one.stage, k, run.recipe.seed + one.plan.seed, run.device, run.work / "nets" / f"{one.work(k)}.pt")
    train, held = (data_of(part(run.everything, k), one.plan) for part in (run.split.training, run.split.held_out))
    begin: Callable[[], nn.Module] = partial(pretrained.net_of, one.plan, train, where)
    own = one.plan
    if own.common:
        together = sharing(run.recipe.num_folds, k)
        key = one.work(together[0])
        if key not in starts:
            starts[key] = in_common(run, one, data_of, loss, together)
        begin, own = partial(_again, starts[key]), _rest(own)
    return loop.train(begin, own, train, held, loss, where, resume=run.resume, log=run.log)


def sharing(count: int, k: int) -> tuple[int, ...]:
    """The folds that begin with fold k: its half of all of them.

    >>> sharing(5, 1), sharing(5, 4)
    ((0, 1, 2), (3, 4))
    """
    first = tuple(range(-(-count // 2)))
    return first if k in first else tuple(range(len(first), count))


def in_common(run: Run, one: Net, data_of: DataOf, loss: Loss, together: tuple[int, ...]) -> nn.Module:
    """A net that several folds go on from. It learns from the studies that none of them holds out, so each fold's
    held-out studies stay unseen; its epochs are paid for once and not per fold, and over fewer studies."""
    seen = [study for study in run.everything if run.split.fold_of(study) not in together]
    checkpoint = run.work / "nets" / f"{one.work(f'common-{together[0]}')}.pt"
    where = Where(one.stage, together[0], run.recipe.seed + one.plan.seed, run.device, checkpoint, together)
    first = replace(one.plan, epochs=one.plan.common, restarts=(), patience=0, practice=0)  # which is for the last ones
    data = data_of(seen, first)
    begin = partial(pretrained.net_of, one.plan, data, where)
    return loop.train(begin, first, data, None, loss, where, resume=run.resume, log=run.log)


def _rest(plan: Fit) -> Fit:
    """What a fold learns by itself after the epochs in common: the rest of them, from half the rate as at a restart."""
    return replace(
        plan,
        epochs=plan.epochs - plan.common,
        early=(max(0, plan.early[0] - plan.common), plan.early[1]),
        restarts=tuple(epoch - plan.common for epoch in plan.restarts if epoch > plan.common),
        head_epochs=0,
        lr=plan.lr / 2,
    )


def _again(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).requires_grad_(True)
