"""A net planned from its data: the plan follows the fingerprint, patches see what a whole image shows, and classes that
a fold lacks are told apart from classes that the net misses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.errors import UserError
from osteograde.imaging.geometry import Volume, affine
from osteograde.learning import loop, planning, pseudo_dice
from osteograde.learning.locator_data import store
from osteograde.learning.planning import Fingerprint, decide, fingerprint_of
from osteograde.learning.recipes import RECIPES
from osteograde.models.bundle import build_net
from osteograde.models.locators.base import LocatorBatch
from osteograde.models.locators.planned_unet import PlannedUnet, normalised, patches
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Series, Study
from tests.logs import logged

TASK = TASKS["spider"]
(STAGE,) = TASK.locators
CPU = torch.device("cpu")
SEEN = Fingerprint(((4.0, 0.5, 0.5),) * 9, ((256.0, 256.0),) * 9, (15,) * 9, 0.8, (80.0, 40.0), {0: 9, 1: 9}, 9)


def net(**changes) -> PlannedUnet:
    config = {"channels": 5, "features": 4, "stages": 3, "patch": [32, 32]} | changes
    torch.manual_seed(0)
    return PlannedUnet(**config).eval()  # type: ignore[arg-type]


def batch_of(images: torch.Tensor, masks: torch.Tensor) -> LocatorBatch:
    count = len(images)
    return LocatorBatch(
        images=images,
        stack=torch.arange(count),
        points=torch.full((count, 5, 3), torch.nan),
        channel=torch.arange(5),
        side=torch.zeros(5, dtype=torch.long),
        lateral=torch.zeros(count, images.shape[-1]),
        pixel_mm=1.0,
        slice_mm=4.0,
        sigma_mm=5.0,
        masks=masks,
    )


def test_twice_the_spacing_makes_half_the_pixels():
    fine = decide(SEEN, 4096, 32, 1e12)
    coarse = decide(replace(SEEN, spacings_mm=((4.0, 1.0, 1.0),) * 9), 4096, 32, 1e12)
    assert (fine.pixels, coarse.pixels) == (512, 256)
    assert (fine.spacing_mm, coarse.spacing_mm) == (0.5, 1.0)
    assert coarse.stages < fine.stages or fine.stages == planning.MOST_STAGES


def test_the_median_image_decides_and_not_the_largest():
    odd = replace(SEEN, fields_mm=(*SEEN.fields_mm[:-1], (900.0, 900.0)))
    assert decide(odd, 4096, 32, 1e12) == decide(SEEN, 4096, 32, 1e12)
    wide = replace(SEEN, fields_mm=((384.0, 384.0),) * 9)
    assert decide(wide, 4096, 32, 1e12).pixels == 768


def test_a_smaller_budget_makes_patches_before_batches_of_one():
    whole, less, least = (decide(SEEN, 512, 32, budget) for budget in (8e8, 8e7, 2e7))
    assert whole.patch == (512, 512) and whole.batch > less.batch
    assert least.patch[0] < less.patch[0] <= 512 and least.batch >= planning.LEAST_BATCH
    assert {whole.pixels, less.pixels, least.pixels} == {512}
    for made in (whole, less, least):
        assert made.patch[0] % 2 ** (made.stages - 1) == 0
        assert planning.LEAST_BATCH * planning.cost(32, made.stages, made.patch[0]) <= 8e8


def test_a_batch_is_a_small_part_of_few_data():
    few = replace(SEEN, spacings_mm=SEEN.spacings_mm[:4], fields_mm=SEEN.fields_mm[:4], slices=(15,) * 4)
    assert decide(few, 512, 32, 1e12).batch == 3


def test_mostly_empty_images_are_normalised_by_what_is_not_empty():
    assert decide(SEEN, 512, 32, 8e8).normalisation == "slice"
    assert decide(replace(SEEN, filled=0.5), 512, 32, 8e8).normalisation == "nonzero"


@settings(max_examples=50, deadline=None)
@given(st.floats(0.2, 3), st.floats(40, 600), st.integers(32, 1024), st.floats(1e6, 1e10), st.integers(4, 48))
def test_every_plan_can_be_built(spacing, field, most, budget, features):
    seen = replace(SEEN, spacings_mm=((4.0, spacing, spacing),) * 9, fields_mm=((field, field),) * 9)
    made = decide(seen, most, features, budget)
    assert made.pixels <= max(most, 2 ** (made.stages - 1)) and made.patch[0] <= made.pixels
    assert made.patch[0] % 2 ** (made.stages - 1) == 0 and made.batch >= 2
    assert made.patch[0] / 2 ** (made.stages - 1) >= planning.SMALLEST_SIDE or made.stages == 1


def loaded(name: str, voxels: np.ndarray, spacing: tuple[float, float, float]) -> Loaded:
    grid = affine(np.zeros(3), np.array(TASK.view("t2").directions), np.array(spacing))
    volume = Volume(voxels, grid, series=name, names=tuple(map(str, range(len(voxels)))))
    return Loaded(Study(name, name, (Series(name, "t2", Path()),)), {"t2": (volume,), "t1": ()})


def test_a_fingerprint_says_what_the_images_are():
    voxels = np.zeros((3, 40, 80), np.uint8)
    voxels[:, :, :40] = 100
    found = fingerprint_of(STAGE, [loaded("a", voxels, (4, 0.5, 0.5)), loaded("b", voxels, (4, 1.0, 1.0))])
    assert found.spacings_mm == ((4, 0.5, 0.5), (4, 1, 1)) and found.slices == (3, 3)
    assert found.fields_mm == ((40, 40), (80, 80))  # a square over the longer side
    assert found.filled == pytest.approx(0.25) and found.grey == pytest.approx((100, 0))
    assert found.labelled == 0 and not found.census


def test_a_recipe_is_planned_once_and_its_net_is_built_from_the_plan():
    recipe = RECIPES["spider-nnunet"]().shrunk()
    studies = [loaded("a", np.full((9, 100, 100), 50, np.uint8), (4, 2, 2))]
    made = planning.planned_recipe(recipe, studies).locators["disc"]
    assert made.net["patch"] == [made.pixels] * 2 == [64, 64] and made.net["stages"] == 5
    assert made.net["spacing_mm"] == pytest.approx(200 / 64)
    assert build_net(made.net).config["patch"] == [64, 64]  # type: ignore[index]
    assert planning.planned(made, STAGE, []) is made
    plain = RECIPES["spider-unet"]().locators["disc"]
    assert planning.planned(plain, STAGE, []) is plain


def test_patches_cover_the_image_and_overlap():
    covered = np.zeros((70, 50), int)
    for rows, columns in patches((70, 50), (32, 48)):
        assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 48)
        covered[rows, columns] += 1
    assert covered.min() >= 1 and covered[30:40].min() >= 2


def test_an_image_of_one_patch_is_seen_as_a_whole():
    one = net()
    images = torch.rand(2, 4, 32, 32)
    whole = one._whole(normalised(images, "slice"))
    torch.testing.assert_close(one.segment(images), whole)
    smaller = torch.rand(2, 4, 30, 27)
    assert one.segment(smaller).shape == (2, 4, 30, 27)


def test_patches_of_an_image_agree_with_the_whole_where_a_net_sees_no_farther():
    """Convolutions of one pixel see the same in every patch, so the weighted mean over patches is the whole."""
    one = net(stages=2, patch=[16, 16])
    seen = torch.nn.Conv2d(4, 4, 1)
    one.__dict__["_whole"] = seen
    images = torch.rand(2, 4, 40, 52)
    with torch.inference_mode():
        torch.testing.assert_close(one.segment(images), seen(normalised(images, "slice")))


@pytest.mark.parametrize("kind", ["slice", "nonzero"])
def test_brightness_and_contrast_of_a_slice_do_not_matter(kind):
    images = torch.rand(2, 4, 20, 20) + 0.1
    images[:, :3, :6] = 0
    other = images.clone()
    other[:, :3] = images[:, :3] * 0.3
    torch.testing.assert_close(normalised(images, kind), normalised(other, kind))
    assert torch.equal(normalised(images, kind)[:, 3], images[:, 3])


def test_a_third_of_the_patches_lies_around_the_foreground():
    one = net(patch=[16, 16]).train()
    shares = torch.zeros(9, 4, 128, 128)
    shares[:, 0], shares[:, 2, 5:9, 5:9] = 1, 1
    for seed in range(5):
        torch.manual_seed(seed)
        images, cut, _ = one._patches_of(torch.rand(9, 4, 128, 128), shares, torch.zeros(9, 2, 128, 128))
        assert images.shape[-2:] == (16, 16)
        assert cut[6:, 2].flatten(1).any(1).all()


def test_every_resolution_learns_and_the_loss_falls():
    one = net(features=8).train()
    torch.manual_seed(0)
    masks = torch.zeros(6, 32, 32, dtype=torch.long)
    masks[:, 8:14, 8:24], masks[:, 18:26, 8:24] = 1, 2
    images = torch.rand(6, 4, 32, 32) * 0.1
    images[:, :3] += masks[:, None] * 0.4
    batch = batch_of(images, masks)
    optimiser = torch.optim.SGD(one.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(45):
        optimiser.zero_grad()
        value = one.loss(batch)
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None for name, p in one.named_parameters() if not name.startswith("heads.1"))
    found = one.eval().segment(images).argmax(1)
    assert (found == masks).float().mean() > 0.95


@pytest.fixture(scope="module")
def studies(phantoms) -> list[Loaded]:
    data = phantoms("spider", studies=5, seed=5)  # two of five patients have a stack with masks
    return [load_study(study, TASK) for study in TASK.read(data, "train")]


@pytest.fixture(scope="module")
def data(studies, tmp_path_factory):
    plan = RECIPES["spider-unet"]().shrunk().locators["disc"]
    return store(STAGE, plan, studies, tmp_path_factory.mktemp("work"))


@pytest.mark.slow
def test_the_census_counts_regions_of_each_class(data):
    assert pseudo_dice.class_census(data, 4).tolist() == [2, 2, 2, 2]


@pytest.mark.slow
def test_a_training_fold_without_a_class_is_refused_and_a_held_out_one_is_told(data):
    names = {item.study for item in data.items}
    masked = sorted(item.study for item in data.items if item.labelled)
    with pytest.raises(UserError, match=r"fold 3: its training studies show class \[1, 2, 3\]"):
        pseudo_dice.refuse_missing_classes(data, {3: (names - set(masked), set(masked))}, 4)
    with logged("learning") as lines:
        pseudo_dice.refuse_missing_classes(data, {0: (names - {masked[0]}, {masked[0]})}, 4)
        assert lines == []
        pseudo_dice.refuse_missing_classes(data, {0: (set(masked), names - set(masked))}, 4)
    assert lines == ["disc fold 0: class 1, 2, 3 is in no held-out label image; its Dice is nan there"]


def test_dice_of_an_absent_class_is_nan_and_of_a_missed_one_0():
    true = torch.tensor([[[1, 1, 0, 0, -1, -1]]])
    found = torch.tensor([[[1, 0, 0, 3, 2, 1]]])
    counts = pseudo_dice.class_counts(found, true, 4)
    values = pseudo_dice.dice(*counts)
    assert values[1] == pytest.approx(2 / 3)  # unknown pixels do not count
    assert np.isnan(values[2]) and np.isnan(values[3])
    missed = pseudo_dice.dice(*pseudo_dice.class_counts(found * 0, true, 4))
    assert missed[1] == 0


@pytest.mark.slow
def test_the_log_of_every_epoch_tells_the_dice(data, tmp_path):
    plan = RECIPES["spider-unet"]().shrunk().locators["disc"]
    job = loop.Job("disc", 0, 0, CPU, tmp_path / "net.pt")
    masked = data.of({item.study for item in data.items if item.labelled})

    def loss(one, batch):
        return one.loss(batch)

    def watch(one, epoch):
        return pseudo_dice.measured(masked, plan, job, one, epoch)

    with logged("learning") as lines:
        loop.train(lambda: build_net(dict(plan.net)), plan, data, None, loss, job, resume=False, after_epoch=watch)
    told = [line.rpartition("pseudo-Dice ")[2].split() for line in lines]
    assert len(told) == plan.training.epochs and all(len(one) == 3 and float(one[0]) >= 0 for one in told)


def test_the_rate_falls_polynomially():
    plan = RECIPES["spider-nnunet"]().locators["disc"]
    rates = [loop.rate(plan, step, 10) for step in (0, 500, 999)]
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9, 0.01 * 0.001**0.9])
