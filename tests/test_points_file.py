"""Landmarks written beside a submission, and given in place of stage 1."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from osteograde import phantom
from osteograde.errors import UserError
from osteograde.grade_command import infer
from osteograde.inference import points_file, submission
from osteograde.inference.points_file import points_path, with_given_points
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Series, Study
from tests.tiny import random_bundle

TASK = TASKS["lumbar-mr"]
SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "lumbar-mr-phantom"
grade = partial(infer, "lumbar-mr", device="cpu", max_unread=99)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "studies"
    phantom.write("lumbar-mr", folder, studies=0, test=2, seed=21)
    return folder


@pytest.fixture(scope="module")
def graded(studies, tmp_path_factory) -> tuple[Path, Path, Path]:
    """(data, weights, submission) of two studies that nets which know nothing have graded."""
    folder = tmp_path_factory.mktemp("graded")
    weights = random_bundle(folder / "weights", pixels=(96, 64))
    assert grade(studies, weights, folder / "first.csv") == 0
    return studies, weights, folder / "first.csv"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.slow
def test_points_that_were_written_give_the_same_rows_without_stage_1(graded, tmp_path, monkeypatch):
    data, weights, first = graded
    rows = table(points_path(first))
    assert {row["landmark"] for row in rows} == {mark.name for one in TASK.locators for mark in one.landmarks}
    assert any(row["names"] for row in rows)  # levels in doubt: their shares come back as well

    def refused(locator, studies, points, nets):
        assert not studies, f"{locator.name} was asked for points that are given"
        return []

    monkeypatch.setattr(predict, "locate", refused)
    assert grade(data, weights, tmp_path / "again.csv", points=points_path(first)) == 0
    assert (tmp_path / "again.csv").read_bytes() == first.read_bytes()
    assert points_path(tmp_path / "again.csv").read_bytes() == points_path(first).read_bytes()


@pytest.mark.slow
def test_a_point_moved_by_hand_changes_its_own_row_and_no_other(graded, tmp_path):
    data, weights, first = graded
    rows = table(points_path(first))
    moved = next(row for row in rows if row["landmark"] == "foramen_left_l3_l4" and row["series"])
    sure = [row | {"names": ""} for row in rows]  # a person knows the levels
    assert grade(data, weights, tmp_path / "sure.csv", points=write(tmp_path / "a.csv", sure)) == 0
    before = submission.read_submission(tmp_path / "sure.csv")
    rows = [row | {"z_mm": str(float(row["z_mm"]) + 12)} if row["landmark"] == moved["landmark"]
            and row["study_id"] == moved["study_id"] else row for row in sure]  # fmt: skip
    assert grade(data, weights, tmp_path / "moved.csv", points=write(tmp_path / "b.csv", rows)) == 0
    after = submission.read_submission(tmp_path / "moved.csv")
    changed = [row for row in after if not np.array_equal(before[row], after[row])]
    assert changed == [f"{moved['study_id']}_left_neural_foraminal_narrowing_l3_l4"]


@pytest.mark.slow
def test_what_is_not_given_is_found_as_usual(graded, tmp_path):
    data, weights, first = graded
    rows = [row for row in table(points_path(first)) if row["landmark"].startswith("canal")]
    one = rows[0]["study_id"]
    given = write(tmp_path / "canal.csv", [row for row in rows if row["study_id"] == one])
    assert grade(data, weights, tmp_path / "again.csv", points=given) == 0
    assert (tmp_path / "again.csv").read_bytes() == first.read_bytes()
    assert points_path(tmp_path / "again.csv").read_bytes() == points_path(first).read_bytes()


@pytest.mark.slow
def test_true_places_of_phantoms_are_graded_better_than_places_that_are_wrong(studies, tmp_path):
    """The table of truth of the phantoms is a points file as it stands."""
    truth = table(studies / "truth_points.csv")
    wrong = [row | {"z_mm": str(float(row["z_mm"]) + 17)} for row in truth]
    labels = TASK.read_labels(studies / "test_truth.csv")
    scores = {}
    for name, rows in (("true", truth), ("wrong", wrong)):
        out = tmp_path / f"{name}.csv"
        assert grade(studies, SHIPPED, out, points=write(tmp_path / f"{name}.points", rows)) == 0
        found = submission.read_submission(out)
        probs = {study: np.array([found[row] for row in TASK.rows(study)]) for study in labels}
        scores[name] = TASK.metric.score(labels, probs)["score"]
    assert scores["true"] < scores["wrong"]


@pytest.mark.slow
def test_a_pixel_a_box_and_millimetres_are_one_place(graded, tmp_path):
    data, _, first = graded
    chosen = [row for row in table(points_path(first)) if row["series"]]
    names = ("study_id", "landmark", "series", "file")
    pixels, boxes = [], []
    for row in chosen:
        x, y = float(row["x"]), float(row["y"])
        pixels.append({name: row[name] for name in (*names, "x", "y")})
        edges = {"x0": x + 0.5 - 20, "x1": x + 0.5 + 20, "y0": y + 0.5 - 9, "y1": y + 0.5 + 9}
        boxes.append({name: row[name] for name in names} | {name: str(value) for name, value in edges.items()})
    read = {study.id: study for study in TASK.read(data, "test")}
    for form in (pixels, boxes):
        path = write(tmp_path / "form.csv", form)
        for study in with_given_points(TASK, list(read.values()), path):
            loaded = load_study(study, TASK)
            own = {row["landmark"]: row for row in chosen if row["study_id"] == study.id}
            assert set(loaded.given) == set(own)
            assert "point_without_slice" not in loaded.faults
            for name, point in loaded.given.items():
                mm = np.array([float(own[name][axis]) for axis in points_file.MM])
                grid = next(g for g in loaded.grids if g.series == own[name]["series"])
                off = (np.linalg.inv(grid.to_mm)[:3, :3] @ (point.mm - mm))[1:]  # the slice is the nearest whole one
                assert np.abs(off).max() < 0.01


@pytest.mark.slow
def test_a_pixel_on_a_slice_that_is_not_there_is_counted_and_the_point_looked_for(graded, tmp_path):
    data, weights, first = graded
    row = next(row for row in table(points_path(first)) if row["series"])
    lost = {name: row[name] for name in ("study_id", "landmark", "series", "x", "y")} | {"file": "4711"}
    assert grade(data, weights, tmp_path / "lost.csv", points=write(tmp_path / "p.csv", [lost])) == 0
    assert (tmp_path / "lost.csv").read_bytes() == first.read_bytes()
    flags = submission.flags_path(tmp_path / "lost.csv").read_text().splitlines()
    assert f"{row['study_id']}_left_neural_foraminal_narrowing_l1_l2,point_without_slice,1" in flags


GOOD = {"study_id": "7", "landmark": "canal_l1_l2", "x_mm": "1", "y_mm": "2", "z_mm": "3"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD | {"landmark": "canal_l9"}], "has no landmark 'canal_l9'"),
        ([GOOD, GOOD | {"x_mm": "4"}], "line 3: canal_l1_l2 of study 7 stands in line 2"),
        ([GOOD | {"z_mm": ""}], "z_mm is ''; expected a number"),
        ([GOOD | {"confidence": "2"}], "confidence is 2"),
        ([GOOD | {"names": "canal_l1_l2"}], "names holds 'canal_l1_l2'"),
        ([GOOD | {"study_id": "8"}], "gives no point of the 1 studies; its studies are 8"),
        ([GOOD | dict.fromkeys(("x_mm", "y_mm", "z_mm"), "")], "canal_l1_l2 has no place"),
        ([{"study_id": "7", "landmark": "canal_l1_l2", "x": "3", "y": "4"}], "several series, and the row names none"),
        ([{"study_id": "7", "landmark": "canal_l1_l2", "x": "3", "y": "4", "series": "1"}], "has several files"),
        ([{"study_id": "7", "landmark": "canal_l1_l2", "x": "3", "y": "4", "series": "5"}], "no series '5'"),
        ([{"study_id": "7", "x": "3"}], "no column landmark; found study_id, x"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(rows, message, tmp_path):
    study = Study("7", "7", (Series("1", "sag_t2", tmp_path), Series("2", "sag_t1", tmp_path)))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        with_given_points(TASK, [study], write(tmp_path / "points.csv", rows))


def test_ids_that_a_spreadsheet_changed_and_studies_beside_the_run_are_no_mistake(tmp_path):
    study = Study("007", "007", (Series("1", "sag_t2", tmp_path),))
    rows = [GOOD | {"x_mm": "1,5"}, GOOD | {"study_id": "9"}]
    [given] = with_given_points(TASK, [study], write(tmp_path / "points.csv", rows))
    assert given == replace(study, given=given.given)
    assert given.given["canal_l1_l2"].mm.tolist() == [1.5, 2.0, 3.0]
    assert given.given["canal_l1_l2"].confidence == 1.0
