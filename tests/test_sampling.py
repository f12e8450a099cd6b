"""Which studies an epoch of a grader holds and what they count for: balanced classes, and labels of heads alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.imaging.geometry import Volume, affine, roi_at
from osteograde.learning import grader_data, loop
from osteograde.learning.cross_fit import after_shared_epochs
from osteograde.learning.grader_data import GraderData
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.recipe import Augmentation, GraderPlan, LocatorPlan, Recipe, Start, Training
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Crop, Point, Study
from tests.test_heads import GRADER, HEADS, TASK
from tests.test_loop import Line, Scripted, job, net
from tests.test_loop import loss as line_loss

CPU = torch.device("cpu")
QUIET = Augmentation(rotation_deg=0, scale=0, shift_mm=0, gamma=0, contrast=0, noise=0, blur=0, mirror=False)
PLAN = GraderPlan(
    net={},
    pixels=16,
    training=Training(epochs=4, batch=8, lr=0.1),
    augmentation=QUIET,
    drop_view=0,
    sampling="balanced",
)
ONE = replace(GRADER, crops=(Crop("near", "plain", 1, 16.0),))
TASK_OF_ONE = replace(TASK, graders=(ONE,), class_weights=(1.0, 1.0))


def data_of(labels, heads=None, *, sites: int = 1, plan: GraderPlan = PLAN, grey=None, classes: int = 2) -> GraderData:
    """Stored crops of one grey value each, ``sites`` sites a study."""
    labels = np.asarray(labels)
    count = len(labels)
    heads = np.full((count, len(HEADS)), -1) if heads is None else np.asarray(heads)
    grey = np.zeros(count) if grey is None else np.asarray(grey)
    crops = np.broadcast_to((grey * 255).astype(np.uint8)[:, None, None, None], (count, 1, 24, 24))
    return GraderData(
        grader=ONE, plan=plan, stored=(16, 16), crops=(crops,), present=np.ones((count, 1), bool),
        to_index=np.zeros((count, 1, 3, 3)), labels=labels, head_labels=heads, mirrorable=np.zeros(count, bool),
        rows_of={f"s{i:03d}": np.arange(i * sites, (i + 1) * sites) for i in range(count // sites)}, lateral_axes=(2,),
        errors_mm=np.zeros((0, 3)), studies=tuple(f"s{i:03d}" for i in range(count // sites)), classes=classes,
    )  # fmt: skip


def drawn(data: GraderData, epoch: int, count: int, seed: int = 0) -> np.ndarray:
    """The labels of the first sites of the studies of an epoch."""
    part = data.in_epoch(epoch)
    order = part.order(np.random.default_rng(seed), count)
    return np.array([part.labels[part.rows_of[part.studies[i]][0]] for i in order])


def test_balanced_epochs_hold_all_classes_equally_often_and_every_rare_study():
    labels = np.repeat([0, 1, 2], [170, 24, 6])
    data = data_of(labels, classes=3)
    for seed in range(5):
        counts = np.bincount(drawn(data, 0, 200, seed), minlength=3)
        assert np.abs(counts - 200 / 3).max() <= 1
        order = data.in_epoch(0).order(np.random.default_rng(seed), 200)
        assert {194, 195, 196, 197, 198, 199} <= set(order.tolist())
        assert len(set(order.tolist()) & set(range(170))) >= 66  # none of the frequent class twice
    natural = data_of(labels, plan=replace(PLAN, sampling="natural"), classes=3)
    assert np.array_equal(np.bincount(drawn(natural, 0, 200)), [170, 24, 6])


class Table(nn.Module):
    """Free logits for each of two grey values: what a net of unlimited size would learn."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2, 2 + GRADER.head_outputs))

    def forward(self, crops, present):
        return self.logits[(crops[0].mean((1, 2, 3)) > 0.5).long()]


def learnt(data: GraderData, epoch: int, count: int) -> np.ndarray:
    """(2, K) probabilities of the target, learnt from the studies of an epoch until nothing changes."""
    part, table = data.in_epoch(epoch), Table()
    batch = part.batch(part.order(np.random.default_rng(0), count), np.random.default_rng(0), CPU, augment=True)
    recipe = Recipe(
        name="made-up", task=TASK_OF_ONE, locators={"disc": LocatorPlan(net={}, pixels=16, training=PLAN.training)},
        graders={"disc": (data.plan,)},
    )  # fmt: skip
    loss = grader_loss(ONE, recipe, data.plan)
    optimiser = torch.optim.LBFGS(table.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(table, batch)
        value.backward()
        return value

    optimiser.step(closure)
    return torch.softmax(table.logits.detach()[:, :2], -1).numpy()


def test_answers_learnt_from_balanced_classes_are_those_of_the_natural_ones():
    """Of dark images 5 % are bad, of bright ones 40 %; drawn half and half, the net still says 5 % and 40 %."""
    grey, labels = np.repeat([0.1, 0.9], [300, 100]), np.repeat([0, 1, 0, 1], [285, 15, 60, 40])
    for sampling in ("natural", "balanced"):
        data = data_of(labels, plan=replace(PLAN, sampling=sampling), grey=grey)
        said = learnt(data, 0, 20 * len(labels))
        assert said[:, 1] == pytest.approx([0.05, 0.40], abs=0.01), sampling


def test_studies_that_are_only_judged_are_not_shifted():
    data = data_of(np.repeat([0, 1], [30, 10]))
    assert data.in_epoch(0).batch([0], np.random.default_rng(0), CPU, augment=True).log_prior_shift.abs().sum() > 0.5
    assert (data.batch([0], np.random.default_rng(0), CPU, augment=False).log_prior_shift == 0).all()


def test_studies_of_several_sites_are_drawn_by_their_rare_ones():
    """Ten sites a study; the shift is that of the sites that are really drawn."""
    labels = np.zeros((40, 10), int)
    labels[:4, :5] = 1
    part = data_of(labels.ravel(), sites=10).in_epoch(0)
    order = part.order(np.random.default_rng(0), 4000)
    share = np.bincount(np.concatenate([part.labels[part.rows_of[part.studies[i]]] for i in order])) / 40000
    assert share[1] > 5 * labels.mean()
    assert np.exp(part.log_prior_shift) == pytest.approx(share / [1 - labels.mean(), labels.mean()], rel=0.02)


def test_sites_without_a_label_of_the_target_are_drawn_as_they_occur_and_weigh_no_class():
    labels = np.repeat([0, 1, -1], [30, 10, 60])
    counts = np.bincount(drawn(data_of(labels), 0, 100) + 1)
    assert np.abs(counts - [60, 20, 20]).max() <= 1
    weighted = replace(PLAN, sampling="natural", class_weight_power=1.0)
    assert data_of(labels, plan=weighted).class_weight == pytest.approx([2 / 3, 2.0])


LABELS = [0, 1, -1, 0, -1]
HEAD_LABELS = [[1, -1, -1], [-1, -1, -1], [0, 2, -1], [-1, -1, 3], [-1, 1, -1]]
HEADS_FIRST = replace(PLAN, sampling="natural", heads_only_epochs=2)


def gradient(data: GraderData, plan: GraderPlan) -> torch.Tensor:
    """(sites, outputs) of the loss of all studies of an epoch, with respect to what the net says."""
    outputs = torch.randn(sum(len(data.rows_of[s]) for s in data.studies), 2 + GRADER.head_outputs).requires_grad_()
    recipe = Recipe(
        name="made-up", task=TASK_OF_ONE, locators={"disc": LocatorPlan(net={}, pixels=16, training=PLAN.training)},
        graders={"disc": (plan,)},
    )  # fmt: skip
    batch = data.batch(range(len(data)), np.random.default_rng(0), CPU, augment=True)
    grader_loss(ONE, recipe, plan)(lambda crops, present: outputs, batch).backward()
    assert outputs.grad is not None
    return outputs.grad


def test_first_the_heads_alone_are_learnt_on_all_sites_that_have_their_labels_then_everything():
    data = data_of(LABELS, HEAD_LABELS, plan=HEADS_FIRST)
    for epoch in (0, 1):
        part = data.in_epoch(epoch)
        assert part.studies == ("s000", "s002", "s003", "s004")
        seen = gradient(part, HEADS_FIRST)
        assert (seen[:, :2] == 0).all() and (seen[:, 2:] != 0).any(1).all()
    part = data.in_epoch(2)
    assert part.studies == data.studies
    seen = gradient(part, HEADS_FIRST)
    assert [(row[:2] != 0).any().item() for row in seen] == [True, True, False, True, False]
    assert [(row[2:] != 0).any().item() for row in seen] == [True, False, True, True, True]


def test_the_weight_of_the_heads_scales_their_part_of_the_loss_alone():
    data = data_of(LABELS, HEAD_LABELS, plan=HEADS_FIRST).in_epoch(2)
    torch.manual_seed(0)
    half = gradient(data, replace(HEADS_FIRST, head_weight=0.5))
    torch.manual_seed(0)
    double = gradient(data, replace(HEADS_FIRST, head_weight=2.0))
    assert torch.allclose(double[:, :2], half[:, :2]) and torch.allclose(double[:, 2:], 4 * half[:, 2:])


def test_sites_with_a_label_of_a_head_alone_are_stored(tmp_path):
    axes, step = np.array(TASK.views[0].directions), np.ones(3)
    volume = Volume(np.full((3, 32, 32), 99, np.uint8), affine(-axes.T @ (step * [1, 15.5, 15.5]), axes, step))
    grader = replace(ONE, regions=lambda volumes, points, pixels: {
        site.target: {"near": (volume, roi_at(points[site.target].mm, axes, step, (1, 16, 16)))} for site in ONE.sites
    })  # fmt: skip
    labelled = Study("a", "a", (), labels={"upper": 1}, head_labels={"modic": {"lower": 2}})
    bare = Study("b", "b", (), head_labels={"wear": {"upper": 3}})
    points = {site.target: Point(np.zeros(3)) for site in ONE.sites}
    loaded = [(Loaded(study, {"plain": (volume,)}), points) for study in (labelled, bare)]
    data = grader_data.store(grader, replace(TASK, graders=(grader,)), HEADS_FIRST, loaded, tmp_path)
    assert data.labels.tolist() == [1, -1, -1]
    assert data.head_labels.tolist() == [[-1, -1, -1], [-1, 2, -1], [-1, -1, 3]]
    assert [data.rows_of[study].tolist() for study in data.studies] == [[0, 1], [2]]


def test_plans_that_cannot_be_followed_are_refused():
    with pytest.raises(UserError, match="no site has a label of"):
        data_of([0, 1], plan=HEADS_FIRST).in_epoch(0)
    with pytest.raises(UserError, match="known: 'natural', 'balanced'"):
        replace(PLAN, sampling="fair")
    with pytest.raises(UserError, match="choose one of them"):
        replace(PLAN, class_weight_power=0.5)
    bare = replace(ONE, heads=())
    with pytest.raises(UserError, match="has no heads that heads_only_epochs could learn"):
        Recipe(
            name="made-up", task=replace(TASK, graders=(bare,)), graders={"disc": (HEADS_FIRST,)},
            locators={"disc": LocatorPlan(net={}, pixels=16, training=PLAN.training)},
        )  # fmt: skip


def test_epochs_of_the_heads_alone_are_not_judged_and_those_that_were_shared_are_counted(tmp_path):
    plan = replace(HEADS_FIRST, training=Training(epochs=5, batch=4, lr=0.05, patience=1, ema=0.0))
    values = [0.1, 0.2, 3.0, 2.0, 1.0]  # the first two would stop it, and none would be better than the first

    def judged(model, batch):
        return torch.tensor(batch) if isinstance(batch, float) else line_loss(model, batch)

    kept = loop.train(net, plan, Line(), Scripted(values), judged, job(tmp_path), resume=False)
    last = loop.train(
        net, replace(plan, training=replace(plan.training, patience=0)), Line(), None, judged, job(tmp_path / "b"),
        resume=False,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), last.parameters(), strict=True))
    shared = replace(HEADS_FIRST, start=Start(shared_epochs=1))
    assert after_shared_epochs(shared).heads_only_epochs == 1
