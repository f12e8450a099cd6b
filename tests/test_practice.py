"""What was made for practice is learnt from by the plans that say so, within the folds, and is never judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from osteograde import phantom
from osteograde.learning import folds, out_of_fold
from osteograde.learning.cross_fit import Run
from osteograde.learning.recipes import RECIPES
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import films

TASK = TASKS["knee-xray"]
RECIPE = RECIPES["knee-xray"]()


@pytest.mark.slow
def test_graders_learn_from_films_of_their_own_patients_where_their_plan_says_so(tmp_path, monkeypatch):
    phantom.write("knee-xray", tmp_path / "data", studies=6, seed=1)
    studies = TASK.read(tmp_path / "data", "train")
    made = films(studies, tmp_path / "films", np.random.default_rng(0), share=0.01)
    plan = replace(RECIPE.graders["kl"], pixels=(32, 48))
    learnt, judged = {}, []

    def cross_fit(run, kind, stage, own, data_of, loss_of):
        for practice in (1, 0):
            part = data_of(run.split.training(run.everything, 0), replace(own, practice=practice))
            learnt[practice] = part.studies
            assert set(part.without_practice().studies) == {study.id for study in run.split.training(run.studies, 0)}
        yield 0, [], run.split.held_out(run.everything, 0)

    def told(run, nets, k, held, points, ask):
        judged.extend(held)
        return [{} for _ in held]

    monkeypatch.setattr(out_of_fold, "cross_fit", cross_fit)
    monkeypatch.setattr(out_of_fold, "_told", told)
    split = folds.assign(TASK, studies, 2, seed=0)
    recipe = replace(RECIPE, graders={"kl": replace(plan, practice=1)})
    run = Run(recipe, studies, made, split, (0,), tmp_path, torch.device("cpu"), False, lambda text: None)
    out_of_fold.grade_out_of_fold(run, {}, {study.id: {} for study in studies})
    crops = {study.id for study in split.training(studies, 0)}
    own = {film.id for film in made if film.labels and split.fold_of(film) == 1}
    assert own and set(learnt[1]) == crops | own
    assert set(learnt[0]) == crops
    assert {study.id for study in judged} == {study.id for study in split.held_out(studies, 0)}
