"""bench/losses.py: every loss it compares is another one, and nothing but the loss differs."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from losses import LOSSES, with_loss

from osteograde.learning.recipes import RECIPES


def test_only_the_loss_differs():
    recipe = RECIPES["spider"]()
    plans = [plan for name in LOSSES for plan in with_loss(recipe, name).graders["pfirrmann"]]
    assert len({(plan.loss, plan.class_weight_power) for plan in plans}) == len(LOSSES)
    own = recipe.graders["pfirrmann"][0]
    assert all(replace(plan, loss=own.loss, class_weight_power=own.class_weight_power) == own for plan in plans)
    assert own in plans  # so nets of trained weights need not be trained again
