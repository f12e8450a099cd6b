"""Mixup and cutmix: labels have the share that their images have, and a batch follows from its random numbers alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.learning import grader_data, grader_loss, loop
from osteograde.learning.mixing import Mix, draw_mix, mixed, random_box
from osteograde.learning.recipe import GraderPlan, Training
from osteograde.learning.recipes import RECIPES
from osteograde.models.grader import GraderNet
from osteograde.tasks.spec import Head
from tests.logs import logged
from tests.test_heads import GRADER as HEADED
from tests.test_heads import TASK as HEADED_TASK
from tests.test_training_data import CPU, QUIET, graded

SIZE = (24, 32)
KINDS = st.sampled_from([(0.4, 0.0), (0.0, 1.0), (0.2, 0.7)])
PLAIN = np.zeros((6, 1), int)


@given(seed=st.integers(0, 10**6), kinds=KINDS)
@settings(max_examples=40, deadline=None)
def test_the_share_of_a_label_is_the_share_of_its_image(seed, kinds):
    """Of white images over black ones the mean grey value is the share."""
    mix = draw_mix(np.random.default_rng(seed), PLAIN, SIZE, *kinds)
    white = torch.cat([torch.ones(1, 3, *SIZE), torch.zeros(5, 3, *SIZE)])
    own = torch.from_numpy(mix.own)
    assert ((own >= 0) & (own <= 1)).all()
    expected = own * white[:, 0, 0, 0] + (1 - own) * white[mix.partner, 0, 0, 0]
    assert torch.allclose(mixed(white, mix).mean((1, 2, 3)), expected, atol=1e-5)
    assert sorted(mix.partner) == list(range(6))


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_box_lies_inside_and_has_its_share_of_the_area(seed, share):
    rows, columns = random_box(np.random.default_rng(seed), SIZE, share)
    assert 0 <= rows.start <= rows.stop <= SIZE[0] and 0 <= columns.start <= columns.stop <= SIZE[1]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert abs(area / (SIZE[0] * SIZE[1]) - share) < 1 / SIZE[0] + 1 / SIZE[1]


def test_mixup_blends_all_pixels_alike_and_cutmix_pastes_a_box():
    images = torch.rand(6, 2, *SIZE)
    blend = draw_mix(np.random.default_rng(1), PLAIN, SIZE, 0.5, 0.0)
    assert all(len(np.unique(weight)) == 1 for weight in blend.weight)
    own = torch.from_numpy(blend.own)[:, None, None, None]
    torch.testing.assert_close(mixed(images, blend), own * images + (1 - own) * images[blend.partner])
    paste = draw_mix(np.random.default_rng(1), PLAIN, SIZE, 0.0, 1.0)
    assert set(np.unique(paste.weight)) == {0.0, 1.0}
    for site, weight in enumerate(paste.weight):
        rows, columns = np.nonzero(weight == 0)
        assert len(rows) == np.ptp(rows) * np.ptp(columns) + np.ptp(rows) + np.ptp(columns) + 1 if len(rows) else True
        pasted = mixed(images, paste)[site][:, rows, columns]
        assert torch.equal(pasted, images[paste.partner[site]][:, rows, columns])


def test_with_both_each_is_used_for_about_half_of_the_sites():
    mix = draw_mix(np.random.default_rng(0), np.zeros((400, 1), int), (8, 8), 1.0, 1.0)
    cut = sum(set(np.unique(weight)) <= {0.0, 1.0} for weight in mix.weight)
    assert 160 < cut < 240


def test_only_sites_that_are_alike_are_mixed():
    alike = np.array([[1, 0], [1, 1], [1, 0], [0, 1], [1, 1], [1, 0]])
    for seed in range(20):
        mix = draw_mix(np.random.default_rng(seed), alike, SIZE, 0.3, 0.3)
        assert (alike[mix.partner] == alike).all()
        assert mix.partner[3] == 3


class Fixed(torch.nn.Module):
    """Answers the same whatever it is shown."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, crops, present):
        return self.logits


def batch_of(labels: torch.Tensor, mix: Mix | None, head_labels: torch.Tensor | None = None) -> grader_data.GraderBatch:
    return grader_data.GraderBatch(
        (),
        torch.ones(len(labels), 1, dtype=torch.bool),
        labels,
        study=torch.arange(len(labels)),
        head_labels=torch.zeros(len(labels), 0, dtype=torch.long) if head_labels is None else head_labels,
        weight=torch.ones(len(labels)),
        partner=None if mix is None else torch.from_numpy(mix.partner),
        own=None if mix is None else torch.from_numpy(mix.own),
    )


@given(seed=st.integers(0, 10**6), smoothing=st.sampled_from([0.0, 0.1]), loss=st.sampled_from(["classes", "ordinal"]))
@settings(max_examples=20, deadline=None)
def test_the_loss_aims_at_the_convex_combination_of_both_targets(seed, smoothing, loss):
    recipe = RECIPES["knee-xray-small"]()
    ((plan,),) = recipe.graders.values()
    (grader,) = recipe.task.graders
    plan = replace(plan, label_smoothing=smoothing, loss=loss)
    rng = np.random.default_rng(seed)
    labels, logits = torch.from_numpy(rng.integers(0, 5, 6)), torch.from_numpy(rng.normal(0, 2, (6, 5))).float()
    mix = draw_mix(rng, PLAIN, SIZE, 0.4, 0.4)
    value = grader_loss.grader_loss(grader, recipe, plan)(Fixed(logits), batch_of(labels, mix))
    aims = grader_loss.targets_of(labels, 5, loss, smoothing)
    own = torch.from_numpy(mix.own)[:, None]
    aim = own * aims + (1 - own) * aims[mix.partner]
    torch.testing.assert_close(aim.sum(1), torch.ones(6))
    torch.testing.assert_close(value, -(aim * logits.log_softmax(-1)).sum(-1).mean())


@pytest.mark.parametrize("kind", ["yes_no", "classes"])
def test_heads_have_the_same_shares(kind):
    head = Head("bulge") if kind == "yes_no" else Head("modic", "classes", ("none", "fatty", "sclerotic"))
    logits = torch.randn(4, len(head.columns), generator=torch.Generator().manual_seed(0))
    labels, own, partner = torch.tensor([0, 1, 1, -1]), torch.tensor([0.2, 0.7, 1.0, 0.4]), torch.tensor([1, 0, 3, 2])
    both = torch.cat([labels, labels[partner]])
    share = torch.cat([own, 1 - own])
    value = grader_loss.heads_loss([head], [torch.cat([logits, logits])], both[:, None], share)
    total, weights = torch.tensor(0.0), torch.tensor(0.0)
    for site, label, counted in zip([*range(4)] * 2, both.tolist(), share, strict=True):
        if label >= 0:
            one = grader_loss.head_loss(head, logits[site : site + 1], torch.tensor([label]))
            total, weights = total + counted * one, weights + counted
    torch.testing.assert_close(value, total / weights)


def test_heads_of_a_mixed_batch_count_by_their_shares():
    """Without labels of the target the loss is that of the heads alone."""
    task = replace(HEADED_TASK, class_weights=(1.0, 1.0))
    recipe = SimpleNamespace(task=task)
    mix = draw_mix(np.random.default_rng(0), np.zeros((4, 1), int), SIZE, 0.5, 0.0)
    logits = torch.randn(4, 2 + HEADED.head_outputs, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2], [1, 0, 3], [1, 2, 0], [0, 1, 1]])
    batch = batch_of(torch.full((4,), -1), mix, labels)
    plan = GraderPlan(net={}, pixels=8, training=Training(epochs=1, batch=4, lr=1e-3), head_weight=1.0)
    value = grader_loss.grader_loss(HEADED, recipe, plan)(Fixed(logits), batch)  # type: ignore[arg-type]
    own = torch.from_numpy(mix.own)
    parts = HEADED.split_heads(torch.cat([logits, logits]), 2)[1]
    both = torch.cat([labels, labels[mix.partner]])
    torch.testing.assert_close(value, grader_loss.heads_loss(HEADED.heads, parts, both, torch.cat([own, 1 - own])))


def mixing(tmp_path, **values: float) -> grader_data.GraderData:
    data = graded(tmp_path, "foraminal", "foramen", "sag_t1", QUIET)
    net = {"kind": "grader", "backbone": "resnet10t", "stages": 1, "crops": 1, "width": 0, "pool": "mean"}
    training = Training(epochs=3, batch=1, steps=2, lr=1e-3)
    return data.for_plan(replace(data.plan, net=net, training=training, **values))


def test_a_batch_is_the_one_without_mixing_mixed_and_follows_from_its_random_numbers(tmp_path):
    data = mixing(tmp_path, mixup=0.5)
    first, again, other = (data.batch([0], np.random.default_rng(seed), CPU, augment=True) for seed in (3, 3, 4))
    assert first.own is not None and again.own is not None and other.own is not None and first.partner is not None
    assert torch.equal(first.own, again.own) and not torch.equal(first.own, other.own)
    assert all(torch.equal(a, b) for a, b in zip(first.crops, again.crops, strict=True))
    plain = mixing(tmp_path).batch([0], np.random.default_rng(3), CPU, augment=True)
    own = first.own[:, None, None, None]
    for crop, alone in zip(first.crops, plain.crops, strict=True):
        torch.testing.assert_close(crop, own * alone + (1 - own) * alone[first.partner])
    assert (first.present[first.partner] == first.present).all() and not torch.equal(first.crops[0], plain.crops[0])


def test_what_is_held_out_is_never_mixed(tmp_path):
    held = mixing(tmp_path, mixup=0.5, cutmix=0.5).batch([0], np.random.default_rng(3), CPU, augment=False)
    assert held.partner is None and held.own is None
    assert held.taken_apart() is held


@pytest.mark.parametrize("values", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bytes(tmp_path, values):
    data = mixing(tmp_path / "crops", **values)
    plan: GraderPlan = data.plan
    recipe = RECIPES["lumbar-mr-small"]()
    loss = grader_loss.grader_loss(data.grader, recipe, plan)

    def make() -> GraderNet:
        return GraderNet("resnet10t", len(data.grader.crops), 3, width=0, pool="mean", stages=1)

    def run(folder, resume=False):
        job = loop.Job("foraminal", 0, 7, CPU, tmp_path / folder / "net.pt")
        trained = loop.train(make, plan, data, None, loss, job, resume=resume)
        return torch.cat([value.flatten() for value in trained.state_dict().values()])

    whole = run("whole")
    with logged("learning", stop=lambda line: " epoch 1/" in line), pytest.raises(KeyboardInterrupt):
        run("killed")
    assert torch.equal(run("killed", resume=True), whole)
