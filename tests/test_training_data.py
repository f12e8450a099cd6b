"""Training samples: whatever is turned, shifted or mirrored, a landmark stays on what it marks, on its side."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osteograde.imaging.geometry import Volume, affine, to_index
from osteograde.learning import grader_data, grader_loss, locator_data
from osteograde.learning.recipe import Augmentation, GraderPlan, LocatorPlan, Resizing, Training
from osteograde.learning.recipes import RECIPES
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.lumbar_names import TARGET_OF, landmark
from osteograde.tasks.spec import Point, Study
from osteograde.tasks.spine import LEVELS, SIDES
from tests.test_losses import metric_loss

TASK = TASKS["lumbar-mr"]
CPU = torch.device("cpu")
TRAINING = Training(epochs=1, batch=1, lr=1)
WILD = Augmentation(rotation_deg=20, scale=0.15, shift_mm=6, gamma=0, contrast=0, noise=0, blur=0)


def points() -> dict[str, Point]:
    """A straight spine: every landmark at a place of its own."""
    found = {}
    for k, level in enumerate(LEVELS):
        z = 64.0 - 32 * k
        found[landmark("canal", level)] = np.array([0.0, 10, z])
        for side, sign in zip(SIDES, (-1, 1), strict=True):
            found[landmark("foramen", level, side)] = np.array([16.0 * sign, 4, z + 3])
            found[landmark("recess", level, side)] = np.array([9.0 * sign, 6, z])
    return {name: Point(mm) for name, mm in found.items()}


def glowing(structure: str, view: str) -> Volume:
    """A stack that is dark but for a ball round each point of a structure; the right side glows less."""
    axes = np.array(TASK.view(view).directions)
    sagittal = view != "axi_t2"
    shape = (15, 130, 110) if sagittal else (45, 100, 100)
    step = np.array([4.0, 1.6, 1.6])
    centre = np.array([0.0, 10, 0])
    to_mm = affine(centre - axes.T @ (step * (np.array(shape) - 1) / 2), axes, step)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    mm = index @ to_mm[:3, :3].T + to_mm[:3, 3]
    voxels = np.zeros(shape)
    for name, point in points().items():
        if name.startswith(structure):
            bright = 140 if "right" in name else 250
            voxels = np.maximum(voxels, bright * np.exp(-((mm - point.mm) ** 2).sum(-1) / 60))
    return Volume(voxels.astype(np.uint8), to_mm, series=view)


def loaded(structure: str, view: str, labels: dict[str, int] | None = None) -> Loaded:
    study = Study("1", "1", (), labels=labels or {})
    volumes = {v.name: () for v in TASK.views} | {view: (glowing(structure, view),)}
    return Loaded(study, volumes, marks=points())


@pytest.mark.parametrize(
    ("stage", "structure", "elastic_mm"),
    [("canal", "canal", 0), ("foramen", "foramen", 0), ("recess", "recess", 0), ("foramen", "foramen", 6)],
)
def test_a_landmark_stays_on_its_blob_and_on_its_side(tmp_path, stage, structure, elastic_mm):
    locate = next(one for one in TASK.locators if one.name == stage)
    augmentation = replace(WILD, elastic_mm=elastic_mm)
    plan = LocatorPlan(net={}, pixels=96, training=TRAINING, window=9, augmentation=augmentation)
    data = locator_data.store(locate, plan, [loaded(structure, locate.needs[0])], tmp_path)
    seen, mirrored = 0, 0
    for seed in range(40):
        batch = data.batch([seed % len(data)], np.random.default_rng(seed), CPU, augment=True)
        for i, place in enumerate(batch.points[0]):
            if not torch.isfinite(place).all():
                continue
            d, row, column = (int(v) for v in place.round())
            if not (0 <= d < len(batch.images) and 0 <= row < 96 and 0 <= column < 96):
                continue
            around = batch.images[d, 1, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            assert around.max() > 0.35, f"{data.landmarks[i].name} of seed {seed} is not on its blob"
            side = int(batch.side[i])
            if side and abs(float(batch.lateral[d, column])) > 3:
                assert np.sign(float(batch.lateral[d, column])) == side
                # the dim balls are the right ones: where a left landmark is dim, the patient was mirrored
                mirrored += side == 1 and float(around.max()) < 0.7
            seen += 1
    assert seen > 60
    assert structure == "canal" or mirrored > 5


def test_partners_are_mirror_images_and_mirroring_twice_is_nothing():
    for stage in TASK.locators:
        for region in stage.regions(
            {view: [glowing("canal", view)] for view in ("sag_t1", "sag_t2", "axi_t2")}, points()
        ):
            own = region.landmarks
            swap = locator_data.partners(own)
            assert [swap[i] for i in swap] == list(range(len(own)))
            for one, other in zip(own, (own[i] for i in swap), strict=True):
                assert other.name == one.name.replace(one.side, {"right": "left", "left": "right"}.get(one.side, ""))


def graded(tmp_path: Path, name: str, structure: str, view: str, augmentation: Augmentation) -> grader_data.GraderData:
    group = next(one for one in TASK.graders if one.name == name)
    labels = {target: i % 3 for i, target in enumerate(TARGET_OF)}
    plan = GraderPlan(net={}, pixels=48, training=TRAINING, augmentation=augmentation)
    plan = replace(plan, drop_view=0.0) if augmentation is QUIET else plan
    study = loaded(structure, view, labels)
    return grader_data.store(group, TASK, plan, [(study, study.marks)], tmp_path)


def test_crops_around_other_points_are_never_taken_for_those_that_lie_there(tmp_path):
    group = next(one for one in TASK.graders if one.name == "foraminal")
    study = loaded("foramen", "sag_t1", {target: i % 3 for i, target in enumerate(TARGET_OF)})
    plan = GraderPlan(net={}, pixels=48, training=TRAINING)

    def cut(shift_mm: float) -> np.memmap:
        points = {name: replace(point, mm=point.mm + shift_mm) for name, point in study.marks.items()}
        crop = grader_data.store(group, TASK, plan, [(study, points)], tmp_path).crops[0]
        assert isinstance(crop, np.memmap)
        return crop

    first, moved, again = cut(0.0), cut(0.5), cut(0.0)
    assert first.filename == again.filename != moved.filename
    assert np.array_equal(first, again) and not np.array_equal(first, moved)


QUIET = Augmentation(rotation_deg=0, scale=0, shift_mm=0, gamma=0, contrast=0, noise=0, blur=0, mirror=False)


def test_a_crop_is_centred_on_its_point_and_absent_views_are_marked(tmp_path):
    data = graded(tmp_path, "foraminal", "foramen", "sag_t1", QUIET)
    batch = data.batch([0], np.random.default_rng(0), CPU, augment=False)
    middle = batch.crops[0][:, batch.crops[0].shape[1] // 2]
    for crop in middle:
        row, column = np.unravel_index(int(crop.argmax()), crop.shape)
        assert abs(row - 23.5) < 2.6 and abs(column - 23.5) < 2.6  # 1 mm pixels on 1.6 mm voxels
    assert batch.present.all()
    recess = graded(tmp_path, "subarticular", "recess", "axi_t2", QUIET)
    present = recess.batch([0], np.random.default_rng(0), CPU, augment=False).present
    assert present[:, 0].all() and not present[:, 1].any()


def test_a_smaller_batch_shows_the_same_field(tmp_path):
    """What is in the middle of a full image is in the middle of a smaller one, and as large in mm."""
    data = graded(tmp_path, "spinal", "canal", "sag_t2", WILD)
    whole = data.batch([0], np.random.default_rng(3), CPU, augment=True)
    small = data.smaller(2 / 3).batch([0], np.random.default_rng(3), CPU, augment=True)
    view = next(i for i, crop in enumerate(whole.crops) if crop.amax() > 0.5)
    large, little = whole.crops[view], small.crops[view]
    assert little.shape[-2:] == (32, 32) and large.shape[-2:] == (48, 48)
    again = torch.nn.functional.interpolate(large, size=(32, 32), mode="bilinear", align_corners=False)
    assert (again - little).abs().max() < 0.05 * large.amax()
    plan = replace(data.plan, pixels=32)  # another plan that reads fewer pixels of the same stored crops
    begun = data.for_plan(plan).batch([0], np.random.default_rng(3), CPU, augment=True)
    assert torch.equal(begun.crops[view], little)
    training = Training(epochs=5, batch=1, lr=1)
    resized = data.for_plan(replace(data.plan, training=training, resizing=Resizing(epochs=2, share=2 / 3)))
    assert [resized.in_epoch(epoch).size for epoch in range(5)] == [(32, 32)] * 2 + [(48, 48)] * 3


def test_a_measured_error_moves_the_crop_by_itself(tmp_path):
    data = graded(tmp_path, "foraminal", "foramen", "sag_t1", QUIET).with_errors(np.array([[4.0, 5.0, -7.0]]))
    batch = data.batch([0], np.random.default_rng(0), CPU, augment=True)
    for site, crops in enumerate(batch.crops[0]):
        depth = crops.flatten(1).amax(1).argmax()
        row, column = np.unravel_index(int(crops[depth].argmax()), (48, 48))
        # the crop moved by +5 mm to the back and 7 mm to the feet, so the ball lies 5 to the front and 7 up
        assert abs(row - (23.5 - 7)) < 2.8 and abs(column - (23.5 - 5)) < 2.8
        # one slice (4 mm) too far to the left: a right site's slices run to the left, a left site's are mirrored
        assert int(depth) == (1 if data.grader.sites[site].side == "right" else 3)


def test_the_any_severe_term_puts_sites_of_a_study_together(tmp_path):
    """The loss of a batch equals the metric loss on the table (studies, sites), also where sites are missing."""
    recipe = RECIPES["lumbar-mr-small"]()
    group = TASK.graders[0]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    labels = torch.tensor([0, 2, 1, 0, 0, 1, 1, 0])
    batch = grader_data.GraderBatch(
        (),
        torch.ones(8, 2, dtype=torch.bool),
        labels,
        study=torch.tensor([0] * 5 + [1] * 3),
        head_labels=torch.zeros(8, 0, dtype=torch.long),
        weight=torch.ones(8),
    )

    class Fixed(torch.nn.Module):
        def forward(self, crops, present):
            return logits

    plan = dataclasses.replace(recipe.graders["spinal"][0], label_smoothing=0.0)
    value = grader_loss.grader_loss(group, recipe, plan)(Fixed(), batch)
    table, known = torch.zeros(2, 5, 3), torch.full((2, 5), -1)
    table[0], known[0] = logits[:5], labels[:5]
    table[1, :3], known[1, :3] = logits[5:], labels[5:]
    assert torch.allclose(value, metric_loss(table, known, torch.tensor(TASK.class_weights)), atol=1e-6)


def test_stored_points_are_the_marks(tmp_path):
    study = loaded("canal", "sag_t2")
    stage = TASK.locators[0]
    plan = LocatorPlan(net={}, pixels=96, training=TRAINING)
    data = locator_data.store(stage, plan, [study], tmp_path)
    batch = data.batch([0], np.random.default_rng(0), CPU, augment=False)
    first = round(float(data.items[0].points[0, 0])) - plan.window // 2
    volume = study.volumes["sag_t2"][0]
    for place, mark in zip(batch.points[0], data.landmarks, strict=True):
        d = float(place[0]) + np.clip(first, 0, volume.voxels.shape[0] - plan.window)
        assert abs(d - to_index(volume, study.marks[mark.name].mm)[0]) < 1e-3
