"""Recipes of `knee-xray`."""

from __future__ import annotations

from osteograde.learning.recipe import NO_CLIP, Fit, Jitter, Recipe
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import films

STARTING = "mobilenet_v2_torchvision_from_tf2_ptq.npz"
SMALL_STARTING = "mobilenet_v2_0.35_float_bn_from_teachablemachine.npz"


def knee_xray() -> Recipe:
    """The default, sized for two CPU cores: MobileNetV2 on the joint line, 103 x 140 mm of the crop at 0.583 mm.

    Eight epochs on crops, then two, from 0.4 of the rate, in which composed films count too, and the mean of both
    nets. On two folds the first are the better ones on crops, the last on films, and the mean is as good as either.

    python train_folds.py knee-xray --data DIR --out weights/knee-xray
    """
    judge = Fit(
        net={
            "kind": "grader", "backbone": "torchvision/mobilenet_v2", "views": 1, "classes": 5, "dropout": 0.2,
            "pool": "mean", "width": 0, "normalise": "fixed",
        },
        pixels=(176, 240), epochs=10, restarts=(8,), restart_share=0.4, swa=True, practice=2,
        batch=32, lr=1e-3, weight_decay=0.01, warmup=0.2, ema=0.0, clip=NO_CLIP,
        label_smoothing=0.1, pretrained=STARTING,
        jitter=Jitter(
            turn_deg=10, scale=0.1, shift_mm=5, gamma=0.25, contrast=0.3, noise=0.0, blur=0.0, use_measured_error=False,
        ),
    )  # fmt: skip
    return _knee("knee-xray", _look(), judge, test_views=6)


def _look() -> Fit:
    return Fit(
        net={"kind": "heatmap", "encoder_name": "mobilenetv2_035", "stages": 5, "width": 32, "stride": 2},
        pixels=192, epochs=6, common=3, batch=12, steps=60, lr=2e-3, ema=0.98, window=1, thin=8,
        pretrained=SMALL_STARTING,
        jitter=Jitter(turn_deg=12, scale=0.2, shift_mm=25, gamma=0.4, contrast=0.3, noise=0.04, blur=0.2),
    )  # fmt: skip


def _knee(name: str, look: Fit, judge: Fit, *, test_views: int) -> Recipe:
    task = TASKS["knee-xray"]
    (stage,), (group,) = task.locate, task.grade
    look_net = {**look.net, "channels": len(stage.channels), "in_channels": 4}
    return Recipe(
        name=name,
        task=task,
        locate={stage.name: Fit(**{**look.__dict__, "net": look_net})},
        grade={group.name: judge},
        test_views=test_views,
        practice=films,
        calibrate=True,
        source={
            "source": "Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data V1, "
            "doi 10.17632/56rmx5bjcr.1; images from the Osteoarthritis Initiative",
            "licence": "CC BY 4.0",
            "starting_weights": "MobileNetV2 1.0 and 0.35 as released with TensorFlow and Teachable Machine, "
            "trained on ImageNet, Apache-2.0",
        },
    )
