"""Calibrated answers: honest probabilities, and no label has a part in its own answer."""

from types import SimpleNamespace

import numpy as np
import pytest

from osteograde.pipeline import calibration
from osteograde.pipeline.calibration import cross_fitted
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study


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
    made = calibration.fit_calibration(said, labels, (1.0,) * 5)
    np.testing.assert_allclose(np.diag(made.mix), 2.5, rtol=0.15)
    assert log_loss(made(said), labels) < log_loss(said, labels) - 0.1
    assert log_loss(made(said), labels) == pytest.approx(log_loss(truth, labels), abs=0.02)
    np.testing.assert_allclose(made(said).sum(1), 1)


def test_a_calibration_survives_the_manifest():
    made = calibration.Calibration(((1.2, -0.1), (0.3, 0.8)), (0.1, -0.1))
    assert calibration.calibration_from_manifest(made.plain()) == made


def test_a_manifest_with_a_temperature_is_still_read():
    probs = np.array([[0.2, 0.3, 0.5]])
    sharpened = np.exp(np.log(probs) / 0.5 + [0.1, 0.0, -0.1])
    made = calibration.calibration_from_manifest({"temperature": 0.5, "bias": [0.1, 0.0, -0.1]})
    np.testing.assert_allclose(made(probs), sharpened / sharpened.sum())


def test_two_classes_that_a_net_swaps_are_told_apart_again():
    """A temperature and biases cannot do that."""
    truth, labels, _ = softened(np.random.default_rng(3), 4000)
    swapped = truth[:, [0, 2, 1, 3, 4]]
    made = calibration.fit_calibration(swapped, labels, (1.0,) * 5)
    assert log_loss(made(swapped), labels) < log_loss(truth, labels) + 0.05
    assert log_loss(swapped, labels) > log_loss(truth, labels) + 0.5


def test_the_gradient_is_that_of_the_loss(monkeypatch):
    _, labels, said = softened(np.random.default_rng(4), 300)
    asked = []
    monkeypatch.setattr("scipy.optimize.minimize", lambda loss, x, **_: asked.append(loss) or SimpleNamespace(x=x))
    calibration.fit_calibration(said, labels, (1.0, 1.0, 2.0, 1.0, 4.0))
    place = np.random.default_rng(5).normal(0, 0.3, 31)
    _, slope = asked[0](place)
    steps = np.eye(31) * 1e-6
    numeric = [(asked[0](place + step)[0] - asked[0](place - step)[0]) / 2e-6 for step in steps]
    np.testing.assert_allclose(slope, numeric, atol=1e-7)


def graded_studies(rng, n):
    task = TASKS["knee-xray"]
    _, labels, said = softened(rng, n)
    studies = [Study(f"s{i}", f"p{i}", (), {"right": int(label)}, targets=("right",)) for i, label in enumerate(labels)]
    folds = {study.id: i % 5 for i, study in enumerate(studies)}
    return task, studies, folds, {study.id: {"right": row} for study, row in zip(studies, said, strict=True)}


def test_changing_the_labels_of_a_fold_leaves_its_own_answers_as_they_are():
    task, studies, folds, graded = graded_studies(np.random.default_rng(1), 500)
    before, shipped = cross_fitted(task, studies, folds, graded)
    turned = [
        Study(s.id, s.patient, (), {"right": 4 - s.labels["right"]} if folds[s.id] == 2 else s.labels) for s in studies
    ]
    after, other = cross_fitted(task, turned, folds, graded)
    for study in studies:
        same = np.array_equal(before[study.id]["right"], after[study.id]["right"])
        assert same == (folds[study.id] == 2)
    assert shipped != other


def test_one_fold_alone_is_not_calibrated():
    task, studies, _, graded = graded_studies(np.random.default_rng(2), 50)
    answers, shipped = cross_fitted(task, studies, {study.id: 0 for study in studies}, graded)
    assert shipped == {}
    assert all(np.array_equal(answers[s.id]["right"], graded[s.id]["right"]) for s in studies)
