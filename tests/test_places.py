"""Several folders and single files in one run: every image is graded once, under an id that no other has."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde import cli
from osteograde.errors import UserError
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.places import read_places
from tests.dicom_files import AXIAL, SAGITTAL, dataset, write

KNEE, SPIDER, LUMBAR = TASKS["knee-xray"], TASKS["spider"], TASKS["lumbar-mr"]


def picture(path: Path, shape=(224, 224)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(shape, 90, np.uint8))
    return path


def mr_slice(path: Path, *, study: str = "", **tags) -> Path:
    if study:
        tags["StudyInstanceUID"] = f"1.2.3.{study}"
    return write(path, dataset(np.full((8, 8), 5, np.uint16), **tags))


def ids(task, *places) -> list[str]:
    return [study.id for study in read_places(task, places)]


def test_one_folder_is_read_as_the_task_reads_it(tmp_path):
    for name in ("9000002L", "9000001R"):
        picture(tmp_path / "a" / f"{name}.png")
    assert read_places(KNEE, tmp_path / "a") == KNEE.read(tmp_path / "a", "test")
    assert read_places(KNEE, [tmp_path / "a"]) == KNEE.read(tmp_path / "a", "test")


def test_a_single_file_is_a_study_whatever_lies_beside_it(tmp_path):
    picture(tmp_path / "9000001L.png")
    one = picture(tmp_path / "9000002R.png")
    assert [(study.id, study.targets) for study in read_places(KNEE, one)] == [("9000002R", ("right",))]
    slices = [mr_slice(tmp_path / "s" / f"{i}.dcm", instance=i) for i in (1, 2, 3)]
    (study,) = read_places(SPIDER, slices[1])
    assert study.series[0].files == (slices[1],)
    (study,) = read_places(SPIDER, slices[:2])
    assert study.series[0].files == tuple(slices[:2])


def test_files_of_one_patient_are_views_of_one_study_also_in_different_folders(tmp_path):
    files = [picture(tmp_path / folder / name) for folder, name in (("x", "7_t1.png"), ("y", "7_t2.png"))]
    (study,) = read_places(SPIDER, files)
    assert study.id == "7" and {series.view for series in study.series} == {"t1", "t2"}


def test_ids_are_unique_over_all_places_and_do_not_depend_on_their_order(tmp_path):
    for name in ("a/x.png", "a/only.png", "b/x.png", "c/x.png"):
        picture(tmp_path / name)
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "c" / "x.png"]
    assert Counter(ids(KNEE, *places)) == Counter(["a_x", "only", "b_x", "c_x"])
    of_file = {study.series[0].files[0]: study.id for study in read_places(KNEE, places)}
    assert of_file == {study.series[0].files[0]: study.id for study in read_places(KNEE, places[::-1])}
    assert of_file[tmp_path / "a" / "only.png"] == "only"


def test_studies_come_in_the_order_of_the_places(tmp_path):
    for name in ("a/2.png", "a/1.png", "b/3.png", "c/0.png"):
        picture(tmp_path / name)
    assert ids(KNEE, tmp_path / "b", tmp_path / "c" / "0.png", tmp_path / "a") == ["3", "0", "1", "2"]


def test_what_is_given_twice_is_read_once(tmp_path):
    file = picture(tmp_path / "a" / "deep" / "x.png")
    assert ids(KNEE, file, tmp_path / "a", tmp_path / "a" / "deep", tmp_path / "a" / ".." / "a") == ["x"]


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n")
    picture(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"nowhere: no such folder or file"):
        read_places(KNEE, [tmp_path / "x.png", tmp_path / "nowhere"])
    for task in (KNEE, SPIDER):
        with pytest.raises(UserError, match="no image"):
            read_places(task, tmp_path / "notes.csv")
    with pytest.raises(UserError, match=r"no DICOM file.*expected is the competition's folder"):
        read_places(LUMBAR, tmp_path / "x.png")


def test_series_outside_the_competition_are_studies_by_what_their_files_say(tmp_path):
    for study in "12":
        for series, orientation in (("sag", None), ("axi", AXIAL)):
            for i in (1, 2):
                tags = {"orientation": orientation} if orientation else {}
                mr_slice(tmp_path / f"p{study}" / series / f"{i}.dcm", study=study, instance=i, **tags)
    studies = read_places(LUMBAR, tmp_path)
    assert [(study.id, [series.id for series in study.series]) for study in studies] == [
        ("p1", ["p1_axi", "p1_sag"]), ("p2", ["p2_axi", "p2_sag"]),
    ]  # fmt: skip
    assert ids(LUMBAR, tmp_path / "p1" / "sag") == ["sag"]
    assert ids(LUMBAR, tmp_path / "p1" / "sag" / "2.dcm") == ["2"]
    assert ids(LUMBAR, tmp_path / "p1", tmp_path / "p2") == ["p1", "p2"]


def test_slices_of_several_studies_in_one_folder_are_told_apart(tmp_path):
    for study in "12":
        for i in (1, 2):
            mr_slice(tmp_path / "all" / f"{study}{i}.dcm", study=study, instance=i)
    studies = read_places(LUMBAR, tmp_path / "all")
    assert [sorted(file.stem for file in study.series[0].files) for study in studies] in (
        [["11", "12"], ["21", "22"]],
        [["21", "22"], ["11", "12"]],
    )
    assert len({study.id for study in studies}) == 2 and all(study.id.startswith("all_") for study in studies)


def test_slices_that_name_no_study_are_studies_by_their_place(tmp_path):
    for path in ("p1/s/1", "p1/s/2", "p1/t/1", "p2/s/1", "p2/s/2"):
        mr_slice(tmp_path / f"{path}.dcm")
    assert [len(study.series) for study in read_places(LUMBAR, tmp_path)] == [2, 1]


def test_a_task_behind_data_is_not_taken_for_a_path(tmp_path, capsys):
    words = ["--data", str(tmp_path), "spider"]
    assert cli.run(lambda: cli.grade(cli.inference_parser().parse_args(words))) == 2
    assert "name the task before --data" in capsys.readouterr().err


@pytest.mark.parametrize("flat", [False, True])
def test_the_views_of_series_outside_the_competition_are_told_by_their_headers(tmp_path, flat):
    kinds = {
        "a": ("sag_t1", SAGITTAL, 500, 10),
        "b": ("sag_t2", SAGITTAL, 3500, 100),
        "c": ("axi_t2", AXIAL, 3500, 100),
    }
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for series, (_, orientation, repetition, echo) in kinds.items():
        for i in range(3):
            along = np.cross(orientation[:3], orientation[3:]) * 4.0 * i
            made = dataset(
                pixels, orientation=orientation, position=along, instance=i + 1, StudyInstanceUID="1.2.3",
                SeriesInstanceUID=f"1.2.3.{ord(series)}", Modality="MR", ScanningSequence="SE",
                RepetitionTime=repetition, EchoTime=echo,
            )  # fmt: skip
            write(tmp_path / "p" / (f"{series}{i}.dcm" if flat else f"{series}/{i}.dcm"), made)
    (study,) = read_places(LUMBAR, tmp_path)
    loaded = load_study(study, LUMBAR)
    assert {name: len(stacks) for name, stacks in loaded.volumes.items()} == {kind[0]: 1 for kind in kinds.values()}
    assert not any("assumed" in code for code in loaded.faults)
