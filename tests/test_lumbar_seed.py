"""The published two-stage baseline: its numbers, its chain of transfer, its cleaning of labels."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from osteograde.errors import UserError
from osteograde.learning.recipe import taught_boxes_mm
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.models.manifest import Manifest, NetFile
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS, lumbar_cleaning
from osteograde.tasks.spec import Mark, Point, Study

CHAIN = "seed-frcnn-swin-chain"


def test_batches_epochs_and_rates_are_the_published_ones():
    recipe = RECIPES["seed-frcnn-swin"]()
    for plan in recipe.locators.values():
        assert (plan.training.batch, plan.training.epochs, plan.training.lr) == (10, 3, 1e-4)
        assert plan.training.optimiser == "adam" and plan.start.weights == "coco"
    for grader in recipe.task.graders:
        (plan,) = recipe.graders[grader.name]
        assert plan.training.batch * len(grader.sites) == 50
        assert (plan.training.epochs, plan.training.lr, plan.start.weights) == (6, 1e-4, "imagenet")
        assert plan.training.patience >= plan.training.epochs  # never stops early, and keeps the best epoch


def test_boxes_are_as_wide_as_published_and_higher_at_the_lowest_level():
    recipe = RECIPES["seed-frcnn-swin"]()
    scale = 280 / 250
    for locator in recipe.task.locators[:2]:
        boxes = taught_boxes_mm(recipe.locators[locator.name], locator)
        for channel, box in boxes.items():
            expected = (40 if channel.endswith("l5_s1") else 30) * scale, 70 * scale
            assert box == pytest.approx(expected)
        assert len(boxes) == 5
    shrunk = recipe.shrunk()
    assert {name: taught_boxes_mm(plan, one) for (name, plan), one in zip(
        shrunk.locators.items(), recipe.task.locators, strict=True)} == {
        name: taught_boxes_mm(plan, one) for (name, plan), one in zip(
        recipe.locators.items(), recipe.task.locators, strict=True)}  # fmt: skip


def test_the_chain_starts_each_grader_from_the_one_before_and_trains_them_in_this_order():
    recipe = RECIPES[CHAIN]()
    start = {name: (plan.start.weights, plan.start.stage) for name, (plan,) in recipe.graders.items()}
    assert start["spinal"] == ("imagenet", "")
    assert start["subarticular_left"] == ("", "spinal")
    assert start["subarticular_right"] == ("", "subarticular_left")
    order = [grader.name for grader in recipe.graders_in_order]
    assert order.index("spinal") < order.index("subarticular_left") < order.index("subarticular_right")


@pytest.mark.slow
def test_graders_of_one_side_have_its_sites_and_the_same_boxes(small_studies):
    both = TASKS["lumbar-mr"]
    split = both.by_side(("foraminal", "subarticular"))
    assert sorted(split.targets) == sorted(both.targets)
    assert [grader.name for grader in split.graders] == [
        "spinal", "foraminal_left", "foraminal_right", "subarticular_left", "subarticular_right",
    ]  # fmt: skip
    study = both.read(small_studies[0], "test")[0]
    volumes = load_study(study, both).volumes
    found = {
        name: Point(volumes["sag_t1"][0].centre_mm) for one in both.locators for name in (m.name for m in one.landmarks)
    }
    whole = both.graders[1].regions(volumes, found, 32)
    parts = [grader.regions(volumes, found, 32) for grader in split.graders[1:3]]
    assert parts[0].keys() | parts[1].keys() == whole.keys() and not parts[0].keys() & parts[1].keys()
    for part in parts:
        for target, boxes in part.items():
            for name, (_, box) in boxes.items():
                assert (box.to_mm == whole[target][name][1].to_mm).all()
    with pytest.raises(UserError, match="'spinal' is no grader of a left and a right side"):
        both.by_side(("spinal",))


def test_weights_with_nets_of_each_side_are_read_as_such():
    both = TASKS["lumbar-mr"]
    split = both.by_side(("subarticular",))
    files = {
        f"grade/{grader.name}/fold0.safetensors": NetFile("", 0, {"crops": len(grader.crops)})
        for grader in split.graders
    }
    manifest = Manifest("lumbar-mr", files, {}, 1, both.prior)
    assert [one.name for one in bundle.as_read(both, manifest, Path("w")).graders] == [
        one.name for one in split.graders
    ]


def study(side_by_side: bool) -> Study:
    marks = (
        Mark("recess_left_l4_l5", "3", "20", 150, 90),
        Mark("recess_right_l4_l5", "3", "20" if side_by_side else "21", 90, 90),
    )
    labels = {"left_subarticular_stenosis_l4_l5": 1, "right_subarticular_stenosis_l4_l5": 2,
              "right_subarticular_stenosis_l1_l2": 0, "right_neural_foraminal_narrowing_l4_l5": 2}  # fmt: skip
    return Study(str(side_by_side), "p", (), labels=labels, marks=marks)


def test_the_cleaning_drops_right_labels_on_the_slice_of_the_left_ones_and_says_what_it_costs(
    tmp_path, monkeypatch, caplog
):
    studies = [study(True), study(False)]
    cleaned, lost, right = lumbar_cleaning.cleaned_studies(studies)
    assert dict(lost) == {2: 1} and right == 4
    assert studies[0].labels.keys() - cleaned[0].labels.keys() == {"right_subarticular_stenosis_l4_l5"}
    assert cleaned[0].marks == studies[0].marks
    assert cleaned[1] == studies[1]
    monkeypatch.setattr(lumbar_cleaning.lumbar_folders, "read", lambda root, part: studies)
    with caplog.at_level(logging.WARNING):
        assert lumbar_cleaning.read_cleaned(tmp_path, "train") == cleaned
    assert "drops 1 of 4 right subarticular labels (25.0 %: 0 normal_mild, 0 moderate, 1 severe)" in caplog.text
    assert lumbar_cleaning.read_cleaned(tmp_path, "test") == studies
    assert RECIPES["seed-frcnn-swin-cleaned"]().task == replace(TASKS["lumbar-mr"], read=lumbar_cleaning.read_cleaned)
