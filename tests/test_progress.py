"""Progress: bars on a terminal, a line a minute in a log, never both; and nothing where nobody asked for it."""

import logging
import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from osteograde import logs

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import logging
from osteograde import logs
log = logging.getLogger("osteograde.learning")
logs.LINE_EVERY_S = 1e-9  # every line of progress is due
logs.to_stdout(bars={bars})
with logs.progress("training", 3, "epochs", log) as whole:
    for epoch in range(3):
        for step in logs.counted(range(4), f"net epoch {{epoch + 1}}", "steps", log, whole):
            pass
        log.info("line of progress", extra=logs.PROGRESS)
        whole.advance(note="loss 0.5")
    log.info("a result")
"""


ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def on_a_terminal(program: str, out: Path | None) -> str:
    """What a program writes to the terminal that its stderr is. out: the file that its stdout is; None: the same
    terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    stdout = theirs if out is None else os.open(out, os.O_WRONLY | os.O_CREAT)
    with subprocess.Popen([sys.executable, "-c", program], env=ENV, stdout=stdout, stderr=theirs) as process:
        os.close(theirs)
        told = b""
        try:
            while part := os.read(ours, 4096):
                told += part
        except OSError:  # the other end of the terminal is closed
            pass
        assert process.wait(timeout=60) == 0
    os.close(ours)
    return told.decode().replace("\r\n", "\n")


def test_on_a_terminal_there_are_bars_and_no_lines_of_progress(tmp_path):
    err = on_a_terminal(PROGRAM.format(bars=True), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a result\n"
    assert "training:" in err and "net epoch 3:" in err and "%|" in err and "3/3" in err and "loss 0.5" in err


def test_in_a_pipe_there_are_lines_and_no_bars():
    command = [sys.executable, "-c", PROGRAM.format(bars=True)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert done.stderr == "" and lines[-1] == "a result" and lines.count("line of progress") == 3
    assert "net epoch 2: 3 of 4 steps; training: 1 of 3 epochs, loss 0.5, about 0 s left" in lines


def test_without_being_asked_for_no_bar_is_drawn_on_a_terminal():
    told = on_a_terminal(PROGRAM.format(bars=False), None)
    assert "line of progress" in told and "%|" not in told and "\r" not in told


@pytest.fixture
def log_of_a_new_process(monkeypatch):
    """The logger of a room in a process whose stdout is a log, and what moves its clock."""
    now = [0.0]
    monkeypatch.setattr(logging.getLogger("osteograde"), "handlers", [])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    logs.to_stdout(bars=True)  # the stderr of a test is no terminal
    return logging.getLogger("osteograde.learning"), now


def test_a_log_has_one_line_of_progress_a_minute_with_the_time_left(log_of_a_new_process, capsys):
    log, now = log_of_a_new_process
    with logs.progress("training", 10, "epochs", log) as whole:
        for epoch in range(2):
            for _ in logs.counted(range(20), f"net epoch {epoch + 1}", "steps", log, whole):
                now[0] += 10.0
            whole.advance()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # 400 seconds
    assert lines[0] == "net epoch 1: 6 of 20 steps; training: 0 of 10 epochs, time left not known yet"
    assert lines[-1] == "net epoch 2: 16 of 20 steps; training: 1 of 10 epochs, about 27 min left"


def test_results_are_logged_at_once_and_do_not_put_off_the_next_line_of_progress(log_of_a_new_process, capsys):
    log, now = log_of_a_new_process
    for second in range(130):
        now[0] += 1.0
        if second % 30 == 0:
            log.info("a result")
        log.info("at %d s", now[0], extra=logs.PROGRESS)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != "a result"] == ["at 60 s", "at 120 s"]
    assert lines.count("a result") == 5


def test_the_log_of_a_kernel_has_a_line_for_every_chunk_and_no_others(log_of_a_new_process, capsys):
    log, now = log_of_a_new_process
    logs.to_stdout(every_s=0.0)
    with logs.progress("grading", 3, "studies", log) as shown:
        for done in range(3):
            now[0] += 100.0
            shown.advance()
            log.info("%d/3 studies, %.0f s", done + 1, now[0], extra=logs.PROGRESS)
    assert capsys.readouterr().out.splitlines() == ["1/3 studies, 100 s", "2/3 studies, 200 s", "3/3 studies, 300 s"]


def test_without_an_entry_script_progress_is_silent(monkeypatch, capfd):
    monkeypatch.setattr(logging.getLogger("osteograde"), "handlers", [])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with logs.progress("training", 2, "epochs", logging.getLogger("osteograde.learning")) as whole:
        whole.advance(2)
    assert capfd.readouterr() == ("", "")


def test_a_line_while_bars_are_drawn_stands_alone_on_its_line():
    """The bar is taken off the screen, the line is written, and the bar comes back."""
    program = PROGRAM.format(bars=True).replace(
        'log.info("line of progress", extra=logs.PROGRESS)', 'log.info("a line")'
    )
    written = on_a_terminal(program, None).split("\n")
    assert any("training:" in line for line in written)
    assert sum(line.rpartition("\r")[2].replace("\x1b[A", "") == "a line" for line in written) == 3, written


COMMAND = """
import sys
from osteograde import cli, logs
logs.LINE_EVERY_S = 1e-9  # every line of progress is due
sys.exit(cli.run(lambda: cli.main({words!r})))
"""
PHANTOM = ["phantom", "knee-xray", "--out", "{out}/data", "--studies", "3", "--test", "1"]
INSPECT = ["inspect", "knee-xray", "--data", "{out}/data", "--out", "{out}/page.html"]


@pytest.mark.slow
def test_phantom_and_inspect_show_bars_on_a_terminal_and_lines_in_a_log(tmp_path):
    for words, title, unit in ((PHANTOM, "writing labelled", "studies"), (INSPECT, "reading", "series")):
        program = COMMAND.format(words=[word.format(out=tmp_path) for word in words])
        err = on_a_terminal(program, tmp_path / "out")
        assert f"{title}:" in err and "%|" in err
        assert f"{title}:" not in (tmp_path / "out").read_text()
        done = subprocess.run([sys.executable, "-c", program], env=ENV, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"{title}: 1 of " in done.stdout and f"{unit}, about" in done.stdout and "%|" not in done.stderr
