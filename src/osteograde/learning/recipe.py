"""What a recipe is: every choice of a training run, as plain frozen data that goes into the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from osteograde.tasks.contract import Task


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
    pixels: int
    epochs: int
    batch: int  # locators: passes; graders: studies
    lr: float
    optimiser: str = "adamw"  # or "adam"
    weight_decay: float = 0.02
    warmup: float = 0.1  # share of all steps
    ema: float = 0.99  # 0: off
    clip: float = 1.0
    patience: int = 0  # epochs without a better held-out loss before it stops; 0: all epochs
    steps: int = 0  # per epoch; 0: one pass over the data
    window: int = 8  # locators: neighbouring slices of one sample
    label_smoothing: float = 0.0
    jitter: Jitter = field(default_factory=Jitter)


@dataclass(frozen=True)
class Recipe:
    """A training run: one Fit per locator and grader of the task, by name."""

    name: str
    task: Task
    locate: Mapping[str, Fit]
    grade: Mapping[str, Fit]
    num_folds: int = 5
    seed: int = 0
    test_views: int = 1

    def __post_init__(self) -> None:
        for kind, fits, stages in (("locate", self.locate, self.task.locate), ("grade", self.grade, self.task.grade)):
            wanted = {stage.name for stage in stages}
            if set(fits) != wanted:
                raise ValueError(
                    f"recipe {self.name!r}: {kind} names {sorted(fits)}, task {self.task.name!r} has {sorted(wanted)}"
                )

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON data for the manifest."""
        return {
            "name": self.name,
            "num_folds": self.num_folds,
            "seed": self.seed,
            "test_views": self.test_views,
            "locate": {stage: asdict(fit) for stage, fit in self.locate.items()},
            "grade": {stage: asdict(fit) for stage, fit in self.grade.items()},
        }


def shrink(recipe: Recipe) -> Recipe:
    """The same recipe small enough to run from nothing to a manifest on a CPU in a minute or two: --debug."""
    return replace(
        recipe,
        num_folds=2,
        locate={name: _small(fit) for name, fit in recipe.locate.items()},
        grade={name: _small(fit) for name, fit in recipe.grade.items()},
    )


def _small(fit: Fit) -> Fit:
    return replace(
        fit, epochs=2, steps=2, batch=min(fit.batch, 2), window=min(fit.window, 3), pixels=min(fit.pixels, 64)
    )
