"""RECIPES: name -> function that returns one complete, frozen Recipe. Variants call another and replace a field.

Recipes of a task that is made of data take that task; without it they are recipes of the task that no data define yet.

``train_folds.py TASK`` without --recipe takes the one named like the task. ``NAMES`` can be read without importing any
recipe, so a command line refuses a wrong name at once; ``RECIPES`` imports all of them when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from osteograde.errors import UserError

if TYPE_CHECKING:
    from osteograde.learning.recipe import Recipe
    from osteograde.tasks.spec import Task

    RECIPES: dict[str, Callable[..., Recipe]]

NAMES = {  # recipe -> task
    "lumbar-mr": "lumbar-mr",
    "lumbar-mr-small": "lumbar-mr",
    "lumbar-medvit": "lumbar-mr",
    "lumbar-densenet-axial": "lumbar-mr",
    "seed-frcnn-swin": "lumbar-mr",
    "seed-frcnn-swin-chain": "lumbar-mr",
    "seed-frcnn-swin-cleaned": "lumbar-mr",
    "spider": "spider",
    "spider-unet": "spider",
    "spider-unet-resnet34": "spider",
    "spider-nnunet": "spider",
    "spider-faster-rcnn": "spider",
    "knee-xray": "knee-xray",
    "knee-densenet161": "knee-xray",
    "knee-efficientnet-b5": "knee-xray",
    "knee-efficientnet-v2-s": "knee-xray",
    "knee-regnet-y-8gf": "knee-xray",
    "knee-resnet101": "knee-xray",
    "knee-resnext50": "knee-xray",
    "knee-shufflenet-v2-x2": "knee-xray",
    "knee-wide-resnet50-2": "knee-xray",
    "knee-progression": "knee-progression",
    "progression-image": "knee-progression",
    "progression-scratch": "knee-progression",
    "progression-fusion-frozen": "knee-progression",
    "progression-fusion": "knee-progression",
    "progression-clinical": "knee-progression",
    "progression-multi": "knee-progression",
    "knee-xray-small": "knee-xray",
    "knee-siamese": "knee-xray",
    "knee-siamese-small": "knee-xray",
    "table": "table",
    "table-long": "table",
    "table-covariates": "table",
}


def __getattr__(name: str) -> dict[str, Callable[..., Recipe]]:
    if name != "RECIPES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from osteograde.learning.recipes import knee, lumbar, own_data, progression, spider

    recipes: dict[str, Callable[..., Recipe]] = {
        "lumbar-mr": lumbar.lumbar_mr,
        "lumbar-mr-small": lumbar.lumbar_mr_small,
        "lumbar-medvit": lumbar.lumbar_medvit,
        "lumbar-densenet-axial": lumbar.lumbar_densenet_axial,
        "seed-frcnn-swin": lumbar.seed_frcnn_swin,
        "seed-frcnn-swin-chain": lumbar.seed_frcnn_swin_chain,
        "seed-frcnn-swin-cleaned": lumbar.seed_frcnn_swin_cleaned,
        "spider": spider.spider,
        "spider-unet": spider.spider_unet,
        "spider-unet-resnet34": spider.spider_unet_resnet34,
        "spider-nnunet": spider.spider_nnunet,
        "spider-faster-rcnn": spider.spider_faster_rcnn,
        "knee-xray": knee.knee_xray,
        **knee.PUBLISHED,
        "knee-progression": progression.knee_progression,
        "progression-image": progression.image,
        "progression-scratch": progression.scratch,
        "progression-fusion-frozen": progression.fusion_frozen,
        "progression-fusion": progression.fusion,
        "progression-clinical": progression.clinical,
        "progression-multi": progression.multi,
        "knee-xray-small": knee.knee_xray_small,
        "knee-siamese": knee.knee_siamese,
        "knee-siamese-small": knee.knee_siamese_small,
        "table": own_data.table,
        "table-long": own_data.table_long,
        "table-covariates": own_data.table_covariates,
    }
    globals()["RECIPES"] = recipes
    return recipes


def recipe_for(name: str, task: Task) -> Recipe:
    """The recipe of this name, for a task as ``Task.for_data`` gives it."""
    import osteograde.learning.recipes as here

    make = here.RECIPES[name]
    return make(task) if task.definition else make()


def check_name(name: str, task: str) -> None:
    """UserError naming the recipes of ``task`` if ``name`` is none of them."""
    recipes = ", ".join(sorted(recipe for recipe, its_task in NAMES.items() if its_task == task))
    if name not in NAMES:
        raise UserError(f"no recipe {name!r}; recipes of {task}: {recipes}")
    if NAMES[name] != task:
        raise UserError(f"recipe {name!r} is of task {NAMES[name]!r}, asked for {task!r}; recipes of {task}: {recipes}")
