"""Calibrated answers: honest probabilities, and no label has a part in its own answer."""

import numpy as np
import pytest

from osteograde.inference import calibration
from osteograde.learning.calibrate import calibrated
from osteograde.tasks import TASKS
from osteograde.tasks.contract import Study


def softened(rng, n, temperature=2.5):
    """True posteriors, labels drawn from them, and the posteriors as a net with soft targets would say them."""
    truth = rng.dirichlet(np.full(5, 0.4), n)
    labels = np.array([rng.choice(5, p=row) for row in truth])
    said = truth ** (1 / temperature)
    return truth, labels, said / said.sum(1, keepdims=True)


def log_loss(probs, labels):
    return -np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-9)).mean()


def test_softened_answers_are_sharpened_back():
    truth, labels, said = softened(np.random.default_rng(0), 6000)
    made = calibration.fit(said, labels, (1.0,) * 5)
    assert made.temperature == pytest.approx(1 / 2.5, rel=0.1)
    assert log_loss(made(said), labels) < log_loss(said, labels) - 0.1
    assert log_loss(made(said), labels) == pytest.approx(log_loss(truth, labels), abs=0.02)
    np.testing.assert_allclose(made(said).sum(1), 1)


def test_a_calibration_survives_the_manifest():
    made = calibration.Calibration(0.7, (0.1, -0.2, 0.0, 0.05, 0.05))
    assert calibration.read(made.plain()) == made


def graded_studies(rng, n):
    task = TASKS["knee-xray"]
    _, labels, said = softened(rng, n)
    studies = [Study(f"s{i}", f"p{i}", (), {"right": int(label)}, targets=("right",)) for i, label in enumerate(labels)]
    folds = {study.id: i % 5 for i, study in enumerate(studies)}
    return task, studies, folds, {study.id: {"right": row} for study, row in zip(studies, said, strict=True)}


def test_changing_the_labels_of_a_fold_leaves_its_own_answers_as_they_are():
    task, studies, folds, graded = graded_studies(np.random.default_rng(1), 500)
    before, shipped = calibrated(task, studies, folds, graded)
    turned = [
        Study(s.id, s.patient, (), {"right": 4 - s.labels["right"]} if folds[s.id] == 2 else s.labels) for s in studies
    ]
    after, other = calibrated(task, turned, folds, graded)
    for study in studies:
        same = np.array_equal(before[study.id]["right"], after[study.id]["right"])
        assert same == (folds[study.id] == 2)
    assert shipped != other


def test_one_fold_alone_is_not_calibrated():
    task, studies, _, graded = graded_studies(np.random.default_rng(2), 50)
    answers, shipped = calibrated(task, studies, {study.id: 0 for study in studies}, graded)
    assert shipped == {}
    assert all(np.array_equal(answers[s.id]["right"], graded[s.id]["right"]) for s in studies)
