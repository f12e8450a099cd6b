"""Recipes of `lumbar-mr`."""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning.recipe import (
    IMAGENET,
    Augmentation,
    GraderPlan,
    LocatorPlan,
    Recipe,
    Schedule,
    Start,
    Training,
    for_grader,
    for_locator,
)
from osteograde.tasks import TASKS

AXIAL_VIEW = "axi_t2"
NO_AUGMENTATION = Augmentation(rotation_deg=0, scale=0, shift_mm=0, gamma=0, contrast=0, noise=0, blur=0, mirror=False)


def lumbar_mr() -> Recipe:
    """The default, for a GPU: ConvNeXt graders on 2.5D crops, U-Net locators with a ResNet-18 encoder.

    python train_folds.py lumbar-mr --data DIR --out weights/lumbar-mr
    """
    locator = LocatorPlan(
        net={"kind": "heatmap", "encoder_name": "resnet18d", "width": 64, "stride": 2},
        pixels=256,
        training=Training(epochs=30, batch=4, lr=1e-3, ema=0.995),
        window=12,
    )
    grader = GraderPlan(
        net={"kind": "grader", "backbone": "convnext_nano", "dropout": 0.2},
        pixels=128,
        training=Training(epochs=12, batch=8, lr=2e-4, ema=0.995, weight_decay=0.05),
    )
    return _lumbar("lumbar-mr", locator, grader, tta=2)


def lumbar_mr_small() -> Recipe:
    """Small nets that train on two CPU cores within the hour; the shipped weights are made with it (JOINED: phantoms
    and real stacks, see bench/join_real.py).

    python train_folds.py lumbar-mr --recipe lumbar-mr-small --data JOINED --out weights/lumbar-mr-phantom --folds 0,1
    """
    locator = LocatorPlan(
        net={"kind": "heatmap", "encoder_name": "mobilenetv4_conv_small_050", "stages": 5, "width": 24, "stride": 2},
        pixels=160,
        training=Training(epochs=14, batch=4, lr=3e-3, ema=0.98),
        window=7,
    )
    grader = GraderPlan(
        net={"kind": "grader", "backbone": "mobilenetv4_conv_small_050", "stages": 4, "dropout": 0.1},
        pixels=64,
        training=Training(epochs=16, batch=6, lr=2e-3, ema=0.98),
    )
    recipe = _lumbar("lumbar-mr-small", locator, grader)
    canal, recess = recipe.locators["canal"], recipe.locators["recess"]
    # The canal's locator is the only one that is trained on real patients too.
    canal = replace(canal, training=replace(canal.training, epochs=20), schedule=Schedule(restarts={14: 0.5}))
    # A study has five regions of the recess, 1 mm a pixel.
    recess = replace(recess, pixels=96, training=replace(recess.training, epochs=8, batch=12))
    return replace(recipe, locators={**recipe.locators, "canal": canal, "recess": recess})


def lumbar_medvit() -> Recipe:
    """The default's locators with graders of MedViT-small (models/medvit.py), from random weights. For a GPU.

    python train_folds.py lumbar-mr --recipe lumbar-medvit --data DIR --out weights/lumbar-medvit
    """
    recipe = lumbar_mr()
    graders = {
        name: tuple(replace(plan, net={**plan.net, "backbone": "medvit_small"}) for plan in plans)
        for name, plans in recipe.graders.items()
    }
    return replace(recipe, name="lumbar-medvit", graders=graders)


def lumbar_densenet_axial() -> Recipe:
    """DenseNet-121 on axial T2 alone, as a published notebook has it; foramina, which axial T2 does not show, on T1.

    Points come from the locators of `lumbar-mr`, which read the sagittal views too.

    python train_folds.py lumbar-mr --recipe lumbar-densenet-axial --data DIR --out W
    """
    base = lumbar_mr()
    plan = GraderPlan(
        net={"kind": "grader", "backbone": "densenet121", "dropout": 0.2},
        pixels=128,
        training=Training(epochs=12, batch=6, lr=2e-4, ema=0.995, weight_decay=0.05),
        start=Start(weights=IMAGENET),
    )
    graders = {}
    for one in base.task.graders:
        axial = tuple(crop.name for crop in one.crops if crop.view == AXIAL_VIEW)
        graders[one.name] = (for_grader(replace(plan, crops=axial), one, base.task),)
    return replace(base, name="lumbar-densenet-axial", graders=graders)


def seed_frcnn_swin() -> Recipe:
    """The published two-stage baseline: Faster R-CNN R50-FPN v2 per condition, Swin-V2-T with weights 1/2/4, Adam 1e-4.

    Its mistakes are not repeated: one patient-grouped split for all stages, the slice is found and not taken from the
    labels, right-side labels on a shared slice are kept, and subarticular stenosis is located too.

    python train_folds.py lumbar-mr --recipe seed-frcnn-swin --data DIR --out weights/seed
    """
    locator = LocatorPlan(
        net={"kind": "faster_rcnn", "variant": "resnet50_v2"},
        pixels=256,
        training=Training(epochs=3, batch=2, lr=1e-4, optimiser="adam", weight_decay=0.0, ema=0.0),
        augmentation=NO_AUGMENTATION,
        window=3,
    )
    grader = GraderPlan(
        net={"kind": "grader", "backbone": "torchvision/swin_v2_t", "dropout": 0.0},
        pixels=224,
        training=Training(epochs=10, batch=4, lr=1e-4, optimiser="adam", weight_decay=0.0, ema=0.0),
        augmentation=NO_AUGMENTATION,
    )
    return _lumbar("seed-frcnn-swin", locator, grader)


def _lumbar(name: str, locator: LocatorPlan, grader: GraderPlan, *, tta: int = 1) -> Recipe:
    """One plan for all locators and one for all graders."""
    task = TASKS["lumbar-mr"]
    return Recipe(
        name=name,
        task=task,
        locators={one.name: for_locator(locator, one) for one in task.locators},
        graders={one.name: (for_grader(grader, one, task),) for one in task.graders},
        tta=tta,
    )
