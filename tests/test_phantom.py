"""Phantoms: exactly the competition's layout, real DICOM, known truth, and grades that only anatomy shows."""

import csv
import filecmp
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde import phantom
from osteograde.imaging.dicom.rle import decode_rle
from osteograde.phantom import acquisition as planes
from osteograde.phantom import grades, render
from osteograde.phantom.acquisition import REACH_MM
from osteograde.phantom.dicom_writer import encode_rle
from osteograde.phantom.spine import spine
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.lumbar_mr import COUNTS, SEVERE_PERCENT
from osteograde.tasks.lumbar_names import TARGET_OF, landmark
from osteograde.tasks.spine import LEVELS, SIDES

TASK = TASKS["lumbar-mr"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    phantom.write("lumbar-mr", out, studies=2, test=1, seed=3)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def patient(seed: int, closed: float = 0.1, **own: float):
    names = {TARGET_OF[name].landmark for name in TARGET_OF}
    return spine({name: own.get(name, closed) for name in names}, np.random.default_rng(seed))


def same_tree(a: Path, b: Path) -> bool:
    names = [sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) for root in (a, b)]
    return names[0] == names[1] and all(filecmp.cmp(a / n, b / n, shallow=False) for n in names[0])


@pytest.mark.slow
def test_the_seed_decides_every_byte_whoever_works_and_however_many_are_made(data, tmp_path):
    phantom.write("lumbar-mr", tmp_path / "again", studies=2, test=1, seed=3, workers=2)
    assert same_tree(data, tmp_path / "again")
    phantom.write("lumbar-mr", tmp_path / "fewer", studies=1, seed=3)
    study = rows(tmp_path / "fewer" / "train.csv")[0]["study_id"]
    assert same_tree(data / "train_images" / study, tmp_path / "fewer" / "train_images" / study)
    phantom.write("lumbar-mr", tmp_path / "other", studies=1, seed=4)
    assert rows(tmp_path / "other" / "train.csv")[0]["study_id"] != study


def test_the_tables_are_read_without_a_complaint(data):
    train, test = TASK.read(data, "train"), TASK.read(data, "test")
    assert len(train) == 2 and len(test) == 1
    assert all(study.labels and study.marks and study.series for study in train)
    assert not test[0].labels
    assert [row["row_id"] for row in rows(data / "sample_submission.csv")] == TASK.rows(test[0].id)
    assert set(rows(data / "test_truth.csv")[0]) == set(rows(data / "train.csv")[0])


def test_files_are_like_the_real_ones(data):
    for path in sorted(data.glob("*_images/*/*/*.dcm"))[::29]:
        ds = pydicom.dcmread(path)
        assert ds.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless
        assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4.1"
        assert (ds.BitsAllocated, ds.BitsStored, ds.PixelRepresentation) == (16, 12, 0)
        assert path.stem == str(ds.InstanceNumber)
        for absent in ("Modality", "RescaleSlope", "WindowCenter", "PatientName", "NumberOfFrames"):
            assert absent not in ds
        assert 0 < ds.pixel_array.max() <= 4095


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99), st.sampled_from([1, 6, 4096]))
def test_rle_is_exact_for_pydicom_and_for_our_reader(height, width, seed, values):
    pixels = np.random.default_rng(seed).integers(0, values, (height, width)).astype(np.uint16)
    ds = pydicom.Dataset()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored = height, width, 1, 16, 12
    ds.PixelRepresentation, ds.PhotometricInterpretation = 0, "MONOCHROME2"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    encoded = encode_rle(pixels)
    ds.PixelData = pydicom.encaps.encapsulate([encoded])
    assert np.array_equal(ds.pixel_array, pixels)
    ours = decode_rle(encoded, height, width)
    assert ours is None or np.array_equal(ours, pixels)


def test_annotated_points_lie_near_the_truth(data):
    truth = {
        (row["study_id"], row["landmark"]): np.array([float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")])
        for row in rows(data / "truth_points.csv")
    }
    errors, seen = [], 0
    for study in TASK.read(data, "train"):
        loaded = load_study(study, TASK)
        seen += len(loaded.marks)
        errors += [np.linalg.norm(point.mm - truth[study.id, name]) for name, point in loaded.marks.items()]
    assert seen >= 30
    assert np.median(errors) < 4 and max(errors) < REACH_MM + 6 + 5  # plane, neighbouring slice, jitter


def test_grades_are_as_frequent_as_in_the_published_labels():
    rng = np.random.default_rng(0)
    drawn = [grades.grades(grades.severities(rng)) for _ in range(4000)]
    for condition, counts in COUNTS.items():
        targets = [name for name, target in TARGET_OF.items() if target.condition == condition]
        moderate = np.mean([[one[name] == 1 for name in targets] for one in drawn])
        assert abs(moderate - counts[1] / sum(counts)) < 0.01
        for level, percent in zip(LEVELS, SEVERE_PERCENT[condition], strict=True):
            own = [name for name in targets if TARGET_OF[name].level == level]
            severe = 100 * np.mean([[one[name] == 2 for name in own] for one in drawn])
            assert abs(severe - percent) < 0.35 + 0.1 * percent


def test_closing_follows_the_class_with_a_gap_between_classes():
    rng = np.random.default_rng(1)
    ranges: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(300):
        severity = grades.severities(rng)
        closed = grades.closed(severity, rng)
        for name, value in grades.grades(severity).items():
            ranges[value].append(closed[TARGET_OF[name].landmark])
    assert max(ranges[0]) + 0.1 < min(ranges[1]) and max(ranges[1]) + 0.1 < min(ranges[2])


def test_label_noise_moves_a_few_labels_by_one_class():
    rng = np.random.default_rng(2)
    truth = {name: int(rng.integers(3)) for name in TARGET_OF}
    steps = np.array([[grades.labelled(truth, rng)[n] - truth[n] for n in truth] for _ in range(400)])
    assert np.abs(steps).max() == 1
    assert abs((steps != 0).mean() - grades.LABEL_NOISE) < 0.006


def test_a_severe_canal_is_a_narrow_one_and_its_neighbours_are_not():
    level = LEVELS[2]
    wide, narrow = patient(5), patient(5, **{landmark("canal", level): 0.9})
    for k, other in enumerate(LEVELS):
        s = float(wide.discs[planes.ABOVE + k])
        ratio = narrow.at("depth", s) / wide.at("depth", s)
        assert ratio < 0.5 if other == level else ratio > 0.95


def test_acquisition_knows_nothing_of_the_grade():
    """The same patient with other grades gives the same series, planes and looks: only pixels may differ."""
    plans = [planes.plan(patient(7, closed), np.random.default_rng(8)) for closed in (0.05, 0.95)]
    assert [(a.view, a.contrast, a.shape, len(a.planes)) for a in plans[0]] == [
        (a.view, a.contrast, a.shape, len(a.planes)) for a in plans[1]
    ]
    looks = [render.draw_look("t2", np.random.default_rng(9)) for _ in plans]
    assert vars(looks[0]) == vars(looks[1])


def test_the_grade_is_not_in_the_brightness():
    """Mean signal of whole slices moves far less with the grade than with the scan."""
    means = []
    for closed in (0.05, 0.95):
        body = patient(7, closed)
        acquisition = planes.plan(patient(7), np.random.default_rng(8))[1]
        look = render.draw_look(acquisition.contrast, np.random.default_rng(9))
        middle = acquisition.planes[len(acquisition.planes) // 2]
        means.append(render.slice_pixels(body, acquisition, middle.to_mm, look, np.random.default_rng(1)).mean())
    assert abs(means[0] / means[1] - 1) < 0.05


def test_curved_coordinates_and_their_inverse_agree():
    body = patient(11)
    for s in np.linspace(float(body.discs[0]), float(body.discs[-1]), 9):
        for a in (-10.0, 5.0, 30.0):
            x, y, z = body.to_mm(4.0, a, float(s))
            back_a, back_s = body.to_curved(np.array([y], np.float32), np.array([z], np.float32))
            assert abs(back_a[0] - a) < 0.3 and abs(back_s[0] - s) < 0.5
            assert abs(x - 4.0 - body.midline[body.index(np.array(s))]) < 1e-6


def test_left_lies_on_the_left():
    points = patient(13).points()
    for level in LEVELS:
        for structure in ("foramen", "recess"):
            right, left = (points[landmark(structure, level, side)][0] for side in SIDES)
            assert right < points[landmark("canal", level)][0] < left


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="lumbar-mr"):
        phantom.write("elbow", Path("unused"), studies=1)
