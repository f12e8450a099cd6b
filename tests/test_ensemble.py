"""Choosing an ensemble: what is chosen is the best of all, and what is reported was not chosen by itself."""

import csv
import json
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from osteograde import cli
from osteograde.learning import ensemble, folds
from osteograde.models import bundle
from osteograde.models.manifest import Manifest, TrainedFolds, read_manifest, write_manifest
from osteograde.pipeline import ensemble as voting_members
from osteograde.pipeline import voting
from osteograde.report import page
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.spec import Study

KNEES = TASKS["knee-xray"]
FOLDS = 3
PEOPLE = 40


def studies_of(people: int = PEOPLE) -> list[Study]:
    """Both knees of each person; the grades of a person are alike."""
    rng = np.random.default_rng(11)
    found = []
    for person in range(people):
        for code, side in (("R", "right"), ("L", "left")):
            grade = int(np.clip(person % 5 + rng.integers(-1, 2), 0, 4))
            found.append(Study(f"{9000000 + person}{code}", str(9000000 + person), (), {side: grade}, targets=(side,)))
    return found


STUDIES = studies_of()
TASK = replace(KNEES, read=lambda root, part: STUDIES)


def said_of(study: Study, noise: float, rng: np.random.Generator) -> np.ndarray:
    """(K,) probabilities around the true grade: the noisier the worse."""
    (label,) = study.labels.values()
    row = np.exp(-((np.arange(5) - label - rng.normal(0, noise)) ** 2)) + 0.02
    return row / row.sum()


def member(folder: Path, seed: int, noise: float, split: folds.Split, studies=None) -> Path:
    """A weights folder as training leaves it, but for its nets."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    folds.save(split, folder / "folds.csv")
    with (folder / "oof.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row_id", *KNEES.classes, "fold", "label"])
        for study in STUDIES if studies is None else studies:
            values = [f"{value:.6f}" for value in said_of(study, noise, rng)]
            row, label = KNEES.rows(study.id, study.targets)[0], next(iter(study.labels.values()))
            writer.writerow([row, *values, split.fold[study.id], label])
    known = TrainedFolds(sha256=folds.digest(folder / "folds.csv"))
    write_manifest(folder, Manifest("knee-xray", {}, {}, 1, {}, folds=known))
    return folder


@pytest.fixture(scope="module")
def split() -> folds.Split:
    return folds.assign(TASK, STUDIES, FOLDS, seed=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, split) -> list[Path]:
    root = tmp_path_factory.mktemp("weights")
    return [member(root / f"m{i}", i, noise, split) for i, noise in enumerate((0.9, 1.0, 1.4))]


@pytest.fixture(scope="module")
def answers(folders) -> ensemble.OofTables:
    return ensemble.gather(TASK, folders, Path("data"))


@pytest.fixture(scope="module")
def worth(answers) -> np.ndarray:
    return np.array([ensemble._scores(answers, choice) for choice in ensemble.choices(3)])


def slow_score(answers, numbers, rule, keep) -> float:
    """The kappa of one choice on some of the studies, every row voted on by itself."""
    labels, probs = {}, {}
    for s, study in enumerate(answers.studies):
        if keep[s]:
            labels[study] = answers.labels[study]
            probs[study] = np.full((2, 5), np.nan)
            for t in range(2):
                rows = answers.tables[list(numbers), s, t]
                if np.isfinite(rows).all():
                    probs[study][t] = voting.vote(rows[:, None], rule)[1][0]
    return KNEES.metric.score(labels, probs)["score"]


def test_the_choice_is_the_best_of_every_subset_and_rule(folders, answers, tmp_path):
    result = ensemble.choose(TASK, folders, Path("data"), bootstrap=20)
    assert result["choices"] == 3 + 3 * 4
    everything = np.ones(len(STUDIES), bool)
    scores = {c: slow_score(answers, c.members, c.rule, everything) for c in ensemble.choices(3)}
    best = max(scores.values())
    chosen = ensemble.Choice(tuple(int(m["name"][1:]) for m in result["members"]), result["rule"])
    assert result["naive"]["score"] == pytest.approx(scores[chosen], abs=1e-12)
    assert scores[chosen] == pytest.approx(best, abs=1e-11)
    assert result["singles"]["m0"]["score"] == pytest.approx(scores[ensemble.Choice((0,), "mean")])
    assert json.loads((folders[0].parent / "ensemble.json").read_text()) == json.loads(json.dumps(result))
    assert result["members"][0]["folder"] == result["members"][0]["name"]  # beside ensemble.json


@pytest.mark.parametrize("rule", voting.RULES)
def test_inference_votes_on_the_same_probabilities_as_the_choice_did(folders, answers, rule):
    """What ``osteograde ensemble`` scored is what the weights folder that it wrote answers."""
    choice = ensemble.Choice((0, 1, 2), rule)
    expected = ensemble.voted(answers, choice)
    manifest = read_manifest(folders[0])
    member = bundle.Bundle(KNEES, replace(manifest, prior=KNEES.prior), {}, {}, torch.device("cpu"))
    voters = voting_members.Ensemble(KNEES, rule, (member,) * 3, KNEES.prior)
    for s in range(len(answers.studies)):
        seen = [t for t in range(2) if np.isfinite(expected[s, t]).all()]
        said = [{KNEES.targets[t]: table[s, t] for t in seen} for table in answers.tables]
        graded = voting_members.voted(voters, said)
        assert set(graded) == {KNEES.targets[t] for t in seen}
        for t in seen:
            assert np.abs(graded[KNEES.targets[t]] - expected[s, t]).max() < 1e-12


def test_the_report_of_an_ensemble_votes_on_the_tables_and_shows_the_nested_score(folders, answers, tmp_path):
    result = ensemble.choose(TASK, folders, Path("data"), bootstrap=20)
    said = {**result, "rule": "mix", "members": [ensemble._named(answers, folders, i) for i in range(3)]}
    (folders[0].parent / "ensemble.json").write_text(json.dumps(said))
    evidence = page.write(folders[0].parent, tmp_path / "r.html", TASKS, data=None, made=datetime(2026, 1, 1))
    expected = ensemble.voted(answers, ensemble.Choice((0, 1, 2), "mix"))
    for i, (study, target) in enumerate(zip(evidence.graded.studies, evidence.graded.targets, strict=True)):
        place = answers.studies.index(study), KNEES.targets.index(target)
        assert evidence.graded.probs[i] == pytest.approx(expected[place], abs=1e-12)
    text = (tmp_path / "r.html").read_text()
    assert "mix of m0, m1, m2" in text
    assert f"{result['nested']['score']:.4f}" in text and "chosen, nested" in text


def test_the_nested_score_answers_each_fold_by_what_is_best_on_the_others(answers, worth):
    tried = list(ensemble.choices(3))
    said, best = ensemble.nested(answers, tried, worth)
    for k in range(FOLDS):
        others = answers.fold != k
        scores = [slow_score(answers, c.members, c.rule, others) for c in tried]
        assert slow_score(answers, best[k].members, best[k].rule, others) == pytest.approx(max(scores), abs=1e-11)
        assert np.array_equal(said[~others], ensemble.voted(answers, best[k])[~others], equal_nan=True)


def test_what_a_fold_says_has_no_part_in_the_choice_that_answers_for_it(answers, worth):
    tried = list(ensemble.choices(3))
    rng = np.random.default_rng(0)
    before = ensemble.nested(answers, tried, worth)[1]
    for k in range(FOLDS):
        tables = answers.tables.copy()
        held = np.flatnonzero(answers.fold == k)
        tables[:, held] = np.where(
            np.isfinite(tables[:, held]), rng.dirichlet(np.ones(5), size=(3, len(held), 2)), np.nan
        )
        scrambled = replace(answers, tables=tables)
        changed = np.array([ensemble._scores(scrambled, c) for c in tried])
        assert ensemble.nested(scrambled, tried, changed)[1][k] == before[k]


def test_the_best_of_many_equals_looks_better_than_it_is(tmp_path, split):
    """Members that are equally good by construction: the naive score is not below the nested one, on average above."""
    gaps = []
    for draw in range(4):
        same = [member(tmp_path / f"{draw}" / f"m{i}", 100 * draw + i, 1.5, split) for i in range(3)]
        result = ensemble.choose(TASK, same, Path("data"), bootstrap=5)
        gaps.append(result["naive"]["score"] - result["nested"]["score"])
    assert np.mean(gaps) > 0.005


def test_where_less_is_better_the_least_is_chosen(folders):
    at = KNEES.metric.parts.index("mae")

    class OnlyMae(OrdinalMetric):
        higher_is_better = frozenset()

        def bootstrap_statistic(self, labels, probs):
            parts = super().bootstrap_statistic(labels, probs)
            return lambda counts: parts(counts)[:, [at]]

    task = replace(TASK, metric=OnlyMae(KNEES.targets, tuple("01234")))
    result = ensemble.choose(task, folders, Path("data"), bootstrap=5)
    assert result["better"] == "lower"
    assert result["naive"]["score"] <= min(one["score"] for one in result["singles"].values())


def test_of_equally_good_choices_the_simplest_is_taken(tmp_path, split):
    twins = [member(tmp_path / f"m{i}", 5, 1.0, split) for i in range(3)]
    result = ensemble.choose(TASK, twins, Path("data"), bootstrap=5)
    assert ([m["name"] for m in result["members"]], result["rule"]) == (["m0"], "mean")
    assert result["nested_minus_single"]["score"] == 0
    assert result["nested_minus_single"]["interval_95"] == [0, 0]


def test_the_worths_of_the_members_are_the_gain_of_the_choice_over_the_class_shares(answers, worth):
    tried = list(ensemble.choices(3))
    shares = ensemble.class_shares(answers)
    nothing = float(ensemble._statistic(answers, shares)(np.ones((1, len(answers.studies))))[0])
    for choice, row in zip(tried, worth, strict=True):
        found = ensemble.worths(answers, choice, tried, worth)
        assert sum(found) == pytest.approx(row[0] - nothing, abs=1e-9)
    alone = tried.index(ensemble.Choice((2,), "mean"))
    assert ensemble.worths(answers, tried[alone], tried, worth) == [pytest.approx(worth[alone][0] - nothing)]
    best, _, noisy = ensemble.worths(answers, ensemble.Choice((0, 1, 2), "mean"), tried, worth)
    assert best > noisy  # their answers lie around the truth with 0.9 and 1.4 classes of noise


def test_members_that_know_the_same_share_what_they_are_worth(tmp_path, split):
    pair = [member(tmp_path / f"m{i}", 5, 1.0, split) for i in range(2)]
    other = member(tmp_path / "other", 6, 1.4, split)
    same = ensemble.gather(TASK, [*pair, other], Path("data"))
    tried = list(ensemble.choices(3))
    scores = np.array([ensemble._scores(same, choice) for choice in tried])
    first, second, _ = ensemble.worths(same, ensemble.Choice((0, 1, 2), "mean"), tried, scores)
    assert first == pytest.approx(second)
    assert first > 0


def test_what_is_written_of_the_members_is_read_again(folders):
    result = ensemble.choose(TASK, folders, Path("data"), bootstrap=5)
    said = voting_members.read_ensemble(folders[0].parent)
    assert [one.worth for one in said.members] == [one["worth"] for one in result["members"]]


def test_a_score_that_is_not_defined_of_a_subset_counts_as_the_answer_that_knows_nothing(answers, worth):
    tried = list(ensemble.choices(3))
    undefined = worth.copy()
    undefined[tried.index(ensemble.Choice((2,), "mean"))] = -np.inf
    found = ensemble.worths(answers, ensemble.Choice((0, 1, 2), "mean"), tried, undefined)
    assert np.isfinite(found).all()
    assert found[2] < ensemble.worths(answers, ensemble.Choice((0, 1, 2), "mean"), tried, worth)[2]


def test_intervals_draw_whole_patients(answers):
    assert answers.group.max() + 1 == PEOPLE
    patients = [study[:-1] for study in answers.studies]
    assert all(
        (answers.group[i] == answers.group[j]) == (patients[i] == patients[j]) for i in range(8) for j in range(80)
    )


def changed_folds(folder: Path, split) -> None:
    folds.save(split, folder / "folds.csv")
    known = TrainedFolds(sha256=folds.digest(folder / "folds.csv"))
    write_manifest(folder, replace(read_manifest(folder), folds=known))


def test_members_of_other_folds_are_refused(tmp_path, folders):
    other = member(tmp_path / "other", 0, 1.0, folds.assign(TASK, STUDIES, FOLDS, seed=5))
    with pytest.raises(ValueError, match=r"other: not trained on the folds of .*m0 .*--folds-of .*m0"):
        ensemble.gather(TASK, [*folders, other], Path("data"))


def test_folds_changed_after_training_are_refused(tmp_path, split):
    changed = member(tmp_path / "a", 0, 1.0, split)
    folds.save(folds.assign(TASK, STUDIES, FOLDS, seed=5), changed / "folds.csv")
    with pytest.raises(ValueError, match="changed after training"):
        ensemble.gather(TASK, [changed, member(tmp_path / "b", 1, 1.0, split)], Path("data"))


def test_answers_that_do_not_follow_the_folds_are_refused(tmp_path, split):
    pair = [member(tmp_path / name, 0, 1.0, split) for name in "ab"]
    for folder in pair:
        changed_folds(folder, folds.assign(TASK, STUDIES, FOLDS, seed=5))
    with pytest.raises(ValueError, match="whose fold is not that"):
        ensemble.gather(TASK, pair, Path("data"))


def test_what_cannot_be_compared_is_refused(tmp_path, split, folders):
    fewer = member(tmp_path / "fewer", 0, 1.0, split, STUDIES[:-2])
    with pytest.raises(ValueError, match="2 studies differ from"):
        ensemble.gather(TASK, [folders[0], fewer], Path("data"))
    with pytest.raises(ValueError, match="1 members; an ensemble is chosen from 2 to 10"):
        ensemble.gather(TASK, folders[:1], Path("data"))
    with pytest.raises(ValueError, match="two members are called m0"):
        ensemble.gather(TASK, [folders[0], folders[0]], Path("data"))
    with pytest.raises(ValueError, match="weights are of task 'knee-xray', asked for 'lumbar-mr'"):
        ensemble.gather(TASKS["lumbar-mr"], folders, Path("data"))
    with pytest.raises(ValueError, match="wrong folder"):
        ensemble.gather(replace(TASK, read=lambda root, part: STUDIES[:1]), folders, Path("data"))
    (fewer / "oof.csv").unlink()
    with pytest.raises(ValueError, match=r"fewer: no oof.csv"):
        ensemble.gather(TASK, [folders[0], fewer], Path("data"))


def test_the_command_prints_a_table_or_with_json_one_line_alone(tmp_path, folders, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("osteograde"), "handlers", [])  # as in a new process
    for study in STUDIES:
        grade = tmp_path / "data" / str(next(iter(study.labels.values())))
        grade.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(grade / f"{study.id}.png"), np.zeros((8, 8), np.uint8))
    words = ["ensemble", "knee-xray", "--data", str(tmp_path / "data"), "--members", *map(str, folders[:2])]
    assert cli.run(lambda: cli.main([*words, "--json"])) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert cli.run(lambda: cli.main(words)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"2 members, {len(STUDIES)} studies, 5 choices of members and rule" in lines
    assert any(line.startswith("chosen, nested") for line in lines)
    low, high = result["nested"]["interval_95"]
    assert low < result["nested"]["score"] < high
