"""RECIPES: name -> function that returns one complete, frozen Recipe. Variants call another and replace a field.

``train_folds.py TASK`` without --recipe takes the one named like the task.
"""

from __future__ import annotations

from collections.abc import Callable

from osteograde.learning.recipe import Recipe
from osteograde.learning.recipes import knee, lumbar, spider

RECIPES: dict[str, Callable[[], Recipe]] = {
    "lumbar-mr": lumbar.lumbar_mr,
    "lumbar-mr-small": lumbar.lumbar_mr_small,
    "seed-frcnn-swin": lumbar.seed_frcnn_swin,
    "spider": spider.spider,
    "spider-unet": spider.spider_unet,
    "spider-faster-rcnn": spider.spider_faster_rcnn,
    "knee-xray": knee.knee_xray,
    **knee.PUBLISHED,
}
