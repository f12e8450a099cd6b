"""Intervals by resampling: whole patients are drawn, and knees of one person are not two persons."""

import numpy as np
import pytest

from osteograde.report.score_table import score_submission
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import groups_of, interval

KNEES = TASKS["knee-xray"]


def mean_of(values):
    """The mean of the drawn studies, as a function of counts."""
    return lambda counts: counts @ values / counts.sum(1)


def physically(values, patients, n, rng):
    """Slow and obvious: draw patients by name, put all of their studies into a bag, average the bag."""
    names = list(dict.fromkeys(patients))
    studies_of = {name: [v for v, p in zip(values, patients, strict=True) if p == name] for name in names}
    means = []
    for _ in range(n):
        bag = [value for name in rng.choice(names, size=len(names)) for value in studies_of[name]]
        means.append(sum(bag) / len(bag))
    return np.quantile(means, [0.025, 0.975])


def test_drawing_groups_equals_putting_whole_patients_into_a_bag():
    rng = np.random.default_rng(0)
    patients = [f"p{i}" for i in rng.integers(30, size=80)]
    values = rng.normal(size=80)
    ends = interval(mean_of(values), 80, 20000, np.random.default_rng(1), groups=groups_of(patients))
    assert np.allclose(np.array(ends).ravel(), physically(values, patients, 20000, np.random.default_rng(2)), atol=0.01)


def test_patients_of_one_study_each_are_drawn_as_studies_are():
    values = np.random.default_rng(3).normal(size=50)
    ends = interval(mean_of(values), 50, 400, np.random.default_rng(4))
    grouped = interval(
        mean_of(values), 50, 400, np.random.default_rng(4), groups=groups_of([str(i) for i in range(50)])
    )
    assert np.array_equal(ends, grouped)


def test_pairs_that_agree_widen_the_interval_by_the_root_of_two():
    values = np.repeat(np.random.default_rng(5).normal(size=300), 2)
    low, high = interval(mean_of(values), 600, 4000, np.random.default_rng(6))
    wide_low, wide_high = interval(mean_of(values), 600, 4000, np.random.default_rng(6), groups=np.arange(600) // 2)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(np.sqrt(2), rel=0.05)


def test_every_study_of_a_drawn_patient_counts_as_often_as_the_patient():
    seen = []

    def note(counts):
        seen.append(counts)
        return counts[:, 0]

    interval(note, 5, 300, np.random.default_rng(7), groups=np.array([0, 1, 0, 2, 1]))
    counts = np.concatenate(seen)
    assert np.array_equal(counts[:, 0], counts[:, 2])
    assert np.array_equal(counts[:, 1], counts[:, 4])
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()  # as many patients as there are


@pytest.mark.parametrize("groups", [[0, 2, 2], [0, 1], [1, 1, 1]])
def test_groups_that_do_not_number_the_patients_are_refused(groups):
    with pytest.raises(ValueError, match="without a gap"):
        interval(mean_of(np.zeros(3)), 3, 5, np.random.default_rng(0), groups=np.array(groups))


def test_both_knees_of_a_person_are_drawn_together_when_a_submission_is_scored(tmp_path):
    """Two knees that are graded alike are one observation: as wide as half as many studies, not as all of them."""
    ends = {}
    for name, sides in (("pairs", "LR"), ("single", "L")):
        folder = tmp_path / name
        folder.mkdir()
        truth, rows = ["row_id,grade"], ["row_id," + ",".join(KNEES.classes)]
        for person in range(200):
            grade, said = np.random.default_rng(person).integers(5, size=2)
            for side in sides:
                row = f"{9000000 + person}{side}_{'left' if side == 'L' else 'right'}"
                truth.append(f"{row},{grade}")
                rows.append(row + "," + ",".join("0.6" if k == said else "0.1" for k in range(5)))
        (folder / "train.csv").write_text("\n".join(truth) + "\n")
        (folder / "s.csv").write_text("\n".join(rows) + "\n")
        result = score_submission(KNEES, folder, folder / "s.csv", 1000, np.random.default_rng(9))
        ends[name] = result["interval"]["accuracy"], result["confusion_interval"][0][0]
    assert ends["pairs"][0] == pytest.approx(ends["single"][0], abs=1e-12)
    assert ends["pairs"][1] == pytest.approx([2 * end for end in ends["single"][1]])


def test_a_task_without_a_rule_takes_every_study_as_a_patient():
    assert TASKS["lumbar-mr"].patient_of("4003253") == "4003253"
    assert KNEES.patient_of("9003175L") == KNEES.patient_of("9003175R") == "9003175"
