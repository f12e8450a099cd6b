"""Shards of studies: the files of one process, in whatever order shards end; a lost worker loses no study unnamed."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osteograde import cli, grade_shards, phantom
from osteograde.errors import UserError
from osteograde.grade_shards import Shard
from osteograde.inference import run, submission
from osteograde.inference.multi_gpu import DIED
from osteograde.inference.submission import RunningSubmission, RunSummary
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study
from tests.logs import logged
from tests.test_ray_cluster import FakeTasks
from tests.tiny import random_bundle

TASK = "spider"
TABLES = (".csv", ".flags.csv", ".points.csv", ".findings.csv")
STUDIES = 6


def studies(count: int) -> list[Study]:
    return [Study(f"s{i:03d}", "p", ()) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 7, 100, 5000])
@pytest.mark.parametrize("workers", [1, 2, 64])
def test_every_study_is_in_one_shard_and_no_worker_is_left_without(count, workers):
    shards = grade_shards.cut(studies(count), workers)
    assert [study.id for shard in shards for study in shard.studies] == [study.id for study in studies(count)]
    assert len(shards) >= min(count, workers) / 2
    assert all(len(shard.studies) <= grade_shards.LARGEST for shard in shards)


def test_after_losses_a_shard_is_tried_once_more_and_then_study_by_study():
    first = Shard(studies(3))
    (again,) = grade_shards.after_loss(first)
    assert again.studies == first.studies
    alone = grade_shards.after_loss(again)
    assert [[study.id for study in shard.studies] for shard in alone] == [["s000"], ["s001"], ["s002"]]
    assert grade_shards.after_loss(alone[0]) == []


def write_graded_by_one_process(folder: Path) -> Path:
    """Phantoms in ``data``, nets that know nothing in ``weights``, in ``one.csv`` what one process makes of them."""
    phantom.write(TASK, folder / "data", studies=0, test=STUDIES, seed=3)
    random_bundle(folder / "weights", TASK, pixels=(64, 64))
    job = run.prepare(TASK, folder / "data", folder / "weights", device="cpu")
    one = run.start(job, folder / "one.csv")
    with run.grading(job, one) as chunks:
        list(chunks)
    assert one.summary.findings and one.summary.on_prior < len(one.rows) / 2
    return folder


def same_tables(folder: Path, out: Path) -> bool:
    """Whether all files of a run have the bytes of those of one process."""
    names = [(folder / f"one{end}", out.with_name(out.stem + end)) for end in TABLES]
    return all(one.read_bytes() == other.read_bytes() for one, other in names)


@pytest.fixture(scope="module")
def spines(tmp_path_factory) -> Path:
    return write_graded_by_one_process(tmp_path_factory.mktemp("shards"))


def job_of(folder: Path) -> run.Job:
    return run.prepare(TASK, folder / "data", folder / "weights", device="cpu")


def graded(folder: Path, out: Path, tasks: FakeTasks, *, template: tuple[str, ...] = ()) -> RunningSubmission:
    job = replace(job_of(folder), template=template)
    running = run.start(job, out)
    grade_shards.grade_in(job, running, tasks, 3, device="cpu", data=folder / "data")
    return running


def test_shards_that_end_in_any_order_leave_the_bytes_of_one_process(spines, tmp_path):
    tasks = FakeTasks()  # the last one ends first
    summary = graded(spines, tmp_path / "out.csv", tasks).summary
    assert len(tasks.submitted) == 3 and same_tables(spines, tmp_path / "out.csv")
    assert (summary.studies, summary.unread) == (STUDIES, 0)


def test_a_shard_whose_worker_is_lost_is_graded_again_whole_and_then_study_by_study(spines, tmp_path):
    name = grade_shards.cut(job_of(spines).studies, 3)[0].name
    for deaths, submitted in ((1, 3 + 1), (2, 3 + 1 + 2)):
        tasks, out = FakeTasks(**{name: deaths}), tmp_path / f"{deaths}.csv"
        with logged("inference") as said:
            summary = graded(spines, out, tasks).summary
        assert len(tasks.submitted) == submitted and not summary.unread and same_tables(spines, out)
        assert sum("a worker was lost" in line for line in said) == deaths


def test_a_study_that_kills_every_worker_keeps_its_priors_and_is_flagged_and_named(spines, tmp_path):
    first = grade_shards.cut(job_of(spines).studies, 3)[0]
    killer, other = (study.id for study in first.studies)
    with logged("inference") as said:
        tasks = FakeTasks(**{first.name: 2, f"{killer}+0": 1})
        running = graded(spines, tmp_path / "out.csv", tasks)
    rows = TASKS[TASK].rows(killer, first.studies[0].targets)
    assert (running.summary.faults[DIED], running.summary.unread, running.done) == (1, 1, STUDIES - 1)
    flags = (tmp_path / "out.flags.csv").read_text().splitlines()[1:]
    expected = [f"{row},{reason},1" for row in rows for reason in (DIED, submission.NOT_GRADED)]
    assert flags[: len(expected)] == expected  # in front, as the study is
    whole, without = (submission.read_submission(path) for path in (spines / "one.csv", tmp_path / "out.csv"))
    assert list(whole) == list(without)
    assert {name for name in whole if (whole[name] != without[name]).any()} <= {*rows}
    assert any(line.startswith("warning: 1 studies are not graded") and killer in line for line in said)
    assert not any(other in line for line in said if line.startswith("warning"))


def test_rows_of_a_template_keep_their_places(spines, tmp_path):
    rows = [*submission.read_submission(spines / "one.csv")][::-1]
    graded(spines, tmp_path / "out.csv", FakeTasks(), template=tuple(rows))
    whole, merged = (submission.read_submission(path) for path in (spines / "one.csv", tmp_path / "out.csv"))
    assert list(merged) == rows
    assert all((whole[row] == merged[row]).all() for row in rows)


def worker_that_dies_once(job: run.Job, device: str, seen: Sequence[str]) -> grade_shards.Part:
    """In place of ``graded_shard``: the first worker that has the first study is killed."""
    first = Path(seen[0]).parent / "killed"
    if job.studies[0].id.startswith(first.read_text() if first.is_file() else "\n"):
        first.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return graded_shard(job, device, seen)


graded_shard = grade_shards.graded_shard


@pytest.mark.slow
def test_processes_of_this_machine_leave_the_bytes_of_one_also_where_one_is_killed(spines, tmp_path, monkeypatch):
    monkeypatch.setattr(grade_shards, "graded_shard", worker_that_dies_once)
    (spines / "killed").write_text(job_of(spines).studies[0].id)
    words = ["grade", TASK, "--data", str(spines / "data"), "--weights", str(spines / "weights"), "--device", "cpu"]
    with logged("inference") as said:
        assert cli.main([*words, "--out", str(tmp_path / "out.csv"), "--executor", "local:2"]) == 0
    assert not (spines / "killed").exists() and same_tables(spines, tmp_path / "out.csv")
    assert sum("died with exit code -9); its studies are graded once more" in line for line in said) == 1
    assert multiprocessing.active_children() == []


class Stopping(FakeTasks):
    """Is told to stop while it waits, once one shard is finished."""

    def finished(self):
        yield from super().finished()
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_is_told_to_stop_keeps_what_is_done_and_flags_the_rest(spines, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    running = graded(spines, tmp_path / "out.csv", Stopping())
    assert (running.done, running.summary.faults[run.STOPPED], running.summary.unread) == (2, STUDIES - 2, 0)
    stopped = [line for line in (tmp_path / "out.flags.csv").read_text().splitlines() if ",stopped," in line]
    assert {line.partition("_")[0] for line in stopped} == {study.id for study in job_of(spines).studies[:-2]}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("template", "rows"), [((), "a_left b_right"), (("a_left", "b_left"), "a_left b_right b_left")]
)
def test_a_study_that_turns_out_to_have_other_rows_has_those(template, rows, tmp_path):
    task = TASKS["knee-xray"]
    both = [Study(name, "p", (), targets=("left",)) for name in "ab"]
    running = RunningSubmission(task, {"left": (0.2,) * 5, "right": (0.2,) * 5}, both, tmp_path / "o.csv", template)
    answer = np.array([0.6, 0.1, 0.1, 0.1, 0.1])
    part = grade_shards.Part({"b_right": answer, "b_left": np.full(5, 0.3)}, {"b": ("b_right",)}, RunSummary())
    grade_shards.Merged(running).take(Shard(both[1:]), part)
    assert " ".join(running.rows) == rows and running.rows["b_right"] is answer
    assert all(running.rows[row][0] == 0.2 for row in rows.split() if row != "b_right")


def test_a_machine_without_the_data_or_with_other_weights_is_refused(spines, tmp_path):
    job = job_of(spines)
    grade_shards.check_seen(job, [str(spines / "data")])
    with pytest.raises(UserError, match=r"the machine .* has no .*elsewhere; put it where all machines"):
        grade_shards.graded_shard(job, "cpu", [str(tmp_path / "elsewhere")])
    (member,) = job.weights.members
    changed = replace(member, manifest=replace(member.manifest, test_views=2))
    with pytest.raises(UserError, match="has other weights in"):
        grade_shards.graded_shard(replace(job, weights=replace(job.weights, members=(changed,))), "cpu", [])
