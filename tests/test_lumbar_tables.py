"""The competition's tables: names as published, every mistake told with file, rows and a way out, no study lost."""

import logging
import shutil

import numpy as np
import pytest

from osteograde.errors import UserError
from osteograde.tasks import lumbar_folders, lumbar_names, lumbar_tables, tables
from osteograde.tasks.lumbar_mr import TASK
from osteograde.tasks.lumbar_names import TARGETS

SERIES = {"11": "Sagittal T1", "12": "Sagittal T2/STIR", "13": "Axial T2"}


def edit(path, change):
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def root(tmp_path):
    """Two labelled studies of three series, three points, and a test part that holds the same studies."""
    grades = ["Normal/Mild"] * 20 + ["Moderate"] * 3 + ["Severe", ""]
    header = ",".join(("study_id", *TARGETS))
    (tmp_path / "train.csv").write_text("\n".join([header, *(",".join((s, *grades)) for s in ("901", "902"))]) + "\n")
    rows = [f"{study},{series},{text}" for study in ("901", "902") for series, text in SERIES.items()]
    for part in ("train", "test"):
        table = "\n".join(["study_id,series_id,series_description", *rows]) + "\n"
        (tmp_path / f"{part}_series_descriptions.csv").write_text(table)
        for row in rows:
            folder = tmp_path / f"{part}_images" / row.split(",")[0] / row.split(",")[1]
            folder.mkdir(parents=True)
            (folder / "1.dcm").write_bytes(b"")
    (tmp_path / "train_label_coordinates.csv").write_text(
        "study_id,series_id,instance_number,condition,level,x,y\n"
        "901,12,8,Spinal Canal Stenosis,L1/L2,150.5,90\n"
        "901,11,4,Left Neural Foraminal Narrowing,L5/S1,160,200.25\n"
        "902,13,22,Right Subarticular Stenosis,L4/L5,100,101\n"
    )
    return tmp_path


# Names


def test_names_are_those_of_the_competition():
    assert len(TARGETS) == 25 == len(set(TARGETS))
    assert TARGETS[:6:5] == ("spinal_canal_stenosis_l1_l2", "left_neural_foraminal_narrowing_l1_l2")
    order = [TARGETS[i] for i in (5, 10, 15, 20)]
    assert [name.removesuffix("_l1_l2") for name in order] == [
        "left_neural_foraminal_narrowing",
        "right_neural_foraminal_narrowing",
        "left_subarticular_stenosis",
        "right_subarticular_stenosis",
    ]
    assert [name.removesuffix("_l1_l2") for name in TASK.targets[::5]] == [
        "left_neural_foraminal_narrowing",
        "left_subarticular_stenosis",
        "right_neural_foraminal_narrowing",
        "right_subarticular_stenosis",
        "spinal_canal_stenosis",
    ]
    assert [name[-5:] for name in TASK.targets[:5]] == ["l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1"]


def test_names_of_the_coordinates_table():
    found = lumbar_names.TARGET_OF_TABLE
    assert len(found) == 25
    assert found["Left Neural Foraminal Narrowing", "L5/S1"] == "left_neural_foraminal_narrowing_l5_s1"
    assert found["Spinal Canal Stenosis", "L1/L2"] == "spinal_canal_stenosis_l1_l2"
    assert lumbar_names.landmark_of("right_subarticular_stenosis_l4_l5") == "recess_right_l4_l5"


# A good folder


def test_a_good_training_part_is_read_whole(root):
    first, second = TASK.read(root, "train")
    assert (first.id, first.patient, second.id) == ("901", "901", "902")
    assert [(s.id, s.view, s.folder) for s in first.series] == [
        ("11", "sag_t1", root / "train_images/901/11"),
        ("12", "sag_t2", root / "train_images/901/12"),
        ("13", "axi_t2", root / "train_images/901/13"),
    ]
    assert len(first.labels) == 24 and TARGETS[24] not in first.labels
    assert [first.labels[TARGETS[i]] for i in (0, 19, 20, 23)] == [0, 0, 1, 2]
    assert [(m.landmark, m.series, m.instance, m.x, m.y) for m in first.marks] == [
        ("canal_l1_l2", "12", "8", 150.5, 90.0),
        ("foramen_left_l5_s1", "11", "4", 160.0, 200.25),
    ]
    assert [m.landmark for m in second.marks] == ["recess_right_l4_l5"]


def test_a_test_part_has_neither_labels_nor_marks(root):
    studies = TASK.read(root, "test")
    assert [study.id for study in studies] == ["901", "902"]
    assert all(len(study.series) == 3 and not study.labels and not study.marks for study in studies)
    assert studies[0].series[0].folder == root / "test_images/901/11"


def test_the_order_of_studies_is_that_of_the_table(root):
    edit(root / "test_series_descriptions.csv", lambda lines: [lines[0], *lines[:0:-1]])
    assert [study.id for study in TASK.read(root, "test")] == ["902", "901"]


def test_what_is_graded_is_the_test_part_else_the_training_part(root):
    assert lumbar_tables.split_of(root) == "test"
    (root / "test_images").rename(root / "away")
    assert lumbar_tables.split_of(root) == "train"
    studies = TASK.read(root, "test")
    assert [study.id for study in studies] == ["901", "902"] and not studies[0].labels
    (root / "train_images").rename(root / "away2")
    with pytest.raises(ValueError, match=r"neither test_images nor train_images.*away"):
        lumbar_tables.split_of(root)
    with pytest.raises(ValueError, match="no such folder"):
        lumbar_tables.split_of(root / "none")


@pytest.mark.parametrize("name", ["train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"])
def test_marks_of_origin_do_not_matter(root, name):
    """A byte order mark, CRLF, spaces, upper-case column names, identical rows twice, a blank line at the end."""
    before = TASK.read(root, "train")
    lines = (root / name).read_text().splitlines()
    lines = [lines[0].upper(), *(line.replace(",", " ,") for line in lines[1:]), lines[-1], ""]
    (root / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert TASK.read(root, "train") == before


def test_ids_that_went_through_a_spreadsheet_come_back(root):
    before = TASK.read(root, "train")
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        text = (root / name).read_text()
        (root / name).write_text(text.replace("\n901,", "\n901.0,").replace("\n902,", "\n9.02e2,"))
    assert TASK.read(root, "train") == before


def test_ids_stay_text(root):
    (root / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n007,0011,Axial T2\n")
    assert [study.id for study in TASK.read(root, "test")] == ["007"]


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("Sagittal T1", "sag_t1"),
        ("SAGITTAL  T1 ", "sag_t1"),
        ("sag_t1_tse", "sag_t1"),
        ("Sagittal T2/STIR", "sag_t2"),
        ("Sagittal STIR", "sag_t2"),
        ("sagittal t2 stir", "sag_t2"),
        ("Sag T2w", "sag_t2"),
        ("Axial T2", "axi_t2"),
        ("AX T2", "axi_t2"),
        ("Axial T1", ""),
        ("Coronal T2", ""),
        ("Localizer", ""),
        ("", ""),
    ],
)
def test_descriptions_mean_views(text, view):
    assert lumbar_tables.view_of_description(text) == view


# Mistakes in training data are refused


def refused(root, words):
    with pytest.raises(ValueError, match=words) as error:
        TASK.read(root, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"])
def test_a_missing_table_is_named(root, name):
    (root / name).unlink()
    refused(root, rf"{name}: no such file")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("train.csv", "left_subarticular_stenosis_l3_l4"),
        ("train_series_descriptions.csv", "series_description"),
        ("train_label_coordinates.csv", "level"),
    ],
)
def test_a_missing_column_is_named_with_those_found(root, name, column):
    replace(root / name, column, "other")
    refused(root, rf"{name}: no column {column}; found study_id.*other")


def test_semicolons_and_other_encodings_are_read(root):
    expected = TASK.read(root, "train"), TASK.read(root, "test")
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        text = (root / name).read_text()
        (root / name).write_text(text.replace(",", ";").replace("\n", "\r\n"), encoding="utf-16", newline="")
    text = (root / "test_series_descriptions.csv").read_text()
    (root / "test_series_descriptions.csv").write_text(text.replace(",", "\t"), encoding="utf-16-le")
    assert (TASK.read(root, "train"), TASK.read(root, "test")) == expected


def test_ids_that_lost_their_leading_zeros_are_those_of_the_folders(root, caplog):
    expected = {study.id: study for study in TASK.read(root, "test")}
    (root / "test_images/901").rename(root / "test_images/00901")
    (root / "test_images/00901/11").rename(root / "test_images/00901/011")
    found = {study.id: study for study in TASK.read(root, "test")}
    assert set(found) == {"00901" if name == "901" else name for name in expected}
    assert [series.view for series in found["00901"].series] == [series.view for series in expected["901"].series]
    assert found["00901"].series[0].folder.name == "011"
    assert "1 study ids that differ from their folders by leading zeros: matched" in caplog.text


def test_training_ids_that_lost_their_leading_zeros_keep_labels_and_points(root):
    expected = {study.id: study for study in TASK.read(root, "train")}
    study = next(iter(expected))
    (root / "train_images" / study).rename(root / "train_images" / f"0{study}")
    found = {one.id: one for one in TASK.read(root, "train")}[f"0{study}"]
    assert found.labels == expected[study].labels and found.marks == expected[study].marks


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00\x01", b'study_id,series_id\n"1,2\n'])
def test_what_is_no_table_is_named(root, data):
    (root / "train.csv").write_bytes(data)
    refused(root, r"train\.csv: (empty|no column|line 2: not a table)")


def test_an_unknown_label_is_named_with_its_line(root):
    replace(root / "train.csv", "902,Normal/Mild", "902,Mild")
    refused(root, r"train\.csv: line 3: unknown label in spinal_canal_stenosis_l1_l2.*'Mild'")


@pytest.mark.parametrize(
    ("old", "new"),
    [("Spinal Canal Stenosis", "Scoliosis"), ("L4/L5", "L6/S1"), ("Right Subarticular", "Subarticular")],
)
def test_an_unknown_condition_or_level_is_named_with_its_line(root, old, new):
    replace(root / "train_label_coordinates.csv", old, new)
    refused(root, rf"train_label_coordinates\.csv: line [24]: unknown condition or level.*{new}")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("train.csv", "902,Normal/Mild", "901,Moderate"),
        ("train_series_descriptions.csv", "901,13,Axial T2", "901,12,Axial T2"),
        (
            "train_label_coordinates.csv",
            "902,13,22,Right Subarticular Stenosis,L4/L5",
            "901,12,8,Spinal Canal Stenosis,L1/L2",
        ),
    ],
)
def test_rows_that_contradict_each_other_are_refused(root, name, old, new):
    replace(root / name, old, new)
    refused(root, rf"{name}: line \d, \d: rows contradict each other about 901")


@pytest.mark.parametrize("bad", ["..", "../901", "9 1", "a/b", "x" * 65, ""])
@pytest.mark.parametrize("name", ["train.csv", "train_series_descriptions.csv"])
def test_ids_that_cannot_be_folders_are_refused(root, name, bad):
    replace(root / name, "\n901,", f"\n{bad},")
    refused(root, rf"{name}: line 2: study_id may hold letters")


def test_studies_in_a_table_but_not_on_disk_are_listed(root):
    (root / "train_images/902").rename(root / "gone")
    refused(root, r"train\.csv lists 1 studies that are not in .*train_images: 902; unpack")


def test_studies_on_disk_but_in_no_table_are_listed(root):
    (root / "train_images/903/1").mkdir(parents=True)
    refused(root, r"train_images holds 1 studies that .*train\.csv does not list: 903; add")


def test_points_of_an_unknown_study_are_refused(root):
    replace(root / "train_label_coordinates.csv", "\n902,", "\n909,")
    refused(root, r"line 4: studies that train\.csv does not have: '909'")


def test_a_link_out_of_the_data_is_refused_in_training_and_absent_in_test(root, caplog):
    for part in ("train", "test"):
        folder = root / f"{part}_images/901/13"
        folder.rename(root / f"outside_{part}")
        folder.symlink_to(root / f"outside_{part}")
    refused(root, "leads out of")
    with caplog.at_level(logging.WARNING):
        assert [series.id for series in TASK.read(root, "test")[0].series] == ["11", "12"]
    assert "1 series folders that lead out of the data" in caplog.text


def test_another_split_is_refused(root):
    with pytest.raises(ValueError, match="'val'"):
        TASK.read(root, "val")


def test_a_missing_image_folder_is_named(tmp_path):
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="train_images"):
            TASK.read(tmp_path, split)


# What training data may lack, with a note


@pytest.mark.parametrize("lack", ["empty", "absent"])
def test_series_without_files_are_absent(root, caplog, lack):
    (root / "train_images/901/12/1.dcm").unlink()
    if lack == "absent":
        (root / "train_images/901/12").rmdir()
    with caplog.at_level(logging.WARNING):
        first = TASK.read(root, "train")[0]
    assert [series.id for series in first.series] == ["11", "13"] and len(first.labels) == 24
    assert "1 series folders missing or empty" in caplog.text


def test_series_of_unknown_kind_are_left_out_of_training(root, caplog):
    replace(root / "train_series_descriptions.csv", "901,13,Axial T2", "901,13,Coronal T2")
    with caplog.at_level(logging.WARNING):
        assert [series.view for series in TASK.read(root, "train")[0].series] == ["sag_t1", "sag_t2"]
    assert "1 series that are none of" in caplog.text


@pytest.mark.parametrize("x", ["nan", "", "left", "-4", "inf"])
def test_points_that_are_no_pixel_are_dropped_and_counted(root, caplog, x):
    replace(root / "train_label_coordinates.csv", "150.5", x)
    with caplog.at_level(logging.WARNING):
        assert [mark.landmark for mark in TASK.read(root, "train")[0].marks] == ["foramen_left_l5_s1"]
    assert "1 points that are no pixel" in caplog.text


def test_points_on_a_series_of_another_view_are_dropped_and_counted(root, caplog):
    replace(root / "train_label_coordinates.csv", "901,12,8", "901,13,8")
    with caplog.at_level(logging.WARNING):
        assert len(TASK.read(root, "train")[0].marks) == 1
    assert "1 points on a series of another or unknown view" in caplog.text


# The test part loses nothing


def test_a_study_that_is_not_on_disk_keeps_its_place(root, caplog):
    (root / "test_images/901").rename(root / "gone")
    with caplog.at_level(logging.WARNING):
        studies = TASK.read(root, "test")
    assert [(study.id, len(study.series)) for study in studies] == [("901", 0), ("902", 3)]
    assert "1 studies of the table that are not on disk" in caplog.text


def test_a_study_that_no_table_lists_is_ignored_with_a_note(root, caplog):
    (root / "test_images/903/1").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert [study.id for study in TASK.read(root, "test")] == ["901", "902"]
    assert "1 studies on disk that no table lists" in caplog.text


def test_a_table_of_another_data_set_is_pointed_out(root, caplog):
    (root / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n5,6,Axial T2\n")
    with caplog.at_level(logging.WARNING):
        assert [study.id for study in TASK.read(root, "test")] == ["5"]
    assert "is this the right table?" in caplog.text


@pytest.mark.parametrize("spoil", ["absent", "column", "bytes"])
def test_without_a_usable_table_the_folders_are_walked(root, caplog, spoil):
    path = root / "test_series_descriptions.csv"
    (root / "test_images/903").mkdir()
    if spoil == "absent":
        path.unlink()
    else:
        path.write_bytes(b"a,b\n1,2\n" if spoil == "column" else b"\xff\xfe\x00")
    with caplog.at_level(logging.WARNING):
        studies = TASK.read(root, "test")
    assert "the folders are walked instead" in caplog.text
    assert [(study.id, [series.id for series in study.series]) for study in studies] == [
        ("901", ["11", "12", "13"]),
        ("902", ["11", "12", "13"]),
        ("903", []),
    ]
    assert {series.view for study in studies for series in study.series} == {""}


def test_contradictions_and_odd_ids_cost_no_row(root):
    edit(
        root / "test_series_descriptions.csv",
        lambda lines: [*lines, "901,11,Axial T2", "904,../../x,Axial T2", "../905,1,Axial T2", "901,14,Unknown"],
    )
    (root / "test_images/901/14").mkdir()
    (root / "test_images/901/14/1.dcm").write_bytes(b"")
    studies = {study.id: study for study in TASK.read(root, "test")}
    assert list(studies) == ["901", "902", "904", "../905"]
    assert [(s.id, s.view) for s in studies["901"].series] == [
        ("11", "sag_t1"),
        ("12", "sag_t2"),
        ("13", "axi_t2"),
        ("14", ""),
    ]
    assert studies["904"].series == studies["../905"].series == ()


def test_what_no_table_lists_is_counted(root, caplog):
    (root / "test_images/901/77").mkdir()
    for name in ("901/77/1.dcm", "901/loose.dcm", "loose.dcm", "notes.txt"):
        (root / "test_images" / name).write_bytes(b"x")
    TASK.read(root, "test")
    for line in (
        "1 series folders that no table lists: ignored",
        "1 files beside the folders of series: ignored",
        "2 files beside the folders of studies: ignored",
    ):
        assert line in caplog.text


def test_tables_without_rows_hold_no_studies(root):
    edit(root / "test_series_descriptions.csv", lambda lines: lines[:1])
    assert TASK.read(root, "test") == []
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        edit(root / name, lambda lines: lines[:1])
    (root / "train_images").rename(root / "away")
    (root / "train_images").mkdir()
    assert TASK.read(root, "train") == []


def test_hidden_files_system_folders_and_files_are_no_studies(root):
    for name in (".cache", "@eaDir", "__MACOSX"):
        (root / "test_images" / name / "1").mkdir(parents=True)
    (root / "test_images/notes.txt").write_text("")
    (root / "test_series_descriptions.csv").unlink()
    assert [study.id for study in TASK.read(root, "test")] == ["901", "902"]


def test_two_thousand_studies_are_read(tmp_path):
    studies = [str(10_000 + i) for i in range(2000)]
    cells = ",".join(["Normal/Mild"] * 25)
    lines = [",".join(("study_id", *TARGETS)), *(f"{study},{cells}" for study in studies)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    labels = TASK.read_labels(tmp_path / "train.csv")
    assert len(labels) == 2000 and labels[studies[-1]] == dict.fromkeys(TARGETS, 0)


def test_numbers_of_text():
    import pandas as pd

    np.testing.assert_array_equal(tables.numbers(pd.Series(["1.5", "", "x", "2"])), [1.5, np.nan, np.nan, 2.0])


def write_volume(path):
    """The start of a NIfTI or MetaImage file, which is what tells one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(4)
    path.write_bytes(b"ObjectType = Image\nNDims = 3\n" if path.suffix == ".mha" else nifti)


@pytest.mark.parametrize("place", ["901/11/v.nii", "901/11/v.nii.gz", "901/v.mha", "v.nii"])
def test_volumes_beside_or_in_place_of_dicom_are_counted_and_named(root, caplog, place):
    assert not [lumbar_tables.read(root, "test"), caplog.text][1]
    for file in (root / "test_images" / "901" / "11").iterdir():
        file.unlink()
    write_volume(root / "test_images" / place)
    lumbar_tables.read(root, "test")
    assert f"1 NIfTI or MetaImage volumes are not read, because lumbar-mr reads DICOM: {place}" in caplog.text


def test_a_folder_of_volumes_alone_is_refused_with_their_number(tmp_path):
    for name in ("a.nii", "b.mha"):
        write_volume(tmp_path / "in" / name)
    with pytest.raises(UserError, match=r"2 NIfTI or MetaImage volumes, which are not read \(a\.nii, b\.mha\)"):
        TASK.read(tmp_path / "in", "test")
    assert TASK.read_files is not None
    with pytest.raises(UserError, match="a NIfTI or MetaImage volume, which is not read"):
        TASK.read_files(tmp_path / "in", [tmp_path / "in" / "a.nii"])


@pytest.mark.parametrize("deeper", ["", "rsna-2024", "zip/rsna-2024"])
def test_an_archive_that_unpacked_deeper_is_read_alike(root, tmp_path_factory, deeper):
    place = tmp_path_factory.mktemp("outer")
    shutil.copytree(root, place / deeper, dirs_exist_ok=True)
    for part in ("train", "test"):
        assert [study.id for study in TASK.read(place, part)] == [study.id for study in TASK.read(root, part)]


def test_a_test_part_alone_is_graded_and_two_copies_are_not_guessed_between(root, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(root / "test_images", alone / "inner" / "test_images")
    assert {study.id for study in TASK.read(alone, "test")} == {"901", "902"}
    with pytest.raises(UserError, match="train_images: no such folder"):
        TASK.read(alone, "train")
    shutil.copytree(alone / "inner", alone / "copy")
    assert lumbar_folders.competition_folder(alone) == alone
