"""Films that are not what they should be: every row comes out, and the doubtful ones are named."""

import csv

import cv2
import numpy as np
import pytest

from osteograde.grade_command import infer
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import compose
from tests.tiny import random_bundle

TASK = TASKS["knee-xray"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("weights"), "knee-xray")


def crop(rng):
    rough = cv2.resize(rng.random((12, 12)), (299, 299), interpolation=cv2.INTER_CUBIC)
    return (np.clip(rough, 0, 1) * 255).astype(np.uint8)


def photograph(rng):
    return (cv2.resize(rng.random((7, 9, 3)), (1200, 800), interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).astype(
        np.uint8
    )


def odd_films(folder, rng):
    """{name: expected rows} of films written into a folder."""
    both = [(crop(rng), "right"), (crop(rng), "left")]
    films = {
        "both": compose(both, rng).pixels,
        "one_missing": compose(both[:1], rng).pixels,
        "no_knee": compose([], rng).pixels,
        "black": np.zeros((700, 900), np.uint8),
        "white": np.full((700, 900), 255, np.uint8),
        "implant": np.where(compose(both, rng).pixels > 140, 255, 20).astype(np.uint8),
        "photograph": photograph(rng),
        "lateral": compose(both[:1], rng, layout="single").pixels.T.copy(),
        "tiny": np.full((1, 1), 7, np.uint8),
        "strip": crop(rng)[:20],
    }
    for name, pixels in films.items():
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    (folder / "broken.png").write_bytes((folder / "both.png").read_bytes()[:2000])
    (folder / "text.jpg").write_text("not an image")
    return [*films, "broken", "text"]


def test_odd_films_cost_no_row_and_are_flagged(tmp_path, weights):
    rng = np.random.default_rng(3)
    data = tmp_path / "films"
    data.mkdir()
    names = odd_films(data, rng)
    out = tmp_path / "knees.csv"
    code = infer("knee-xray", data, weights, out, device="cpu", max_unread=5)
    assert code == 0
    with out.open(newline="") as file:
        rows = {row["row_id"]: [float(row[name]) for name in TASK.classes] for row in csv.DictReader(file)}
    assert {row.rpartition("_")[0] for row in rows} == set(names)
    for values in rows.values():
        assert sum(values) == pytest.approx(1, abs=1e-4) and min(values) >= 0
    with (tmp_path / "knees.flags.csv").open(newline="") as file:
        flags = list(csv.DictReader(file))
    reasons = {}
    for flag in flags:
        assert flag["row_id"] in rows
        reasons.setdefault(flag["row_id"].rpartition("_")[0], set()).add(flag["reason"])
    assert {"film:no_contrast"} <= reasons["black"] and {"film:no_contrast"} <= reasons["white"]
    assert "not_graded" in reasons["broken"] and "not_graded" in reasons["text"]
    assert all("film:size_assumed" in reasons[name] for name in ("both", "photograph"))


def test_a_film_of_one_side_has_one_row_and_a_film_of_both_has_two(tmp_path, weights):
    rng = np.random.default_rng(5)
    data = tmp_path / "films"
    data.mkdir()
    cv2.imwrite(str(data / "9001695L.png"), crop(rng))
    cv2.imwrite(str(data / "wide.png"), compose([(crop(rng), "right"), (crop(rng), "left")], rng).pixels)
    out = tmp_path / "knees.csv"
    infer("knee-xray", data, weights, out, device="cpu")
    with out.open(newline="") as file:
        found = [row["row_id"] for row in csv.DictReader(file)]
    assert found == ["9001695L_left", "wide_right", "wide_left"]
