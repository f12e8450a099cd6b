"""A search with Optuna: the same seed draws the same trials, whatever stopped it; and bad trials end early."""

import json
import multiprocessing
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from osteograde import cli, phantom
from osteograde.learning import nested, study
from tests.searches import LR, Call, Trainings, do_all, knees, search_of, session

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason='optuna is not installed: pip install ".[tune]"')


def near_three_thousandths(call: Call) -> float:
    return 1 - abs(call.lr - 0.003) * 100 - (call.loss == "ordinal") * 0.1


def points(out: Path, k: int = 0) -> list[dict[str, str]]:
    return [dict(trial.point) for trial in nested.trials_of(out, k)]


def searched(out: Path, monkeypatch, *, stop: str = "", **more) -> Trainings:
    """A whole search; where it is stopped it goes on in another session."""
    trainings = Trainings(out, near_three_thousandths, stop=stop)
    made = search_of(trials=8, folds=(0,), **more)
    try:
        do_all(session(out, trainings, monkeypatch, made, knees()))
    except KeyboardInterrupt:
        do_all(session(out, trainings, monkeypatch, made, knees()))
    return trainings


@needs_optuna
@pytest.mark.parametrize("method", ["tpe", "random"])
def test_the_same_seed_draws_the_same_trials_and_another_seed_others(tmp_path, monkeypatch, method):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        searched(tmp_path / name, monkeypatch, method=method, seed=seed)
    first, again, other = (points(tmp_path / name) for name in ("one", "again", "other"))
    assert first == again and first != other and len({point[LR] for point in first}) == 8
    assert first[0][LR] == "0.001"  # the recipe itself is the first trial


@needs_optuna
@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_search_that_was_stopped_draws_the_trials_that_it_would_have_had(tmp_path, monkeypatch, number):
    searched(tmp_path / "whole", monkeypatch)
    stopped = searched(tmp_path / "stopped", monkeypatch, stop=f"outer0/trial00{number}")
    assert points(tmp_path / "stopped") == points(tmp_path / "whole")
    twice = [call for call in stopped.calls if call.folder == f"outer0/trial00{number}"]
    assert len(twice) == 2 and twice[0] == twice[1]  # its training goes on with the same settings
    assert len(stopped.calls) == 8 + 1 + 2


@needs_optuna
def test_a_search_goes_on_after_a_process_was_killed_while_it_wrote_the_journal(tmp_path, monkeypatch):
    """It leaves an unfinished line, and the lock, which is a link; --out is relative, as most people have it."""
    monkeypatch.chdir(tmp_path)
    searched(Path("whole"), monkeypatch)
    trainings = Trainings(Path("killed"), near_three_thousandths, stop="outer0/trial003")
    one = session(Path("killed"), trainings, monkeypatch, search_of(trials=8, folds=(0,)), knees())
    with pytest.raises(KeyboardInterrupt):
        do_all(one)
    with Path("killed", study.FILE).open("a") as file:
        file.write('{"op_code": 4, "wor')
    do_all(one)
    assert points(Path("killed")) == points(Path("whole"))
    other = study.JournalLock(Path("killed", study.FILE))
    assert other.acquire()
    assert Path("killed", f"{study.FILE}.lock").exists()  # a link that leads nowhere is waited for without an end
    other.release()


@needs_optuna
def test_tpe_draws_by_the_trials_before_and_comes_nearer_than_random(tmp_path, monkeypatch):
    far = {}
    for method in ("tpe", "random"):
        trainings = Trainings(tmp_path / method, near_three_thousandths)
        do_all(
            session(tmp_path / method, trainings, monkeypatch, search_of(trials=30, folds=(0,), method=method), knees())
        )
        rates = [float(point[LR]) for point in points(tmp_path / method)[20:]]
        far[method] = np.median([abs(rate - 0.003) for rate in rates])
    assert far["tpe"] < far["random"]


@needs_optuna
def test_a_grid_is_gone_through_in_its_order(tmp_path, monkeypatch):
    searched(tmp_path, monkeypatch, method="grid")
    assert [point[LR] for point in points(tmp_path)] == [
        "0.0001", "0.0001", "0.0004642", "0.0004642", "0.002154", "0.002154", "0.01", "0.01"
    ]  # fmt: skip


@needs_optuna
@pytest.mark.parametrize("prune", ["median", "hyperband"])
def test_a_trial_that_is_worse_than_others_by_its_losses_ends_early(tmp_path, monkeypatch, prune):
    """The score is better where it is higher and the loss where it is lower; the best of both must not be ended."""
    trainings = Trainings(tmp_path, near_three_thousandths, losses=lambda lr: [abs(lr - 0.003) * 1000] * 10)
    made = search_of(trials=16, folds=(0,), prune=prune, method="random")
    do_all(session(tmp_path, trainings, monkeypatch, made, knees()))
    trials = nested.trials_of(tmp_path, 0)
    states = {
        state: [abs(float(one.point[LR]) - 0.003) for one in trials if one.state == state]
        for state in ("done", "pruned")
    }
    assert states["pruned"] and states["done"]
    assert min(states["pruned"]) > min(states["done"])
    assert np.median(states["pruned"]) > np.median(states["done"])
    ended = next(trial for trial in trials if trial.state == "pruned")
    assert ended.score is None and 0 < len(ended.losses) < 10


@needs_optuna
@pytest.mark.parametrize("prune", ["median", "hyperband"])
def test_a_good_trial_that_begins_badly_is_not_ended_in_the_first_tenth_of_its_work(tmp_path, monkeypatch, prune):
    """Its loss is the worst of all for an epoch, which here is 50 thousandths of its work, and then the best."""

    def losses(lr: float) -> list[float]:
        return [9.0, *[0.1] * 9] if abs(lr - 0.003) < 0.002 else [1.0] * 10

    trainings = Trainings(tmp_path, near_three_thousandths, losses=losses)
    do_all(session(tmp_path, trainings, monkeypatch, search_of(trials=16, folds=(0,), prune=prune), knees()))
    slow = [one for one in nested.trials_of(tmp_path, 0) if abs(float(one.point[LR]) - 0.003) < 0.002]
    assert sorted(map(int, slow[0].losses))[:3] == [50, 100, 150] and study.WARM_UP == 100
    assert len(slow) > 4 and {one.state for one in slow} == {"done"}


@needs_optuna
def test_importances_name_the_key_that_decides(tmp_path, monkeypatch):
    from osteograde.learning.study import FoldStudy

    made = search_of(trials=30, folds=(0,), method="random")
    do_all(session(tmp_path, Trainings(tmp_path, near_three_thousandths), monkeypatch, made, knees()))
    found = FoldStudy(made, tmp_path, 0, higher=True).importances()
    assert found[LR] > 0.8 and sum(found.values()) == pytest.approx(1, abs=0.01)
    assert FoldStudy(made, tmp_path / "..", 1, higher=True).importances() == {}


def test_the_command_line_knows_the_methods_without_importing_them():
    assert (cli.TUNE_METHODS, cli.TUNE_PRUNERS) == (study.METHODS, study.PRUNERS)


def test_without_optuna_the_command_says_in_a_line_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else find_spec(name))
    words = ["tune", "knee-xray", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--trials", "2"]
    assert cli.run(lambda: cli.main(words)) == 2
    told = capsys.readouterr().err
    assert "optuna is not installed" in told and "osteograde[tune]" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@needs_optuna
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--space", "knees"], "no space of that name"),
        (["--space", "my.py"], r"no 'lrr'; nearest: grade.kl.training.lr"),
        (["--trials", "0"], "--trials 0: expected 1 or more"),
        (["--inner", "1"], "--inner 1: expected 2 or more"),
        (["--folds", "7"], "folds 0 to 4"),
        (["--method", "grid", "--trials", "3"], "the coarsest grid of these 6 keys has 64 points"),
        (["--set", "grade.kl.training.lrr=1"], "nearest: grade.kl.training.lr"),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(tmp_path, monkeypatch, capsys, more, told):
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text('SPACE = {"grade.kl.training.lrr": (1e-4, 1e-2, "log")}')
    words = ["tune", "knee-xray", "--data", ".", "--out", "out", "--trials", "2", *more]
    assert cli.run(lambda: cli.main(words)) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    assert not Path("out").exists()


SMALL = ["grade.kl.pixels=32,32", "grade.kl.training.epochs=2", "grade.kl.training.steps=2", "grade.kl.start.weights=",
         "grade.kl.start.shared_epochs=0", "locate.joint.pixels=32", "locate.joint.training.epochs=1", "tta=1",
         "locate.joint.training.steps=1", "locate.joint.start.weights=", "locate.joint.start.shared_epochs=0",
         "scope.folds=2", "scope.synthetic_share=0.02", "scope.annotated_points=true"]  # fmt: skip


@pytest.mark.slow
@needs_optuna
def test_a_search_on_phantoms_by_two_workers_goes_on_and_says_when_it_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    phantom.write("knee-xray", tmp_path / "data", studies=12, seed=3)
    (tmp_path / "my.py").write_text('SPACE = {"grade.kl.training.lr": (1e-4, 1e-2, "log")}')
    words = ["tune", "knee-xray", "--recipe", "knee-xray-small", "--data", str(tmp_path / "data"), "--device", "cpu",
             "--space", str(tmp_path / "my.py"), "--inner", "2", "--folds", "0", "--trials", "3",
             *(word for one in SMALL for word in ("--set", one))]  # fmt: skip
    assert cli.run(lambda: cli.main([*words, "--out", str(tmp_path / "out"), "--executor", "local:2"])) == 0
    assert multiprocessing.active_children() == []
    found = json.loads((tmp_path / "out/tune.json").read_text())
    assert [trial["state"] for trial in found["folds"][0]["trials"]].count("done") >= 1
    assert found["folds"][0]["outer"] is not None and found["comparison"]["patients"] >= 2
    assert "grade.kl.training.lr" in (tmp_path / "out/tune.html").read_text()
    assert not list((tmp_path / "out").glob("outer0/trial*/work"))
    capsys.readouterr()
    shutil.rmtree(tmp_path / "out/work")  # of no more use
    assert cli.run(lambda: cli.main([*words, "--out", str(tmp_path / "out")])) == 0
    said = capsys.readouterr().out
    assert "is finished: nothing is left to be done" in said and "next: osteograde train knee-xray" in said
    assert json.loads((tmp_path / "out/tune.json").read_text()) == found
