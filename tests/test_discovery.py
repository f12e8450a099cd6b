"""Folders of images without tables: which files count, and one name for each."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from osteograde.imaging.discovery import MOST, find_images, look_through, part_folder, unique_names
from osteograde.imaging.image_files import is_image
from osteograde.tasks.tables import is_id
from tests.dicom_files import dataset, write


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_pictures_and_dicom_files_are_found_in_order_at_any_depth(tmp_path):
    expected = [
        touch(tmp_path / "a.PNG"),
        touch(tmp_path / "b.jpeg"),
        dicom(tmp_path / "IM0001"),
        touch(tmp_path / "x" / "c.webp"),
        touch(tmp_path / "x" / "y" / "d.dcm"),
        touch(tmp_path / "x" / "y" / "e.IMA"),
    ]
    for other in ("table.csv", "notes", ".hidden.png", ".cache/f.png", "x/short", "x/g.png.old"):
        touch(tmp_path / other)
    assert sorted(find_images(tmp_path)) == sorted(expected)
    assert find_images(tmp_path)[-1].name == "e.IMA"


def test_the_order_does_not_depend_on_the_order_of_writing(tmp_path):
    for turn, order in enumerate(("abc", "cba")):
        for name in order:
            touch(tmp_path / str(turn) / name / f"{name}.png")
    first, second = ([path.name for path in find_images(tmp_path / str(turn))] for turn in (0, 1))
    assert first == second


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), 7).save(path, "PNG")
    return path


def dicom(path: Path, sop_class: str = "1.2.840.10008.5.1.4.1.1.4", preamble: bool = True) -> Path:
    made = dataset(np.zeros((4, 4), np.uint16), SOPClassUID=sop_class)
    made.file_meta.MediaStorageSOPClassUID = sop_class
    write(path, made)
    if not preamble:
        path.write_bytes(path.read_bytes()[132:])
    return path


def test_content_decides_whatever_a_file_is_called(tmp_path):
    names = (
        "1.3.12.2.1107.5.2.43.7",
        "MR.1.2.840.99",
        "image.003",
        "i101.MRDC.1",
        "7.acr",
        "RAW0001",
        "x.xyz",
        "y.png",
    )
    expected = {dicom(tmp_path / name) for name in names}
    expected |= {dicom(tmp_path / "RAW0002", preamble=False)}
    pictures = {png(tmp_path / name) for name in ("a.jfif", "b.foo", "c", "d.dcm", "e.001")}
    found = look_through(tmp_path)
    assert {*found.files} == expected | pictures and found.dicom == expected and not found.passed


@pytest.mark.parametrize("name", ["table.csv", "notes.txt"])
def test_text_that_starts_like_a_bitmap_is_no_picture(tmp_path, name):
    touch(tmp_path / name, b"BMI,age\n22,50\n")
    assert find_images(tmp_path) == []


def test_objects_without_an_image_are_passed_over_and_counted_by_kind(tmp_path, caplog):
    film = dicom(tmp_path / "film.dcm")
    classes = {"a.dcm": "88.11", "b": "11.1", "c.dcm": "104.1", "d.dcm": "88.59", "e.dcm": "9.1.1", "f.dcm": "481.3"}
    for name, number in classes.items():
        dicom(tmp_path / name, f"1.2.840.10008.5.1.4.1.1.{number}")
    dicom(tmp_path / "DICOMDIR", "1.2.840.10008.1.3.10")
    found = look_through(tmp_path)
    assert found.files == (film,)
    found.tell()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "7 DICOM objects without an image" in line and "DICOMDIR x 1" in line and "Basic Text SR x 1" in line


def test_what_systems_leave_behind_is_no_image_and_is_counted(tmp_path, caplog):
    film = png(tmp_path / "knee.png")
    for folder in (
        "@eaDir",
        "@__thumb",
        "__MACOSX",
        "#recycle",
        "$RECYCLE.BIN",
        ".AppleDouble",
        ".Trashes",
        "lost+found",
        "_thumb",
        "~snapshot",
        "resource.frk",
    ):
        png(tmp_path / folder / "knee.png")
    for name in ("Thumbs.db", ".DS_Store", "._knee.png", "desktop.ini"):
        png(tmp_path / name)
    touch(tmp_path / "fork.png", b"\0\5\x16\7" + bytes(90))
    for name in ("half.png.part", "knee.png~", "knee.png.bak"):
        png(tmp_path / name)
    found = look_through(tmp_path)
    assert found.files == (film,)
    found.tell()
    assert "16 left by the system or hidden" in caplog.text
    assert "3 unfinished or backup copies" in caplog.text


def test_all_that_is_not_used_is_counted_by_ending_except_tables_that_were_read(tmp_path, caplog):
    png(tmp_path / "knee.png")
    for name in ("a.nii", "b.nii", "patients.csv", "read.csv", "README"):
        touch(tmp_path / name, b"nothing")
    look_through(tmp_path).tell(used=[tmp_path / "read.csv"])
    assert "not used: 4 other files (.csv x 1, .nii x 2, no ending x 1)" in caplog.text


def test_a_folder_of_images_alone_says_nothing(tmp_path, caplog):
    png(tmp_path / "knee.png")
    look_through(tmp_path).tell()
    assert not caplog.records


def test_an_empty_file_called_like_an_image_is_kept_so_that_its_fault_is_told(tmp_path):
    empty = touch(tmp_path / "x.png", b"")
    assert find_images(tmp_path) == [empty] and is_image(empty)


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    png(data / "a" / "x.png")
    png(elsewhere / "y.png")
    for name, target in {"A": data / "a", "ward": elsewhere, "ward2": elsewhere, "up": tmp_path, "me": data}.items():
        (data / name).symlink_to(target, target_is_directory=True)
    (elsewhere / "back").symlink_to(data, target_is_directory=True)
    (data / "lost").symlink_to(tmp_path / "nowhere")
    (data / "ring").symlink_to(data / "ring")
    found = look_through(data)
    assert [path.relative_to(data).as_posix() for path in found.files] == ["a/x.png", "ward/y.png"]
    assert {path.name for path in found.passed} == {"A", "ward2", "up", "me", "back", "lost", "ring"}
    assert found.not_used() == "2 links that lead nowhere; 5 links to folders that are read already"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_counted(tmp_path):
    png(tmp_path / "a.png")
    png(tmp_path / "closed" / "b.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert look_through(tmp_path).not_used() == "1 pipes, devices, or files and folders that may not be read"
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_no_folder_and_an_empty_one_hold_no_images(tmp_path):
    assert find_images(tmp_path) == find_images(tmp_path / "nowhere") == []


def test_a_part_is_its_own_folder_where_there_is_one(tmp_path):
    assert part_folder(tmp_path, "test") == tmp_path
    touch(tmp_path / "test_images" / "x.png")
    assert part_folder(tmp_path, "test") == tmp_path / "test_images"
    assert part_folder(tmp_path, "train") == tmp_path
    shutil.rmtree(tmp_path / "test_images")
    touch(tmp_path / "test_images")  # a file of that name is no folder
    assert part_folder(tmp_path, "test") == tmp_path


def test_a_name_is_the_stem_where_that_is_enough_and_the_path_where_it_is_not():
    root = Path("r")
    assert unique_names([root / "a/x.png", root / "b/x.png", root / "b/my y.png"], root) == ["a_x", "b_x", "my_y"]


parts = st.text(st.sampled_from("ab _.-/0é"), min_size=1, max_size=6).filter(lambda text: text.strip("./ "))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(parts, parts, st.sampled_from([".png", ".jpg", ".dcm"])), max_size=8, unique=True))
def test_every_file_has_a_name_of_its_own_that_a_row_id_may_hold(told):
    root = Path("r")
    files = sorted({root / folder.strip("/") / (name.replace("/", "") + suffix) for folder, name, suffix in told})
    called = unique_names(files, root)
    assert len(set(called)) == len(files)
    assert all(name and "," not in name and " " not in name and name.isascii() for name in called)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(parts, parts, st.sampled_from([".png", ".7"])), max_size=6, unique=True), st.randoms())
def test_a_name_does_not_depend_on_the_order_of_the_files(told, rng):
    root = Path("r")
    files = sorted({root / folder.strip("/") / (name.replace("/", "") + suffix) for folder, name, suffix in told})
    called = dict(zip(files, unique_names(files, root), strict=True))
    rng.shuffle(files)
    assert dict(zip(files, unique_names(files, root), strict=True)) == called


def test_names_made_of_paths_never_meet_the_names_of_others():
    root = Path("r")
    files = [root / name for name in ("a/x.png", "b/x.png", "a_x.png", "a_x_0.png", "c d.png", "c_d.png", "c_d_0.png")]
    called = unique_names(files, root)
    assert called[1:4] == ["b_x", "a_x", "a_x_0"] and called[0] == "a_x.png" and called[6] == "c_d_0"
    assert len(set(called)) == len(files)


def test_long_names_are_cut_and_still_differ():
    root = Path("r")
    called = unique_names([root / f"{'a' * 100}{i}" / f"{'b' * 80}.png" for i in range(3)], root)
    assert len(set(called)) == 3 and all(len(name) <= MOST and is_id(name) for name in called)
