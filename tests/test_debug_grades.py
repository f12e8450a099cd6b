"""A debug run grades: its locators find next to nothing, so crops lie at annotated points, and the table says so."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from debug_recipes import debug_run, graders_at_prior

from osteograde import phantom
from osteograde.learning.recipes import RECIPES


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


def test_a_full_run_grades_at_found_points_alone():
    recipe = RECIPES["spider"]()
    assert not recipe.scope.annotated_points and recipe.shrunk().scope.annotated_points
