"""A debug run grades: its locators find next to nothing, so crops lie at annotated points, and the table says so."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from debug_recipes import debug_run, graders_at_prior

from osteograde import phantom
from osteograde.learning import folds, out_of_fold, train
from osteograde.learning.cross_fit import Fold, Run
from osteograde.learning.out_of_fold import OutOfFold
from osteograde.learning.recipes import NAMES, RECIPES
from osteograde.tasks.spec import Point


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knee-xray"])
def test_out_of_fold_rows_of_a_debug_run_differ_from_the_prior(tmp_path, name):
    recipe = RECIPES[name]()
    phantom.write(recipe.task.name, tmp_path / "data", studies=5, seed=17)
    said = debug_run(recipe, tmp_path / "data", tmp_path / "out")
    assert graders_at_prior(recipe.task, tmp_path / "out" / "oof.csv") == []
    assert "rows were graded at annotated points, because nothing was found there" in said


def test_rows_that_hold_the_prior_of_their_fold_alone_are_noticed(tmp_path):
    task = RECIPES["spider"]().task
    (grader,) = task.graders
    header = ["row_id", *task.classes, "fold"]
    rows = [[f"{study}_{target}", *["0.2"] * len(task.classes), "0"] for study in "ab" for target in task.targets]
    file: Path = tmp_path / "oof.csv"
    file.write_text("\n".join(",".join(row) for row in [header, *rows]))
    assert graders_at_prior(task, file) == [grader.name]
    rows[0][1] = "0.3"
    file.write_text("\n".join(",".join(row) for row in [header, *rows]))
    assert graders_at_prior(task, file) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_full_run_grades_at_found_points_alone_and_a_debug_run_of_any_recipe_at_annotated_ones_too(name):
    recipe = RECIPES[name]()
    assert not recipe.scope.annotated_points and recipe.shrunk().scope.annotated_points


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Knees with their crop's centre as annotated point."""
    folder = tmp_path_factory.mktemp("knees")
    phantom.write("knee-xray", folder, studies=3, seed=17)
    return RECIPES["knee-xray"]().task.read(folder, "train")


def run_of(studies, folder, *, annotated):
    recipe = RECIPES["knee-xray"]()
    recipe = replace(recipe, scope=replace(recipe.scope, annotated_points=annotated))
    split = folds.Split({one.id: 0 for one in studies}, {one.id: one.patient for one in studies})
    return Run(recipe, studies, [], split, (0,), folder, torch.device("cpu"), False)


@pytest.mark.parametrize("annotated", [True, False])
def test_a_site_without_a_found_point_is_graded_at_the_annotated_one_in_a_debug_run_alone(
    studies, tmp_path, monkeypatch, annotated
):
    run, first = run_of(studies, tmp_path, annotated=annotated), studies[0]
    (side,) = first.targets
    found = {one.id: {} for one in studies} | {first.id: {side: Point(np.array([1.0, 2.0, 3.0]), 0.9)}}
    judged = {}

    def predictions(stage, fold, held_out, points):
        judged.update(points)
        return [{} for _ in held_out]

    monkeypatch.setattr(out_of_fold, "cross_fit", lambda run, stage: [Fold(0, [], studies)])
    monkeypatch.setattr(out_of_fold, "cached_predictions", predictions)
    out_of_fold.grade_out_of_fold(run, found, found)
    np.testing.assert_array_equal(judged[first.id][side].mm, [1, 2, 3])  # what was found counts
    for one in studies[1:]:
        marks = run.loaded([one])[0].marks if annotated else {}
        assert judged[one.id].keys() == marks.keys()
        for name, mark in marks.items():
            np.testing.assert_array_equal(judged[one.id][name].mm, mark.mm)


def test_rows_that_were_graded_without_a_found_point_are_counted_and_others_are_not(studies, tmp_path):
    run = run_of(studies, tmp_path, annotated=True)
    found, lost, ungraded = studies[:3]
    points = {found.id: {found.targets[0]: Point(np.zeros(3), 0.9)}, lost.id: {}, ungraded.id: {}}
    graded = {one.id: {one.targets[0]: np.full(5, 0.2)} for one in (found, lost)} | {ungraded.id: {}}
    assert out_of_fold.graded_at_annotated(run, OutOfFold(points, points, graded)) == 1


def test_the_table_of_a_debug_run_says_how_many_rows_stand_on_annotated_points():
    values = {"accuracy": 0.5}
    grade = {"studies": 4, "model": values, "prior": values, "interval_95": {"accuracy": [0.1, 0.9]}}
    assert "annotated" not in train.table({"locate": {}, "grade": grade})
    said = train.table({"locate": {}, "grade": {**grade, "rows": 7, "rows_at_annotated_points": 3}})
    assert "debug run: 3 of 7 rows were graded at annotated points, because nothing was found there" in said
    assert "these scores say only that everything runs" in said
