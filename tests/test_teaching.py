"""A net that learns of others: what they say of a site comes from that site's own crop, and only labelled rows mix."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.imaging.geometry import Volume
from osteograde.inference.reading import Loaded
from osteograde.learning import cross_fit, teaching
from osteograde.learning.data import grade_data
from osteograde.learning.recipe import Fit, Jitter
from osteograde.learning.recipes import RECIPES
from osteograde.models.losses import target_cross_entropy, targets_of, taught_targets
from osteograde.tasks import TASKS
from osteograde.tasks.contract import Point, Study

TASK = TASKS["knee-xray"]
CPU = torch.device("cpu")
(GROUP,) = TASK.grade
LOUD = Jitter(turn_deg=30, scale=0.3, shift_mm=20, gamma=0.9, contrast=0.9, noise=0.3, blur=1)
PLAN = Fit(net={}, pixels=(32, 64), epochs=1, batch=2, lr=1, jitter=LOUD)


class Sides(nn.Module):
    """Logits from the mean grey value of the left and right half of a crop: a mirror image changes them."""

    def forward(self, crops, present):
        crop = crops[0].mean((1, 2))
        half = crop.shape[-1] // 2
        left, right = crop[:, :half].mean(1), crop[:, half:].mean(1)
        return torch.stack([9 * left, 5 * right, left - right, left * 0, right * 0 + 1], 1)


@pytest.fixture
def data(tmp_path) -> grade_data.GradeData:
    rng = np.random.default_rng(5)
    axes = np.array(TASK.view(GROUP.crops[0].view).directions)
    studies = []
    for i in range(5):
        voxels = rng.integers(0, 256, (1, 160, 150)).astype(np.uint8)
        to_mm = np.eye(4)
        to_mm[:3, :3] = axes.T * np.array([1.0, 1.1, 1.2])
        to_mm[:3, 3] = -to_mm[:3, :3] @ [0, 80, 75]
        side = ("right", "left")[i % 2]
        study = Study(f"s{i}", f"p{i}", (), labels={side: i % 5})
        landmark = next(site.landmark for site in GROUP.sites if site.target == side)
        points = {landmark: Point(np.zeros(3))}
        studies.append((Loaded(study, {GROUP.crops[0].view: (Volume(voxels, to_mm),)}, {}), points))
    return grade_data.store(GROUP, TASK, PLAN, studies, tmp_path, log=lambda text: None)


def test_teachers_see_each_site_unmoved_and_in_the_mirror(data, monkeypatch):
    monkeypatch.setattr(teaching, "STUDIES", 2)
    part = data.of({"s0", "s1", "s3", "s4"})
    said = teaching.answers(Sides(), part, CPU)
    for i in range(5):
        (row,) = data.rows_of[f"s{i}"]
        if i == 2:
            assert (said[row] == 0).all()  # not of this part
            continue
        crop = data.batch([i], np.random.default_rng(9), CPU, augment=False).crops[0]
        looks = [torch.softmax(Sides()([image], None), 1) for image in (crop, crop.flip(3))]
        assert np.allclose(said[row], (looks[0] + looks[1])[0] / 2, atol=1e-6)
        assert not np.allclose(looks[0], looks[1], atol=1e-3)


def test_several_teachers_say_their_mean_each_at_its_own_pixels(data):
    small, tall = replace(PLAN, pixels=(16, 32)), replace(PLAN, pixels=(48, 64))
    taught = teaching.taught(data, [(Sides(), small), (Sides(), tall)], CPU)
    each = [teaching.answers(Sides(), data.learnt_by(plan), CPU) for plan in (small, tall)]
    assert np.allclose(taught.taught, np.mean(each, 0), atol=1e-6) and taught.fit == PLAN
    batch = taught.batch([3, 1], np.random.default_rng(0), CPU, augment=True)
    rows = np.concatenate([data.rows_of[name] for name in ("s3", "s1")])
    assert np.allclose(batch.taught, taught.taught[rows])


def test_a_plan_of_another_shape_sees_the_same_millimetres(data):
    """A taller crop of as many pixels across holds the flatter one in its middle."""
    flat = data.batch([0], np.random.default_rng(0), CPU, augment=False).crops[0]
    tall = data.learnt_by(replace(PLAN, pixels=(48, 64))).batch([0], np.random.default_rng(0), CPU, augment=False)
    assert tall.crops[0].shape[-2:] == (48, 64)
    assert torch.allclose(tall.crops[0][..., 8:40, :], flat, atol=1e-5)


def test_a_plan_that_reaches_beyond_the_stored_crops_is_refused(data):
    with pytest.raises(ValueError, match="margin"):
        data.learnt_by(replace(PLAN, pixels=(64, 64)))


def test_the_aim_is_the_mean_of_label_and_teachers_where_there_are_both():
    labels = torch.tensor([0, 2, -1, 1])
    told = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    aim = taught_targets(targets_of(labels, 3, "classes"), told, 0.25)
    assert torch.allclose(aim[0], torch.tensor([0.8, 0.125, 0.075]))
    assert torch.equal(aim[1], torch.tensor([0.0, 0.0, 1.0]))  # nobody was asked
    assert torch.equal(aim[2], torch.zeros(3))  # no label: does not count
    logits = aim[[0, 3]].log().requires_grad_(True)
    target_cross_entropy(logits, aim[[0, 3]], torch.ones(2)).backward()
    assert logits.grad.abs().max() < 1e-7  # the best answer is the aim itself


def test_a_pupil_ends_nearer_to_its_teachers_the_more_they_count(data):
    """The loss that training minimises, on constant logits: at share 1 the labels have no say."""
    told = np.tile([0.1, 0.2, 0.3, 0.25, 0.15], (5, 1))
    batch = data.taught_by(told).batch(range(5), np.random.default_rng(0), CPU, augment=False)

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(5))

        def forward(self, crops, present):
            return self.logits.expand(5, 5)

    ends = {}
    for share in (0.5, 1.0):
        net, plan = Same(), replace(PLAN, teachers=(PLAN,), taught=share)
        optimiser = torch.optim.Adam(net.parameters(), 0.05)
        for _ in range(400):
            optimiser.zero_grad()
            cross_fit.grade_loss(GROUP, RECIPES["knee-xray"](), plan)(net, batch).backward()
            optimiser.step()
        ends[share] = torch.softmax(net.logits.detach(), 0).numpy()
    assert np.allclose(ends[1.0], told[0], atol=1e-3)
    labels = np.bincount(data.labels, minlength=5) / 5
    assert np.allclose(ends[0.5], (told[0] + labels) / 2, atol=1e-3)


def test_data_of_locators_cannot_be_taught():
    with pytest.raises(TypeError, match="grade sites"):
        teaching.taught([1, 2], [], CPU)
