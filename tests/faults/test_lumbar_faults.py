"""Every fault of scans that the catalogue knows, through inference.py: no row lost, no other study touched, every
reason counted, and what can be repaired is as if nothing had happened."""

from __future__ import annotations

import math

import pytest

from osteograde.inference import submission
from osteograde.tasks import TASKS
from tests.faults.case import PRIOR, VALID
from tests.faults.files import FILES, TREE
from tests.faults.pixels import PIXELS
from tests.faults.runner import UNTOUCHED, build, grade, name_of, worst
from tests.faults.studies import PATIENT
from tests.faults.tags import TAGS

CASES = (*TREE, *FILES, *TAGS, *PIXELS)
NUMBER = {case.name: k for k, case in enumerate(CASES)}
TASK = TASKS["lumbar-mr"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(small_studies, tmp_path_factory):
    data, weights = small_studies
    folder = tmp_path_factory.mktemp("faults")
    clean, broken = build(folder, data / "test_images" / "a", CASES)
    return (
        grade("lumbar-mr", clean, weights, folder / "clean.csv"),
        grade("lumbar-mr", broken, weights, folder / "broken.csv"),
        broken,
    )


def test_names_are_told_once():
    assert len(NUMBER) == len(CASES)


def test_every_row_is_there_and_valid_and_the_run_ends_well(runs):
    clean, broken, data = runs
    assert clean.code == broken.code == 0
    assert submission.validate(broken.out, data / "sample_submission.csv") == []
    assert len(broken.cells) == len(CASES) + len(UNTOUCHED)


def test_untouched_studies_differ_in_no_byte(runs):
    clean, broken, _ = runs
    for name in UNTOUCHED:
        assert clean.cells[name] == broken.cells[name]
        assert clean.reasons.get(name) == broken.reasons.get(name)
    assert graded(clean.cells[UNTOUCHED[0]]) > 10


def graded(cells) -> int:
    """Rows that are not the prior."""
    priors = submission.written([TASK.prior[target] for target in TASK.targets])
    texts = {target: tuple(f"{p:.9f}" for p in row) for target, row in zip(TASK.targets, priors.tolist(), strict=True)}
    return sum(cells[target] != texts[target] for target in TASK.targets)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.fault}: {case.name}")
def test_a_fault_costs_what_it_must_and_is_counted(runs, case):
    _, broken, _ = runs
    name = name_of(NUMBER[case.name])
    cells, reasons = broken.cells[name], broken.reasons.get(name, {})
    told = {reason for reason in reasons if ":" in reason}
    assert told == set(case.codes), (told, case.codes)
    for code in case.codes:
        assert f"{code} x " in broken.said
    if case.like == PRIOR:
        assert graded(cells) == 0
    elif case.like == VALID:
        # Where the nets of this test see no spine at all, nothing is known of the levels: the prior, with a flag.
        assert graded(cells) > 0 or "levels_in_doubt" in reasons, reasons
    else:
        other = UNTOUCHED[0] if case.like == "healthy" else name_of(NUMBER[case.like])
        if case.near:
            assert worst(cells, broken.cells[other]) <= case.near
        else:
            assert cells == broken.cells[other], worst(cells, broken.cells[other])


def test_losses_are_seen_in_the_rows(runs):
    """The references that other cases are held against are not the healthy study."""
    _, broken, _ = runs
    references = {case.like for case in CASES} & set(NUMBER)
    for reference in references:
        assert worst(broken.cells[name_of(NUMBER[reference])], broken.cells[UNTOUCHED[0]]) > 1e-6


def test_no_log_and_no_table_names_a_patient(runs):
    for run in runs[:2]:
        written = "".join(path.read_text() for path in run.out.parent.glob(f"{run.out.stem}*.csv"))
        for secret in (*PATIENT.values(), "Doe", "Jane"):
            assert secret not in run.said and secret not in written
        assert math.isclose(sum(map(float, next(iter(run.cells[UNTOUCHED[0]].values())))), 1, abs_tol=1e-6)


def test_the_log_stays_short(runs):
    """A line per chunk and a few for the whole: not one per file, slice or study."""
    _, broken, _ = runs
    assert len(broken.said.splitlines()) < 20 + len(CASES) / 4
