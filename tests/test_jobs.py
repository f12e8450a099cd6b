"""A training as a list of jobs: the list itself, and that its results do not depend on who does the jobs, nor when."""

import hashlib
import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from osteograde import cli, phantom
from osteograde.errors import UserError
from osteograde.learning import jobs
from osteograde.learning.jobs import NET, SHARED, Job
from osteograde.learning.recipe import Start
from osteograde.learning.recipes import RECIPES
from tests.logs import logged

KNEES = RECIPES["knee-xray-small"]()
SPINES = RECIPES["lumbar-mr-small"]()


def with_start(recipe, kind: str, stage: str, start: Start):
    plans = getattr(recipe, kind)
    plan = plans[stage]
    changed = (
        tuple(replace(one, start=start) for one in plan) if isinstance(plan, tuple) else replace(plan, start=start)
    )
    return replace(recipe, **{kind: {**plans, stage: changed}})


def after(recipe, folds=(0, 1)) -> dict[str, tuple[str, ...]]:
    return {job.key: job.after for job in jobs.jobs_of(recipe, folds)}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_net_of_every_recipe_is_one_job_behind_those_that_it_waits_for(name):
    recipe = RECIPES[name]()
    listed = jobs.jobs_of(recipe, (0, 1, 2))
    keys = [job.key for job in listed]
    assert len(set(keys)) == len(keys)
    assert all(keys.index(key) < keys.index(job.key) for job in listed for key in job.after)
    files = [job.net.file(job.fold) for job in listed if job.kind == NET]
    assert sorted(files) == sorted(
        jobs.cross_fit.net_name(kind, stage, k, member)
        for (kind, stage), plans in recipe.plans().items()
        for member in range(len(plans))
        for k in (0, 1, 2)
    )
    epochs = sum(job.epochs for job in listed if job.kind == NET and not job.net.plan.start.shared_epochs)
    assert epochs == sum(
        3 * plan.training.epochs for plans in recipe.plans().values() for plan in plans if not plan.start.shared_epochs
    )


def test_graders_wait_for_the_held_out_studies_of_the_locators_of_all_folds():
    held_out = {f"locate/{name}/held-out{k}" for name in SPINES.locators for k in (0, 1)}
    for key, waits in after(SPINES).items():
        kind, _, what = key.split("/")
        if kind == "grade" and what.startswith("fold"):
            assert set(waits) >= held_out
        if kind == "locate" and what.startswith("fold"):
            assert not any("held-out" in one for one in waits)  # the folds of all locators, side by side


def test_a_locator_looks_at_held_out_studies_behind_all_earlier_locators_of_its_fold():
    first, *_, last = (locator.name for locator in SPINES.locators_in_order)
    assert f"locate/{first}/held-out1" in after(SPINES)[f"locate/{last}/held-out1"]
    assert f"locate/{first}/held-out0" not in after(SPINES)[f"locate/{last}/held-out1"]


def test_a_chained_grader_waits_for_the_net_of_its_own_fold_that_it_starts_from():
    source, chained = (grader.name for grader in SPINES.graders_in_order[:2])
    recipe = with_start(SPINES, "graders", chained, Start(stage=source))
    assert f"grade/{source}/fold1" in after(recipe)[f"grade/{chained}/fold1"]
    assert f"grade/{source}/fold0" not in after(recipe)[f"grade/{chained}/fold1"]


def test_shared_epochs_are_one_job_for_the_folds_that_share_them():
    recipe = with_start(KNEES, "locators", "joint", Start(shared_epochs=2))
    listed = jobs.jobs_of(recipe, tuple(range(5)))
    shared = [job for job in listed if job.kind == SHARED and job.net.kind == "locate"]
    assert [(job.key, job.epochs) for job in shared] == [("locate/joint/shared0", 2), ("locate/joint/shared3", 2)]
    waits = {job.fold: job.after for job in listed if job.kind == NET and job.net.kind == "locate"}
    assert waits == {k: ("locate/joint/shared0" if k < 3 else "locate/joint/shared3",) for k in range(5)}


def test_patterns_name_jobs_as_those_of_files_do():
    listed = jobs.jobs_of(KNEES, (0, 1))
    found = {job.key for job in jobs.chosen(listed, ["locate/*1", "grade/*/fold0"])}
    assert found >= {"locate/joint/fold1", "locate/joint/held-out1", "grade/kl/fold0"}
    assert not any(key.startswith("locate") and key.endswith("0") for key in found)
    with pytest.raises(UserError, match="fits no job"):
        jobs.chosen(listed, ["locate/joint/fold7"])


def diamond() -> list[Job]:
    net = jobs.nets_of("grade", "kl", KNEES.graders["kl"])[0]
    waits = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    return [Job(key, NET, (net,), 0, after, 1) for key, after in waits.items()]


def test_the_time_that_is_told_is_that_of_workers_who_wait_for_nothing_but_their_jobs():
    seconds = {"a": 10.0, "b": 20.0, "c": 5.0, "d": 1.0, "e": 30.0}
    assert jobs.span(diamond(), seconds, 1) == sum(seconds.values())
    assert jobs.span(diamond(), seconds, 2) == 36  # a and then b, beside e and then c, and d at the end
    assert jobs.span(diamond(), seconds, 9) == 31  # the longest chain
    assert jobs.span(diamond()[1:], seconds, 9) == 30  # what is done already is not waited for
    assert jobs.span([], seconds, 2) == 0


def test_the_time_of_a_job_is_that_of_its_own_epochs_else_of_another_fold(tmp_path):
    (tmp_path / "history").mkdir()
    for name, seconds in (("grade-kl-0", (2.0, 4.0)), ("grade-kl-common-0", (100.0,)), ("locate-joint-0", (7.0,))):
        rows = [f'{{"epoch": {i + 1}, "seconds": {value}}}\n' for i, value in enumerate(seconds)]
        (tmp_path / "history" / f"{name}.jsonl").write_text("".join(rows))
    listed = [replace(job, epochs=10) for job in jobs.jobs_of(KNEES, (0, 1)) if job.kind == NET]
    known = jobs.seconds_of(listed, [tmp_path / "empty", tmp_path])
    assert (known["grade/kl/fold0"], known["grade/kl/fold1"], known["locate/joint/fold1"]) == (30.0, 30.0, 70.0)


def test_the_list_says_what_is_done_and_how_long_the_rest_takes():
    told = list(jobs.plan_lines(diamond(), {"a"}, dict.fromkeys("abcde", 60.0), 2))
    assert told[0].split() == ["a", "1", "epoch", "done"] and told[3].endswith("after b c")
    assert told[-2:] == [
        "5 jobs, 1 done",
        "time left by the epochs of the earlier run, without predictions, by the number of workers: 1: 4 min, 2: 2 min",
    ]
    assert "not known" in list(jobs.plan_lines(diamond(), {"a"}, {"b": 60.0}, 2))[-1]
    assert list(jobs.plan_lines(diamond(), set("abcde"), {}, 2))[-1] == "nothing is left to be trained"


def test_a_run_that_begins_anew_takes_nothing_that_an_earlier_one_left(tmp_path):
    recipe = with_start(KNEES, "locators", "joint", Start(shared_epochs=2))
    listed = jobs.jobs_of(recipe, (0, 1))
    nets, predictions = tmp_path / "work" / "nets", tmp_path / "work" / "predictions"
    predictions.mkdir(parents=True)
    nets.mkdir()
    for job in listed:
        for path in (tmp_path / job.net.file(job.fold), nets / f"{job.work_name}.pt"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"left over")
            marker = nets / f"{job.work_name}.sha256"
            marker.write_text(hashlib.sha256(b"left over").hexdigest())
    for job in listed:
        jobs.out_of_fold.predictions_path(tmp_path, job.net, job.fold).write_text("{}")
    assert jobs.finished(listed, tmp_path) == {job.key for job in listed}
    (nets / "grade-kl-4.pt").touch()  # of a fold that is not trained now
    jobs.begin_anew(listed, tmp_path)
    assert jobs.finished(listed, tmp_path) == set()
    assert [path.name for path in nets.iterdir()] == ["grade-kl-4.pt"] and not list(predictions.iterdir())


# Real trainings of phantoms, tiny, in this process and in others. The bytes of all nets and tables must be the same.


def hashes(out: Path) -> dict[str, str]:
    paths = [*out.glob("*/*/*.safetensors"), *(out / name for name in ("folds.csv", "oof.csv", "oof_points.csv"))]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def train(folder: Path, out: str, *more: str) -> int:
    words = ["train", "knee-xray", "--data", str(folder / "data"), "--out", str(folder / out), "--debug", *more]
    return cli.run(lambda: cli.main([*words, "--device", "cpu"]))


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """A folder with phantoms in ``data`` and what a run in one process makes of them in ``serial``."""
    folder = tmp_path_factory.mktemp("jobs")
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")  # the bytes of nets depend on the threads of a CPU
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    phantom.write("knee-xray", folder / "data", studies=8, seed=3)
    assert train(folder, "serial") == 0
    yield folder
    torch.set_num_threads(threads)
    patch.undo()


@pytest.mark.slow
def test_workers_leave_the_bytes_of_one_process_also_where_they_are_killed_in_the_middle(serial, capsys):
    nets, killed = serial / "local" / "work" / "nets", []

    def kill() -> None:
        until = time.monotonic() + 300
        while not killed and time.monotonic() < until:
            if (nets / "grade-kl-0.pt").is_file() and not (nets / "grade-kl-0.sha256").is_file():
                killed.extend(multiprocessing.active_children())
                for worker in killed:
                    worker.kill()
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    with logged("learning") as said:
        assert train(serial, "local", "--executor", "local:2") == 0
    thread.join()
    assert killed and any("grade/kl/fold0: " in line and "goes on in another one" in line for line in said)
    assert hashes(serial / "local") == hashes(serial / "serial")


@pytest.mark.slow
def test_jobs_done_one_by_one_in_any_order_and_gathered_by_others_leave_the_same_bytes(serial, capsys):
    """As an array of a queue does it, and then a run resumed under another executor than it was begun with."""
    assert train(serial, "array", "--only", "locate/*1") == 2  # nothing is prepared yet
    assert train(serial, "array", "--only", "prepare") == 0
    assert train(serial, "array", "--only", "locate/*1") == 0
    assert train(serial, "array", "--only", "grade/*0") == 2
    assert "waits for locate/joint/held-out0" in capsys.readouterr().err
    assert train(serial, "array", "--only", "locate/*/shared0", "--only", "locate/*0") == 0
    assert train(serial, "array", "--plan", "--resume") == 0
    plan = capsys.readouterr().out
    assert "10 jobs, 6 done" in plan and "time left by the epochs" in plan  # of the whole run beside it
    assert train(serial, "array", "--only", "grade/*1") == 0
    assert not (serial / "array" / "manifest.json").exists()
    assert train(serial, "array", "--resume", "--executor", "local:1") == 0
    assert hashes(serial / "array") == hashes(serial / "serial")
