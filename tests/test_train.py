"""Training from nothing to a manifest, and the same once more with a kill in the middle."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osteograde import phantom
from osteograde.errors import UserError
from osteograde.learning import train
from osteograde.learning.recipe import Recipe
from osteograde.learning.recipes import NAMES, RECIPES
from osteograde.models import bundle
from osteograde.models.bundle import KINDS
from osteograde.tasks import TASKS
from tests.logs import logged

CPU = torch.device("cpu")
STUDIES = 2  # one to learn from and one to judge by in each of two folds
KEPT = ("folds.csv", "oof.csv", "oof_points.csv", "manifest.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    phantom.write("lumbar-mr", folder, studies=STUDIES, seed=31)
    return folder


def run(data: Path, out: Path, *, resume: bool = False, only=None) -> dict:
    recipe = RECIPES["lumbar-mr-small"]().shrunk()
    return train.train(recipe, data, out, only=only, device=CPU, resume=resume)


def read(folder: Path) -> dict[str, bytes]:
    files = [*(folder / name for name in KEPT), *sorted(folder.glob("*/*/fold*.safetensors"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_every_file_ends_the_same(data, tmp_path):
    whole = tmp_path / "whole"
    scores = run(data, whole)
    assert len(read(whole)) == 4 + 12

    with (
        logged("learning", stop=lambda line: line.startswith("foraminal fold 0 epoch 1")),
        pytest.raises(KeyboardInterrupt),
    ):
        run(data, tmp_path / "killed")
    assert not (tmp_path / "killed" / "manifest.json").exists()
    with logged("learning") as lines:
        assert run(data, tmp_path / "killed", resume=True) == scores
    assert read(tmp_path / "killed") == read(whole)
    # finished nets are not trained again
    assert not any(line.startswith(("canal fold", "spinal fold")) for line in lines)

    loaded = bundle.load(whole, TASKS, CPU)
    assert all(len(nets) == 2 for nets in {**loaded.locators, **loaded.graders}.values())
    check_tables(whole, data)
    assert "median mm" in train.table(scores)
    graded = scores["grade"]
    assert graded["rows_at_annotated_points"] == graded["rows"] == STUDIES * 25  # debug locators find nothing
    with pytest.raises(ValueError, match="finished weights are here"):
        run(data, whole)


def check_tables(out: Path, data: Path) -> None:
    """Every study is in the out-of-fold table once per target, with the fold that did not see it."""
    task = TASKS["lumbar-mr"]
    folds = {row["study_id"]: row["fold"] for row in csv.DictReader((out / "folds.csv").open(newline=""))}
    rows = list(csv.DictReader((out / "oof.csv").open(newline="")))
    assert [row["row_id"] for row in rows] == [row for study in sorted(folds) for row in task.rows(study)]
    for row in rows:
        assert row["fold"] == folds[row["row_id"].split("_")[0]]
        assert abs(sum(float(row[name]) for name in task.classes) - 1) < 1e-4
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["data"]["source"].startswith("synthetic")
    assert manifest["scores"]["grade"]["studies"] == len(folds)
    low, high = manifest["scores"]["grade"]["interval_95"]["foraminal"]
    assert low <= manifest["scores"]["grade"]["model"]["foraminal"] <= high
    points = list(csv.DictReader((out / "oof_points.csv").open(newline="")))
    assert {row["study_id"] for row in points} == set(folds)
    assert all(np.isfinite(float(row["true_x_mm"])) for row in points if row["true_x_mm"])


@pytest.mark.slow
def test_folds_that_the_recipe_does_not_have_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="has folds 0 to 1"):
        run(data, tmp_path, only=(5,))


def test_the_names_of_recipes_are_those_of_the_recipes():
    assert list(NAMES) == list(RECIPES)


@pytest.fixture(scope="module")
def kinds() -> dict[str, str]:
    """Config of a net as JSON -> the kind of what was built of it. Recipes share nets; a large one takes seconds."""
    return {}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_recipe_names_every_stage_and_is_plain_data(name, kinds):
    recipe = RECIPES[name]()
    json.dumps(recipe.plain())
    for plan in (plan for plans in recipe.plans().values() for plan in plans):
        key = json.dumps(plan.net, sort_keys=True)
        kinds[key] = kinds.get(key) or bundle.config_of(plan.net)["kind"]
        assert kinds[key] in KINDS
    assert (recipe.name, recipe.task.name) == (name, NAMES[name])
    with pytest.raises(ValueError, match="has"):
        Recipe(name="x", task=recipe.task, locators={}, graders=recipe.graders)


def test_the_data_s_own_source_is_kept_with_numbers_as_texts(tmp_path):
    recipe = RECIPES["spider"]()
    assert train.provenance(tmp_path, recipe) == recipe.source
    (tmp_path / train.PROVENANCE).write_text('{"source": "phantoms", "seed": 5}')
    assert train.provenance(tmp_path, recipe) == {"source": "phantoms", "seed": "5"}
    for broken in ('{"source": ["phantoms"]}', "[]", "{"):
        (tmp_path / train.PROVENANCE).write_text(broken)
        with pytest.raises(UserError, match=train.PROVENANCE):
            train.provenance(tmp_path, recipe)


def test_a_resumed_run_with_another_recipe_is_refused_and_the_change_is_named(tmp_path):
    """What an earlier call left was trained by other choices: it must not pass for the work of this recipe."""
    recipe = RECIPES["lumbar-mr-small"]()
    train._keep_recipe(recipe, tmp_path, resume=False)
    train._keep_recipe(recipe, tmp_path, resume=True)
    faster = recipe.map_plans(lambda _, plan: replace(plan, training=replace(plan.training, lr=0.125)))
    with pytest.raises(
        UserError, match=r"was begun with locators\.\w+\.training\.lr = .*0\.125 now .*other changes.*--reuse"
    ):
        train._keep_recipe(faster, tmp_path, resume=True)
    train._keep_recipe(faster, tmp_path, resume=False)  # a new run writes its own


def test_a_choice_that_is_new_and_off_is_no_change():
    assert train.changed({"a": {"b": 1}}, {"a": {"b": 1, "new": 0}, "other": []}) == []
    assert train.changed({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == [("a.1.b", 2, 3)]
    assert train.changed({"a": [1]}, {"a": [1, 2], "c": 4}) == [("a", [1], [1, 2]), ("c", None, 4)]
