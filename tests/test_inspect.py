"""Faults planted in tables and headers of `lumbar-mr` are counted exactly, without a pixel being read."""

import csv
import logging
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from osteograde import cli
from osteograde.errors import UserError
from osteograde.report import inspect
from osteograde.report.style import document
from osteograde.tasks import lumbar_census
from osteograde.tasks.census import Census
from osteograde.tasks.lumbar_census import EMPTY, PAIRS, SEVERAL_AXIAL
from osteograde.tasks.lumbar_names import CLASS_LABELS, CONDITION_VIEW, SERIES_DESCRIPTIONS, SPINAL, TARGET_OF, TARGETS
from tests import dicom_files

STUDIES = 60
SERIES = {view: str(i + 1) for i, view in enumerate(SERIES_DESCRIPTIONS)}  # view -> the last digit of its series


def write(path: Path, head: tuple[str, ...], rows: list) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


class Folder:
    """Sound tables of ``STUDIES`` studies as lists that a test spoils, and then writes."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(1)
        self.root, self.names = root, [str(1000 + i) for i in range(STUDIES)]
        self.labels = [[study, *rng.choice(CLASS_LABELS, len(TARGETS), p=(0.77, 0.16, 0.07))] for study in self.names]
        self.series = [[study, study + SERIES[view], text] for study in self.names
                       for view, text in SERIES_DESCRIPTIONS.items()]  # fmt: skip
        self.marks = [self.mark(study, target) for study in self.names for target in TARGETS]

    def mark(self, study: str, name: str) -> list:
        """A point: canal and foramina on slice 8, recesses left and right on neighbouring slices."""
        target = TARGET_OF[name]
        number = 8 if target.condition == SPINAL else {"left": 20, "right": 21, "": 8}[target.side]
        level = int(target.level[1])
        series = study + SERIES[CONDITION_VIEW[target.condition]]
        x = 150 if target.side == "left" else 100
        return [study, series, number, target.table_condition, target.table_level, x, 40 * level]

    def of(self, study: int, name: str) -> list:
        return self.marks[study * len(TARGETS) + TARGETS.index(name)]

    def written(self) -> Path:
        write(self.root / "train.csv", ("study_id", *TARGETS), self.labels)
        head = ("study_id", "series_id", "series_description")
        write(self.root / "train_series_descriptions.csv", head, self.series)
        head = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
        write(self.root / "train_label_coordinates.csv", head, self.marks)
        return self.root


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def counts(root: Path) -> dict[str, int]:
    return {fact.what: fact.count for fact in lumbar_census.inspect(root).facts}


def test_sound_tables_have_no_fault(folder):
    found = counts(folder.written())
    assert found["labels"] == found["points"] == STUDIES * 25
    sound = {"labels", "points", "studies with labels", "studies with series", "series",
             "studies whose canal points lie on one slice"}  # fmt: skip
    assert {what for what, count in found.items() if count} == sound


def test_the_known_facts_of_the_real_tables_would_be_found(folder):
    for i in range(7):  # empty labels, in five studies
        folder.labels[i % 5][3 + i] = ""
    for study in folder.names[:11]:  # several axial series; three of them have three
        folder.series.append([study, study + "7", "Axial T2"])
    for study in folder.names[:3]:
        folder.series.append([study, study + "8", "Axial T2"])
    pairs = [(i, level) for i in range(13) for level in ("l1_l2", "l4_l5")]
    for i, level in pairs:
        folder.of(i, f"right_subarticular_stenosis_{level}")[2] = 20  # the slice of the left one
    census = lumbar_census.inspect(folder.written())
    found = {fact.what: fact.count for fact in census.facts}
    assert (found[EMPTY], found["studies with an empty label"]) == (7, 5)
    assert found[SEVERAL_AXIAL] == 11
    assert found[PAIRS] == len(pairs)
    tables = {table.name: {row[0]: row[1:] for row in table.rows} for table in census.tables}
    assert tables["series per study"]["Axial T2"] == (0, STUDIES - 11, 8, 3)
    apart = tables["left and right recess of a level"]
    assert apart["one slice"] == (len(pairs),) and apart["1 apart"] == (STUDIES * 5 - len(pairs),)

    labels = {row[0]: dict(zip(TARGETS, row[1:], strict=True)) for row in folder.labels}
    lost = [labels[folder.names[i]][f"right_subarticular_stenosis_{level}"] for i, level in pairs]
    right = [labels[name][target] for name in labels for target in TARGETS if target.startswith("right_sub")]
    cost = tables["cost of the published cleaning"]
    for text in CLASS_LABELS:
        share = f"{100 * lost.count(text) / right.count(text):.1f} %"
        assert cost[text] == (lost.count(text), right.count(text), share)


def _twice(folder):
    folder.labels += [folder.labels[0], [folder.names[1], *["Severe"] * 25]]
    folder.marks += [folder.marks[4], [*folder.marks[5][:5], 1, 2]]
    return {"rows of train.csv that repeat another word for word": 1,
            "studies that the table of labels has twice, with other labels": 1,
            "rows of train_label_coordinates.csv that repeat another word for word": 1,
            "places with several points": 1}  # fmt: skip


def _wrong_series(folder):
    folder.of(3, "spinal_canal_stenosis_l2_l3")[1] = folder.names[3] + SERIES["sag_t1"]
    folder.of(4, "left_neural_foraminal_narrowing_l2_l3")[1] = "99999"
    folder.series[0][2] = "Coronal T2"
    points = sum(mark[1] == folder.series[0][1] for mark in folder.marks)
    return {"points on a series of another view": 1 + points, "points on a series that the table of series lacks": 1,
            "series of another description": 1, "studies without Sagittal T1": 1}  # fmt: skip


def _wrong_places(folder):
    folder.of(5, "spinal_canal_stenosis_l3_l4")[5] = "-4"
    folder.of(6, "spinal_canal_stenosis_l3_l4")[6] = "NaN"
    folder.of(7, "spinal_canal_stenosis_l3_l4")[6] = 30  # above L1/L2
    left, right = (folder.of(8, f"{side}_subarticular_stenosis_l5_s1") for side in ("left", "right"))
    right[2], left[5], right[5] = left[2], right[5], left[5]
    return {"points that are no pixel": 2, "chains of levels that do not go down the image": 1,
            "pairs on one slice whose left point lies on the image's left": 1, PAIRS: 1}  # fmt: skip


def _without(folder):
    folder.marks = [mark for mark in folder.marks if mark != folder.of(9, "spinal_canal_stenosis_l1_l2")]
    folder.labels[10][1] = ""
    folder.labels[11][2] = "Mild"
    folder.labels = folder.labels[:-1]
    return {"labels without a point": 1, "points without a label": 2 + 25, "labels of another text": 1,
            "studies with series and without labels": 1}  # fmt: skip


@pytest.mark.parametrize("plant", [_twice, _wrong_series, _wrong_places, _without])
def test_a_planted_fault_is_counted_as_often_as_it_was_planted(folder, plant):
    planted = plant(folder)
    found = counts(folder.written())
    assert {what: found[what] for what in planted} == planted


def test_headers_tell_sizes_orientation_and_codecs(folder):
    folder.names, folder.labels, folder.series = folder.names[:2], folder.labels[:2], folder.series[:6]
    folder.marks = folder.marks[:50]
    pixels = np.zeros((200, 120), np.uint16)
    for study, series, text in folder.series:
        plane = dicom_files.AXIAL if text.startswith("Axial") else dicom_files.SAGITTAL
        for number in (8, 20, 21):
            made = dicom_files.dataset(pixels, orientation=plane, instance=number, rle=series.endswith("3"))
            dicom_files.write(folder.root / "train_images" / study / series / f"{number}.dcm", made)
    lost, turned = (folder.root / "train_images" / folder.names[0] / (folder.names[0] + SERIES[view])
                    for view in ("sag_t1", "axi_t2"))  # fmt: skip
    for path in lost.iterdir():
        path.unlink()
    made = dicom_files.dataset(pixels, orientation=dicom_files.SAGITTAL, without=["PixelSpacing"])
    dicom_files.write(turned / "20.dcm", made)
    dicom_files.write(turned / "8.dcm", made)
    (turned.parent / "777").mkdir()
    (folder.root / "train_images" / "888").mkdir()
    folder.of(0, "spinal_canal_stenosis_l1_l2")[6] = 500
    folder.of(1, "spinal_canal_stenosis_l1_l2")[2] = 9

    census = lumbar_census.inspect(folder.written())
    found = {fact.what: fact.count for fact in census.facts}
    expected = {"images": 15, "series without files": 1, "series folders that no table lists": 1,
                "study folders that no table lists": 1, "series in another plane than their description": 1,
                "points whose slice is no file name": 1, "series that do not tell their orientation": 0}  # fmt: skip
    assert {what: found[what] for what in expected} == expected
    outside = sum(int(mark[6]) > 199 or int(mark[5]) > 119 for mark in folder.marks[:50]
                  if mark[1] != lost.name)  # fmt: skip
    assert found["points outside of their image"] == outside > 1
    tables = {table.name: {row[0]: row[1:] for row in table.rows} for table in census.tables}
    assert tables["size, rows x columns"] == {"200 x 120": (1, 2, 2)}
    assert tables["pixel spacing, mm"] == {"0.5 x 0.5": (1, 2, 1), "not stated": (0, 0, 1)}
    assert tables["orientation"] == {"sagittal": (1, 2, 1), "axial": (0, 0, 1)}
    assert tables["codec"] == {"Explicit VR Little Endian": (1, 2, 1), "RLE Lossless": (0, 0, 1)}


def test_the_command_writes_a_page_and_a_table(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("osteograde"), "handlers", [])
    folder.labels[0][1] = ""
    folder.series[0][2] = "<b>odd</b>"
    seen = tmp_path / "seen.html"
    assert cli.main(["inspect", "lumbar-mr", "--data", str(folder.written()), "--out", str(seen)]) == 0
    told = capsys.readouterr().out
    assert f"{EMPTY}: 1 of {STUDIES * 25}" in told and str(seen) in told
    page = seen.read_text()
    assert EMPTY in page and "&lt;b&gt;odd" in page and "<b>odd" not in page and "<script" not in page
    with seen.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert ["facts", EMPTY, "count", "1"] in rows
    assert ["points by condition and level", SPINAL, "l1_l2", str(STUDIES)] in rows


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none of train\.csv.*found nothing"):
        lumbar_census.inspect(tmp_path)


def test_the_page_has_the_frame_of_reports_and_links_that_name_their_sections():
    made = inspect.page(Census((), ()), "what <it> holds", datetime(2026, 1, 2))
    assert made.startswith(document("what <it> holds", {}).partition("</style>")[0])
    links, places = (re.findall(pattern, made) for pattern in (r'<a href="#([^"]+)"', r'<section id="([^"]+)"'))
    assert links == places == ["to-look-at", "all-that-was-counted", "tables"]
