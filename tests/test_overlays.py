"""The table of an overlay: a row is red where its worst grade is the likeliest one, whatever its findings say."""

import numpy as np
import pytest
import torch

from osteograde.inference.submission import Result
from osteograde.models.bundle import Bundle
from osteograde.models.manifest import Manifest
from osteograde.pipeline.load import Loaded
from osteograde.report import overlays
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study

SPIDER = TASKS["spider"]
WORST, MILD = [0.05, 0.05, 0.1, 0.2, 0.6], [0.6, 0.2, 0.1, 0.05, 0.05]
BULGING, FLAT = [0.3, 0.99], [0.3, 0.01]  # probabilities of narrowing and of bulging


def table(graded: dict[str, list[float]]) -> np.ndarray:
    """The picture of a study without images: the table alone. Rows that are not graded hold the task's prior."""
    manifest = Manifest(SPIDER.name, files={}, pixels={"pfirrmann": 64}, test_views=1, prior=SPIDER.prior)
    bundle = Bundle(SPIDER, manifest, {}, {}, torch.device("cpu"))
    answers = {target: np.array(values) for target, values in graded.items()}
    return overlays.picture(Result(Loaded(Study("s", "s", ()), {}), {}, answers), bundle)


def red_rows(image: np.ndarray) -> set[str]:
    """Targets whose line of text is red."""
    assert len(image) == overlays.HEIGHT  # one row of panels: the table alone
    blue, red = image[..., 0].astype(int), image[..., 2].astype(int)
    lines = np.flatnonzero((red > blue + 60).any(1))  # pixel rows
    step = (overlays.HEIGHT - 24) / len(SPIDER.targets)
    return {SPIDER.targets[int((line - 14) // step)] for line in lines}  # text stands above its baseline


def test_rows_are_red_by_their_grade_and_never_by_a_finding():
    answers = [WORST + FLAT, WORST + BULGING, MILD + FLAT, MILD + BULGING, [0.3, 0.3, 0.2, 0.1, 0.1, 0.9, 0.2]]
    image = table(dict(zip(SPIDER.targets, answers, strict=True)))
    assert red_rows(image) == set(SPIDER.targets[:2])


@pytest.mark.parametrize("target", SPIDER.targets)
def test_a_row_on_the_prior_is_grey_even_where_the_worst_grade_is_the_commonest(target):
    graded = {one: MILD + BULGING for one in SPIDER.targets if one != target}
    assert red_rows(table(graded)) == set()
