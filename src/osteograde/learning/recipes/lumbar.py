"""Recipes of `lumbar-mr`."""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning.recipe import Fit, Jitter, Recipe
from osteograde.tasks import TASKS


def _fits(names, fit: Fit, **own: Fit) -> dict[str, Fit]:
    return {name: own.get(name, fit) for name in names}


def lumbar_mr() -> Recipe:
    """The default, for a GPU: ConvNeXt graders on 2.5D crops, U-Net locators with a ResNet-18 encoder.

    python train_folds.py lumbar-mr --data DIR --out weights/lumbar-mr
    """
    task = TASKS["lumbar-mr"]
    look = Fit(
        net={"kind": "heatmap", "encoder_name": "resnet18d", "width": 64, "stride": 2},
        pixels=256, epochs=30, batch=4, lr=1e-3, ema=0.995, window=12,
    )  # fmt: skip
    judge = Fit(
        net={"kind": "grader", "backbone": "convnext_nano", "views": 1, "dropout": 0.2},
        pixels=128, epochs=12, batch=8, lr=2e-4, ema=0.995, weight_decay=0.05,
    )  # fmt: skip
    return _lumbar(task, "lumbar-mr", look, judge, test_views=2)


def lumbar_mr_small() -> Recipe:
    """Small nets that train on two CPU cores within the hour; the shipped weights are made with it (JOINED: phantoms
    and real stacks, see bench/join_real.py).

    python train_folds.py lumbar-mr --recipe lumbar-mr-small --data JOINED --out weights/lumbar-mr-phantom --folds 0,1
    """
    task = TASKS["lumbar-mr"]
    look = Fit(
        net={"kind": "heatmap", "encoder_name": "mobilenetv4_conv_small_050", "stages": 5, "width": 24, "stride": 2},
        pixels=160, epochs=14, batch=4, lr=3e-3, ema=0.98, window=7,
    )  # fmt: skip
    judge = Fit(
        net={"kind": "grader", "backbone": "mobilenetv4_conv_small_050", "stages": 4, "views": 1, "dropout": 0.1},
        pixels=64, epochs=16, batch=6, lr=2e-3, ema=0.98,
    )  # fmt: skip
    recipe = _lumbar(task, "lumbar-mr-small", look, judge, test_views=1)
    recess = replace(recipe.locators["recess"], pixels=96, batch=12, epochs=8)  # five passes a study, 1 mm pixels
    canal = replace(recipe.locators["canal"], epochs=20, restarts=(14,))  # alone learns from real patients too
    return replace(recipe, locators={**recipe.locators, "canal": canal, "recess": recess})


def seed_frcnn_swin() -> Recipe:
    """The published two-stage baseline: Faster R-CNN R50-FPN v2 per condition, Swin-V2-T with weights 1/2/4, Adam 1e-4.

    Its mistakes are not repeated: one patient-grouped split for all stages, the slice is found and not taken from the
    labels, right-side labels on a shared slice are kept, and subarticular stenosis is located too.

    python train_folds.py lumbar-mr --recipe seed-frcnn-swin --data DIR --out weights/seed
    """
    task = TASKS["lumbar-mr"]
    look = Fit(
        net={"kind": "faster_rcnn", "variant": "resnet50_v2"},
        pixels=256, epochs=3, batch=2, lr=1e-4, optimiser="adam", weight_decay=0.0, ema=0.0, window=3,
        jitter=Jitter(turn_deg=0, scale=0, shift_mm=0, gamma=0, contrast=0, noise=0, blur=0, mirror=False),
    )  # fmt: skip
    judge = Fit(
        net={"kind": "grader", "backbone": "torchvision/swin_v2_t", "views": 1, "dropout": 0.0},
        pixels=224, epochs=10, batch=4, lr=1e-4, optimiser="adam", weight_decay=0.0, ema=0.0,
        jitter=Jitter(turn_deg=0, scale=0, shift_mm=0, gamma=0, contrast=0, noise=0, blur=0, mirror=False),
    )  # fmt: skip
    return _lumbar(task, "seed-frcnn-swin", look, judge, test_views=1)


def _lumbar(task, name: str, look: Fit, judge: Fit, *, test_views: int) -> Recipe:
    """Fill in what follows from the task: channels of the locators, views and classes of the graders."""
    locate = {
        stage.name: replace(look, net={**look.net, "channels": len(stage.channels), "in_channels": 4})
        for stage in task.locators
    }
    grade = {
        group.name: replace(judge, net={**judge.net, "views": len(group.crops), "classes": len(task.classes)})
        for group in task.graders
    }
    return Recipe(name=name, task=task, locators=locate, graders=grade, test_views=test_views)
