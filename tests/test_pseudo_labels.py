"""A student learns from its teacher at sites without a label alone, and no fold is told what others know."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.learning import folds, grader_data, out_of_fold, pseudo_labels
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.recipe import GraderPlan, Training
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.models.manifest import TrainedFolds, write_manifest
from osteograde.tasks.spec import Study
from tests.test_training_data import CPU, QUIET, TASK, graded, loaded
from tests.tiny import random_bundle

GRADER = next(one for one in TASK.graders if one.name == "foraminal")
TARGETS = [site.target for site in GRADER.sites]
SURE = np.array([0.1, 0.2, 0.7])


def stored(tmp_path: Path, labels: dict[str, int]) -> grader_data.GraderData:
    plan = GraderPlan(net={}, pixels=32, training=Training(epochs=1, batch=1, lr=1), augmentation=QUIET, drop_view=0.0)
    study = loaded("foramen", "sag_t1", labels)
    return grader_data.store(GRADER, TASK, plan, [(study, study.marks)], tmp_path, unlabelled=True)


def test_only_sites_without_a_label_are_given_one(tmp_path):
    data = stored(tmp_path, {TARGETS[0]: 1})
    taught = data.with_pseudo_labels({"1": {TARGETS[0]: SURE, TARGETS[1]: SURE}})
    batch = taught.batch([0], np.random.default_rng(0), CPU, augment=True)
    assert batch.labels.tolist() == [1, *[-1] * (len(TARGETS) - 1)]
    np.testing.assert_allclose(batch.pseudo[1], SURE, rtol=1e-6)
    assert float(batch.pseudo[0].sum()) == float(batch.pseudo[2:].sum()) == 0
    assert data.batch([0], np.random.default_rng(0), CPU, augment=True).pseudo is None


def test_studies_from_which_nothing_can_be_learnt_take_no_part(tmp_path):
    data = stored(tmp_path, {TARGETS[0]: 1})
    bare = replace(data, labels=np.full_like(data.labels, -1))
    assert len(data.without_idle()) == 1
    assert len(bare.without_idle()) == 0
    assert len(bare.with_pseudo_labels({"other": {TARGETS[0]: SURE}})) == 0
    assert len(bare.with_pseudo_labels({"1": {TARGETS[0]: SURE}})) == 1


class Fixed(nn.Module):
    """A net that gives the same logits every time."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, crops, present):
        return self.logits


def test_the_loss_is_that_of_labels_drawn_from_the_answer_on_average(tmp_path):
    """Both the class weights of the task and those of the plan count as they would for such labels."""
    recipe = RECIPES["lumbar-mr-small"]()
    plan = replace(recipe.graders["foraminal"][0], class_weight_power=0.5, label_smoothing=0.0)
    loss = grader_loss(GRADER, recipe, plan)
    data = replace(graded(tmp_path, "foraminal", "foramen", "sag_t1", QUIET), plan=plan)
    batch = data.batch([0], np.random.default_rng(0), CPU, augment=False)
    logits = torch.randn(len(TARGETS), 3, generator=torch.Generator().manual_seed(0))
    total, norm = 0.0, 0.0
    for k, share in enumerate(SURE):  # of each site
        drawn = replace(batch, labels=torch.full_like(batch.labels, k), weight=torch.ones_like(batch.weight))
        weight = TASK.class_weights[k] * data.class_weight[k]
        total += share * weight * float(loss(Fixed(logits), drawn))
        norm += share * weight
    taught = replace(data, labels=np.full_like(data.labels, -1)).with_pseudo_labels({"1": dict.fromkeys(TARGETS, SURE)})
    taught.__dict__["class_weight"] = data.class_weight  # of the labels, of which there are none here
    soft = taught.batch([0], np.random.default_rng(0), CPU, augment=False)
    assert float(loss(Fixed(logits), soft)) == pytest.approx(total / norm, rel=1e-5)


def test_the_nets_of_a_fold_answer_only_what_this_fold_trains_on(tmp_path, monkeypatch):
    studies = [Study(f"s{i}", f"p{i // 2}", (), {TARGETS[0]: 0} if i % 3 else {}) for i in range(12)]
    split = folds.Split({s.id: int(s.patient[1:]) % 3 for s in studies}, {s.id: s.patient for s in studies})
    asked: list[tuple[int, set[str]]] = []

    def answers(teacher, grader, k, located, device, views):
        asked.append((k, {one.study.id for one, _ in located}))
        return {}

    monkeypatch.setattr(pseudo_labels, "answers", answers)
    recipe = RECIPES["lumbar-mr-small"]()
    run = SimpleNamespace(
        teacher=tmp_path, out=tmp_path, synthetic=[], recipe=recipe, device=CPU, progress=None,
        loaded=lambda some: [SimpleNamespace(study=one, marks={}) for one in some],
    )  # fmt: skip
    data = stored(tmp_path, {TARGETS[0]: 1})
    stage = out_of_fold.GraderStage(run, GRADER, [], {})
    vars(stage)["stored"] = data  # what would be cut from images
    plan = recipe.graders["foraminal"][0]
    for k in (1, 2, 1):
        stage.data(split.training(studies, k), plan, k)
        stage.data(split.held_out(studies, k), plan)  # nobody is asked about these
    assert [k for k, _ in asked] == [1, 2]
    for k, seen in asked:
        assert seen == {one.id for one in split.training(studies, k) if not all(t in one.labels for t in TARGETS)}
        assert not seen & {one.id for one in split.held_out(studies, k)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = random_bundle(tmp_path_factory.mktemp("teacher"), folds=2)
    (folder / folds.FILE).write_text("study_id,patient,fold\ns0,p0,0\ns1,p1,1\n")
    manifest = bundle.read_manifest(folder)
    write_manifest(folder, replace(manifest, folds=TrainedFolds(folds.FILE, folds.digest(folder / folds.FILE), (0, 1))))
    return folder


def test_a_teacher_of_other_folds_or_of_another_task_is_refused(teacher):
    assert pseudo_labels.check(teacher, TASK, (0, 1)).task == "lumbar-mr"
    with pytest.raises(UserError, match="no net of grader 'spinal' of fold 2"):
        pseudo_labels.check(teacher, TASK, (0, 2))
    with pytest.raises(UserError, match="of task 'lumbar-mr'"):
        pseudo_labels.check(teacher, RECIPES["spider"]().task, (0,))
    path = teacher / folds.FILE
    kept = path.read_text()
    path.write_text(kept.replace("s0,p0,0", "s0,p0,1"))
    with pytest.raises(UserError, match="not the one that its nets were trained by"):
        pseudo_labels.check(teacher, TASK, (0,))
    path.write_text(kept)


def test_the_answers_are_probabilities_at_sites_without_a_label_by_the_net_of_the_fold(teacher, tmp_path):
    study = loaded("foramen", "sag_t1", {TARGETS[0]: 1})
    said = {
        k: pseudo_labels.answers(teacher, GRADER, k, [(study, study.marks)], CPU, 1)[study.study.id] for k in (0, 1)
    }
    assert set(said[0]) == set(TARGETS[1:])
    assert all(values.shape == (3,) and values.sum() == pytest.approx(1, abs=1e-5) for values in said[0].values())
    assert not np.allclose(said[0][TARGETS[1]], said[1][TARGETS[1]])
    table = tmp_path / pseudo_labels.FILE
    for k in (0, 1):
        pseudo_labels.save(table, TASK, k, {study.study.id: said[k]})
    lines = table.read_text().splitlines()
    assert lines[0] == f"row_id,{','.join(TASK.classes)},fold"
    assert len(lines) == 1 + 2 * (len(TARGETS) - 1) and {line[-1] for line in lines[1:]} == {"0", "1"}
