"""Nested cross-validation: settings are chosen on inner folds, and the outer folds judge what was chosen, once.

For every outer fold the studies outside of it, its training part, are split by patient into inner folds. A trial is an
ordinary training on these inner folds, and its score the out-of-fold score there. The trial with the best inner score
is chosen. Only then is a net trained on the whole training part with the chosen setting, and scored on the outer fold.
So no score of an outer fold takes part in a choice (Varma and Simon, BMC Bioinformatics 7:91, 2006).

    OUT/search.json                  what is searched for, and how
    OUT/folds.csv                    the outer folds
    OUT/outer0/trial000/trial.json   a finished trial; beside it folds.csv, oof.csv and history/ of its inner folds
    OUT/outer0/default, chosen       the nets that are judged on outer fold 0, with judged.json

Nothing here needs Optuna or torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.imaging.files import atomic_write
from osteograde.learning import compare, settings, space
from osteograde.learning.compare import Comparison, OofTable
from osteograde.learning.folds import Split
from osteograde.learning.recipe import Recipe
from osteograde.learning.space import Dimension, Point
from osteograde.tasks.spec import Study, Task

SEARCH, TRIAL, JUDGED, RESULT = "search.json", "trial.json", "judged.json", "tune.json"
DEFAULT, CHOSEN = "default", "chosen"
DONE, PRUNED, REFUSED = "done", "pruned", "refused"  # states of a finished trial


@dataclass(frozen=True)
class Search:
    """What is searched for. recipe: as JSON data, with its scope. space: as ``space.plain`` has it. folds: the outer
    folds that are gone through. inner: how many inner folds each has. seed: of the trials. trials: of each outer
    fold."""

    task: str
    recipe: Mapping[str, Any]
    space: Mapping[str, Any]
    method: str
    prune: str
    trials: int
    folds: tuple[int, ...]
    inner: int
    seed: int

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The space as values."""
        return space.of_plain(self.space)


@dataclass(frozen=True)
class Trial:
    """A finished trial. score: on the inner folds; None where it was pruned or refused. why: what refused it. losses:
    held-out log loss of its nets by step, as pruning sees them. seconds: from its begin to its end, in all calls."""

    number: int
    point: Mapping[str, str]
    state: str
    score: float | None = None
    seconds: float = 0.0
    why: str = ""
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchJob:
    """A job of a search for the executors: one trial, or the judging of a setting on its outer fold."""

    key: str
    fold: int
    what: str
    number: int = 0
    after: tuple[str, ...] = ()


def jobs_of(search: Search) -> list[SearchJob]:
    """All jobs of a search. The outer fold judges after all of its trials; then the chosen setting is known."""
    made = []
    for k in search.folds:
        trials = [SearchJob(f"outer{k}/{trial_name(n)}", k, TRIAL, n) for n in range(search.trials)]
        waits = tuple(job.key for job in trials)
        default = SearchJob(f"outer{k}/{DEFAULT}", k, DEFAULT, after=waits)
        made += [*trials, default, SearchJob(f"outer{k}/{CHOSEN}", k, CHOSEN, after=(*waits, default.key))]
    return made


def trial_name(number: int) -> str:
    """The folder of a trial.

    >>> trial_name(7)
    'trial007'
    """
    return f"trial{number:03d}"


def finished(search: Search, out: Path) -> set[str]:
    """The keys of the jobs whose results are in the folder of a search."""
    return {job.key for job in jobs_of(search) if (out / job.key / (TRIAL if job.what == TRIAL else JUDGED)).is_file()}


def inner_studies(split: Split, studies: Sequence[Study], k: int) -> list[Study]:
    """The studies that trials of outer fold k may see: its training part, without any patient of that fold.

    ValueError where one of them is of a patient whom the outer fold holds out.
    """
    inner = split.training(studies, k)
    held_out = {study.patient for study in split.held_out(studies, k)}
    if seen := sorted({study.patient for study in inner} & held_out):
        raise ValueError(f"outer fold {k}: patients {seen[:5]} are held out and among the inner folds as well")
    return inner


def inner_recipe(recipe: Recipe, point: Point, inner: int) -> Recipe:
    """The recipe of a trial: with the point's settings, and inner folds in place of the outer ones. The studies are
    chosen already. Nothing is calibrated, since a net of one outer fold has no other fold to fit that on, and inner and
    outer scores are compared. UserError where the settings make no sense together."""
    made = _changed(recipe, point)
    return replace(made, calibrate=False, scope=replace(made.scope, folds=inner, patients=0))


def outer_recipe(recipe: Recipe, point: Point) -> Recipe:
    """The recipe of a net that an outer fold judges, not calibrated either."""
    made = _changed(recipe, point)
    return replace(made, calibrate=False, scope=replace(made.scope, patients=0))


def _changed(recipe: Recipe, point: Point) -> Recipe:
    made = settings.changed(recipe, space.settings_of(point))
    return replace(made, changes={**recipe.changes, **made.changes})


def begin(search: Search, out: Path) -> None:
    """Write what is searched for, if ``check_begun`` lets it."""
    check_begun(search, out)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / SEARCH, json.dumps(asdict(search), indent=1))


def check_begun(search: Search, out: Path) -> None:
    """Compare with the search that was begun in the folder, if any; nothing is written.

    More trials than before may be asked for until an outer fold has judged. UserError for any other difference, and
    for a folder of weights.
    """
    path, plain = out / SEARCH, json.loads(json.dumps(asdict(search)))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if odd := [name for name in plain if plain[name] != before.get(name) and name != "trials"]:
            where, then, now = _first_difference(odd[0], before.get(odd[0]), plain[odd[0]])
            raise UserError(
                f"{out}: a search with another {where} was begun here ({_brief(then)}, now {_brief(now)}); give the "
                "same options to go on, or another --out"
            )
        judged = any(path.is_file() for path in out.glob(f"outer*/*/{JUDGED}"))
        if plain["trials"] != before["trials"] and (judged or plain["trials"] < before["trials"]):
            why = "its outer folds have judged, and may do so once" if judged else "fewer make another search"
            raise UserError(
                f"{out}: a search of {before['trials']} trials was begun here, got --trials {search.trials}; "
                f"{why}: give the same number to go on, or another --out"
            )
    elif (out / "manifest.json").is_file():
        raise UserError(f"--out {out}: holds weights; name another folder for the search")


def _first_difference(name: str, then: Any, now: Any) -> tuple[str, Any, Any]:
    """Where two values of JSON data differ first, and what is there: the whole of a recipe is too long to read."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*now, *then]:
            if key != "changes" and then.get(key) != now.get(key):
                return _first_difference(
                    f"{name}: {key}" if ": " not in name else f"{name}.{key}", then.get(key), now.get(key)
                )
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now) == 1:
        return _first_difference(name, then[0], now[0])
    return name, then, now


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_search(out: Path) -> Search:
    """The search of a folder. UserError where none was begun there."""
    if not (out / SEARCH).is_file():
        raise UserError(f"{out}: no {SEARCH}, so no search was begun there")
    plain = json.loads((out / SEARCH).read_text(encoding="utf-8"))
    return Search(**{**plain, "folds": tuple(plain["folds"])})


def save_trial(trial: Trial, folder: Path) -> None:
    """Write a finished trial, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / TRIAL, json.dumps(asdict(trial), indent=1))


def trials_of(out: Path, k: int) -> list[Trial]:
    """The finished trials of an outer fold, in the order of their numbers."""
    paths = sorted((out / f"outer{k}").glob(f"trial*/{TRIAL}"))
    return sorted((Trial(**json.loads(path.read_text(encoding="utf-8"))) for path in paths), key=lambda one: one.number)


def best_of(trials: Sequence[Trial], *, higher: bool) -> Trial | None:
    """The trial with the best score on inner folds, the first of equals; None where no trial has a score."""
    scored = [trial for trial in trials if trial.score is not None]
    return min(scored, key=lambda one: (-one.score if higher else one.score, one.number), default=None)  # type: ignore[operator]


def best_so_far(trials: Sequence[Trial], *, higher: bool) -> list[float | None]:
    """The best inner score after every trial; None before the first one that has a score."""
    found = (best_of(trials[: i + 1], higher=higher) for i in range(len(trials)))
    return [None if one is None else one.score for one in found]


def outer_tables(out: Path, folds: Sequence[int], tasks: Mapping[str, Task]) -> tuple[OofTable, OofTable]:
    """What the nets of the default and of the chosen settings say of the studies of the outer folds that held them
    out: one table for each, of all outer folds together."""
    sides = []
    for name in (DEFAULT, CHOSEN):
        parts = [compare.read_out_of_fold(out / f"outer{k}" / name, tasks) for k in folds]
        probs = {study: rows for part in parts for study, rows in part.probs.items()}
        labels = {study: known for part in parts for study, known in part.labels.items()}
        sides.append(OofTable(name, parts[0].task, probs, labels, parts[0].patient, parts[0].fold))
    return sides[0], sides[1]


def result(search: Search, out: Path, task: Task, importances: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """All that is known of a search, as JSON data for the page: of every outer fold the trials, the chosen one, inner
    and outer scores, and the optimism (inner minus outer score of the chosen setting); and where all outer folds have
    judged the comparison with the default on all of their studies, paired by patient."""
    higher = "score" in task.metric.higher_is_better
    rows = [_fold_result(search, out, k, higher) | {"importances": dict(importances.get(k, {}))} for k in search.folds]
    made: dict[str, Any] = {
        "search": json.loads(json.dumps(asdict(search))),
        "better": "higher" if higher else "lower",
        "score": task.metric.words["score"],
        "folds": rows,
        "mean": {name: _mean([row[name] for row in rows]) for name in
                 ("inner", "inner_default", "outer", "outer_default", "optimism", "optimism_default")},
    }  # fmt: skip
    if all(row["outer"] is not None for row in rows):
        made["comparison"] = _compared(out, search.folds, task).plain()
    return made


def _compared(out: Path, folds: Sequence[int], task: Task) -> Comparison:
    return compare.compare_out_of_fold(task, outer_tables(out, folds, {task.name: task}))


def _fold_result(search: Search, out: Path, k: int, higher: bool) -> dict[str, Any]:
    trials = trials_of(out, k)
    best = best_of(trials, higher=higher)
    start = next((trial for trial in trials if trial.number == 0), None)
    has_start = search.method != "grid" and start is not None
    outer, outer_default = (judged_score(out / f"outer{k}" / name) for name in (CHOSEN, DEFAULT))
    inner = None if best is None else best.score
    inner_default = start.score if has_start and start is not None else None
    return {
        "fold": k,
        "trials": [asdict(trial) for trial in trials],
        "best_so_far": best_so_far(trials, higher=higher),
        "chosen": None if best is None else best.number,
        "inner": inner,
        "inner_default": inner_default,
        "outer": outer,
        "outer_default": outer_default,
        "optimism": _minus(inner, outer),
        "optimism_default": _minus(inner_default, outer_default),
    }


def judged_score(folder: Path) -> float | None:
    """The score of nets on their outer fold; None where they were not judged yet."""
    path = folder / JUDGED
    return json.loads(path.read_text(encoding="utf-8"))["score"] if path.is_file() else None


def save_judged(folder: Path, score: float | None, trial: int | None, seconds: float) -> None:
    """Write what an outer fold says of a setting: its score, once. trial: that was chosen; None for the default."""
    atomic_write(folder / JUDGED, json.dumps({"score": score, "trial": trial, "seconds": round(seconds, 1)}))


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else round(first - second, 5)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 5) if len(known) == len(values) and known else None


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The result for people: a line for every outer fold, their mean, and the comparison with the default."""
    yield f"{found['score']}; {found['better']} is better"
    head = "".join(f"{name:>10}" for name in ("inner", "outer", "optimism"))
    yield f"{'':<10}{'trials':>8}{'chosen':>8}{head}{'default: inner':>16}{'outer':>10}"
    for row in found["folds"]:
        yield _line(f"outer {row['fold']}", len(row["trials"]), row["chosen"], row)
    if len(found["folds"]) > 1:
        yield _line("mean", "", "", found["mean"])
    if "comparison" in found:
        part = found["comparison"]["parts"][compare.HEADLINE]
        low, high = (_text(end, "+") for end in part["interval_95"][0])
        yield (
            f"chosen minus default on the outer folds, {found['comparison']['patients']} patients: "
            f"{_text(part['differences'][0], '+')} (95 % interval {low} to {high})"
        )


def _line(name: str, trials: object, chosen: object, row: Mapping[str, float | None]) -> str:
    first = "".join(f"{_text(row[key], sign):>10}" for key, sign in (("inner", ""), ("outer", ""), ("optimism", "+")))
    other = f"{_text(row['inner_default']):>16}{_text(row['outer_default']):>10}"
    return f"{name:<10}{trials!s:>8}{'-' if chosen is None else chosen!s:>8}{first}{other}"


def _text(value: float | None, sign: str = "") -> str:
    return "-" if value is None else format(value, f"{sign}.4f")


def recommended(found: Mapping[str, Any]) -> list[str]:
    """The settings to train with in the end: of the outer fold whose chosen trial has the best score on inner folds.
    Outer scores have no part in it."""
    trials = [(row["inner"], row["trials"]) for row in found["folds"] if row["inner"] is not None]
    if not trials:
        return []
    pick = max if found["better"] == "higher" else min
    score, own = pick(trials, key=lambda one: one[0])
    return space.settings_of(next(trial["point"] for trial in own if trial["score"] == score))
