"""Labels of progression meet the knees they belong to, and nothing that is unknown becomes an answer."""

import logging

import cv2
import numpy as np
import pytest

from osteograde import phantom
from osteograde.errors import UserError
from osteograde.tasks import TASKS
from osteograde.tasks.covariates import value_of
from osteograde.tasks.knee_progression import read_labels, read_rows

TASK = TASKS["knee-progression"]
KNEES = TASKS["knee-xray"]


def crop(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.tile(np.linspace(0, 255, 299), (299, 1)).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name in ("2/9000099L.png", "0/9000099R.png", "3/9000200R.png", "1/9000300L.png"):
        crop(tmp_path / "train", name)
    return tmp_path


def write(folder, text, name="labels.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def studies(folder, part="train"):
    return {study.id: study for study in TASK.read(folder, part)}


def test_a_row_labels_the_knee_of_its_patient_and_side(folder):
    write(folder, "patient,side,progressed,kl\n9000099,L,1,2\n9000099,R,0,0\n9000200,right,0,3\n")
    found = studies(folder)
    assert {name: study.labels for name, study in found.items()} == {
        "9000099L": {"left": 1},
        "9000099R": {"right": 0},
        "9000200R": {"right": 0},
    }


def test_knees_that_the_table_does_not_name_are_not_learnt_from_and_counted(folder, caplog):
    write(folder, "patient,side,progressed\n9000099,L,1\n9000999,L,0\n")
    with caplog.at_level(logging.INFO, logger="osteograde.tasks"):
        assert set(studies(folder)) == {"9000099L"}
    assert (
        "1 knees have an image, of which 1 progressed and 0 did not; 1 have none; 3 images are not used" in caplog.text
    )


def test_the_published_form_gives_the_course_and_the_answer(folder):
    write(folder, "patient,side,kl,kl_increase,progressor\n9000099,L,2,1,1\n9000099,R,0,0,0\n9000200,R,3,1,2\n",
          "progression.csv")  # fmt: skip
    found = studies(folder)
    assert [found[name].labels for name in sorted(found)] == [{"left": 1}, {"right": 0}, {"right": 1}]
    assert [found[name].head_labels["course"] for name in sorted(found)] == [{"left": 1}, {"right": 0}, {"right": 2}]


def test_the_table_may_lie_in_the_folder_beside_the_images(folder):
    images = folder / "knees"
    crop(images, "train/2/9000099L.png")
    (folder / "knee-progression").mkdir()
    write(folder / "knee-progression", "patient,side,progressor\n9000099,L,2\n", "progression.csv")
    assert studies(images)["9000099L"].labels == {"left": 1}


def test_a_row_without_an_answer_teaches_its_grade_alone(folder):
    write(folder, "patient,side,progressed,kl\n9000099,L,1,\n9000200,R,,4\n")
    found = studies(folder)
    assert found["9000200R"].labels == {} and found["9000200R"].head_labels["kl"] == {"right": 4}
    assert found["9000200R"].head_labels["course"] == {}
    assert found["9000099L"].head_labels["kl"] == {"left": 2}  # of its folder


def test_covariates_of_the_table_are_those_of_the_knee(folder):
    write(folder, "patient,side,progressed,kl,age,sex,bmi\n9000099,L,1,2,61,Female,\n9000099,R,0,0,61,female,31.5\n")
    found = studies(folder)
    known = {one.name: one for one in TASK.covariates}
    assert value_of(known["kl"], found["9000099L"], "left") == 2
    assert value_of(known["sex"], found["9000099L"], "left") == 0
    assert np.isnan(value_of(known["bmi"], found["9000099L"], "left"))
    assert value_of(known["bmi"], found["9000099R"], "right") == 31.5
    assert np.isnan(value_of(known["injury"], found["9000099R"], "right"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("patient,side\n1,L\n", "no column progressed or progressor"),
        ("patient,side,progressed\n1,M,1\n", "no side"),
        ("patient,side,progressed\n1,L,3\n", "expected one of 0, 1"),
        ("patient,side,progressed\n1,L,1\n1,L,0\n", "rows contradict each other"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected):
        read_rows(write(tmp_path, text) / "labels.csv")


def test_training_without_a_table_and_a_table_without_images_are_told(folder):
    with pytest.raises(UserError, match=r"no table labels.csv or progression.csv"):
        TASK.read(folder, "train")
    write(folder, "patient,side,progressed\n77,L,1\n")
    with pytest.raises(UserError, match=r"no image shows a knee of this table \(77 left\)"):
        TASK.read(folder, "train")


def test_grading_looks_at_no_label_and_no_folder_name(folder):
    write(folder, "patient,side,progressed,kl\n9000099,L,1,2\n")
    found = studies(folder, "test")
    assert len(found) == 4
    assert all(not one.labels and not one.head_labels and not one.covariates for one in found.values())


def test_crops_and_joints_are_those_of_the_grade(folder):
    assert TASK.locators == KNEES.locators and TASK.views == KNEES.views
    assert TASK.graders[0].crops == KNEES.graders[0].crops[:1]


def test_truth_is_read_by_row(tmp_path):
    path = write(tmp_path, "row_id,progressed\na_left,1\na_right,0\nb_left,\n", "test_truth.csv") / "test_truth.csv"
    assert read_labels(path) == {"a": {"left": 1, "right": 0}}
    with pytest.raises(UserError, match="names no side"):
        read_labels(write(tmp_path, "row_id,progressed\na,1\n", "x.csv") / "x.csv")


def test_phantoms_are_read_with_labels_and_covariates(tmp_path):
    phantom.write("knee-progression", tmp_path, studies=12, test=2, seed=3)
    learnt = list(studies(tmp_path).values())
    assert {label for study in learnt for label in study.labels.values()} == {0, 1}
    assert all({"kl", "age", "sex"} <= set(study.covariates) for study in learnt)
    unseen = list(studies(tmp_path, "test").values())
    assert len(unseen) == 2 and all(set(study.covariates["kl"]) == {"right", "left"} for study in unseen)
    truth = read_labels(tmp_path / "test_truth.csv")
    assert set(truth) == {study.id for study in unseen}


def test_phantoms_progress_by_what_the_image_and_by_what_the_table_shows():
    from osteograde.phantom.progression_dataset import patient

    knees = [(one, k) for i in range(1500) for one in [patient(np.random.default_rng([5, i]), i)] for k in one.knees]
    progresses = np.array([knee.progresses for _, knee in knees])
    factors = {
        "width": np.array([knee.joint.space_mm[1] for _, knee in knees]),
        "bmi": np.array([one.bmi for one, _ in knees]),
        "injury": np.array([knee.injured for _, knee in knees], float),
        "alignment": np.array([-knee.alignment_deg for _, knee in knees]),
    }
    for name, values in factors.items():
        gap = values[progresses].mean() - values[~progresses].mean()
        assert gap > 0.15 * values.std(), name
