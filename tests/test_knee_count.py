"""One knee or both: where only the shape of a film says it, the joints in the image decide, and the rows follow."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde.grade_command import infer
from osteograde.inference import multi_gpu, submission
from osteograde.models.manifest import read_manifest, write_manifest
from osteograde.phantom.dicom_writer import write_film
from osteograde.phantom.knee import knee
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.knee_count import APART_MM, settle
from osteograde.tasks.knee_files import Outline, other_readings, shown_by
from osteograde.tasks.knee_films import compose
from osteograde.tasks.names import Named
from osteograde.tasks.spec import SIDE_MM, Point, Points, Study

TASK = TASKS["knee-xray"]
WEIGHTS = Path(__file__).parents[1] / "weights" / "knee-xray"
SIGN = {"right": -1, "left": 1}


def picture(path: Path, width: int, height: int) -> Study:
    cv2.imwrite(str(path), np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))
    (study,) = TASK.read(path.parent, "test")
    return study


def settled(study: Study, two: float = 0.0, one: float = 0.0, *, apart: float = 200.0, away: float = 0.0, other=False):
    """The reading of a study in which two joints are found with a confidence ``two`` and ``apart`` mm from each other,
    or one with a confidence ``one``, ``away`` mm to the left of the middle."""

    def points_of(reading: Study) -> Points:
        if reading.targets:
            (side,) = reading.targets
            mm = np.array([SIGN[side] * SIDE_MM + away, 0, 0])
            return {side: Point(mm, one)} if one else {}
        if two:
            return {side: Point(np.array([sign * apart / 2, 0, 0]), two) for side, sign in SIGN.items()}
        half = "left" if away > 0 else "right"
        return {half: Point(np.array([away, 0, 0]), one)} if one else {}

    return settle(study, points_of, lambda reading: other and "side_assumed" in reading.notes)


@pytest.mark.parametrize(("width", "height"), [(900, 600), (800, 800), (600, 900), (300, 300)])
def test_the_joints_in_the_image_count_more_than_its_shape(tmp_path, width, height):
    study = picture(tmp_path / "film.png", width, height)
    assert settled(study, two=0.8, one=0.6, away=60).targets == ()
    alone = settled(study, one=0.8)
    assert alone.targets == ("right",) and "one_knee_assumed" not in alone.notes
    changed = bool(study.targets) != bool(alone.targets)
    assert ("counted_by_joints" in alone.notes) == changed
    assert "counted_by_joints" not in settled(study).notes and settled(study).targets == study.targets


def test_two_halves_of_one_knee_are_not_two_knees(tmp_path):
    study = picture(tmp_path / "film.png", 900, 600)
    assert settled(study, two=0.9, one=0.8, apart=APART_MM - 1).targets == ("right",)
    assert settled(study, two=0.9, one=0.8, apart=APART_MM + 1).targets == ()


def test_a_film_on_which_nothing_is_found_is_what_its_shape_says(tmp_path):
    near = picture(tmp_path / "near.png", 880, 1000)
    assert settled(near) == near and near.notes == ("side_assumed", "one_knee_assumed")


def test_a_knee_alone_in_its_half_of_a_film_for_two_keeps_both_rows_unless_its_anatomy_says_otherwise(tmp_path):
    wide = picture(tmp_path / "film.png", 900, 600)
    for away, side in ((-80.0, "right"), (80.0, "left")):
        told = settled(wide, one=0.8, away=away)
        assert told.targets == () and {"side_assumed", "counted_by_joints"} <= {*told.notes}
        turned = settled(wide, one=0.8, away=away, other=True)
        assert turned.targets == ({"right": "left", "left": "right"}[side],)
        assert "side_by_anatomy" in turned.notes and "side_assumed" not in turned.notes
    assert settled(wide, one=0.8, away=20.0).targets == ("right",)


def test_a_crop_of_the_other_side_is_graded_as_that_one_and_a_named_one_never(tmp_path):
    (tmp_path / "a").mkdir()
    crop = picture(tmp_path / "some.png", 299, 299)
    left = settled(crop, one=0.8, other=True)
    assert left.targets == ("left",) and left.series[0].side == "left" and left.notes == ("side_by_anatomy",)
    assert left.series[0].spacing_mm == crop.series[0].spacing_mm
    named = picture(tmp_path / "a" / "P07_R.png", 299, 299)
    assert settled(named, one=0.8, other=True).targets == ("right",)


def test_a_crop_with_a_clear_joint_in_its_middle_is_looked_at_once(tmp_path):
    crop, looked = picture(tmp_path / "R07.png", 299, 299), []
    assert any(not reading.targets for reading in crop.readings)

    def points_of(reading: Study) -> Points:
        looked.append(reading)
        return {"right": Point(np.array([-SIDE_MM, 0, 0]), 0.9)}

    settle(crop, points_of, lambda _: False)
    assert looked == [crop]


def readings(width: int, height: int, named: Named = Named(), **header) -> list:  # noqa: B008
    outline = Outline(width, height, header.get("side", ""), header.get("width_mm", 0.0), header.get("picture", True))
    return other_readings(outline, named, shown_by(outline, named, labelled=False))


def test_what_a_header_a_table_or_a_word_says_is_not_asked_of_the_image():
    assert not readings(900, 600, side="left", picture=False)
    assert not readings(600, 900, side="both", picture=False)
    assert not readings(900, 600, Named("both", "P1", sure=True))
    assert not readings(900, 600, Named("left", "P1", sure=True, known=True))
    assert not readings(600, 900, Named("left", "P1", sure=True))
    assert not readings(299, 299, Named("left", "P1", sure=True))
    assert {one.side for one in readings(900, 600, Named("left", "P1", sure=True))} == {
        "",
        "left",
    }  # its shape says two
    assert {one.side for one in readings(600, 900, Named("left", "P1"))} == {"", "left"}  # L1 may mean anything


def test_a_film_too_narrow_for_two_knees_has_no_reading_of_both():
    assert {one.side for one in readings(900, 600, width_mm=180.0, picture=False)} == {"right", "left"}
    assert {one.side for one in readings(600, 900, width_mm=180.0, picture=False)} == {"left"}
    assert "" in {one.side for one in readings(600, 900, width_mm=250.0, picture=False)}


def test_a_film_whose_size_was_assumed_is_not_turned_as_a_crop_is(tmp_path):
    dark = np.full((600, 900), 20, np.uint8)
    dark[:, :200] = 200  # a knee at the left border, air in the middle
    cv2.imwrite(str(tmp_path / "film.png"), dark)
    (study,) = TASK.read(tmp_path, "test")
    for reading in (study, *study.readings):
        assert not load_study(reading, TASK).faults["negative_turned"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped nets of fold 0, without checks."""
    folder = tmp_path_factory.mktemp("weights")
    manifest = read_manifest(WEIGHTS)
    kept = {name: entry for name, entry in manifest.files.items() if "fold0" in name}
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WEIGHTS / name, folder / name)
    write_manifest(folder, replace(manifest, files=kept, test_views=1, checks={}))
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of unknown size whose shape says the wrong number of knees."""
    folder = tmp_path_factory.mktemp("films")
    right = knee(1, np.random.default_rng(0))
    both = [(right, "right"), (np.ascontiguousarray(right[:, ::-1]), "left")]
    sized = {"size_mm": (380.0, 540.0), "pixel_mm": 0.6}
    cv2.imwrite(str(folder / "tall.png"), compose(both, np.random.default_rng(3), **sized).pixels)
    wide = {"layout": "single", "size_mm": (360.0, 250.0), "place": (0.49, 0.51), "pixel_mm": 0.6}
    film = compose(both[:1], np.random.default_rng(4), **wide)
    cv2.imwrite(str(folder / "wide.png"), film.pixels)
    write_film(folder / "wide_sized.dcm", film.pixels, film.pixel_mm, "wide_sized")
    alone = compose(both[1:], np.random.default_rng(5), **{**wide, "place": (0.75, 0.76)})
    cv2.imwrite(str(folder / "alone.png"), alone.pixels)
    return folder


def rows_of(path: Path) -> list[str]:
    return list(submission.read_submission(path))


def graded(data: Path, weights: Path, out: Path) -> Mapping[str, set[str]]:
    """Row -> its flags, of all rows."""
    assert infer("knee-xray", data, weights, out, device="cpu") == 0
    flags: dict[str, set[str]] = {row: set() for row in rows_of(out)}
    with out.with_name(out.stem + ".flags.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            flags[row["row_id"]].add(row["reason"])
    return flags


def test_rows_flags_and_points_are_those_of_the_knees_that_are_there(films, weights, tmp_path):
    flags = graded(films, weights, tmp_path / "out.csv")
    assert list(flags) == ["alone_right", "alone_left", "tall_right", "tall_left", "wide_right", "wide_sized_right"]
    assert all("counted_by_joints" in codes for codes in flags.values())
    assert [row for row, codes in flags.items() if "not_graded" in codes] == ["alone_right"]  # its empty half
    with (tmp_path / "out.points.csv").open(newline="") as file:
        points = [(row["study_id"], row["landmark"]) for row in csv.DictReader(file)]
    assert [f"{study}_{side}" for study, side in points] == [row for row in flags if row != "alone_right"]


def test_rows_that_a_template_names_stay(films, weights, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(films, data / "test_images")
    (data / "test_images" / "alone.png").unlink()
    named = ["tall_right", "wide_left", "wide_right"]
    lines = ["row_id," + ",".join(TASK.classes), *(f"{row},1,0,0,0,0" for row in named)]
    (data / "sample_submission.csv").write_text("\n".join(lines) + "\n")
    flags = graded(data, weights, tmp_path / "out.csv")
    assert list(flags) == [*named, "wide_sized_right"]
    assert "not_graded" in flags["wide_left"] and "not_graded" not in flags["wide_right"]  # one knee, in the middle
    assert not flags["tall_right"] & {"counted_by_joints"}  # the template has no row for its left knee


def test_a_study_that_was_not_reached_keeps_the_rows_of_its_shape(films, weights, tmp_path):
    studies = TASK.read(films, "test")
    sheet = submission.RunningSubmission(TASK, TASK.prior, studies, tmp_path / "out.csv")
    assert list(sheet.rows)[2:] == ["tall_right", "wide_right", "wide_left", "wide_sized_right", "wide_sized_left"]
    sheet.write()
    assert rows_of(tmp_path / "out.csv") == list(sheet.rows)


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_processes_are_merged_as_their_images_have_them_and_those_of_a_template_stay(tmp_path, fixed):
    out = tmp_path / "out.csv"
    out.write_text("row_id,a\nx_right,1\ny_right,1\ny_left,1\nz_right,1\n")
    rows = {"x": ["x_right"], "y": ["y_right", "y_left"], "z": ["z_right"]}
    table, folder = multi_gpu.MergedRows(out, rows, ["y_right"] if fixed else []), tmp_path / "worker"
    folder.mkdir()
    (folder / multi_gpu.PART).write_text("row_id,a\nx_right,2\nx_left,3\ny_left,4\n")
    facts = {"done": ["x", "y"], "settled": {"x": ["x_right", "x_left"], "y": ["y_left"]}}
    summary = vars(submission.RunSummary(flags=[("y_left", "why", 1), ("x_left", "why", 1)]))
    (folder / multi_gpu.PROGRESS).write_text(json.dumps({**facts, **summary}))
    order = multi_gpu.WorkOrder(TASK.name, (), "", "cpu", ("x", "y", "z"), 1.0, 1)
    table.take(multi_gpu.Worker(order, folder, None))  # type: ignore[arg-type]
    kept = "y_right,1\n" if fixed else ""  # as the template has it
    assert out.read_text() == f"row_id,a\nx_right,2\nx_left,3\n{kept}y_left,4\nz_right,1\n"
    whole = multi_gpu.merged_summary([multi_gpu.read_progress(folder).summary], list(rows), table.rows)
    assert [row for row, *_ in whole.flags] == ["x_left", "y_left"] and whole.faults == Counter()
