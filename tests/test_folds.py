"""Folds: no patient in two, rare grades spread, written once and never repaired."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.learning.recipes import RECIPES
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study

TASK = TASKS["lumbar-mr"]


def studies_of(count: int, patients: int, severe: set[int]) -> list[Study]:
    target = TASK.graders[0].sites[0].target
    return [
        Study(f"{i:03d}", f"p{i % patients}", (), labels={target: 2 if i % patients in severe else 0})
        for i in range(count)
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 60), st.integers(5, 10), st.integers(2, 5), st.integers(0, 99))
def test_no_patient_lies_in_two_folds_and_every_study_in_one(count, patients, folds_wanted, seed):
    studies = studies_of(count, patients, {0, 1})
    split = folds.assign(TASK, studies, folds_wanted, seed)
    assert set(split.fold) == {study.id for study in studies}
    for k in range(folds_wanted):
        held = {study.patient for study in split.held_out(studies, k)}
        assert held.isdisjoint(study.patient for study in split.training(studies, k))
        assert held


def test_rare_severe_grades_are_spread_over_the_folds():
    studies = studies_of(100, 100, set(range(10)))
    split = folds.assign(TASK, studies, 5, seed=3)
    severe = [sum(2 in study.labels.values() for study in split.held_out(studies, k)) for k in range(5)]
    assert severe == [2] * 5


def test_a_few_patients_whose_grades_are_all_rarer_than_the_folds_are_split_as_well():
    task = TASKS["knee-xray"]
    studies = [Study(f"{i:03d}", f"p{i}", (), labels={task.targets[0]: i % 3}) for i in range(6)]
    split = folds.assign(task, studies, 4, seed=0)
    assert sorted(set(split.fold.values())) == [0, 1, 2, 3]


def test_the_same_seed_gives_the_same_folds_in_any_order_of_studies():
    studies = studies_of(40, 40, {1, 2, 3})
    again = folds.assign(TASK, studies[::-1], 4, seed=5)
    assert dict(folds.assign(TASK, studies, 4, seed=5).fold) == dict(again.fold)
    assert dict(folds.assign(TASK, studies, 4, seed=6).fold) != dict(again.fold)


def test_a_saved_split_is_read_back_and_refused_for_other_data(tmp_path: Path):
    studies = studies_of(20, 20, {1})
    split = folds.assign(TASK, studies, 4, seed=0)
    folds.save(split, tmp_path / "folds.csv")
    assert folds.load(tmp_path / "folds.csv", studies) == split
    with pytest.raises(ValueError, match="differ in"):
        folds.load(tmp_path / "folds.csv", studies[1:])


def test_folds_that_part_what_the_data_say_is_one_patient_are_refused(tmp_path: Path):
    studies = studies_of(20, 20, {1})
    folds.save(folds.assign(TASK, studies, 4, seed=0), tmp_path / "folds.csv")
    one = [Study(study.id, "P1" if i < 8 else study.patient, ()) for i, study in enumerate(studies)]
    with pytest.raises(UserError, match="of one patient into different folds: P1"):
        folds.load(tmp_path / "folds.csv", one)


def test_a_table_saved_by_a_spreadsheet_is_read_and_a_broken_line_is_named(tmp_path: Path):
    studies, path = studies_of(8, 8, {1}), tmp_path / "folds.csv"
    split = folds.assign(TASK, studies, 4, seed=0)
    folds.save(split, path)
    text = path.read_text()
    path.write_text(text.replace(",", ";"), encoding="utf-16")
    assert folds.read(path) == split
    path.write_text(text + "x,y\n")
    with pytest.raises(UserError, match="line 10: expected a study"):
        folds.read(path)


def test_a_table_that_tears_a_patient_apart_is_refused(tmp_path: Path):
    studies = studies_of(4, 2, set())
    (tmp_path / "folds.csv").write_text("study_id,patient,fold\n000,p0,0\n001,p1,0\n002,p0,1\n003,p1,0\n")
    with pytest.raises(ValueError, match="more than one fold"):
        folds.load(tmp_path / "folds.csv", studies)


def test_fewer_patients_than_folds_is_said_plainly():
    with pytest.raises(ValueError, match="3 patients cannot fill 5 folds"):
        folds.assign(TASK, studies_of(9, 3, set()), 5, seed=0)


def test_rarity_tells_the_groups_with_a_severe_grade():
    labels = {TASK.graders[1].sites[0].target: 2, TASK.graders[0].sites[0].target: 1}
    assert folds.rarity(TASK, Study("a", "a", (), labels=labels)) == "010"
    assert np.unique([folds.rarity(TASK, s) for s in studies_of(4, 4, {0})]).tolist() == ["000", "100"]


def test_every_class_is_spread_where_a_study_has_one_label(tmp_path: Path):
    """One grade per film, both films of a patient alike: each grade lies in each fold as often as patients allow."""
    task = TASKS["knee-xray"]
    studies = [
        Study(f"{p}{side}", str(p), (), labels={target: p % 5})
        for p in range(100)
        for side, target in zip("RL", task.targets, strict=True)
    ]
    split = folds.assign(task, studies, 5, seed=1)
    for k in range(5):
        grades = [next(iter(study.labels.values())) for study in split.held_out(studies, k)]
        assert np.bincount(grades, minlength=5).tolist() == [8] * 5


def test_rarity_tells_the_worst_class_where_a_group_has_few_sites():
    task = TASKS["knee-xray"]
    right, left = task.targets
    keys = [folds.rarity(task, Study("a", "a", (), labels=of)) for of in ({}, {right: 3}, {right: 0, left: 4})]
    assert keys == ["-", "3", "4"]


def test_a_study_named_twice_is_refused(tmp_path: Path):
    (tmp_path / "folds.csv").write_text("study_id,patient,fold\na,a,0\na,a,0\n")
    with pytest.raises(ValueError, match="2 lines name 1 studies"):
        folds.read(tmp_path / "folds.csv")


def test_folds_of_another_folder_are_taken_as_they_are_or_refused_in_one_line(tmp_path: Path):
    """``--folds-of``: members of an ensemble are trained on the same folds."""
    recipe = RECIPES["knee-siamese-small"]()
    first, out = tmp_path / "first", tmp_path / "out"
    studies = [Study(f"{9000000 + i}R", str(9000000 + i), (), {"right": i % 5}, targets=("right",)) for i in range(40)]
    folds.save(folds.assign(recipe.task, studies, 5, seed=3), first / folds.FILE)
    folds.check_taken(first, out, recipe)
    folds.take(first, out)
    assert (out / folds.FILE).read_bytes() == (first / folds.FILE).read_bytes()
    folds.check_taken(first, out, recipe)  # again, as with --resume
    for change, told in (
        (lambda: folds.check_taken(tmp_path, out, recipe), "no folds.csv in it"),
        (lambda: folds.check_taken(first, out, recipe, debug=True), "leave one of the two out"),
        (lambda: folds.check_taken(first, out, recipe.shrunk()), "5 folds, recipe 'knee-siamese-small' has 2"),
    ):
        with pytest.raises(UserError, match=told):
            change()
    folds.save(folds.assign(recipe.task, studies, 5, seed=4), out / folds.FILE)
    with pytest.raises(UserError, match="not the folds of"):
        folds.check_taken(first, out, recipe)


def test_classes_of_fewer_patients_than_folds_are_named(caplog):
    folds.assign(TASK, studies_of(30, 30, {0, 1, 2}), 5, 0)
    assert "classes of fewer patients than the 5 folds" in caplog.text
    assert f"{TASK.classes[2]} (3)" in caplog.text
    assert TASK.classes[0] not in caplog.text


def test_patients_called_alike_but_for_zeros_or_capitals_stay_apart_and_are_told_in_one_line():
    def studies(*patients: str) -> list[Study]:
        return [Study(f"s{i}", patient, ()) for i, patient in enumerate(patients)]

    line = folds.spelling_line(studies("7", "007", "P1", "p1", "q02", "q2", "8"))
    assert line.startswith("3 names of patients are written in several ways") and len(line.splitlines()) == 1
    assert "007 and 7, P1 and p1, ...;" in line and "each counts as a patient of its own" in line
    assert folds.spelling_line(studies("7", "17", "P1", "P11", "a", "b")) == ""
    assert folds.spelling_line(studies("7", "07")).startswith("1 name of a patient is written in several ways")
