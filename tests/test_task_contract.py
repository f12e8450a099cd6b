"""What holds for every task: names derived once, prompts known, boxes pure. A new task is picked up by itself."""

import doctest
import logging
import pickle
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import osteograde
from osteograde.imaging import geometry
from osteograde.imaging.geometry import Volume
from osteograde.pipeline.crops import region_grids
from osteograde.tasks import TASKS, own_data
from osteograde.tasks.spec import Point, row_id
from osteograde.tasks.tables import split_id

MADE_OF_DATA = {  # what a table of one's own may make of its task
    "whole image": own_data.Definition("classes", ("cyst", "none", "tumour"), (5, 3, 2)),
    "one side of an image": own_data.Definition("grades", ("0", "1", "2"), (5, 3, 2), sides=own_data.ONE),
    "named places on both sides": own_data.Definition(
        "yes_no", ("no", "yes"), (5, 3), places="box", regions=("hip", "knee"), sides=own_data.BOTH, crop=0.2
    ),
    "places in volumes": own_data.Definition(
        "grades", ("1", "2", "3"), (5, 3, 2), "volume", places="point", crop=0.3, extent=300.0, plane="sagittal"
    ),
    "whole volumes": own_data.Definition("yes_no", ("0", "1"), (5, 3), "volume", extent=300.0, plane="axial"),
}
KNOWN = TASKS | {f"table: {name}": own_data.task_of(definition) for name, definition in MADE_OF_DATA.items()}
EACH = pytest.mark.parametrize("task", KNOWN.values(), ids=KNOWN)
EACH_GRADER = pytest.mark.parametrize(
    ("task", "group"),
    [pytest.param(task, group, id=f"{name}-{group.name}") for name, task in KNOWN.items() for group in task.graders],
)


def study(task, side=300):
    """A stack of zeros per view about the origin, and every landmark somewhere inside: left ones left of right ones."""
    volumes = {}
    for view in task.views:
        shape, spacing = (21, side, side), np.array([4.0, 1.0, 1.0])
        roi = geometry.roi_at(np.zeros(3), np.array(view.directions), spacing, shape)
        volumes[view.name] = [Volume(np.zeros(shape, np.uint8), roi.to_mm, series=view.name)]
    rng = np.random.default_rng(0)
    middle = {"right": -15.0, "left": 15.0, "": 0.0}
    points = {
        landmark.name: Point(rng.uniform(-30, 30, 3) * [0.1, 1, 1] + [middle[landmark.side], 0, 0])
        for stage in task.locators
        for landmark in stage.landmarks
    }
    return volumes, points


@EACH
def test_a_task_is_known_by_its_name(task):
    assert TASKS[task.name] is task or TASKS[task.name].as_defined(task.definition).classes == task.classes
    assert len(task.classes) == len(task.class_weights) == len(set(task.classes))


@EACH
def test_every_target_is_graded_once(task):
    graded = [site.target for group in task.graders for site in group.sites]
    assert sorted(graded) == sorted(task.targets)
    assert len(set(graded)) == len(graded)


@EACH
def test_row_ids_are_derived_from_study_and_targets(task):
    assert task.rows("77") == [row_id("77", target) for target in task.targets]
    assert [split_id(task, row) for row in task.rows("7_7")] == [("7_7", target) for target in task.targets]


@EACH
def test_names_of_stages_landmarks_and_views_are_unique(task):
    for names in (
        [view.name for view in task.views],
        [stage.name for stage in task.locators],
        [group.name for group in task.graders],
        [landmark.name for stage in task.locators for landmark in stage.landmarks],
    ):
        assert len(set(names)) == len(names)


@EACH
def test_view_directions_are_orthonormal(task):
    for view in task.views:
        axes = np.array(view.directions)
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)


@EACH
def test_landmarks_of_a_channel_in_one_region_differ_by_side(task):
    """Otherwise nothing could tell them apart in the locator's heatmap."""
    volumes, points = study(task)
    for locator in task.locators:
        regions = locator.regions(volumes, points)
        assert {mark.name for region in regions for mark in region.landmarks} == {m.name for m in locator.landmarks}
        for region in regions:
            keys = [(landmark.channel, landmark.side) for landmark in region.landmarks]
            assert len(set(keys)) == len(keys)


@EACH
def test_regions_are_pure_and_lie_on_the_stacks_that_they_need(task):
    volumes, points = study(task)
    earlier = {}
    for locator in task.locators:
        needed = {name: volumes[name] for name in locator.needs if name in volumes}
        before = {name: points[name] for name in locator.needs if name in earlier}
        first, second = (region_grids(locator, volumes, earlier, 24) for _ in range(2))
        named = region_grids(locator, needed, before, 24)  # what is not named is not read
        assert first and len(first) == len(second) == len(named)
        for one, *others in zip(first, second, named, strict=True):
            assert any(one.region.volume is stack for stacks in needed.values() for stack in stacks)
            assert one.grid.shape[1:] == (24, 24)
            for other in others:
                np.testing.assert_array_equal(one.grid.to_mm, other.grid.to_mm)
                assert one.region.midline_mm == other.region.midline_mm
                assert one.region.landmarks == other.region.landmarks
        earlier |= {landmark.name: points[landmark.name] for landmark in locator.landmarks}


@EACH
def test_a_study_without_the_views_of_a_locator_has_no_region(task):
    _, points = study(task)
    for locator in task.locators:
        assert locator.regions({}, points) == locator.regions({view.name: () for view in task.views}, points) == []


def test_regions_that_cannot_go_through_the_net_together_are_refused():
    task = TASKS["knee-xray"]
    volumes, points = study(task)
    (locator,) = task.locators

    def halves(volumes, points):
        (region,) = locator.regions(volumes, points)
        return [replace(region, landmarks=region.landmarks[:1]), replace(region, landmarks=region.landmarks[1:])]

    with pytest.raises(ValueError, match="different channels or sides"):
        region_grids(replace(locator, regions=halves), volumes, points, 24)


@EACH
def test_sided_sites_come_in_pairs_at_landmarks_of_their_side(task):
    sides = {landmark.name: landmark.side for stage in task.locators for landmark in stage.landmarks}
    for group in task.graders:
        pairs: dict[tuple[str, str], set[str]] = {}
        for site in group.sites:
            assert not site.landmarks or sides[site.landmark] == site.side
            pairs.setdefault((site.condition, site.level), set()).add(site.side)
        assert all(found in ({""}, {"right", "left"}) for found in pairs.values())


@EACH
def test_the_prior_is_a_distribution_for_every_target(task):
    table = np.array([task.prior[target] for target in task.targets])
    assert table.shape == (len(task.targets), len(task.classes))
    np.testing.assert_allclose(table.sum(1), 1, atol=1e-12)
    assert (table > 0).all() and (table < 1).all()


@EACH
def test_the_score_prefers_the_truth(task):
    """In the direction that the task names, part by part; what a flat answer leaves undefined is not compared."""
    rng, k = np.random.default_rng(0), len(task.classes)
    classes = rng.integers(k, size=(40, len(task.targets)))
    labels = {f"s{i}": dict(zip(task.targets, map(int, row), strict=True)) for i, row in enumerate(classes)}
    truth, wrong = (
        {study: np.eye(k)[row] for study, row in zip(labels, said, strict=True)}
        for said in (classes, (classes + 1) % k)
    )
    flat = dict.fromkeys(labels, np.full((len(task.targets), k), 1 / k))
    good, bad, poor = (task.metric.score(labels, probs) for probs in (truth, wrong, flat))
    assert list(good) == [*task.metric.parts]
    assert task.metric.higher_is_better <= set(good)
    assert set(task.metric.words) == set(good) and len(set(task.metric.words.values())) == len(good)
    gain = {part: np.array([good[part] - bad[part], good[part] - poor[part]]) for part in good}
    gain = {part: values if part in task.metric.higher_is_better else -values for part, values in gain.items()}
    assert {part for part in good if not gain[part][0] > 0} == set()
    assert {part for part in good if gain[part][1] < 0} == set()
    assert gain["score"][1] > 0
    counted = task.metric.bootstrap_statistic(labels, wrong)(np.ones((2, len(labels))))
    np.testing.assert_allclose(counted, [list(bad.values())] * 2)


@pytest.mark.parametrize(
    "task", [task for task in TASKS.values() if task.metric.confusion({}, {}) is not None], ids=lambda task: task.name
)
def test_confusions_have_the_truth_in_rows(task):
    k = len(task.classes)
    labels = {"a": dict.fromkeys(task.targets, 0), "b": {task.targets[0]: k - 1}}
    said = dict.fromkeys(labels, np.tile(np.eye(k)[k - 1], (len(task.targets), 1)))
    expected = np.zeros((k, k), int)
    expected[0, k - 1], expected[k - 1, k - 1] = len(task.targets), 1
    np.testing.assert_array_equal(task.metric.confusion(labels, said), expected)


@EACH
def test_a_task_travels_to_other_processes(task):
    again = pickle.loads(pickle.dumps(task))
    volumes, points = study(task)
    assert again.targets == task.targets
    assert again.graders[0].regions(volumes, points, 8).keys() == task.graders[0].regions(volumes, points, 8).keys()


@EACH
def test_known_views_are_recognised_by_orientation(task):
    volumes, _ = study(task)
    for view in task.views:
        guess = task.view_of_orientation(volumes[view.name][0])
        assert task.view(guess).directions == view.directions


@EACH_GRADER
def test_boxes_are_pure_and_fit_their_specs(task, group):
    volumes, points = study(task)
    before = {name: point.mm.copy() for name, point in points.items()}
    first, second = group.regions(volumes, points, 24), group.regions(volumes, points, 24)
    assert set(first) == {site.target for site in group.sites}
    crops, fields_mm = {crop.name: crop for crop in group.crops}, {}
    for target, boxes in first.items():
        assert set(boxes) == set(crops)
        for name, (volume, roi) in boxes.items():
            assert volume is volumes[crops[name].view][0]
            assert roi.shape == (crops[name].slices, 24, 24)
            field_mm = roi.spacing_mm[1:] * 24
            if task.name in ("spider", "table"):  # of unknown size: by the proportions of the patient or the image
                np.testing.assert_allclose(field_mm, fields_mm.setdefault(name, field_mm[0]))
            else:
                np.testing.assert_allclose(field_mm, crops[name].field_mm)
            np.testing.assert_array_equal(roi.to_mm, second[target][name][1].to_mm)
    for name, point in points.items():
        np.testing.assert_array_equal(point.mm, before[name])


@EACH_GRADER
def test_left_boxes_of_a_mirrored_body_are_its_right_boxes(task, group):
    """Mirror volumes and points about x = 0 and swap the sides: every box must be the mirror image of its twin."""
    volumes, points = study(task)
    flip = np.diag([-1.0, 1.0, 1.0])
    swap = {"right": "left", "left": "right", "": ""}
    sites = {(site.condition, site.level, site.side): site for site in group.sites}
    twins = {site.target: sites[site.condition, site.level, swap[site.side]] for site in group.sites}
    moved = {
        twins[site.target].landmark: Point(points[site.landmark].mm @ flip) for site in group.sites if site.landmarks
    }
    here, there = (
        group.regions(volumes, points, 12),
        group.regions(volumes, moved, 12),
    )
    index = np.array([[0.0, 0.0, 0.0], [0.0, 11.0, 3.0], [1.0, 2.0, 11.0]])
    for site in group.sites:
        if site.side:
            for view, (_, roi) in here[site.target].items():
                twin = there[twins[site.target].target][view][1]
                np.testing.assert_allclose(
                    geometry.apply(roi.to_mm, index) @ flip, geometry.apply(twin.to_mm, index), atol=1e-9
                )


@EACH_GRADER
def test_nothing_seen_or_nothing_found_gives_no_box(task, group):
    volumes, points = study(task)
    assert dict(group.regions({}, points, 8)) == {}
    assert set(group.regions(volumes, {}, 8)) == {site.target for site in group.sites if not site.landmarks}


@EACH
def test_completion_keeps_what_was_found(task):
    _, points = study(task)
    assert all(task.fill_missing_landmarks(points)[name] is point for name, point in points.items())
    assert dict(task.fill_missing_landmarks({})) == {}


# A task that does not hang together is refused with what is known


WITH_LOCATORS = pytest.mark.parametrize(
    "task", [task for task in KNOWN.values() if task.locators], ids=[name for name in KNOWN if KNOWN[name].locators]
)
PROMPTED = [
    task
    for task in TASKS.values()
    if {landmark.name for locator in task.locators for landmark in locator.landmarks}
    & {name for locator in task.locators for name in locator.needs}
]


@pytest.mark.parametrize("task", PROMPTED, ids=lambda task: task.name)
def test_a_prompt_that_no_earlier_locator_finds_is_refused_with_what_is_known(task):
    expected = r"needs \[.*\], neither a view nor a landmark that an earlier locator finds; .*found so far: \["
    with pytest.raises(ValueError, match=expected):
        replace(task, locators=task.locators[1:])


@EACH
def test_a_target_left_out_or_graded_twice_is_refused(task):
    with pytest.raises(ValueError, match="every target of the prior must be graded once"):
        replace(task, prior={target: task.prior[target] for target in task.targets[1:]})
    with pytest.raises(
        ValueError, match=f"every target of the prior must be graded once.*{task.graders[0].sites[0].target}"
    ):
        replace(task, graders=(*task.graders, task.graders[0]))


@WITH_LOCATORS
def test_unknown_views_landmarks_and_priors_are_refused(task):
    group, stage = task.graders[0], task.locators[0]
    crop = replace(group.crops[0], view="elsewhere")
    with pytest.raises(ValueError, match=f"several crops called .*{crop.name}"):
        replace(task, graders=(replace(group, crops=(*group.crops, group.crops[0])), *task.graders[1:]))
    with pytest.raises(ValueError, match=r"grader .* reads \['elsewhere'\]; views are"):
        replace(task, graders=(replace(group, crops=(crop,)), *task.graders[1:]))
    with pytest.raises(ValueError, match=r"locator .* needs \['elsewhere'\], neither a view nor .*; views are"):
        replace(task, locators=(replace(stage, needs=("elsewhere",)), *task.locators[1:]))
    with pytest.raises(ValueError, match="needs no view"):
        replace(task, locators=(replace(stage, needs=()), *task.locators[1:]))
    with pytest.raises(ValueError, match="as an earlier locator does"):
        replace(task, locators=(*task.locators, replace(stage, name="again")))
    sites = (replace(group.sites[0], landmarks=("nowhere",)), *group.sites[1:])
    with pytest.raises(ValueError, match=r"needs \['nowhere'\], which no locator finds"):
        replace(task, graders=(replace(group, sites=sites), *task.graders[1:]))


def test_examples_in_docstrings_are_true(monkeypatch):
    # Another test may have sent log lines to stdout, where an example's answer is read.
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("osteograde"), "handlers", [])
    folder = Path(osteograde.__file__).parent
    names = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py") if ">>> " in path.read_text()]
    tried = {str(name): doctest.testmod(import_module("osteograde." + ".".join(name.parts))) for name in names}
    assert len(tried) > 10
    assert {name: outcome for name, outcome in tried.items() if outcome.failed or not outcome.attempted} == {}
