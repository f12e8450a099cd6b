"""Workers: every job is done once, behind those it waits for, whoever dies in between. Jobs here are small."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from osteograde.errors import UserError
from osteograde.learning import executors
from osteograde.learning.executors import Place, WorkerDied
from tests.logs import logged

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    key: str
    after: tuple[str, ...] = ()


JOBS = [Job("a0"), Job("a1"), Job("b", ("a0", "a1")), Job("c0", ("b",)), Job("c1", ("b",))]
TWO = [Place("one"), Place("two")]


def begin(folder: Path) -> Callable[[str], None]:
    """Jobs that write a line with their key and what they see; the names of files say what goes wrong."""

    def do(key: str) -> None:
        trap = folder / f"trap-{key}"
        if trap.is_file():
            text = trap.read_text()
            if text != "always":
                trap.unlink()
            if text == "mistake":
                raise UserError(f"{key}: a wrong number")
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / "slow").is_file():
            time.sleep(60)
        time.sleep(0.05)
        seen = f"{key} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n"
        with (folder / "log").open("a") as file:
            file.write(seen)

    return do


def lines(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def told(folder: Path, name: str) -> str:
    if name == "killed" and not (folder / name).is_file():
        (folder / name).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "mistake":
        raise UserError("a wrong number")
    if name == "fault":
        raise KeyError("ours")
    return f"{name} by {os.getpid()}"


def test_tasks_are_answered_by_as_many_workers_as_there_are_places_and_a_lost_one_is_told(tmp_path):
    with executors.LocalTasks(TWO) as tasks:
        for name in ("a", "b", "killed", "c"):
            tasks.submit(name, partial(told, tmp_path, name))
        answers, pids = {}, set()
        while len(tasks):
            for name, answer in tasks.finished():
                if isinstance(answer, executors.Lost):
                    assert name == "killed" and "died with exit code -9" in answer.why
                    tasks.submit(name, partial(told, tmp_path, name))
                else:
                    answers[name], pid = answer.split(" by ")
                    pids.add(pid)
    assert answers == {name: name for name in ("a", "b", "killed", "c")} and len(pids) >= 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("name", "error"), [("mistake", UserError), ("fault", executors.TaskFailed)])
def test_the_error_of_a_task_is_raised_and_ends_the_workers(tmp_path, name, error):
    with (
        pytest.raises(error, match=r"a wrong number|fault: one died with exit code 1"),
        executors.LocalTasks(TWO) as tasks,
    ):
        tasks.submit(name, partial(told, tmp_path, name))
        while len(tasks):
            list(tasks.finished())
    assert multiprocessing.active_children() == []


def test_every_job_is_done_once_and_behind_those_that_it_waits_for(tmp_path):
    executors.run(JOBS, {"a1"}, TWO, partial(begin, tmp_path))
    keys = [key for key, *_ in lines(tmp_path)]
    assert sorted(keys) == ["a0", "b", "c0", "c1"]
    assert keys[:2] == ["a0", "b"]
    assert len({pid for _, pid, *_ in lines(tmp_path)}) == 2  # the second one was started when there was work for it


def test_a_worker_that_is_killed_costs_its_job_one_more_try(tmp_path):
    (tmp_path / "trap-a1").write_text("once")
    with logged("learning") as said:
        executors.run(JOBS, (), TWO, partial(begin, tmp_path))
    assert sorted(key for key, *_ in lines(tmp_path)) == ["a0", "a1", "b", "c0", "c1"]
    assert any("a1: " in line and "exit code -9" in line for line in said)


def test_a_job_whose_workers_die_twice_ends_the_run_and_is_named(tmp_path):
    (tmp_path / "trap-b").write_text("always")
    with pytest.raises(WorkerDied, match=r"b: .* died with exit code -9, as one before it did"):
        executors.run(JOBS, (), TWO, partial(begin, tmp_path))
    assert sorted(key for key, *_ in lines(tmp_path)) == ["a0", "a1"]


def test_the_user_s_mistake_is_told_as_such_and_not_tried_again(tmp_path):
    (tmp_path / "trap-b").write_text("mistake")
    with pytest.raises(UserError, match=r"^b: a wrong number$"):
        executors.run(JOBS, (), TWO, partial(begin, tmp_path))


def test_jobs_that_wait_for_one_that_nobody_does_are_refused(tmp_path):
    with pytest.raises(ValueError, match="b waits for"):
        executors.run(JOBS[2:], (), TWO, partial(begin, tmp_path))


def test_a_worker_sees_its_own_environment_and_this_process_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    place = Place("one", {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "5"})
    executors.run(JOBS[:1], (), [place], partial(begin, tmp_path))
    assert lines(tmp_path)[0][2:] == ["3", "5"]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_machine_is_shared_out_by_its_gpus_or_its_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    by_gpu = executors.places(0, 5, range(16), ["2", "3"])
    assert [place.environment for place in by_gpu] == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    assert len(executors.places(3, 5, range(16), ["0"])) == 3
    by_core = executors.places(0, 5, range(16))
    assert [place.cores for place in by_core] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), (12, 13, 14)]
    assert {place.environment["OMP_NUM_THREADS"] for place in by_core} == {"3"}
    assert [len(executors.places(0, 5, range(n))) for n in (1, 2, 64)] == [1, 2, 5]
    crowded = executors.places(4, 5, range(2))  # more workers than cores: one thread each, on any of them
    assert [(place.cores, place.environment["OMP_NUM_THREADS"]) for place in crowded] == [((), "1")] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert all("OMP_NUM_THREADS" not in place.environment for place in executors.places(0, 5, range(16)))


PROGRAM = """
from functools import partial
from pathlib import Path
from osteograde import cli
from osteograde.learning import executors
from tests.test_executors import JOBS, TWO, begin

def main():
    executors.run(JOBS, (), TWO, partial(begin, Path({folder!r})))

if __name__ == "__main__":
    cli.program(main)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """Processes below one, the helpers of multiprocessing included."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_no_worker_outlives_the_process_that_started_it(tmp_path, number):
    (tmp_path / "slow").touch()
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(folder=str(tmp_path)))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, str(script)], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        workers: list[int] = []
        until = time.monotonic() + 60
        while len(workers) < 3 and time.monotonic() < until:  # two, and the tracker of multiprocessing
            time.sleep(0.1)
            workers = children(process.pid)
        time.sleep(2)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.kill()
        assert process.stderr is not None
        code = process.wait(timeout=60)
        until = time.monotonic() + 30
        while any(map(alive, workers)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(alive, workers)) and len(workers) >= 2
        if number == signal.SIGINT:
            assert (code, process.stderr.read()) == (130, "interrupted: the same command starts again\n")
