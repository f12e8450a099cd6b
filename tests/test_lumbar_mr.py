"""Boxes around points and points told by geometry: right slice, right side, never a guess where nothing is seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Volume
from osteograde.tasks import lumbar_mr as lumbar_rois
from osteograde.tasks.lumbar_mr import TASK
from osteograde.tasks.regions import box_around as box_within
from osteograde.tasks.regions import canonical
from osteograde.tasks.spec import Point
from osteograde.tasks.spine import LEVELS

REACH_MM = lumbar_rois.REACH_MM
GRADERS = {group.name: group for group in TASK.graders}
CANAL_MM = {level: np.array([1.0, 20.0 + 2 * i, 60.0 - 32 * i]) for i, level in enumerate(LEVELS)}


def box(crop, stacks, point_mm, side, pixels):
    return box_within(crop, stacks, point_mm, side, pixels, REACH_MM[crop.view])


def turn(axis, degrees):
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler(axis, degrees, degrees=True).as_matrix()


def stack(view, centre_mm, shape, spacing_mm, series="1", tilt=None):
    axes = np.array(TASK.view(view).directions)
    axes = axes if tilt is None else axes @ tilt.T
    roi = geometry.roi_at(np.array(centre_mm), axes, np.array(spacing_mm), shape)
    return Volume(np.zeros(shape, np.uint8), roi.to_mm, series=series)


def sagittal(view="sag_t2", **how):
    return stack(view, (0.0, 24.0, -4.0), (17, 256, 256), (4.4, 1.0, 1.0), **how)


def axial(level, slices=7, **how):
    return stack("axi_t2", CANAL_MM[level], (slices, 200, 200), (4.0, 0.8, 0.8), **how)


def canal_points():
    return {f"canal_{level}": Point(mm) for level, mm in CANAL_MM.items()}


def all_points():
    return TASK.fill_missing_landmarks(canal_points())


# Completion


def test_what_was_found_is_never_moved():
    points = canal_points() | {"foramen_left_l4_l5": Point(np.array([18.0, 20.0, -30.0]), 0.7)}
    whole = TASK.fill_missing_landmarks(points)
    assert all(whole[name] is point for name, point in points.items())
    assert all(point.confidence == 0.01 for name, point in whole.items() if name not in points)


def test_canal_points_complete_every_landmark_on_its_own_side():
    whole = all_points()
    assert set(whole) == {landmark.name for stage in TASK.locators for landmark in stage.landmarks}
    for level, middle in CANAL_MM.items():
        for structure in ("foramen", "recess"):
            right, left = (whole[f"{structure}_{side}_{level}"].mm for side in ("right", "left"))
            assert right[0] < middle[0] < left[0]
            np.testing.assert_allclose((right + left)[0] / 2, middle[0])
            np.testing.assert_allclose(right[1:], left[1:])
            assert left[1] < middle[1]  # in front of the canal's centre


@pytest.mark.parametrize("missing", [(0,), (4,), (2,), (0, 1, 2), (1, 3), (0, 4), (2, 3, 4), (0, 2, 4)])
def test_missing_levels_are_on_the_line_of_the_others(missing):
    points = {f"canal_{level}": Point(CANAL_MM[level]) for i, level in enumerate(LEVELS) if i not in missing}
    whole = TASK.fill_missing_landmarks(points)
    for level, mm in CANAL_MM.items():  # equally spaced on a line, so linear is exact
        np.testing.assert_allclose(whole[f"canal_{level}"].mm, mm, atol=1e-9)


def test_between_bent_levels_it_is_the_middle():
    known = {0: np.zeros(3), 2: np.array([0.0, 4.0, -60.0]), 3: np.array([0.0, 10.0, -90.0])}
    line = lumbar_rois.along_the_line(known, 5)
    np.testing.assert_allclose(line[1], [0, 2, -30])
    np.testing.assert_allclose(line[4], [0, 16, -120])


def test_one_canal_point_alone_tells_no_other_level():
    whole = TASK.fill_missing_landmarks({"canal_l3_l4": Point(CANAL_MM["l3_l4"])})
    assert {name[-5:] for name in whole} == {"l3_l4"} and len(whole) == 5


def test_nothing_found_completes_to_nothing():
    assert dict(TASK.fill_missing_landmarks({})) == {}


def test_a_missing_side_is_the_other_mirrored_about_the_canal():
    points = canal_points() | {"recess_right_l4_l5": Point(np.array([-9.0, 21.0, -37.0]))}
    left = TASK.fill_missing_landmarks(points)["recess_left_l4_l5"].mm
    np.testing.assert_allclose(left, [11.0, 21.0, -37.0])


def test_foramina_tell_the_canal_where_sagittal_t2_is_missing():
    whole = all_points()
    foramina = {name: point for name, point in whole.items() if name.startswith("foramen")}
    again = TASK.fill_missing_landmarks(foramina)
    assert set(again) == set(whole)
    for name in whole:
        np.testing.assert_allclose(again[name].mm, whole[name].mm, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(keep=st.sets(st.sampled_from(sorted(all_points()))))
def test_completion_is_pure_and_complete_after_one_pass(keep):
    points = {name: point for name, point in all_points().items() if name in keep}
    before = {name: point.mm.copy() for name, point in points.items()}
    once = TASK.fill_missing_landmarks(points)
    twice = TASK.fill_missing_landmarks(once)
    assert set(twice) == set(once) >= set(points)
    for name, point in points.items():
        np.testing.assert_array_equal(point.mm, before[name])
    for name in once:
        assert np.isfinite(once[name].mm).all()


# Boxes


def test_a_whole_study_gets_every_box_centred_on_its_landmark():
    volumes = {
        "sag_t1": [sagittal("sag_t1")],
        "sag_t2": [sagittal()],
        "axi_t2": [axial(level, series=level) for level in LEVELS],
    }
    points = all_points()
    for group in TASK.graders:
        boxes = group.regions(volumes, points, 64)
        assert list(boxes) == [site.target for site in group.sites]
        for site in group.sites:
            assert list(boxes[site.target]) == [crop.view for crop in group.crops]
            for crop in group.crops:
                volume, roi = boxes[site.target][crop.view]
                assert any(volume is known for known in volumes[crop.view])
                assert roi.shape == (crop.slices, 64, 64)
                np.testing.assert_allclose(roi.spacing_mm[1:], crop.field_mm / 64)
                away = (roi.centre_mm - points[site.landmark].mm) @ volume.axes.T
                assert abs(away[0]) <= volume.spacing_mm[0] / 2 + 1e-9
                np.testing.assert_allclose(away[1:], 0, atol=1e-9)
                if crop.view == "axi_t2":
                    assert volume.series == site.level


def test_samples_lie_on_slices():
    volume = axial("l4_l5", tilt=turn("x", 17))
    _, roi = box(GRADERS["subarticular"].crops[0], [volume], CANAL_MM["l4_l5"] + [0, 0, 1.1], "left", 32)
    z = geometry.to_index(volume, geometry.apply(roi.to_mm, np.array([[0, 0, 0], [1, 5, 9], [2, 31, 31]])))[:, 0]
    np.testing.assert_allclose(z, np.round(z), atol=1e-9)


@pytest.mark.parametrize("tilt", [None, turn("x", 20), turn("x", -25), turn("y", 5), turn("z", 7)])
@pytest.mark.parametrize("view", ["sag_t1", "sag_t2", "axi_t2"])
def test_left_is_right_mirrored(view, tilt):
    """A body that is its own mirror image gives the same pixels on both sides, whatever the view."""
    crop = next(crop for group in TASK.graders for crop in group.crops if crop.view == view)
    centre = np.array([0.0, 24.0, -4.0])
    shape, spacing = ((17, 256, 256), (4.0, 1.0, 1.0)) if view != "axi_t2" else ((7, 201, 201), (4.0, 0.8, 0.8))
    right_mm, left_mm = centre + np.array([-16.0, -3.0, 2.0]), centre + np.array([16.0, -3.0, 2.0])
    flip = np.diag([-1.0, 1.0, 1.0])
    volume = stack(view, centre, shape, spacing, tilt=tilt)
    twin = stack(view, centre, shape, spacing, tilt=None if tilt is None else flip @ tilt @ flip)
    # a left box in the volume, against a right box in the volume's mirror image
    _, left = box(crop, [volume], left_mm, "left", 16)
    _, right = box(crop, [twin], right_mm, "right", 16)
    corners = np.stack(np.meshgrid(*[[0, n - 1] for n in left.shape], indexing="ij"), -1).reshape(-1, 3)
    mirrored = (geometry.apply(left.to_mm, corners) - centre) @ flip + centre
    np.testing.assert_allclose(mirrored, geometry.apply(right.to_mm, corners), atol=1e-9)
    assert np.linalg.det(left.to_mm[:3, :3]) * np.linalg.det(right.to_mm[:3, :3]) < 0


@pytest.mark.parametrize(("side", "same"), [("right", True), ("", True), ("left", False)])
def test_only_left_boxes_are_mirrored(side, same):
    plain = geometry.roi_on(sagittal(), CANAL_MM["l3_l4"], (1.0, 1.0), (3, 8, 8))
    assert np.array_equal(canonical(plain, side).to_mm, plain.to_mm) == same


def test_the_stack_whose_slices_come_closest_is_read():
    near, far = axial("l4_l5", series="9"), axial("l3_l4", series="1")
    volumes = {"axi_t2": [far, near]}
    boxes = GRADERS["spinal"].regions(volumes, canal_points(), 16)
    assert boxes["spinal_canal_stenosis_l4_l5"]["axi_t2"][0] is near
    assert boxes["spinal_canal_stenosis_l3_l4"]["axi_t2"][0] is far
    assert set(boxes) == {"spinal_canal_stenosis_l4_l5", "spinal_canal_stenosis_l3_l4"}


def test_equal_stacks_are_chosen_between_the_same_way_in_any_order():
    one, two = axial("l4_l5", series="1"), axial("l4_l5", series="2")
    longer = axial("l4_l5", slices=9, series="3")
    crop, point = GRADERS["spinal"].crops[1], CANAL_MM["l4_l5"]
    assert box(crop, [one, two], point, "", 8)[0] is box(crop, [two, one], point, "", 8)[0]
    assert box(crop, [one, longer], point, "", 8)[0] is longer


def test_a_point_beyond_reach_is_not_seen_and_one_just_beyond_the_last_slice_is_seen_on_it():
    volume = axial("l4_l5")  # slices reach 12 mm to each side of the point
    crop = GRADERS["spinal"].crops[1]
    assert box(crop, [volume], CANAL_MM["l4_l5"] + [0, 0, 20.1], "", 8) is None
    seen = box(crop, [volume], CANAL_MM["l4_l5"] + [0, 0, 19.9], "", 8)
    assert geometry.to_index(volume, seen[1].centre_mm)[0] == pytest.approx(0)


def test_a_point_outside_of_the_picture_is_not_seen():
    crop = GRADERS["spinal"].crops[0]
    assert box(crop, [sagittal()], np.array([0.0, 24.0, 200.0]), "", 8) is None
    assert box(crop, [], CANAL_MM["l4_l5"], "", 8) is None


def test_sites_without_landmark_or_without_any_view_are_left_out():
    points = all_points()
    assert GRADERS["foraminal"].regions({"sag_t2": [sagittal()], "sag_t1": []}, points, 8) == {}
    del points["recess_left_l1_l2"]
    boxes = GRADERS["subarticular"].regions({"sag_t2": [sagittal()]}, points, 8)
    assert len(boxes) == 9 and "left_subarticular_stenosis_l1_l2" not in boxes
    assert all(list(views) == ["sag_t2"] for views in boxes.values())


# Stacks of unknown description


@pytest.mark.parametrize("tilt", [None, turn("x", 30), turn("y", 20), turn("z", -20), turn("x", 180), turn("z", 180)])
def test_the_view_of_an_unknown_stack_is_told_by_its_slices(tilt):
    assert TASK.view_of_orientation(sagittal(tilt=tilt)) == "sag_t2"
    assert TASK.view_of_orientation(axial("l4_l5", tilt=tilt)) == "axi_t2"


def test_a_coronal_stack_is_no_view():
    assert TASK.view_of_orientation(sagittal(tilt=turn("z", 90))) == ""
