"""Epochs that several folds learn in common, and further nets of a fold. What a net may see: test_no_leaks.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.learning import cross_fit, folds
from osteograde.learning.cross_fit import Run
from osteograde.learning.recipe import Fit
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.tasks.spec import Study

STUDIES = [Study(f"s{i:02d}", f"p{i // 2:02d}", ()) for i in range(20)]
SPLIT = folds.Split(
    {study.id: i // 2 % 5 for i, study in enumerate(STUDIES)}, {study.id: study.patient for study in STUDIES}
)


def mean(net, batch):
    return net(batch).mean()


IN_COMMON = Fit(net={}, pixels=32, epochs=3, common=2, batch=2, lr=0.1, early=(2, 0.5))


def test_epochs_in_common_are_learnt_once_per_half(tmp_path, monkeypatch):
    calls = []

    def train(build_net, plan, data, held_out, loss, where, *, resume, log):
        calls.append((where.title, plan.epochs, plan.early[0], plan.lr, len(data), plan.restarts))
        return nn.Linear(1, 1)

    monkeypatch.setattr(cross_fit.loop, "train", train)
    monkeypatch.setattr(bundle, "load_net", lambda path, config: nn.Linear(1, 1))
    plan = Fit(net={}, pixels=32, epochs=5, common=3, batch=2, lr=0.1, early=(4, 0.5), restarts=(4,))
    run = Run(RECIPES["knee-xray"](), STUDIES, [], SPLIT, tuple(range(5)), tmp_path, torch.device("cpu"), False, print)
    (tmp_path / "work" / "nets").mkdir(parents=True)
    list(cross_fit.cross_fit(run, "grade", "kl", plan, lambda part, own: list(part), lambda own: None))
    assert calls[0] == ("kl folds 0, 1, 2", 3, 4, 0.1, 8, ())
    assert [title for title, *_ in calls] == [
        "kl folds 0, 1, 2", "kl fold 0", "kl fold 1", "kl fold 2", "kl folds 3, 4", "kl fold 3", "kl fold 4",
    ]  # fmt: skip
    assert calls[1][1:] == (2, 1, 0.05, 16, (1,))  # a restart counts the epochs of the whole plan


def test_epochs_in_common_leave_practice_to_the_last_ones(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cross_fit.loop, "train", lambda begin, plan, data, *rest, **more: asked.append((plan, data)))
    plan = replace(IN_COMMON, practice=1)
    run = Run(RECIPES["knee-xray"](), STUDIES, [], SPLIT, (0,), tmp_path, torch.device("cpu"), False, print)
    (one,) = cross_fit.nets_of("grade", "kl", plan)
    cross_fit.in_common(run, one, lambda part, own: own.practice, mean, (0, 1, 2))
    ((learnt, data),) = asked
    assert (learnt.practice, data, learnt.epochs) == (0, 0, plan.common)


def test_nets_that_begin_in_common_differ_afterwards():
    start = nn.Linear(3, 1).requires_grad_(False)
    again = cross_fit._again(start)
    with torch.no_grad():
        again.weight += 1
    assert again.weight.requires_grad and not torch.equal(again.weight, start.weight)
    assert np.isfinite(again.weight.detach().numpy()).all()


def test_every_fold_has_a_net_by_each_plan_and_is_judged_by_all_of_them(tmp_path, monkeypatch):
    calls = []

    def train(build_net, plan, data, held_out, loss, where, *, resume, log):
        calls.append((where.title, where.checkpoint.name, where.seed, plan.epochs, loss))
        return nn.Linear(1, 1)

    monkeypatch.setattr(cross_fit.loop, "train", train)
    monkeypatch.setattr(bundle, "load_net", lambda path, config: path.name)
    monkeypatch.setattr(bundle, "on_device", lambda net, device: net)
    first = Fit(net={}, pixels=32, epochs=5, batch=2, lr=0.1)
    plan = replace(first, also=(replace(first, epochs=7, common=3, seed=4),))
    run = Run(RECIPES["knee-xray"](), STUDIES, [], SPLIT, (0, 3), tmp_path, torch.device("cpu"), False, print)
    (tmp_path / "work" / "nets").mkdir(parents=True)
    said = list(cross_fit.cross_fit(run, "grade", "kl", plan, lambda part, own: part, lambda own: own.epochs))
    assert [(k, nets) for k, nets, _ in said] == [
        (k, [f"fold{k}.safetensors", f"member1-fold{k}.safetensors"]) for k in (0, 3)
    ]
    assert calls == [
        ("kl fold 0", "grade-kl-0.pt", 0, 5, 5),
        ("kl folds 0, 1, 2", "grade-kl-member1-common-0.pt", 4, 3, 7),
        ("kl fold 0", "grade-kl-member1-0.pt", 4, 4, 7),
        ("kl fold 3", "grade-kl-3.pt", 0, 5, 5),
        ("kl folds 3, 4", "grade-kl-member1-common-3.pt", 4, 3, 7),
        ("kl fold 3", "grade-kl-member1-3.pt", 4, 4, 7),
    ]
    vouched = sorted(path.name for path in (tmp_path / "work" / "nets").glob("*.sha256"))
    assert vouched == [f"grade-kl-{name}{k}.sha256" for name in ("", "member1-") for k in (0, 3)]


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("graders", {}, "are the same"),
        ("graders", {"pixels": 64, "seed": 1}, "pixels"),
        ("locators", {"seed": 1}, "one net a fold"),
    ],
)
def test_further_nets_that_cannot_be_averaged_are_refused(kind, changes, said):
    recipe = RECIPES["spider"]()
    (stage,) = getattr(recipe, kind)
    plan = replace(getattr(recipe, kind)[stage], also=())
    with pytest.raises(ValueError, match=said):
        replace(recipe, **{kind: {stage: replace(plan, also=(replace(plan, **changes),))}})


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("locators", {"practice": 1}, "in all epochs"),
        ("locators", {"swa": True, "patience": 2}, "take one"),
        ("graders", {"swa": True, "patience": 2}, "take one"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(kind, changes, said):
    recipe = RECIPES["knee-xray"]()
    (stage,) = getattr(recipe, kind)
    whole = getattr(recipe, kind)[stage]
    with pytest.raises(ValueError, match=said):
        replace(recipe, **{kind: {stage: replace(whole, **changes)}})
