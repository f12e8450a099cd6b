"""What is decided beside Ray: shares of machines, what is ready, what a lost task costs. Ray itself is not needed."""

import argparse
import importlib.util
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from osteograde import cli, ray_cluster, train_command, tune_command
from osteograde.errors import UserError
from osteograde.learning import nested
from osteograde.learning.executors import WorkerDied
from osteograde.ray_cluster import Lost, Share, share_of
from tests.logs import logged
from tests.searches import search_of


@dataclass(frozen=True)
class Job:
    key: str
    after: tuple[str, ...] = ()


JOBS = [Job("a0"), Job("a1"), Job("b", ("a0", "a1")), Job("c0", ("b",)), Job("c1", ("b",))]


class FakeTasks:
    """Stands for a cluster: what was submitted last is done first. deaths: how often the worker of a task dies."""

    def __init__(self, **deaths: int) -> None:
        self.deaths, self.under_way, self.submitted = Counter(deaths), dict[str, Callable[[], Any]](), list[str]()

    def __len__(self) -> int:
        return len(self.under_way)

    def submit(self, name: str, work: Callable[[], Any]) -> None:
        assert name not in self.under_way
        self.under_way[name] = work
        self.submitted.append(name)

    def finished(self) -> Iterator[tuple[str, Any]]:
        name, work = self.under_way.popitem()
        if self.deaths[name]:
            self.deaths[name] -= 1
            yield name, Lost("the worker died")
        else:
            yield name, work()


def begin(done: list[str]) -> Callable[[str], None]:
    return done.append


def test_jobs_are_submitted_once_and_when_those_that_they_wait_for_are_finished():
    done: list[str] = []
    tasks = FakeTasks()
    ray_cluster.run_jobs(JOBS, {"a1"}, partial(begin, done), tasks)
    assert done == ["a0", "b", "c1", "c0"] and tasks.submitted == ["a0", "b", "c0", "c1"]


def test_a_lost_worker_costs_its_job_one_more_try_and_no_other_job():
    done: list[str] = []
    tasks = FakeTasks(a1=1, c0=1)
    with logged("learning") as said:
        ray_cluster.run_jobs(JOBS, (), partial(begin, done), tasks)
    assert sorted(done) == ["a0", "a1", "b", "c0", "c1"]
    assert Counter(tasks.submitted) == {"a0": 1, "a1": 2, "b": 1, "c0": 2, "c1": 1}
    assert [line for line in said if "the worker died" in line and "goes on in another one" in line]


def test_a_job_whose_workers_are_lost_twice_ends_the_run_and_is_named():
    done: list[str] = []
    with pytest.raises(WorkerDied, match=r"^b: its worker was lost \(the worker died\), as one before it was"):
        ray_cluster.run_jobs(JOBS, (), partial(begin, done), FakeTasks(b=2))
    assert sorted(done) == ["a0", "a1"]


def test_jobs_that_wait_for_one_that_nobody_does_are_refused():
    with pytest.raises(ValueError, match="b waits for"):
        ray_cluster.run_jobs(JOBS[2:], (), partial(begin, []), FakeTasks())


def nodes(*cores: int, gpus: int = 0) -> list[dict[str, float]]:
    return [{"CPU": float(count), **({"GPU": float(gpus)} if gpus else {})} for count in cores]


def test_a_task_takes_a_gpu_with_its_part_of_the_cores_or_all_cores_that_leave_none_waiting():
    assert share_of(nodes(16, 8, gpus=2), "auto", 5) == Share(4, 1, 4)
    assert share_of([*nodes(16, gpus=8), *nodes(64)], "cuda", 5) == Share(2, 1, 8)
    assert share_of(nodes(2, gpus=4), "auto", 5) == Share(1, 1, 4)  # Ray gives a task whole cores or none
    assert share_of(nodes(16, gpus=2), "cpu", 5) == Share(3, 0, 5)
    assert share_of(nodes(16, 16), "auto", 5) == Share(5, 0, 6)
    assert share_of(nodes(1, 1), "auto", 5) == Share(1, 0, 2)
    assert share_of(nodes(2), "auto", 1) == Share(2, 0, 1)
    assert share_of(nodes(16, 3), "auto", 5, threads="4") == Share(4, 0, 4)
    assert share_of(nodes(4), "auto", 5, threads="2,1") == Share(1, 0, 4)  # of nested loops: no number of cores
    assert share_of(nodes(16, gpus=2), "auto", 5).device == "cuda"
    assert share_of(nodes(16), "auto", 5).device == "cpu"


def test_a_machine_that_does_not_see_the_folder_of_the_run_is_refused_and_writes_nothing_there(tmp_path):
    args = argparse.Namespace(out=tmp_path / "out", data=tmp_path)
    with pytest.raises(UserError, match=r"the machine .* has no .*out/work/recipe.json; put --data and --out into"):
        train_command.session_of_cluster(args)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out" / "work").mkdir(parents=True)
    (tmp_path / "out" / "work" / "recipe.json").touch()
    with pytest.raises(UserError, match=r"the machine .* has no .*elsewhere"):
        train_command.session_of_cluster(argparse.Namespace(out=tmp_path / "out", data=tmp_path / "elsewhere"))


def test_what_no_machine_has_is_refused_and_not_waited_for():
    with pytest.raises(UserError, match="no machine of the Ray cluster has a GPU"):
        share_of(nodes(16), "cuda", 5)
    with pytest.raises(UserError, match=r"OMP_NUM_THREADS is 8: .* have \[4, 2\] cores"):
        share_of(nodes(4, 2), "auto", 5, threads="8")


def test_the_trials_of_a_search_are_tasks_and_judged_when_all_of_them_are_done(tmp_path, monkeypatch):
    made, shares = search_of(trials=3, folds=(0,)), []
    tasks, done = FakeTasks(**{"outer0/trial001": 1}), list[str]()

    @contextmanager
    def connected(executor: str) -> Iterator[Any]:
        assert executor == "ray:head:6379"
        yield argparse.Namespace(nodes=lambda: [{"Alive": True, "Resources": one} for one in nodes(2, 2)])

    def of_cluster(ray: Any, share: Share) -> FakeTasks:
        shares.append(share)
        return tasks

    monkeypatch.setattr(ray_cluster, "connected", connected)
    monkeypatch.setattr(ray_cluster, "RayTasks", of_cluster)
    monkeypatch.setattr(tune_command, "session", lambda args: done.append if args.device == "cpu" else None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / nested.SEARCH).touch()
    args = argparse.Namespace(executor="ray:head:6379", device="auto", out=tmp_path, data=tmp_path)
    tune_command._do(args, made, None, None, {"outer0/trial002"})
    assert shares == [Share(1, 0, 4)] and Counter(tasks.submitted)["outer0/trial001"] == 2
    assert sorted(done[:2]) == ["outer0/trial000", "outer0/trial001"]
    assert done[2:] == ["outer0/default", "outer0/chosen"]


def test_a_machine_that_does_not_see_the_folder_of_a_search_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"the machine .* has no .*out/search.json; put --data and --out into"):
        tune_command.session_of_cluster(argparse.Namespace(out=tmp_path / "out", data=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", [None, ModuleSpec("ray", None)], ids=["nothing", "a folder of that name"])
@pytest.mark.parametrize("command", ["train", "grade"])
def test_without_the_package_a_command_is_refused_before_anything_is_read(command, spec, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "ray" else find(name))
    read = [module for module in sys.modules if module.startswith("ray.")]
    assert refused(command, tmp_path, "ray", capsys).startswith("error: --executor ray: the package ray is not inst")
    assert not list(tmp_path.glob("out*")) and [one for one in sys.modules if one.startswith("ray.")] == read


@pytest.mark.parametrize("command", ["train", "grade"])
def test_an_address_where_nobody_answers_is_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(command, tmp_path, f"ray:{address}", capsys)
    assert f"no Ray answers at {address}" in said and "ray start --head" in said


SETTINGS_OF_HTTP2 = b"\0\0\6\4\0\0\0\0\0" + b"\0\4\0\0\xff\xff"  # what a gRPC server begins with


@contextmanager
def listening(host: str, said: bytes) -> Iterator[int]:
    """The port of a server at an address that says these bytes to whoever comes, whatever that says."""
    with socket.create_server((host, 0)) as server:

        def answer() -> None:
            asked, _ = server.accept()
            with asked:
                asked.sendall(said)
                asked.recv(1024)

        answering = threading.Thread(target=answer)
        answering.start()
        yield server.getsockname()[1]
        answering.join()


def test_a_cluster_of_this_machine_is_found_by_localhost_although_it_listens_at_its_network_address(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    with listening(ray_cluster.own_ip(), SETTINGS_OF_HTTP2) as port:
        ray_cluster.check(f"ray:localhost:{port}", "auto")


@pytest.mark.parametrize("said", [b"HTTP/1.0 400 Bad request\r\n", b"SSH", b""])
def test_another_program_at_the_address_is_told_at_once_and_not_waited_for(said, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 0.2)
    with listening("127.0.0.1", said) as port, pytest.raises(UserError, match="no Ray answers at"):
        ray_cluster.check(f"ray:127.0.0.1:{port}", "auto")


def refused(command: str, folder, executor: str, capsys) -> str:
    (folder / "data").mkdir()
    out = "out.csv" if command == "grade" else "out"
    words = [command, "knee-xray", "--data", str(folder / "data"), "--out", str(folder / out), "--executor", executor]
    assert cli.run(lambda: cli.main(words)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--overlays", "o"], "--overlays is of a run in one process"),
        (["--explain", "o"], "--explain is of a run in one process"),
        (["--time-budget", "1"], "--time-budget is of a run in one process"),
        (["--device", "cuda:1"], "Ray chooses the GPU"),
    ],
)
def test_what_shards_cannot_do_is_refused(words, found, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    command = ["grade", "knee-xray", "--data", str(tmp_path), "--out", str(tmp_path / "out.csv"), "--executor", "ray"]
    assert cli.run(lambda: cli.main([*command, *words])) == 2
    assert found in capsys.readouterr().err
