"""Published sets of knee crops: each knee counts once, and what is held back is scored and never learnt from."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde import cli, train_command
from osteograde.errors import UserError
from osteograde.tasks import TASKS

TASK = TASKS["knee-xray"]
NAMES = {
    "train": {"0": ("9000001L", "9000001R"), "3": ("9000002L",)},
    "val": {"1": ("9000003R",)},
    "test": {"2": ("9000004L", "9000004R"), "4": ("9000005R",)},
    "auto_test": {"2": ("9000004_1", "9000004_2")},
}
ABOVE = ("", "ClsKLData", "KneeXrayData/ClsKLData", "unzipped/KneeXrayData/ClsKLData")


def write(root: Path, sizes=(224, 299), above: str = "ClsKLData", ending: str = ".png") -> Path:
    for size in sizes:
        pixels = np.tile(np.linspace(0, 255, size).astype(np.uint8), (size, 1))
        for split, grades in NAMES.items():
            for grade, names in grades.items():
                folder = root / above / f"kneeKL{size}" / split / grade
                folder.mkdir(parents=True)
                for name in names:
                    cv2.imwrite(str(folder / f"{name}{ending}"), pixels)
    return root


LEARNT = {"9000001L", "9000001R", "9000002L", "9000003R"}


@pytest.mark.parametrize("above", ABOVE)
def test_both_resolutions_are_one_set_of_knees_and_what_is_held_back_is_not_learnt_from(tmp_path, caplog, above):
    caplog.set_level(logging.INFO)
    studies = TASK.read(write(tmp_path, above=above), "train")
    assert {study.id for study in studies} == LEARNT
    assert all("kneeKL299" in str(study.series[0].files[0]) for study in studies)
    assert {study.patient for study in studies} == {"9000001", "9000002", "9000003"}
    assert "9 images lie there in a larger resolution as well" in caplog.text
    assert "to learn from: train 3, val 1; held back and never learnt from: test 3, auto_test 2" in caplog.text


@pytest.mark.parametrize("root", ["ClsKLData", "ClsKLData/kneeKL224", "ClsKLData/kneeKL299"])
def test_the_folder_of_one_resolution_or_of_both_is_read_alike(tmp_path, root):
    assert {study.id for study in TASK.read(write(tmp_path) / root, "train")} == LEARNT


def test_a_single_resolution_without_its_folder_is_read_too(tmp_path):
    write(tmp_path, sizes=(299,), above="")
    (tmp_path / "kneeKL299").rename(tmp_path / "knees")
    assert {study.id for study in TASK.read(tmp_path / "knees", "train")} == LEARNT


def test_splits_that_are_held_back_are_refused_for_training_by_themselves_too(tmp_path):
    root = write(tmp_path, sizes=(299,)) / "ClsKLData" / "kneeKL299"
    for split in ("test", "auto_test"):
        with pytest.raises(UserError, match=f"held back for scores \\({split} "):
            TASK.read(root / split, "train")
    assert {study.id for study in TASK.read(root / "val", "train")} == {"9000003R"}


def test_a_patient_of_what_is_held_back_is_learnt_from_nowhere(tmp_path, caplog):
    root = write(tmp_path, sizes=(299,))
    folder = root / "ClsKLData" / "kneeKL299"
    (folder / "test" / "4" / "9000005R.png").rename(folder / "train" / "0" / "9000005L.png")
    (folder / "auto_test" / "2" / "9000005_1.png").write_bytes((folder / "train" / "0" / "9000005L.png").read_bytes())
    assert {study.id for study in TASK.read(root, "train")} == LEARNT
    assert "1 images outside of these splits show their patients: left out" in caplog.text


def test_folders_called_test_that_hold_no_grades_are_no_split(tmp_path):
    for name in ("test/2/9000001L", "site/test/9000002L"):
        path = tmp_path / "2" / f"{name.replace('/', '_')}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.eye(299, dtype=np.uint8))
    assert len(TASK.read(tmp_path, "train")) == 2


def test_grading_counts_each_knee_once_in_all_splits(tmp_path):
    studies = TASK.read(write(tmp_path), "test")
    assert len(studies) == sum(len(names) for grades in NAMES.values() for names in grades.values())
    auto = {study.id: (study.patient, study.targets) for study in studies if "auto_test" in str(study.series[0].files)}
    assert auto == {"9000004_1": ("9000004", ("right",)), "9000004_2": ("9000004", ("left",))}


def test_a_submission_is_scored_on_the_split_that_is_asked_for(tmp_path, capsys):
    write(tmp_path)
    rows = {"9000004L_left": 2, "9000004R_right": 2, "9000005R_right": 0, "9000001L_left": 0, "9000004_1_right": 2}
    lines = [f"{row}," + ",".join("1" if k == grade else "0" for k in range(5)) for row, grade in rows.items()]
    out = tmp_path / "out.csv"
    out.write_text("row_id," + ",".join(TASK.classes) + "\n" + "\n".join(lines) + "\n")
    words = ["score", TASK.name, "--data", str(tmp_path), "--submission", str(out), "--bootstrap", "0"]
    for split, studies, right in (("test", 3, 2), ("auto_test", 1, 1), ("train", 1, 1)):
        assert cli.main([*words, "--split", split]) == 0
        assert f"knee-xray: {studies} studies of {split}" in capsys.readouterr().out
        assert cli.main([*words, "--split", split, "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["studies"] == studies and found["score"]["accuracy"] == pytest.approx(right / studies)
    other = tmp_path / "other.csv"
    other.write_text("row_id," + ",".join(TASKS["knee-progression"].classes) + "\n9000004L_left,0.5,0.5\n")
    for said, told in (
        ([*words, "--split", "val"], "none of the 5 submitted studies is one of the 1 of split val"),
        ([*words, "--split", "other"], "no images in grade folders of a split 'other'"),
        (["score", "knee-progression", *words[2:5], str(other), "--split", "test"], "no published splits"),
    ):
        with pytest.raises(UserError, match=told):
            cli.main(said)


def test_a_training_says_what_it_learns_from_before_anything_else(tmp_path, capsys, monkeypatch):
    def stop(args, studies):
        raise UserError(f"stopped with {len(studies)}")

    monkeypatch.setattr(train_command, "check_folds", stop)
    words = ["train", TASK.name, "--data", str(write(tmp_path / "in")), "--out", str(tmp_path / "out"), "--debug"]
    with pytest.raises(UserError, match="stopped with 4"):
        cli.main(words)
    assert "never learnt from: test 3, auto_test 2" in capsys.readouterr().out
