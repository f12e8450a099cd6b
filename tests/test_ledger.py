"""The ledger of submissions: what was sent, what it scored, and where both are shown."""

import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from osteograde import cli, runs_command
from osteograde.errors import UserError
from osteograde.kaggle import ledger, push, record, upload
from osteograde.models import bundle
from osteograde.models.manifest import Scores, read_manifest, write_manifest
from osteograde.pipeline import ensemble
from osteograde.report import leaderboard, page
from osteograde.report.leaderboard import Entry
from osteograde.tasks import TASKS
from tests.test_ensemble_weights import write_ensemble
from tests.tiny import random_bundle

TASK = "knee-xray"
WEIGHTS = {
    "source": "me/w/3",
    "manifest": "ab" * 32,
    "recipe": "knee-xray",
    "changes": {"grade.kl.training.lr": ["0.0003", "0.001"]},
    "score": 0.712,
    "interval": [0.69, 0.735],
}


def submitted(reference: int, **more) -> dict:
    facts = {"event": "submitted", "time": f"2026-11-{reference:02d}T10:00:00+00:00", "reference": reference}
    return {**facts, "version": reference, "kernel": "me/k", "image": "i", "commit": "c", "weights": WEIGHTS, **more}


def scored(reference: int, public: float | None, private: float | None = None, **more) -> dict:
    facts = {"event": "scored", "time": "2026-11-20T10:00:00+00:00", "reference": reference, "status": "complete"}
    return {**facts, "public": public, "private": private, "error": "", **more}


@pytest.fixture
def book(tmp_path, monkeypatch) -> Path:
    """runs/kaggle of an empty folder, with three submissions."""
    monkeypatch.chdir(tmp_path)
    for line in (
        submitted(1),
        submitted(2, weights={"source": "me/w/2", "manifest": "cd" * 32}),
        scored(1, 0.701, 0.7055),
        submitted(3),
        scored(2, None, status="error", error="too many rows"),
    ):
        record.append_to_ledger(TASK, line)
    return record.ledger_path(TASK)


def test_a_submission_is_shown_with_its_recipe_its_score_out_of_fold_and_on_the_leaderboard(book):
    lines = ledger.table(ledger.read(book))
    assert lines[0] == TASK
    cells = [re.split(r" {2,}", line.strip()) for line in lines[1:]]
    change = ["grade.kl.training.lr = 0.001 (recipe: 0.0003)"]
    assert cells == [
        list(ledger.COLUMNS),
        ["2026-11-01 10:00", "v1", "ab" * 6, TASK, "0.7120", "0.6900 to 0.7350", "0.7010", "0.7055", "complete"],
        change,
        ["2026-11-02 10:00", "v2", "cd" * 6, "-", "-", "-", "-", "-", "error: too many rows"],
        ["2026-11-03 10:00", "v3", "ab" * 6, TASK, "0.7120", "0.6900 to 0.7350", "-", "-", "pending"],
        change,
    ]


def test_runs_lists_the_submissions_for_people_and_as_json(book, capsys):
    assert cli.run(lambda: cli.main(["runs", "--kaggle"])) == 0
    told = capsys.readouterr().out
    assert told.splitlines() == ledger.table(ledger.read(book))
    assert cli.run(lambda: cli.main(["kaggle", "runs"])) == 0
    assert capsys.readouterr().out == told
    assert cli.run(lambda: cli.main(["runs", "--kaggle", "--json"])) == 0
    first, *_ = json.loads(capsys.readouterr().out)
    assert (first["reference"], first["image"], first["commit"], first["private"]) == (1, "i", "c", 0.7055)
    assert first["weights"] == WEIGHTS
    assert cli.run(lambda: cli.main(["runs", "--kaggle", "weights"])) == 2
    book.unlink()
    assert cli.run(lambda: cli.main(["runs", "--kaggle"])) == 0
    assert "nothing was submitted from here" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["no json", "[]", '{"event": "submitted"}', '{"event": "submitted", "reference": 4}'])
def test_a_line_that_is_not_of_the_ledger_is_named(book, line):
    with book.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"knee-xray.jsonl, line 6: not a line that kaggle submit"):
        ledger.read(book)


def with_scores(folder: Path, score: float) -> Path:
    manifest = read_manifest(folder)
    grade = {"studies": 9, "model": {"score": score}, "prior": {"score": 0.0}, "interval_95": {"score": [0.1, 0.9]}}
    recipe = {**manifest.recipe, "name": TASK, "changes": {"tta": ["6", "1"]}}
    write_manifest(folder, replace(manifest, recipe=recipe, scores=Scores(grade=grade)))
    return folder


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    return [with_scores(random_bundle(tmp_path / name, TASK), score) for name, score in (("a", 0.5), ("b", 0.6))]


def test_an_upload_remembers_recipe_changes_and_score_of_the_weights(pair):
    known = upload.known_of(ensemble.read(pair[0]))
    assert known == {
        "name": "a", "recipe": TASK, "changes": {"tta": ["6", "1"]},
        "score": 0.5, "interval": [0.1, 0.9], "studies": 9, "better": "higher",
    }  # fmt: skip


def test_an_upload_remembers_the_nested_score_of_an_ensemble_and_the_changes_of_every_member(pair):
    folder = write_ensemble(pair[0].parent, pair, "mix")
    said = json.loads((folder / "ensemble.json").read_text())
    nested = {"nested": {"score": 0.55, "interval_95": [0.2, 0.8]}, "better": "higher", "studies": 9}
    (folder / "ensemble.json").write_text(json.dumps({**said, **nested}))
    known = upload.known_of(ensemble.read(folder))
    assert (known["recipe"], known["score"], known["interval"]) == ("mix of a, b", 0.55, [0.2, 0.8])
    assert known["changes"] == {"a: tta": ["6", "1"], "b: tta": ["6", "1"]}


def test_weights_that_say_nothing_of_their_training_can_be_uploaded_all_the_same(tmp_path):
    known = upload.known_of(ensemble.read(random_bundle(tmp_path / "w", TASK)))
    assert (known["score"], known["changes"]) == (None, {})


@pytest.mark.parametrize(
    ("source", "pin", "is_known"),
    [("me/w", "ab" * 32, True), ("me/w", "", True), ("me/w", "cd" * 32, False), ("me/other", "ab" * 32, False)],
)
def test_a_kernel_is_given_the_score_of_the_weights_that_it_mounts_and_of_no_others(source, pin, is_known):
    facts = {"model_sources": [], "dataset_sources": [source]}
    found = push.mounted(facts, f'TASK = "t"\nMANIFEST_SHA256 = "{pin}"\n', {"weights": WEIGHTS})
    assert found == (WEIGHTS if is_known else {"source": source, "manifest": pin})


ENTRIES = [
    Entry("v1", 0.5, (0.4, 0.6), 0.55, 0.45),
    Entry("v2 <b>", 0.7, (None, None), 0.65, None, own=True),
    Entry("v3", None, (None, None), 0.3, None),
    Entry("v4", 0.9, (0.8, 1.0), None, None),
]


def test_the_chart_puts_each_score_where_both_axes_say(book):
    drawn = leaderboard.chart(ENTRIES)
    dots = [tuple(map(float, found)) for found in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert len(dots) == 3  # v1 public and private, v2 public; the others lack one of the two
    public, private, other = dots
    assert public[0] == private[0] < other[0]
    assert other[1] < public[1] < private[1]  # upwards is more
    ((x1, y1, x2, y2),) = re.findall(
        r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="axis"', drawn
    )
    on_line = float(y1) + (float(y2) - float(y1)) * (public[0] - float(x1)) / (float(x2) - float(x1))
    assert public[1] < on_line < private[1]  # 0.55 of 0.5 lies above the line, 0.45 below
    assert drawn.count('class="stroke s0"') == drawn.count('class="stroke s1"') == 1  # the interval of v1


def test_the_section_is_there_only_where_something_was_scored():
    assert leaderboard.section(ENTRIES[3:], "higher") == leaderboard.section([], "higher") == ""
    text = leaderboard.section(ENTRIES, "higher")
    assert "higher is better" in text
    assert "<b>v2 &lt;b&gt;</b> (these weights)" in text
    assert "v4" not in text
    assert "<svg" not in leaderboard.section(ENTRIES[2:3], "lower")  # nothing to compare it with


def test_the_report_shows_the_leaderboard_of_its_task_and_marks_its_own_weights(book, pair):
    record.append_to_ledger(
        TASK, submitted(4, weights=WEIGHTS | {"manifest": bundle.sha256(pair[0] / "manifest.json")})
    )
    record.append_to_ledger(TASK, scored(4, 0.72))
    entries = runs_command.scored_submissions(pair[0], None)
    assert [(one.public, one.own) for one in entries] == [(0.701, False), (0.72, True)]
    assert runs_command.scored_submissions(pair[0], book) == entries
    page.write(pair[0], Path("r.html"), TASKS, data=None, made=datetime(2026, 1, 1), submitted=entries)
    assert '<section id="leaderboard">' in Path("r.html").read_text()
    book.rename("elsewhere.jsonl")
    assert runs_command.scored_submissions(pair[0], None) == []
    page.write(pair[0], Path("r.html"), TASKS, data=None, made=datetime(2026, 1, 1))
    assert "leaderboard" not in Path("r.html").read_text()
    assert cli.run(lambda: cli.main(["report", str(pair[0]), "--ledger", "absent.jsonl"])) == 2
