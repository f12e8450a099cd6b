"""Two sides are compared on the knees that both have graded, and a knee that is graded better counts for its side."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import film_grades

from osteograde.learning.compare import compare_out_of_fold
from osteograde.tasks.spec import Study


def sure_of(grade: int) -> np.ndarray:
    return np.where(np.arange(5) == grade, 0.8, 0.05)


def test_only_knees_that_both_sides_graded_are_compared():
    rng = np.random.default_rng(0)
    made = [
        Study(f"film{i}", f"p{i // 2}", (), labels={"right": int(rng.integers(5)), "left": int(rng.integers(5))})
        for i in range(40)
    ]
    right = {film.id: {side: 7 * sure_of(grade) for side, grade in film.labels.items()} for film in made}
    wrong = {film.id: {side: sure_of((grade + 2) % 5) for side, grade in film.labels.items()} for film in made}
    del wrong["film3"]["left"], wrong["film4"]["left"], wrong["film4"]["right"]
    both = film_grades.answers(("right", "wrong"), made, [right, wrong])
    assert "film4" not in both.studies and set(both.labels["film3"]) == {"right"}
    compared = compare_out_of_fold(both.task, both.sides(), resamples=50)
    accuracy = next(part for part in compared.parts if part.name == "accuracy")
    assert accuracy.values == (1, 0) and accuracy.intervals == ((-1, -1),)
    assert np.allclose(np.nansum(both.tables, -1)[~np.isnan(both.tables).all(-1)], 1)
