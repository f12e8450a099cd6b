"""Predictions for held-out studies are kept for --resume, and made again whenever they could differ."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from osteograde.learning import folds
from osteograde.learning.cross_fit import Fold, Run, nets_of
from osteograde.learning.out_of_fold import CHUNK, cached_predictions
from osteograde.learning.recipes import RECIPES
from osteograde.tasks.spec import Point, Study

STUDIES = [Study(f"s{i:02d}", f"p{i:02d}", ()) for i in range(CHUNK + 3)]
POINTS = {study.id: {"joint": Point(np.array([0.1, i / 3, 1e-17]), 1 / 7)} for i, study in enumerate(STUDIES)}
RECIPE = RECIPES["knee-xray"]()
NETS = nets_of("grade", "kl", RECIPE.graders["kl"])


@pytest.fixture
def run(tmp_path):
    split = folds.Split({study.id: 0 for study in STUDIES}, {study.id: study.patient for study in STUDIES})
    path = tmp_path / NETS[0].file(0)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a net")
    return Run(RECIPE, STUDIES, [], split, (0,), tmp_path, torch.device("cpu"), True)


class Counting:
    """Stands for a grader: predicts numbers of the studies, and counts the calls."""

    def __init__(self, run: Run):
        self.run, self.nets, self.sizes = run, NETS, []

    def predict(self, fold, studies, points):
        self.sizes.append(len(studies))
        return [{study.id: (points[i]["joint"].mm / 3).tolist()} for i, study in enumerate(studies)]


def predictions(stage, studies=STUDIES, points=POINTS):
    return cached_predictions(stage, Fold(0, [], studies), studies, points)


def test_nothing_is_predicted_twice_and_predictions_come_back_to_the_bit(run):
    first, again = Counting(run), Counting(run)
    made = predictions(first)
    assert first.sizes == [CHUNK, 3]
    assert predictions(again) == made and not again.sizes
    assert made[4]["s04"] == (POINTS["s04"]["joint"].mm / 3).tolist()


def changed_net(run):
    (run.out / NETS[0].file(0)).write_bytes(b"another net")
    return run, STUDIES, POINTS


def moved_landmark(run):
    moved = {**POINTS, "s03": {"joint": Point(POINTS["s03"]["joint"].mm + 1e-9, 1 / 7)}}
    return run, STUDIES, moved


@pytest.mark.parametrize(
    "change",
    [
        changed_net,
        moved_landmark,
        lambda run: (run, STUDIES[1:], POINTS),
        lambda run: (replace(run, recipe=replace(RECIPE, tta=1)), STUDIES, POINTS),
        lambda run: (replace(run, resume=False), STUDIES, POINTS),
    ],
    ids=["net", "landmark", "studies", "tta", "no --resume"],
)
def test_whatever_may_change_a_prediction_makes_it_anew(run, change):
    predictions(Counting(run))
    other, studies, points = change(run)
    stage = Counting(other)
    assert len(predictions(stage, studies, points)) == sum(stage.sizes) == len(studies)
