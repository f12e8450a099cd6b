"""Recipes of `knee-progression`: what an image adds to a grade, and what a grade adds to an image.

After JSL_Project (joint space loss on films of the Osteoarthritis Initiative): what a net learnt for the
Kellgren-Lawrence grade is used for progression (``image``, against ``scratch``), its features are joined with what is
known of the patient (``fusion-frozen``), the last layers learn along (``fusion``), or the grade and progression are
learnt together from ImageNet weights (``multi``).

Not as there, on purpose: folds are grouped by patient and are those of the grade's nets, so that no net has seen the
patients it is judged on, not even their grades; nothing is imputed before the split; knees are judged as frequent as
they are. The trunk is the first 14 modules of MobileNetV2 instead of VGG-16, for two CPU cores: on held-out knees the
features of its last modules told no more about progression (docs/experiments.md).

All start from the weights of `knee-xray` in this repository, so they are run from its root. They use bfloat16: on a CPU
that does not know it, a recipe with ``bfloat16=False`` in its ``Training`` is faster.
"""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning.recipe import (
    LBFGS,
    NO_CLIP,
    Augmentation,
    GraderPlan,
    LocatorPlan,
    Recipe,
    Start,
    Training,
    for_grader,
    for_locator,
)
from osteograde.tasks import TASKS

GRADES_WEIGHTS = "weights:weights/knee-xray"
SOURCE = {
    "source": "images: Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data V1, "
    "doi 10.17632/56rmx5bjcr.1, of the Osteoarthritis Initiative; "
    "labels: Panfilov et al. 2022 (oaprmr) after Tiulpin et al. 2019",
    "licence": "images CC BY 4.0; labels freely available for research purposes: research only",
    "starting_weights": "weights/knee-xray of this project",
}
GRADE = ("kl",)  # the one covariate that the public labels have
KNOWN = (*GRADE, "age", "sex", "bmi", "injury", "alignment")
FIRST_LAYERS = tuple(f"features.{i}" for i in range(7))


def knee_progression() -> Recipe:
    """The default, which ships: the image and what is known beside it, on the features of the grade's nets.

    python train_folds.py knee-progression --data KNEES --out weights/knee-progression
    """
    return replace(fusion_frozen(), name="knee-progression")


def image() -> Recipe:
    """The image alone, on the features of the grade's nets."""
    return _recipe("progression-image", _frozen(_plan()))


def scratch() -> Recipe:
    """The image alone, from random weights: what was learnt for the grade is not used. Half the pixels a side."""
    plan = _plan()
    training = replace(plan.training, epochs=5, lr=2e-3)
    return _recipe("progression-scratch", replace(plan, pixels=(96, 128), start=Start(), training=training))


def fusion_frozen() -> Recipe:
    """The image and what is known beside it: the trunk stays as it learnt the grade, the last layer is fitted."""
    return _recipe("progression-fusion-frozen", _frozen(_with_covariates(_plan())))


def fusion() -> Recipe:
    """The image and what is known beside it; the last seven modules of the trunk learn along."""
    return _recipe("progression-fusion", _with_covariates(_plan()))


def clinical() -> Recipe:
    """As ``fusion_frozen``, with all that OAI's tables say at baseline: for labels of ``osteograde targets``."""
    return _recipe("progression-clinical", _frozen(_with_covariates(_plan(), KNOWN)))


def multi() -> Recipe:
    """The image alone, from ImageNet weights: grade and progression are learnt together, each with half of the loss."""
    plan = _plan()
    net = {**plan.net, "backbone": "tf_efficientnet_lite0", "stages": 4}
    training = replace(plan.training, epochs=3, lr=2e-3)
    start = Start(weights="pip:efficientnet-lite0")
    return _recipe(
        "progression-multi",
        replace(plan, net=net, pixels=(96, 128), start=start, training=training, head_weight=1.0),
    )


def _plan() -> GraderPlan:
    return GraderPlan(
        net={
            "kind": "grader", "backbone": "torchvision/mobilenet_v2", "stages": 14, "dropout": 0.1, "pool": "mean",
            "width": 0, "normalise": "fixed",
        },
        pixels=(176, 240),
        training=Training(
            epochs=4, batch=32, lr=3e-4, weight_decay=0.05, ema=0.99, clip=NO_CLIP, bfloat16=True
        ),
        start=Start(weights=f"{GRADES_WEIGHTS}:kl", frozen=FIRST_LAYERS, head_epochs=1, head_lr=1e-2),
        augmentation=Augmentation(
            rotation_deg=10, scale=0.1, shift_mm=5, gamma=0.25, contrast=0.3, noise=0.0, blur=0.0
        ),
        measured_errors=False,
    )  # fmt: skip


def _frozen(plan: GraderPlan) -> GraderPlan:
    """The trunk stays as it starts; the last layer is fitted to two views of every knee."""
    training = Training(epochs=2, batch=128, lr=0.0, optimiser=LBFGS, weight_decay=0.03, ema=0.0, bfloat16=True)
    return replace(plan, training=training, start=replace(plan.start, frozen=(), head_epochs=0, head_lr=0.0))


def _with_covariates(plan: GraderPlan, names: tuple[str, ...] = GRADE) -> GraderPlan:
    """Each of them is hidden for every seventh knee, so that the net can also answer without it."""
    return replace(plan, covariates=names, drop_covariate=0.15)


def _recipe(name: str, plan: GraderPlan) -> Recipe:
    """The locator is that of `knee-xray`, as it is: it is not trained again."""
    task = TASKS["knee-progression"]
    (locator,), (grader,) = task.locators, task.graders
    locator_plan = LocatorPlan(
        net={"kind": "heatmap", "encoder_name": "mobilenetv2_035", "stages": 5, "width": 32, "stride": 2},
        pixels=192,
        training=Training(epochs=0, batch=12, lr=2e-3, ema=0.0),
        start=Start(weights=GRADES_WEIGHTS),
        window=1,
    )
    return Recipe(
        name=name,
        task=task,
        locators={locator.name: for_locator(locator_plan, locator)},
        graders={grader.name: (for_grader(plan, grader, task),)},
        tta=2,
        calibrate=True,
        source=SOURCE,
    )
