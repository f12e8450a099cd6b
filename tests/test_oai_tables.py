"""OAI's tables are read in every form in which they lie about, and what cannot be told is missing, not guessed."""

import logging
import zipfile

import numpy as np
import pandas as pd
import pytest

from osteograde.errors import UserError
from osteograde.tasks import oai_progression, oai_tables
from osteograde.tasks.oai_progression import GradeRise, JointSpaceLoss, build
from osteograde.tasks.oai_tables import find_tables, of_knees, pick


def put(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def widths(visit, *rows):
    """A table of widths of a visit; rows (ID, SIDE, width)."""
    lines = [f"ID|SIDE|READPRJ|V{visit}MCMJSW", *("|".join([row[0], row[1], "15", row[2]]) for row in rows)]
    return "\n".join(lines) + "\n"


def grades(visit, *rows):
    lines = [f"ID|SIDE|READPRJ|V{visit}XRKL", *("|".join([row[0], row[1], "15", row[2]]) for row in rows)]
    return "\n".join(lines) + "\n"


# Reading


def test_tables_are_found_loose_and_in_archives_whatever_their_case(tmp_path):
    put(tmp_path, "a/KXR_SQ_BU00.txt", "ID|SIDE|V00XRKL\n1|1: Right|2\n")
    with zipfile.ZipFile(tmp_path / "General.zip", "w") as archive:
        archive.writestr("General_ASCII/Enrollees.TXT", "id|p02sex\n1|2: Female\n")
    tables = find_tables(tmp_path)
    assert sorted(table.name for table in tables) == ["enrollees", "kxr_sq_bu00"]
    frame = oai_tables.read(pick(tables, "enrollees"))
    assert frame.to_dict("records") == [{"ID": "1", "P02SEX": "2: Female"}]


def test_columns_count_in_any_case_and_cells_may_carry_labels(tmp_path):
    put(tmp_path, "t.txt", "id|Side|v00xrkl\n9000099|1: Right|2: minimal\n9000099|2: Left|.: Missing Form\n")
    found = of_knees(pick(find_tables(tmp_path), "t"), ["V00XRKL"])
    assert found.loc[("9000099", 1), "V00XRKL"] == 2
    assert np.isnan(found.loc[("9000099", 2), "V00XRKL"])


def test_of_several_readings_of_a_knee_the_preferred_project_counts(tmp_path):
    put(tmp_path, "t.txt", "ID|SIDE|READPRJ|V00XRKL\n1|1|42|0\n1|1|37: x|1\n1|1|15: y|2\n2|1|99|3\n2|1|42|4\n")
    found = of_knees(pick(find_tables(tmp_path), "t"), ["V00XRKL"])["V00XRKL"]
    assert found.to_dict() == {("1", 1): 2.0, ("2", 1): 4.0}


def test_a_reading_without_a_value_gives_way_to_one_that_has_it(tmp_path):
    put(tmp_path, "t.txt", "ID|SIDE|READPRJ|V00XRKL\n1|1|15|.A\n1|1|37|3\n")
    assert of_knees(pick(find_tables(tmp_path), "t"), ["V00XRKL"])["V00XRKL"].tolist() == [3.0]


def test_sas_tables_say_the_same_as_text(tmp_path, monkeypatch):
    (tmp_path / "kxr_sq_bu00.sas7bdat").write_bytes(b"sas")
    frame = pd.DataFrame({"id": [9000099.0, 9000100.0], "SIDE": [1.0, 2.0], "v00xrkl": [2.0, np.nan]})
    monkeypatch.setattr(pd, "read_sas", lambda data, **options: frame)
    found = of_knees(pick(find_tables(tmp_path), "kxr_sq_bu00"), ["V00XRKL"])["V00XRKL"]
    assert found.loc[("9000099", 1)] == 2 and np.isnan(found.loc[("9000100", 2)])


def test_a_file_that_is_no_sas_table_is_named(tmp_path):
    (tmp_path / "kxr_sq_bu00.sas7bdat").write_bytes(b"no table at all" * 100)
    with pytest.raises(UserError, match=r"kxr_sq_bu00\.sas7bdat: not a SAS table"):
        oai_tables.read(pick(find_tables(tmp_path), "kxr_sq_bu00"))


def test_a_broken_archive_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_tables(tmp_path / "nowhere")
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"x\.zip: not a zip archive"):
        find_tables(tmp_path)


def test_rows_without_a_side_are_counted_and_not_used(tmp_path, caplog):
    put(tmp_path, "t.txt", "ID|SIDE|V00XRKL\n1|3|2\n1|.|2\n1|2|1\n")
    with caplog.at_level(logging.WARNING, logger="osteograde.tasks"):
        assert len(of_knees(pick(find_tables(tmp_path), "t"), ["V00XRKL"])) == 1
    assert "2 rows name no side" in caplog.text


# Joint space loss


@pytest.fixture
def films(tmp_path):
    """Widths at baseline and after 48 months of seven knees, one for each fate."""
    rows = [("1", "1", "4.00"), ("1", "2", "4.00"), ("2", "1", "0.60"), ("3", "1", "4.10"), ("3", "2", "."),
            ("4", "1", "3.00")]  # fmt: skip
    put(tmp_path, "kxr_qjsw_duryea00.txt", widths("00", *rows))
    later = [("1", "1", "3.30"), ("1", "2", "3.31"), ("2", "1", "0.00"), ("3", "2", "3.9"), ("5", "1", "2.0")]
    put(tmp_path, "kxr_qjsw_duryea06.txt", widths("06", *later))
    return tmp_path


def flow_of(labelled):
    return {what.strip(): count for what, count in labelled.flow}


def test_a_loss_of_exactly_the_threshold_is_progression(films):
    rows = build(films, JointSpaceLoss()).rows
    assert rows[["patient", "side", "progressed"]].to_numpy().tolist() == [["1", "L", 0], ["1", "R", 1]]


def test_knees_without_a_second_film_are_left_out_and_never_stable(films):
    labelled = build(films, JointSpaceLoss())
    flow = flow_of(labelled)
    assert flow["left out: no width at month 48"] == 2
    assert not set(labelled.rows["patient"]) & {"3", "4", "5"}


def test_knees_with_nothing_to_lose_are_left_out_and_counted(films):
    assert flow_of(build(films, JointSpaceLoss()))["left out: baseline width below 0.7 mm, which cannot be lost"] == 1


def test_the_flow_accounts_for_every_knee(films):
    flow = flow_of(build(films, JointSpaceLoss()))
    left_out = sum(count for what, count in flow.items() if what.startswith("left out"))
    labelled = flow["labelled as progressed"] + flow["labelled as stable"]
    assert flow["knees in the tables of baseline or of month 48 (V00MCMJSW to V06MCMJSW)"] == left_out + labelled


def test_threshold_horizon_and_place_are_choices(films):
    assert build(films, JointSpaceLoss(loss_mm=0.69)).rows["progressed"].sum() == 2
    put(films, "kxr_qjsw_duryea03.txt", "ID|SIDE|V03JSW250\n1|1|2.0\n")
    put(films, "kxr_qjsw_duryea00.txt", "ID|SIDE|V00JSW250\n1|1|2.6\n")
    rows = build(films, JointSpaceLoss(months=24, loss_mm=0.5, location="250")).rows
    assert rows[["patient", "side", "progressed"]].to_numpy().tolist() == [["1", "R", 1]]
    assert JointSpaceLoss(location="800").column(48) == "V06LJSW800"


@pytest.mark.parametrize("wrong", [{"months": 18}, {"loss_mm": 0.0}, {"location": "123"}])
def test_choices_that_oai_cannot_answer_are_refused(wrong):
    with pytest.raises(UserError):
        JointSpaceLoss(**wrong)


def test_a_missing_table_is_named_with_what_is_there(tmp_path):
    put(tmp_path, "kxr_qjsw_duryea00.txt", widths("00", ("1", "1", "4")))
    with pytest.raises(UserError, match=r"no table kxr_qjsw_duryea06.*found kxr_qjsw_duryea00"):
        build(tmp_path, JointSpaceLoss())


# Rise of the grade


def test_a_rise_counts_by_when_it_came_and_from_where(tmp_path):
    rows = {
        "00": [("1", "1", "2"), ("2", "1", "0"), ("3", "1", "0"), ("4", "1", "1"), ("5", "1", "4"), ("6", "1", "2")],
        "06": [("1", "1", "3"), ("2", "1", "1"), ("4", "1", "1"), ("6", "1", "2")],
        "10": [("1", "1", "3"), ("2", "1", "1"), ("3", "1", "2"), ("4", "1", "1")],
    }
    for visit, table in rows.items():
        put(tmp_path, f"kxr_sq_bu{visit}.txt", grades(visit, *table))
    labelled = build(tmp_path, GradeRise())
    assert dict(zip(labelled.rows["patient"], labelled.rows["progressor"], strict=True)) == {
        "1": 1, "2": 0, "3": 2, "4": 0,
    }  # fmt: skip
    flow = flow_of(labelled)
    assert flow["left out: no rise, and not seen for 84 months"] == 1  # knee 6
    assert flow["left out: grade 4 or replaced at baseline, which cannot rise"] == 1  # knee 5


def test_a_replacement_is_progression_and_an_earlier_one_is_left_out(tmp_path):
    put(tmp_path, "kxr_sq_bu00.txt", grades("00", ("1", "1", "3"), ("1", "2", "3"), ("2", "1", "2")))
    put(tmp_path, "kxr_sq_bu10.txt", grades("10", ("2", "1", "2")))
    put(tmp_path, "Outcomes99.txt", "id|V99ERKDAYS|V99ERKBLRP|V99ELKDAYS|V99ELKBLRP\n1|900|0: No|.|1: Yes\n")
    rows = build(tmp_path, GradeRise()).rows
    assert rows[["patient", "side", "progressor"]].to_numpy().tolist() == [["1", "R", 1], ["2", "R", 0]]


# Covariates


def test_covariates_are_those_of_baseline_and_of_the_own_side(films):
    put(films, "AllClinical00.txt", "ID|P01BMI|P01INJR|P01INJL|V00AGE\n1|27.44|1: Yes|0: No|61\n")
    put(films, "Enrollees.txt", "ID|P02SEX\n1|2: Female\n")
    put(films, "kxr_sq_bu00.txt", grades("00", ("1", "1", "2"), ("1", "2", "1")))
    put(films, "kxr_sq_bu06.txt", grades("06", ("1", "1", "4"), ("1", "2", "4")))
    rows = build(films, JointSpaceLoss()).rows.set_index("side")
    assert rows.loc["R", ["kl", "age", "sex", "bmi", "injury"]].tolist() == ["2", "61", "female", "27.4", "yes"]
    assert rows.loc["L", ["kl", "injury", "alignment"]].tolist() == ["1", "no", ""]


# Phantoms of these tables


def test_the_phantom_tables_have_the_quirks_of_the_real_ones(tmp_path):
    from osteograde.phantom import progression_dataset

    patients = [progression_dataset.patient(np.random.default_rng(i), 9_000_000 + i) for i in range(120)]
    progression_dataset.write_tables(tmp_path, patients, np.random.default_rng(0))
    names = [path.name for path in tmp_path.rglob("*")]
    assert {"KXR_SQ_BU03.TXT", "kxr_sq_bu00.txt"} <= {*names} and list(tmp_path.rglob("*.zip"))
    text = next(tmp_path.rglob("kxr_qjsw_duryea06.txt")).read_text()
    assert text.startswith("id|side|readprj") and "1: Right" in text and "|42|" in text
    truth = {(one.id, "RL"[i]): knee for one in patients for i, knee in enumerate(one.knees)}
    labelled = build(tmp_path, JointSpaceLoss())
    said = {(row.patient, row.side): row.progressed for row in labelled.rows.itertuples()}
    assert said == {
        key: int(knee.progresses)
        for key, knee in truth.items()
        if knee.width_mm[0] >= 0.7 and np.isfinite(knee.width_mm[48])
    }
    assert len(said) < len(truth)
    assert 0.1 < labelled.rows["progressed"].mean() < 0.6


def test_targets_print_the_flow_and_write_the_labels(films, capsys):
    from osteograde import cli

    out = films / "labels.csv"
    assert cli.main(["targets", "knee-progression", "--tables", str(films), "--out", str(out)]) == 0
    assert "left out: no width at month 48" in capsys.readouterr().out
    assert out.read_text().splitlines()[0] == ",".join(oai_progression.COLUMNS)


def test_targets_refuse_what_a_definition_does_not_use(films):
    from osteograde import cli

    with pytest.raises(UserError, match=r"of --definition jsl"):
        cli.main(["targets", "knee-progression", "--tables", str(films), "--out", "x.csv", "--definition", "kl",
                  "--loss", "1"])  # fmt: skip
