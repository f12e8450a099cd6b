"""Recipes of `spider`: one grader, and one locator of each kind to compare."""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning.recipe import Fit, Jitter, Recipe
from osteograde.tasks import TASKS

LOOK = Jitter(turn_deg=12, scale=0.18, shift_mm=20, gamma=0.5, contrast=0.3, noise=0.04, blur=0.2)
ENCODER = "mobilenetv2_035"
STEM = ("conv_stem", "bn1", "blocks.0")  # of timm's MobileNetV2: they stay as ImageNet made them
STARTING = "mobilenet_v2_0.35_float_bn_from_teachablemachine.npz"


def spider() -> Recipe:
    """The default, sized for two CPU cores: heatmaps of a small MobileNetV2 and a grader on T2 and T1 crops.

    python train_folds.py spider --data DIR --out weights/spider
    """
    look = Fit(
        net={"kind": "heatmap", "encoder_name": ENCODER, "stages": 5, "width": 32, "stride": 2},
        pixels=192, epochs=12, batch=8, steps=60, lr=2e-3, ema=0.98, window=3, pretrained=STARTING, jitter=LOOK,
    )  # fmt: skip
    return _spider("spider", look)


def spider_unet() -> Recipe:
    """Discs, vertebrae and canal segmented; points from the discs' components.

    python train_folds.py spider --recipe spider-unet --data DIR --out W
    """
    look = Fit(
        net={"kind": "unet", "encoder_name": ENCODER, "stages": 5, "width": 32, "stride": 2},
        pixels=192, epochs=12, batch=8, steps=60, lr=2e-3, ema=0.98, window=3, pretrained=STARTING, jitter=LOOK,
    )  # fmt: skip
    return _spider("spider-unet", look)


def spider_faster_rcnn() -> Recipe:
    """Boxes of Faster R-CNN with a MobileNetV3 pyramid.

    python train_folds.py spider --recipe spider-faster-rcnn --data DIR --out W
    """
    look = Fit(
        net={"kind": "faster_rcnn", "variant": "mobilenet"},
        pixels=192, epochs=10, batch=4, steps=40, lr=1e-3, ema=0.98, window=1, jitter=LOOK,
    )  # fmt: skip
    return _spider("spider-faster-rcnn", look)


def _judge() -> Fit:
    """Two nets a fold: one learns as a whole; the other longer, its first layers as ImageNet made them and its first
    epochs on smaller images and in common with other folds. Alone they are as good; together they are better."""
    whole = Fit(
        net={"kind": "grader", "backbone": ENCODER, "dropout": 0.2},
        pixels=112, epochs=16, batch=8, lr=1e-3, ema=0.98, loss="ordinal", balance=0.5, pretrained=STARTING,
        jitter=Jitter(turn_deg=10, scale=0.12, shift_mm=3, gamma=0.4, contrast=0.3, noise=0.03, blur=0.15,
                      drop_view=0.4),
    )  # fmt: skip
    longer = replace(whole, epochs=28, common=12, early=(12, 0.72), frozen=STEM, ema=0.99)
    return replace(whole, also=(longer,))


def _spider(name: str, look: Fit) -> Recipe:
    task = TASKS["spider"]
    (stage,), (group,) = task.locators, task.graders
    judge = _judge()
    looks = {**look.net, "channels": len(stage.channels), "in_channels": 4}
    judges = {
        **judge.net,
        "views": len(group.crops),
        "classes": len(task.classes),
        "findings": group.head_outputs,
    }
    return Recipe(
        name=name,
        task=task,
        locators={stage.name: replace(look, net=looks)},
        graders={group.name: replace(judge, net=judges, also=tuple(replace(one, net=judges) for one in judge.also))},
        calibrate=True,
        source={
            "source": "SPIDER lumbar MR slices, masks and gradings (van der Graaf et al., Scientific Data 11, 2024)",
            "licence": "CC BY 4.0",
            "starting_weights": "MobileNetV2 0.35 of Teachable Machine, trained on ImageNet, Apache-2.0",
        },
    )
