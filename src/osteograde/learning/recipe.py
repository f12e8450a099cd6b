"""What a recipe is: every choice of a training run, as plain frozen data that goes into the manifest.

A ``Recipe`` has one ``LocatorPlan`` for every locator of its task and one or more ``GraderPlan`` for every grader. A
plan says how one net is trained. It is made of small values: ``Training`` (the optimiser), ``Schedule`` (the learning
rate), ``Start`` (the starting weights) and ``Augmentation``. What only locators or only graders can use is a field of
that kind of plan alone, so a choice that would have no effect cannot be written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from osteograde.errors import UserError
from osteograde.learning import plan_checks
from osteograde.learning.plan_checks import LBFGS as LBFGS
from osteograde.tasks.spec import Grader, Locator, Pixels, Study, Task, sides

IMAGENET = "imagenet"  # ``Start.weights``: download the trunk's ImageNet weights
NOT_IN_DEBUG = (IMAGENET, "coco", "weights")  # starts that --debug leaves out: downloads, and nets of other folds
TRUNK_KEYS = ("kind", "backbone", "encoder_name", "variant", "stages", "neighbours")  # of a net's config
STEEPEST = 0.25  # displacement by the distance of control points; from 0.48 on an image may fold (Choi and Lee 2000)
NO_CLIP = 1e9  # ``Training.clip``: a norm that no gradient comes near

SyntheticStudies = Callable[[Sequence[Study], Path, np.random.Generator, float], list[Study]]


@dataclass(frozen=True)
class Augmentation:
    """How far a training sample is moved and changed. Everything is drawn anew for each sample.

    The geometric changes are applied together in one resampling. Ranges are symmetric around no change. The elastic
    deformation is a cubic B-spline field of random displacements; UserError where it could fold the image.
    """

    rotation_deg: float = 10.0
    scale: float = 0.12  # logarithm of the largest scale factor
    shift_mm: float = 4.0
    gamma: float = 0.35  # logarithm of the largest exponent
    contrast: float = 0.25  # share by which grey values are stretched at most
    noise: float = 0.03  # largest standard deviation; images are 0..1
    blur: float = 0.2  # probability of one 3 x 3 box blur
    mirror: bool = True  # exchange right and left of every second sample, labels included
    elastic_mm: float = 0.0  # longest displacement of the elastic deformation
    elastic_spacing_mm: float = 24.0  # from one of its control points to the next, between which it is smooth
    bias_field: float = 0.0  # logarithm of the largest factor of uneven brightness, as of an MR receiver coil
    rician: float = 0.0  # largest standard deviation of both channels of MR noise; the image is their magnitude
    cutout: float = 0.0  # largest share of the image that a box of its mean grey value hides; the label stays

    def __post_init__(self) -> None:
        if self.elastic_mm > 0 and self.elastic_mm > STEEPEST * self.elastic_spacing_mm:
            raise UserError(
                f"augmentation: elastic_mm {self.elastic_mm:g} could fold the image; with control points "
                f"{self.elastic_spacing_mm:g} mm apart at most {STEEPEST * self.elastic_spacing_mm:g}"
            )


@dataclass(frozen=True)
class Training:
    """The optimisation of one net. An epoch is one pass over the data, or ``steps`` steps where that is above 0.

    With 0 epochs the net is used as it starts. patience as large as epochs never stops the training, and the net of
    the epoch with the lowest held-out loss is kept.
    """

    epochs: int
    batch: int  # locators: regions; graders: studies
    lr: float  # the highest learning rate
    steps: int = 0
    optimiser: str = "adamw"  # "adam", "sgd" with Nesterov momentum 0.99, or of graders "lbfgs": the last layer alone
    weight_decay: float = 0.02  # of weights; norms and biases are not decayed
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.99  # decay of the moving average of the weights, which is the net that is kept; 0: the weights
    patience: int = 0  # bad epochs after which training stops and the best epoch's net is kept; 0: off
    min_delta: float = 0.0  # an epoch is bad only if its held-out loss is above the lowest one by more than this
    bfloat16: bool = False  # products in bfloat16: on a CPU in place of float32, on CUDA of float16 where it has them
    accumulate: int = 1  # batches of one step of the optimiser, whose gradients are averaged
    layer_decay: float = 1.0  # every layer of the trunk learns at this share of the rate of the layer behind it
    compile: bool = False  # compile the trunk by torch.compile, on CUDA alone


@dataclass(frozen=True)
class Schedule:
    """The learning rate: a linear warm-up, then half a cosine down to 1 % of ``Training.lr``.

    restarts: epochs after which warm-up and cosine start anew (SGDR, Loshchilov and Hutter 2017), each with the share
    of ``Training.lr`` that it then reaches. swa: the net that is kept is the mean of the nets at the ends of all cycles
    (Izmailov et al. 2018). milestones: epochs after which the rate falls to a tenth, in place of warm-up and cosine.
    power: in place of warm-up and cosine the rate is (1 - share of the steps that are done) to this power; 0: off.
    """

    warm_up: float = 0.1  # share of the steps of a cycle
    restarts: Mapping[int, float] = field(default_factory=dict)
    swa: bool = False
    milestones: tuple[int, ...] = ()
    power: float = 0.0


@dataclass(frozen=True)
class Start:
    """What a net starts from, and which parts of it are trained from when on.

    The trunk is the net's ``encoder``, the head is all the rest. stage: another locator (for a locator) or grader (for
    a grader) of the recipe, whose net of the same fold gives the whole trunk, and of the head what has the same shape;
    it is trained first. shared_epochs: the first epochs are trained once for several folds, on the studies that none of
    them holds out; each of the folds continues from that net. measured_norms: the batch norms of starting weights are
    given the statistics of our own images before the first step, without changing what the trunk computes; random
    weights and nets of ours are left as they are.
    """

    weights: str = ""  # "imagenet", "coco", "pip:NAME", "weights:DIR", "file:PATH", or random: see ``starting``
    frozen: tuple[str, ...] = ()  # modules of the trunk that keep their starting weights and statistics; "": all of it
    head_epochs: int = 0  # first epochs in which the head alone is trained, at ``head_lr``
    head_lr: float = 0.0
    shared_epochs: int = 0
    stage: str = ""
    measured_norms: bool = False


@dataclass(frozen=True)
class Resizing:
    """Progressive resizing (Tan and Le 2021): the first epochs read images with sides of ``share`` of the pixels."""

    epochs: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one net is trained: what plans of locators and of graders have in common.

    net: the config for ``models.bundle.build_net``; what follows from the task is filled in by ``for_locator`` and
    ``for_grader``. pixels: rows and columns of the images that the net reads, or one number for both. Raises UserError
    for stochastic weight averaging together with early stopping, because each of them chooses the net that is kept; and
    for a start from another stage together with starting weights, or with epochs that folds share, because that stage's
    net of one fold has seen what the other folds hold out.
    """

    net: Mapping[str, Any]
    pixels: Pixels
    training: Training
    schedule: Schedule = Schedule()
    start: Start = Start()
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        if self.schedule.swa and self.training.patience:
            raise UserError(
                f"plan of {self.net.get('kind', 'a net')}: swa keeps the mean of all cycles, patience "
                f"{self.training.patience} the best epoch; choose one of them"
            )
        if self.start.stage and (self.start.weights or self.start.shared_epochs):
            other = f"weights {self.start.weights!r}" if self.start.weights else "shared_epochs"
            raise UserError(
                f"plan of {self.net.get('kind', 'a net')}: it starts from stage {self.start.stage!r}, so {other} "
                "cannot be used as well; choose one of them"
            )

    @property
    def first_judged_epoch(self) -> int:
        """The first epoch, counted from 0, that early stopping judges by its held-out loss."""
        return 0

    def shrunk(self) -> Self:
        """Two epochs of two steps on images of at most 64 pixels, each technique in one epoch at most.

        Nothing is downloaded: a net that would start from ImageNet or COCO starts from random weights, with nothing
        frozen. So does one that would start from a weights folder, which has other folds than these two.
        """
        start = replace(
            self.start,
            head_epochs=min(self.start.head_epochs, 1),
            shared_epochs=min(self.start.shared_epochs, 1),
        )
        if start.weights.partition(":")[0] in NOT_IN_DEBUG:
            start = replace(start, weights="", frozen=(), head_epochs=0, head_lr=0.0, measured_norms=False)
        return replace(
            self,
            pixels=_small_pixels(self.pixels),
            training=replace(
                self.training, epochs=min(self.training.epochs, 2), steps=2, batch=min(self.training.batch, 2)
            ),
            schedule=replace(self.schedule, restarts={}, milestones=(), swa=False),
            start=start,
        )


@dataclass(frozen=True, kw_only=True)
class LocatorPlan(Plan):
    """How the net of a locator is trained."""

    window: int = 8  # neighbouring slices of one sample
    subsample: int = 1  # every n-th of the given studies is used, and all synthetic ones
    any_window: bool = False  # of a stack with label images any window is a sample, not only those with a landmark

    def shrunk(self) -> Self:
        """See ``Plan.shrunk``."""
        return replace(super().shrunk(), window=min(self.window, 3))


@dataclass(frozen=True, kw_only=True)
class GraderPlan(Plan):
    """How one net of a grader is trained.

    loss: what the net should answer: "classes", the label, or "ordinal", probabilities that fall off with the squared
    distance between grades (Diaz and Marathe, CVPR 2019). synthetic_epochs: in so many last epochs the synthetic
    studies of the recipe are used as well. crops: names of the grader's crops that the net reads; none named = all.
    covariates: names of the task's covariates that the net reads. drop_covariate: each known value is hidden with this
    probability in training, so that the net learns to grade without it.
    sampling: "natural", every study once an epoch, or "balanced": studies are drawn so that every class of the target
    is seen equally often, and the loss corrects for it, so that the net's answers are probabilities for the classes as
    frequent as they are in the data (logit adjustment, Menon et al., ICLR 2021). head_weight: of the loss of the
    auxiliary heads together, the loss of the target counting 1. heads_only_epochs: in so many first epochs the target
    is not learnt but the heads alone, on all sites that have a label of a head; afterwards both are. A site without a
    label of the target always takes part for its heads. Raises UserError for another sampling, or for one that weighs
    classes twice.
    """

    crops: tuple[str, ...] = ()
    loss: str = "classes"
    label_smoothing: float = 0.0
    class_weight_power: float = 0.0  # classes count by their frequency to the power of minus this
    resizing: Resizing | None = None
    synthetic_epochs: int = 0
    drop_view: float = 0.15  # probability of hiding one view of a site that has another one
    measured_errors: bool = True  # move crops by errors that the locators made on held-out studies
    covariates: tuple[str, ...] = ()
    drop_covariate: float = 0.0
    sampling: str = "natural"
    head_weight: float = 0.5
    heads_only_epochs: int = 0
    mixup: float = 0.0  # parameter of the beta distribution by which two sites are blended, images and labels; 0: off
    cutmix: float = 0.0  # the same for the box of another site's image that is pasted; with both each is used by turns

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in ("natural", "balanced"):
            raise UserError(f"sampling {self.sampling!r} is unknown; known: 'natural', 'balanced'")
        if self.sampling == "balanced" and self.class_weight_power:
            raise UserError(
                f"balanced sampling and class_weight_power {self.class_weight_power} would both make rare classes "
                "count more; choose one of them"
            )

    def shrunk(self) -> Self:
        """See ``Plan.shrunk``."""
        resizing = self.resizing and replace(self.resizing, epochs=min(self.resizing.epochs, 1))
        return replace(
            super().shrunk(),
            resizing=resizing,
            synthetic_epochs=min(self.synthetic_epochs, 1),
            heads_only_epochs=min(self.heads_only_epochs, 1),
        )

    @property
    def first_judged_epoch(self) -> int:
        """See ``Plan.first_judged_epoch``: not before the target is learnt."""
        return self.heads_only_epochs


AnyPlan = TypeVar("AnyPlan", bound=Plan)


class PlanChange(Protocol):
    """A function of (locator or grader, plan) that returns a plan of the same kind."""

    def __call__(self, stage: str, plan: AnyPlan, /) -> AnyPlan: ...


@dataclass(frozen=True)
class Scope:
    """How much a run does. Recipes leave it at its defaults, the full run; ``Recipe.shrunk`` makes it smaller."""

    folds: int = 5
    seed: int = 0  # all randomness is derived from it
    patients: int = 0  # so many patients are used, evenly spread over the labels; 0: all
    synthetic_share: float = 1.0  # of the synthetic studies of a full run
    annotated_points: bool = False  # held-out sites where nothing was found are graded at their annotated points


@dataclass(frozen=True)
class Recipe:
    """A training run: one plan for each locator and one or more for each grader of the task, by name.

    graders: the plans of the members of each grader's ensemble; every fold gets one net of each, and their
    probabilities are averaged. A plan may be repeated: its nets then differ by their random seed. synthetic: makes
    further studies out of the given ones, called with (studies, folder, random generator, share of the full number).
    file: name, sha256 and text of the file that the recipe comes from, empty for one that ships. changes: what --set
    changed, key -> the value before and after. Raises UserError where names are not those of the task, a plan is of the
    wrong kind or makes no sense (``plan_checks``), members read images of different sizes or different crops, or a net
    cannot start from the stage that its plan names.
    """

    name: str
    task: Task
    locators: Mapping[str, LocatorPlan]
    graders: Mapping[str, tuple[GraderPlan, ...]]
    tta: int = 1  # test-time augmentation: views of each crop whose probabilities are averaged
    calibrate: bool = False  # fit a small map of the graders' log probabilities on the out-of-fold predictions
    synthetic: SyntheticStudies | None = None
    source: Mapping[str, str] = field(default_factory=dict)  # of data without a SOURCE.json: source, licence, ...
    scope: Scope = Scope()
    file: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, plans, stages in (
            ("locators", self.locators, self.task.locators),
            ("graders", self.graders, self.task.graders),
        ):
            expected = {stage.name for stage in stages}
            if set(plans) != expected:
                raise UserError(
                    f"recipe {self.name!r}: {kind} are {sorted(plans)}, task {self.task.name!r} has {sorted(expected)}"
                )
        for name, plan in self.locators.items():
            if not isinstance(plan, LocatorPlan):
                raise UserError(f"recipe {self.name!r}: locator {name!r} is a {type(plan).__name__}, not LocatorPlan")
        for name, members in self.graders.items():
            self._check_members(name, members)
        self._check_plans()
        self._check_starts()

    def _check_plans(self) -> None:
        """UserError with the first fault of a plan, and where it is."""
        faults = [f"{fault}" for fault in plan_checks.scope_faults(self.scope, self.tta, self.task_as_read)]
        for name, plan in self.locators.items():
            faults += [f"locator {name!r}: {fault}" for fault in plan_checks.locator_faults(plan)]
        for name, members in self.graders.items():
            grader = next(one for one in self.task.graders if one.name == name)
            for i, member in enumerate(members):
                where = f"grader {name!r}" + (f", member {i}" if len(members) > 1 else "")
                faults += [f"{where}: {fault}" for fault in plan_checks.grader_faults(member, grader)]
                if member.synthetic_epochs and self.synthetic is None:
                    faults.append(f"{where}: synthetic_epochs {member.synthetic_epochs}, but the recipe makes none")
        if faults:
            raise UserError(f"recipe {self.name!r}: {faults[0]}")

    def _check_members(self, name: str, members: Sequence[GraderPlan]) -> None:
        if not isinstance(members, tuple) or not members or not all(isinstance(plan, GraderPlan) for plan in members):
            raise UserError(
                f"recipe {self.name!r}: grader {name!r} has {members!r:.80}; expected a tuple of one or more GraderPlan"
            )
        if odd := [plan.pixels for plan in members if plan.pixels != members[0].pixels]:
            raise UserError(
                f"recipe {self.name!r}: grader {name!r}: the first member reads {members[0].pixels} pixels, another "
                f"one {odd[0]}; all members of an ensemble read the same crops"
            )
        grader = next(one for one in self.task.graders if one.name == name)
        if not grader.heads and any(plan.heads_only_epochs for plan in members):
            raise UserError(f"recipe {self.name!r}: grader {name!r} has no heads that heads_only_epochs could learn")
        read = [tuple(crop.name for crop in grader.reading(plan.crops).crops) for plan in members]
        if other := [crops for crops in read if crops != read[0]]:
            raise UserError(
                f"recipe {self.name!r}: grader {name!r}: the first member reads the crops {read[0]}, another one "
                f"{other[0]}; all members of an ensemble read the same crops"
            )
        if bad := [plan.net["crops"] for plan in members if plan.net.get("crops", len(read[0])) != len(read[0])]:
            raise UserError(
                f"recipe {self.name!r}: grader {name!r}: a net of {bad[0]} crops cannot read {read[0]}; "
                "give the plan to for_grader after its crops were chosen"
            )
        known = [covariate.name for covariate in self.task.covariates]
        if lost := sorted({one for plan in members for one in plan.covariates} - {*known}):
            raise UserError(
                f"recipe {self.name!r}: grader {name!r} reads covariates {lost}; task {self.task.name!r} has "
                f"{known or 'none'}"
            )

    def _check_starts(self) -> None:
        """UserError where a net cannot start from the stage that its plan names: unknown, another trunk, or a cycle."""
        for (kind, stage), members in self.plans().items():
            for member, plan in enumerate(members):
                if not plan.start.stage:
                    continue
                where = f"recipe {self.name!r}: {stage!r} starts from stage {plan.start.stage!r}"
                known = [name for its_kind, name in self.plans() if its_kind == kind]
                if plan.start.stage not in known:
                    raise UserError(f"{where}, which is none of {known}")
                source = self.plans()[kind, plan.start.stage][self.source_member(kind, plan, member)]
                for key in TRUNK_KEYS:
                    if plan.net.get(key) != source.net.get(key):
                        raise UserError(
                            f"{where}, whose net has {key} {source.net.get(key)!r}, not {plan.net.get(key)!r}; "
                            "both need the same trunk"
                        )
        _ = self.locators_in_order, self.graders_in_order  # refuse cycles

    def source_member(self, kind: str, plan: Plan, member: int) -> int:
        """Which member of the stage that a plan starts from gives its net: the one in the same place, else the last."""
        return min(member, len(self.plans()[kind, plan.start.stage]) - 1)

    @property
    def locators_in_order(self) -> tuple[Locator, ...]:
        """The locators in the order of training: each behind those that it looks around or starts from."""
        finder = {landmark.name: one.name for one in self.task.locators for landmark in one.landmarks}
        after = {
            one.name: {finder[name] for name in one.needs if name in finder} | {self.locators[one.name].start.stage}
            for one in self.task.locators
        }
        by_name = {one.name: one for one in self.task.locators}
        return tuple(by_name[name] for name in self._in_order(after))

    @property
    def graders_in_order(self) -> tuple[Grader, ...]:
        """The graders with the crops that their nets read, in the order of training: each behind those that its members
        start from."""
        by_name = {one.name: one for one in self.task_as_read.graders}
        after = {name: {plan.start.stage for plan in self.graders[name]} for name in by_name}
        return tuple(by_name[name] for name in self._in_order(after))

    def _in_order(self, after: Mapping[str, set[str]]) -> list[str]:
        """Names in the given order, but each behind those that must come first ("" for none). UserError for a cycle."""
        order: list[str] = []
        while len(order) < len(after):
            ready = (name for name in after if name not in order and after[name] <= {*order, ""})
            if (found := next(ready, None)) is None:
                waiting = [name for name in after if name not in order]
                raise UserError(
                    f"recipe {self.name!r}: {waiting} wait for one another to be trained; start one elsewhere"
                )
            order.append(found)
        return order

    def plans(self) -> dict[tuple[str, str], tuple[Plan, ...]]:
        """{(folder of the nets, stage): plans of the nets of a fold} of all locators, then of all graders."""
        return {
            **{("locate", name): (plan,) for name, plan in self.locators.items()},
            **{("grade", name): members for name, members in self.graders.items()},
        }

    @property
    def pixels(self) -> dict[str, Pixels]:
        """Locator or grader -> pixels that its nets read."""
        return {stage: plans[0].pixels for (_, stage), plans in self.plans().items()}

    @property
    def task_as_read(self) -> Task:
        """The task with graders that have the crops that the nets of this recipe read, and no others."""
        return self.task.reading({name: members[0].crops for name, members in self.graders.items()})

    def map_plans(self, change: PlanChange) -> Recipe:
        """The recipe with every plan changed."""
        return replace(
            self,
            locators={name: change(name, plan) for name, plan in self.locators.items()},
            graders={name: tuple(change(name, plan) for plan in members) for name, members in self.graders.items()},
        )

    def shrunk(self) -> Recipe:
        """The same recipe, small enough to run from nothing to a manifest on a CPU in a minute or two (``--debug``).

        Locators of four steps find next to nothing, so sites without a found point are graded at annotated ones.
        The manifest states what was made smaller: it holds the scope and the plans that were really used.
        """
        return replace(
            self,
            locators={name: plan.shrunk() for name, plan in self.locators.items()},
            graders={name: tuple(plan.shrunk() for plan in members) for name, members in self.graders.items()},
            scope=replace(self.scope, folds=2, patients=60, synthetic_share=0.02, annotated_points=True),
        )

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON data for the manifest."""
        return {
            "name": self.name,
            "scope": asdict(self.scope),
            "tta": self.tta,
            "calibrate": self.calibrate,
            "locators": {name: asdict(plan) for name, plan in self.locators.items()},
            "graders": {name: [asdict(plan) for plan in members] for name, members in self.graders.items()},
            **({"changes": {key: list(values) for key, values in self.changes.items()}} if self.changes else {}),
            **({"file": dict(self.file)} if self.file else {}),
        }


def for_locator(plan: LocatorPlan, locator: Locator) -> LocatorPlan:
    """The plan with what follows from the task: the channels of the net's input and output."""
    return replace(plan, net={**plan.net, "channels": len(locator.channels), "in_channels": 4})


def taught_boxes_mm(plan: LocatorPlan, locator: Locator) -> dict[str, tuple[float, float]]:
    """{channel: (height, width) mm} of the boxes that a detector is taught around landmarks; none of other nets."""
    if plan.net["kind"] != "faster_rcnn":
        return {}
    if "box_mm" in plan.net:
        boxes = ((float(height), float(width)) for height, width in plan.net["box_mm"])
        return dict(zip(locator.channels, boxes, strict=True))
    pixel_mm = locator.field_mm[1] / max(sides(plan.pixels))
    height, width = (float(side) * pixel_mm for side in plan.net.get("box_px", (32.0, 32.0)))
    return dict.fromkeys(locator.channels, (height, width))


def for_grader(plan: GraderPlan, grader: Grader, task: Task) -> GraderPlan:
    """The plan with what follows from the task: the crops and covariates that the net reads, and what it answers."""
    net = {name: value for name, value in plan.net.items() if name != "covariates"}
    net |= {"crops": len(grader.reading(plan.crops).crops), "classes": len(task.classes)}
    net |= {"head_outputs": grader.head_outputs} if grader.heads else {}
    read = [asdict(covariate) for covariate in task.covariates if covariate.name in plan.covariates]
    return replace(plan, net=net | ({"covariates": read} if read else {}))


def _small_pixels(pixels: Pixels) -> Pixels:
    """Sides of at most about 64 pixels in the same ratio, in multiples of 32."""
    height, width = sides(pixels)
    share = min(1.0, 64 / max(height, width))
    small = max(32, round(height * share / 32) * 32), max(32, round(width * share / 32) * 32)
    return small[0] if isinstance(pixels, int) else small
