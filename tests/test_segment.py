"""Disc masks from coordinates lie between their vertebrae and turn with the spine; label images lie where the scan
does; the command writes both for weights whose locator labels pixels, and refuses others."""

import csv
import gzip
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde import cli
from osteograde.errors import UserError
from osteograde.imaging import nifti
from osteograde.imaging.geometry import Volume, affine, to_index
from osteograde.imaging.volume_files import read_volume
from osteograde.learning import train
from osteograde.learning.recipe import Start
from osteograde.learning.recipes import RECIPES
from osteograde.models.locators.unet import SegmentingLocator
from osteograde.pipeline.crops import region_grids
from osteograde.pipeline.disc_masks import CANAL, DISC, VERTEBRA, bare_ellipse, disc_masks
from osteograde.pipeline.load import load_study
from osteograde.pipeline.predict import Nets
from osteograde.pipeline.segment import label_image, segment_study
from osteograde.tasks import TASKS

TASK = TASKS["spider"]
(STAGE,) = TASK.locators
CPU = torch.device("cpu")
SHAPE, MIDDLE = (300, 200), (150.0, 80.0)


def spine(degrees: float, gap: float = 8.0, tall: float = 26.0, wide: float = 34.0):
    """(labels, true discs, centres): blocks 26 mm tall with gaps of 8 mm and a canal behind, turned about the middle;
    1 mm pixels."""
    rows, columns = np.indices(SHAPE).astype(float)
    angle = np.deg2rad(degrees)
    down, across = rows - MIDDLE[0], columns - MIDDLE[1]
    v, u = np.cos(angle) * down + np.sin(angle) * across, np.cos(angle) * across - np.sin(angle) * down
    step = gap + tall
    place = (v + step * 50) % step - step / 2  # 0 at the middle of a disc
    is_disc = (np.abs(place) < gap / 2) & (np.abs(u) < wide / 2)
    is_bone = (np.abs(place) >= gap / 2) & (np.abs(u) < wide / 2)
    labels = np.where(is_bone, VERTEBRA, 0)
    labels[(u > wide / 2 + 2) & (u < wide / 2 + 14)] = CANAL
    centres = [
        (MIDDLE[0] + k * step * np.cos(angle), MIDDLE[1] + k * step * np.sin(angle)) for k in (-1.5, -0.5, 0.5, 1.5)
    ]
    number = np.where(is_disc, np.floor(v / step + 2).astype(int), -1)
    return labels.astype(np.uint8), [number == k for k in range(4)], centres


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("degrees", [0, 15, -25, 40])
def test_a_disc_fills_the_gap_between_its_vertebrae_however_the_spine_is_turned(degrees):
    labels, truth, centres = spine(degrees)
    found = disc_masks(labels, (1.0, 1.0), centres)
    for one, true, centre in zip(found, truth, centres, strict=True):
        assert one.source == "vertebrae"
        assert not (labels[one.mask] > 0).any()
        assert dice(one.mask, true) > 0.9
        assert dice(one.mask, true) > dice(bare_ellipse(SHAPE, (1.0, 1.0), centre), true) + 0.05


def test_a_taller_gap_makes_a_taller_disc():
    heights = []
    for gap in (5.0, 8.0, 12.0):
        labels, _, centres = spine(10, gap, 34 - gap)
        heights.append(disc_masks(labels, (1.0, 1.0), centres)[1].mask.sum())
    assert heights[0] < 0.75 * heights[1] < 0.6 * heights[2]


@settings(max_examples=15, deadline=None)
@given(st.floats(-35, 35), st.floats(-2, 2), st.floats(-5, 5), st.floats(0.5, 1.0))
def test_a_centre_that_is_off_by_millimetres_does_not_matter(degrees, down, along, size):
    labels, truth, centres = spine(degrees)
    scaled = cv2.resize(labels, None, fx=1, fy=1 / size, interpolation=cv2.INTER_NEAREST)  # pixels are not square
    moved = [((r + down + 0.5) / size - 0.5, c + along) for r, c in centres]
    found = disc_masks(scaled, (size, 1.0), moved)
    for one, true in zip(found, truth, strict=True):
        back = cv2.resize(one.mask.astype(np.uint8), SHAPE[::-1], interpolation=cv2.INTER_NEAREST) > 0
        assert dice(back, true) > 0.6


def test_below_the_last_vertebra_a_disc_is_as_high_as_above_and_without_any_it_is_an_ellipse():
    labels, truth, centres = spine(0)
    labels[round(centres[-1][0]) :] = 0
    found = disc_masks(labels, (1.0, 1.0), centres)
    assert found[-1].source == "one vertebra" and dice(found[-1].mask, truth[-1]) > 0.85
    empty = disc_masks(np.zeros(SHAPE, np.uint8), (1.0, 1.0), centres)
    assert [one.source for one in empty] == ["ellipse"] * 4
    assert dice(empty[1].mask, bare_ellipse(SHAPE, (1.0, 1.0), centres[1])) == 1
    assert disc_masks(labels, (1.0, 1.0), [None, None]) == [None, None]


def test_masks_of_neighbours_do_not_overlap():
    close = [(100.0, 80.0), (106.0, 80.0)]
    first, second = disc_masks(np.zeros(SHAPE, np.uint8), (1.0, 1.0), close)
    assert first.mask.any() and second.mask.any() and not (first.mask & second.mask).any()


def test_written_labels_lie_where_the_scan_does(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 4, (5, 7, 9), np.uint8)
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    volume = Volume(voxels, affine(np.array([3.0, -40, 12]), axes, np.array([4.0, 0.5, 0.75])))
    path = tmp_path / "a.nii.gz"
    nifti.write_labels(path, volume)
    again = read_volume(path)
    assert len(gzip.decompress(path.read_bytes())) == 352 + voxels.size
    for index in ((0, 0, 0), (4, 6, 8), (1, 5, 2)):
        place = tuple(np.rint(to_index(again, (volume.to_mm @ [*index, 1])[:3])).astype(int))
        assert again.voxels[place] == voxels[index]
        np.testing.assert_allclose((again.to_mm @ [*place, 1])[:3], (volume.to_mm @ [*index, 1])[:3], atol=1e-3)


class Threshold(SegmentingLocator):
    """A net that knows the truth: grey values stand for classes."""

    def __init__(self):
        super().__init__(5, 1, 4)

    def segment(self, images):
        classes = (images[:, 1] * 4).round().clamp(0, 3).long()
        return torch.nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).float() * 20


@pytest.fixture(scope="module")
def data(phantoms):
    return phantoms("spider", studies=5, seed=5)


@pytest.mark.slow
def test_labels_of_the_net_s_pixels_lie_on_the_pixels_of_the_file(data):
    study = next(one for one in TASK.read(data, "train") if one.series[0].masks)
    loaded = load_study(study, TASK)
    (volume,) = loaded.volumes["t2"]
    classes = np.zeros(volume.voxels.shape, np.uint8)
    classes[1:, 40:200, 60:90], classes[:, 80:120, 100:160] = 2, 3
    drawn = replace(volume, voxels=(classes * 64).astype(np.uint8))
    placed = region_grids(STAGE, {"t2": (drawn,), "t1": ()}, {}, 256)[0]
    found = label_image(placed, Nets([Threshold()], 256, CPU))
    assert found.shape == classes.shape
    assert (found == classes).mean() > 0.97


@pytest.mark.slow
def test_discs_of_a_study_lie_at_its_points_and_nowhere_else(data):
    study = next(one for one in TASK.read(data, "train") if one.series[0].masks)
    loaded = load_study(study, TASK)
    (one,) = segment_study(STAGE, loaded, loaded.marks, Nets([Threshold()], 128, CPU))
    assert one.view == "t2" and {disc.landmark for disc in one.discs} == set(loaded.marks)
    for name, point in loaded.marks.items():
        z, row, column = np.rint(to_index(one.labels, point.mm)).astype(int)
        assert one.labels.voxels[z, row, column] == DISC, name
    (none,) = segment_study(STAGE, loaded, {}, Nets([Threshold()], 128, CPU))
    assert not (none.labels.voxels == DISC).any() and not none.discs


@pytest.mark.slow
def test_the_command_writes_label_images_at_given_points(data, tmp_path, monkeypatch, capsys):
    recipe = RECIPES["spider-unet"]().shrunk()
    recipe = recipe.map_plans(lambda _, plan: replace(plan, start=Start()))
    weights = tmp_path / "weights"
    train.train(recipe, data, weights, only=(0,), device=CPU, resume=False)
    study = next(one for one in TASK.read(data, "train") if one.series[0].masks)
    mark = study.marks[0]
    points = tmp_path / "points.csv"
    points.write_text(
        f"study_id,landmark,series,file,x,y\n{study.id},{mark.landmark},{mark.series},{mark.instance}.png,{mark.x},{mark.y}\n"
    )
    out = tmp_path / "out"
    told = cli.main(["segment", "spider", "--weights", str(weights), "--data", str(data), "--out", str(out),
                     "--points", str(points), "--device", "cpu"])  # fmt: skip
    assert told == 0
    rows = list(csv.DictReader((out / "discs.csv").open(encoding="utf-8")))
    given = [row for row in rows if (row["study_id"], row["landmark"]) == (study.id, mark.landmark)]
    assert given and all(float(row["area_mm2"]) > 0 and row["confidence"] == "1.000" for row in given)
    volume = read_volume(out / f"{study.id}_t2.nii.gz")
    assert set(np.unique(volume.voxels)) <= {0, 1, 2, 3} and (volume.voxels == DISC).any()
    picture = cv2.imread(str(out / f"{study.id}_t2" / f"{given[0]['slice']}.png"), cv2.IMREAD_UNCHANGED)
    assert picture.ndim == 2 and picture.max() <= 3


@pytest.mark.slow
def test_weights_that_label_no_pixel_are_refused(data, tmp_path):
    args = ["segment", "spider", "--weights", "weights/spider", "--data", str(data), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="heatmap, which labels no pixels"):
        cli.main(args)
    assert not (tmp_path / "out").exists()
