"""Real Ray: two machines on loopback with one core each leave the bytes of one process, also where a worker is killed.

Both machines are processes of this test (``ray.cluster_utils``), and so are the workers: only these are ended.
"""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from osteograde import cli, phantom, ray_cluster
from osteograde.errors import UserError
from tests.logs import logged
from tests.test_grade_shards import same_tables, write_graded_by_one_process
from tests.test_tune import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc, to find the worker that it kills"),
]
TASK = "knee-xray"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a cluster of two machines with one core each answers."""
    pytest.importorskip("ray", reason="the package ray is not installed: pip install 'osteograde[ray]'")
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")  # the bytes of nets depend on the threads of a CPU
    for name, value in ray_cluster.SETTINGS.items():
        patch.setenv(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()
    patch.undo()


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def worker_of(task: str) -> int | None:
    """The process below this one that does a task: Ray gives it the title ray::TASK."""
    for pid in descendants(os.getpid()):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ") == f"ray::{task}".encode():
                return pid
        except FileNotFoundError:
            continue
    return None


class Killer(threading.Thread):
    """Kills the worker of a task once, as soon as there is one and a file is there as well."""

    def __init__(self, task: str, file: Path | None = None) -> None:
        super().__init__(daemon=True)
        self.task, self.file, self.killed = task, file, 0

    def run(self) -> None:
        until = time.monotonic() + 120
        while not self.killed and time.monotonic() < until:
            if (self.file is None or self.file.is_file()) and (pid := worker_of(self.task)):
                os.kill(pid, signal.SIGKILL)
                self.killed = pid
            time.sleep(0.01)


def hashes(out: Path) -> dict[str, str]:
    paths = [*out.glob("*/*/*.safetensors"), *(out / name for name in ("folds.csv", "oof.csv", "oof_points.csv"))]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def train(folder: Path, out: str, *more: str) -> int:
    words = ["train", TASK, "--data", str(folder / "data"), "--out", str(folder / out), "--debug", "--folds", "0"]
    return cli.run(lambda: cli.main([*words, "--device", "cpu", *more]))


@pytest.fixture(scope="module")
def trained(address, tmp_path_factory) -> Path:
    """A folder with phantoms in ``data`` and what one process makes of them in ``serial``."""
    import torch

    assert torch.get_num_threads() == 1  # as each of the workers has
    folder = tmp_path_factory.mktemp("ray")
    phantom.write(TASK, folder / "data", studies=6, seed=3)
    assert train(folder, "serial") == 0
    return folder


def test_a_run_begun_in_one_process_and_resumed_by_ray_leaves_its_bytes_also_where_a_worker_is_killed(
    trained, address, capsys
):
    """Local workers leave the same ones: tests/test_jobs.py."""
    assert train(trained, "ray", "--only", "prepare", "--only", "locate/*/shared*") == 0
    assert len(list(trained.glob("ray/work/nets/locate-joint-common-*.sha256"))) == 1
    killer = Killer("grade/kl/fold0", trained / "ray" / "work" / "nets" / "grade-kl-0.pt")
    killer.start()
    with logged("learning") as said:
        assert train(trained, "ray", "--resume", "--executor", f"ray:{address}") == 0
    killer.join()
    assert killer.killed and any("grade/kl/fold0: its worker was lost" in line for line in said)
    assert any("by Ray on 2 machines: 2 at once, each with 1 core" in line for line in said)
    assert hashes(trained / "serial") == hashes(trained / "ray")
    assert len(hashes(trained / "ray")) == 5


def test_graded_shards_leave_the_bytes_of_one_process_also_where_a_worker_is_killed(address, tmp_path, capsys):
    folder = write_graded_by_one_process(tmp_path)
    out, weights = folder / "out.csv", folder / "weights"
    first = (folder / "one.csv").read_text().splitlines()[1].partition("_")[0]
    killer = Killer(f"{first}+2")  # the first half of the studies
    killer.start()
    with logged("inference") as said:
        words = ["--data", str(folder / "data"), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
        assert cli.run(lambda: cli.main(["grade", "spider", *words, "--executor", f"ray:{address}"])) == 0
    killer.join(1)
    assert killer.killed and any("its studies are graded once more" in line for line in said)
    assert same_tables(folder, out)


def test_a_search_by_ray_has_all_of_its_trials_also_where_a_worker_is_killed(address, tmp_path, capsys):
    pytest.importorskip("optuna", reason="the package optuna is not installed: pip install 'osteograde[tune]'")
    phantom.write(TASK, tmp_path / "data", studies=12, seed=3)
    (tmp_path / "my.py").write_text('SPACE = {"grade.kl.training.lr": (1e-4, 1e-2, "log")}')
    out = tmp_path / "out"
    words = ["tune", TASK, "--recipe", "knee-xray-small", "--data", str(tmp_path / "data"), "--out", str(out),
             "--space", str(tmp_path / "my.py"), "--inner", "2", "--folds", "0", "--trials", "3", "--device", "cpu",
             *(word for one in SMALL for word in ("--set", one))]  # fmt: skip
    killer = Killer("outer0/trial001", out / "outer0" / "trial001" / "lock")
    killer.start()
    with logged("learning") as said:
        assert cli.run(lambda: cli.main([*words, "--executor", f"ray:{address}"])) == 0
    killer.join(1)
    assert killer.killed and any("outer0/trial001: its worker was lost" in line for line in said)
    (searched,) = json.loads((out / "tune.json").read_text())["folds"]
    assert [one["number"] for one in searched["trials"]] == [0, 1, 2] and searched["outer"] is not None


def mistake() -> None:
    raise UserError("a wrong number")


def fault() -> None:
    raise KeyError("ours")


def test_the_error_of_a_task_is_the_error_of_the_run_and_not_tried_again(address):
    with ray_cluster.connected(f"ray:{address}") as ray:
        for work, error in ((mistake, UserError), (fault, KeyError)):
            tasks = ray_cluster.RayTasks(ray, ray_cluster.Share(1, 0, 2))
            tasks.submit("one", work)
            with pytest.raises(error) as raised:
                while len(tasks):
                    list(tasks.finished())
            assert type(raised.value) is error
