"""Annotated points find their slices by InstanceNumber, or by the name of the file where that is what tables mean."""

import numpy as np
import pytest

from osteograde.imaging.dicom import read_series
from osteograde.imaging.geometry import oriented
from osteograde.imaging.resample import average_thin_slices
from osteograde.pipeline.load import load_study, marks_in_mm
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Mark, Series, Study
from tests.dicom_files import SAGITTAL, dataset, write

TASK = TASKS["lumbar-mr"]
VIEW = "sag_t2"
COUNT = 6


def series_of(folder, name, instance, **tags):
    """Sagittal slices 4 mm apart from x = 0 on; ``name`` and ``instance`` give those of slice k."""
    pixels = np.random.default_rng(0).integers(0, 4000, (COUNT, 16, 12)).astype(np.uint16)
    for k in range(COUNT):
        made = dataset(pixels[k], position=(4.0 * k, 0, 0), orientation=SAGITTAL, instance=instance(k), **tags)
        write(folder / f"{name(k)}.dcm", made)
    return Series("s", VIEW, folder)


def found_x(series, *instances):
    """Where marks of these instances come to lie: x in mm, by instance; those without a slice are absent."""
    marks = tuple(Mark(f"mark{name}", "s", name, 3.0, 2.0) for name in instances)
    found = load_study(Study("study", "p", (series,), marks=marks), TASK).marks
    return {name.removeprefix("mark"): float(point.mm[0]) for name, point in found.items()}


@pytest.mark.parametrize("name", [lambda k: f"{k + 1:04d}", lambda k: f"IM{90 - k}", lambda k: f"1.2.840.{7 * k}"])
def test_marks_find_slices_by_instance_number_whatever_the_files_are_called(tmp_path, name):
    series = series_of(tmp_path, name, lambda k: k + 1)
    assert found_x(series, "1", "2", "6", "7") == {"1": 0.0, "2": 4.0, "6": 20.0}


def test_the_number_counts_where_names_say_something_else(tmp_path):
    series = series_of(tmp_path, lambda k: COUNT - k, lambda k: k + 1)
    assert found_x(series, "1", "2") == {"1": 0.0, "2": 4.0}


def test_names_count_where_numbers_are_missing_shared_or_others(tmp_path):
    for folder, instance, without in (
        ("missing", lambda k: 1, ("InstanceNumber",)),
        ("shared", lambda k: 3, ()),
        ("others", lambda k: 500 + k, ()),
    ):
        series = series_of(tmp_path / folder, lambda k: f"{k + 1:03d}", instance, without=without)
        assert found_x(series, "1", "3") == {"1": 0.0, "3": 8.0}, folder


def test_numbers_follow_their_slices_when_a_stack_is_turned_or_averaged(tmp_path):
    series_of(tmp_path, lambda k: f"f{k}", lambda k: 10 + k, SpacingBetweenSlices=4.0)
    (stack,), _ = read_series(tmp_path, default_directions=np.array(TASK.view(VIEW).directions))
    turned = oriented(stack, -np.array(stack.axes))
    assert turned.instances == stack.instances[::-1] and turned.names == stack.names[::-1]
    thin = average_thin_slices(stack, thin_mm=5.0, slab_mm=8.0)
    assert thin.instances == tuple(10 + int(name[1:]) for name in thin.names)


def test_marks_without_a_slice_are_absent_and_not_misplaced(tmp_path):
    series = series_of(tmp_path, lambda k: k + 1, lambda k: k + 1)
    (stack,), _ = read_series(tmp_path, default_directions=np.array(TASK.view(VIEW).directions))
    assert marks_in_mm([Mark("m", "s", "9", 1.0, 1.0), Mark("n", "other", "1", 1.0, 1.0)], "s", [stack]) == {}
    assert found_x(series, "nan") == {}
