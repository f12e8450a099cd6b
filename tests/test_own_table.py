"""labels.csv: what it may look like, and what is refused in one line that says where and what to do."""

import csv
import json
import logging
import unicodedata
from io import StringIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.errors import UserError
from osteograde.tasks import TASKS, own_data, own_table
from osteograde.tasks.own_table import Options, key_of, kind_and_classes, label_text

GREY = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)


def pictures(folder, names="abcdef", shape=(20, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / f"{name}.png"), cv2.resize(GREY, shape[::-1]))
    return folder


def folder_of(root, text, names="abcdef"):
    """A folder with pictures and a table of this text."""
    pictures(root / "images", names)
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def task_and_studies(root):
    task = TASKS["table"].for_data(root)
    return task, {study.id: study for study in task.read(root, "train")}


PLAIN = "image,label,patient\na.png,0,p1\nb.png,1,p1\nc.png,0,p2\nd.png,1,p3\n"


def test_a_plain_table_gives_an_image_a_study_with_its_label_and_patient(tmp_path):
    task, studies = task_and_studies(folder_of(tmp_path, PLAIN))
    assert (task.classes, task.targets, task.locators) == (("0", "1"), ("",), ())
    assert {name: dict(study.labels) for name, study in studies.items()} == {
        "a": {"": 0}, "b": {"": 1}, "c": {"": 0}, "d": {"": 1},
    }  # fmt: skip
    assert [study.patient for study in studies.values()] == ["p1", "p1", "p2", "p3"]
    assert task.rows("a") == ["a"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("byte order mark", lambda text: b"\xef\xbb\xbf" + text.encode()),
        ("semicolons", lambda text: text.replace(",", ";").encode()),
        ("tabs", lambda text: text.replace(",", "\t").encode()),
        ("UTF-16", lambda text: text.encode("utf-16")),
        ("spaces around everything", lambda text: text.replace(",", " , ").encode()),
        ("upper-case header", lambda text: text.replace("image,label,patient", "Image,LABEL,Patient").encode()),
        ("line ends of Windows", lambda text: text.replace("\n", "\r\n").encode()),
        ("labels as floats", lambda text: text.replace(",0,", ",0.0,").replace(",1,", ",1.0,").encode()),
        ("names without ending", lambda text: text.replace(".png", "").encode()),
        ("names in upper case", lambda text: text.replace(".png", ".PNG").encode()),
        ("paths below the folder", lambda text: text.replace(".png", ".png").replace("\na", "\nimages/a").encode()),
        ("paths of another system", lambda text: text.replace("\nb", "\n.\\images\\b").encode()),
        ("paths of another place", lambda text: text.replace("\nc", "\n/home/me/data/c").encode()),
        ("a row that is there twice", lambda text: (text + "a.png,0,p1\n").encode()),
        ("an index column as pandas writes it", lambda text: "".join(
            f"{i - 1 if i else ''},{line}\n" for i, line in enumerate(text.splitlines())).encode()),
    ],
)  # fmt: skip
def test_every_usual_way_of_writing_a_table_gives_the_same_studies(name, change, tmp_path):
    _, expected = task_and_studies(folder_of(tmp_path / "plain", PLAIN))
    task, found = task_and_studies(folder_of(tmp_path / "other", change(PLAIN)))
    assert task.classes == ("0", "1")
    assert {key: (study.labels, study.patient) for key, study in found.items()} == {
        key: (study.labels, study.patient) for key, study in expected.items()
    }


def test_patients_that_are_numbers_keep_their_leading_zeros(tmp_path):
    text = "image,label,patient\na,0,007\nb,1,0070\nc,0,7.0\nd,1,7\n"
    _, studies = task_and_studies(folder_of(tmp_path, text))
    assert [study.patient for study in studies.values()] == ["007", "0070", "7", "7"]


def test_names_whose_leading_zeros_a_spreadsheet_took_are_found(tmp_path):
    text = "image,label\n7,0\n8,1\n12,0\n"
    _, studies = task_and_studies(folder_of(tmp_path, text, names=("007", "008", "012")))
    assert sorted(studies) == ["007", "008", "012"]


def test_a_table_without_patients_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _, studies = task_and_studies(folder_of(tmp_path, "image,label\na,0\nb,1\n"))
    assert [study.patient for study in studies.values()] == ["a", "b"]
    assert "no column patient: every image counts as a patient of its own" in caplog.text


# What labels are


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ("0 1 1", "yes_no", ("0", "1")),
        ("yes no", "yes_no", ("no", "yes")),
        ("TRUE False", "yes_no", ("False", "TRUE")),
        ("0 1 2 4", "grades", ("0", "1", "2", "4")),
        ("10 9 1", "grades", ("1", "9", "10")),
        ("1 2", "classes", ("1", "2")),
        ("mild severe Mild", "classes", ("mild", "severe")),
        ("t1 T2 t10", "classes", ("t1", "t10", "T2")),
    ],
)
def test_the_kind_of_labels_follows_from_what_they_are(labels, kind, classes, tmp_path):
    assert kind_and_classes(tmp_path, labels.split(), Options()) == (kind, classes)


def test_table_json_says_what_labels_mean(tmp_path):
    folder_of(tmp_path, "image,label\na,mild\nb,severe\nc,none\nd,none\n")
    (tmp_path / "table.json").write_text(json.dumps({"label": "grades", "classes": ["none", "mild", "severe"]}))
    task, studies = task_and_studies(tmp_path)
    assert task.classes == ("none", "mild", "severe")
    assert [study.labels[""] for study in studies.values()] == [1, 2, 0, 0]
    assert "mae" in task.metric.parts


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "not JSON"),
        ('["classes"]', "expected an object"),
        ('{"clases": ["a", "b"]}', "expected an object with some of"),
        ('{"label": "ordinal"}', "expected one of classes, grades, yes_no"),
        ('{"classes": ["yes", "YES"]}', "two or more"),
        ("[" * 100_000, "not JSON"),
        ('{"classes": ["0", "1", ""]}', "two or more different labels"),
        ('{"classes": [["0"], ["1"]]}', "two or more different labels"),
        ('{"crop": 0}', "from 0.001 to 1"),
        ('{"crop": 40}', "share of the image's longer side"),
        ('{"crop": 0.5}', "there are no points or boxes"),
        ('{"classes": ["0", "2"]}', "labels 1 are none of the classes"),
    ],
)
def test_a_wrong_table_json_is_refused(facts, message, tmp_path):
    folder_of(tmp_path, PLAIN)
    (tmp_path / "table.json").write_text(facts)
    with pytest.raises(UserError, match=message):
        TASKS["table"].for_data(tmp_path)


def test_grades_that_are_texts_need_their_order(tmp_path):
    folder_of(tmp_path, "image,label\na,none\nb,mild\nc,severe\n")
    (tmp_path / "table.json").write_text('{"label": "grades"}')
    with pytest.raises(UserError, match=r"grades mild, none, severe are texts, .* classes of table.json"):
        TASKS["table"].for_data(tmp_path)
    (tmp_path / "table.json").write_text('{"label": "grades", "classes": ["none", "mild", "severe"]}')
    assert TASKS["table"].for_data(tmp_path).classes == ("none", "mild", "severe")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_the_same_however_a_file_system_writes_them(form, tmp_path):
    folder_of(tmp_path, unicodedata.normalize(form, "image,label\nÄ1,0\nÄ2.png,1\n"), names="ab")
    for old, new in (("a", "Ä1"), ("b", "Ä2")):
        other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", new)
        (tmp_path / "images" / f"{old}.png").rename(tmp_path / "images" / f"{other}.png")
    assert len(task_and_studies(tmp_path)[1]) == 2


# What is refused

POINTS = "image,label,x,y\na,0,3,4\nb,1,5,6\n"
FAULTS = {
    "no image column": ("filename,label\na,0\n", "no column image; .* is it filename[?] Then rename it to image"),
    "no label column": ("image,dx\na,0\n", "no column label; .* is it dx[?]"),
    "image not found": ("image,label\nx1,0\nx2,1\na,0\n", "2 of 3 images are not below .* such as x1, x2"),
    "no label at all": ("image,label\na,\nb,NA\n", "no image that is there has a label"),
    "one class only": ("image,label\na,1\nb,1\n", "every label is '1'"),
    "numbers with decimals": ("image,label\na,1.5\nb,2.25\n", "label is a number with decimals [(]1.5, 2.25"),
    "a label of its own for every row": (
        "image,label\n" + "".join(f"{c},{c}{c}\n" for c in "abcdefghij"), "10 rows have 10 different labels",
    ),
    "two labels of one image": (
        "image,label\na,0\nb,1\na.png,1\n", "line 2 and 4: image a.png has the labels '0' and '1'",
    ),
    "two patients of one image": ("image,label,patient\na,0,p\nb,1,q\na.png,0,r\n", r"is of patients \['p', 'r'\]"),
    "point outside": (POINTS + "c,0,30,4\n", r"outside of their image: line 4 [(]30, 4 of 30 x 20[)]"),
    "point above": (POINTS + "c,0,3,-2\n", "outside of their image: line 4"),
    "x without y": ("image,label,x\na,0,3\nb,1,4\n", "columns x without y"),
    "a cell without its partner": (POINTS + "c,0,3,\n", "line 4: y is empty"),
    "a coordinate that is no number": (POINTS + "c,0,3,down\n", "line 4: y is no number: 'down'"),
    "shares in place of pixels": ("image,label,x,y\na,0,0.5,0.5\nb,1,0.2,0.9\n", "between 0 and 1; expected pixels"),
    "reversed box": (
        "image,label,x0,y0,x1,y1\na,0,1,1,9,9\nb,1,9,1,3,9\n", "line 3: the box ends before it begins",
    ),
    "points and boxes": ("image,label,x,y,x0,y0,x1,y1\na,0,1,1,1,1,2,2\n", "keep one of the two"),
    "two places of one image": (POINTS + "a.png,0,9,9\n", "has two places; a column region names them"),
    "columns of points that are empty": ("image,label,x,y\na,0,,\nb,1,,\n", "columns x, y are empty"),
    "a side that is none": ("image,label,side\na,0,left\nb,1,up\n", "side is not right or left"),
    "a region without a place": ("image,label,region\na,0,hip\nb,1,hip\n", "a column region without points or boxes"),
    "a region that cannot be a name": ("image,label,region,x,y\na,0,the hip,1,1\nb,1,knee,1,1\n", "regions the hip"),
    "an empty name": ("image,label\n,0\nb,1\n", "no image is named"),
    "no rows": ("image,label\n", "no rows below the header"),
    "an empty file": ("", "empty"),
    "patients under another name": ("image,label,patient_id\na,0,p\nb,1,q\n", "rename it to patient"),
    "boxes of a corner and a size": ("image,label,x,y,w,h\na,0,1,1,5,5\nb,1,1,1,5,5\n", "x, y, w, h tell a box"),
    "boxes under other names": ("image,label,x1,y1,x2,y2\na,0,1,1,5,5\nb,1,1,1,5,5\n", "expected x0, y0, x1, y1"),
    "boxes of shares": ("image,label,x0,y0,x1,y1\na,0,.1,.1,.3,.3\nb,1,1,1,9,9\n", "line 2: the box is smaller than a"),
    "yes beside 1": ("image,label\na,yes\nb,no\nc,1\nd,0\n", "write yes/no in one way"),
    "a class called like a column": ("image,label\na,predicted\nb,other\n", "a class is called 'predicted'"),
    "a cell that tells no side": ("image,label,side\na,0,left\nb,1,up\n", "'up'"),
    "regions that differ in case": ("image,label,x,y,region\na,0,1,1,hip\nb,1,2,2,Hip\n", "Hip, hip differ in case"),
    "a region that ends in another": (
        "image,label,x,y,region\na,0,1,1,hip\nb,1,2,2,left_hip\n", "'left_hip' ends in 'hip'",
    ),
    "a region of its own for every row": (
        "image,label,x,y,region\n" + "".join(f"{c},{i % 2},1,1,{c}{c}\n" for i, c in enumerate("abcdefghij")),
        "10 rows have 10 different regions",
    ),
    "a slice that is none": ("image,label,x,y,slice\na,0,1,1,2.5\nb,1,1,1,mid\n", "line 2, 3: slice is no whole"),
    "two values of a covariate": ("image,label,age\na,0,20\nb,1,30\na.png,0,40\n", "two values of age, '20' and '40'"),
    "paths to a folder that is missing": (
        "image,label\nimages/a.png,0\nother/a.png,1\nother/b.png,1\nother/c.png,0\nlost/c.png,1\n", "3 of 5 images",
    ),
    "a column twice": ("image,label,label\na,0,1\n", "column label stands there twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_user_gets_wrong_is_one_clear_line(name, tmp_path):
    text, message = FAULTS[name]
    folder_of(tmp_path, text, names="abcdefghij")
    with pytest.raises(UserError, match=message) as caught:
        task_and_studies(tmp_path)
    assert "\n" not in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_names_of_two_files_are_refused_until_a_path_tells_them_apart(tmp_path):
    pictures(tmp_path / "one", "ab")
    pictures(tmp_path / "two", "a")
    (tmp_path / "labels.csv").write_text("image,label\na,0\nb,1\n")
    with pytest.raises(UserError, match=r"'a': .*one/a.png, .*two/a.png; write the path"):
        TASKS["table"].for_data(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\none/a,0\ntwo/a.png,1\n")
    _, studies = task_and_studies(tmp_path)
    assert sorted(studies) == ["one_a", "two_a"]


def test_a_folder_without_a_table_names_those_that_are_there(tmp_path):
    pictures(tmp_path)
    (tmp_path / "train.csv").write_text("image,label\na,0\n")
    with pytest.raises(UserError, match=r"no labels.csv .*there are train.csv; save"):
        TASKS["table"].for_data(tmp_path)


def test_a_table_among_the_images_is_found(tmp_path):
    pictures(tmp_path / "deep" / "images")
    (tmp_path / "deep" / "images" / "labels.csv").write_text(PLAIN)
    _, studies = task_and_studies(tmp_path)
    assert sorted(studies) == ["a", "b", "c", "d"]


# What is merely counted


def test_what_is_missing_is_counted_and_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    text = "image,label,x,y,note\na,0,3,4,old scanner\nb,1,,,seen twice\nc,,3,3,?\nnowhere,1,3,3,\n"
    task, studies = task_and_studies(folder_of(tmp_path, text))
    assert {name: dict(study.labels) for name, study in studies.items()} == {"a": {"": 0}, "b": {"": 1}, "c": {}}
    assert [len(study.marks) for study in studies.values()] == [1, 0, 1]
    for line in (
        "1 images are not there and not used: nowhere",
        "1 rows have no label (empty, NA or None) and are not learnt from: line 4",
        "1 rows have no point; they are graded where the locator finds one: line 3",
        "3 images are not in the table and not used, such as d.png, e.png, f.png",
        "columns that are neither numbers nor a few categories are not used: note",
    ):
        assert line in caplog.text
    assert task.covariates == ()


def test_further_columns_are_covariates_where_they_are_numbers_or_a_few_texts(tmp_path):
    text = "image;label;age;Sex;id\na;0;61,5;F;x1\nb;1;;M;x2\nc;0;40;f;x3\nd;1;70;M;x4\n"
    task, studies = task_and_studies(folder_of(tmp_path, text))
    assert [(one.name, one.kind, one.categories) for one in task.covariates] == [
        ("age", "number", ()), ("sex", "category", ("F", "M")),
    ]  # fmt: skip
    assert dict(studies["a"].covariates) == {"age": {"": 61.5}, "sex": {"": "F"}}
    assert dict(studies["b"].covariates) == {"sex": {"": "M"}}


def test_sides_are_rows_of_their_own(tmp_path):
    text = "image,label,side,x,y\na,0,R,3,4\na,1,L,20,4\nb,1,right,3,3\n"
    task, studies = task_and_studies(folder_of(tmp_path, text))
    assert task.targets == ("right", "left")
    assert task.rows("a") == ["a_right", "a_left"]
    assert task.rows("b", studies["b"].targets) == ["b_right"]
    assert {mark.landmark for mark in studies["a"].marks} == {"right", "left"}


def test_boxes_give_the_middle_and_the_size_of_the_crop(tmp_path):
    text = "image,label,x0,y0,x1,y1\na,0,2,3,12,9\nb,1,5,5,11,15\n"
    task, studies = task_and_studies(folder_of(tmp_path, text))
    assert [(mark.x, mark.y) for study in studies.values() for mark in study.marks] == [(7, 6), (8, 10)]
    (crop,) = task.graders[0].crops
    assert crop.field_mm == pytest.approx(100 * 1.2 * 10 / 30, rel=0.01)  # of the longer side of the image


# The definition goes through a manifest


@given(
    kind=st.sampled_from(own_table.KINDS),
    classes=st.lists(st.text("abcxyz0123", min_size=1, max_size=5), min_size=2, max_size=6, unique=True),
    places=st.sampled_from(["", "point", "box"]),
    sides=st.sampled_from(["", own_data.ONE, own_data.BOTH]),
    images=st.sampled_from(["picture", "film", "volume"]),
)
@settings(max_examples=40)
def test_a_definition_comes_back_out_of_json(kind, classes, places, sides, images):
    classes = classes[:2] if kind == "yes_no" else classes
    definition = own_data.Definition(kind, tuple(classes), (1,) * len(classes), images, places, sides=sides)
    again = own_data.definition_of(json.loads(json.dumps(definition.plain())))
    assert again == definition
    task = own_data.of_definition(json.loads(json.dumps(definition.plain())))
    assert (task.classes, task.targets) == (own_data.task_of(definition).classes, own_data.task_of(definition).targets)


@pytest.mark.parametrize("plain", [{"kind": "classes"}, {"kind": "classes", "odd": 1}, {"covariates": [{"name": "x"}]}])
def test_a_definition_that_is_none_is_refused(plain):
    with pytest.raises(UserError, match="definition of the task table cannot be read"):
        own_data.of_definition(plain)


# Any cells


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n"), max_size=8)


@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6), header=st.permutations(["image", "label", "patient"]))
@settings(max_examples=150)
def test_whatever_stands_in_the_cells_it_is_read_or_refused(rows, header, tmp_path_factory):
    """No cell ends in another error than a UserError, and what is read stands in the table."""
    text = StringIO()
    csv.writer(text).writerows([header, *rows])
    path = tmp_path_factory.mktemp("cells") / "labels.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    try:
        table = own_table.read(path)
    except UserError as error:
        assert "labels.csv" in str(error)
        return
    cells = {cell.strip() for row in rows for cell in row}
    assert 0 < len(table.rows) <= len(rows)
    assert all(row.image in cells for row in table.rows)


@given(st.integers(0, 99), st.sampled_from(["", ".0", ",0", ".00", "."]))
def test_whole_numbers_are_the_same_label_however_they_are_written(number, ending):
    assert label_text(f"{number}{ending}") == label_text(f" 0{number}") == key_of(str(number)) == str(number)
