"""A folder with ensemble.json is a weights folder: what it answers is the vote on what its members answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import inference
from osteograde import cli as command_line
from osteograde import phantom
from osteograde.errors import UserError
from osteograde.inference import kernel_main, run, submission
from osteograde.inference.deadline import FEWER_MEMBERS, FEWER_VIEWS, Budget, Effort, Voter
from osteograde.inference.submission import RunSummary
from osteograde.kaggle import build_kernel, cli, rehearse, staging
from osteograde.learning import ensemble as choosing
from osteograde.models import bundle
from osteograde.models.manifest import read_manifest, write_manifest
from osteograde.pipeline import ensemble, predict, voting
from osteograde.report import drawing, heatmaps
from osteograde.tasks import TASKS
from tests.logs import logged
from tests.test_kernel import rehearse as run_alone
from tests.tiny import random_bundle

KNEES = TASKS["knee-xray"]
SIAMESE = {"kind": "siamese", "width": 4, "classes": 5}
LOUD = 300.0  # scales the heads of graders: else random nets say nearly the same about everything


def loud_grader(folder: Path, seed: int, net: dict, pixels, **facts) -> Path:
    """Give a weights folder another grader net of random weights, and other facts in its manifest."""
    manifest = read_manifest(folder)
    (name,) = (name for name in manifest.files if name.startswith("grade/"))
    torch.manual_seed(seed)
    made = bundle.build_net(net)
    made.head.weight.data *= LOUD
    bundle.save_net(made, folder / name)
    files = {**manifest.files, name: bundle.file_entry(folder, name, bundle.config_of(net))}
    pixels = {**manifest.pixels, "kl": pixels}
    write_manifest(folder, replace(manifest, files=files, pixels=pixels, **facts))
    return folder


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[Path]:
    """Three members with the same locator: their graders read other pixels, crops and test-time views."""
    root = tmp_path_factory.mktemp("weights")
    first = random_bundle(root / "first", "knee-xray", pixels=(64, (64, 96)))
    net = dict(next(e.net for n, e in read_manifest(first).files.items() if n.startswith("grade/")))
    for name in ("second", "parts"):
        shutil.copytree(first, root / name)
    prior = dict.fromkeys(KNEES.targets, (0.1, 0.2, 0.3, 0.25, 0.15))
    loud_grader(first, 1, net, (64, 96))
    loud_grader(root / "second", 2, net, (96, 96), test_views=2)
    loud_grader(root / "parts", 3, SIAMESE, 64, crops={"kl": ("lateral", "medial")}, prior=prior)
    return [first, root / "second", root / "parts"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    phantom.write("knee-xray", folder, studies=0, test=3, seed=5)
    return folder


def write_ensemble(folder: Path, members: list[Path], rule: str = "mean") -> Path:
    """An ensemble.json as ``osteograde ensemble`` writes it, without its scores."""
    said = [
        {
            "name": member.name,
            "folder": Path("..", member.name).as_posix() if folder != member.parent else member.name,
            "manifest_sha256": bundle.sha256(member / bundle.MANIFEST),
        }
        for member in members
    ]
    folder.mkdir(exist_ok=True)
    (folder / "ensemble.json").write_text(json.dumps({"task": "knee-xray", "rule": rule, "members": said}))
    return folder


def grade(data: Path, weights: Path, out: Path, *more: str) -> dict[str, np.ndarray]:
    words = ["knee-xray", "--data", str(data), "--weights", str(weights), "--device", "cpu", "--max-unread", "9"]
    assert inference.main([*words, "--out", str(out), *more]) == 0
    return submission.read_submission(out)


@pytest.fixture(scope="module")
def alone(members, data, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """The submission of every member."""
    folder = tmp_path_factory.mktemp("alone")
    return [grade(data, member, folder / f"{member.name}.csv") for member in members]


@pytest.mark.parametrize("rule", voting.RULES)
def test_the_submission_is_the_vote_on_the_submissions_of_the_members(members, data, alone, tmp_path, rule):
    rows = list(alone[0])
    _, expected = voting.vote(np.array([[one[row] for row in rows] for one in alone]), rule)
    assert len({tuple(one[row].argmax() for one in alone) for row in rows}) > 1  # they do not agree
    answer = grade(data, write_ensemble(members[0].parent, members, rule), tmp_path / "s.csv")
    assert list(answer) == rows
    assert np.abs(np.array([answer[row] for row in rows]) - expected).max() < 1e-6
    assert [answer[row].argmax() for row in rows] == expected.argmax(-1).tolist()


def test_a_target_that_one_member_cannot_grade_gets_that_member_s_prior_in_the_vote(members):
    voters = ensemble.load(ensemble.verify(write_ensemble(members[0].parent, members)), TASKS, torch.device("cpu"))
    given = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
    graded = ensemble.voted(voters, [{"left": given}, {"left": given}, {}])
    assert set(graded) == {"left"}
    own = np.array(voters.members[2].prior["left"])
    assert graded["left"] == pytest.approx((2 * given + own) / 3)
    prior = np.mean([member.prior["left"] for member in voters.members], 0)
    assert voters.prior["left"] == pytest.approx(prior)  # of a target that none of them can grade


def test_equal_locators_find_the_landmarks_once_and_are_loaded_once(members, data, tmp_path, monkeypatch):
    calls = []
    locate_all = predict.locate_all
    monkeypatch.setattr(predict, "locate_all", lambda *words: calls.append(1) or locate_all(*words))
    voters = ensemble.load(ensemble.verify(write_ensemble(members[0].parent, members)), TASKS, torch.device("cpu"))
    nets = [member.locators["joint"][0] for member in voters.members]
    assert nets[0] is nets[1] is nets[2]
    grade(data, members[0], tmp_path / "one.csv")
    once = len(calls)
    calls.clear()
    grade(data, write_ensemble(members[0].parent, members), tmp_path / "three.csv")
    assert len(calls) == once
    other = Path(shutil.copytree(members[1], tmp_path / "other"))
    manifest = read_manifest(other)
    write_manifest(other, replace(manifest, pixels={**manifest.pixels, "joint": 96}))  # it looks more closely
    calls.clear()
    grade(data, other, tmp_path / "other.csv")
    alone = len(calls)
    calls.clear()
    grade(
        data, write_ensemble(tmp_path, [other, Path(shutil.copytree(members[0], tmp_path / "m"))]), tmp_path / "t.csv"
    )
    assert len(calls) == alone + len(KNEES.read(data, "test"))  # the first member settles how many knees there are


def test_laid_flat_as_on_kaggle_the_kernel_finds_it_and_it_answers_the_same(members, data, tmp_path):
    weights = write_ensemble(members[0].parent, members, "mix")
    grade(data, weights, tmp_path / "own.csv")
    there = tmp_path / "input" / "datasets" / "someone" / "voters"
    there.parent.mkdir(parents=True)
    staging.lay_weights(weights, there, shutil.copyfile)
    assert all(path.is_file() for path in there.iterdir())  # no folders there
    assert "first__grade__kl__fold0.safetensors" in {path.name for path in there.iterdir()}
    found = kernel_main.find_weights(tmp_path / "input", "knee-xray", bundle.sha256(weights / "ensemble.json"))
    assert found == there == kernel_main.find_weights(tmp_path / "input", "knee-xray")
    grade(data, found, tmp_path / "flat.csv")
    assert (tmp_path / "flat.csv").read_bytes() == (tmp_path / "own.csv").read_bytes()


def test_the_kernel_takes_the_ensemble_and_not_a_member_below_it(members):
    weights = write_ensemble(members[0].parent, members)
    assert kernel_main.find_weights(weights, "knee-xray") == weights
    digest = bundle.sha256(members[1] / "manifest.json")
    assert kernel_main.find_weights(weights, "knee-xray", digest) == members[1]


def test_pictures_show_the_chart_and_the_crops_of_every_member(members, data, tmp_path):
    weights = write_ensemble(members[0].parent, members)
    rows = grade(data, weights, tmp_path / "s.csv", "--explain", str(tmp_path / "e"), "--overlays", str(tmp_path / "o"))
    assert len(list((tmp_path / "o").glob("*.jpg"))) == len(KNEES.read(data, "test"))
    picture = sorted(path for path in (tmp_path / "e").iterdir() if path.suffix != ".html")[0]
    image = cv2.imread(str(picture))
    crops = 1 + 1 + 2  # of the three members
    assert image.shape[0] == heatmaps.TITLE + 5 * heatmaps.BAR + crops * (heatmaps.HEIGHT + 4)
    chart = image[heatmaps.TITLE : heatmaps.TITLE + 5 * heatmaps.BAR]
    rows_of_bars = [chart[heatmaps.BAR * k + heatmaps.BAR // 2].astype(int) for k in range(5)]
    lengths = [int((np.abs(row - drawing.class_colour(k, 5)).max(-1) < 40).sum()) for k, row in enumerate(rows_of_bars)]
    assert np.argmax(lengths) == np.argmax(rows[picture.stem])


@pytest.fixture
def copied(members, tmp_path) -> Path:
    """An ensemble of two members that a test may damage."""
    return write_ensemble(tmp_path, [Path(shutil.copytree(member, tmp_path / member.name)) for member in members[:2]])


def test_a_member_that_is_missing_or_was_changed_is_named(copied):
    said = json.loads((copied / "ensemble.json").read_text())
    net = next((copied / "first" / "grade" / "kl").iterdir())
    whole = net.read_bytes()
    net.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"fold0.safetensors: sha256 is"):
        ensemble.verify(copied)
    net.write_bytes(whole)
    manifest = read_manifest(copied / "second")
    write_manifest(copied / "second", replace(manifest, test_views=1))
    with pytest.raises(UserError, match=r"'second' was trained or changed after the ensemble was chosen"):
        ensemble.verify(copied)
    shutil.rmtree(copied / "second")
    with pytest.raises(UserError, match=r"member 'second' is missing"):
        ensemble.verify(copied)
    for change, told in (
        ({"rule": "loudest"}, "rule 'loudest' is unknown"),
        ({"members": []}, "expected at least one member"),
        ({"members": [*said["members"][:1], *said["members"][:1]]}, "members more than once"),
        ({"members": [{**said["members"][0], "name": "../first"}]}, "without a path"),
        ({"task": "spider", "members": said["members"][:1]}, "or of other targets than the ensemble of 'spider'"),
    ):
        (copied / "ensemble.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(UserError, match=told):
            ensemble.verify(copied)


def test_the_command_line_checks_the_task_of_an_ensemble_without_torch(copied):
    cli.check_weights(copied, "knee-xray")
    with pytest.raises(UserError, match="weights are of task 'knee-xray', asked for 'spider'"):
        cli.check_weights(copied, "spider")


def test_an_ensemble_of_one_member_answers_as_the_member_does(members, data, alone, tmp_path):
    grade(data, members[0], tmp_path / "plain.csv")
    grade(data, write_ensemble(members[0].parent, members[:1], "mix"), tmp_path / "one.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def said_of(
    voters: ensemble.Voters, efforts: Sequence[Effort], data: Path, template: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], RunSummary]:
    """(rows, summary) of a run in which the n-th chunk, one study, is graded with the n-th of the efforts."""
    studies = submission.with_rows_of(KNEES, KNEES.read(data, "test"), template)
    submitted = submission.RunningSubmission(KNEES, voters.prior, studies, Path("s.csv"), template)
    budget = Planned(1e6, tuple(Voter(member.test_views, 1, name=member.name) for member in voters.members))
    budget.plan = list(efforts)
    for results in run.graded_chunks(voters, submitted.studies, budget, submitted.summary, most=1):
        for result in results:
            submitted.add(result)
    return submitted.rows, submitted.summary


class Planned(Budget):
    """A budget that has made up its mind."""

    plan: list[Effort]

    def effort(self, remaining: int) -> Effort:
        return self.plan.pop(0)


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2), (1, 2), (1,), (2,)])
def test_the_rows_of_fewer_members_are_the_vote_of_those_that_are_left(members, data, alone, kept):
    voters = ensemble.load(ensemble.verify(write_ensemble(members[0].parent, members)), TASKS, torch.device("cpu"))
    with logged("inference") as lines:
        rows, summary = said_of(voters, [Effort(2, 1, (0, 1, 2)), *[Effort(2, 1, kept)] * 2], data)
    first, *others = [study.id for study in KNEES.read(data, "test")]
    for row, values in rows.items():
        own = range(3) if row.startswith(first) else kept
        if not all(np.allclose(alone[m][row], read_manifest(members[m]).prior["left"], atol=1e-6) for m in own):
            _, expected = voting.vote(np.array([[alone[m][row]] for m in own]), "mean")
            assert np.abs(values - expected[0]).max() < 1e-4  # a tie is broken by so much
    dropped = 3 - len(kept)
    flags = {(row, count) for row, code, count in summary.flags if code == FEWER_MEMBERS}
    assert flags == ({(row, dropped) for row in rows if not row.startswith(first)} if dropped else set())
    assert summary.faults[FEWER_MEMBERS] == dropped * len(others)
    told = [line for line in lines if "time is short" in line]
    names = ", ".join(member.name for m, member in enumerate(members) if m not in kept)
    said = f"time is short after 1 of 3 studies; left out from here on: {dropped} of 3 members ({names})"
    assert told == ([said] if dropped else [])


efforts = st.builds(
    Effort,
    st.integers(1, 2),
    st.just(1),
    st.sets(st.integers(0, 2), min_size=1).map(sorted).map(tuple),
)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(efforts, min_size=3, max_size=3))
def test_whatever_is_left_out_the_submission_is_whole(members, data, tmp_path_factory, planned):
    voters = ensemble.load(ensemble.verify(write_ensemble(members[0].parent, members)), TASKS, torch.device("cpu"))
    folder = tmp_path_factory.mktemp("valid")
    staging.template(KNEES, KNEES.read(data, "test"), folder / "template.csv")
    rows, summary = said_of(voters, planned, data, submission.template_ids(folder / "template.csv") or ())
    submission.write_submission(folder / "s.csv", rows, KNEES.classes)
    assert submission.validate(folder / "s.csv", folder / "template.csv") == []
    assert summary.faults[FEWER_MEMBERS] == sum(3 - len(effort.members) for effort in planned)
    assert summary.faults[FEWER_VIEWS] == sum(2 - effort.views for effort in planned)


def test_with_time_for_all_nothing_is_left_out_and_without_any_the_priors_stand(members, data, tmp_path):
    weights = write_ensemble(members[0].parent, members)
    grade(data, weights, tmp_path / "own.csv")
    grade(data, weights, tmp_path / "long.csv", "--time-budget", "10")
    for name in ("{}.csv", "{}.flags.csv"):
        assert (tmp_path / name.format("long")).read_bytes() == (tmp_path / name.format("own")).read_bytes()
    rows = grade(data, weights, tmp_path / "none.csv", "--time-budget", "1e-9")
    prior = ensemble.read(weights).prior
    assert all(values == pytest.approx(prior["left"], abs=1e-6) for values in rows.values())


def test_members_of_an_older_file_are_worth_the_same(members, tmp_path):
    weights = write_ensemble(members[0].parent, members)
    assert [member.worth for member in ensemble.read(weights).members] == [1.0, 1.0, 1.0]
    said = json.loads((weights / "ensemble.json").read_text())
    for member, worth in zip(said["members"], (0.25, -0.5, 0), strict=True):
        member["worth"] = worth
    (weights / "ensemble.json").write_text(json.dumps(said))
    budget = Budget(None, run.voters_of(ensemble.read(weights)))
    assert [voter.worth for voter in budget.voters] == [0.25, -0.5, 0.0]
    assert [voter.name for voter in budget.voters] == ["first", "second", "parts"]
    assert len({voter.locator for voter in budget.voters}) == 1
    assert [effort.members for effort in budget.choices()][-3:] == [(0, 1, 2), (0, 1), (0,)]
    said["members"][1]["worth"] = "much"
    (weights / "ensemble.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"key 'members/1/worth' is 'much'; expected a finite number"):
        ensemble.read(weights)


IMAGES = "some-one/knee-films"
SOURCE = "some-one/knee-voters"


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["", "cpu,cpu"], ids=["one", "two"])
def test_the_kernel_writes_the_bytes_of_inference_which_are_the_vote_on_the_tables(
    members, data, alone, tmp_path, monkeypatch, capsys, devices
):
    """With one device what the kernel carries runs in this process, with two the kernel itself in others."""
    weights = write_ensemble(members[0].parent, members, "mix")
    script = build_kernel.build("knee-xray", weights, tmp_path / "kernel", source=SOURCE, data=IMAGES)
    inputs = tmp_path / "input"
    shutil.copytree(data, inputs / "datasets" / IMAGES)
    staging.lay_weights(weights, inputs / "datasets" / SOURCE, shutil.copyfile)
    working, empty = tmp_path / "working", tmp_path / "empty"
    working.mkdir()
    empty.mkdir()
    if devices:
        done = run_alone(script, inputs, working, empty, {"OMP_NUM_THREADS": "1", "OSTEOGRADE_DEVICES": devices})
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        monkeypatch.setenv("OSTEOGRADE_KAGGLE_INPUT", str(inputs))
        monkeypatch.setenv("OSTEOGRADE_KAGGLE_WORKING", str(working))
        capsys.readouterr()
        assert kernel_main.kernel_main("knee-xray", bundle.sha256(weights / "ensemble.json"), IMAGES) == 0
        said = capsys.readouterr().out
    assert f"ensemble.json {bundle.sha256(weights / 'ensemble.json')[:12]}, 3 members" in said
    grade(data, weights, tmp_path / "own.csv")
    for name in ("{}.csv", "{}.flags.csv", "{}.points.csv"):
        assert (working / name.format("submission")).read_bytes() == (tmp_path / name.format("own")).read_bytes()

    studies = [study.id for study in KNEES.read(data, "test")]
    rows = [[f"{study}_{target}" for target in KNEES.targets] for study in studies]
    unseen = np.full(5, np.nan)  # of a knee that the image does not show
    tables = np.array([[[one.get(row, unseen) for row in of_study] for of_study in rows] for one in alone])
    numbers = np.arange(len(studies))
    names = tuple(member.name for member in members)
    oof = choosing.OofTables(KNEES, names, tuple(studies), tables, {}, numbers, numbers, "")
    expected = choosing.voted(oof, choosing.Choice((0, 1, 2), "mix"))
    written = submission.read_submission(working / "submission.csv")
    answered = np.array([[written.get(row, unseen) for row in of_study] for of_study in rows])
    assert np.isfinite(answered).any()
    assert np.allclose(answered, expected, atol=1e-5, equal_nan=True)


@pytest.mark.slow
def test_an_ensemble_of_three_passes_its_rehearsal(members, data, tmp_path):
    weights = write_ensemble(members[0].parent, members)
    script = build_kernel.build("knee-xray", weights, tmp_path / "kernel", source=SOURCE, data=IMAGES)
    with logged("kaggle") as lines:
        assert rehearse.rehearse("knee-xray", script, data, weights) == []
    assert any(line.startswith("hidden run: 2 of 2 studies, ") for line in lines)


def missing(folder: Path) -> None:
    shutil.rmtree(folder / "second")


def changed(folder: Path) -> None:
    write_manifest(folder / "second", replace(read_manifest(folder / "second"), test_views=1))


def of_another_task(folder: Path) -> None:
    write_manifest(folder / "second", replace(read_manifest(folder / "second"), task="knee-progression"))
    said = json.loads((folder / "ensemble.json").read_text())
    said["members"][1]["manifest_sha256"] = bundle.sha256(folder / "second" / "manifest.json")
    (folder / "ensemble.json").write_text(json.dumps(said))


def by_an_unknown_rule(folder: Path) -> None:
    said = json.loads((folder / "ensemble.json").read_text())
    (folder / "ensemble.json").write_text(json.dumps({**said, "rule": "loudest"}))


def twice_the_same(folder: Path) -> None:
    said = json.loads((folder / "ensemble.json").read_text())
    (folder / "ensemble.json").write_text(json.dumps({**said, "members": said["members"][:1] * 2}))


BROKEN = [
    (missing, "member 'second' is missing: no "),
    (changed, "member 'second' was trained or changed after the ensemble was chosen, choose it again"),
    (of_another_task, "member 'second' is of task 'knee-progression' or of other targets than the ensemble"),
    (by_an_unknown_rule, "rule 'loudest' is unknown; known: "),
    (twice_the_same, "members more than once: first; choose the ensemble again"),
]


@pytest.mark.parametrize(("damage", "told"), BROKEN, ids=[damage.__name__ for damage, _ in BROKEN])
def test_each_way_to_break_an_ensemble_is_one_line_before_a_kernel_is_built_or_rehearsed(
    copied, data, tmp_path, monkeypatch, capsys, damage, told
):
    monkeypatch.chdir(tmp_path)
    built = ["kernel", "build", "knee-xray", "--weights", str(copied), "--mount", SOURCE, "--images", IMAGES]
    assert command_line.run(lambda: command_line.main(built)) == 0
    script = (tmp_path / "build" / "kernels" / "knee-xray" / "knee_xray.py").read_bytes()
    damage(copied)
    capsys.readouterr()
    for words in (built, ["kaggle", "rehearse", "knee-xray", "--data", str(data), "--weights", str(copied)]):
        assert command_line.run(lambda words=words: command_line.main(words)) == 2
        heard = capsys.readouterr()
        (line,) = heard.err.splitlines()
        assert line.startswith("error: ")
        assert told in line
        assert heard.out == ""
    assert (tmp_path / "build" / "kernels" / "knee-xray" / "knee_xray.py").read_bytes() == script
