"""Nested cross-validation: trials never see the patients of their outer fold, settings are chosen by inner scores
alone, and each outer fold judges once. Nothing here needs Optuna: settings are drawn by a stand-in."""

import json
from dataclasses import replace

import numpy as np
import pytest

from osteograde.errors import UserError
from osteograde.learning import compare, folds, nested, search
from osteograde.learning.nested import Search, Trial
from tests.searches import LOSS, LR, RECIPE, Call, Trainings, do_all, knees, search_of, session, write_oof

RATES = ["0.0001", "0.003", "0.001", "0.0003"]


class Asked:
    """A trial of the stand-in, which never ends early."""

    def report(self, value, step):
        pass

    def should_prune(self):
        return False


class Drawn:
    """Stands in for ``study.FoldStudy``: learning rates from a list."""

    def __init__(self, made, out, fold, *, higher):
        pass

    def ask(self, number, first):
        return Asked(), {LR: RATES[number], LOSS: "classes"}

    def tell(self, trials):
        pass

    def losses(self, asked):
        return {}


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(search.study, "FoldStudy", Drawn)


def outer_prefers_what_inner_does_not(call: Call) -> float:
    """On inner folds a rate of 0.003 is best, on outer folds the lowest rate."""
    return 1 - call.lr if call.only is not None else 1 - abs(call.lr - 0.003)


def test_no_patient_of_an_outer_fold_is_among_its_inner_studies():
    studies = knees()
    split = folds.assign(RECIPE.task, studies, 3, seed=1)
    for k in range(3):
        inner = nested.inner_studies(split, studies, k)
        held_out = split.held_out(studies, k)
        assert {study.patient for study in inner}.isdisjoint(study.patient for study in held_out)
        assert len(inner) + len(held_out) == len(studies) and held_out


def test_a_patient_on_both_sides_is_refused():
    studies = knees()
    split = folds.assign(RECIPE.task, studies, 3, seed=1)
    held_out = split.held_out(studies, 0)[0]
    stranger = replace(split.training(studies, 0)[0], patient=held_out.patient)  # as wrong tables would say
    with pytest.raises(ValueError, match=r"outer fold 0: patients .* are held out and among the inner folds"):
        nested.inner_studies(split, [*studies, stranger], 0)


@pytest.mark.usefixtures("drawn")
def test_trials_see_no_patient_of_their_outer_fold_and_train_on_inner_folds(tmp_path, monkeypatch):
    trainings = Trainings(tmp_path, outer_prefers_what_inner_does_not)
    do_all(session(tmp_path, trainings, monkeypatch, search_of(), knees()))
    split = folds.read(tmp_path / "folds.csv")
    trials = [call for call in trainings.calls if "trial" in call.folder]
    assert len(trials) == 8
    for call in trials:
        k = int(call.folder[len("outer")])
        held_out = {patient for study, patient in split.patient.items() if split.fold[study] == k}
        assert held_out and call.patients.isdisjoint(held_out)
        assert call.patients | held_out == set(split.patient.values())
        assert (call.folds, call.only) == (2, None)
        inner = folds.read(tmp_path / call.folder / "folds.csv")
        assert set(inner.patient.values()) == call.patients and inner.count == 2


@pytest.mark.usefixtures("drawn")
def test_the_best_inner_score_chooses_and_each_outer_fold_judges_once_at_the_end(tmp_path, monkeypatch):
    trainings = Trainings(tmp_path, outer_prefers_what_inner_does_not)
    do_all(session(tmp_path, trainings, monkeypatch, search_of(), knees()))
    for k in (0, 1):
        own = [call for call in trainings.calls if call.folder.startswith(f"outer{k}/")]
        assert [call.folder for call in own[:4]] == [f"outer{k}/trial00{n}" for n in range(4)]
        default, chosen = own[4:]
        assert (default.folder, default.lr, default.only) == (f"outer{k}/default", 1e-3, (k,))
        assert (chosen.folder, chosen.lr, chosen.only) == (f"outer{k}/chosen", 3e-3, (k,))  # not 1e-4, the best there
        assert chosen.folds == 3 and len(chosen.patients) == 24


@pytest.mark.usefixtures("drawn")
def test_a_search_that_was_stopped_goes_on_and_a_finished_one_does_nothing(tmp_path, monkeypatch):
    trainings = Trainings(tmp_path, outer_prefers_what_inner_does_not, stop="outer0/trial002")
    one = session(tmp_path, trainings, monkeypatch, search_of(), knees())
    with pytest.raises(KeyboardInterrupt):
        do_all(one)
    do_all(session(tmp_path, trainings, monkeypatch, search_of(), knees()))
    counts = {call.folder: 0 for call in trainings.calls}
    for call in trainings.calls:
        counts[call.folder] += 1
    assert {folder for folder, count in counts.items() if count > 1} == {"outer0/trial002"} and len(counts) == 12
    do_all(session(tmp_path, trainings, monkeypatch, search_of(), knees()))
    assert len(trainings.calls) == 13
    assert nested.finished(search_of(), tmp_path) == {job.key for job in nested.jobs_of(search_of())}


@pytest.mark.usefixtures("drawn")
def test_a_job_that_another_process_does_is_left_to_it(tmp_path, monkeypatch):
    trainings = Trainings(tmp_path, outer_prefers_what_inner_does_not)
    one = session(tmp_path, trainings, monkeypatch, search_of(), knees())
    with search.locked(tmp_path / "outer0/trial001") as mine:
        assert mine
        one.do("outer0/trial001")
        assert trainings.calls == []
    one.do("outer0/trial001")
    assert [call.folder for call in trainings.calls] == ["outer0/trial001"]
    one.do("outer0/trial001")  # finished by now, as if another process had been faster
    assert len(trainings.calls) == 1


@pytest.mark.usefixtures("drawn")
def test_the_chosen_setting_waits_for_all_trials_and_does_those_that_nobody_does(tmp_path, monkeypatch):
    trainings = Trainings(tmp_path, outer_prefers_what_inner_does_not)
    session(tmp_path, trainings, monkeypatch, search_of(folds=(1,)), knees()).do("outer1/chosen")
    assert [call.folder for call in trainings.calls] == [f"outer1/trial00{n}" for n in range(4)] + ["outer1/chosen"]


@pytest.mark.usefixtures("drawn")
def test_settings_that_make_no_sense_together_cost_their_trial_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Drawn, "ask", lambda self, number, first: (Asked(), {LR: RATES[number], LOSS: ["x", "classes"][number > 0]}))  # noqa: E501  # fmt: skip
    trainings = Trainings(tmp_path, outer_prefers_what_inner_does_not)
    do_all(session(tmp_path, trainings, monkeypatch, search_of(folds=(0,)), knees()))
    first, *rest = nested.trials_of(tmp_path, 0)
    assert (first.state, first.score) == ("refused", None) and "loss 'x' is unknown" in first.why
    assert [trial.state for trial in rest] == ["done"] * 3


def test_the_best_trial_is_that_of_the_best_inner_score_and_the_first_of_equals():
    trials = [Trial(0, {}, "done", 0.5), Trial(1, {}, "pruned"), Trial(2, {}, "done", 0.7), Trial(3, {}, "done", 0.7)]
    best = nested.best_of(trials, higher=True)
    assert best is not None and best.number == 2
    lowest = nested.best_of(trials, higher=False)
    assert lowest is not None and lowest.number == 0
    assert nested.best_of(trials[1:2], higher=True) is None
    assert nested.best_so_far(trials, higher=True) == [0.5, 0.5, 0.7, 0.7]
    assert nested.best_so_far(trials[1:], higher=False) == [None, 0.7, 0.7]


def test_another_search_in_the_same_folder_is_refused_and_more_trials_until_an_outer_fold_has_judged(tmp_path):
    nested.begin(search_of(), tmp_path)
    nested.begin(search_of(), tmp_path)
    with pytest.raises(UserError, match="another seed was begun here"):
        nested.begin(search_of(seed=1), tmp_path)
    nested.begin(search_of(trials=6), tmp_path)
    assert nested.read_search(tmp_path) == search_of(trials=6)
    with pytest.raises(UserError, match="fewer make another search"):
        nested.begin(search_of(), tmp_path)
    (tmp_path / "outer0/default").mkdir(parents=True)
    nested.save_judged(tmp_path / "outer0/default", 0.5, None, 1.0)
    with pytest.raises(UserError, match="have judged, and may do so once"):
        nested.begin(search_of(trials=8), tmp_path)


def test_a_folder_of_weights_is_no_folder_for_a_search(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="holds weights"):
        nested.begin(search_of(), tmp_path)


def judged_search(out) -> Search:
    """A finished search of two outer folds, with tables in which the chosen setting is right more often."""
    made, studies = search_of(), knees()
    nested.begin(made, out)
    split = folds.assign(RECIPE.task, studies, 3, seed=0)
    rng = np.random.default_rng(0)
    for k in made.folds:
        for n, score in enumerate((0.50, 0.58, None, 0.54)):
            state = "pruned" if score is None else "done"
            trial = Trial(n, {LR: RATES[n], LOSS: "classes"}, state, score, 10.0 + n, losses={"250": 1.5 - 0.1 * n})
            nested.save_trial(trial, out / f"outer{k}" / nested.trial_name(n))
        for name, right, score in (("default", 0.5, 0.45), ("chosen", 0.8, 0.52)):
            folder = out / f"outer{k}" / name
            folder.mkdir()
            rows, labels = {}, {}
            for study in split.held_out(studies, k):
                label = labels[study.id] = next(iter(study.labels.values()))
                shown = label if rng.random() < right else (label + 1) % 5
                rows[study.id] = [0.8 if i == shown else 0.05 for i in range(5)]
            write_oof(folder, rows, labels, k)
            folds.save(split, folder / "folds.csv")
            (folder / "manifest.json").write_text(json.dumps({"task": "knee-xray"}))
            nested.save_judged(folder, score + 0.01 * k, 1 if name == "chosen" else None, 30.0)
    return made


def test_the_result_has_inner_and_outer_scores_the_optimism_and_the_paired_difference(tmp_path, monkeypatch):
    made = judged_search(tmp_path)
    monkeypatch.setattr(compare, "task_of", lambda folder, tasks: tasks["knee-xray"])
    found = nested.result(made, tmp_path, RECIPE.task, {0: {LR: 0.9, LOSS: 0.1}})
    first, second = found["folds"]
    assert (first["chosen"], first["inner"], first["inner_default"]) == (1, 0.58, 0.5)
    assert (first["outer"], first["outer_default"]) == (0.52, 0.45)
    assert (first["optimism"], first["optimism_default"]) == (0.06, 0.05)
    assert first["best_so_far"] == [0.5, 0.58, 0.58, 0.58] and second["outer"] == 0.53
    assert found["mean"]["outer"] == pytest.approx(0.525) and found["mean"]["optimism"] == pytest.approx(0.055)
    part = found["comparison"]["parts"]["score"]
    assert found["comparison"]["patients"] == 16  # of two of the three outer folds
    assert part["differences"][0] == pytest.approx(part["values"][1] - part["values"][0], abs=2e-4)
    low, high = part["interval_95"][0]
    assert low < part["differences"][0] < high
    told = "\n".join(nested.lines(found))
    assert "outer 0" in told and "mean" in told and "16 patients" in told and "+0.0600" in told
    assert nested.recommended(found) == [f"{LR}=0.003", f"{LOSS}=classes"]


def test_what_has_not_been_judged_yet_is_left_open(tmp_path):
    made = search_of()
    nested.begin(made, tmp_path)
    nested.save_trial(Trial(0, {LR: "0.001", LOSS: "classes"}, "done", 0.5), tmp_path / "outer0/trial000")
    found = nested.result(made, tmp_path, RECIPE.task, {})
    assert "comparison" not in found and found["folds"][0]["optimism"] is None and found["mean"]["inner"] is None
    assert list(nested.lines(found))[2].split()[:4] == ["outer", "0", "1", "0"]


def test_a_grid_has_no_trial_of_the_default(tmp_path):
    made = search_of(method="grid")
    nested.begin(made, tmp_path)
    nested.save_trial(Trial(0, {LR: "0.0001", LOSS: "classes"}, "done", 0.5), tmp_path / "outer0/trial000")
    assert nested.result(made, tmp_path, RECIPE.task, {})["folds"][0]["inner_default"] is None


def test_a_search_that_is_refused_leaves_nothing_that_would_stop_the_next_one(tmp_path):
    with pytest.raises(UserError, match="--inner 30"):
        search.begin(search_of(inner=30), RECIPE, knees(), tmp_path)
    assert not list(tmp_path.iterdir())
    search.begin(search_of(inner=2), RECIPE, knees(), tmp_path)


def test_the_time_of_a_trial_begins_anew_where_a_full_disk_left_the_file_of_it_empty(tmp_path):
    (tmp_path / search.BEGUN).touch()
    with search.timed(tmp_path) as seconds:
        pass
    assert seconds() < 1
    assert not (tmp_path / search.BEGUN).exists()


def test_the_value_in_which_a_recipe_differs_from_that_of_the_search_is_named(tmp_path):
    recipe = {"graders": {"kl": [{"training": {"lr": 0.1, "batch": 8}}]}, "changes": {"x": ["1", "2"]}}
    nested.begin(search_of(recipe=recipe), tmp_path)
    other = json.loads(json.dumps(recipe))
    other["graders"]["kl"][0]["training"]["batch"], other["changes"] = 16, {}
    with pytest.raises(UserError, match=r"another recipe: graders\.kl\.training\.batch was begun here \(8, now 16\)"):
        nested.begin(search_of(recipe=other), tmp_path)
