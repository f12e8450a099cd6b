"""Images that show something else than the task grades: flagged row by row, counted, and the task itself is doubted."""

from collections import Counter

import numpy as np
import pytest

from osteograde.imaging.geometry import Volume
from osteograde.inference.submission import NOTHING_FOUND, Result, RunningSubmission, summary_lines
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Point, Study

TASK = TASKS["spider"]


def result(study, confidence=None, graded=TASK.targets, readable=True):
    volume = Volume(np.ones((1, 2, 2), np.uint8), np.eye(4))
    loaded = Loaded(study, {"t2": (volume,) if readable else ()}, Counter())
    names = {name for group in TASK.graders for site in group.sites for name in site.landmarks}
    points = {name: Point(np.zeros(3), confidence) for name in names} if confidence is not None else {}
    size = len(TASK.classes) + max(len(group.heads) for group in TASK.graders)
    return Result(loaded, points, {target: np.eye(size)[0] for target in graded})


def run_of(tmp_path, *results):
    sheet = RunningSubmission(TASK, TASK.prior, [one.loaded.study for one in results], tmp_path / "out.csv")
    for one in results:
        sheet.add(one)
    return sheet


@pytest.mark.parametrize(("confidence", "graded"), [(0.1, TASK.targets), (None, ()), (0.9, ())])
def test_a_study_of_which_no_row_is_graded_with_confidence_is_flagged_and_not_counted_as_graded(
    tmp_path, confidence, graded
):
    seen, other = Study("seen", "a", ()), Study("other", "b", ())
    sheet = run_of(tmp_path, result(seen, 0.9), result(other, confidence, graded))
    flagged = {row for row, reason, _ in sheet.summary.flags if reason == NOTHING_FOUND}
    assert flagged == {*TASK.rows("other")} and sheet.summary.faults[NOTHING_FOUND] == 1
    assert "1 of 2 studies graded (0 unreadable, 1 with nothing found)" in "\n".join(summary_lines(sheet.summary, 2))


def test_one_row_in_sight_is_enough_and_unreadable_studies_are_counted_as_such(tmp_path):
    partly = result(Study("partly", "a", ()), 0.9, TASK.targets[:1])
    lost = result(Study("lost", "b", ()), None, (), readable=False)
    sheet = run_of(tmp_path, partly, lost)
    assert not sheet.summary.faults[NOTHING_FOUND]


def test_many_studies_with_nothing_found_make_the_task_doubtful(tmp_path):
    results = [result(Study(str(i), str(i), ()), 0.1 if i < 3 else 0.9) for i in range(5)]
    assert "3 of 5 readable studies" in summary_lines(run_of(tmp_path, *results).summary, 5)[-1]
    partly = [result(Study(str(i), str(i), ()), 0.9, TASK.targets[:1]) for i in range(2)]
    assert "8 of 10 rows hold the class prior" in summary_lines(run_of(tmp_path, *partly).summary, 2)[-1]
    few = summary_lines(run_of(tmp_path, *results[2:]).summary, 3)
    assert not any("warning" in line for line in few)
