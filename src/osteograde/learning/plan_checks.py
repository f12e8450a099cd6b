"""Which choices of a plan make no sense: values out of range, choices that rule each other out, choices without effect.

``Recipe`` asks this of every plan when it is built, whether the recipe ships, comes from a file or was changed by
``--set``, so a run never begins with a plan that cannot do what it says. Every fault is a text that says what was got
and what is expected. Nothing here builds a net: what only a net can know is told when it is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from osteograde.pipeline.ttas import all_ttas
from osteograde.tasks.spec import Grader, Pixels, Task, sides

if TYPE_CHECKING:
    from osteograde.learning.recipe import GraderPlan, LocatorPlan, Plan, Scope, Start

LBFGS = "lbfgs"  # ``Training.optimiser``: see ``head_fit``
RANDOM = ("", "none")  # ``Start.weights``
OPTIMISERS = ("adamw", "adam", "sgd")
LOSSES = ("classes", "ordinal")
WITHOUT_TRUNK = ("faster_rcnn", "planned_unet")  # kinds of nets whose layers are no trunk and head
TRUNK_ONLY = ("start.head_epochs", "start.frozen", "start.measured_norms")
SEGMENTING = ("unet", "planned_unet")  # kinds of nets that learn from label images
MOST_LOGARITHM = 5.0  # of a factor by which an image is changed: 148 times
RESIZED_STRIDE = 16  # sides of smaller images are multiples of this
LEAST_PIXELS, MOST_PIXELS = 16, 4096  # sides of the images that a net reads
MOST_RATE = 10.0  # learning rate

# Name of a number -> the least and the most that can be meant. What a number may be beside others is checked apart.
RANGES: Mapping[str, tuple[float, float]] = {
    "training.epochs": (0, 10_000),
    "training.batch": (1, 100_000),
    "training.steps": (0, 1_000_000),
    "training.weight_decay": (0, 10),
    "training.patience": (0, 10_000),
    "training.min_delta": (0, 100),
    "training.accumulate": (1, 10_000),
    "schedule.power": (0, 10),
    "start.head_epochs": (0, 10_000),
    "start.head_lr": (0, MOST_RATE),
    "augmentation.rotation_deg": (0, 180),
    "augmentation.scale": (0, MOST_LOGARITHM),
    "augmentation.shift_mm": (0, 1000),
    "augmentation.gamma": (0, MOST_LOGARITHM),
    "augmentation.contrast": (0, 1),
    "augmentation.noise": (0, 1),
    "augmentation.blur": (0, 1),
    "augmentation.elastic_mm": (0, 1000),
    "augmentation.elastic_spacing_mm": (1, 1000),
    "augmentation.bias_field": (0, MOST_LOGARITHM),
    "augmentation.rician": (0, 1),
    "window": (1, 1000),  # of locators from here on
    "subsample": (1, 1_000_000),
    "class_weight_power": (0, 10),  # of graders from here on
    "head_weight": (0, 1000),
    "heads_only_epochs": (0, 10_000),
    "mixup": (0, 100),
    "cutmix": (0, 100),
}
RANGES_OF_A_SCOPE: Mapping[str, tuple[float, float]] = {
    "folds": (2, 1000),
    "seed": (0, 2**63 - 1),
    "patients": (0, 2**31),
    "synthetic_share": (0, 1),
}


def locator_faults(plan: LocatorPlan) -> Iterator[str]:
    """What is wrong with the plan of a locator."""
    if plan.training.optimiser == LBFGS:
        yield f"optimiser {LBFGS!r} fits the last layer of a grader; expected one of {OPTIMISERS}"
    yield from _plan_faults(plan)
    if plan.any_window and plan.net.get("kind") not in SEGMENTING:
        yield f"any_window is of nets that learn from label images {SEGMENTING}, got kind {plan.net.get('kind')!r}"


def grader_faults(plan: GraderPlan, grader: Grader) -> Iterator[str]:
    """What is wrong with the plan of a member of a grader."""
    yield from _plan_faults(plan)
    yield from _one_of("loss", plan.loss, LOSSES)
    for name in ("label_smoothing", "drop_view", "drop_covariate"):
        yield from _share(name, getattr(plan, name))
    if plan.sampling == "balanced" and plan.loss == "ordinal":
        yield "balanced sampling is corrected for labels that are one class, loss 'ordinal' aims between classes; "\
            "choose loss 'classes' or sampling 'natural'"  # fmt: skip
    yield from _epochs_of_a_grader(plan)
    yield from _mixing_faults(plan, grader)


def scope_faults(scope: Scope, tta: int, task: Task) -> Iterator[str]:
    """What is wrong with how much a run does. task: with the crops that its nets read."""
    yield from _out_of_range(RANGES_OF_A_SCOPE, scope, "scope.")
    yield from _between("tta", tta, 1, max(len(all_ttas(grader)) for grader in task.graders))


def _plan_faults(plan: Plan) -> Iterator[str]:
    if not LEAST_PIXELS <= min(sides(plan.pixels)) <= max(sides(plan.pixels)) <= MOST_PIXELS:
        yield f"pixels {plan.pixels}; expected {LEAST_PIXELS} to {MOST_PIXELS} on each side"
    dropout = plan.net.get("dropout", 0.0)
    if isinstance(dropout, int | float):
        yield from _share("net.dropout", dropout)
    yield from _out_of_range(RANGES, plan)
    yield from _training_faults(plan)
    yield from _share("augmentation.cutout", plan.augmentation.cutout)
    if plan.training.epochs:  # else nothing is trained, and how is of no matter
        yield from _optimiser_faults(plan)
        yield from _start_faults(plan)
        yield from _schedule_faults(plan)


def _out_of_range(ranges: Mapping[str, tuple[float, float]], value: Any, prefix: str = "") -> Iterator[str]:
    """Of every number that a value has."""
    for name, (least, most) in ranges.items():
        part, _, own = name.rpartition(".")
        holder = getattr(value, part) if part else value
        if hasattr(holder, own):
            yield from _between(f"{prefix}{name}", getattr(holder, own), least, most)


def _training_faults(plan: Plan) -> Iterator[str]:
    training = plan.training
    yield from _one_of("training.optimiser", training.optimiser, (*OPTIMISERS, LBFGS))
    yield from _share("training.ema", training.ema)
    if not 0 < training.layer_decay <= 1:
        yield f"training.layer_decay {training.layer_decay:g}; expected above 0 and at most 1"
    if not training.clip > 0:
        yield f"training.clip {training.clip:g} allows no gradient; expected a norm above 0"
    if training.min_delta and not training.patience:
        yield f"training.min_delta {training.min_delta:g} is of early stopping; set patience, or min_delta to 0"


def _optimiser_faults(plan: Plan) -> Iterator[str]:
    training, schedule, start = plan.training, plan.schedule, plan.start
    if training.optimiser != LBFGS:
        if not 0 < training.lr <= MOST_RATE:
            yield f"training.lr {training.lr:g}; expected a rate above 0, at most {MOST_RATE:g}, such as 3e-4"
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
    kinds = [name for name in ("restarts", "milestones", "power") if getattr(schedule, name)]
    if len(kinds) > 1:
        yield f"schedule.{kinds[0]} and schedule.{kinds[1]} both say how the rate falls; choose one of them"
    first = max(plan.start.head_epochs, shared) + 1
    if late := [epoch for epoch in schedule.restarts if not first <= epoch < epochs]:
        possible = f"an epoch from {first} to {epochs - 1}" if first < epochs else "no restarts"
        yield f"schedule.restarts after epoch {late[0]}, of {epochs} epochs in all: the rate would never fall from "\
            f"there; expected {possible}"  # fmt: skip
    if bad := [share for share in schedule.restarts.values() if not 0 < share <= MOST_RATE]:
        yield f"schedule.restarts with {bad[0]:g} of the rate; expected a share above 0, at most {MOST_RATE:g}"
    if schedule.swa and not schedule.restarts:
        yield "schedule.swa keeps the mean of the nets of all cycles, and without restarts there is one; add restarts"
    milestones = list(schedule.milestones)
    if milestones and (milestones != sorted(set(milestones)) or not 0 < milestones[0] <= milestones[-1] <= epochs):
        yield f"schedule.milestones {milestones}; expected rising epochs from 1 to {epochs} (the last: never)"
    if milestones and shared:
        yield f"schedule.milestones {milestones} would be counted anew after shared_epochs {shared}; choose one of them"


def _start_faults(plan: Plan) -> Iterator[str]:
    start, training, kind = plan.start, plan.training, plan.net.get("kind")
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
    if start.frozen and not is_given(start):
        yield f"start.frozen {start.frozen} would keep random weights; name starting weights or freeze nothing"
    whole = "" in start.frozen
    if whole and start.head_epochs:
        yield "start.head_epochs has no effect where the whole trunk is frozen; choose one of them"
    if whole and training.layer_decay != 1:
        yield "training.layer_decay has no effect where the whole trunk is frozen; set it to 1"
    if kind in WITHOUT_TRUNK:
        parts = {name: getattr(start, name.removeprefix("start.")) for name in TRUNK_ONLY}
        parts |= {"training.layer_decay": training.layer_decay != 1}
        if given := [name for name, is_given in parts.items() if is_given]:
            yield f"{given[0]} is of nets with a trunk, a {kind!r} net has none; leave it out"


def is_given(start: Start) -> bool:
    """Whether a net starts from weights that are not random."""
    return start.weights not in RANDOM or bool(start.stage)


def _epochs_of_a_grader(plan: GraderPlan) -> Iterator[str]:
    """Epochs of synthetic studies, of heads alone and of smaller images."""
    epochs, shared = plan.training.epochs, plan.start.shared_epochs
    yield from _between("synthetic_epochs", plan.synthetic_epochs, 0, max(epochs - shared, 0))
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


def _between(name: str, value: float, lowest: float, highest: float) -> Iterator[str]:
    if not lowest <= value <= highest:
        yield f"{name} {value:g}; expected {lowest} to {highest}"


def _share(name: str, value: float) -> Iterator[str]:
    if not 0 <= value < 1:
        yield f"{name} {value:g}; expected from 0 to below 1"


def _one_of(name: str, value: str, known: tuple[str, ...]) -> Iterator[str]:
    if value not in known:
        yield f"{name} {value!r} is unknown; known: {', '.join(map(repr, known))}"
