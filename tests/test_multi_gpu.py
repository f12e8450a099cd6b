"""Several devices: every study is graded once, a process that dies costs nobody else's rows, parts merge as text."""

import json
import logging
import subprocess
import sys
import time
from collections import Counter

import pytest

from osteograde.inference import multi_gpu, run, submission
from osteograde.inference.multi_gpu import WorkOrder
from osteograde.inference.submission import RunSummary
from osteograde.models.manifest import Manifest
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS
from tests.tiny import random_bundle

TASK = "knee-xray"
CLASSES = TASKS[TASK].classes

# Stands for a process that grades: does its list chunk by chunk, and dies on studies that are called so.
FAKE = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
done, lines = [], {}
for name in job["ids"]:
    lines[name] = f"{name}_left,0.9,0.025,0.025,0.025,0.025"
    if name.startswith("poison") or (name.startswith("once") and job["chunk"] > 1):
        os._exit(9)
    done.append(name)
    (folder / "part.part").write_text("head\\n" + "\\n".join(lines.values()) + "\\n")
    (folder / "part.part").replace(folder / "part.csv")
    facts = {"done": done, "studies": 0, "unread": 0, "on_prior": 0, "faults": {}, "seconds": {"grade": len(done)},
             "flags": [[f"{d}_left", "why", 1] for d in done], "findings": []}
    (folder / "progress.part").write_text(json.dumps(facts))
    (folder / "progress.part").replace(folder / "progress.json")
"""


@pytest.fixture
def jobs(monkeypatch, tmp_path) -> list[WorkOrder]:
    """Jobs are done by FAKE; the list of all that were started."""
    started: list[WorkOrder] = []
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def start(job, folder):
        started.append(job)
        folder.mkdir(parents=True)
        multi_gpu.write_order(folder, job)
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-S", str(script), str(folder)], stdout=log, stderr=log)
        return multi_gpu.Worker(job, folder, process)

    monkeypatch.setattr(multi_gpu, "start_worker", start)
    return started


def grade(names, tmp_path, devices=("cuda:0", "cuda:1")) -> tuple[RunSummary, dict]:
    """The summary, and the first column of each row."""
    data = tmp_path / "data"
    data.mkdir()
    for name in names:
        (data / f"{name}.png").write_bytes(b"")
    manifest = Manifest(TASK, {}, {}, 1, dict.fromkeys(("left", "right"), (0.2,) * 5))
    studies = [
        type(study)(study.id, study.patient, study.series, targets=("left",))
        for study in TASKS[TASK].read(data, "test")
    ]
    weights = ensemble.Weights(data, "mean", (ensemble.Member("m", data, "", manifest),))
    job = run.Job(TASKS[TASK], studies, weights, ends=time.monotonic() + 3600)
    out = tmp_path / "submission.csv"
    summary = multi_gpu.infer_on_devices(job, data, out, devices, poll_s=0.01)
    return summary, {row: values[0] for row, values in submission.read_submission(out).items()}


def test_lists_are_dealt_evenly_and_completely():
    dealt = multi_gpu.deal([str(i) for i in range(7)], 2)
    assert [len(ids) for ids in dealt] == [4, 3]
    assert sorted(sum(dealt, ())) == [str(i) for i in range(7)]
    assert multi_gpu.deal(["a"], 2) == [("a",)]


def test_every_study_is_graded_once_and_rows_keep_their_order(jobs, tmp_path):
    names = [f"s{i:02d}" for i in range(9)]
    summary, rows = grade(names, tmp_path)
    assert list(rows) == [f"{name}_left" for name in names]
    assert set(rows.values()) == {0.9}
    assert Counter(name for job in jobs for name in job.ids) == Counter(names)
    assert {job.device for job in jobs} == {"cuda:0", "cuda:1"}
    assert [row for row, _, _ in summary.flags] == [f"{name}_left" for name in names]
    assert (summary.studies, summary.faults, summary.seconds["grade"]) == (9, Counter(), 9)


def test_the_list_of_a_dead_process_is_taken_by_the_other(jobs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    summary, rows = grade(["a", "b", "once1", "c", "d", "e"], tmp_path)
    assert set(rows.values()) == {0.9}
    assert summary.faults == Counter()
    died, taken = next(job for job in jobs if "once1" in job.ids), jobs[-1]
    assert died.device != taken.device
    assert set(taken.ids) < set(died.ids)
    assert "died with code 9 at study once1" in caplog.text


def test_a_study_that_kills_keeps_its_prior_and_costs_no_other(jobs, tmp_path):
    summary, rows = grade(["a", "b", "poison", "c", "d", "e"], tmp_path)
    assert {row for row, value in rows.items() if value != 0.9} == {"poison_left"}
    assert summary.faults == Counter({multi_gpu.DIED: 1})
    assert summary.on_prior == 1


def test_a_machine_on_which_everything_dies_ends_with_priors(jobs, tmp_path):
    names = [f"poison{i:02d}" for i in range(40)]
    summary, rows = grade(names, tmp_path)
    assert set(rows.values()) == {0.2}
    assert summary.faults[multi_gpu.DIED] == 40
    assert len(jobs) <= multi_gpu.MAX_PROCESSES


def test_suspects_come_last_and_one_at_a_time():
    job = WorkOrder(TASK, (), "", "cpu", ("a", "b", "c", "d", "e"), 1.0, 1, chunk=2)
    left, lost = multi_gpu.remaining_order(job, ("a",), Counter(b=1, c=1))
    assert (left.ids, left.chunk, lost) == (("d", "e", "b", "c"), 1, [])
    left, lost = multi_gpu.remaining_order(left, ("d", "e"), Counter(b=2))
    assert (left.ids, lost) == (("c",), ["b"])


def test_a_process_sees_only_its_own_gpu(tmp_path, monkeypatch):
    started = {}
    monkeypatch.setattr(multi_gpu.subprocess, "Popen", lambda command, env, **_: started.update(env) or None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    multi_gpu.start_worker(WorkOrder(TASK, (), "", "cuda:1", ("a",), 1.0, 1), tmp_path / "one")
    assert started["CUDA_VISIBLE_DEVICES"] == "7"
    assert json.loads((tmp_path / "one" / multi_gpu.ORDER).read_text())["device"] == "cuda:0"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    multi_gpu.start_worker(WorkOrder(TASK, (), "", "cuda:1", ("a",), 1.0, 1), tmp_path / "two")
    assert started["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_worker_tells_what_its_process_did(tmp_path):
    weights = random_bundle(tmp_path / "weights", TASK)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "9000001L.png").write_bytes(b"broken")
    (tmp_path / "9000001L.png").write_bytes(b"broken")
    (tmp_path / "job").mkdir()
    places = (str(tmp_path / "data"), str(tmp_path / "9000001L.png"))
    job = WorkOrder(TASK, places, str(weights), "cpu", ("data_9000001L",), 1.0, 1)
    multi_gpu.write_order(tmp_path / "job", job)
    assert multi_gpu.main(tmp_path / "job") == 0
    came = multi_gpu.read_progress(tmp_path / "job")
    assert came.done == ("data_9000001L",)
    assert came.summary.unread == 1
    assert came.summary.flags
