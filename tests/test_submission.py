"""submission.csv: whole or absent, the same bytes for the same numbers, and every mistake is told."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osteograde.inference import submission
from osteograde.report.score_table import format_table, score_submission
from osteograde.tasks import TASKS
from osteograde.tasks.lumbar_mr import TASK
from osteograde.tasks.spec import Study, Task

COLUMNS = TASK.classes
IDS = [*TASK.rows("1002"), *TASK.rows("1001")]


def random_rows(seed, ids=IDS):
    table = np.random.default_rng(seed).dirichlet(np.full(3, 0.3), size=len(ids))
    return dict(zip(ids, table, strict=True))


@pytest.fixture
def files(tmp_path):
    """A good submission and its template."""
    paths = tmp_path / "submission.csv", tmp_path / "sample_submission.csv"
    submission.write_submission(paths[0], random_rows(0), COLUMNS)
    submission.write_submission(paths[1], dict.fromkeys(IDS, np.full(3, 1 / 3)), COLUMNS)
    return paths


def test_what_is_written_is_valid_and_comes_back(files):
    assert submission.validate(*files) == []
    back = submission.read_submission(files[0])
    assert list(back) == IDS == submission.template_ids(files[1])
    expected = submission.written(np.stack(list(random_rows(0).values())))
    np.testing.assert_allclose(np.stack(list(back.values())), expected, atol=1e-9)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.lists(
        st.tuples(*[st.floats(0, 1e6, allow_subnormal=True)] * 3).filter(lambda r: sum(r) > 1e-3), min_size=1
    )
)
def test_any_masses_are_written_as_probabilities(tmp_path, table):
    path = tmp_path / "any.csv"
    submission.write_submission(path, {f"r{i}": np.array(row) for i, row in enumerate(table)}, COLUMNS)
    values = np.stack(list(submission.read_submission(path).values()))
    assert (np.abs(values.sum(1) - 1) < 1e-6).all()
    assert values.min() > 0.9e-6 and values.max() <= 1
    masses = np.array(table)
    np.testing.assert_allclose(values, masses / masses.sum(1, keepdims=True), atol=3e-6)


def test_the_same_rows_give_the_same_bytes(tmp_path, files):
    submission.write_submission(tmp_path / "again.csv", random_rows(0), COLUMNS)
    assert (tmp_path / "again.csv").read_bytes() == files[0].read_bytes()
    assert b"\r" not in files[0].read_bytes() and b"e-" not in files[0].read_bytes()


@pytest.mark.parametrize("bad", [[np.nan, 0.5, 0.5], [np.inf, 0, 0], [-0.1, 0.6, 0.5], [0, 0, 0]])
def test_no_bad_number_replaces_a_good_file(files, bad):
    before = files[0].read_bytes()
    with pytest.raises(ValueError, match="not finite, negative, or all zero"):
        submission.write_submission(files[0], {**random_rows(1), IDS[3]: np.array(bad)}, COLUMNS)
    assert files[0].read_bytes() == before
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["sample_submission.csv", "submission.csv"]


def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(files, monkeypatch):
    before = files[0].read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        submission.write_submission(files[0], random_rows(1), COLUMNS)
    assert files[0].read_bytes() == before
    assert len(list(files[0].parent.iterdir())) == 2


def test_a_reader_of_the_old_file_never_sees_half_of_the_new_one(tmp_path, files):
    before = files[0].read_bytes()
    with files[0].open("rb") as reader:
        submission.write_submission(files[0], random_rows(1), COLUMNS)
        assert reader.read() == before
    assert files[0].read_bytes() != before


def test_permissions_and_links_survive_a_rewrite(tmp_path, files):
    files[0].chmod(0o640)
    link = tmp_path / "link.csv"
    link.symlink_to(files[0])
    submission.write_submission(link, random_rows(1), COLUMNS)
    assert link.is_symlink() and stat.S_IMODE(files[0].stat().st_mode) == 0o640
    found = submission.read_submission(files[0])[IDS[0]]
    np.testing.assert_allclose(found, submission.written(random_rows(1)[IDS[0]]), atol=1e-9)


def test_a_new_file_has_the_permissions_of_any_other(tmp_path, files):
    (tmp_path / "plain.txt").write_text("")
    assert files[1].stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_no_studies_give_a_header_only(tmp_path):
    submission.write_submission(tmp_path / "empty.csv", {}, COLUMNS)
    assert (tmp_path / "empty.csv").read_text() == "row_id,normal_mild,moderate,severe\n"


# Each edit spoils the lines of a good file; the words must be in what is said about it.
def _swap(lines):
    return [lines[0], lines[2], lines[1], *lines[3:]]


def _cell(value):
    return lambda lines: [lines[0], ",".join([lines[1].split(",")[0], value, "0.5", "0.5"]), *lines[2:]]


SPOILED = {
    "missing": (lambda lines: lines[:-1], [f"1 row ids missing: {IDS[-1]}"]),
    "extra": (lambda lines: [*lines, "7_x,0.2,0.3,0.5"], ["1 row ids that the template does not have: 7_x"]),
    "doubled": (lambda lines: [*lines, lines[4]], [f"1 row ids more than once: {IDS[3]}"]),
    "order": (_swap, ["wrong order", "repairable", f"row 1 is {IDS[1]}"]),
    "nan": (_cell("nan"), [f"1 rows with values not a finite number: {IDS[0]}"]),
    "empty": (_cell(""), [f"1 rows with values not a finite number: {IDS[0]}"]),
    "text": (_cell("a lot"), [f"1 rows with values not a finite number: {IDS[0]}"]),
    "inf": (_cell("inf"), [f"1 rows with values not a finite number: {IDS[0]}"]),
    "negative": (_cell("-0.0001"), [f"1 rows with values negative: {IDS[0]}"]),
    "sum": (_cell("0.0011"), [f"1 rows with values not summing to 1: {IDS[0]}"]),
    "columns": (lambda lines: ["row_id,severe,moderate,normal_mild", *lines[1:]], ["wrong columns", "severe,moderate"]),
    "column": (lambda lines: [line.rsplit(",", 1)[0] for line in lines], ["wrong columns"]),
    "header": (lambda lines: lines[1:], ["wrong columns"]),
    "ragged": (lambda lines: [*lines[:5], lines[5] + ",1", *lines[6:]], ["lines without 4 cells: 6"]),
    "nothing": (lambda lines: [], ["empty"]),
}


@pytest.mark.parametrize("edit", SPOILED)
def test_every_mistake_is_told(files, edit):
    change, words = SPOILED[edit]
    files[0].write_text("".join(line + "\n" for line in change(files[0].read_text().splitlines())))
    problems = submission.validate(*files)
    assert len(problems) == 1
    for word in words:
        assert word in str(problems[0])
    assert problems[0].repairable == (edit == "order")


def test_rounding_is_no_mistake(files):
    files[0].write_text(files[0].read_text().replace("\n", "\r\n"))
    lines = files[0].read_text().splitlines()
    lines[1] = f"{IDS[0]},0.0009,0.5,0.5"
    files[0].write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert submission.validate(*files) == []


def test_all_mistakes_are_told_at_once(files):
    lines = files[0].read_text().splitlines()
    files[0].write_text("\n".join([*lines[:-1], f"{IDS[0]},0.5,0.5,nan", "9_x,-1,1,1"]))
    assert len(submission.validate(*files)) == 5


def test_the_repair_of_a_wrong_order_is_valid(files):
    lines = files[0].read_text().splitlines()
    files[0].write_text("\n".join(_swap(lines)))
    repaired = submission.ordered(submission.read_submission(files[0]), submission.template_ids(files[1]))
    submission.write_submission(files[0], repaired, COLUMNS)
    assert submission.validate(*files) == []


def test_what_cannot_be_read_is_a_problem_and_a_bad_template_is_an_error(tmp_path, files):
    assert "cannot be read" in str(submission.validate(tmp_path / "none.csv", files[1])[0])
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00row")
    assert "UTF-8" in str(submission.validate(tmp_path / "bytes.csv", files[1])[0])
    with pytest.raises(ValueError, match="cannot be read"):
        submission.validate(files[0], tmp_path / "none.csv")
    files[1].write_text(files[1].read_text() + f"{IDS[0]},0,0,1\n")
    with pytest.raises(ValueError, match="the template names row ids more than once"):
        submission.validate(*files)


def test_priors_answer_every_row_and_another_competition_is_refused():
    rows = submission.priors_rows(TASK, IDS)
    assert list(rows) == IDS
    for row, values in rows.items():
        np.testing.assert_array_equal(values, TASK.prior[row.split("_", 1)[1]])
    with pytest.raises(ValueError, match="ends in no target of lumbar-mr"):
        submission.priors_rows(TASK, ["1_cats"])


def test_study_ids_may_hold_underscores(tmp_path):
    rows = submission.priors_rows(TASK, TASK.rows("a_spinal_b"))
    submission.write_submission(tmp_path / "s.csv", rows, COLUMNS)
    write_truth(tmp_path / "train.csv", {"a_spinal_b": dict.fromkeys(TASK.targets, 0)})
    assert score_submission(TASK, tmp_path, tmp_path / "s.csv", 0, np.random.default_rng(0))["studies"] == 1


def test_the_template_of_a_folder_counts_only_for_its_test_part(tmp_path, files):
    assert submission.template_ids(tmp_path) is None
    (tmp_path / "test_images").mkdir()
    assert submission.template_ids(tmp_path) == IDS
    files[1].write_text("")
    assert submission.template_ids(tmp_path) is None


# Scoring a file


def write_truth(path, labels):
    names = ("Normal/Mild", "Moderate", "Severe")
    lines = [",".join(("study_id", *TASK.targets))]
    for study, cells in labels.items():
        lines.append(",".join((study, *(names[cells[t]] if t in cells else "" for t in TASK.targets))))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def scored(tmp_path):
    rng = np.random.default_rng(0)
    labels = {
        f"s{i}": {t: int(c) for t, c in zip(TASK.targets, rng.choice(3, 25, p=(0.7, 0.2, 0.1)), strict=True)}
        for i in range(30)
    }
    del labels["s3"][TASK.targets[2]]
    probs = {study: 0.1 + 0.7 * np.eye(3)[[cells.get(t, 0) for t in TASK.targets]] for study, cells in labels.items()}
    rows = {row: p for study in labels for row, p in zip(TASK.rows(study), probs[study], strict=True)}
    submission.write_submission(tmp_path / "s.csv", rows, COLUMNS)
    write_truth(tmp_path / "train.csv", labels)
    return tmp_path, labels, probs


def test_a_file_is_scored_as_its_numbers_are(scored):
    root, labels, probs = scored
    result = score_submission(TASK, root, root / "s.csv", 200, np.random.default_rng(0))
    assert result["score"] == pytest.approx(TASK.metric.score(labels, probs), abs=1e-7)
    assert (result["studies"], result["unlabelled"], result["unsubmitted"]) == (30, 0, 0)
    for part, value in result["score"].items():
        low, high = result["interval"][part]
        assert low <= value <= high
        assert value < result["prior"][part] and value < result["uniform"][part]
    text = format_table(result)
    assert all(f"{result['score'][part]:.4f}" in text for part in result["score"])


def test_test_truth_counts_where_it_knows_the_studies_and_strangers_are_told(scored):
    root, labels, _ = scored
    some = {study: labels[study] for study in list(labels)[:10]}
    write_truth(root / "test_truth.csv", {"other": labels["s0"]})
    assert score_submission(TASK, root, root / "s.csv", 0, np.random.default_rng(0))["truth"] == "train.csv"
    write_truth(root / "train.csv", {"other": labels["s0"]})
    write_truth(root / "test_truth.csv", {**some, "other": labels["s0"]})
    result = score_submission(TASK, root, root / "s.csv", 0, np.random.default_rng(0))
    assert (result["truth"], result["studies"], result["unlabelled"], result["unsubmitted"]) == (
        "test_truth.csv",
        10,
        20,
        1,
    )
    assert result["interval"] == {}
    assert "20 studies are submitted, but without truth" in format_table(result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "train.csv").unlink(), "holds neither test_truth.csv nor train.csv"),
        (lambda root: write_truth(root / "train.csv", {"other": {TASK.targets[0]: 1}}), "none of the 30 submitted"),
        (lambda root: spoil(root / "s.csv", lambda lines: lines[:-2]), "2 rows are missing"),
        (lambda root: spoil(root / "s.csv", lambda lines: [*lines, lines[1]]), "more than once"),
        (lambda root: spoil(root / "s.csv", lambda lines: [lines[0].upper(), *lines[1:]]), "wrong columns"),
        (lambda root: spoil(root / "s.csv", lambda lines: [*lines, "a_cat,1,0,0"]), "ends in no target"),
        (lambda root: (root / "s.csv").unlink(), "cannot be read"),
        (lambda root: spoil(root / "s.csv", _cell("nan")), "not finite, negative or do not sum to 1"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_words(scored, change, words):
    root = scored[0]
    change(root)
    with pytest.raises(ValueError, match=words):
        score_submission(TASK, root, root / "s.csv", 0, np.random.default_rng(0))


def spoil(path, change):
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def run_of(name: str, out: Path, **options) -> tuple[Task, submission.RunningSubmission]:
    """A run that has graded nothing, so that its rows are priors."""
    task = TASKS[name]
    studies = [Study(study, study, ()) for study in ("1001", "1002")]
    running = submission.RunningSubmission(task, task.prior, studies, out, **options)
    running.write()
    return task, running


@pytest.mark.parametrize("name", sorted(name for name, task in TASKS.items() if not task.slug))
def test_the_predicted_class_is_a_column_that_scores_and_checks_pass_over(name, tmp_path):
    task, _ = run_of(name, tmp_path / "plain.csv")
    run_of(name, tmp_path / "named.csv", decide="most-probable")
    plain, named = ((tmp_path / file).read_text().splitlines() for file in ("plain.csv", "named.csv"))
    assert [line.rpartition(",")[0] for line in named] == plain and named[0].endswith(",predicted")
    for row, line in submission.read_submission(tmp_path / "plain.csv").items():
        assert f"{row}," in "\n".join(named)
        assert task.classes[int(line.argmax())] == next(x for x in named if x.startswith(f"{row},")).rpartition(",")[2]
    assert submission.validate(tmp_path / "named.csv", tmp_path / "plain.csv") == []
    assert submission.validate(tmp_path / "plain.csv", tmp_path / "named.csv") == []
    same = [submission.read_submission(tmp_path / file) for file in ("plain.csv", "named.csv")]
    assert same[0].keys() == same[1].keys()
    assert all(np.array_equal(same[0][row], same[1][row]) for row in same[0])
    assert sorted(path.name for path in tmp_path.glob("*.predicted.csv")) == []


@pytest.mark.parametrize("name", sorted(name for name, task in TASKS.items() if task.slug))
def test_the_submission_of_a_competition_is_never_given_a_column(name, tmp_path):
    task, _ = run_of(name, tmp_path / "plain.csv")
    assert not submission.predicted_path(tmp_path / "plain.csv").exists()
    run_of(name, tmp_path / "named.csv", decide="most-probable")
    assert (tmp_path / "named.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    table = submission.predicted_path(tmp_path / "named.csv").read_text().splitlines()
    assert table[0] == "row_id,predicted"
    rows = submission.read_submission(tmp_path / "named.csv")
    assert table[1:] == [f"{row},{task.classes[int(probs.argmax())]}" for row, probs in rows.items()]
    assert tmp_path / "named.predicted.csv" in submission.written_files(task, tmp_path / "named.csv", predicted=True)
    odd = [
        f"{line},{'predicted' if not i else 'x'}" for i, line in enumerate((tmp_path / "plain.csv").open().readlines())
    ]
    (tmp_path / "odd.csv").write_text("\n".join(line.replace("\n", "") for line in odd) + "\n")
    (problem,) = submission.validate(tmp_path / "odd.csv", tmp_path / "plain.csv")
    assert "found predicted as well" in str(problem)


def test_tables_of_an_earlier_run_into_the_same_file_do_not_stay_beside_it(tmp_path):
    """spider writes findings, lumbar-mr with a rule of decision the predicted classes; knee-xray writes neither."""
    out = tmp_path / "submission.csv"
    run_of("lumbar-mr", out, decide="most-probable")
    spider, _ = run_of("spider", out)
    others = ["submission.predicted.txt", "other.predicted.csv", "other.findings.csv", "submission.mine.csv"]
    for name in others:
        (tmp_path / name).write_text("row_id,predicted\n")
    assert submission.remove_stale_tables(spider, out) == [submission.predicted_path(out)]
    assert submission.findings_path(out).is_file()
    assert submission.remove_stale_tables(TASKS["knee-xray"], out) == [submission.findings_path(out)]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"submission.csv", "submission.flags.csv", "submission.points.csv", *others}


def test_a_table_that_the_run_writes_or_that_another_program_wrote_is_not_removed(tmp_path):
    out = tmp_path / "submission.csv"
    task, _ = run_of("lumbar-mr", out, decide="most-probable")
    submission.findings_path(out).write_text("patient,what I saw\n1001,a scar\n")
    assert submission.remove_stale_tables(task, out, predicted=True) == []
    assert submission.predicted_path(out).is_file() and submission.findings_path(out).is_file()
    submission.predicted_path(out).write_text("row_id,predicted,checked by\n")
    assert submission.remove_stale_tables(task, out) == []
