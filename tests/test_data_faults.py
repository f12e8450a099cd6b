"""Training data with faults: what is lost costs its own row, is named and counted, and much of it is an error."""

import cv2
import numpy as np
import pytest

from osteograde.errors import UserError
from osteograde.learning.data_faults import DataFaults, data_faults, lines_of, refuse_if_most, warning_of
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS, knee_films
from osteograde.tasks.spec import Mark, Series, Study
from tests.dicom_files import SAGITTAL, dataset, write

KNEE, LUMBAR = TASKS["knee-xray"], TASKS["lumbar-mr"]


@pytest.fixture
def crops(tmp_path):
    """Eight crops in grade folders, both knees of four patients."""
    for patient in range(4):
        for side in "LR":
            path = tmp_path / str(patient) / f"{9000000 + patient}{side}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), np.random.default_rng(patient).integers(0, 255, (64, 64)).astype(np.uint8))
    return tmp_path


def counted(folder):
    return data_faults(KNEE, [load_study(study, KNEE) for study in KNEE.read(folder, "train")])


@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_picture_is_named_and_costs_its_own_label(crops, keep):
    path = crops / "2" / "9000002L.png"
    path.write_bytes(path.read_bytes()[:keep])
    lost = counted(crops)
    assert (lost.studies, lost.labels, lost.labels_lost, lost.unread) == (8, 8, 1, (path,))
    said = "\n".join(lines_of(lost))
    assert "1 images or series could not be read" in said and str(path) in said
    assert "1 of 8 labels have no readable image" in said
    assert "12% of the labels" in warning_of(lost)[0]
    refuse_if_most(lost)


def test_whole_data_say_nothing(crops):
    lost = counted(crops)
    assert lines_of(lost) == warning_of(lost) == []


def test_few_losses_are_counted_without_a_warning_and_most_are_an_error():
    assert warning_of(DataFaults(labels=100, labels_lost=2)) == []
    assert warning_of(DataFaults(labels=100, labels_lost=3))
    refuse_if_most(DataFaults(labels=100, labels_lost=50))
    with pytest.raises(UserError, match="51 of 100 labels have no readable image"):
        refuse_if_most(DataFaults(labels=100, labels_lost=51))


def test_films_are_composed_of_the_crops_that_can_be_read(crops, tmp_path, caplog):
    path = crops / "2" / "9000002L.png"
    path.write_bytes(path.read_bytes()[:100])
    studies = KNEE.read(crops, "train")
    films = knee_films.films(studies, tmp_path / "films", np.random.default_rng(0), 0.02)
    assert 0 < len(films) < round(0.02 * knee_films.FILMS)
    assert "composed films left out: a crop cannot be read" in caplog.text


def test_points_without_a_slice_and_series_that_cannot_be_read_are_counted(tmp_path):
    for k in range(4):
        write(tmp_path / "t2" / f"{k + 1}.dcm", dataset(np.full((16, 12), 9 * k, np.uint16), position=(4.0 * k, 0, 0),
                                                        orientation=SAGITTAL, instance=k + 1))  # fmt: skip
    (tmp_path / "t1").mkdir()
    (tmp_path / "t1" / "1.dcm").write_bytes(b"")
    canal, foraminal = (group.sites[0] for group in LUMBAR.graders[:2])
    marks = tuple(Mark(f"m{name}", "t2", name, 3.0, 3.0) for name in ("1", "4", "9"))
    series = (Series("t2", "sag_t2", tmp_path / "t2"), Series("t1", "sag_t1", tmp_path / "t1"))
    study = Study("s", "s", series, {canal.target: 1, foraminal.target: 2}, marks)
    lost = data_faults(LUMBAR, [load_study(study, LUMBAR)])
    assert (lost.points, lost.points_lost, lost.unread) == (3, 1, (tmp_path / "t1",))
    assert lost.faults["sag_t1:empty_file"] == 1
    assert "1 of 3 annotated points have no readable slice" in "\n".join(lines_of(lost))
