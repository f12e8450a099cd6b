"""One thread for torch, here and in every process that a test starts: small nets on a shared machine are several times
faster so, and the same bytes come out. And no deadline for examples of property tests. Ctrl-C reaches the processes
that tests start, also where the tests run in the background of a shell, which lets its jobs ignore it."""

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
hypothesis.settings.register_profile("shared machine", deadline=None)  # a busy machine is not a fault of the code
hypothesis.settings.load_profile("shared machine")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process hands on that it ignores a signal


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: processes that share whole files out then end at nearly the same time, each
    with files of a second. Within a file, and among files of one kind, the order stays as it is."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_handler_is_left_to_other_tests():
    """A test that runs a command in this process has its log printed to stdout; that of the next test is its own. The
    same holds of fixtures of a whole module, which run before this one."""
    package = logging.getLogger("osteograde")
    package.handlers[:] = [handler for handler in package.handlers if type(handler).__module__ != "osteograde.logs"]
    handlers, level = package.handlers[:], package.level
    yield
    package.handlers[:] = handlers
    package.setLevel(level)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Callable[..., Path]:
    """Makes phantoms as osteograde.phantom does and returns their folder, which no test may change. Those that several
    files ask for are made once, also where the files are shared out among processes."""
    from osteograde import phantom

    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "phantoms"

    def made(task: str, *, studies: int = 0, test: int = 0, seed: int) -> Path:
        folder = shared / f"{task}-{studies}-{test}-{seed}"
        if not folder.is_dir():
            new = tmp_path_factory.mktemp("phantoms")
            phantom.write(task, new / "data", studies=studies, test=test, seed=seed)
            shared.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # another process was faster
                new.rename(folder)
        return folder / "data"

    return made


@pytest.fixture(scope="session")
def small_studies(tmp_path_factory):
    """(data, weights): three small healthy studies a, b and c of lumbar-mr, and nets that know nothing."""
    from osteograde.inference import submission
    from osteograde.tasks import TASKS
    from tests.faults.studies import VIEWS, Study, write_healthy, write_table
    from tests.tiny import random_bundle

    folder = tmp_path_factory.mktemp("small")
    healthy, data, task = write_healthy(folder), folder / "data", TASKS["lumbar-mr"]
    for name in "abc":
        shutil.copytree(healthy, data / "test_images" / name)
    write_table(data, {name: Study(data / "test_images" / name, dict(VIEWS)) for name in "abc"})
    rows = {row: [1 / 3] * 3 for name in "abc" for row in task.rows(name)}
    submission.write_submission(data / "sample_submission.csv", rows, task.classes)
    return data, random_bundle(folder / "weights", pixels=(32, 32))
