"""A segmenting net planned from its data, after nnU-Net (Isensee et al., Nature Methods 2021): fingerprint -> plan.

The fingerprint says what the images are: pixel sizes, fields, how much of them is empty, and which classes the label
images show. Rules turn it into a plan: the pixel size that the net works at, patch, depth, batch and normalisation.
What the rules decide is written into the plan's ``net``, ``pixels`` and ``training``, so the manifest holds it.

It differs from nnU-Net where this kit does. A locator reads every image as far as its field goes with the same number
of pixels, so the target spacing holds for the median image. Grey values are windowed to bytes before, per series, so
there is no scheme for quantitative ones (CT). There is the two-dimensional net alone, which sees the neighbouring
slices as channels. Own code, written from the paper.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from osteograde.errors import UserError
from osteograde.learning.locator_data import UNKNOWN, label_volume
from osteograde.learning.recipe import LocatorPlan, Recipe
from osteograde.models.locators.planned_unet import features_of
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Locator, Pixels, sides

KIND = "planned_unet"
SMALLEST_SIDE = 4  # of the coarsest maps; a stage more would make them smaller
MOST_STAGES = 7
LEAST_BATCH = 2
MOST_OF_DATA = 0.05  # a batch is at most this share of all pixels of the training images
MASK_BELOW = 0.75  # where less of the images is not empty, grey values are normalised by what is not
BUDGET = 800e6  # values that all maps of a batch hold, of a GPU of about 12 GB

log = logging.getLogger("osteograde.learning")


@dataclass(frozen=True)
class Fingerprint:
    """What the images of a locator are.

    spacings_mm: (slice, row, column) of every region. fields_mm: (rows, columns) that each region shows. slices: of
    each region. filled: share of the pixels of all regions that are not 0, the padding to the region's field included.
    grey: mean and deviation of the bytes that are not 0. census: label -> in how many regions it occurs; empty where
    no region has label images. labelled: how many have them.
    """

    spacings_mm: tuple[tuple[float, float, float], ...]
    fields_mm: tuple[tuple[float, float], ...]
    slices: tuple[int, ...]
    filled: float
    grey: tuple[float, float]
    census: Mapping[int, int] = field(default_factory=dict)
    labelled: int = 0


@dataclass(frozen=True)
class Decisions:
    """What follows from a fingerprint. spacing_mm: of the pixels that the net reads, for the median image."""

    spacing_mm: float
    pixels: int
    patch: tuple[int, int]
    stages: int
    batch: int
    normalisation: str


def fingerprint_of(locator: Locator, studies: Iterable[Loaded]) -> Fingerprint:
    """The fingerprint of every region that a locator reads without earlier points. UserError where there is none."""
    spacings, fields_mm, slices = [], [], []
    census: Counter[int] = Counter()
    labelled, inside, filled, total, squares = 0, 0.0, 0, 0.0, 0.0
    for loaded in studies:
        for region in locator.regions(loaded.volumes, loaded.marks):
            volume = region.volume
            own = [float(mm) for mm in volume.spacing_mm]
            spacings.append((own[0], own[1], own[2]))
            fields_mm.append((float(region.field_mm[0]), float(region.field_mm[1])))
            slices.append(len(volume.voxels))
            counts = np.bincount(volume.voxels.ravel(), minlength=256).astype(float)
            values = np.arange(len(counts))
            filled += int(counts[1:].sum())
            total, squares = total + float(counts @ values), squares + float(counts @ values**2)
            inside += len(volume.voxels) * region.field_mm[0] * region.field_mm[1] / (own[1] * own[2])
            labels = label_volume(loaded.study, volume)
            if labels is not None:
                labelled += 1
                census.update(int(label) for label in np.unique(labels.voxels) if label != UNKNOWN)
    if not spacings:
        raise UserError(f"locator {locator.name!r}: no study has its view; there is nothing to plan a net from")
    mean = total / max(filled, 1)
    deviation = max(squares / max(filled, 1) - mean**2, 0.0) ** 0.5
    return Fingerprint(
        tuple(spacings), tuple(fields_mm), tuple(slices), filled / inside, (mean, deviation), dict(census), labelled
    )


def decide(found: Fingerprint, most: Pixels, features: int, budget: float) -> Decisions:
    """The plan of a fingerprint. most: pixels that the machine allows at most. budget: see BUDGET.

    The target spacing is the median pixel size, or coarser where the median field would have more pixels than ``most``.
    The patch begins as large as the image and shrinks until a batch of two fits the budget; the net halves the patch as
    often as its maps keep four pixels.
    """
    spacing_mm = float(np.median([mm for one in found.spacings_mm for mm in one[1:]]))
    field_mm = float(np.median([max(one) for one in found.fields_mm]))
    wanted = min(field_mm / spacing_mm, max(sides(most)))
    stages = _stages(wanted)
    pixels = _multiple(wanted, 2 ** (stages - 1), most=max(sides(most)))
    patch = pixels
    while LEAST_BATCH * cost(features, stages, patch) > budget and patch > 2 * SMALLEST_SIDE:
        patch = _multiple(patch * 0.9, 2 ** (stages - 1), most=patch - 1)
        stages = min(stages, _stages(patch))
        patch = patch // 2 ** (stages - 1) * 2 ** (stages - 1)
    batch = int(budget // cost(features, stages, patch))
    few = int(MOST_OF_DATA * sum(found.slices) * pixels**2 / patch**2)
    batch = max(LEAST_BATCH, min(batch, few))
    normalisation = "nonzero" if found.filled < MASK_BELOW else "slice"
    return Decisions(field_mm / pixels, pixels, (patch, patch), stages, batch, normalisation)


def cost(features: int, stages: int, patch: int) -> float:
    """Values that the maps of one patch hold: four convolutions a stage, two of the coarsest, squares of ``patch``.

    >>> cost(32, 1, 4)
    1024.0
    """
    sizes = [count * (patch / 2**k) ** 2 for k, count in enumerate(features_of(features, stages))]
    return float(4 * sum(sizes[:-1]) + 2 * sizes[-1])


def _stages(side: float) -> int:
    """Resolutions of a net whose finest maps have this side."""
    return min(MOST_STAGES, 1 + max(0, int(np.log2(side / SMALLEST_SIDE))))


def _multiple(value: float, step: int, most: int) -> int:
    """The nearest multiple of ``step``, at least one step and, where that leaves one, at most ``most``."""
    near = max(1, round(value / step)) * step
    return near if near <= most else max(1, most // step) * step


def planned(plan: LocatorPlan, locator: Locator, studies: Iterable[Loaded]) -> LocatorPlan:
    """The plan with what its data decide; unchanged where its net is of another kind or was planned before.

    Of the plan, ``pixels`` are the most that the machine allows, ``net["features"]`` those of the finest stage, and
    ``net["budget"]`` what the maps of a batch may hold (absent: BUDGET). Steps of an epoch see as many patches as the
    plan's own batch and steps would.
    """
    if plan.net.get("kind") != KIND or "patch" in plan.net:
        return plan
    found = fingerprint_of(locator, studies)
    net = dict(plan.net)
    budget, features = float(net.pop("budget", BUDGET)), int(net.get("features", 32))
    made = decide(found, plan.pixels, features, budget)
    net |= {"features": features, "stages": made.stages, "patch": list(made.patch)}
    net |= {"normalisation": made.normalisation, "spacing_mm": round(made.spacing_mm, 4)}
    log.info("%s: %s", locator.name, told(found, made))
    return replace(plan, net=net, pixels=made.pixels, training=replace(plan.training, batch=made.batch))


def planned_recipe(recipe: Recipe, studies: Iterable[Loaded]) -> Recipe:
    """The recipe with the plans of all locators that are planned from data. studies: read only where there is one."""
    todo = [name for name, plan in recipe.locators.items() if plan.net.get("kind") == KIND and "patch" not in plan.net]
    if not todo:
        return recipe
    given = list(studies)
    stages = {stage.name: stage for stage in recipe.task.locators}
    return replace(
        recipe,
        locators=dict(recipe.locators) | {name: planned(recipe.locators[name], stages[name], given) for name in todo},
    )


def told(found: Fingerprint, made: Decisions) -> str:
    """Fingerprint and decisions for the log."""
    own = np.median(np.array(found.spacings_mm), 0)
    return (
        f"fingerprint of {len(found.slices)} regions: {sum(found.slices)} slices, median spacing "
        f"{' x '.join(f'{mm:.2f}' for mm in own)} mm, {found.filled:.0%} not empty, grey {found.grey[0]:.0f} +- "
        f"{found.grey[1]:.0f}, labels {dict(sorted(found.census.items()))} in {found.labelled} labelled regions; plan: "
        f"{made.pixels} pixels of {made.spacing_mm:.2f} mm, patch {made.patch[0]} x {made.patch[1]}, {made.stages} "
        f"stages, batch {made.batch}, z-score by {'pixels above 0' if made.normalisation == 'nonzero' else 'slice'}"
    )
