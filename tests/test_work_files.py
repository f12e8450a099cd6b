"""work/: what will lie there is said before, and what is of no more use goes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from osteograde import phantom
from osteograde.learning import folds, locator_data, out_of_fold, train, work_files
from osteograde.learning.cross_fit import Run
from osteograde.learning.recipes import RECIPES
from tests.logs import logged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    phantom.write("knee-xray", folder, studies=6, seed=41)
    return folder


def run_of(data: Path, out: Path) -> Run:
    recipe = RECIPES["knee-xray-small"]().shrunk()
    studies = sorted(recipe.task.read(data, "train"), key=lambda study: study.id)
    split = folds.assign(recipe.task, studies, recipe.scope.folds, recipe.scope.seed)
    return Run(recipe, studies, (), split, (0, 1), out, CPU, False)


def test_as_many_bytes_as_were_told_are_stored_and_removed_again(data, tmp_path):
    run = run_of(data, tmp_path)
    recipe, (joint,), (kl,) = run.recipe, run.recipe.locators_in_order, run.recipe.graders_in_order
    plan = recipe.locators[joint.name]
    loaded = [run.loaded([study])[0] for study in run.studies[:: plan.subsample]]
    regions = locator_data.store(joint, plan, loaded, run.work / "locate")
    sites = out_of_fold._stored_crops(run, kl, recipe.graders[kl.name], {})
    told = work_files.stage_bytes(run)
    assert {joint.name: regions.slices.nbytes, kl.name: sum(crop.nbytes for crop in sites.crops)} == told
    assert sum(told.values()) == sum(path.stat().st_size for path in run.work.rglob("*.u8"))
    assert f"{run.work} takes up to" in work_files.told(run)
    work_files.remove([regions.slices, regions.labels, *sites.crops, np.zeros(3)])
    assert not list(run.work.rglob("*.u8"))


@pytest.mark.slow
def test_a_finished_run_keeps_neither_what_its_nets_learnt_from_nor_their_checkpoints(data, tmp_path):
    recipe = RECIPES["knee-xray-small"]().shrunk()
    with logged("learning") as lines:
        train.train(recipe, data, tmp_path, only=None, device=CPU, resume=False)
    assert any("takes up to" in line for line in lines)
    kept = {path.suffix for path in (tmp_path / "work").rglob("*") if path.is_file()}
    assert kept.isdisjoint({".u8", ".pt"})
    assert {path.parts[-2] for path in (tmp_path / "work").rglob("*.npy")} == {"volumes"}
