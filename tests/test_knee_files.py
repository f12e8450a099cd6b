"""What a knee image is follows from its size and header; labels and folder names are for training alone."""

import cv2
import numpy as np
import pydicom
import pytest

from osteograde.phantom.dicom_writer import write_film
from osteograde.pipeline.load import ASSUMED, SIDE_MM, load_study
from osteograde.report import score_table
from osteograde.tasks import TASKS
from osteograde.tasks.knee_files import labels, read

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
