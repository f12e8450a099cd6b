"""A search without images: studies that are names, and a training that answers at once, as a test says."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from osteograde.learning import folds, nested, search, space
from osteograde.learning.nested import Search
from osteograde.learning.recipe import Recipe
from osteograde.learning.recipes import RECIPES
from osteograde.tasks.spec import Study

LR, LOSS = "grade.kl.training.lr", "grade.kl.loss"
SPACE = {LR: (1e-4, 1e-2, "log"), LOSS: ["classes", "ordinal"]}
RECIPE = replace(RECIPES["knee-xray"](), scope=replace(RECIPES["knee-xray"]().scope, folds=3))


def knees(patients: int = 24) -> list[Study]:
    """Two studies of each patient, with a grade."""
    return [
        Study(f"{9000000 + i}{side}", f"{9000000 + i}", (), labels={RECIPE.task.targets["RL".index(side)]: i % 5})
        for i in range(patients)
        for side in "LR"
    ]


def search_of(**more: Any) -> Search:
    dims = space.parsed(SPACE, RECIPE, "space")
    plain = space.plain(dims)
    made = Search("knee-xray", {"name": "knee-xray"}, plain, "tpe", "none", trials=4, folds=(0, 1), inner=2, seed=0)
    return replace(made, **more)


@dataclass(frozen=True)
class Call:
    """What a training was asked for."""

    folder: str
    lr: float
    loss: str
    patients: frozenset[str]
    folds: int
    only: tuple[int, ...] | None


Score = Callable[[Call], float]


@dataclass
class Trainings:
    """Takes the place of ``train.train``: notes what it is asked for, writes folds and answers with a score.

    losses: held-out log losses that are told of each grader's net in turn, by learning rate, where a run is judged.
    stop: the folder at whose begin the process is interrupted, once.
    """

    out: Path
    score: Score
    losses: Callable[[float], Sequence[float]] = lambda lr: ()
    stop: str = ""
    calls: list[Call] = field(default_factory=list)

    def __call__(self, recipe: Recipe, data: Path, out: Path, **options: Any) -> Mapping[str, Any]:
        plan, only = recipe.graders["kl"][0], options["only"]
        studies = options["studies"]
        call = Call(str(out.relative_to(self.out)), plan.training.lr, plan.loss,
                    frozenset(study.patient for study in studies), recipe.scope.folds,
                    None if only is None else tuple(only))  # fmt: skip
        self.calls.append(call)
        if call.folder == self.stop:
            self.stop = ""
            raise KeyboardInterrupt
        if (judge := options.get("judge")) is not None:
            for i, loss in enumerate(self.losses(call.lr)):
                judge("grade-kl-0", i + 1, loss)
        if not (out / folds.FILE).is_file():
            folds.save(folds.assign(recipe.task, studies, recipe.scope.folds, recipe.scope.seed), out / folds.FILE)
        return {"grade": {"model": {"score": self.score(call)}}}


def session(
    out: Path, trainings: Trainings, monkeypatch: Any, made: Search, studies: Sequence[Study]
) -> search.Session:
    """A session of a search in a folder, whose trainings are these."""
    monkeypatch.setattr(search.train, "train", trainings)
    search.begin(made, RECIPE, studies, out)
    return search.Session(made, RECIPE, studies, out / "data", out, torch.device("cpu"))


def do_all(one: search.Session) -> None:
    """All jobs that are not done, in their order."""
    done = nested.finished(one.search, one.out)
    for job in nested.jobs_of(one.search):
        if job.key not in done:
            one.do(job.key)


def write_oof(folder: Path, rows: Mapping[str, Sequence[float]], labels: Mapping[str, int], fold: int) -> None:
    """An oof.csv of knees: study -> probabilities of five grades."""
    with (folder / "oof.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row_id", *RECIPE.task.classes, "fold", "label"])
        for study, values in rows.items():
            right, left = RECIPE.task.rows(study)
            writer.writerow([right if study.endswith("R") else left, *values, fold, labels[study]])
