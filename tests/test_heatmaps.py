"""inference.py --explain: a picture per graded site, and a submission that does not change."""

from pathlib import Path

import cv2
import pytest

import inference
from osteograde import phantom
from osteograde.report import heatmaps
from osteograde.tasks import TASKS
from tests.tiny import random_bundle


@pytest.mark.slow
@pytest.mark.parametrize(("task", "recipe"), [("lumbar-mr", "lumbar-mr-small"), ("spider", "spider")])
def test_every_graded_site_gets_a_picture_and_the_submission_stays_the_same(tmp_path, task, recipe):
    """Also where a grader answers findings behind its grades, as that of spider does."""
    data, weights = tmp_path / "data", random_bundle(tmp_path / "weights", recipe, folds=2, pixels=(64, 32))
    phantom.write(task, data, studies=0, test=1, seed=51)
    words = [task, "--data", str(data), "--weights", str(weights), "--device", "cpu", "--max-unread", "9"]
    plain, drawn, folder = tmp_path / "plain.csv", tmp_path / "drawn.csv", tmp_path / "pictures"
    assert inference.main([*words, "--out", str(plain)]) == 0
    options = ["--explain", str(folder), "--overlays", str(tmp_path / "overlays")]
    assert inference.main([*words, "--out", str(drawn), *options]) == 0
    assert plain.read_bytes() == drawn.read_bytes()
    study = TASKS[task].read(data, "test")[0].id
    drawn = {path.name for path in (tmp_path / "overlays").iterdir()}
    assert drawn - {"slices"} == {f"{study}.jpg", "index.html"}
    names = {path.name for path in folder.iterdir()}
    assert names and names <= {f"{study}_{target}.png" for target in TASKS[task].targets}
    for path in folder.iterdir():
        image = cv2.imread(str(path))
        rows = (image.shape[0] - heatmaps.TITLE - heatmaps.BAR * len(TASKS[task].classes)) / (heatmaps.HEIGHT + 4)
        assert rows in (1, 2) and image.shape[1] >= 3 * heatmaps.HEIGHT * 0.5
        assert image.std() > 5


def test_the_folder_is_made_before_the_first_study(tmp_path: Path):
    heatmaps.heatmap_drawer(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
