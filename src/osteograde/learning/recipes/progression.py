"""Recipes of `knee-progression`: what an image adds to a grade, and what a grade adds to an image.

After JSL_Project (joint space loss on films of the Osteoarthritis Initiative): a net that was trained for the
Kellgren-Lawrence grade goes on to learn progression (``image``, against ``scratch``), its frozen features are joined
with what is known of the patient (``fusion-frozen``), the last layers learn along (``fusion``), or the grade and
progression are learnt together from ImageNet weights (``multi``).

Not as there, on purpose: folds are grouped by patient and are those of the grade's nets, so that no net has seen the
patients it is judged on, not even their grades; nothing is imputed before the split; knees are judged as frequent as
they are. The trunk is the first 14 modules of MobileNetV2 instead of VGG-16, for two CPU cores: on held-out knees the
features of its last modules told no more about progression (docs/experiments.md).

All start from the weights of `knee-xray` in this repository, so they are run from its root. They use bfloat16: on a CPU
that does not know it, ``--set`` training.bfloat16=False is faster.
"""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning.recipe import (
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
    "doi 10.17632/56rmx5bjcr.1, of the Osteoarthritis Initiative; labels: Panfilov et al. 2022 (oaprmr) after "
    "Tiulpin et al. 2019",
    "licence": "images CC BY 4.0; labels freely available for research purposes: research only",
    "starting_weights": "weights/knee-xray of this project",
}
KNOWN = (
    "kl",
    "age",
    "sex",
    "bmi",
    "injury",
    "alignment",
)  # covariates; what no knee of the data has stays without effect
FIRST_LAYERS = tuple(f"features.{i}" for i in range(7))
WHOLE_TRUNK = ("",)


def knee_progression() -> Recipe:
    """The default, which ships: image and what is known beside it, the last seven modules of the trunk learning along.

    python train_folds.py knee-progression --data KNEES --out weights/knee-progression
    """
    return replace(fusion(), name="knee-progression")


def image() -> Recipe:
    """The image alone: the trunk that knows the grade, of which the last seven modules learn along.

    python train_folds.py knee-progression --recipe progression-image --data KNEES --out runs/image
    """
    return _recipe("progression-image", _image_plan())


def scratch() -> Recipe:
    """The image alone, from random weights: what was learnt for the grade is not used. Half the pixels a side."""
    plan = _image_plan()
    training = replace(plan.training, epochs=6, lr=2e-3)
    return _recipe("progression-scratch", replace(plan, pixels=(96, 128), start=Start(), training=training))


def fusion_frozen() -> Recipe:
    """The image and what is known beside it: the trunk stays as it learnt the grade, the rest is learnt anew."""
    plan = _image_plan()
    training = replace(plan.training, epochs=5, lr=1e-2)
    start = replace(plan.start, frozen=WHOLE_TRUNK, head_epochs=0, head_lr=0.0)
    return _recipe("progression-fusion-frozen", replace(_with_covariates(plan), training=training, start=start))


def fusion() -> Recipe:
    """The image and what is known beside it; the last seven modules of the trunk learn along."""
    return _recipe("progression-fusion", _with_covariates(_image_plan()))


def multi() -> Recipe:
    """The image alone, from ImageNet weights: grade and progression are learnt together, each with half of the loss."""
    plan = _image_plan()
    net = {**plan.net, "backbone": "tf_efficientnet_lite0", "stages": 4}
    training = replace(plan.training, epochs=4, lr=2e-3)
    start = Start(weights="pip:efficientnet-lite0")
    return _recipe(
        "progression-multi",
        replace(plan, net=net, pixels=(96, 128), start=start, training=training, head_weight=1.0),
    )


def _image_plan() -> GraderPlan:
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


def _with_covariates(plan: GraderPlan) -> GraderPlan:
    """Each of them is hidden for every seventh knee, so that the net can also answer without it."""
    return replace(plan, covariates=KNOWN, drop_covariate=0.15)


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
