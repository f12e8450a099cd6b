"""What a recipe is: every choice of a training run, as plain frozen data that goes into the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.tasks.spec import Pixels, Study, Task, sides

IMAGENET = "imagenet"  # ``Fit.pretrained``: download the trunk's weights
NO_CLIP = 1e9  # a norm that no gradient comes near


@dataclass(frozen=True)
class Jitter:
    """How far a training sample is moved. Everything is drawn anew for each sample and applied in one resample."""

    turn_deg: float = 10.0
    scale: float = 0.12  # log-uniform, e^-scale .. e^scale
    shift_mm: float = 4.0
    gamma: float = 0.35  # log-uniform exponent
    contrast: float = 0.25
    noise: float = 0.03
    blur: float = 0.2  # probability of one 3 x 3 box blur
    mirror: bool = True
    drop_view: float = 0.15  # probability of hiding one view of a site that has another
    use_measured_error: bool = True  # graders: move crops by errors that stage 1 made on held-out studies


@dataclass(frozen=True)
class Fit:
    """How one net learns. ``net`` is the config of ``models.build``; ``pixels`` the side of what it reads."""

    net: Mapping[str, Any]
    pixels: Pixels
    epochs: int
    batch: int  # locators: passes; graders: studies
    lr: float
    optimiser: str = "adamw"  # or "adam"
    weight_decay: float = 0.02
    warmup: float = 0.1  # share of all steps
    ema: float = 0.99  # 0: off
    clip: float = 1.0
    patience: int = 0  # epochs without a better held-out loss before it stops; 0: all epochs
    slack: float = 0.0  # an epoch whose held-out loss is worse than the best by no more than this is not counted as bad
    steps: int = 0  # per epoch; 0: one pass over the data
    thin: int = 1  # locators: learn from every n-th of the given studies, and from all made for practice
    window: int = 8  # locators: neighbouring slices of one sample
    label_smoothing: float = 0.0
    loss: str = "classes"  # graders: "classes", or "ordinal": targets that fall off with the squared distance of grades
    practice: int = 0  # graders: so many last epochs learn from what was made for practice, too
    balance: float = 0.0  # graders: classes count by their frequency to the power of minus this
    pretrained: str = ""  # starting weights of the trunk: a file of OSTEOGRADE_PRETRAINED, or "imagenet" to download
    common: int = 0  # first epochs that several folds learn in common, on what none of them holds out
    head_epochs: int = 0  # first epochs in which only what is not the trunk learns, at ``head_lr``
    head_lr: float = 0.0
    frozen: tuple[str, ...] = ()  # modules of the trunk that keep their starting weights and statistics
    early: tuple[int, float] = (0, 1.0)  # graders: the first epochs read images with this share of ``pixels``
    restarts: tuple[int, ...] = ()  # epochs after which the cosine starts anew, from ``restart_share`` of the lr
    restart_share: float = 0.5
    swa: bool = False  # the net is the mean of those at the ends of all cycles, that is at restarts and at last
    milestones: tuple[int, ...] = ()  # epochs after which lr falls to a tenth, instead of the half cosine
    jitter: Jitter = field(default_factory=Jitter)
    seed: int = 0  # added to the recipe's
    also: tuple[Fit, ...] = ()  # graders: further nets of every fold, learnt by these plans; their answers are averaged

    @property
    def members(self) -> tuple[Fit, ...]:
        """The plans of all nets of a fold, each on its own."""
        return replace(self, also=()), *self.also


@dataclass(frozen=True)
class Recipe:
    """A training run: one Fit per locator and grader of the task, by name."""

    name: str
    task: Task
    locators: Mapping[str, Fit]
    graders: Mapping[str, Fit]
    num_folds: int = 5
    seed: int = 0
    test_views: int = 1
    calibrate: bool = False  # fit a small map of the graders' log probabilities out-of-fold
    calibrate_balance: float = 0.0  # in that fit classes count by their frequency to the power of minus this
    # further studies to learn from, made out of the given ones into a folder: (studies, folder, rng, share)
    practice: Callable[[Sequence[Study], Path, np.random.Generator, float], list[Study]] | None = None
    practice_share: float = 1.0
    source: Mapping[str, str] = field(default_factory=dict)  # of data without a SOURCE.json: source, licence, ...
    patients: int = 0  # learn from this many, evenly spread; 0: all

    def __post_init__(self) -> None:
        for kind, fits, stages in (
            ("locate", self.locators, self.task.locators),
            ("grade", self.graders, self.task.graders),
        ):
            wanted = {stage.name for stage in stages}
            if set(fits) != wanted:
                raise UserError(
                    f"recipe {self.name!r}: {kind} names {sorted(fits)}, task {self.task.name!r} has {sorted(wanted)}"
                )
            for name, fit in fits.items():
                self._check_members(kind, name, fit.members)

    def _check_members(self, kind: str, stage: str, members: Sequence[Fit]) -> None:
        where = f"recipe {self.name!r}: {kind} {stage!r}"
        if kind == "locate" and len(members) > 1:
            raise UserError(f"{where}: a locator has one net a fold; leave out also")
        if kind == "locate" and any(plan.practice for plan in members):
            raise UserError(
                f"{where}: a locator learns in all epochs from what is made for practice; leave out practice"
            )
        if any(plan.swa and plan.patience for plan in members):
            raise UserError(
                f"{where}: swa ends with the mean of all cycles, patience with the best epoch; take one of them"
            )
        if odd := [plan.pixels for plan in members if plan.pixels != members[0].pixels]:
            raise UserError(f"{where}: all nets of a fold read {members[0].pixels} pixels, one of also {odd[0]}")
        if any(plan in members[:i] for i, plan in enumerate(members)):
            raise UserError(f"{where}: two plans of also are the same, and so would be their nets; give one a seed")

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON data for the manifest."""
        return {
            "name": self.name,
            "num_folds": self.num_folds,
            "seed": self.seed,
            "test_views": self.test_views,
            "calibrate": self.calibrate,
            "calibrate_balance": self.calibrate_balance,
            "locate": {stage: asdict(fit) for stage, fit in self.locators.items()},
            "grade": {stage: asdict(fit) for stage, fit in self.graders.items()},
        }


def shrink(recipe: Recipe) -> Recipe:
    """The same recipe small enough to run from nothing to a manifest on a CPU in a minute or two: --debug.

    Nothing is downloaded: nets that would start from ImageNet start from nothing, with their trunks thawed.
    """
    return replace(
        recipe,
        num_folds=2,
        practice_share=0.02,
        patients=60,
        locators={name: _small(fit) for name, fit in recipe.locators.items()},
        graders={name: _small(fit) for name, fit in recipe.graders.items()},
    )


def _small(fit: Fit) -> Fit:
    height, width = sides(fit.pixels)
    share = min(1.0, 64 / max(height, width))
    nothing = fit.pretrained == IMAGENET
    small = max(32, round(height * share / 32) * 32), max(32, round(width * share / 32) * 32)
    pixels = small[0] if isinstance(fit.pixels, int) else small
    return replace(
        fit,
        epochs=2,
        steps=2,
        batch=min(fit.batch, 2),
        window=min(fit.window, 3),
        pixels=pixels,
        head_epochs=0 if nothing else min(fit.head_epochs, 1),
        milestones=(),
        restarts=(),
        frozen=() if nothing else fit.frozen,
        early=(min(fit.early[0], 1), fit.early[1]),
        practice=min(fit.practice, 1),
        common=min(fit.common, 1),
        pretrained="" if nothing else fit.pretrained,
        also=tuple(
            replace(_small(one), seed=one.seed + i) for i, one in enumerate(fit.also, 1)
        ),  # plans may become alike
    )
