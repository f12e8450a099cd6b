"""Which choices of a plan make no sense: values out of range, choices that rule each other out, choices without effect.

``Recipe`` asks this of every plan when it is built, whether the recipe ships, comes from a file or was changed by
``--set``, so a run never begins with a plan that cannot do what it says. Every fault is a text that says what was got
and what is expected. Nothing here builds a net: what only a net can know is told when it is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from osteograde.tasks.spec import Grader, Pixels, sides

if TYPE_CHECKING:
    from osteograde.learning.recipe import GraderPlan, LocatorPlan, Plan, Scope

LBFGS = "lbfgs"  # ``Training.optimiser``: see ``head_fit``
OPTIMISERS = ("adamw", "adam", "sgd")
LOSSES = ("classes", "ordinal")
WITHOUT_TRUNK = ("faster_rcnn", "planned_unet")  # kinds of nets whose layers are no trunk and head
SEGMENTING = ("unet", "planned_unet")  # kinds of nets that learn from label images
MOST_LOGARITHM = 5.0  # of a factor by which an image is changed: 148 times
RESIZED_STRIDE = 16  # sides of smaller images are multiples of this


def locator_faults(plan: LocatorPlan) -> Iterator[str]:
    """What is wrong with the plan of a locator."""
    if plan.training.optimiser == LBFGS:
        yield f"optimiser {LBFGS!r} fits the last layer of a grader; expected one of {OPTIMISERS}"
    yield from _plan_faults(plan)
    yield from _at_least("window", plan.window, 1)
    yield from _at_least("subsample", plan.subsample, 1)
    if plan.any_window and plan.net.get("kind") not in SEGMENTING:
        yield f"any_window is of nets that learn from label images {SEGMENTING}, got kind {plan.net.get('kind')!r}"


def grader_faults(plan: GraderPlan, grader: Grader) -> Iterator[str]:
    """What is wrong with the plan of a member of a grader."""
    yield from _plan_faults(plan)
    yield from _one_of("loss", plan.loss, LOSSES)
    for name in ("label_smoothing", "drop_view", "drop_covariate"):
        yield from _share(name, getattr(plan, name))
    for name in ("class_weight_power", "head_weight", "mixup", "cutmix"):
        yield from _at_least(name, getattr(plan, name), 0)
    if plan.sampling == "balanced" and plan.loss == "ordinal":
        yield "balanced sampling is corrected for labels that are one class, loss 'ordinal' aims between classes; "\
            "choose loss 'classes' or sampling 'natural'"  # fmt: skip
    yield from _epochs_of_a_grader(plan)
    yield from _mixing_faults(plan, grader)


def scope_faults(scope: Scope, tta: int) -> Iterator[str]:
    """What is wrong with how much a run does."""
    yield from _at_least("scope.folds", scope.folds, 2)
    yield from _at_least("scope.seed", scope.seed, 0)
    yield from _at_least("scope.patients", scope.patients, 0)
    yield from _between("scope.synthetic_share", scope.synthetic_share, 0, 1)
    yield from _at_least("tta", tta, 1)


def _plan_faults(plan: Plan) -> Iterator[str]:
    if min(sides(plan.pixels)) < 1:
        yield f"pixels {plan.pixels}; expected at least 1 on each side"
    dropout = plan.net.get("dropout", 0.0)
    if isinstance(dropout, int | float):
        yield from _share("net.dropout", dropout)
    yield from _training_faults(plan)
    yield from _augmentation_faults(plan)
    if plan.training.epochs:  # else nothing is trained, and how is of no matter
        yield from _optimiser_faults(plan)
        yield from _start_faults(plan)
        yield from _schedule_faults(plan)


def _training_faults(plan: Plan) -> Iterator[str]:
    training = plan.training
    for name, lowest in (("epochs", 0), ("steps", 0), ("weight_decay", 0), ("patience", 0), ("min_delta", 0),
                         ("batch", 1), ("accumulate", 1)):  # fmt: skip
        yield from _at_least(f"training.{name}", getattr(training, name), lowest)
    yield from _one_of("training.optimiser", training.optimiser, (*OPTIMISERS, LBFGS))
    yield from _share("training.ema", training.ema)
    if not 0 < training.layer_decay <= 1:
        yield f"training.layer_decay {training.layer_decay:g}; expected above 0 and at most 1"
    if not training.clip > 0:
        yield f"training.clip {training.clip:g} allows no gradient; expected a norm above 0"
    if training.min_delta and not training.patience:
        yield f"training.min_delta {training.min_delta:g} is of early stopping; set patience, or min_delta to 0"


def _augmentation_faults(plan: Plan) -> Iterator[str]:
    augmentation = plan.augmentation
    for name in ("shift_mm", "noise", "elastic_mm", "rician"):
        yield from _at_least(f"augmentation.{name}", getattr(augmentation, name), 0)
    for name in ("scale", "gamma", "bias_field"):  # logarithms of factors
        yield from _between(f"augmentation.{name}", getattr(augmentation, name), 0, MOST_LOGARITHM)
    yield from _between("augmentation.rotation_deg", augmentation.rotation_deg, 0, 180)
    for name in ("contrast", "blur"):
        yield from _between(f"augmentation.{name}", getattr(augmentation, name), 0, 1)
    yield from _share("augmentation.cutout", augmentation.cutout)


def _optimiser_faults(plan: Plan) -> Iterator[str]:
    training, schedule, start = plan.training, plan.schedule, plan.start
    if training.optimiser != LBFGS:
        if not (0 < training.lr < math.inf):
            yield f"training.lr {training.lr:g}; expected a rate above 0"
        return
    idle = {
        "training.patience": training.patience > 0,
        "training.accumulate": training.accumulate > 1,
        "training.layer_decay": training.layer_decay != 1,
        "training.compile": training.compile,
        "schedule.restarts": bool(schedule.restarts),
        "schedule.milestones": bool(schedule.milestones),
        "schedule.power": schedule.power != 0,
        "schedule.swa": schedule.swa,
        "start.head_epochs": start.head_epochs > 0,
        "start.shared_epochs": start.shared_epochs > 0,
    }
    if given := [name for name, is_given in idle.items() if is_given]:
        yield f"optimiser {LBFGS!r} fits the last layer without steps, so {given[0]} has no effect; leave it out"


def _schedule_faults(plan: Plan) -> Iterator[str]:
    schedule, epochs, shared = plan.schedule, plan.training.epochs, plan.start.shared_epochs
    yield from _share("schedule.warm_up", schedule.warm_up)
    yield from _at_least("schedule.power", schedule.power, 0)
    kinds = [name for name in ("restarts", "milestones", "power") if getattr(schedule, name)]
    if len(kinds) > 1:
        yield f"schedule.{kinds[0]} and schedule.{kinds[1]} both say how the rate falls; choose one of them"
    first = max(plan.start.head_epochs, shared) + 1
    if late := [epoch for epoch in schedule.restarts if not first <= epoch < epochs]:
        possible = f"an epoch from {first} to {epochs - 1}" if first < epochs else "no restarts"
        yield f"schedule.restarts after epoch {late[0]}, of {epochs} epochs in all: the rate would never fall from "\
            f"there; expected {possible}"  # fmt: skip
    if bad := [share for share in schedule.restarts.values() if not 0 < share < math.inf]:
        yield f"schedule.restarts with {bad[0]:g} of the rate; expected a share above 0"
    if schedule.swa and not schedule.restarts:
        yield "schedule.swa keeps the mean of the nets of all cycles, and without restarts there is one; add restarts"
    milestones = list(schedule.milestones)
    if milestones and (milestones != sorted(set(milestones)) or not 0 < milestones[0] <= milestones[-1] <= epochs):
        yield f"schedule.milestones {milestones}; expected rising epochs from 1 to {epochs} (the last: never)"
    if milestones and shared:
        yield f"schedule.milestones {milestones} would be counted anew after shared_epochs {shared}; choose one of them"


def _start_faults(plan: Plan) -> Iterator[str]:
    start, training, kind = plan.start, plan.training, plan.net.get("kind")
    yield from _at_least("start.head_epochs", start.head_epochs, 0)
    yield from _between("start.shared_epochs", start.shared_epochs, 0, training.epochs)
    if start.head_epochs >= training.epochs:
        yield f"start.head_epochs {start.head_epochs} of {training.epochs} epochs leave none for the whole net; "\
            "expected fewer"  # fmt: skip
    if start.shared_epochs and start.head_epochs > start.shared_epochs:
        yield f"start.head_epochs {start.head_epochs} end after shared_epochs {start.shared_epochs}; expected before"
    if start.head_epochs and not start.head_lr > 0:
        yield f"start.head_lr {start.head_lr:g} with head_epochs {start.head_epochs}; expected a rate above 0"
    if start.head_lr and not start.head_epochs:
        yield f"start.head_lr {start.head_lr:g} is of head_epochs, which are 0; set both or none"
    if start.frozen and not (start.weights or start.stage):
        yield f"start.frozen {start.frozen} would keep random weights; name starting weights or freeze nothing"
    whole = "" in start.frozen
    if whole and start.head_epochs:
        yield "start.head_epochs has no effect where the whole trunk is frozen; choose one of them"
    if whole and training.layer_decay != 1:
        yield "training.layer_decay has no effect where the whole trunk is frozen; set it to 1"
    if kind in WITHOUT_TRUNK:
        parts = {"start.head_epochs": start.head_epochs, "start.frozen": start.frozen}
        parts |= {"training.layer_decay": training.layer_decay != 1}
        if given := [name for name, is_given in parts.items() if is_given]:
            yield f"{given[0]} is of nets with a trunk, a {kind!r} net has none; leave it out"


def _epochs_of_a_grader(plan: GraderPlan) -> Iterator[str]:
    """Epochs of synthetic studies, of heads alone and of smaller images."""
    epochs, shared = plan.training.epochs, plan.start.shared_epochs
    yield from _between("synthetic_epochs", plan.synthetic_epochs, 0, max(epochs - shared, 0))
    yield from _at_least("heads_only_epochs", plan.heads_only_epochs, 0)
    if plan.heads_only_epochs and plan.heads_only_epochs >= epochs:
        yield f"heads_only_epochs {plan.heads_only_epochs} of {epochs} epochs leave none for the target; expected fewer"
    if plan.heads_only_epochs and not plan.head_weight:
        yield f"heads_only_epochs {plan.heads_only_epochs} with head_weight 0 learn nothing; raise head_weight"
    if plan.resizing is None:
        return
    yield from _between("resizing.epochs", plan.resizing.epochs, 1, max(epochs, 1))
    if not 0 < plan.resizing.share < 1:
        yield f"resizing.share {plan.resizing.share:g}; expected above 0 and below 1"
    elif resized(plan.pixels, plan.resizing.share) == sides(plan.pixels):
        yield f"resizing.share {plan.resizing.share:g} of pixels {plan.pixels} is the same size, because sides are "\
            f"multiples of {RESIZED_STRIDE}; choose a smaller share"  # fmt: skip


def _mixing_faults(plan: GraderPlan, grader: Grader) -> Iterator[str]:
    if not (plan.mixup or plan.cutmix):
        return
    name = "mixup" if plan.mixup else "cutmix"
    if grader.study_loss is not None:
        yield f"{name}: the loss of {grader.name!r} has a term over all sites of a study, which needs whole labels; "\
            "set it to 0"  # fmt: skip
    if plan.covariates:
        yield f"{name}: a blend of two patients has no {plan.covariates[0]!r}; choose covariates or {name}"
    if plan.training.batch * len(grader.sites) < 2:
        yield f"{name}: a batch of {plan.training.batch} has nothing to be mixed with; raise batch"


def resized(pixels: Pixels, share: float) -> tuple[int, int]:
    """(H, W) of the smaller images of progressive resizing: whole strides of the nets."""
    height, width = (max(RESIZED_STRIDE, round(side * share / RESIZED_STRIDE) * RESIZED_STRIDE)
                     for side in sides(pixels))  # fmt: skip
    return height, width


def _at_least(name: str, value: float, lowest: float) -> Iterator[str]:
    if not value >= lowest:
        yield f"{name} {value:g}; expected {lowest:g} or more"


def _between(name: str, value: float, lowest: float, highest: float) -> Iterator[str]:
    if not lowest <= value <= highest:
        yield f"{name} {value:g}; expected {lowest:g} to {highest:g}"


def _share(name: str, value: float) -> Iterator[str]:
    if not 0 <= value < 1:
        yield f"{name} {value:g}; expected from 0 to below 1"


def _one_of(name: str, value: str, known: tuple[str, ...]) -> Iterator[str]:
    if value not in known:
        yield f"{name} {value!r} is unknown; known: {', '.join(map(repr, known))}"
