"""Shared epochs of several folds, and further members of an ensemble. What a net may see: test_no_leaks.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.learning import cross_fit, folds
from osteograde.learning.cross_fit import Net, Run
from osteograde.learning.recipe import GraderPlan, LocatorPlan, Plan, Resizing, Schedule, Start, Training
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.tasks.spec import Study

STUDIES = [Study(f"s{i:02d}", f"p{i // 2:02d}", ()) for i in range(20)]
SPLIT = folds.Split(
    {study.id: i // 2 % 5 for i, study in enumerate(STUDIES)}, {study.id: study.patient for study in STUDIES}
)
PLAN = GraderPlan(net={}, pixels=32, training=Training(epochs=5, batch=2, lr=0.1))
SHARED = replace(
    PLAN,
    start=Start(shared_epochs=3),
    schedule=Schedule(restarts={4: 0.5}),
    resizing=Resizing(epochs=4, share=0.5),
    synthetic_epochs=1,
)


@dataclass
class Stage:
    """A grader whose data are the studies and whose loss is the plan."""

    nets: Sequence[Net]

    def data(self, studies: Sequence[Study], plan: Plan, taught_by: int | None = None):
        return list(studies)

    def loss(self, plan: Plan):
        return plan

    def watch(self, plan: Plan, held_out, job):
        return None


def run_of(folder, only=tuple(range(5))) -> Run:
    (folder / "work" / "nets").mkdir(parents=True)
    return Run(RECIPES["knee-xray"](), STUDIES, [], SPLIT, only, folder, torch.device("cpu"), False)


@pytest.fixture
def trained(monkeypatch):
    """(job, plan, number of studies) of each call of the loop, which trains nothing."""
    calls = []

    def train(build_net, plan, data, held_out, loss, job, *, resume, after_epoch=None):
        assert loss == plan
        calls.append((job, plan, len(data)))
        return nn.Linear(1, 1)

    monkeypatch.setattr(cross_fit.loop, "train", train)
    monkeypatch.setattr(bundle, "load_net", lambda path, config: nn.Linear(1, 1))
    return calls


def test_shared_epochs_are_trained_once_per_half_of_the_folds(tmp_path, trained):
    list(cross_fit.cross_fit(run_of(tmp_path), Stage(cross_fit.nets_of("grade", "kl", [SHARED]))))
    assert [job.title for job, *_ in trained] == [
        "kl folds 0, 1, 2", "kl fold 0", "kl fold 1", "kl fold 2", "kl folds 3, 4", "kl fold 3", "kl fold 4",
    ]  # fmt: skip
    assert [count for *_, count in trained] == [8, 16, 16, 16, 12, 16, 16]


def test_the_checkpoint_of_a_finished_fold_is_removed_and_that_of_shared_epochs_once_all_folds_have_theirs(
    tmp_path, trained, monkeypatch
):
    """Further folds start from the latter, also in a later call."""
    train = cross_fit.loop.train

    def train_with_checkpoint(build, plan, data, held_out, loss, job, **options):
        job.checkpoint.write_bytes(b"all of the optimiser")
        return train(build, plan, data, held_out, loss, job, **options)

    monkeypatch.setattr(cross_fit.loop, "train", train_with_checkpoint)
    run = run_of(tmp_path, ())
    for chosen, kept in (((0,), ["grade-kl-common-0.pt"]), ((1, 2), [])):
        list(cross_fit.cross_fit(replace(run, folds=chosen), Stage(cross_fit.nets_of("grade", "kl", [SHARED]))))
        assert [path.name for path in (tmp_path / "work" / "nets").glob("*.pt")] == kept


def test_shared_epochs_and_a_fold_s_own_are_all_epochs_of_the_plan(tmp_path, trained):
    list(cross_fit.cross_fit(run_of(tmp_path, (0,)), Stage(cross_fit.nets_of("grade", "kl", [SHARED]))))
    (_, first, _), (_, own, _) = trained
    assert (first.training.epochs, own.training.epochs) == (3, 2)
    assert (first.training.lr, own.training.lr) == (0.1, 0.05)
    assert (first.resizing.epochs, own.resizing.epochs) == (4, 1)
    assert (first.schedule.restarts, own.schedule.restarts) == ({}, {1: 0.5})  # counted from the first own epoch
    assert (first.synthetic_epochs, own.synthetic_epochs) == (0, 1)  # which are for the last epochs


def test_nets_that_continue_from_shared_epochs_are_copies():
    start = nn.Linear(3, 1).requires_grad_(False)
    again = cross_fit._copy_to_train(start)
    with torch.no_grad():
        again.weight += 1
    assert again.weight.requires_grad and not torch.equal(again.weight, start.weight)
    assert np.isfinite(again.weight.detach().numpy()).all()


def test_every_fold_has_a_net_of_each_member_and_is_judged_by_all_of_them(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(bundle, "load_net", lambda path, config: path.name)
    monkeypatch.setattr(bundle, "on_device", lambda net, device: net)
    members = (PLAN, SHARED, PLAN)
    made = list(cross_fit.cross_fit(run_of(tmp_path, (0, 3)), Stage(cross_fit.nets_of("grade", "kl", members))))
    assert [(fold.k, fold.nets) for fold in made] == [
        (k, [f"{prefix}fold{k}.safetensors" for prefix in ("", "member1-", "member2-")]) for k in (0, 3)
    ]
    assert [(job.title, job.checkpoint.name, job.seed) for job, *_ in trained] == [
        ("kl fold 0", "grade-kl-0.pt", 0),
        ("kl folds 0, 1, 2", "grade-kl-member1-common-0.pt", 0),
        ("kl fold 0", "grade-kl-member1-0.pt", 0),
        ("kl fold 0", "grade-kl-member2-0.pt", 1),  # the same plan as the first member, so another seed
        ("kl fold 3", "grade-kl-3.pt", 0),
        ("kl folds 3, 4", "grade-kl-member1-common-3.pt", 0),
        ("kl fold 3", "grade-kl-member1-3.pt", 0),
        ("kl fold 3", "grade-kl-member2-3.pt", 1),
    ]
    curves = [tmp_path / "history" / f"{job.checkpoint.stem}.jsonl" for job, *_ in trained]  # a file for each net
    assert [job.history for job, *_ in trained] == curves and len(set(curves)) == len(curves)
    markers = sorted(path.name for path in (tmp_path / "work" / "nets").glob("*.sha256"))
    assert markers == [f"grade-kl-{name}{k}.sha256" for name in ("", "member1-", "member2-") for k in (0, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graders": {"pfirrmann": ()}}, "expected a tuple of one or more GraderPlan"),
        ({"graders": {"pfirrmann": PLAN}}, "expected a tuple of one or more GraderPlan"),
        ({"graders": {"pfirrmann": (PLAN, replace(PLAN, pixels=64))}}, "32 pixels, another one 64"),
        ({"locators": {"disc": PLAN}}, "is a GraderPlan, not LocatorPlan"),
        ({"locators": {}}, "locators are"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["spider"](), **changes)


@pytest.mark.parametrize(
    "choice", ["resizing", "loss", "class_weight_power", "label_smoothing", "synthetic_epochs", "drop_view"]
)
def test_a_locator_cannot_be_given_a_choice_that_only_graders_use(choice):
    given = {choice: getattr(PLAN, choice)}
    with pytest.raises(TypeError, match=choice):
        LocatorPlan(net={}, pixels=32, training=PLAN.training, **given)


def test_a_plan_keeps_the_mean_of_all_cycles_or_the_best_epoch_but_not_both():
    with pytest.raises(ValueError, match="choose one of them"):
        replace(PLAN, schedule=Schedule(swa=True), training=replace(PLAN.training, patience=2))
