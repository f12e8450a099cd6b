"""A weights folder with out-of-fold tables of phantoms that its nets never saw, made without training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from osteograde.learning import cross_fit, folds, out_of_fold, train
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.models.manifest import Scores
from osteograde.pipeline import predict
from osteograde.tasks import TASKS
from osteograde.tasks.priors import weighted_prior

SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "lumbar-mr-phantom"
CPU = torch.device("cpu")


def judged_folder(data: Path, out: Path) -> Path:
    """The shipped phantom weights in ``out`` with folds.csv, oof.csv and oof_points.csv of the studies in ``data``."""
    shutil.copytree(SHIPPED, out)
    recipe = RECIPES["lumbar-mr-small"]()
    task, loaded = TASKS["lumbar-mr"], bundle.load(SHIPPED, TASKS, CPU)
    studies = sorted(task.read(data, "train"), key=lambda study: study.id)
    split = folds.assign(task, studies, 2, seed=0)
    folds.save(split, out / "folds.csv")
    run = cross_fit.Run(
        recipe=recipe,
        studies=studies,
        synthetic=(),
        split=split,
        folds=(0, 1),
        out=out,
        device=CPU,
        resume=False,
    )
    found, points, graded = {}, {}, {}
    for k in run.folds:
        held = split.held_out(studies, k)
        nets = {
            name: predict.Nets([nets[k]], loaded.pixels[name], CPU)
            for name, nets in {**loaded.locators, **loaded.graders}.items()
        }
        volumes = run.loaded(held)
        places, completed = predict.locate_all(task, volumes, nets)
        for study, own, full in zip(held, places, completed, strict=True):
            found[study.id], points[study.id], graded[study.id] = own, full, {}
        for group in task.graders:
            for study, new in zip(held, predict.grade(group, volumes, completed, nets[group.name]), strict=True):
                graded[study.id] |= new
    priors = {k: weighted_prior(split.training(studies, k), task.targets, task.class_weights) for k in run.folds}
    out_of_fold.save_points(run, found, out / "oof_points.csv")
    out_of_fold.save_graded(run, graded, priors, out / "oof.csv")
    oof = out_of_fold.OutOfFold(found, points, graded)
    scores = Scores(train.point_errors(run, found), train.grade_scores(run, oof, priors))
    bundle.write_manifest(out, replace(bundle.read_manifest(out), scores=scores))
    return out
