"""Which view a series shows where no table names it: by the words of its description, by its times, and by its plane;
tested on the real headers of SPIDER and on studies of real DICOM files."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest

from osteograde.imaging.acquisition import Acquisition
from osteograde.imaging.series_kind import is_fat_suppressed, kind_of_series, kind_of_words, plane_of_words
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Series, Study
from tests.dicom_files import AXIAL, SAGITTAL, dataset, write
from tests.test_dicom import DATA

LUMBAR, SPIDER = TASKS["lumbar-mr"], TASKS["spider"]

WORDS = {
    "T1": [
        "t1_tse_sag", "SAG T1W FSE", "sT1W_TSE", "Sag T1 FLAIR", "T1 pond\u00e9r\u00e9 sagittal", "t1_vibe_tra",
        "T1SAG",
        "Sagittale T1-Wichtung", "T1 post contrast", "\u0422\u0031 \u0441\u0430\u0433", "MPRAGE sag", "t1_tirm_sag",
        "T\uff11 sagital", "SAG T1 FS +C", "\u77e2\u72b6\u4f4dT1",
    ],
    "T2": [
        "t2_tse_sag_384", "SAG T2 FSE", "sT2W_TSE", "T2 FRFSE FS", "C7-T1 axial T2", "t12-s1 sag t2", "T2W DIXON water",
        "pond\u00e9ration T2 sagittale", "rachis lombaire T2", "T2-w sag", "Lspine^T2", "LOC SAG T2", "tra_t2", "T2SAG",
        "3dT2", "Axial T2 L1-S1", "t2_space_sag",
    ],
    "STIR": ["STIR", "T2 STIR SAG", "t2_tirm_sag", "sagSTIR", "FSE-IR", "IR TSE sag", "short tau inversion"],
    "PD": ["pd_tse_sag", "PDW", "Ax PD FS", "proton density sag"],
    "localizer": ["localizer", "SURVEY", "3-pl loc", "Scout", "AAHead_Scout", "rep\u00e9rage", "\u00dcbersicht"],
    "other": ["t2_tirm_sag_dark-fluid", "T2 FLAIR", "T2*", "t2_me2d_tra", "MERGE ax", "DWI", "ADC", "ep2d_diff",
              "myelo", "t2star map", "CISS", "screen save"],
    "": ["", "Sagittal", "Series 7", "T1 and T2", "set1", "part 2", "T12", "post", "LT2015"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in WORDS.items() for text in texts])
def test_the_words_of_a_description_tell_the_kind(kind, text):
    assert kind_of_words(text) == kind


@pytest.mark.parametrize(
    ("plane", "texts"),
    [
        ("sagittal", ["SAG T2", "t2_tse_sag", "sagittale", "sagT1", "T2SAG", "\u0421\u0430\u0433 \u0422\u0032"]),
        ("axial", ["Ax T2", "t2_tse_tra", "transversal", "axT2"]),
        ("axial", ["\u0430\u043a\u0441\u0438\u0430\u043b\u044c\u043d\u0430\u044f"]),
        ("coronal", ["COR STIR", "koronal", "cor_t1"]),
        ("", ["T2", "sag and ax", "saggy tracks"[5:], "extra"]),
    ],
)  # fmt: skip
def test_the_words_of_a_description_tell_the_plane(plane, texts):
    assert [plane_of_words(text) for text in texts] == [plane] * len(texts)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("T1", {"echo_ms": 9.0, "repetition_ms": 600.0}),
        ("T2", {"echo_ms": 100.0, "repetition_ms": 3500.0}),
        ("T2", {"echo_ms": 110.0, "repetition_ms": 1000.0}),  # three-dimensional
        ("PD", {"echo_ms": 20.0, "repetition_ms": 3000.0}),
        ("STIR", {"echo_ms": 60.0, "repetition_ms": 4000.0, "inversion_ms": 160.0}),
        ("T1", {"echo_ms": 12.0, "repetition_ms": 2200.0, "inversion_ms": 860.0}),
        ("other", {"echo_ms": 110.0, "repetition_ms": 9000.0, "inversion_ms": 2500.0}),
        ("other", {"echo_ms": 18.0, "repetition_ms": 650.0, "scanning": ("GR",), "flip_degrees": 25.0}),
        ("T1", {"echo_ms": 2.0, "repetition_ms": 6.0, "scanning": ("GR",), "flip_degrees": 12.0}),
        ("T1", {"echo_ms": 10.0}),
        ("T2", {"echo_ms": 95.0}),
        ("T1", {"repetition_ms": 550.0}),
        ("T2", {"repetition_ms": 3200.0}),
        ("", {"echo_ms": 20.0}),
        ("", {}),
        ("T1", {"echo_ms": 100.0, "repetition_ms": 3500.0, "description": "t1 sag"}),  # words come first
        ("T2", {"echo_ms": 9.0, "repetition_ms": 600.0, "protocol": "t2_tse_sag"}),
        ("STIR", {"contrast": "STIR"}),
        ("localizer", {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}),
        ("STIR", {"description": "SAG IR"}),
        ("STIR", {"description": "SAG IR", "repetition_ms": 4000.0, "echo_ms": 60.0}),
        ("T1", {"description": "SAG IR", "inversion_ms": 800.0, "repetition_ms": 2000.0, "echo_ms": 10.0}),
        ("T1", {"description": "L-Spine ir", "repetition_ms": 450.0, "echo_ms": 10.0}),
        ("T1", {"sequence_name": "T1_TSE"}),
        ("T2", {"sequence_name": "*tse2d1_15", "repetition_ms": 3500.0, "echo_ms": 100.0}),
    ],
    ids=str,
)
def test_times_and_other_tags_tell_the_kind(kind, told):
    assert kind_of_series(Acquisition(**told)) == kind


def test_fat_suppression_is_told_by_options_or_words():
    for told in (
        {"options": ("FS",)},
        {"description": "t2 sag fat sat"},
        {"protocol": "T1 SPAIR"},
        {"description": "STIR"},
    ):
        assert is_fat_suppressed(Acquisition(**told))
    assert not is_fat_suppressed(Acquisition(description="t2_tse_sag", options=("PFP", "SFS")))


def test_the_real_headers_of_spider_are_told_by_their_times():
    path = DATA / "spider/overview.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    told = Counter()
    for row in rows:
        times = [float(row[name]) for name in ("EchoTime", "RepetitionTime", "FlipAngle")]
        kind = kind_of_series(Acquisition(echo_ms=times[0], repetition_ms=times[1], flip_degrees=times[2]))
        told[row["new_file_name"].split("_", 1)[1], kind] += 1
    assert told == {("t1", "T1"): 153, ("t2", "T2"): 166, ("t2_SPACE", "T2"): 31}


# --- studies ---------------------------------------------------------------------------------------------------------


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 4000, (24, 20)).astype(np.uint16)


def series(root, name, orientation=SAGITTAL, view="", count=4, shift=0.0, **tags):
    """A folder of slices whose values tell its name; returns the series as the readers make them."""
    normal = np.cross(orientation[:3], orientation[3:])
    for k in range(count):
        place = normal * (4.0 * k + shift)
        made = dataset(picture(100 * sum(map(ord, name)) + k), position=place, orientation=orientation, instance=k + 1)
        for keyword, value in tags.items():
            setattr(made, keyword, value)
        write(root / name / f"{name}-{k + 1}.dcm", made)
    return Series(name, view, root / name)


def views_of(task, *found):
    """{view: names of the folders of its stacks} and the faults."""
    loaded = load_study(Study("a", "a", tuple(found)), task)
    names = {view: sorted({stack.series for stack in stacks}) for view, stacks in loaded.volumes.items() if stacks}
    return names, loaded.faults


T1_TIMES, T2_TIMES = {"EchoTime": 10, "RepetitionTime": 550}, {"EchoTime": 100, "RepetitionTime": 3500}


@pytest.mark.parametrize(
    ("t1", "t2"),
    [
        ({"SeriesDescription": "Sagittal T1"}, {"SeriesDescription": "Sagittal T2"}),
        ({"ProtocolName": "t1_tse_sag"}, {"ProtocolName": "t2_tse"}),
        (T1_TIMES, T2_TIMES),
    ],
    ids=str,
)
def test_a_study_without_a_table_is_sorted_by_its_headers(tmp_path, t1, t2):
    found = [series(tmp_path, "a", **t1), series(tmp_path, "b", **t2), series(tmp_path, "c", AXIAL, **t2)]
    names, faults = views_of(LUMBAR, *found)
    assert names == {"sag_t1": ["a"], "sag_t2": ["b"], "axi_t2": ["c"]} and not faults


def test_where_nothing_tells_the_first_view_of_the_plane_is_taken_and_counted(tmp_path):
    names, faults = views_of(LUMBAR, series(tmp_path, "a"), series(tmp_path, "c", AXIAL))
    assert names == {"sag_t2": ["a"], "axi_t2": ["c"]}
    assert faults == {"sag_t2:contrast_assumed": 1, "axi_t2:contrast_assumed": 1, "sag_t1:absent": 1}


def test_what_is_told_serves_before_what_is_not(tmp_path):
    found = [
        series(tmp_path, "a"),
        series(tmp_path, "b", **T2_TIMES),
        series(tmp_path, "c", SeriesDescription="SURVEY"),
    ]
    names, faults = views_of(LUMBAR, *found)
    assert names == {"sag_t2": ["b"]}
    assert faults == {"sag_t2:other_contrast": 8, "sag_t1:absent": 1, "axi_t2:absent": 1}


def test_an_axial_t1_is_no_axial_t2(tmp_path):
    names, faults = views_of(LUMBAR, series(tmp_path, "a", AXIAL, SeriesDescription="ax T1"))
    assert names == {} and faults["unnamed:other_contrast"] == 4


def test_a_t1_stack_alone_is_the_t1_of_spider(tmp_path):
    names, faults = views_of(SPIDER, series(tmp_path, "a", SeriesDescription="t1_tse_sag"))
    assert names == {"t1": ["a"]} and not faults


def test_stir_serves_as_t2_of_spider_with_a_word(tmp_path):
    names, faults = views_of(SPIDER, series(tmp_path, "a", SeriesDescription="STIR sag"))
    assert names == {"t2": ["a"]} and faults == {"t2:contrast_assumed": 1}


def stacks_of(task, found, view):
    return load_study(Study("a", "a", (found,)), task).volumes[view]


def test_two_series_in_one_folder_serve_a_view_each(tmp_path):
    for name, tags in (("a", T1_TIMES), ("b", T2_TIMES)):
        series(tmp_path / "parts", name, SeriesInstanceUID=f"1.2.{ord(name)}", **tags)
        for path in (tmp_path / "parts" / name).iterdir():
            (tmp_path / "both").mkdir(exist_ok=True)
            path.rename(tmp_path / "both" / path.name)
    found = Series("both", "", tmp_path / "both")
    assert [stack.names[0][0] for view in ("t1", "t2") for stack in stacks_of(SPIDER, found, view)] == ["a", "b"]
    names, faults = views_of(LUMBAR, Series("both", "sag_t2", tmp_path / "both"))  # named by a table
    assert names == {"sag_t2": ["both"]} and faults["sag_t2:other_contrast"] == 4
    assert [
        stack.names[0][0] for stack in stacks_of(LUMBAR, Series("both", "sag_t2", tmp_path / "both"), "sag_t2")
    ] == ["b"]


def echoes(root, *times, **tags):
    for k, time in enumerate(times):
        series(root / "parts", f"e{k}", SeriesInstanceUID="1.2.3", EchoTime=time, EchoNumbers=k + 1, **tags)
        for path in (root / "parts" / f"e{k}").iterdir():
            (root / "both").mkdir(exist_ok=True)
            path.rename(root / "both" / path.name)
    return root / "both"


@pytest.mark.parametrize(("times", "chosen"), [((20, 90), "e1"), ((90, 20), "e0"), ((15, 50, 102, 180), "e2")])
@pytest.mark.parametrize("view", ["sag_t2", ""])
def test_of_several_echoes_the_one_nearest_to_100_ms_is_the_t2(tmp_path, times, chosen, view):
    found = Series("both", view, echoes(tmp_path, *times, RepetitionTime=3000))
    (stack,) = stacks_of(LUMBAR, found, "sag_t2")
    assert stack.names[0].startswith(chosen)
    faults = load_study(Study("a", "a", (found,)), LUMBAR).faults
    assert faults["sag_t2:several_echoes"] == 4 * (len(times) - 1)


def test_several_series_of_one_kind_all_serve_and_are_counted(tmp_path):
    for name in "ab":
        series(
            tmp_path / "parts", name, AXIAL, shift=100.0 * ord(name), SeriesInstanceUID=f"1.2.{ord(name)}", **T2_TIMES
        )
        for path in (tmp_path / "parts" / name).iterdir():
            (tmp_path / "both").mkdir(exist_ok=True)
            path.rename(tmp_path / "both" / path.name)
    loaded = load_study(Study("a", "a", (Series("both", "axi_t2", tmp_path / "both"),)), LUMBAR)
    assert len(loaded.volumes["axi_t2"]) == 2 and loaded.faults["axi_t2:several_series"] == 1


def test_a_header_that_contradicts_the_table_is_counted_and_the_table_is_right(tmp_path):
    names, faults = views_of(LUMBAR, series(tmp_path, "a", view="sag_t2", **T1_TIMES))
    assert names == {"sag_t2": ["a"]} and faults["sag_t2:contrast_contradicts"] == 1


def test_two_slabs_of_one_axial_series_stay_two_stacks_without_a_word(tmp_path):
    for k, tilt in enumerate((0.0, 0.3)):
        column = (0.0, float(np.cos(tilt)), float(-np.sin(tilt)))
        series(tmp_path / f"part{k}", f"s{k}", (1.0, 0.0, 0.0, *column), shift=60.0 * k, **T2_TIMES)
        for path in (tmp_path / f"part{k}" / f"s{k}").iterdir():
            (tmp_path / "both").mkdir(exist_ok=True)
            path.rename(tmp_path / "both" / path.name)
    loaded = load_study(Study("a", "a", (Series("both", "axi_t2", tmp_path / "both"),)), LUMBAR)
    assert len(loaded.volumes["axi_t2"]) == 2 and not [code for code in loaded.faults if code.startswith("axi_t2")]


def test_oblique_planes_are_named_with_an_o_in_front():
    assert [plane_of_words(text) for text in ("OSag T2", "OAx T2", "OAX", "Obl Ax")] == ["sagittal", *["axial"] * 3]
