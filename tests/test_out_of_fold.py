"""What nets said of held-out studies is kept for --resume, and asked again whenever it could differ."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from osteograde.learning import folds
from osteograde.learning.cross_fit import Run, nets_of
from osteograde.learning.out_of_fold import CHUNK, _told
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
    return Run(RECIPE, STUDIES, [], split, (0,), tmp_path, torch.device("cpu"), True, print)


class Asked:
    """Answers with the numbers of the studies, and counts the calls."""

    def __init__(self):
        self.sizes = []

    def __call__(self, studies, points):
        self.sizes.append(len(studies))
        return [{study.id: (points[i]["joint"].mm / 3).tolist()} for i, study in enumerate(studies)]


def test_nothing_is_asked_twice_and_answers_come_back_to_the_bit(run):
    first, again = Asked(), Asked()
    told = _told(run, NETS, 0, STUDIES, POINTS, first)
    assert first.sizes == [CHUNK, 3]
    assert _told(run, NETS, 0, STUDIES, POINTS, again) == told and not again.sizes
    assert told[4]["s04"] == (POINTS["s04"]["joint"].mm / 3).tolist()


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
        lambda run: (replace(run, recipe=replace(RECIPE, test_views=1)), STUDIES, POINTS),
        lambda run: (replace(run, resume=False), STUDIES, POINTS),
    ],
    ids=["net", "landmark", "studies", "views", "no --resume"],
)
def test_whatever_may_change_an_answer_asks_again(run, change):
    _told(run, NETS, 0, STUDIES, POINTS, Asked())
    other, studies, points = change(run)
    asked = Asked()
    assert len(_told(other, NETS, 0, studies, points, asked)) == sum(asked.sizes) == len(studies)
