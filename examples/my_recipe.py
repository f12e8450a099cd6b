"""A recipe of your own: knees on larger images, with mixup, in steps of 64 knees.

    python train_folds.py knee-xray --recipe examples/my_recipe.py --data KNEES --out runs/mine

It calls a recipe that ships and replaces what should be different. Every value has its place in one of the frozen
dataclasses of osteograde.learning.recipe; ``--list --recipe examples/my_recipe.py`` prints all of them.
"""

from dataclasses import replace

from osteograde.learning.recipe import Recipe, Schedule
from osteograde.learning.recipes.knee import knee_xray_small


def RECIPE() -> Recipe:
    base = knee_xray_small()
    plan = base.graders["kl"][0]
    mine = replace(
        plan,
        pixels=(128, 176),
        training=replace(plan.training, epochs=8, batch=32, accumulate=2, layer_decay=0.8),
        schedule=Schedule(warm_up=0.2, restarts={6: 0.4}, swa=True),
        start=replace(plan.start, shared_epochs=0),
        augmentation=replace(plan.augmentation, cutout=0.2),
        mixup=0.2,
    )
    return replace(base, name="my-knees", graders={"kl": (mine,)}, tta=2)
