"""Weights folders as a table, what is kept of every call, and what is said before a training begins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osteograde import cli
from osteograde.learning import calls, outlook, runs
from osteograde.learning.calls import Call
from osteograde.learning.compare import read_out_of_fold
from osteograde.learning.cross_fit import Run, sharing_folds, to_train
from osteograde.learning.folds import Split
from osteograde.learning.recipes import RECIPES
from osteograde.models.manifest import Manifest, TrainedFolds, read_manifest, write_manifest
from osteograde.tasks import TASKS
from tests.test_compare import folder_of, said

ROOT = Path(__file__).resolve().parents[1]
TASK = TASKS["knee-xray"]
CALL = Call("knee-xray", "2026-11-30T09:00:00", 1800.0, "cpu with 2 threads", (0, 1), finished=True, epochs=60)


def trained(folder: Path, share: float, recipe=None) -> Path:
    """A weights folder whose nets put ``share`` on the truth, without scores in its manifest."""
    folder_of(said(folder.name, share), folder)
    plain = json.loads(json.dumps((recipe or RECIPES["knee-xray"]()).plain()))
    folds = TrainedFolds(trained=tuple(range(plain["scope"]["folds"])))
    write_manifest(folder, Manifest(TASK.name, {}, {}, 1, {}, recipe=plain, folds=folds))
    return folder


def test_folders_are_found_read_and_sorted_by_score_with_those_that_cannot_be_read_last(tmp_path):
    trained(tmp_path / "a" / "bad", 0.05)
    good = trained(tmp_path / "z" / "good", 0.8)
    broken = tmp_path / "m" / "broken"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    begun = tmp_path / "begun"
    (begun / "work").mkdir(parents=True)
    (begun / "folds.csv").write_bytes((good / "folds.csv").read_bytes())
    (begun / "work" / "recipe.json").write_text(json.dumps(RECIPES["knee-xray-small"]().plain()))
    (tmp_path / "data").mkdir()
    rows = runs.survey([tmp_path], TASKS)
    assert [(Path(row.folder).name, row.task) for row in rows] == [
        ("broken", "?"), ("good", "knee-xray"), ("bad", "knee-xray"), ("begun", "knee-xray"),
    ]  # fmt: skip
    assert "not JSON" in rows[0].state and rows[3].state == "not ended, 0 nets are finished"
    assert (rows[1].state, rows[1].folds, rows[1].studies, rows[1].better) == ("whole", "5 of 5", 40, "higher")
    low, high = rows[2].interval
    assert low < rows[2].score < high and rows[1].score > rows[2].score


def test_the_score_of_a_table_is_the_one_that_its_training_wrote():
    folder = ROOT / "weights" / "spider"
    grade = read_manifest(folder).scores.grade
    found = runs.headline_of_table(TASKS["spider"], read_out_of_fold(folder, TASKS), resamples=1000)
    assert found["studies"] == grade["studies"]
    assert found["score"] == pytest.approx(grade["model"]["score"], abs=1e-4)
    assert found["interval"] == pytest.approx(grade["interval_95"]["score"], abs=0.01)


def test_only_choices_that_differ_from_the_recipe_are_named(tmp_path):
    recipe = RECIPES["knee-xray"]()
    assert runs.describe(trained(tmp_path / "same", 0.5, recipe), TASKS).changes == ()
    kl = recipe.graders["kl"][0]
    slower = replace(recipe, graders={"kl": (replace(kl, training=replace(kl.training, lr=0.125)),)})
    changed = runs.describe(trained(tmp_path / "slower", 0.5, slower), TASKS).changes
    assert changed == (f"graders.kl.0.training.lr = 0.125 (recipe: {kl.training.lr})",)
    assert runs.describe(trained(tmp_path / "debug", 0.5, recipe.shrunk()), TASKS).changes == ("made small by --debug",)
    renamed = replace(recipe, name="mine")
    assert runs.describe(trained(tmp_path / "mine", 0.5, renamed), TASKS).changes == (
        "no recipe of this name is known",
    )


def test_folds_that_were_not_trained_are_seen(tmp_path):
    folder = trained(tmp_path / "w", 0.5)
    write_manifest(folder, replace(read_manifest(folder), folds=TrainedFolds(trained=(0, 2))))
    row = runs.describe(folder, TASKS)
    assert (row.folds, row.state) == ("0, 2 of 5", "folds missing")


def test_a_curve_in_short_form_has_its_last_and_its_best_epoch(tmp_path):
    folder = trained(tmp_path / "w", 0.5)
    (folder / "history").mkdir()
    losses = [(4.0, None), (2.0, None), (1.0, 2.5), (1.5, None)]
    rows = [{"epoch": i + 1, "loss": a, "held_out_loss": b, "seconds": 1800.0} for i, (a, b) in enumerate(losses)]
    (folder / "history" / "grade-kl-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (curve,) = runs.describe(folder, TASKS).curves
    assert (curve.net, curve.epochs, curve.final_loss) == ("grade-kl-0", 4, 1.5)
    assert (curve.best_epoch, curve.best_loss, curve.is_held_out) == (3, 1.0, False)
    assert [runs.LEVELS.index(bar) for bar in curve.shape] == [7, 2, 0, 1]
    assert runs.describe(folder, TASKS).hours == 2.0


def test_the_command_shows_a_table_curves_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, share in (("a", 0.05), ("b", 0.8)):
        trained(Path("runs") / name, share)
    (Path("runs") / "b" / calls.FILE).write_text(json.dumps({**vars(CALL)}) + "\n")
    assert cli.run(lambda: cli.main(["runs"])) == 0
    out = capsys.readouterr().out
    assert out.index("runs/b") < out.index("runs/a") and "knee-xray: higher is better" in out
    assert "0.50   2026-11-30" in out
    assert out.splitlines()[-1] == "next: python -m osteograde runs --compare runs/b runs/a"
    assert cli.run(lambda: cli.main(["runs", "runs/b", "--json"])) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["hours"] == 0.5 and row["recipe"] == "knee-xray"
    assert cli.run(lambda: cli.main(["runs", "--compare", "runs/a", "runs/b", "--bootstrap", "50"])) == 0
    assert "b against a" in capsys.readouterr().out
    assert cli.run(lambda: cli.main(["runs", "--compare", "runs/a", "runs/b", "--bootstrap", "50", "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == ["a", "b"]


def test_a_folder_without_weights_is_one_line(tmp_path, capsys):
    assert cli.run(lambda: cli.main(["runs", str(tmp_path)])) == 2
    assert capsys.readouterr().err.startswith("error: no weights folder in ")


def test_every_call_leaves_a_line_also_where_it_was_interrupted(tmp_path):
    history = tmp_path / "history"
    history.mkdir()
    (history / "a.jsonl").write_text('{"epoch": 1, "seconds": 7200}\n')
    with pytest.raises(KeyboardInterrupt), calls.timed(tmp_path, "r", "cpu", (0,), debug=True):
        (history / "b.jsonl").write_text('{"epoch": 1, "seconds": 1}\n{"epoch": 2, "seconds": 1}\n')
        raise KeyboardInterrupt
    with calls.timed(tmp_path, "r", "cpu", (0, 1), debug=False):
        pass
    with calls.timed(tmp_path / "nothing", "r", "cpu", (0,), debug=False):
        pass
    first, second = calls.read(tmp_path)
    assert (first.finished, first.epochs, first.debug, first.folds) == (False, 2, True, (0,))
    assert (second.finished, second.epochs, second.debug, second.folds) == (True, 0, False, (0, 1))
    assert not (tmp_path / "nothing").exists()
    assert calls.hours(tmp_path) == pytest.approx(7202 / 3600)  # what a killed call trained counts as well


def test_lines_that_are_no_calls_are_left_out(tmp_path):
    (tmp_path / calls.FILE).write_text(json.dumps(vars(CALL)) + '\n{"recipe": "x"}\n{"begun\n')
    assert calls.read(tmp_path) == [CALL]


def test_last_time_is_the_last_whole_training_by_the_same_recipe_beside_it(tmp_path):
    recipe = RECIPES["knee-xray"]()
    for name, call in {
        "old": replace(CALL, begun="2026-11-01T00:00:00", seconds=60.0),
        "new": CALL,
        "cut": replace(CALL, finished=False, begun="2026-12-01T00:00:00"),
        "small": replace(CALL, debug=True, begun="2026-12-02T00:00:00", seconds=30.0),
        "other": replace(CALL, recipe="knee-xray-small", begun="2026-12-03T00:00:00"),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / calls.FILE).write_text(json.dumps(vars(call)) + "\n")
    said_then = outlook.last_time(recipe, tmp_path / "next")
    assert said_then == f"last time: 30 min for 60 epochs on cpu with 2 threads, 2026-11-30, in {tmp_path / 'new'}"
    assert "30 s for 60 epochs" in outlook.last_time(recipe.shrunk(), tmp_path / "next")
    assert "is not known" in outlook.last_time(recipe, tmp_path / "elsewhere" / "next")
    measured = RECIPES["knee-progression"]()
    assert "measured on 2 CPU cores, in hours: 0.6, shared" in outlook.last_time(measured, tmp_path / "next")


def test_shared_epochs_count_once_for_the_folds_that_share_them(tmp_path):
    recipe = RECIPES["knee-xray"]()
    split = Split({f"s{i}": i for i in range(5)}, {f"s{i}": f"p{i}" for i in range(5)})
    run = Run(recipe, (), (), split, tuple(range(5)), tmp_path, torch.device("cpu"), False)
    expected = 0
    for plans in recipe.plans().values():
        for plan in plans:
            shared = plan.start.shared_epochs
            groups = {sharing_folds(5, k) for k in range(5)}
            expected += 5 * (plan.training.epochs - shared) + (len(groups) * shared if shared else 0)
    assert to_train(run) == (10, expected) and recipe.locators["joint"].start.shared_epochs
    assert to_train(replace(run, folds=(0, 1)))[0] == 4


def test_the_start_lines_say_what_will_happen(tmp_path):
    recipe = RECIPES["knee-xray"]()
    split = Split({f"s{i}": i for i in range(5)}, {f"s{i}": f"p{i}" for i in range(5)})
    run = Run(recipe, (), (), split, (0, 2), tmp_path / "w", torch.device("cpu"), False)
    first, nets, where, _ = outlook.lines(run, Path("KNEES"))
    assert first.startswith("knee-xray by recipe knee-xray: 0 studies") and "from KNEES; folds 0, 2 of 5" in first
    assert nets.startswith("nets to train: 4 of 4 (joint 2, kl 2), ")
    assert where == f"on {outlook.device_words(run.device)}, into {tmp_path / 'w'}"
