"""A plan chooses which crops its nets read: in training, in the manifest, and wherever the weights are used."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from osteograde.errors import UserError
from osteograde.learning import grader_data
from osteograde.learning.cross_fit import nets_of
from osteograde.learning.recipe import for_grader
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import is_same
from osteograde.models import bundle
from osteograde.models.manifest import read_manifest, write_manifest
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded
from osteograde.report import oof_tables
from osteograde.tasks import TASKS
from osteograde.tasks.lumbar_names import TARGET_OF
from osteograde.tasks.spec import Study
from tests.test_training_data import glowing, points
from tests.tiny import random_bundle

TASK = TASKS["lumbar-mr"]
CPU = torch.device("cpu")
GRADER = next(grader for grader in TASK.graders if grader.name == "subarticular")
FIRST, SECOND = (crop.name for crop in GRADER.crops)
RECIPE = RECIPES["lumbar-mr-small"]()
PIXELS = RECIPE.pixels[GRADER.name]


@cache
def study() -> Loaded:
    """One study in which both crops of every subarticular site can be seen."""
    volumes = {view.name: (glowing("recess", view.name),) for view in TASK.views}
    return Loaded(Study("1", "1", (), labels=dict.fromkeys(TARGET_OF, 0)), volumes, marks=points())


def reading(*crops: str):
    """The recipe whose subarticular grader reads the named crops."""
    (plan,) = RECIPE.graders[GRADER.name]
    return replace(
        RECIPE, graders={**RECIPE.graders, GRADER.name: (for_grader(replace(plan, crops=crops), GRADER, TASK),)}
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Random nets of the recipe as it is."""
    return random_bundle(tmp_path_factory.mktemp("base"), RECIPE.name)


def folder_of(base: Path, folder: Path, recipe, *, recorded: bool) -> Path:
    """A weights folder of random nets of a recipe, with or without the record of the crops."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    (plan,) = recipe.graders[GRADER.name]
    name = f"grade/{GRADER.name}/fold0.safetensors"
    torch.manual_seed(1)
    bundle.save_net(bundle.build_net(dict(plan.net)), folder / name)
    manifest = read_manifest(folder)
    files = {**manifest.files, name: bundle.file_entry(folder, name, bundle.config_of(plan.net))}
    names = {g.name: tuple(c.name for c in g.crops) for g in recipe.task_as_read.graders} if recorded else {}
    write_manifest(folder, replace(manifest, files=files, crops=names))
    return folder


def graded(folder: Path, loaded: Loaded) -> dict[str, np.ndarray]:
    """What the one net of the grader says, given what ``bundle.load`` would give it."""
    manifest = bundle.verify(folder)
    grader = next(one for one in bundle.task_of(folder, manifest, TASKS).graders if one.name == GRADER.name)
    name = f"grade/{GRADER.name}/fold0.safetensors"
    net = bundle.load_net(folder / name, manifest.files[name].net)
    (answers,) = predict.grade(grader, [loaded], [loaded.marks], predict.Nets([net], PIXELS, CPU))
    return answers


@pytest.mark.parametrize(
    "grader", [g for task in TASKS.values() for g in task.graders if len(g.crops) > 1], ids=lambda g: g.name
)
def test_a_grader_reads_the_named_crops_in_its_own_order(grader):
    names = [crop.name for crop in grader.crops]
    assert grader.reading(()) is grader and grader.reading(names[::-1]) is grader
    assert [crop.name for crop in grader.reading(names[1:]).crops] == names[1:]
    with pytest.raises(UserError, match=f"grader '{grader.name}' has no crop 'elsewhere'"):
        grader.reading((names[0], "elsewhere"))


def test_boxes_of_other_crops_are_left_out_and_the_named_ones_stay_where_they_were():
    loaded = study()
    everything = GRADER.regions(loaded.volumes, loaded.marks, 32)
    chosen = GRADER.reading([SECOND]).regions(loaded.volumes, loaded.marks, 32)
    assert any(FIRST in boxes for boxes in everything.values())
    for target, boxes in everything.items():
        assert set(chosen[target]) == {SECOND} & set(boxes)
        if SECOND in boxes:
            assert np.array_equal(chosen[target][SECOND][1].to_mm, boxes[SECOND][1].to_mm)


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_grades_depend_on_the_named_crop_alone(base, tmp_path, name):
    """With the record in the manifest the nets are given that crop, whatever its place, and no other."""
    folder = folder_of(base, tmp_path, reading(name), recorded=True)
    whole = study()
    answers = graded(folder, whole)
    crop = next(crop for crop in GRADER.crops if crop.name == name)
    assert len(answers) == len(GRADER.sites)
    without = replace(
        whole, volumes={view: stacks if view == crop.view else () for view, stacks in whole.volumes.items()}
    )
    again = graded(folder, without)
    assert all(np.array_equal(again[target], answers[target]) for target in answers)
    other = replace(
        whole, volumes={view: () if view == crop.view else stacks for view, stacks in whole.volumes.items()}
    )
    assert graded(folder, other) == {}


def test_a_folder_without_the_record_reads_all_crops_or_as_many_as_its_nets_the_first_ones(base, tmp_path):
    """So weights that were trained when a grader had fewer crops give the same answers as before."""
    everything = folder_of(base, tmp_path / "all", RECIPE, recorded=False)
    assert "crops" not in json.loads((everything / "manifest.json").read_text())
    assert bundle.load(everything, TASKS, CPU).task is TASK
    first = folder_of(base, tmp_path / "first", reading(FIRST), recorded=False)
    recorded = folder_of(base, tmp_path / "recorded", reading(FIRST), recorded=True)
    loaded = study()
    answers, same = graded(first, loaded), graded(recorded, loaded)
    assert answers.keys() == same.keys() and all(np.array_equal(answers[target], same[target]) for target in answers)


def test_a_manifest_that_names_another_number_of_crops_than_its_nets_read_is_refused(base, tmp_path):
    folder = folder_of(base, tmp_path, reading(FIRST), recorded=True)
    write_manifest(folder, replace(read_manifest(folder), crops={GRADER.name: (FIRST, SECOND)}))
    with pytest.raises(UserError, match=r"fold0.safetensors reads 1 crops, grader 'subarticular' has .* for it"):
        bundle.load(folder, TASKS, CPU)


def test_a_report_cuts_the_crops_that_the_nets_read(base, tmp_path):
    folder = folder_of(base, tmp_path, reading(SECOND), recorded=True)
    evidence = oof_tables.read(folder, TASKS)
    grader, _ = evidence.sites[GRADER.sites[0].target]
    assert [crop.name for crop in grader.crops] == [SECOND]


def test_training_samples_hold_the_named_crop_alone(tmp_path):
    recipe = reading(SECOND)
    (plan,) = recipe.graders[GRADER.name]
    grader = next(one for one in recipe.task_as_read.graders if one.name == GRADER.name)
    loaded = study()
    data = grader_data.store(grader, TASK, plan, [(loaded, loaded.marks)], tmp_path)
    batch = data.batch([0], np.random.default_rng(0), CPU, augment=True)
    assert len(batch.crops) == 1 and batch.present.shape == (len(GRADER.sites), 1) and batch.present.all()
    logits = bundle.build_net(dict(plan.net))(list(batch.crops), batch.present)
    assert logits.shape == (len(GRADER.sites), len(TASK.classes))


def test_members_that_read_different_crops_or_more_than_their_net_has_are_refused():
    (one,), (other,) = (reading(name).graders[GRADER.name] for name in (FIRST, SECOND))
    with pytest.raises(UserError, match="all members of an ensemble read the same crops"):
        replace(RECIPE, graders={**RECIPE.graders, GRADER.name: (one, other)})
    with pytest.raises(UserError, match="a net of 2 crops cannot read"):
        replace(
            RECIPE, graders={**RECIPE.graders, GRADER.name: (replace(RECIPE.graders[GRADER.name][0], crops=(FIRST,)),)}
        )
    with pytest.raises(UserError, match="has no crop 'elsewhere'"):
        reading("elsewhere")


def test_nets_of_earlier_weights_are_reused_by_a_plan_that_names_the_crops_they_read():
    """Also where the grader has got further crops since, behind those that it had."""
    (old,) = reading(FIRST).plain()["graders"][GRADER.name]
    del old["crops"]  # as manifests were written before plans named crops
    nets = {
        crops: nets_of("grade", GRADER.name, reading(*crops).graders[GRADER.name])[0]
        for crops in ((FIRST,), (SECOND,), (FIRST, SECOND))
    }
    names = [crop.name for crop in GRADER.crops]
    assert [is_same(net, [old], names) for net in nets.values()] == [True, False, False]
    ((whole,), (also,)) = (reading(*crops).plain()["graders"][GRADER.name] for crops in ((), (FIRST, SECOND)))
    assert is_same(nets[FIRST, SECOND], [whole], names) and is_same(nets[FIRST, SECOND], [also], names)
