"""The picture of a study: what stands on it can be read, is about the study, and is true."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osteograde.imaging.geometry import Volume
from osteograde.inference.submission import Result
from osteograde.models.bundle import Bundle
from osteograde.models.manifest import Manifest
from osteograde.pipeline.load import Loaded
from osteograde.report import drawing, overlays
from osteograde.report.words import plain
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Point, Study

PIXELS = {
    "lumbar-mr": {"spinal": 64, "foraminal": 64, "subarticular": 64}, "spider": {"pfirrmann": 64},
    "knee-xray": {"kl": (44, 60)},
}  # fmt: skip


def voters(name: str) -> Bundle:
    """What a picture needs of weights: no net."""
    task = TASKS[name]
    manifest = Manifest(name, files={}, pixels=PIXELS[name], test_views=1, prior=task.prior)
    return Bundle(task, manifest, {}, {}, torch.device("cpu"))


def stack(depth: int, across: bool) -> Volume:
    """A stack of noise: sagittal, or a film with its slice in the coronal plane."""
    to_mm = np.eye(4)
    axes = [[3.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]] if across else [[0, 3.0, 0], [0, 0, -1.0], [1.0, 0, 0]]
    to_mm[:3, :3] = np.array(axes).T
    return Volume(np.random.default_rng(0).integers(1, 200, (depth, 200, 180)).astype(np.uint8), to_mm)


def result(
    name: str, targets: tuple[str, ...] = (), graded: tuple[str, ...] | None = None, study: str = "s1"
) -> Result:
    """A study with points on noise, whose rows have random probabilities."""
    task, rng = TASKS[name], np.random.default_rng(3)
    volumes = {view.name: () for view in task.views}
    view = task.locators[0].needs[0]
    film = name == "knee-xray"
    volumes[view] = (stack(1, across=False),) if film else (stack(9, across=True),)
    marks = list(task.locators[0].landmarks)
    points = {}
    for i, mark in enumerate(marks):
        index = np.array([0 if film else 3 + i % 3, 30 + 25 * (i % 6), 60 + 50 * (i % 2 if film else 0)])
        points[mark.name] = Point(volumes[view][0].to_mm[:3, :3] @ index, 0.01 if i == 0 else 0.9)
    heads = {site.target: grader.head_outputs for grader in task.graders for site in grader.sites}
    answers = {
        target: np.concatenate([rng.dirichlet(np.ones(len(task.classes))), rng.random(heads[target])])
        for target in (graded if graded is not None else targets or task.targets)
    }
    return Result(Loaded(Study(study, study, (), targets=targets), volumes), points, answers)


@pytest.fixture
def said(monkeypatch) -> list[drawing.Words]:
    """The words of all pictures that are made, in order."""
    words, draw = [], drawing.with_words

    def spy(image, own):
        words.extend(own)
        boxes = [box_of(one) for one in own if one.anchor in ("lm", "rm")]
        height, width = image.shape[:2]
        assert all(x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height for x0, y0, x1, y1 in boxes)
        return draw(image, own)

    monkeypatch.setattr(drawing, "with_words", spy)
    return words


def box_of(words: drawing.Words) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of words on a picture."""
    width, half = drawing.width_of(words.text, words.size), words.size / 2
    left = words.x if words.anchor[0] == "l" else words.x - width
    return left, words.y - half, left + width, words.y + half


CASES = [("lumbar-mr", ()), ("spider", ()), ("knee-xray", ()), ("knee-xray", ("left",))]


@pytest.mark.parametrize(("name", "targets"), CASES)
def test_no_words_are_small_or_lie_upon_others(said, name, targets):
    overlays.picture(result(name, targets, study="a long name of a study " * 9), voters(name))
    assert min(one.size for one in said) >= 14
    column = [box_of(one) for one in said if not one.halo]
    titles = len([one for one in said if "point" in one.text and ":" in one.text and one.size == drawing.SMALL])
    for part in (column[:-titles], column[-titles:]):  # the column is made before the slices
        for i, (left, top, right, bottom) in enumerate(part):
            over = [
                one for one in part[i + 1 :] if left < one[2] and one[0] < right and top < one[3] and one[1] < bottom
            ]
            assert not over


@pytest.mark.parametrize(("name", "targets"), CASES)
def test_every_row_of_the_study_is_told_with_its_class_and_no_other(said, name, targets):
    own = result(name, targets)
    overlays.picture(own, voters(name))
    texts, task = [one.text for one in said], TASKS[name]
    for target in task.targets_of(targets):
        values = own.graded[target][: len(task.classes)]
        words = f"{plain(task.classes[int(np.argmax(values))])}{{}} {drawing.percent(float(values.max()))}"
        assert words.format("") in texts or words.format(":") in texts
    if targets:
        assert plain("left") in texts and not any(plain("right") in text for text in texts)


def test_a_row_without_a_grade_is_told_to_hold_the_prior_and_has_no_bar(said):
    overlays.picture(result("spider", graded=TASKS["spider"].targets[1:]), voters("spider"))
    texts = [one.text for one in said]
    assert "Not graded, holds the prior: L1/L2" in texts and "L1/L2" not in texts and "L2/L3" in texts


def test_points_have_the_numbers_of_their_rows_and_stand_where_they_were_found(said):
    own = result("spider")
    image = overlays.picture(own, voters("spider"))
    numbers = [one for one in said if one.halo]
    assert [one.text for one in numbers] == [str(i) for i in range(1, 1 + len(own.points))][: len(numbers)]
    rows = [one.text for one in said if one.x == 12 and one.text[:1].isdigit()]
    number = {name: str(i) for i, name in enumerate(own.points, 1)}
    names = [[f"{view}_disc_{level}" for view in ("t2", "t1")] for level in TASKS["spider"].targets]
    assert rows == [", ".join(number[name] for name in both if name in number) for both in names]
    volume, shown = own.loaded.volumes["t2"][0], (300, 270)
    marks = overlays.marks_of(own, voters("spider"))
    [landmark] = [one for one in TASKS["spider"].locators[0].landmarks if one.name == "t2_disc_l2_l3"]
    drawn = overlays.slice_picture(overlays._whole("t2", volume, 4, (landmark,)), marks, shown)
    spot = np.argwhere((np.abs(drawn.astype(int) - overlays.COLOURS[""]) < 12).all(-1)).mean(0)
    expected = (np.array([55, 60]) + 0.0) * np.array(shown) / (200, 180)
    assert np.abs(spot - expected).max() < 4
    assert image.shape[0] >= overlays.LEAST_HEIGHT


@pytest.mark.parametrize("zoom", [0.4, 1.0, 2.5])
def test_a_part_of_a_slice_lies_where_its_corner_says(zoom):
    voxels = np.zeros((1, 200, 180), np.uint8)
    voxels[0, 80:90, 60:70] = 255  # its middle is 84.5, 64.5
    volume = replace(stack(1, across=False), voxels=voxels)
    part = overlays.Shown("film", volume, 0, np.array([20.0, 30.0]), np.array([120.0, 100.0]), ())
    drawn = overlays.slice_picture(part, overlays.StudyMarks({}, {}, ()), (round(120 * zoom), round(100 * zoom)))
    spot = np.argwhere(drawn[..., 0] > 127).mean(0)
    assert np.abs(spot - np.array([64.5, 34.5]) * zoom).max() < 1


def test_the_legend_explains_the_signs_that_are_there_and_no_others(said):
    own, nets = result("spider"), voters("spider")
    overlays.picture(own, nets)
    assert any("told from the others" in one.text for one in said) and not any(one.text == "right" for one in said)
    said.clear()
    sure = {name: replace(point, confidence=0.9) for name, point in own.points.items()}
    overlays.picture(Result(own.loaded, sure, own.graded), nets)
    assert not any("told from the others" in one.text for one in said)
    assert any("point found by the nets; small" in one.text for one in said)
    said.clear()
    overlays.picture(Result(own.loaded, {}, {}), nets)
    assert not any("point found" in one.text or "crop that" in one.text for one in said)
    assert any("nothing was found" in one.text for one in said)


@pytest.mark.parametrize(("name", "targets"), CASES)
def test_no_half_of_a_picture_is_empty(name, targets):
    image = overlays.picture(result(name, targets), voters(name))
    drawn = (np.abs(image.astype(int) - drawing.BACK) > 12).any(-1)
    height, width = drawn.shape
    halves = [drawn[: height // 2], drawn[height // 2 :], drawn[:, : width // 2], drawn[:, width // 2 :]]
    assert min(half.mean() for half in halves) > 0.02
    gaps = np.diff(np.flatnonzero(drawn[:, width - overlays.SIDE_WIDTH :].any(1)))
    assert gaps.max() < 0.2 * height


@given(st.lists(st.floats(0.4, 2.0), min_size=1, max_size=9), st.integers(500, 1400))
def test_slices_fill_their_rows_and_the_height(aspects, height):
    rows, width = overlays.layout(aspects, height)
    assert sum(rows) == len(aspects) and min(rows) > 0 and 0 < width <= overlays.MOST_WIDTH
    ends = np.cumsum(rows)
    tall = [(width - overlays.GAP * (n - 1)) / sum(aspects[end - n : end]) for n, end in zip(rows, ends, strict=True)]
    used = sum(tall) + overlays.TITLE * len(rows) + overlays.GAP * (len(rows) - 1)
    assert used <= height + 1
    if width < overlays.MOST_WIDTH:
        assert used == pytest.approx(height, abs=1)


def test_a_study_without_images_is_a_picture_too(said):
    empty = Result(Loaded(Study("s<1>", "s", ()), {}), {}, {})
    image = overlays.picture(empty, voters("spider"))
    assert image.shape[1] == overlays.SIDE_WIDTH
    assert said[0].text == "Study s<1>"


def test_names_lead_to_no_other_folder(tmp_path):
    draw = overlays.overlay_drawer(tmp_path / "in")
    draw(Result(Loaded(Study("../../out/\udcff", "s", ()), {}), {}, {}), voters("spider"))
    assert [path.parent.name for path in tmp_path.rglob("*.jpg")] == ["in"]
    [path] = (tmp_path / "in").iterdir()
    assert cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), 1) is not None
