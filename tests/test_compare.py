"""Out-of-fold tables compared: what all share widens no interval, better means better, strangers are refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osteograde.errors import UserError
from osteograde.learning.compare import OofTable, compare_out_of_fold, read_out_of_fold
from osteograde.models.manifest import ENSEMBLE, Manifest, write_manifest
from osteograde.tasks import TASKS

TASK = TASKS["knee-xray"]
KNEES = 40


def said(name: str, share: float) -> OofTable:
    """40 patients with a right knee each; the nets put ``share`` on the truth of the first half and 0.9 on the rest."""
    rng, k = np.random.default_rng(0), len(TASK.classes)
    labels = rng.integers(k, size=KNEES)
    probs = {}
    for study, label in enumerate(labels):
        sure = share if study < KNEES // 2 else 0.9
        probs[f"s{study}"] = np.full((2, k), np.nan)
        probs[f"s{study}"][0] = (1 - sure) / (k - 1)
        probs[f"s{study}"][0, label] = sure
    return OofTable(
        name,
        TASK.name,
        probs,
        {f"s{i}": {"right": int(label)} for i, label in enumerate(labels)},
        {f"s{i}": f"p{i // 2}" for i in range(KNEES)},
        {f"s{i}": i // 2 % 2 for i in range(KNEES)},
    )


def folder_of(table: OofTable, folder: Path) -> Path:
    """A weights folder without nets that holds the table."""
    folder.mkdir(parents=True)
    write_manifest(folder, Manifest(TASK.name, files={}, pixels={}, test_views=1, prior={}))
    with (folder / "folds.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("study_id", "patient", "fold"), *((s, table.patient[s], table.fold[s]) for s in table.probs)]
        )
    with (folder / "oof.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row_id", *TASK.classes, "fold", "label"])
        for study, values in table.probs.items():
            writer.writerow([f"{study}_right", *values[0], table.fold[study], table.labels[study].get("right", "")])
    return folder


def part(compared, name):
    return next(one for one in compared.parts if one.name == name)


def test_the_same_answers_differ_by_exactly_nothing():
    compared = compare_out_of_fold(TASK, [said("a", 0.4), said("b", 0.4)], resamples=50)
    defined = [one for one in compared.parts if np.isfinite(one.values[0])]
    assert len(defined) > 10 and all(one.differences == (0,) and one.intervals == ((0, 0),) for one in defined)
    assert compared.headline.differences == (0,) and compared.headline.verdict(0) == "no difference shown"
    assert compared.notes == ()


def test_the_difference_and_its_interval_have_the_sign_of_what_is_better():
    compared = compare_out_of_fold(TASK, [said("a", 0.05), said("b", 0.8), said("c", 0.05)], resamples=200)
    accuracy, loss = part(compared, "accuracy"), part(compared, "log_loss")
    (low, high), unchanged = accuracy.intervals
    assert accuracy.differences == (0.5, 0) and 0.2 < low < 0.5 < high < 0.8 and unchanged == (0, 0)
    assert loss.intervals[0][1] < 0
    assert [one.verdict(0) for one in (accuracy, loss)] == ["better", "better"]
    backwards = compare_out_of_fold(TASK, [said("b", 0.8), said("a", 0.05)], resamples=200)
    assert [part(backwards, name).verdict(0) for name in ("accuracy", "log_loss")] == ["worse", "worse"]


def test_whole_patients_are_drawn():
    """Two studies of a patient say the same: with patients drawn the interval is wider than with studies drawn."""
    sides = [said("a", 0.05), said("b", 0.8)]
    alone = [replace(side, patient={study: study for study in side.patient}) for side in sides]
    widths = []
    for given in (sides, alone):
        low, high = part(compare_out_of_fold(TASK, given, resamples=2000), "accuracy").intervals[0]
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]


def test_only_rows_that_all_tables_have_are_compared_and_what_is_left_out_is_said():
    whole, part_of = said("whole", 0.4), said("part", 0.4)
    kept = list(part_of.probs)[5:]
    part_of = replace(part_of, probs={study: part_of.probs[study] for study in kept},
                      labels={study: part_of.labels[study] for study in kept})  # fmt: skip
    compared = compare_out_of_fold(TASK, [whole, part_of], resamples=20)
    assert (compared.studies, compared.rows) == (35, 35)
    assert compared.notes == ("5 of the 40 labelled rows of whole are not in all tables: left out",)


def test_other_folds_are_compared_and_said():
    other = said("other", 0.4)
    compared = compare_out_of_fold(
        TASK, [said("a", 0.4), replace(other, fold=dict.fromkeys(other.fold, 0))], resamples=9
    )
    assert len(compared.notes) == 1 and "other was trained on other folds than a (20 of 40" in compared.notes[0]
    assert compared.notes[0] in "\n".join(compared.lines())


def test_tables_that_learnt_from_other_data_are_refused():
    first, other = said("a", 0.4), said("b", 0.4)
    changed = {**other.labels, "s0": {"right": (other.labels["s0"]["right"] + 1) % 5}}
    with pytest.raises(UserError, match=r"other labels: 1 of 40 common rows differ, s0_right"):
        compare_out_of_fold(TASK, [first, replace(other, labels=changed)])
    with pytest.raises(UserError, match=r"1 studies are of other patients.*s0"):
        compare_out_of_fold(TASK, [first, replace(other, patient={**other.patient, "s0": "elsewhere"})])
    with pytest.raises(UserError, match="no labelled row is in all"):
        compare_out_of_fold(TASK, [first, replace(other, labels={}, probs={})])
    with pytest.raises(UserError, match=r"not weights of knee-xray: b \(spider\)"):
        compare_out_of_fold(TASK, [first, replace(other, task="spider")])
    with pytest.raises(UserError, match="two or more"):
        compare_out_of_fold(TASK, [first])


def test_a_folder_is_read_as_it_was_written(tmp_path):
    table = said("w", 0.4)
    table = replace(table, labels={**table.labels, "s3": {}})
    again = read_out_of_fold(folder_of(table, tmp_path / "w"), TASKS)
    assert (again.name, again.task, again.patient, again.fold) == ("w", TASK.name, table.patient, table.fold)
    assert again.labels == {study: given for study, given in table.labels.items() if given}
    for study, values in table.probs.items():
        np.testing.assert_array_equal(again.probs[study], values)


def test_of_an_ensemble_the_vote_is_compared(tmp_path):
    for name, share in (("a", 0.4), ("b", 0.8)):
        folder_of(said(name, share), tmp_path / "e" / name)
    members = [{"name": name, "folder": name, "manifest_sha256": ""} for name in "ab"]
    (tmp_path / "e" / ENSEMBLE).write_text(json.dumps({"task": TASK.name, "rule": "mean", "members": members}))
    voted = read_out_of_fold(tmp_path / "e", TASKS)
    first, second = said("a", 0.4), said("b", 0.8)
    np.testing.assert_allclose(voted.probs["s0"], (first.probs["s0"] + second.probs["s0"]) / 2)
    assert voted.labels == first.labels


def test_a_folder_without_answers_says_which_file_is_missing(tmp_path):
    folder = folder_of(said("w", 0.4), tmp_path / "w")
    (folder / "oof.csv").unlink()
    with pytest.raises(UserError, match=r"no oof\.csv"):
        read_out_of_fold(folder, TASKS)


def test_a_comparison_is_json_without_nan():
    plain = compare_out_of_fold(TASK, [said("a", 0.4), said("b", 0.8)], resamples=20).plain()
    assert json.loads(json.dumps(plain, allow_nan=False))["parts"]["log_loss"]["better"] == "lower"
