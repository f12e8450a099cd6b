"""The rehearsal of a served kernel: a good one passes, and every way to fail a host is told in one line."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from osteograde.inference import serve, submission
from osteograde.kaggle import build_kernel, rehearse_served, staging, stand_in_host
from osteograde.kaggle.rehearse_served import Gateway
from osteograde.tasks import TASKS
from osteograde.tasks.places import read_places
from osteograde.tasks.spec import Serving
from tests.logs import logged
from tests.tiny import noise_knees, random_bundle

TASK = TASKS["knee-xray"]
SET, IMAGES = "some-one/knee-weights", "some-one/knee-images"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return noise_knees(tmp_path_factory.mktemp("data") / "knees")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("weights") / "random", TASK.name)


@pytest.fixture
def script(weights, tmp_path) -> Path:
    return build_kernel.build(TASK.name, weights, tmp_path / "kernel", source=SET, data=IMAGES)


def good(path: str) -> pd.DataFrame:
    """The priors of what lies there, as a host wants them."""
    try:
        rows = [row for study in read_places(TASK, path) for row in TASK.rows(study.id, study.targets)]
    except (ValueError, OSError):
        rows = TASK.rows(Path(path).name)
    return serve.table_of(TASK, submission.priors_rows(TASK, rows))


def faults_of(predict: Callable[[str], object], data: Path, folder: Path, task=TASK, wait_s: float = 0.0) -> list[str]:
    """What the gateway says of a predictor that serves in a thread."""
    stock = staging.stock(task, data)
    shared, socket = folder / "shared", folder / "s"
    shared.mkdir()
    gateway = Gateway(task, stock, shared, str(shared), socket, task.serving.start_s)
    os.environ[stand_in_host.SOCKET] = str(socket)
    asking = threading.Thread(target=gateway.run, args=(stock.studies,), daemon=True)
    asking.start()
    time.sleep(wait_s)
    try:
        stand_in_host.InferenceServer(predict).serve()
    except SystemExit:
        pass
    finally:
        del os.environ[stand_in_host.SOCKET]
    gateway.end()
    asking.join(20)
    return gateway.faults


def test_a_good_predictor_passes_whole_and_damaged_studies(data, tmp_path):
    seen = []
    assert faults_of(lambda path: seen.append(path) or good(path), data, tmp_path) == []
    assert len(seen) == 10


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda table: table.rename(columns={"row_id": "id"}), "the answer has the columns ['id', "),
        (lambda table: table.assign(row_id="other"), "the answer has the rows ['other'], expected ['9000001L_"),
        (lambda table: table.iloc[:0], "the answer has no row"),
        (lambda table: table.assign(**{TASK.classes[0]: float("nan")}), "values that are no probabilities"),
        (lambda table: table.assign(**{TASK.classes[0]: 0.9, TASK.classes[1]: 0.9}), "rows that do not sum to 1"),
        (lambda table: 1 / 0, "ZeroDivisionError"),
        (lambda table: None, "AttributeError"),
    ],
)
def test_a_wrong_answer_is_told_in_one_line(spoil, told, data, tmp_path):
    faults = faults_of(lambda path: spoil(good(path)), data, tmp_path)
    assert faults[0].startswith("study 9000001L: ")
    assert told in faults[0]


def test_an_answer_that_comes_too_late_is_told(data, tmp_path):
    """Not the first one, for which the nets may still be loaded. The limit is one that a busy machine keeps."""
    task, asked = replace(TASK, serving=Serving(study_s=2.0)), []

    def late(path):
        asked.append(path)
        time.sleep(2.5 * (len(asked) == 3))
        return good(path)

    (fault,) = faults_of(late, data, tmp_path, task)
    assert fault.startswith("study 9000002L: answered after ") and fault.endswith(" s, allowed are 2")


def test_a_kernel_that_serves_too_late_is_told(data, tmp_path):
    task = replace(TASK, serving=Serving(start_s=0.1))
    faults = faults_of(good, data, tmp_path, task, wait_s=0.5)
    assert len(faults) == 1 and faults[0].endswith("s, allowed are 0.1")


def test_a_kernel_that_dies_between_two_studies_is_told(data, tmp_path):
    calls = []

    def dies(path):
        calls.append(path)
        if len(calls) == 4:
            raise SystemExit
        return good(path)

    faults = faults_of(dies, data, tmp_path)
    assert len(faults) == 1
    assert faults[0].startswith("the kernel hung up after 3 answers: ")


def play(script: Path, data: Path, weights: Path, **options) -> tuple[list[str], list[str]]:
    with logged("kaggle") as lines:
        return rehearse_served.rehearse_served(TASK.name, script, data, weights, **options), lines


def changed(script: Path, old: str, new: str) -> Path:
    text = script.read_text()
    assert text.count(old) == 1
    script.write_text(text.replace(old, new))
    return script


def test_a_socket_that_is_there_before_anybody_listens_is_waited_for(tmp_path):
    """A listener binds its socket, which makes the file, and listens a moment later."""
    gateway = Gateway(TASK, None, tmp_path, "/shared", tmp_path / "socket", 30.0)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(gateway.socket))
        asking = threading.Thread(target=gateway.run, args=([],))
        asking.start()
        time.sleep(0.2)
        assert asking.is_alive() and gateway.faults == []
        bound.listen()
        bound.accept()[0].close()  # a client that does not ask for studies says goodbye at once
        asking.join(10)
    assert not asking.is_alive() and gateway.served_s >= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [True, False], ids=["namespaces", "plain"])
def test_a_good_kernel_is_served_and_its_times_are_told(script, data, weights, isolate):
    faults, said = play(script, data, weights, isolate=isolate)
    assert faults == []
    assert any(line.startswith("hidden run: served after ") and "; 10 answers, " in line for line in said)


@pytest.mark.slow
def test_a_kernel_that_never_serves_is_caught(script, data, weights):
    faults, _ = play(changed(script, "        server.serve()\n", "        pass\n"), data, weights)
    assert faults == ["hidden run: the kernel ended without serving: it must call serve()"]


@pytest.mark.slow
def test_a_task_with_a_table_of_its_own_is_served_by_its_own_host(script, data, weights, monkeypatch):
    """One row a study and a host of another name, as competitions of this kind have them."""
    table = 'table=lambda rows: {"worst": [1 - row[0] for row in rows.values()]}'
    own = f'Serving("rsna_inference_server:RSNAInferenceServer", {table})'
    plain = 'TASK = Task(\n    name="knee-xray",\n'
    changed(script, plain, f"from osteograde.tasks.spec import Serving\n\n{plain}    serving={own},\n")
    monkeypatch.setitem(TASKS, TASK.name, replace(TASK, serving=eval(own)))
    faults, _ = play(script, data, weights)
    assert faults == []
