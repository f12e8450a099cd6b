"""What a training writes under ``work/``: how much of it there will be, and what goes as soon as it is of no more use.

Decoded images stay until the run is finished, and are read by every stage. What a stage learns from is cut out of them
when its first net is trained, and is removed when all of its folds are done.
"""

from __future__ import annotations

import numpy as np

from osteograde.learning import grader_data, locator_data
from osteograde.learning.cross_fit import Run
from osteograde.learning.recipe import LocatorPlan
from osteograde.pipeline.crops import region_grids
from osteograde.tasks.spec import Locator, sides

GIB = 2**30


def told(run: Run) -> str:
    """A line that says how much is written under ``work/``, when the studies of the run have been decoded."""
    volumes = sum(path.stat().st_size for path in (run.volumes or run.work / "volumes").glob("*"))
    stages = stage_bytes(run)
    largest = max(stages, key=lambda name: stages[name])
    return (
        f"{run.work} takes up to {(volumes + stages[largest]) / GIB:.2f} GiB: {volumes / GIB:.2f} of decoded images, "
        f"{stages[largest] / GIB:.2f} of what {largest} learns from, which is removed when its folds are done, "
        "and a checkpoint of the net in training"
    )


def stage_bytes(run: Run) -> dict[str, int]:
    """Locator or grader -> bytes of what it learns from. Of graders as if every labelled site could be seen."""
    found = {}
    for locator in run.recipe.locators_in_order:
        found[locator.name] = _locator_bytes(run, locator, run.recipe.locators[locator.name])
    for grader in run.recipe.graders_in_order:
        members = run.recipe.graders[grader.name]
        shapes = grader_data.stored_shapes(grader, members[0])
        studies = run.everything if any(plan.synthetic_epochs for plan in members) else run.studies
        sites = sum(
            run.teacher is not None or grader_data.has_label(grader, study, site)
            for study in studies
            for site in grader.sites
        )
        found[grader.name] = sites * sum(int(np.prod(shape)) for shape in shapes)
    return found


def _locator_bytes(run: Run, locator: Locator, plan: LocatorPlan) -> int:
    """As ``locator_data.store`` cuts them, but that regions without an annotated point are counted, too."""
    if not plan.training.epochs:
        return 0
    pixels, total = max(sides(plan.pixels)), 0
    for study in [*run.studies[:: plan.subsample], *run.synthetic]:
        loaded = run.loaded([study])[0]
        for placed in region_grids(locator, loaded.volumes, loaded.marks, pixels):
            total += int(np.prod(locator_data.stored_grid(placed, plan).shape))
    return total * (2 if locator_data.learns_from_masks(plan) else 1)
