"""bench/pseudo_labels.py: three of four patients lose their labels, and nobody else changes."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from pseudo_labels import hidden, measures, small_recipe

from osteograde.tasks.spec import Study


def test_patients_lose_their_labels_as_a_whole():
    studies = [Study(f"s{i}", f"p{i // 2}", (), {"right": i % 5}) for i in range(80)]
    left = hidden(studies, 0)
    kept = {study.patient for study in left if study.labels}
    assert len(kept) == 10
    assert all(bool(study.labels) == (study.patient in kept) for study in left)
    assert [(a.id, a.patient) for a in left] == [(b.id, b.patient) for b in studies]


def test_the_recipe_trains_no_locator_and_no_films():
    recipe = small_recipe(0)
    assert recipe.locators["joint"].training.epochs == 0
    assert recipe.synthetic is None and not recipe.graders["kl"][0].synthetic_epochs


def test_measures_are_of_each_knee():
    found = measures(np.array([[0.5, 0.3, 0.2, 0, 0], [0, 0, 0, 0, 1.0]]), np.array([0, 2]))
    assert found["accuracy"].tolist() == [1, 0]
    assert found["mean absolute error"].tolist() == [0, 2]
    np.testing.assert_allclose(found["log loss"], [-np.log(0.5), -np.log(1e-6)])
