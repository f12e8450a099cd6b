"""Reading of `spider` folders, disc levels from boxes and masks, and boxes turned and sized by the spine itself."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Volume
from osteograde.imaging.resample import sample_reference
from osteograde.pipeline.load import load_study
from osteograde.tasks import spider_files
from osteograde.tasks import spider_files as spider_marks
from osteograde.tasks import spider_mr as spider_rois
from osteograde.tasks.covariates import value_of
from osteograde.tasks.spec import Point
from osteograde.tasks.spider_files import landmark
from osteograde.tasks.spider_mr import FIELD_MM, TASK
from osteograde.tasks.spine import LEVELS, SAGITTAL
from tests.dicom_files import SAGITTAL as SAGITTAL_DICOM
from tests.dicom_files import dataset, write

DATA = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
SOURCE = DATA / "spider"
needs_data = pytest.mark.skipif(
    not (SOURCE / "boxes.csv").is_file(), reason=f"no spider/boxes.csv under {DATA}: set OSTEOGRADE_DATA to the images"
)
OVERVIEW = "new_file_name,PixelSpacing,SliceThickness,SpacingBetweenSlices\n"
GRADINGS = "Patient,IVD label,Disc narrowing,Disc bulging,Pfirrman grade\n"
BOXES = "slice,ivd_label,x0,y0,x1,y1\n"
ROIS = TASK.graders[0].regions


def picture(path: Path, shape=(40, 30), grey=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape) % 251 if grey is None else grey
    assert cv2.imwrite(str(path), pixels.astype(np.uint8))


def dicom(path: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 900, (16, 12)).astype(np.uint16)
    position = (4.0 * number, 0.0, 0.0)
    write(path, dataset(pixels, position=position, orientation=SAGITTAL_DICOM, spacing=(1.0, 1.0), instance=number))


def read(root: Path, part: str = "test"):
    studies = TASK.read(root, part)
    assert len({study.id for study in studies}) == len(studies)
    return {study.id: study for study in studies}


# Which files make a study


def test_covariates_are_those_of_the_overview_where_covariates_csv_does_not_say_otherwise(tmp_path):
    for name in ("7_t1", "7_t2", "8_t2", "9_t2"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "overview.csv").write_text(
        "new_file_name,Sex,birth_date,MagneticFieldStrength,Manufacturer,PixelSpacing,SliceThickness,"
        'SpacingBetweenSlices\n7_t1,F ,,1.5,SIEMENS,"[1, 1]",4,4\n7_t2,F ,61.0,3.0,Philips Healthcare,"[1, 1]",4,4\n'
        '8_t2,,,,,"[1, 1]",4,4\n'
    )
    (tmp_path / "covariates.csv").write_text("patient,sex,age\n7,M,\n8,,33\n")
    studies = read(tmp_path)
    told = [{one.name: value_of(one, studies[name], "l4_l5") for one in TASK.covariates} for name in ("7", "8", "9")]
    assert told[0] == {"sex": 1, "age": 61, "field_tesla": 1, "maker": 1}
    assert told[1]["age"] == 33 and np.isnan([told[1][name] for name in ("sex", "field_tesla", "maker")]).all()
    assert np.isnan([*told[2].values()]).all()


def test_t1_and_t2_of_a_patient_are_two_views_of_one_study(tmp_path):
    for name in ("7_t1", "7_t2", "8_t1"):
        picture(tmp_path / f"{name}.png")
    studies = read(tmp_path)
    assert list(studies) == ["7", "8"]
    assert [(series.id, series.view) for series in studies["7"].series] == [("7_t2", "t2"), ("7_t1", "t1")]
    assert [series.view for series in studies["8"].series] == ["t1"]


def test_views_in_folders_of_their_own_still_make_one_study(tmp_path):
    picture(tmp_path / "a" / "7_t1.png")
    picture(tmp_path / "b" / "7_t2.png")
    assert [len(study.series) for study in read(tmp_path).values()] == [2]


def test_a_name_that_comes_twice_is_one_patient_per_folder_and_never_a_stack(tmp_path):
    for folder in ("a", "b"):
        for view in ("t1", "t2"):
            picture(tmp_path / folder / f"7_{view}.png")
    studies = read(tmp_path)
    assert list(studies) == ["a_7", "b_7"]
    assert all(len(series.files) == 1 for study in studies.values() for series in study.series)
    assert {study.patient for study in studies.values()} == {"7"}


def test_the_same_picture_in_two_formats_is_two_studies(tmp_path):
    picture(tmp_path / "7_t1.png")
    picture(tmp_path / "7_t1.jpg")
    studies = read(tmp_path)
    assert [[series.view for series in study.series] for study in studies.values()] == [["t1"], ["t1"]]


def test_a_space_slice_and_a_stack_of_them_are_studies_of_the_same_patient(tmp_path):
    picture(tmp_path / "7_t2.png")
    picture(tmp_path / "7_t2_SPACE.png")
    for number in (9, 10, 11, 100):
        picture(tmp_path / "stacks" / "images" / f"7_t2_SPACE_slice{number}.png", grey=np.full((20, 20), number))
    studies = read(tmp_path)
    assert list(studies) == ["7", "7_t2_SPACE", "7_t2_SPACE_stack"]
    assert {study.patient for study in studies.values()} == {"7"}
    assert {TASK.patient_of(name) for name in studies} == {"7"}
    [stack] = studies["7_t2_SPACE_stack"].series
    assert [file.stem.rpartition("slice")[2] for file in stack.files] == ["9", "10", "11", "100"]
    assert stack.view == "t2"


@pytest.mark.parametrize("name", ["scan", "my scan (2)", "a.b.c", "IMG-0001_t2_", "T2"])
def test_a_picture_of_any_other_name_is_a_study_of_its_own_taken_for_t2(tmp_path, name):
    picture(tmp_path / f"{name}.png")
    [study] = read(tmp_path).values()
    assert study.patient == study.id and TASK.patient_of(study.id) == study.id
    assert [series.view for series in study.series] == ["t2"]
    assert load_study(study, TASK).volumes["t2"][0].voxels.shape == (1, 40, 30)


def test_a_dicom_file_alone_is_a_study_and_files_of_a_folder_are_one_stack(tmp_path):
    dicom(tmp_path / "alone" / "x.dcm", 1)
    for person in ("ann", "bob"):
        for number in range(1, 5):
            dicom(tmp_path / person / "1.2.840.7" / f"{number}.dcm", number)
    studies = read(tmp_path)
    assert list(studies) == ["ann_1.2.840.7", "bob_1.2.840.7", "x"]
    slices = [load_study(study, TASK).volumes["t2"][0].voxels.shape[0] for study in studies.values()]
    assert slices == [4, 4, 1]


def test_dicom_files_in_the_folder_itself_are_named_as_it(tmp_path, monkeypatch):
    for number in range(1, 4):
        dicom(tmp_path / "patient9" / f"{number}.dcm", number)
    assert list(read(tmp_path / "patient9")) == ["patient9"]
    monkeypatch.chdir(tmp_path / "patient9")
    assert list(read(Path())) == ["patient9"]


def test_pictures_dicom_and_the_data_sets_names_share_no_id(tmp_path):
    picture(tmp_path / "5_t2.png")
    picture(tmp_path / "5.png")
    for number in (1, 2):
        dicom(tmp_path / "5" / f"{number}.dcm", number)
    assert len(read(tmp_path)) == 3


def test_masks_are_never_images_and_a_folder_above_may_be_called_so(tmp_path):
    root = tmp_path / "masks" / "mine"
    picture(root / "images" / "7_t2_SPACE_slice3.png")
    picture(root / "masks" / "7_t2_SPACE_slice3.png")
    assert [len(study.series[0].files) for study in read(root).values()] == [1]


def test_test_images_are_read_where_there_are_some(tmp_path):
    picture(tmp_path / "1_t2.png")
    assert list(read(tmp_path)) == ["1"]
    picture(tmp_path / "test_images" / "2_t2.png")
    assert list(read(tmp_path)) == ["2"]


def test_a_folder_without_images_is_refused(tmp_path):
    picture(tmp_path / "masks" / "7_t2.png")
    with pytest.raises(ValueError, match="no image files"):
        TASK.read(tmp_path, "test")


def test_pixel_sizes_come_from_the_table_and_are_assumed_without_it(tmp_path):
    picture(tmp_path / "slices" / "7_t2.png")
    [study] = read(tmp_path).values()
    assert study.series[0].spacing_mm is None and load_study(study, TASK).faults["t2:size_assumed"] == 1
    (tmp_path / "overview.csv").write_text(OVERVIEW + '7_t2,"[.5, .25]",4.0,4.4\n8_t2,"[0.5 0.5]",4.0,\n')
    for root in (tmp_path, tmp_path / "slices"):
        assert read(root)["7"].series[0].spacing_mm == (4.4, 0.5, 0.25)
    picture(tmp_path / "slices" / "8_t2.png")
    assert read(tmp_path)["8"].series[0].spacing_mm == (4.0, 0.5, 0.5)


# What is known of it


def known(root: Path) -> None:
    for name in ("7_t1", "7_t2", "7_t2_SPACE", "9_t2"):
        picture(root / "slices" / f"{name}.png")
    (root / "gradings.csv").write_text(GRADINGS + "7,1,1,0,5\n7,2,0,2,3\n7,5,0,0,1\n7,6,1,1,4\n7,3,,,\n")
    (root / "boxes.csv").write_text(BOXES + "7_t2,1,10,20,20,24\n7_t2,6,1,1,3,3\n7_t1,5,0,0,9,5\n")


def test_grades_findings_and_boxes_become_labels_and_marks(tmp_path):
    known(tmp_path)
    studies = read(tmp_path, "train")
    assert list(studies) == ["7", "7_t2_SPACE"]  # nothing is known of patient 9
    for study in studies.values():
        assert study.labels == {"l5_s1": 4, "l4_l5": 2, "l1_l2": 0}
        assert study.head_labels["narrowing"] == {"l5_s1": 1, "l4_l5": 0, "l1_l2": 0}
        assert study.head_labels["bulging"] == {"l5_s1": 0, "l4_l5": 1, "l1_l2": 0}
    marks = {mark.landmark: (mark.series, mark.x, mark.y) for mark in studies["7"].marks}
    assert marks == {"t2_disc_l5_s1": ("7_t2", 14.5, 21.5), "t1_disc_l1_l2": ("7_t1", 4.0, 2.0)}
    assert not studies["7_t2_SPACE"].marks


def test_labels_and_marks_are_for_learning_only(tmp_path):
    known(tmp_path)
    studies = read(tmp_path)
    assert list(studies) == ["7", "7_t2_SPACE", "9"]
    assert not any(study.labels or study.marks or study.head_labels for study in studies.values())


def test_a_folder_that_teaches_nothing_is_refused_for_learning(tmp_path):
    picture(tmp_path / "7_t2.png")
    with pytest.raises(ValueError, match="nothing to learn"):
        TASK.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("boxes.csv", "slice,ivd_label,x0,y0,x1\n", "no column y1"),
        ("gradings.csv", GRADINGS + "7,one,0,0,1\n", "line 2: not a number: 'one'"),
        ("overview.csv", OVERVIEW + "7_t2,half,1,1\n", "PixelSpacing of 7_t2 is 'half'"),
    ],
)
def test_broken_tables_are_refused_with_what_is_wrong(tmp_path, name, text, said):
    known(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        TASK.read(tmp_path, "train")


def test_a_patient_and_disc_graded_twice_in_two_ways_is_refused_with_both_lines(tmp_path):
    known(tmp_path)
    (tmp_path / "gradings.csv").write_text(GRADINGS + "7,1,1,0,5\n7,2,0,2,3\n7,1,1,0,4\n")
    with pytest.raises(ValueError, match=r"line 2, 4: rows contradict each other about 7/1"):
        TASK.read(tmp_path, "train")
    (tmp_path / "gradings.csv").write_text(GRADINGS + "7,1,1,0,5\n7,1.0,1,0,5.0\n")
    assert read(tmp_path, "train")["7"].labels == {"l5_s1": 4}


def test_a_table_of_patients_counts_more_than_names(tmp_path):
    for name in ("7_t2", "7_t1", "a", "b"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "patients.csv").write_text("image,patient\na,ann\nb.png,ann\n7_t1,bob\n")
    assert {study.id: study.patient for study in read(tmp_path).values()} == {"7": "bob", "a": "ann", "b": "ann"}


def test_patients_that_lost_their_leading_zeros_and_rows_without_an_image_are_told(tmp_path, caplog):
    picture(tmp_path / "slices" / "007_t2.png")
    (tmp_path / "gradings.csv").write_text(GRADINGS + "7,1,1,0,5\n8,1,0,0,1\n")
    assert read(tmp_path, "train")["007"].labels == {"l5_s1": 4}
    assert "1 patients of gradings.csv differ from the files by leading zeros" in caplog.text
    assert "1 patients of gradings.csv have no image: 8" in caplog.text


def test_somebody_elses_table_above_the_images_is_not_read(tmp_path):
    (tmp_path / "overview.csv").write_text("name,age\nx,4\n")
    picture(tmp_path / "mine" / "7_t2.png")
    assert list(read(tmp_path / "mine")) == ["7"]


def test_a_truth_table_is_read_and_unknown_levels_or_grades_are_refused(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("row_id,grade\n7_l5_s1,5\n7_l1_l2,1\n7_t2_SPACE_l4_l5,3\n")
    assert TASK.read_labels(path) == {"7": {"l5_s1": 4, "l1_l2": 0}, "7_t2_SPACE": {"l4_l5": 2}}
    for row, said in (
        ("7_l6_l7,1", r"without a known level and grade: 7_l6_l7 \(line 3\)"),
        ("7_l5_s1,", r"without a known level and grade: 7_l5_s1 \(line 3\)"),
        ("7_l5_s1,6", "line 3: unknown grade"),
        ("7_l1_l2,2", "line 2, 3: rows contradict each other about 7_l1_l2"),
    ):
        path.write_text(f"row_id,grade\n7_l1_l2,1\n{row}\n")
        with pytest.raises(ValueError, match=said):
            TASK.read_labels(path)
    path.write_text("row,grade\n")
    with pytest.raises(ValueError, match="no column row_id"):
        TASK.read_labels(path)


# Levels of drawn masks


def drawn(discs: int, fragments: bool = False, canal: int = 6) -> np.ndarray:
    """A label image with discs every 20 rows, the first at row 10, 5 x 21 pixels, and canal behind them."""
    mask = np.zeros((20 * discs + 20, 64), np.uint8)
    mask[:, 40 : 40 + canal] = spider_marks.CANAL
    for i in range(discs):
        mask[8 + 20 * i : 13 + 20 * i, 10 + i : 31 + i] = spider_marks.DISC
    if fragments:
        mask[-3:, 2:5] = mask[:2, 50:53] = mask[20, 3] = spider_marks.DISC
    return mask


@pytest.mark.parametrize("fragments", [False, True])
@pytest.mark.parametrize("discs", [5, 6, 7])
def test_levels_are_counted_up_from_the_lowest_disc_and_fragments_are_no_discs(discs, fragments):
    found = spider_marks.discs_of(drawn(discs, fragments))
    assert found == [(20.0 + i, 10.0 + 20 * i) for i in reversed(range(discs))]


def test_a_mask_without_discs_has_none():
    assert spider_marks.discs_of(np.full((9, 9), spider_marks.VERTEBRA, np.uint8)) == []


@pytest.mark.parametrize("discs", [4, 5, 7])
def test_the_slice_with_most_canal_marks_its_five_lowest_discs(tmp_path, discs):
    for number, canal in ((3, 2), (4, 9), (5, 4)):
        picture(tmp_path / "images" / f"7_t2_SPACE_slice{number}.png", grey=np.zeros((20 * discs + 20, 64)))
        mask = drawn(discs, True, canal) if number == 4 else drawn(5, False, canal)[: 20 * discs + 20]
        picture(tmp_path / "masks" / f"7_t2_SPACE_slice{number}.png", grey=mask)
    [study] = read(tmp_path, "train").values()
    assert {mark.instance for mark in study.marks} == {"7_t2_SPACE_slice4"}
    found = {mark.landmark: (mark.x, mark.y) for mark in study.marks}
    lowest = discs - 1
    expected = {
        landmark("t2", LEVELS[-1 - i]): (20.0 + lowest - i, 10.0 + 20 * (lowest - i)) for i in range(min(discs, 5))
    }
    assert found == expected


# Boxes


def slice_of(view: str, pixel_mm: float, shape=(512, 400), seed: int = 0) -> Volume:
    grid = geometry.roi_at(np.zeros(3), np.array(SAGITTAL), np.array([4.0, pixel_mm, pixel_mm]), (1, *shape))
    grey = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), (0, 0), 4)
    return Volume(grey[None], grid.to_mm, series=view)


def points_of(volume: Volume, view: str, pixels) -> dict[str, Point]:
    """level number -> (row, column) as points."""
    return {
        landmark(view, LEVELS[i]): Point(geometry.apply(volume.to_mm, np.array([0, row, column])))
        for i, (row, column) in pixels.items()
    }


COLUMN = {i: (100 + 70 * i, 200 + 12 * (i - 2) ** 2) for i in range(5)}  # a bent spine


def crops(volume: Volume, view: str, pixels, side: int = 24) -> dict[str, np.ndarray]:
    boxes = ROIS({view: [volume]}, points_of(volume, view, pixels), side)
    return {level: sample_reference(*views[view]) for level, views in boxes.items()}


@pytest.mark.parametrize("times", [0.75, 2.0])
def test_the_same_picture_with_another_pixel_size_gives_the_same_crops(times):
    one = crops(slice_of("t2", 0.6), "t2", COLUMN)
    other = crops(slice_of("t2", 0.6 * times), "t2", COLUMN)
    assert list(one) == list(other) == list(LEVELS)
    for level in LEVELS:
        np.testing.assert_allclose(one[level], other[level], atol=1e-6)


def test_an_ordinary_spine_is_seen_in_a_field_of_the_stated_size():
    volume = slice_of("t2", 0.5)
    straight = {i: (100 + 72 * i, 200) for i in range(5)}  # 36 mm apart
    for views in ROIS({"t2": [volume]}, points_of(volume, "t2", straight), (16, 32)).values():
        _, roi = views["t2"]
        assert roi.shape == (1, 16, 32)
        np.testing.assert_allclose(roi.spacing_mm[1:], FIELD_MM / 32)
        np.testing.assert_allclose(roi.to_mm[:3, 1], volume.axes[1] * FIELD_MM / 32, atol=1e-9)


@pytest.mark.parametrize("degrees", [-35, -10, 0, 20, 40])
def test_discs_lie_level_in_the_crops_of_a_turned_spine(degrees):
    """Stripes across the spine stay stripes along the rows, the disc's own stripe in the middle, head still up."""
    angle, shape = np.deg2rad(degrees), (512, 512)
    rows, columns = np.mgrid[:512, :512] - 255.5
    along = rows * np.cos(angle) - columns * np.sin(angle)
    volume = slice_of("t2", 0.5, shape)
    volume = Volume(along[None].astype(np.float32), volume.to_mm, series="t2")
    down = np.array([np.cos(angle), -np.sin(angle)])
    pixels = {i: tuple(255.5 + 60 * (i - 2) * down) for i in range(5)}
    for level, crop in crops(volume, "t2", pixels, 25).items():
        expected = 60 * (LEVELS.index(level) - 2)
        assert crop[0, 12, 12] == pytest.approx(expected, abs=0.01)
        np.testing.assert_allclose(crop[0, 12], expected, atol=0.01)
        assert (np.diff(crop[0, :, 12]) > 0).all()


def test_both_views_are_read_around_their_own_points():
    t2, t1 = slice_of("t2", 0.6), slice_of("t1", 0.8, seed=1)
    moved = {i: (row - 20, column + 30) for i, (row, column) in COLUMN.items() if i != 0}
    points = points_of(t2, "t2", COLUMN) | points_of(t1, "t1", moved)
    boxes = ROIS({"t2": [t2], "t1": [t1]}, points, 16)
    assert list(boxes["l1_l2"]) == ["t2"] and list(boxes["l5_s1"]) == ["t2", "t1"]
    volume, roi = boxes["l5_s1"]["t1"]
    assert volume is t1
    np.testing.assert_allclose(roi.centre_mm, points["t1_disc_l5_s1"].mm, atol=1e-9)


def test_a_study_with_t1_only_is_graded_from_t1():
    boxes = ROIS({"t2": [], "t1": [slice_of("t1", 0.6)]}, points_of(slice_of("t1", 0.6), "t1", COLUMN), 16)
    assert list(boxes) == list(LEVELS)
    assert all(list(views) == ["t1"] for views in boxes.values())


def test_places_outside_of_the_picture_and_views_without_points_are_left_out():
    volume = slice_of("t2", 0.6)
    beyond = {**COLUMN, 4: (530, 200)}
    assert list(ROIS({"t2": [volume]}, points_of(volume, "t2", beyond), 8)) == list(LEVELS[:4])
    assert ROIS({"t2": [volume]}, {}, 8) == {}


def test_a_stack_is_read_on_the_slice_next_to_its_point():
    grid = geometry.roi_at(np.zeros(3), np.array(SAGITTAL), np.array([4.0, 0.6, 0.6]), (7, 512, 400))
    stack = Volume(np.zeros((7, 512, 400), np.float32), grid.to_mm, series="t2")
    points = {
        landmark("t2", LEVELS[i]): Point(geometry.apply(stack.to_mm, np.array([i + 0.3, *place])))
        for i, place in COLUMN.items()
    }
    for i, views in enumerate(ROIS({"t2": [stack]}, points, 8).values()):
        assert geometry.to_index(stack, views["t2"][1].centre_mm)[0] == pytest.approx(i)


# Completion


def test_a_missing_level_is_filled_on_the_line_and_found_ones_are_never_moved():
    volume = slice_of("t2", 0.6)
    even = points_of(volume, "t2", {i: (100 + 70 * i, 200 + 5 * i) for i in range(5)})
    for lost in even:
        found = {name: point for name, point in even.items() if name != lost}
        whole = TASK.fill_missing_landmarks(found)
        assert set(whole) == set(even)  # nothing of t1 is told by t2
        assert all(whole[name] is point for name, point in found.items())
        np.testing.assert_allclose(whole[lost].mm, even[lost].mm, atol=1e-9)
        assert whole[lost].confidence == spider_rois.FILLED
    alone = {"t1_disc_l3_l4": Point(np.zeros(3))}
    assert dict(TASK.fill_missing_landmarks(alone)) == alone
    assert dict(TASK.fill_missing_landmarks({})) == {}


def test_skipped_levels_do_not_enlarge_the_crops():
    discs = {0: np.zeros(3), 2: np.array([0.0, 0.0, -72.0]), 3: np.array([0.0, 0.0, -108.0])}
    assert spider_rois.apart_mm(discs) == pytest.approx(36)
    assert spider_rois.apart_mm({3: np.zeros(3)}) == spider_rois.APART_MM


# Real data


@pytest.fixture(scope="module")
def real():
    return TASK.read(SOURCE, "train")


@needs_data
@pytest.mark.slow
def test_real_slices_and_stacks_have_their_discs(real):
    boxed = {mark.series for study in real for mark in study.marks if not study.id.endswith("_stack")}
    stacks = [study for study in real if study.id.endswith("_stack")]
    assert len(boxed) == 99 and len(stacks) == 31
    assert all(
        {mark.landmark for mark in study.marks} == {landmark("t2", level) for level in LEVELS} for study in stacks
    )
    assert len({study.id for study in TASK.read(SOURCE, "test")}) >= len(real)
    for study in real:
        heights = {mark.landmark: mark.y for mark in study.marks}
        for view in ("t2", "t1"):
            own = [heights[name] for level in LEVELS if (name := landmark(view, level)) in heights]
            assert own == sorted(own)  # the head is up


@needs_data
@pytest.mark.slow
def test_discs_of_real_stacks_lie_where_the_boxes_of_the_same_patients_slice_do(real):
    by_id = {study.id: study for study in real}
    away = []
    for study in real:
        single = by_id.get(study.patient + "_t2_SPACE")
        if not study.id.endswith("_stack") or single is None:
            continue
        here, there = (load_study(one, TASK).marks for one in (study, single))  # mm from the middle of each image
        away += [np.linalg.norm((here[name].mm - there[name].mm)[1:]) for name in here.keys() & there.keys()]
    assert len(away) >= 40
    assert np.mean(np.array(away) <= 3.0) >= 0.9


def test_level_of_a_label_counts_up_from_the_sacrum():
    assert [spider_files.level_of(label) for label in range(8)] == ["", *reversed(LEVELS), "", ""]
