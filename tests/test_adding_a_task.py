"""The worked example of docs/adding-a-task.md is true: it is read, trained and used for inference as it is printed."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from osteograde import tasks
from osteograde.inference import run
from osteograde.inference.submission import read_submission
from osteograde.learning import train

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding-a-task.md"


def example() -> dict:
    """The names that the page's code defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    return names


def write_pictures(root: Path, count: int) -> None:
    """Two bright bars, the joint in the middle of the gap between them; the gap is 20, 10 or 2 pixels wide."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        grade, (x, y) = i % 3, rng.integers(90, 166, 2)
        picture = rng.integers(10, 40, (256, 256)).astype(np.uint8)
        half = (10, 5, 1)[grade]
        picture[y - half - 40 : y - half, x - 30 : x + 30] = 200
        picture[y + half : y + half + 40, x - 30 : x + 30] = 200
        cv2.imwrite(str(root / "images" / f"p{i:02d}.png"), picture)
        rows.append((f"p{i:02d}.png", x, y, grade))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "x", "y", "grade"), *rows])


def test_the_page_is_short():
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S))
    assert len(code.splitlines()) < 150


def test_the_example_reads_its_data(tmp_path):
    write_pictures(tmp_path, 6)
    studies = example()["TASK"].read(tmp_path, "train")
    assert [study.labels for study in studies] == [{"gap": i % 3} for i in range(6)]
    assert all(study.marks for study in studies)


@pytest.mark.slow
def test_the_example_trains_and_grades(tmp_path, monkeypatch):
    names = example()
    write_pictures(tmp_path / "data", 24)
    recipe = names["hip_gap"]()
    recipe = replace(recipe, scope=replace(recipe.scope, folds=2))
    scores = train.train(
        recipe, tmp_path / "data", tmp_path / "w", only=None, device=torch.device("cpu"), resume=False
    )  # fmt: skip
    assert scores["locate"]["joint"]["median_mm"] < 10  # of a field of 256 mm
    assert scores["grade"]["model"]["accuracy"] > scores["grade"]["prior"]["accuracy"]
    monkeypatch.setitem(tasks.TASKS, "hip-gap", names["TASK"])
    monkeypatch.setattr(tasks, "NAMES", (*tasks.NAMES, "hip-gap"))
    job = run.prepare("hip-gap", tmp_path / "data", tmp_path / "w", device="cpu")
    with run.grading(job, run.start(job, tmp_path / "submission.csv")) as chunks:
        graded = [result.graded for chunk in chunks for result in chunk.results]
    assert all("gap" in targets for targets in graded)
    assert set(read_submission(tmp_path / "submission.csv")) == {f"p{i:02d}_gap" for i in range(24)}
