"""Synthetic studies are learnt from by the plans that say so, within the folds, and are never graded."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from osteograde import phantom
from osteograde.learning import folds, out_of_fold
from osteograde.learning.cross_fit import Fold, Run
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
    plan = replace(RECIPE.graders["kl"][0], pixels=(32, 48))
    learnt, graded = {}, []

    def cross_fit(run, stage):
        training = run.split.training(run.everything, 0)
        for epochs in (2, 0):
            data = stage.data(training, replace(plan, synthetic_epochs=epochs))
            learnt[epochs] = [set(data.in_epoch(epoch).studies) for epoch in range(plan.training.epochs)]
        yield Fold(0, [], run.split.held_out(run.everything, 0))

    def predictions(stage, fold, held_out, points):
        graded.extend(held_out)
        return [{} for _ in held_out]

    monkeypatch.setattr(out_of_fold, "cross_fit", cross_fit)
    monkeypatch.setattr(out_of_fold, "cached_predictions", predictions)
    split = folds.assign(TASK, studies, 2, seed=0)
    recipe = replace(RECIPE, graders={"kl": (plan,)})
    run = Run(recipe, studies, made, split, (0,), tmp_path, torch.device("cpu"), False)
    out_of_fold.grade_out_of_fold(run, {}, {study.id: {} for study in studies})
    crops = {study.id for study in split.training(studies, 0)}
    own = {film.id for film in made if film.labels and split.fold_of(film) == 1}
    epochs = plan.training.epochs
    assert own
    assert learnt[2] == [crops] * (epochs - 2) + [crops | own] * 2
    assert learnt[0] == [crops] * epochs
    assert {study.id for study in graded} == {study.id for study in split.held_out(studies, 0)}
