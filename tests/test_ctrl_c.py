"""Ctrl-C: one line that says how to go on, exit code 130, at once and without a traceback; in real processes."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import train_folds
from osteograde import cli, phantom
from osteograde.inference import submission
from osteograde.tasks import TASKS
from tests.faults.studies import VIEWS, Study, write_table

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
PROGRAM = "import sys, threading, time\nfrom osteograde import cli\n{work}\ncli.program(main)\n"


def interrupted(command: list[str], cwd: Path, *moments: str) -> tuple[int, str, float]:
    """Start a command and send it SIGINT as a terminal does, once it has printed a line with the first of the
    ``moments``, and again for each of the others; (exit code, stderr, seconds from the last signal to the end)."""
    with subprocess.Popen(
        command, cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        seen: str | None = ""
        for moment in moments:
            seen = next((line for line in process.stdout if moment in line), None)
            if seen is None:
                break
            time.sleep(0.3)  # so that it is where the line leads to
            os.killpg(process.pid, signal.SIGINT)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never waits for a reader
        sent = time.monotonic()
        err = process.stderr.read()
        code = process.wait(timeout=60)
    assert seen is not None, err
    return code, err, time.monotonic() - sent


def program(work: str) -> list[str]:
    return [sys.executable, "-u", "-c", PROGRAM.format(work=work)]


THREAD = """
def main():
    print("begun")
    worker = threading.Thread(target=time.sleep, args=(50,))  # as one that decodes; an interpreter waits for it
    worker.start()
    worker.join()
"""
STUCK = """
def main():
    print("begun")
    try:
        time.sleep(50)
    finally:
        print("ending")
        time.sleep(50)
"""
HALF = """
import time
print("begun")
try:
    time.sleep(2)
except BaseException:
    raise RuntimeError("torn")
"""
TORN = """
def main():
    print("begun")
    try:
        time.sleep(50)
    except KeyboardInterrupt:  # as compiled code does, when Python that it has called is stopped
        raise ValueError("could not determine the shape of object type") from None
"""
SWALLOWED = """
from osteograde import interrupts
def main():
    print("begun")
    for _ in range(300):
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            pass
        interrupts.check()
"""
WITHIN_AN_IMPORT = """
def main():
    sys.path.insert(0, ".")
    import half
    time.sleep(50)
"""


def test_threads_are_not_waited_for(tmp_path):
    code, err, seconds = interrupted(program(THREAD), tmp_path, "begun")
    assert (code, err) == (130, "interrupted: the same command starts again\n")
    assert seconds < 20


def test_a_second_one_ends_at_once_whatever_is_done(tmp_path):
    code, err, seconds = interrupted(program(STUCK), tmp_path, "begun", "ending")
    assert (code, err) == (-signal.SIGINT, "")
    assert seconds < 20


def test_a_module_that_is_being_imported_is_not_torn(tmp_path):
    (tmp_path / "half.py").write_text(HALF)
    code, err, _ = interrupted(program(WITHIN_AN_IMPORT), tmp_path, "begun")
    assert (code, err) == (130, "interrupted: the same command starts again\n")


@pytest.mark.parametrize("work", [TORN, SWALLOWED])
def test_one_that_others_make_an_error_of_their_own_or_pass_over_is_still_one(work, tmp_path):
    code, err, seconds = interrupted(program(work), tmp_path, "begun")
    assert (code, err) == (130, "interrupted: the same command starts again\n")
    assert seconds < 20


def test_an_error_without_one_keeps_its_traceback(tmp_path):
    words = program("def main():\n    raise ValueError('ours')")
    done = subprocess.run(words, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: ours\n")


@pytest.mark.slow
def test_a_training_says_the_command_that_goes_on_and_that_command_does(tmp_path, monkeypatch, capsys):
    phantom.write("knee-xray", tmp_path / "knees", studies=4, seed=5)
    words = [str(ROOT / "train_folds.py"), "knee-xray", "--data", "knees", "--out", "w", "--debug", "--device", "cpu"]
    code, err, _ = interrupted([sys.executable, "-u", *words], tmp_path, "joint fold 0 epoch 1/1")
    assert code == 130 and err.count("\n") == 1
    said, _, again = err.strip().partition(" with: ")
    assert said == "interrupted: what is done is kept in w; go on from the last finished epoch"
    assert shlex.split(again) == ["python", *words, "--resume"]
    assert not (tmp_path / "w" / "manifest.json").exists()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    code = cli.run(lambda: train_folds.main(shlex.split(again)[2:]))  # in this process, which has torch already
    done = capsys.readouterr()
    assert code == 0, done.err
    assert "1 are finished" in done.out and "joint fold 0 epoch" not in done.out and done.err == ""
    assert (tmp_path / "w" / "manifest.json").is_file()
    *_, weights, score, following = done.out.splitlines()
    assert weights.startswith("weights: w;") and following == "next: python -m osteograde report w --data knees"
    assert score.startswith("score: ") and "95 % interval" in score and "class prior" in score


@pytest.mark.slow
def test_a_grading_says_that_its_file_is_valid_and_it_is(small_studies, tmp_path):
    healthy, weights = small_studies
    data, task = tmp_path / "data", TASKS["lumbar-mr"]
    names = [f"s{number}" for number in range(40)]  # which take seconds, however late the signal is sent
    for name in names:
        shutil.copytree(healthy / "test_images" / "a", data / "test_images" / name)
    write_table(data, {name: Study(data / "test_images" / name, dict(VIEWS)) for name in names})
    rows = {row: [1 / 3] * 3 for name in names for row in task.rows(name)}
    submission.write_submission(data / "sample_submission.csv", rows, task.classes)
    words = ["lumbar-mr", "--data", str(data), "--weights", str(weights), "--out", "s.csv", "--device", "cpu"]
    command = [sys.executable, "-u", str(ROOT / "inference.py"), *words]
    code, err, _ = interrupted(command, tmp_path, "lumbar-mr: 40 studies from")
    assert code == 130 and err.count("\n") == 1, err
    assert err.startswith("interrupted: s.csv is a valid submission: ") and " of 40 studies are graded" in err
    assert err.endswith(f"start again with: {shlex.join(['python', *command[2:]])}\n")
    assert submission.validate(tmp_path / "s.csv", data / "sample_submission.csv") == []
