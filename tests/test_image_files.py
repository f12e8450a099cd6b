"""Folders of images without tables: which files count, and one name for each."""

import shutil
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.imaging.image_files import MOST, find_images, part_folder, unique_names
from osteograde.tasks.tables import is_id


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_pictures_and_dicom_files_are_found_in_order_at_any_depth(tmp_path):
    expected = [
        touch(tmp_path / "a.PNG"),
        touch(tmp_path / "b.jpeg"),
        touch(tmp_path / "IM0001", bytes(128) + b"DICM"),
        touch(tmp_path / "x" / "c.webp"),
        touch(tmp_path / "x" / "y" / "d.dcm"),
        touch(tmp_path / "x" / "y" / "e.IMA"),
    ]
    for other in ("table.csv", "notes", ".hidden.png", ".cache/f.png", "x/short", "x/g.png.bak"):
        touch(tmp_path / other)
    assert sorted(find_images(tmp_path)) == sorted(expected)
    assert find_images(tmp_path)[-1].name == "e.IMA"


def test_the_order_does_not_depend_on_the_order_of_writing(tmp_path):
    for turn, order in enumerate(("abc", "cba")):
        for name in order:
            touch(tmp_path / str(turn) / name / f"{name}.png")
    first, second = ([path.name for path in find_images(tmp_path / str(turn))] for turn in (0, 1))
    assert first == second


def test_links_to_folders_are_not_followed(tmp_path):
    touch(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    assert len(find_images(tmp_path)) == 1


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


def test_long_names_are_cut_and_still_differ():
    root = Path("r")
    called = unique_names([root / f"{'a' * 100}{i}" / f"{'b' * 80}.png" for i in range(3)], root)
    assert len(set(called)) == 3 and all(len(name) <= MOST + 2 and is_id(name[:MOST]) for name in called)
