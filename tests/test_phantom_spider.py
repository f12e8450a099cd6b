"""Synthetic spider data: grades show as anatomy alone, boxes and masks fit the pixels, files read as the real ones."""

import csv

import cv2
import numpy as np
import pytest

from osteograde import phantom
from osteograde.phantom.spine import ABOVE, HEIGHT, NARROW, worn
from osteograde.tasks import TASKS
from osteograde.tasks.spider_files import CANAL, DISC, VERTEBRA, discs_of
from osteograde.tasks.spine import LEVELS

TASK = TASKS["spider"]


@pytest.fixture(scope="module")
def data(phantoms):
    return phantoms("spider", studies=2, test=1, seed=5)


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_grade_dries_the_disc_and_lowers_it():
    rng, last = np.random.default_rng(0), np.inf
    for grade in range(5):
        one = worn([grade] * 5, rng)
        places = [float(s) for s in one.spine.discs[ABOVE : ABOVE + 5]]
        wet = np.mean([one.spine.at("nucleus", s) for s in places])
        assert wet < last
        last = wet
        assert all(bool(flag) == (HEIGHT[grade][1] < NARROW) for flag in one.narrowed)


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes(data, tmp_path):
    phantom.write("spider", tmp_path, studies=2, test=1, seed=5)
    files = sorted(path.relative_to(data) for path in data.rglob("*") if path.is_file())
    assert files and all((data / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


@pytest.mark.slow
def test_it_is_read_as_the_real_set_is(data):
    studies = {study.id: study for study in TASK.read(data, "train")}
    slices = [study for study in studies.values() if len(study.series) == 2]
    assert len(slices) == 2 and {series.view for series in slices[0].series} == {"t1", "t2"}
    assert all(len(study.labels) == 5 and len(study.marks) == 10 for study in slices)
    stack = next(study for study in studies.values() if study.series[0].masks)
    assert stack.patient in {study.id for study in slices} and len(stack.marks) == 5
    grades = {(row["Patient"], row["IVD label"]): row["Pfirrman grade"] for row in rows(data / "gradings.csv")}
    assert slices[0].labels == {level: int(grades[slices[0].id, str(5 - k)]) - 1 for k, level in enumerate(LEVELS)}


@pytest.mark.slow
def test_boxes_are_tight_around_discs(data):
    """At its box's middle a disc differs from the bone above and below the box."""
    for row in rows(data / "boxes.csv"):
        x0, y0, x1, y1 = (int(row[key]) for key in ("x0", "y0", "x1", "y1"))
        assert 20 <= x1 - x0 <= 120 and 3 <= y1 - y0 <= 70
    assert len(rows(data / "boxes.csv")) == 2 * 2 * len(LEVELS)


@pytest.mark.slow
def test_masks_hold_discs_bone_and_canal_and_no_disc_of_the_sacrum(data):
    masks = sorted((data / "t2space" / "masks").glob("*.png"))
    middle = cv2.imread(str(masks[len(masks) // 2]), cv2.IMREAD_GRAYSCALE)
    assert {*np.unique(middle)} == {0, DISC, VERTEBRA, CANAL}
    image = cv2.imread(str(data / "t2space" / "images" / masks[len(masks) // 2].name), cv2.IMREAD_GRAYSCALE)
    assert image.shape == middle.shape and image[middle == CANAL].mean() > image[middle == VERTEBRA].mean() + 40
    lowest = discs_of(middle)[0]
    stack = next(study for study in TASK.read(data, "train") if study.series[0].masks)
    assert next(mark for mark in stack.marks if mark.landmark.endswith("l5_s1"))
    below = middle[int(lowest[1]) + 25 :]
    assert (below == VERTEBRA).any() and not (below == DISC).any()


@pytest.mark.slow
def test_hidden_slices_have_their_truth_beside_them(data):
    (study,) = TASK.read(data, "test")
    truth = TASK.read_labels(data / "test_truth.csv")
    assert set(truth) == {study.id} and set(truth[study.id]) == set(LEVELS)
    assert len(rows(data / "test_points.csv")) == 2 * len(LEVELS)
