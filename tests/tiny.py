"""Weights that know nothing, made in a second: what tests use where it does not matter what the nets say."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.models.bundle import build_net
from osteograde.models.manifest import Manifest, write_manifest

CONFIDENT = 60_000  # scales the heads of locators: else nothing is found and every row is a prior


def noise_knees(folder: Path) -> Path:
    """A new folder with five pictures of noise that are called as left knees."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(5):
        cv2.imwrite(str(folder / f"{9000001 + number}L.png"), rng.integers(0, 255, (64, 64), dtype=np.uint8))
    return folder


def random_bundle(
    folder: Path,
    recipe_name: str = "lumbar-mr-small",
    folds: int = 1,
    test_views: int = 1,
    *,
    pixels: tuple[int, int] | tuple[()] = (),
) -> Path:
    """A weights folder as training leaves it, with random nets.

    pixels: of what (locators, graders) read, where not those of the recipe.
    """
    recipe, files = RECIPES[recipe_name](), {}
    torch.manual_seed(7)
    for (kind, stage), plans in recipe.plans().items():
        for k in range(folds):
            net, name = build_net(dict(plans[0].net)), f"{kind}/{stage}/fold{k}.safetensors"
            if kind == "locate":
                net.head.weight.data *= CONFIDENT
            bundle.save_net(net, folder / name)
            files[name] = bundle.file_entry(folder, name, bundle.config_of(plans[0].net))
    own = dict.fromkeys(recipe.locators, pixels[0]) | dict.fromkeys(recipe.graders, pixels[1]) if pixels else {}
    manifest = Manifest(
        task=recipe.task.name,
        pixels={**recipe.pixels, **own},
        test_views=test_views,
        files=files,
        prior={target: tuple(values) for target, values in recipe.task.prior.items()},
    )
    write_manifest(folder, manifest)
    return folder
