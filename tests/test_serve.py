"""The served predictor: the answers of a run over a folder, and priors in time whatever goes wrong with a study."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osteograde.grade_command import infer
from osteograde.inference import serve, submission
from osteograde.inference.serve import DEADLINE, FAILED, NO_STUDY, Predictor
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Serving, Study
from tests.tiny import random_bundle

TASK = TASKS["lumbar-mr"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> ensemble.Weights:
    return ensemble.verify(random_bundle(tmp_path_factory.mktemp("weights") / "random", pixels=(64, 64)))


@pytest.fixture(scope="module")
def data(phantoms) -> Path:
    return phantoms(TASK.name, test=2, seed=5)


def started(weights: ensemble.Weights, task=TASK, warm_up: tuple[Study, ...] = (), limit_s: float = 60.0) -> Predictor:
    predictor = Predictor(task, weights, torch.device("cpu"))
    predictor.start(warm_up, limit_s)
    return predictor


def probabilities(table) -> np.ndarray:
    return table[list(TASK.classes)].to_numpy()


def priors() -> np.ndarray:
    rows = submission.priors_rows(TASK, TASK.rows("any"))
    return submission.written(np.stack(list(rows.values())))


def studies_of(data: Path) -> list[Path]:
    return sorted((data / "test_images").iterdir())


@pytest.mark.slow
def test_answers_are_the_rows_of_a_run_over_the_same_studies(weights, data, tmp_path):
    predictor = started(weights, warm_up=tuple(TASK.read(data, "test")[:1]))
    for path in studies_of(data):
        infer(TASK.name, path, weights.folder, tmp_path / "submission.csv", device="cpu")
        wanted = submission.read_submission(tmp_path / "submission.csv")
        table = predictor(str(path))
        assert list(table.columns) == ["row_id", *TASK.classes]
        assert list(table["row_id"]) == TASK.rows(path.name)
        found = np.stack([wanted[row] for row in table["row_id"]])
        np.testing.assert_allclose(probabilities(table), found, atol=1e-8)
        assert not np.allclose(probabilities(table), priors(), atol=1e-3)
    assert predictor.calls == predictor.summary.studies == len(studies_of(data))


@pytest.mark.slow
def test_an_error_while_grading_costs_that_study_alone(weights, data, monkeypatch):
    predictor, (first, second) = started(weights), studies_of(data)
    with monkeypatch.context() as broken:
        broken.setattr(serve, "graded_chunks", lambda *_: 1 / 0)
        np.testing.assert_allclose(probabilities(predictor(str(first))), priors())
    assert not np.allclose(probabilities(predictor(str(second))), priors(), atol=1e-3)
    assert predictor.summary.faults[FAILED] == 1


@pytest.mark.slow
def test_a_study_that_takes_too_long_is_answered_with_priors_in_time(weights, data, monkeypatch):
    predictor = started(weights, replace(TASK, serving=Serving(study_s=1.0)))
    first, second = studies_of(data)
    predictor(str(first))
    woken = threading.Event()
    with monkeypatch.context() as slow:
        slow.setattr(serve, "graded_chunks", lambda *_: woken.wait(300) and [])
        begun = time.monotonic()
        np.testing.assert_allclose(probabilities(predictor(str(second))), priors())
        assert time.monotonic() - begun < 60  # of 300
    assert predictor.summary.faults[DEADLINE] == 1
    predictor.task = replace(TASK, serving=Serving(study_s=30.0))
    later = probabilities(predictor(str(second)))  # it does not wait for the thread that is late
    woken.set()
    assert not np.allclose(later, priors(), atol=1e-3)


@pytest.mark.parametrize("place", ["nowhere", "empty", ""])
def test_a_call_without_a_study_is_answered_with_the_priors_of_its_name(weights, tmp_path, place):
    (tmp_path / "empty").mkdir()
    predictor = started(weights)
    table = predictor(str(tmp_path / place)) if place else predictor()
    np.testing.assert_allclose(probabilities(table), priors())
    assert predictor.summary.faults[NO_STUDY] == 1


@pytest.mark.slow
def test_after_the_end_of_the_run_only_priors_are_returned(weights, data):
    predictor = started(weights)
    predictor.ends = time.monotonic() - 1
    np.testing.assert_allclose(probabilities(predictor(str(studies_of(data)[0]))), priors())
    assert predictor.summary.faults[DEADLINE] == 1


@pytest.mark.slow
def test_slow_nets_do_not_keep_the_kernel_from_serving_and_the_first_call_waits_for_them(weights, data, monkeypatch):
    load, ready = ensemble.load, threading.Event()
    monkeypatch.setattr(ensemble, "load", lambda *args: ready.wait(300) and load(*args))
    predictor = Predictor(replace(TASK, serving=Serving(study_s=0.5)), weights, torch.device("cpu"))
    begun = time.monotonic()
    predictor.start((), 0.2)
    assert time.monotonic() - begun < 60  # of 300
    threading.Timer(1.0, ready.set).start()
    assert not np.allclose(probabilities(predictor(str(studies_of(data)[0]))), priors(), atol=1e-3)


@pytest.mark.slow
def test_a_failing_warm_up_leaves_the_nets_ready(weights, data):
    predictor = started(weights, warm_up=(Study("none", "none", None),))  # type: ignore[arg-type]
    assert not np.allclose(probabilities(predictor(str(studies_of(data)[0]))), priors(), atol=1e-3)


def test_nets_that_cannot_be_loaded_end_the_kernel_before_it_serves(weights, monkeypatch):
    monkeypatch.setattr(ensemble, "load", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        started(weights)


def one_row(rows):
    """A table of one row, of the probability that a study has any severe finding at every level."""
    return {"severe": [max(float(probs[2]) for probs in rows.values())]}


@pytest.mark.slow
def test_a_task_may_find_its_studies_and_shape_its_table_itself(weights, data):
    asked = []

    def studies(path: str, side: str) -> list[Study]:
        asked.append(side)
        return TASK.read(data, "test")[:1]

    predictor = started(weights, replace(TASK, serving=Serving(studies=studies, table=one_row)))
    table = predictor("anything", "left")
    assert list(table.columns) == ["severe"]
    assert 0 < table["severe"].item() < 1
    assert asked == ["left"]


def test_a_host_without_the_expected_class_is_told_with_what_it_has(tmp_path):
    package = tmp_path / serve.PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rsna_inference_server.py").touch()
    with pytest.raises(Exception, match=r"no default_inference_server.*rsna_inference_server.*Serving.server"):
        serve.host_class(TASK, tmp_path)
