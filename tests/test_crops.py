"""What the nets see: boxes on real slices, lateral coordinates, prompts over several stacks, test-time views."""

import cv2
import numpy as np
import pytest
import torch

from osteograde.imaging.geometry import Volume, affine, apply
from osteograde.inference import run
from osteograde.inference.submission import Result
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.pipeline import crops, predict
from osteograde.pipeline.load import Loaded
from osteograde.pipeline.ttas import TTAS
from osteograde.report import overlays
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Point, Study
from tests.tiny import random_bundle

TASK = TASKS["lumbar-mr"]
CANAL, FORAMEN, RECESS = TASK.locators


def stack(view: str, centre=(0.0, 0.0, 0.0), shape=(9, 60, 50), step=(4.0, 2.0, 2.0), tilt=0.0, series="s") -> Volume:
    """A stack of noise in a view's directions, tilted about the left-right axis."""
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    axes = np.array(TASK.view(view).directions) @ turn.T
    origin = np.array(centre) - axes.T @ (np.array(step) * (np.array(shape) - 1) / 2)
    voxels = np.random.default_rng(1).integers(1, 255, shape).astype(np.uint8)
    return Volume(voxels, affine(origin, axes, np.array(step)), series=series)


def canal_points(z: float = 0.0) -> dict[str, Point]:
    return {landmark.name: Point(np.array([2.0, 5.0, 60.0 - 30 * k + z])) for k, landmark in enumerate(CANAL.landmarks)}


def test_a_whole_stack_is_seen_on_its_own_slices_with_the_midline_of_known_points():
    volume = stack("sag_t1")
    [look] = crops.region_grids(FORAMEN, {"sag_t1": (volume,)}, canal_points(), 64)
    assert look.grid.shape == (9, 64, 64) and look.region.midline_mm == 2.0
    planes = [apply(look.grid.to_mm, np.array([d, 10, 10]))[0] for d in range(9)]
    assert np.allclose(planes, [apply(volume.to_mm, np.array([z, 0, 0]))[0] for z in range(9)])
    [alone] = crops.region_grids(FORAMEN, {"sag_t1": (volume,)}, {}, 64)
    assert alone.region.midline_mm == pytest.approx(volume.centre_mm[0])


def test_lateral_coordinates_are_patient_x_minus_the_midline():
    for stage, view in ((FORAMEN, "sag_t1"), (RECESS, "axi_t2")):
        volume = stack(view)
        look = crops.region_grids(stage, {view: (volume,)}, canal_points(-60), 32)[0]
        lateral = crops.lateral_mm(look.grid, look.region.midline_mm)
        for d in (0, look.grid.shape[0] - 1):
            for w in (0, 13, 31):
                x = apply(look.grid.to_mm, np.array([d, 15.5, w]))[0]
                assert lateral[d, w] == pytest.approx(x - look.region.midline_mm)


def test_a_prompt_takes_the_nearest_slice_of_all_stacks_also_of_tilted_ones():
    points = canal_points()
    upper = stack("axi_t2", (0, 0, 60), shape=(3, 60, 60), series="upper")
    tilted = stack("axi_t2", (0, 0, 0), shape=(3, 60, 60), tilt=0.4, series="tilted")
    looks = crops.region_grids(RECESS, {"axi_t2": (upper, tilted)}, points, 32)
    by_level = {look.region.landmarks[0].name: look.region.volume.series for look in looks}
    assert by_level == {
        "recess_right_l1_l2": "upper",
        "recess_right_l3_l4": "tilted",
    }


def test_without_its_view_or_its_prompts_a_locator_has_nothing_to_see():
    assert crops.region_grids(RECESS, {"axi_t2": (stack("axi_t2"),)}, {}, 32) == []
    assert crops.region_grids(CANAL, {"sag_t2": ()}, {}, 32) == []


def test_the_ends_of_a_stack_are_their_own_neighbours():
    crop = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    images = crops.neighbours(crop, torch.full((3, 2), 25.0))
    assert images[:, 0, 0, 0].tolist() == [0, 0, 1]
    assert images[:, 2, 0, 0].tolist() == [1, 2, 2]
    assert torch.allclose(images[:, 3], torch.tensor(25.0 / crops.LATERAL_SCALE_MM))


def test_a_test_time_view_turns_about_the_centre_and_keeps_the_slices():
    [look] = crops.region_grids(CANAL, {"sag_t2": (stack("sag_t2"),)}, {}, 48)
    for degrees, scale in TTAS:
        other = crops.turned(look.grid, degrees, scale)
        assert np.allclose(other.centre_mm, look.grid.centre_mm)
        assert np.allclose(other.to_mm[:3, 0], look.grid.to_mm[:3, 0])
        assert np.allclose(other.spacing_mm[1:], scale * look.grid.spacing_mm[1:])
    assert np.allclose(crops.turned(look.grid, *TTAS[0]).to_mm, look.grid.to_mm)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bundle.Bundle:
    return bundle.load(random_bundle(tmp_path_factory.mktemp("weights"), folds=2, test_views=2), TASKS, pick("cpu"))


def loaded(**stacks: tuple[Volume, ...]) -> Loaded:
    return Loaded(Study("7", "7", ()), {view.name: stacks.get(view.name, ()) for view in TASK.views})


def test_right_landmarks_are_never_found_on_the_left(weights):
    study = loaded(sag_t2=(stack("sag_t2"),), sag_t1=(stack("sag_t1"),), axi_t2=(stack("axi_t2", shape=(40, 60, 60)),))
    found, _ = predict.locate_all(TASK, [study], run.nets_of(weights, "locate", run.Effort(1, 2)))
    sided = [(name, point) for name, point in found[0].items() if "_right_" in name or "_left_" in name]
    assert sided
    middle = np.mean([found[0][mark.name].mm[0] for mark in CANAL.landmarks if mark.name in found[0]] or [0.0])
    for name, point in sided:
        if name.startswith("foramen"):
            assert (point.mm[0] - middle) * (1 if "_left_" in name else -1) > -4.0  # at most half a slice over


def test_a_study_alone_and_among_others_is_told_the_same(weights):
    studies = [loaded(sag_t2=(stack("sag_t2", (0, 0, z)),), sag_t1=(stack("sag_t1"),)) for z in (0, 7, 14)]
    nets = run.nets_of(weights, "locate", run.Effort(1, 2))
    together, _ = predict.locate_all(TASK, studies, nets)
    for study, found in zip(studies, together, strict=True):
        [alone], _ = predict.locate_all(TASK, [study], nets)
        assert alone.keys() == found.keys()
        assert all(np.allclose(alone[name].mm, found[name].mm, atol=1e-2) for name in alone)


def test_probabilities_sum_to_one_and_unseen_targets_are_left_out(weights):
    study = loaded(sag_t2=(stack("sag_t2", shape=(9, 130, 100)),))
    points = {name: Point(point.mm) for name, point in canal_points().items()}
    nets = run.nets_of(weights, "grade", run.Effort(2, 2))
    spinal, foraminal, _ = TASK.graders
    [graded] = predict.grade(spinal, [study], [points], nets["spinal"], views=2)
    assert len(graded) == 5
    assert all(p.sum() == pytest.approx(1) and (p > 0).all() for p in graded.values())
    assert predict.grade(foraminal, [study], [points], nets["foraminal"]) == [{}]
    table = predict.probability_rows(TASK, graded, TASK.prior)
    assert table.shape == (25, 3) and np.allclose(table.sum(1), 1)


def test_an_overlay_is_drawn_with_and_without_views(weights, tmp_path):
    full = loaded(sag_t2=(stack("sag_t2"),), sag_t1=(stack("sag_t1"),), axi_t2=(stack("axi_t2", shape=(40, 60, 60)),))
    for i, study in enumerate((full, loaded())):
        _, [points] = predict.locate_all(TASK, [study], run.nets_of(weights, "locate", run.Effort(1, 1)))
        overlays.overlay_drawer(tmp_path / str(i))(Result(study, points, {}), weights)
        image = cv2.imread(str(tmp_path / str(i) / "7.jpg"))
        assert image is not None and image.max() > 200


def test_a_landmark_beside_a_known_one_is_looked_for_there_only(weights):
    study = loaded(sag_t1=(stack("sag_t1", shape=(13, 130, 110)),))
    nets = run.nets_of(weights, "locate", run.Effort(1, 1))["foramen"]
    [free] = predict.locate(FORAMEN, [study], [{}], nets)
    known = canal_points()
    [kept] = predict.locate(FORAMEN, [study], [known], nets)
    near = {mark.name: f"canal_{mark.name[-5:]}" for mark in FORAMEN.landmarks}

    def furthest(found) -> float:
        return max(float(np.linalg.norm((point.mm - known[near[name]].mm)[1:])) for name, point in found.items())

    assert furthest(kept) < predict.NEIGHBOUR_MM + 4  # refined below a map pixel
    assert furthest(free) > predict.NEIGHBOUR_MM + 4  # these nets know nothing: left alone they go anywhere
