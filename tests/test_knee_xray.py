"""What a knee image is follows from its size and header; labels and folder names are for training alone."""

import cv2
import numpy as np
import pydicom
import pytest

from osteograde.phantom.dicom_writer import write_film
from osteograde.pipeline.load import ASSUMED, SIDE_MM, load_study
from osteograde.report import score_table
from osteograde.tasks import TASKS
from osteograde.tasks.knee_files import Outline, Shown, labels, read, shown_by
from osteograde.tasks.names import read_name

TASK = TASKS["knee-xray"]


def picture(path, width, height, value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.tile(np.linspace(0, 255, width), (height, 1)).astype(np.uint8)
    pixels[0, 0] = value
    cv2.imwrite(str(path), pixels)


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "train" / "2" / "9001695L.png", 299, 299)
    picture(tmp_path / "train" / "0" / "9001695R.png", 299, 299)
    picture(tmp_path / "val" / "4" / "9002000R.png", 224, 224)
    picture(tmp_path / "wide film.png", 900, 700)
    picture(tmp_path / "tall.png", 600, 900)
    return tmp_path


def test_training_reads_grade_folders_with_labels_and_centres(folder):
    studies = {study.id: study for study in read(folder, "train")}
    assert set(studies) == {"9001695L", "9001695R", "9002000R"}
    assert studies["9001695L"].labels == {"left": 2} and studies["9002000R"].labels == {"right": 4}
    assert studies["9001695L"].patient == studies["9001695R"].patient == "9001695"
    (mark,) = studies["9001695R"].marks
    assert (mark.landmark, mark.x, mark.y) == ("right", 149, 149)


def test_grading_reads_every_image_and_no_label(folder):
    studies = {study.id: study for study in read(folder, "test")}
    assert {name: study.targets for name, study in studies.items()} == {
        "9001695L": ("left",),
        "9001695R": ("right",),
        "9002000R": ("right",),
        "tall": ("right",),
        "wide_film": (),
    }
    assert all(not study.labels and not study.marks for study in studies.values())


def test_a_crop_spans_140_mm_on_its_own_side(folder):
    studies = {study.id: study for study in read(folder, "test")}
    for name, sign in (("9001695L", 1), ("9001695R", -1), ("9002000R", -1)):
        (volume,) = load_study(studies[name], TASK).volumes["film"]
        assert volume.spacing_mm[2] * volume.voxels.shape[2] == pytest.approx(140)
        np.testing.assert_allclose(volume.centre_mm, [sign * SIDE_MM, 0, 0], atol=1e-9)


def test_a_film_without_spacing_says_that_its_size_is_assumed(folder):
    studies = {study.id: study for study in read(folder, "test")}
    for name, width_mm in (("wide_film", 400), ("tall", 220)):
        loaded = load_study(studies[name], TASK)
        (volume,) = loaded.volumes["film"]
        assert volume.spacing_mm[2] * volume.voxels.shape[2] == pytest.approx(width_mm)
        assert loaded.faults[f"film:{ASSUMED}"] == 1


@pytest.mark.parametrize(("pixel_mm", "side", "targets"), [
    (0.5, "", ()), (0.3, "", ("right",)), (0.5, "L", ("left",)), (0.5, "B", ()), (9.0, "", ("right",)),
])  # fmt: skip
def test_a_tall_film_shows_both_knees_where_it_is_as_wide_as_two(tmp_path, pixel_mm, side, targets):
    path = tmp_path / "tall.dcm"
    write_film(path, np.zeros((800, 640), np.uint8), 0.5, "tall")
    film = pydicom.dcmread(path)
    film.ImagerPixelSpacing = [pixel_mm] * 2
    if side:
        film.ImageLaterality = side
    film.save_as(path)
    (study,) = read(tmp_path, "test")
    assert study.targets == targets


def test_images_of_one_name_in_several_folders_stay_apart(tmp_path):
    picture(tmp_path / "a" / "x.png", 299, 299)
    picture(tmp_path / "b" / "x.png", 299, 299)
    assert [study.id for study in read(tmp_path, "test")] == ["a_x", "b_x"]


def test_a_folder_without_images_is_the_users_mistake(tmp_path):
    with pytest.raises(ValueError, match="no image files"):
        read(tmp_path, "test")
    with pytest.raises(ValueError, match="no images in grade folders 0 to 4"):
        read(tmp_path, "train")


def test_a_truth_table_needs_sides_and_known_grades(tmp_path):
    table = tmp_path / "test_truth.csv"
    table.write_text("row_id,grade\nfilm_1_right,3\nfilm_1_left,\n")
    assert labels(table) == {"film_1": {"right": 3}}
    table.write_text("row_id,grade\nfilm_1,3\n")
    with pytest.raises(ValueError, match="without a side"):
        labels(table)


def test_grade_folders_are_truth_to_score_against(folder, tmp_path):
    rows = ["row_id," + ",".join(TASK.classes)]
    for name, grade in (("9001695L_left", 2), ("9001695R_right", 0), ("9002000R_right", 3)):
        rows.append(",".join([name, *("0.6" if k == grade else "0.1" for k in range(5))]))
    out = tmp_path / "knees.csv"
    out.write_text("\n".join(rows) + "\n")
    result = score_table.score_submission(TASK, folder, out, 0, np.random.default_rng(0))
    assert result["studies"] == 3 and result["score"]["accuracy"] == pytest.approx(2 / 3)
    assert result["score"]["mae"] == pytest.approx(1 / 3)


def test_truth_of_a_side_that_has_no_row_is_left_out_and_counted(tmp_path):
    picture(tmp_path / "test_images" / "knee_L.png", 299, 299)
    (tmp_path / "test_truth.csv").write_text("row_id,grade\nknee_L_left,2\nknee_L_right,3\n")
    out = tmp_path / "out.csv"
    out.write_text("row_id," + ",".join(TASK.classes) + "\nknee_L_left,0.1,0.1,0.6,0.1,0.1\n")
    result = score_table.score_submission(TASK, tmp_path, out, 0, np.random.default_rng(0))
    assert result["score"]["accuracy"] == 1 and result["unsubmitted_rows"] == 1
    assert "1 labelled rows of these studies are not submitted: left out" in score_table.format_table(result)


# Names, tables of patients and headers


def named_as(tmp_path, *names, size=(299, 299)):
    for name in names:
        picture(tmp_path / name, *size)
    return {study.id: study for study in read(tmp_path, "test")}


def test_the_side_in_a_name_is_the_row_and_a_guess_is_flagged(tmp_path):
    studies = named_as(tmp_path, "P012_L.png", "knee-left-07.png", "LT_knee_9.png", "R_0031.png", "some.png")
    assert {name: study.targets for name, study in studies.items()} == {
        "P012_L": ("left",), "knee-left-07": ("left",), "LT_knee_9": ("left",), "R_0031": ("right",),
        "some": ("right",),
    }  # fmt: skip
    assert {name: study.notes for name, study in studies.items() if study.notes} == {"some": ("side_assumed",)}
    assert load_study(studies["some"], TASK).faults["side_assumed"] == 1


def test_the_side_may_be_the_name_of_a_folder(tmp_path):
    studies = named_as(tmp_path, "left/001.png", "right/001.png")
    assert {study.targets for study in studies.values()} == {("left",), ("right",)}
    assert {study.patient for study in studies.values()} == {"001"}


def test_a_table_of_patients_counts_more_than_names_and_headers(tmp_path, caplog):
    for name in ("a/x_L.png", "b/y.png", "007.png"):
        picture(tmp_path / name, 299, 299)
    table = tmp_path / "patients.csv"
    table.write_text("Image;Patient;Side\na/x_L.png;ann;rechts\ny;bob;L\n7;cat;\nz.png;dan;\n", encoding="utf-16")
    studies = {study.id: study for study in read(tmp_path, "test")}
    assert {name: (study.patient, study.targets) for name, study in studies.items()} == {
        "x_L": ("ann", ("right",)), "y": ("bob", ("left",)), "007": ("cat", ("right",)),
    }  # fmt: skip
    assert "1 rows speak of no image here: z.png" in caplog.text
    table.write_text("image,patient\nx_L.png,ann\nx_L.png,bob\n")
    with pytest.raises(ValueError, match=r"line 2, 3: rows contradict each other about x_L\.png"):
        read(tmp_path, "test")
    table.write_text("image,patient,side\nx_L.png,ann,up\n")
    with pytest.raises(ValueError, match="line 2: no side"):
        read(tmp_path, "test")


def test_all_visits_and_sides_of_a_name_are_one_patient_and_unnamed_ones_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    for visit in (1, 2):
        for side in "LR":
            picture(tmp_path / str(visit) / f"P07_visit{visit}_{side}.png", 299, 299)
    picture(tmp_path / "3" / "p07-Lt.png", 299, 299)
    for number in (1, 2):
        picture(tmp_path / "0" / f"scan {number}.png", 299, 299)
    studies = read(tmp_path, "train")
    assert {study.patient for study in studies} == {"P07", "scan_1", "scan_2"}
    assert "1 patients told apart by the names of 5 images" in caplog.text
    assert "the names of 2 images give no patient (such as scan 1, scan 2)" in caplog.text


def write_labelled_film(path, patient, width=640):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_film(path, np.zeros((800, width), np.uint8), 0.2, "film")
    film = pydicom.dcmread(path)
    film.PatientID, film.ImageLaterality = patient, "L"
    film.save_as(path)


def test_dicom_tells_the_patient_and_no_identifier_is_kept(tmp_path):
    for name, patient in (("a", "4711"), ("b", "4711"), ("c", "4712")):
        write_labelled_film(tmp_path / "2" / f"{name}.dcm", patient)
    studies = {study.id: study.patient for study in read(tmp_path, "train")}
    assert studies["a"] == studies["b"] != studies["c"]
    assert not any("471" in patient for patient in studies.values())


@pytest.mark.parametrize("word", ["ANON", "", "0000"])
def test_a_word_in_place_of_an_identifier_is_no_patient(tmp_path, word):
    for name in ("a", "b", "c"):
        write_labelled_film(tmp_path / "2" / f"{name}.dcm", word)
    assert len({study.patient for study in read(tmp_path, "train")}) == 3


# One knee or both


def shown(width, height, named="", labelled=False, width_mm=0.0, side="", picture=True):
    return shown_by(Outline(width, height, side, width_mm, picture), read_name(named), labelled)


def test_a_label_says_one_knee_whatever_the_shape(tmp_path):
    for shape in ((299, 180), (299, 299), (180, 299), (1200, 700)):
        told = shown(*shape, "9001695L", labelled=True)
        assert told.side == "left" and "one_knee_assumed" not in told.notes
    assert shown(299, 180, "9001695L", labelled=True).width_mm == shown(299, 299, "9001695L").width_mm == 140


def test_labelled_landscape_crops_are_learnt_from_and_films_of_both_knees_are_counted(tmp_path, caplog):
    picture(tmp_path / "2" / "9001695L.png", 299, 180)
    write_labelled_film(tmp_path / "3" / "wide.dcm", "7", width=1600)
    film = pydicom.dcmread(tmp_path / "3" / "wide.dcm")
    film.ImageLaterality = ""
    film.save_as(tmp_path / "3" / "wide.dcm")
    (study,) = read(tmp_path, "train")
    assert study.labels == {"left": 2} and study.marks[0].landmark == "left"
    assert (study.marks[0].x, study.marks[0].y) == (149, 89.5)
    assert "1 films of both knees lie in a folder of one grade: left out" in caplog.text


def test_a_landscape_crop_of_a_named_side_is_one_knee_and_says_that_it_was_assumed():
    told = shown(299, 180, "9001695L")
    assert (told.side, told.width_mm, told.notes) == ("left", 140, ("one_knee_assumed",))
    assert shown(299, 180, "some").side == shown(900, 700, "R0031").side == ""  # R may mean anything here


@pytest.mark.parametrize("picture", [True, False])
@pytest.mark.parametrize(("share", "knees", "notes"), [
    (1.0, 2, ()), (0.96, 2, ()), (0.93, 2, ()), (0.88, 1, ("one_knee_assumed",)), (0.8, 1, ()),
])  # fmt: skip
def test_a_near_square_film_of_unknown_size_shows_both_knees(share, knees, notes, picture):
    told = shown(round(share * 1000), 1000, "film", picture=picture)
    assert (told.side == "") == (knees == 2)
    assert told.width_mm == (400 if knees == 2 else None)  # else the box would be 1.8 times too large
    assert set(notes) <= {*told.notes} and ("one_knee_assumed" in told.notes) == bool(notes)


def test_near_square_films_of_a_known_size_or_side_are_as_their_size_and_side_say():
    assert shown(950, 1000, width_mm=200.0, picture=False).side == "right"
    assert shown(950, 1000, width_mm=300.0, picture=False).side == ""
    assert shown(950, 1000, "P01_L").side == "left" and "one_knee_assumed" in shown(950, 1000, "P01_L").notes
    assert shown(950, 1000, side="left", picture=False) == Shown("left")


def test_sides_that_contradict_each_other_are_flagged_and_the_header_counts():
    told = shown(600, 900, "P01_L", side="right", picture=False)
    assert told.side == "right" and told.notes == ("side_contradicts",)


@pytest.mark.parametrize("name", ["P01_both", "P01_bilateral"])
def test_a_name_of_both_sides_says_two_knees(name):
    assert shown(299, 299, name).side == shown(600, 900, name).side == ""
