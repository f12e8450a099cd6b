"""Recipes of `lumbar-mr`."""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning.recipe import (
    IMAGENET,
    NO_CLIP,
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
from osteograde.tasks.lumbar_cleaning import read_cleaned
from osteograde.tasks.spec import Grader, Locator, Task
from osteograde.tasks.spine import LEVELS

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
    and real images, see bench/join_real.py).

    python train_folds.py lumbar-mr --recipe lumbar-mr-small --data JOINED --out weights/lumbar-mr-phantom --folds 0,1,2
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
    # The canal's locator is the only one that is trained on real patients too, of many scanners and fields of view.
    canal = replace(
        canal,
        training=replace(canal.training, epochs=20),
        augmentation=replace(
            canal.augmentation, scale=0.18, shift_mm=20, gamma=0.5, noise=0.04, bias_field=0.3, rician=0.03
        ),
    )
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


# Boxes of the published detectors, (height, width): 30 x 70 px and 40 x 70 px at the lowest level, of images that are
# scaled to 250 px; a sagittal image is taken to be 280 mm wide, as the tasks do where a size is unknown. Recesses have
# no published detector: a box that keeps the two sides of a level apart.
BOX_MM, LOWEST_BOX_MM, RECESS_BOX_MM = (33.6, 78.4), (44.8, 78.4), (16.0, 16.0)
SITES = 50  # of a published batch of crops; ours counts studies, and all sites of a study are in one batch


def seed_frcnn_swin() -> Recipe:
    """The published two-stage baseline (N. Shen, github.com/nshen7/rsna-2024): Faster R-CNN R50-FPN v2 from COCO, with
    boxes of 70 x 30 px, batches of 10 for 3 epochs; Swin-V2-T from ImageNet, class weights 1/2/4, batches of 50 crops
    for 6 epochs, of which the one with the least held-out loss is kept; Adam at 1e-4 all along.

    A batch of graders has the studies that make 50 sites: ten of five sites, five of ten. Its mistakes are not
    repeated: one patient-grouped split for all stages, the slice is found and not taken from the labels, right-side
    labels on a shared slice are kept (see ``seed_frcnn_swin_cleaned``), and subarticular stenosis is located too. As
    there, the epoch is chosen on the fold that judges, so its score is a little too good.

    python train_folds.py lumbar-mr --recipe seed-frcnn-swin --data DIR --out weights/seed
    """
    return _seed("seed-frcnn-swin", TASKS["lumbar-mr"])


def seed_frcnn_swin_chain() -> Recipe:
    """The published baseline with its chain of transfer: the grader of left subarticular stenosis starts from that of
    spinal stenosis, the grader of the right side from the left one's, each from the net of the same fold. Both sides
    have a grader of their own here; the default grades them with one.

    python train_folds.py lumbar-mr --recipe seed-frcnn-swin-chain --data DIR --out weights/seed-chain
    """
    return chained(_seed("seed-frcnn-swin-chain", TASKS["lumbar-mr"].by_side(("foraminal", "subarticular"))))


CHAIN = {"subarticular_left": "spinal", "subarticular_right": "subarticular_left"}  # grader: it starts from


def chained(recipe: Recipe) -> Recipe:
    """A recipe with graders of both sides of subarticular stenosis, started along ``CHAIN``."""
    graders = {
        name: tuple(replace(plan, start=replace(plan.start, weights="", stage=CHAIN.get(name, ""))) for plan in members)
        if name in CHAIN else members
        for name, members in recipe.graders.items()
    }  # fmt: skip
    return replace(recipe, graders=graders)


def seed_frcnn_swin_cleaned() -> Recipe:
    """The published baseline with its cleaning of the labels, which takes right subarticular labels for duplicates
    where the left one lies on the same slice. A line of the log says how many labels that costs.

    python train_folds.py lumbar-mr --recipe seed-frcnn-swin-cleaned --data DIR --out weights/seed-cleaned
    """
    return _seed("seed-frcnn-swin-cleaned", replace(TASKS["lumbar-mr"], read=read_cleaned))


def _seed(name: str, task: Task) -> Recipe:
    """The published baseline for a task with the locators of `lumbar-mr`."""
    return Recipe(
        name=name,
        task=task,
        locators={one.name: _seed_locator(one) for one in task.locators},
        graders={one.name: (_seed_grader(one, task),) for one in task.graders},
    )


def _seed_locator(locator: Locator) -> LocatorPlan:
    boxes = [LOWEST_BOX_MM if channel.endswith(LEVELS[-1]) else BOX_MM for channel in locator.channels]
    if locator.channels == ("recess",):
        boxes = [RECESS_BOX_MM]
    plan = LocatorPlan(
        net={"kind": "faster_rcnn", "variant": "resnet50_v2", "box_mm": boxes, "field_mm": locator.field_mm[1]},
        pixels=256,
        training=_adam(epochs=3, batch=10),
        schedule=Schedule(milestones=(3,)),
        start=Start(weights="coco"),
        augmentation=NO_AUGMENTATION,
        window=3,
    )
    return for_locator(plan, locator)


def _seed_grader(grader: Grader, task: Task) -> GraderPlan:
    plan = GraderPlan(
        net={"kind": "grader", "backbone": "torchvision/swin_v2_t", "dropout": 0.0},
        pixels=224,
        training=replace(_adam(epochs=6, batch=SITES // len(grader.sites)), patience=6),
        schedule=Schedule(milestones=(6,)),
        start=Start(weights="imagenet"),
        augmentation=NO_AUGMENTATION,
        drop_view=0.0,
        measured_errors=False,
    )
    return for_grader(plan, grader, task)


def _adam(*, epochs: int, batch: int) -> Training:
    """Adam at a constant 1e-4, without weight decay, clipping or a moving average."""
    return Training(epochs=epochs, batch=batch, lr=1e-4, optimiser="adam", weight_decay=0.0, clip=NO_CLIP, ema=0.0)


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
