"""Nets of an earlier training that another recipe would make anew: taken over instead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.learning.cross_fit import Net, nets_of
from osteograde.learning.recipe import Fit, Recipe
from osteograde.models import bundle

DEFAULTS = asdict(Fit(net={}, pixels=0, epochs=0, batch=0, lr=0.0))


def reuse_nets(weights: Path, out: Path, recipe: Recipe, *, without: Collection[str] = ()) -> list[str]:
    """Copy the folds of ``weights`` into ``out``, and every net of a stage that was trained by the same plan.

    The nets are vouched for as finished, so ``--resume`` uses them. Returns their names; what is in ``out`` already
    stays, and folds there may hold further studies. without: stages to be trained all the same. ValueError where the
    weights are of another task or seed, were changed, or ``out`` has other folds.
    """
    manifest = bundle.verify(weights)
    known = manifest.recipe
    for what, got, wanted in (
        ("task", manifest.task, recipe.task.name),
        ("seed", known.get("seed"), recipe.seed),
        ("number of folds", known.get("num_folds"), recipe.num_folds),
    ):
        if got != wanted:
            raise UserError(f"{weights}: {what} is {got!r}, recipe {recipe.name!r} has {wanted!r}; nothing fits")
    (out / "work" / "nets").mkdir(parents=True, exist_ok=True)
    own = out / folds.FILE
    if not own.is_file():
        shutil.copy(weights / folds.FILE, own)
    elif not folds.holds(own, weights / folds.FILE):
        raise UserError(f"{own}: not the folds of {weights}; a net may have seen what it would be judged on")
    folds.keep(out)
    agreed = [
        one
        for kind, plans in (("locate", recipe.locators), ("grade", recipe.graders))
        for stage, plan in plans.items()
        if stage not in without
        for one in nets_of(kind, stage, plan)
        if _same(one, known.get(kind, {}).get(stage, {}))
    ]
    return [one.file(k) for one in agreed for k in range(recipe.num_folds) if _taken(weights, out, one, k)]


def _taken(weights: Path, out: Path, one: Net, k: int) -> bool:
    """Copy one net and vouch for it; False where there is none, or one in ``out`` already."""
    source, copy = bundle.place(weights, one.file(k)), out / one.file(k)
    if copy.is_file() or not source.is_file():
        return False
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, copy)
    (out / "work" / "nets" / f"{one.work(k)}.sha256").write_text(bundle.sha256(copy))
    return True


def _same(one: Net, stage: Mapping[str, Any]) -> bool:
    """Whether a net's plan is the one of a manifest's stage. Choices not yet known then had their defaults; those known
    no more do not count where they were off."""
    members = [{**stage, "also": ()}, *stage.get("also", ())] if stage else []
    if one.member >= len(members):
        return False
    known = {key: value for key, value in members[one.member].items() if key in DEFAULTS or value}
    return json.loads(json.dumps(asdict(one.plan))) == json.loads(json.dumps({**DEFAULTS, **known}))
