"""Label images reach the batches a locator learns from, in the same place as the pixels they label."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d

from osteograde.imaging.geometry import Roi, Volume, affine, roi_at
from osteograde.imaging.image_files import read_pixels
from osteograde.imaging.resample import crop_stack
from osteograde.learning import locator_data, loop
from osteograde.learning.augment import draw_move, resample
from osteograde.learning.cache import cached
from osteograde.learning.recipe import Augmentation, LocatorPlan, Training
from osteograde.learning.recipes import RECIPES
from osteograde.models.bundle import build_net
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Series, Study
from osteograde.tasks.spider_files import of_masks
from tests.logs import logged

TASK = TASKS["spider"]
(STAGE,) = TASK.locators
CPU = torch.device("cpu")
WILD = Augmentation(rotation_deg=25, scale=0.2, shift_mm=25, gamma=0, contrast=0, noise=0, blur=0)
PLAN = LocatorPlan(
    net={"kind": "unet"}, pixels=96, training=Training(epochs=1, batch=1, lr=1), window=5, augmentation=WILD
)
DISC, VERTEBRA, CANAL = 1, 2, 3


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def blocks(z: float, size: tuple[int, int] = (150, 130)) -> np.ndarray:
    """A slice (H, W) with five discs of 1 and a canal of 3 that lie elsewhere on every slice, alike in no mirror."""
    labels = np.zeros(size, np.uint8)
    for k in range(5):
        top, left = round(12 + 26 * k + 0.8 * z), round(20 + 6 * k + 0.5 * z)
        labels[top : top + 12, left : left + 30] = DISC
    labels[:, round(95 + 0.6 * z) : round(107 + 0.6 * z)] = CANAL
    return labels


def study(folder: Path, count: int = 9, step_mm: float = 4.0, name: str = "1", masked: bool = True) -> Study:
    """Slices that are bright exactly where they are labelled."""
    drawn = [blocks(z * step_mm / 4 - count * step_mm / 8) for z in range(count)]
    stems = [f"{name}_t2_SPACE_slice{z}" for z in range(count)]
    ground = np.random.default_rng(0).integers(0, 40, drawn[0].shape, np.uint8)  # one value alone would be padding
    pixels = [np.where(d > 0, 220, ground).astype(np.uint8) for d in drawn]
    files = tuple(write(folder / "images" / f"{s}.png", one) for s, one in zip(stems, pixels, strict=True))
    labels = tuple(write(folder / "masks" / f"{s}.png", one) for s, one in zip(stems, drawn, strict=True))
    series = Series(f"{name}_t2_SPACE", "t2", folder / "images", files, (step_mm, 1.5, 1.5), masks=labels)
    shown = series if masked else replace(series, masks=())
    return Study(name, name, (shown,), marks=tuple(of_masks(series)))


def stored(folder: Path, *studies: Study, plan: LocatorPlan = PLAN) -> locator_data.LocatorData:
    loaded = [load_study(one, TASK) for one in studies]
    return locator_data.store(STAGE, plan, loaded, folder / "work")


def agreement(batch) -> tuple[float, int]:
    """(share, count) of known pixels away from borders at which the threshold of the image is the label."""
    bright = (batch.images[:, 1] > 0.5).float()[:, None]
    spread = max_pool2d(bright, 3, 1, 1) + max_pool2d(-bright, 3, 1, 1)  # 0 within an area, 1 on its border
    counted = (batch.masks >= 0) & (spread[:, 0] == 0)
    return float(((batch.masks > 0) == (bright[:, 0] > 0))[counted].float().mean()), int(counted.sum())


@pytest.mark.parametrize(("count", "step_mm"), [(9, 4.0), (37, 0.9), (40, 1.0)])
def test_moved_labels_lie_on_the_pixels_they_label(tmp_path, count, step_mm):
    data = stored(tmp_path, study(tmp_path, count, step_mm))
    shares, discs = [], 0
    for seed in range(25):
        batch = data.batch([0, 0], np.random.default_rng(seed), CPU, augment=True)
        assert batch.masks.shape == batch.images[:, 0].shape and batch.masks.dtype == torch.int64
        assert set(batch.masks.unique().tolist()) <= {-1, 0, DISC, CANAL}
        share, counted = agreement(batch)
        assert counted > 1000
        shares.append(share)
        discs += int((batch.masks == DISC).sum())
    assert min(shares) > 0.95
    assert discs > 5000


def test_the_measure_above_tells_shifted_slices_and_mirrored_labels(tmp_path):
    data = stored(tmp_path, study(tmp_path))
    batch = data.batch([0], np.random.default_rng(0), CPU, augment=False)
    assert agreement(batch)[0] > 0.99
    assert agreement(replace(batch, masks=batch.masks.flip(-1)))[0] < 0.95
    assert agreement(replace(batch, masks=batch.masks.flip(1)))[0] < 0.95
    assert agreement(replace(batch, masks=batch.masks.roll(2, 0)))[0] < 0.99


def test_points_of_discs_lie_on_pixels_labelled_disc(tmp_path):
    data = stored(tmp_path, study(tmp_path))
    seen = 0
    for seed in range(20):
        batch = data.batch([0], np.random.default_rng(seed), CPU, augment=True)
        for point in batch.points[0]:
            if torch.isfinite(point).all():
                d, row, column = (int(v) for v in point.round())
                assert batch.masks[d, row, column] == DISC
                seen += 1
    assert seen > 40


def test_studies_without_label_images_are_unknown_beside_others_that_have_them(tmp_path):
    data = stored(tmp_path, study(tmp_path, 5), study(tmp_path, 9, name="2", masked=False))
    batch = data.batch([0, 1], np.random.default_rng(1), CPU, augment=True)
    assert (batch.masks[batch.stack == 0] >= 0).any()
    assert (batch.masks[batch.stack == 1] == -1).all()
    only = data.of({"2"}).batch([0], np.random.default_rng(1), CPU, augment=False)
    assert (only.masks == -1).all()


def test_what_lies_outside_the_image_is_unknown(tmp_path):
    data = stored(tmp_path, study(tmp_path))
    batch = data.batch([0], np.random.default_rng(0), CPU, augment=False)
    # 150 rows fill the field, 130 columns leave 10 of 150 on both sides: 6.4 of the 96 pixels
    assert (batch.masks[:, :, :6] == -1).all() and (batch.masks[:, :, -6:] == -1).all()
    assert (batch.masks[:, :, 8:-8] >= 0).all()


@pytest.mark.parametrize("kind", ["heatmap", "faster_rcnn"])
def test_nets_that_do_not_segment_read_no_label_image(tmp_path, kind):
    one = study(tmp_path)
    for path in one.series[0].masks:
        path.write_bytes(b"no image")
    data = stored(tmp_path, one, plan=replace(PLAN, net={"kind": kind}))
    assert data.labels is None
    assert data.batch([0], np.random.default_rng(0), CPU, augment=True).masks is None
    assert [path.name.split(".")[::2] for path in (tmp_path / "work").iterdir()] == [["disc", "u8"]]


def test_label_images_change_no_other_part_of_a_batch(tmp_path):
    one = study(tmp_path)
    plain = stored(tmp_path / "a", one, plan=replace(PLAN, net={}))
    told = stored(tmp_path / "b", one)
    for augment in (True, False):
        a, b = (data.batch([0, 0], np.random.default_rng(5), CPU, augment=augment) for data in (plain, told))
        for name, value in vars(a).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.nan_to_num(), vars(b)[name].nan_to_num()), name


@pytest.mark.parametrize("count", [5, 24, 26])
def test_a_slab_has_the_label_image_of_its_middle_slice(tmp_path, count):
    one = study(tmp_path, count, 0.8)  # five slices of 0.8 mm make one of 4
    (volume,) = load_study(one, TASK).volumes["t2"]
    labels = locator_data.label_volume(one, volume)
    first = count % 5 // 2 + 2
    wanted = [read_pixels(path) for path in one.series[0].masks[first::5]][: count // 5]
    assert labels.voxels.shape == volume.voxels.shape
    assert np.array_equal(labels.voxels, np.stack(wanted))
    assert np.array_equal(labels.to_mm, volume.to_mm)


def test_studies_from_the_cache_have_the_same_labels(tmp_path):
    one = study(tmp_path, 37, 0.9)
    (fresh,) = load_study(one, TASK).volumes["t2"]
    for _ in range(2):
        (kept,) = cached(one, TASK, tmp_path / "cache").volumes["t2"]
        assert np.array_equal(locator_data.label_volume(one, kept).voxels, locator_data.label_volume(one, fresh).voxels)


def test_label_images_that_do_not_fit_are_named(tmp_path):
    one = study(tmp_path)
    (volume,), (series,) = load_study(one, TASK).volumes["t2"], one.series
    with pytest.raises(ValueError, match="8 label images for 9 files"):
        locator_data.label_volume(replace(one, series=(replace(series, masks=series.masks[:8]),)), volume)
    write(series.masks[4], blocks(0, (150, 131)))
    with pytest.raises(ValueError, match=r"slice4.png: .*\(150, 131\).*\(150, 130\)"):
        locator_data.label_volume(one, volume)
    write(series.masks[4], blocks(0).astype(np.uint16) + 300)
    with pytest.raises(ValueError, match=r"slice4.png: .* holds 303"):
        locator_data.label_volume(one, volume)
    series.masks[4].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"slice4.png: .*not_an_image"):
        locator_data.label_volume(one, volume)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.4, 1.6), st.floats(-30, 30))
def test_cut_labels_are_the_threshold_of_the_cut_image(seed, spacing, shift):
    """A box on the slices of a stack, partly outside of it, against the sampler of the images."""
    rng = np.random.default_rng(seed)
    axes = np.array(TASK.view("t2").directions)
    bright = cv2.resize(rng.random((6, 5)), (50, 60), interpolation=cv2.INTER_CUBIC)
    voxels = np.stack([bright, bright.T.reshape(60, 50), 1 - bright]) > 0.5
    grid = affine(np.array([3.0, -9, 5]), axes, np.array([4.0, 1, 1]))
    image, labels = (Volume(voxels.astype(np.uint8) * value, grid) for value in (255, 1))
    centre = image.centre_mm + axes[1] * shift - axes[2] * shift / 2
    roi = roi_at(centre, axes, np.array([4.0, spacing, spacing]), (5, 40, 44))
    found = locator_data.cut_labels(labels, roi)
    inside = crop_stack(replace(image, voxels=np.full_like(image.voxels, 255)), roi, CPU, 1).numpy()
    assert ((found == locator_data.UNKNOWN) == (inside < 0.25))[(inside < 0.2) | (inside > 0.8)].all()
    shade = crop_stack(image, roi, CPU, 1).numpy()
    sure = (inside > 0.999) & ((shade < 0.2) | (shade > 0.8))  # nearer to the voxel than to any of another label
    assert np.array_equal(found[sure], shade[sure] > 0.5)


def test_without_labels_every_place_of_a_box_is_unknown():
    cut = locator_data.cut_labels(None, Roi(np.eye(4), (2, 3, 4)))
    assert cut.shape == (2, 3, 4) and (cut == locator_data.UNKNOWN).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 5.0]))
def test_labels_move_as_images_move(seed, elastic_mm):
    rng = np.random.default_rng(seed)
    bright = cv2.resize(rng.random((5, 5)), (70, 70), interpolation=cv2.INTER_CUBIC) > 0.5
    labels = torch.from_numpy(bright.astype(np.uint8))[None, None]
    move = draw_move(rng, 1, replace(WILD, elastic_mm=elastic_mm), 1.0, (70, 70))
    moved, image = locator_data.resample_labels(labels, move, (48, 48)), resample(labels * 255, move, (48, 48))
    inside = resample(torch.full_like(labels, 255), move, (48, 48))
    assert ((moved == locator_data.UNKNOWN) == (inside == 0))[(inside == 0) | (inside > 0.999)].all()
    sure = (inside > 0.999) & ((image < 0.2) | (image > 0.8))
    assert torch.equal(moved[sure], (image[sure] > 0.5).to(torch.uint8))
    assert set(locator_data.classes_of(moved).unique().tolist()) <= {-1, 0, 1}


def test_a_segmenting_recipe_learns_from_label_images(tmp_path):
    plan = RECIPES["spider-unet"]().shrunk().locators[STAGE.name]
    data = stored(tmp_path, study(tmp_path, 21, 0.9, "1"), study(tmp_path, 5, 4.0, "2", masked=False), plan=plan)
    losses, known = [], []

    def loss(net, batch):
        known.append(float((batch.masks >= 0).float().mean()))
        losses.append(net.loss(batch))
        return losses[-1]

    job = loop.Job(STAGE.name, 0, 3, CPU, tmp_path / "net.pt")
    with logged("learning") as lines:
        net = loop.train(lambda: build_net(dict(plan.net)), plan, data, data.of({"1"}), loss, job, resume=False)
    training = plan.training
    assert len(lines) == training.epochs and len(losses) >= training.epochs * training.steps
    assert all(torch.isfinite(value) for value in losses)
    assert max(known) > 0.3
    assert not net.training
