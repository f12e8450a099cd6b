"""Box precision and recall against the definition written out, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.learning import average_precision


def slow(images, threshold):
    """Every detection of every image in order of score; for each of 101 recalls the best precision from there on."""
    events, total = [], 0
    for found, scores, true in images:
        total += len(true)
        taken = set()
        for i in sorted(range(len(found)), key=lambda i: (-scores[i], i)):
            best, where = threshold, None
            for j, box in enumerate(true):
                x = max(0.0, min(found[i][2], box[2]) - max(found[i][0], box[0]))
                y = max(0.0, min(found[i][3], box[3]) - max(found[i][1], box[1]))
                area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (found[i], box)) - x * y
                if j not in taken and x * y / area >= best and (where is None or x * y / area > best):
                    best, where = x * y / area, j
            if where is not None:
                taken.add(where)
            events.append((scores[i], where is not None))
    events.sort(key=lambda event: -event[0])
    curve, right = [], 0
    for n, (_, hit) in enumerate(events, 1):
        right += hit
        curve.append((right / total, right / n))
    points = [max((p for r, p in curve if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
    return float(np.mean(points)), right / total


def random_images(rng):
    images = []
    for _ in range(4):
        corners = rng.uniform(0, 50, (rng.integers(1, 5), 2))
        true = np.concatenate([corners, corners + rng.uniform(5, 20, corners.shape)], 1)
        near = true[rng.integers(len(true), size=rng.integers(0, 7))]
        found = near + rng.normal(0, 2, near.shape)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        images.append((found, rng.permutation(100)[: len(found)] / 100 + rng.random(len(found)) * 1e-3, true))
    return images


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.6, 0.75]))
def test_equals_the_definition(seed, threshold):
    images = random_images(np.random.default_rng(seed))
    assert average_precision.precision_and_recall(images, threshold) == pytest.approx(
        slow(images, threshold), abs=1e-12
    )


def test_perfect_boxes_have_precision_and_recall_1():
    true = np.array([[0, 0, 10, 5], [0, 20, 10, 25.0]])
    assert average_precision.table([(true, np.array([0.9, 0.8]), true)]) == {"ap50": 1.0, "ap75": 1.0, "ar": 1.0}


def test_a_second_box_on_a_disc_is_wrong():
    true = np.array([[0, 0, 10, 10.0]])
    found = np.array([[0, 0, 10, 10], [0, 0, 10, 9.0]])
    assert average_precision.hits(found, np.array([0.5, 0.9]), true, 0.5).tolist() == [False, True]


def test_nothing_found_and_nothing_to_find():
    none = np.zeros((0, 4))
    assert average_precision.precision_and_recall([(none, np.zeros(0), np.array([[0, 0, 1, 1.0]]))], 0.5) == (0.0, 0.0)
    assert np.isnan(average_precision.precision_and_recall([(none, np.zeros(0), none)], 0.5)).all()
