"""The history of a net: a line an epoch as it ends, whole after a kill, drawn in the report, TensorBoard if asked."""

import json
import sys
from types import SimpleNamespace

import pytest

from osteograde.errors import UserError
from osteograde.learning import history, loop
from osteograde.report import curves
from tests.logs import logged
from tests.test_loop import PLAN, Line, changed, job, loss, net


def run(folder, plan, *, resume=False, tensorboard=False, after_epoch=None):
    own = job(folder)
    own = loop.Job(own.stage, own.fold, own.seed, own.device, own.checkpoint, history=folder / "history" / "line.jsonl",
                   tensorboard=tensorboard)  # fmt: skip
    loop.train(net, plan, Line(), Line(), loss, own, resume=resume, after_epoch=after_epoch)
    return history.read(folder / "history" / "line.jsonl")


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_every_epoch_has_a_line_with_what_was_measured(tmp_path):
    with logged("learning") as lines:
        rows = run(tmp_path, changed(PLAN, epochs=3))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [f"loss {row['loss']:.4f}" in line for row, line in zip(rows, lines, strict=True)] == [True] * 3
    assert [row["held_out_loss"] is None for row in rows] == [True, True, False]
    assert rows[-1]["lr"] == pytest.approx(loop.rate(changed(PLAN, epochs=3), 14, 5)) and rows[0]["seconds"] >= 0
    assert all(row["held_out_loss"] for row in run(tmp_path, changed(PLAN, epochs=2, patience=2)))


def test_what_is_measured_after_an_epoch_is_in_its_line_and_nothing_else_is(tmp_path):
    rows = run(tmp_path, changed(PLAN, epochs=2), after_epoch=lambda net, epoch: f"Dice {epoch}" if epoch > 1 else "")
    assert [row.get("measured") for row in rows] == [None, "Dice 2"]


def test_lines_are_there_while_it_trains_and_whole_after_a_kill_and_a_resume(tmp_path):
    whole = run(tmp_path / "whole", PLAN)
    file = tmp_path / "killed" / "history" / "line.jsonl"
    seen = []

    def stop(line):
        seen.append([row["epoch"] for row in history.read(file)])  # as whoever watches the training reads it
        return " epoch 2/" in line

    with logged("learning", stop=stop), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", PLAN)
    assert seen[-2:] == [[1], [1, 2]]
    assert [row["epoch"] for row in history.read(file)] == [1, 2]
    file.write_text(file.read_text() + json.dumps({**whole[2], "loss": 99}) + '\n{"epoch": 4, "lo')  # as a crash may
    assert without_seconds(run(tmp_path / "killed", PLAN, resume=True)) == without_seconds(whole)


def test_the_report_draws_a_chart_of_every_net_and_none_without_history(tmp_path):
    assert curves.section(tmp_path) == ""
    run(tmp_path, changed(PLAN, epochs=3))
    drawn = curves.section(tmp_path)
    assert drawn.count("<svg") == 1 and "loss of line" in drawn
    assert drawn.count("<circle") == 3 + 1  # epochs, and the one held-out loss


def test_tensorboard_is_given_the_same_numbers_and_is_asked_for_before_any_work(tmp_path, monkeypatch):
    told = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: told.append(scalar), flush=lambda: None, close=lambda: None)
    module = SimpleNamespace(SummaryWriter=lambda folder, purge_step: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)  # type: ignore[arg-type]
    rows = run(tmp_path, changed(PLAN, epochs=2), tensorboard=True)
    assert [scalar for scalar in told if scalar[0] == "loss"] == [("loss", row["loss"], row["epoch"]) for row in rows]
    assert [scalar[0] for scalar in told] == ["loss", "lr", "loss", "held_out_loss", "lr"]
    monkeypatch.setattr(history, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        history.check_tensorboard()
