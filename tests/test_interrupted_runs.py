"""Killed, told to stop, out of disk, out of time: what is on disk is whole, and the next run gives the same bytes."""

import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import kill

from osteograde import cli
from osteograde.grade_command import infer
from osteograde.imaging import files
from osteograde.inference import run, submission
from osteograde.tasks import TASKS
from tests.faults.runner import grade

TASK = TASKS["lumbar-mr"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.fixture(scope="module")
def undisturbed(small_studies, tmp_path_factory):
    """(job, clean run)"""
    data, weights = small_studies
    return kill.Job(data, weights), grade("lumbar-mr", data, weights, tmp_path_factory.mktemp("clean") / "s.csv")


def test_killed_at_any_moment_the_file_is_whole_and_the_next_run_undisturbed(undisturbed, tmp_path):
    job, clean = undisturbed
    assert kill.kills(job, tmp_path, clean.out.read_bytes(), 2.0, 3, random.Random(4)) == []


def test_sigterm_writes_what_is_done_and_flags_the_rest(undisturbed, tmp_path, monkeypatch):
    job, clean = undisturbed
    monkeypatch.setattr(run, "CHUNK", 1)
    work, done = run._grade_chunk, []

    def told_to_stop(*args):
        if done:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(1)
        return work(*args)

    monkeypatch.setattr(run, "_grade_chunk", told_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    stopped = grade("lumbar-mr", job.data, job.weights, tmp_path / "s.csv")
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.code == 0 and kill.is_whole(job, stopped.out)
    assert "told to stop" in stopped.said and "stopped x 2" in stopped.said
    assert stopped.cells["a"] == clean.cells["a"] and "stopped" not in stopped.reasons["a"]
    for study in "bc":
        assert stopped.reasons[study] == {"stopped": 1, "not_graded": 1}
        prior = submission.written(np.array([TASK.prior[target] for target in TASK.targets]))
        assert np.abs(np.array([stopped.cells[study][t] for t in TASK.targets], float) - prior).max() < 1e-8


def test_sigterm_while_a_picture_is_drawn_keeps_what_is_graded(undisturbed, tmp_path, monkeypatch, caplog):
    job, clean = undisturbed
    monkeypatch.setattr(run, "CHUNK", 1)
    caplog.set_level(logging.INFO)
    drawers = [lambda result, bundle: os.kill(os.getpid(), signal.SIGTERM)]
    out = tmp_path / "s.csv"
    assert infer("lumbar-mr", job.data, job.weights, out, device="cpu", drawers=drawers) == 0
    assert kill.is_whole(job, out) and "stopped x 2" in caplog.text
    rows, whole = submission.read_submission(out), submission.read_submission(clean.out)
    assert all(np.array_equal(values, whole[row]) for row, values in rows.items() if row.startswith("a_"))


def test_ctrl_c_leaves_a_whole_file_and_says_so_in_one_line(undisturbed, tmp_path, monkeypatch, capsys):
    job, _ = undisturbed
    monkeypatch.setattr(run, "CHUNK", 1)

    def interrupt(result, bundle):
        raise KeyboardInterrupt

    out = tmp_path / "s.csv"
    code = cli.run(lambda: infer("lumbar-mr", job.data, job.weights, out, device="cpu", drawers=[interrupt]))
    err = capsys.readouterr().err
    assert code == 130 and kill.is_whole(job, out)
    assert err == (
        f"interrupted: {out} is a valid submission: 1 of 3 studies are graded, its other rows are class priors\n"
    )


def test_a_study_is_reported_as_finished_only_once_its_rows_are_on_disk(undisturbed, tmp_path, monkeypatch):
    job, _ = undisturbed
    monkeypatch.setattr(run, "CHUNK", 1)
    write, calls = submission.write_submission, []

    def crowded(path, rows, columns, **options):
        calls.append(1)
        if len(calls) == 3:  # the second study's
            raise OSError(28, "No space left on device")
        write(path, rows, columns, **options)

    monkeypatch.setattr(submission, "write_submission", crowded)
    work = run.prepare("lumbar-mr", job.data, job.weights, device="cpu")
    running, saved = run.start(work, tmp_path / "s.csv"), []
    with run.grading(work, running) as chunks:
        saved += [running.saved for _ in chunks]
    assert saved == [("a",), ("a",), ("a", "b", "c")] and running.saved == ("a", "b", "c")


def test_other_threads_leave_the_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with run.on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_rows_that_a_deadline_cut_off_are_flagged(undisturbed, tmp_path):
    job, _ = undisturbed
    late = grade("lumbar-mr", job.data, job.weights, tmp_path / "s.csv", "--time-budget", "1e-9")
    assert late.code == 0 and kill.is_whole(job, late.out) and "deadline x 3" in late.said
    assert all(late.reasons[study] == {"deadline": 1, "not_graded": 1} for study in "abc")


def test_a_full_disk_ends_with_the_last_good_file(undisturbed, tmp_path):
    job, clean = undisturbed
    assert kill.full(job, tmp_path, clean.out.read_bytes()) == []


def test_a_forbidden_folder_ends_with_the_last_good_file(undisturbed):
    job, clean = undisturbed
    with tempfile.TemporaryDirectory() as name:  # the folders of tests are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        assert kill.forbidden(job, folder, clean.out.read_bytes()) == []


def test_a_disk_that_is_full_for_a_while_costs_no_row(undisturbed, tmp_path, monkeypatch):
    job, clean = undisturbed
    monkeypatch.setattr(run, "CHUNK", 1)
    write, calls = submission.write_submission, []

    def crowded(path, rows, columns, **options):
        calls.append(1)
        if len(calls) in (2, 3):
            raise OSError(28, "No space left on device")
        write(path, rows, columns, **options)

    monkeypatch.setattr(submission, "write_submission", crowded)
    again = grade("lumbar-mr", job.data, job.weights, tmp_path / "s.csv")
    assert again.code == 0 and "not_written_yet x 2" in again.said
    assert again.out.read_bytes() == clean.out.read_bytes()


def test_a_full_disk_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "s.csv").write_text("what was there")
    assert cli.run(lambda: files.atomic_write(tmp_path / "s.csv", "new")) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"] and (
        tmp_path / "s.csv"
    ).read_text() == "what was there"


def test_pictures_that_cannot_be_drawn_cost_no_row(undisturbed, tmp_path, caplog):
    job, clean = undisturbed

    def draw(result, bundle):
        raise OSError(28, "No space left on device")

    out = tmp_path / "s.csv"
    caplog.set_level(logging.INFO)
    assert infer("lumbar-mr", job.data, job.weights, out, device="cpu", drawers=[draw]) == 0
    assert out.read_bytes() == clean.out.read_bytes() and "picture_not_written x 3" in caplog.text


def test_two_runs_into_one_file_do_not_share_a_half(undisturbed, tmp_path):
    job, clean = undisturbed
    out = tmp_path / "s.csv"
    children = [kill.start(job, out) for _ in range(2)]
    assert [kill.finish(child) for child in children] == [0, 0]
    assert out.read_bytes() == clean.out.read_bytes() and not list(tmp_path.glob("*.part"))


def test_no_studies_are_a_header(small_studies, tmp_path):
    _, weights = small_studies
    empty = tmp_path / "data"
    (empty / "test_images").mkdir(parents=True)
    (empty / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    none = grade("lumbar-mr", empty, weights, tmp_path / "s.csv")
    assert none.code == 0 and none.out.read_text() == "row_id,normal_mild,moderate,severe\n"


def test_ctrl_c_while_phantoms_are_made_in_processes_prints_one_line(tmp_path):
    words = ["phantom", "lumbar-mr", "--out", str(tmp_path), "--studies", "8"]
    env = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[2])}
    program = (
        "import os, sys\nos.cpu_count = lambda: 2\n"
        f"from osteograde import cli\nsys.exit(cli.run(lambda: cli.main({words})))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not any(tmp_path.rglob("*.dcm")):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the processes as well
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted: the same command starts again\n")
