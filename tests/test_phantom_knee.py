"""Synthetic knees: the grade shows as anatomy, films say exactly where the joints are, files are as real ones."""

import csv
from itertools import pairwise

import numpy as np
import pydicom
import pytest

from osteograde import phantom
from osteograde.imaging.dicom.radiograph import read_film
from osteograde.phantom.dicom_writer import write_film
from osteograde.phantom.knee import knee
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import compose, films

TASK = TASKS["knee-xray"]


def gap_px(crop):
    """Missing brightness across the joint line, in rows of bone, on the narrower of both sides."""
    side, gaps = crop.shape[1], []
    for columns in (slice(int(side * 0.30), int(side * 0.36)), slice(int(side * 0.64), int(side * 0.70))):
        profile = crop[side // 2 - 16 : side // 2 + 17, columns].astype(float).mean(1)
        bone = np.percentile(profile, 75)
        gaps.append(np.clip(bone - profile, 0, None).sum() / bone)
    return min(gaps)


def test_joint_space_falls_with_the_grade_and_brightness_tells_nothing():
    rng = np.random.default_rng(0)
    grades = np.repeat(np.arange(5), 24)
    crops = [knee(int(grade), rng) for grade in grades]
    gaps = np.array([gap_px(crop) for crop in crops])
    means = [gaps[grades == grade].mean() for grade in range(5)]
    assert all(wider > narrower + 0.2 for wider, narrower in pairwise(means))
    brightness = [crop.mean() for crop in crops]
    assert abs(np.corrcoef(brightness, grades)[0, 1]) < 0.25


def test_an_unknown_grade_is_refused():
    with pytest.raises(ValueError, match="grade 5; expected 0 to 4"):
        knee(5, np.random.default_rng(0))


def dotted():
    """A dim crop with a bright dot at its centre, which is the joint."""
    crop = np.full((299, 299), 60, np.uint8)
    crop[:2] = 40  # so that there is contrast to stretch
    crop[146:153, 146:153] = 255
    return crop


@pytest.mark.parametrize("layout", ["bilateral", "single"])
def test_joints_are_exactly_where_the_film_says(layout):
    shown = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sides = ["right", "left"] if layout == "bilateral" else ["left"]
        film = compose([(dotted(), side) for side in sides], rng, layout=layout)
        for x, y in film.joints.values():
            row, column = round(y), round(x)
            patch = film.pixels[max(row - 9, 0) : row + 10, max(column - 9, 0) : column + 10].astype(float)
            if patch.shape != (19, 19) or patch.max() < 1.3 * np.median(patch):
                continue  # at the border, or as bright as what lies around it
            weight = np.clip(patch - (patch.max() + np.median(patch)) / 2, 0, None)
            rows, columns = np.indices(patch.shape)
            found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
            np.testing.assert_allclose(found, [x - column + 9, y - row + 9], atol=0.7)
            shown += 1
    assert shown >= 8


def test_knees_of_a_bilateral_film_lie_on_their_own_halves():
    for seed in range(8):
        film = compose([(dotted(), "right"), (dotted(), "left")], np.random.default_rng(seed))
        middle = film.pixels.shape[1] / 2
        assert film.joints.get("right", (0, 0))[0] < middle
        assert film.joints.get("left", (1e9, 0))[0] > middle


def test_films_depend_on_the_rng_alone_and_empty_ones_have_no_joints():
    one, two = (compose([(dotted(), "left")], np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one.pixels, two.pixels) and one.joints == two.joints
    assert compose([], np.random.default_rng(1)).joints == {}
    with pytest.raises(ValueError, match="each side once"):
        compose([(dotted(), "left"), (dotted(), "left")], np.random.default_rng(1))


@pytest.mark.parametrize("monochrome1", [False, True])
def test_a_film_of_either_polarity_reads_bone_bright_with_its_spacing(tmp_path, monochrome1):
    pixels = compose([(dotted(), "right")], np.random.default_rng(2)).pixels
    path = tmp_path / "film.dcm"
    write_film(path, pixels, 0.5, "77", monochrome1=monochrome1)
    film = read_film(path)
    assert film.pixel_mm == (0.5, 0.5)
    np.testing.assert_array_equal(
        np.argsort(film.pixels[0, :50], kind="stable"), np.argsort(pixels[0, :50], kind="stable")
    )
    assert pydicom.dcmread(path).PhotometricInterpretation == ("MONOCHROME1" if monochrome1 else "MONOCHROME2")


def test_a_data_set_is_read_back_as_it_was_written(tmp_path):
    phantom.write("knee-xray", tmp_path, studies=6, test=4, seed=3)
    train, test = TASK.read(tmp_path, "train"), TASK.read(tmp_path, "test")
    assert 6 <= len(train) <= 12 and len({study.patient for study in train}) == 6
    assert len(test) == 4 and all(not study.labels for study in test)
    truth = TASK.read_labels(tmp_path / "test_truth.csv")
    assert set(truth) <= {study.id for study in test}
    with (tmp_path / "test_points.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert {f"{p['study']}_{p['side']}" for p in points} == {f"{s}_{side}" for s, of in truth.items() for side in of}
    assert all(load_study(study, TASK).readable for study in test)


def test_every_graded_knee_of_a_film_is_one_that_its_reader_asks_about(tmp_path):
    phantom.write("knee-xray", tmp_path, studies=0, test=24, seed=3)
    asked = {f"{study.id}_{side}" for study in TASK.read(tmp_path, "test") for side in study.targets or TASK.targets}
    with (tmp_path / "test_truth.csv").open(newline="") as file:
        assert {row["row_id"] for row in csv.DictReader(file)} <= asked


@pytest.mark.slow
def test_practice_films_belong_to_the_patients_they_were_made_of_and_come_out_the_same(tmp_path, monkeypatch):
    phantom.write("knee-xray", tmp_path / "data", studies=5, seed=1)
    studies = TASK.read(tmp_path / "data", "train")
    first = films(studies, tmp_path / "films", np.random.default_rng(0), share=0.01)
    bytes_of = {path.name: path.read_bytes() for path in (tmp_path / "films").iterdir()}
    monkeypatch.setattr("osteograde.tasks.knee_films.compose", None)  # nothing is composed twice
    again = films(studies, tmp_path / "films", np.random.default_rng(0), share=0.01)
    assert bytes_of == {path.name: path.read_bytes() for path in (tmp_path / "films").iterdir()}
    assert repr([study.marks for study in first]) == repr([study.marks for study in again])
    assert [study.id for study in first] == [study.id for study in again] and len(first) == 15
    patients = {study.patient for study in studies}
    for study in first:
        loaded = load_study(study, TASK)
        assert study.patient in patients or not loaded.marks
        assert set(study.targets) == {*loaded.marks, *loaded.absent}
        of_patient = {
            side: grade for one in studies if one.patient == study.patient for side, grade in one.labels.items()
        }
        assert study.labels == {side: of_patient[side] for side in loaded.marks}
        for mark in study.marks:
            if not np.isnan(mark.x):
                (volume,) = loaded.volumes["film"]
                height, width = volume.voxels.shape[1:]
                assert -0.5 < mark.x < width - 0.5 and -0.5 < mark.y < height - 0.5
