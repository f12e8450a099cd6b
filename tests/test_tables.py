"""Tables as people save them: encodings, separators, short rows, numbers, repeated and contradictory rows."""

import numpy as np
import pandas as pd
import pytest

from osteograde.tasks import TASKS, tables

TEXT = "row_id,grade,note\na_right,2,Jos\u00e9\nb_left,0,\n"
EXPECTED = [["row_id", "grade", "note"], ["a_right", "2", "Jos\u00e9"], ["b_left", "0", ""]]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
)
def test_a_table_is_read_however_it_was_saved(tmp_path, encoding, separator, ends):
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.replace(",", separator).replace("\n", ends).encode(encoding))
    assert [cells for _, cells in tables.cells_of(path)] == EXPECTED


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\n'])
def test_the_line_that_spreadsheets_write_above_names_the_separator(tmp_path, first):
    path = tmp_path / "t.csv"
    path.write_text(first + "row_id;grade\na,b;2\n")
    assert tables.cells_of(path) == [(2, ["row_id", "grade"]), (3, ["a,b", "2"])]


def test_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('row_id,grade\n\n"two\nlines",1\n\na,2\na,3\n')
    assert [number for number, _ in tables.cells_of(path)] == [1, 3, 6, 7]
    with pytest.raises(ValueError, match=r"line 6, 7: rows contradict each other about a"):
        tables.row_grades(path, "0123")


def test_quotes_that_never_end_swallow_no_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('row_id,grade\na,"2\nb,1\n')
    with pytest.raises(ValueError, match="line 2: not a table"):
        tables.cells_of(path)


@pytest.mark.parametrize("cell", ["2", "2.0", " 2 ", "2.", '"2"', '"2,0"'])
def test_a_whole_number_is_a_grade_however_it_is_written(tmp_path, cell):
    path = tmp_path / "t.csv"
    path.write_text(f"row_id,grade\nx_right,{cell}\n")
    assert tables.row_grades(path, "01234") == [(2, "x_right", "2")]


@pytest.mark.parametrize("cell", ["2.5", "5", "-1", "two", "1e0"])
def test_what_is_no_grade_is_refused_with_its_line(tmp_path, cell):
    path = tmp_path / "t.csv"
    path.write_text(f"row_id,grade\ny_left,1\nx_right,{cell}\n")
    with pytest.raises(ValueError, match="line 3: unknown grade"):
        tables.row_grades(path, "01234")


def test_identical_rows_are_counted_and_contradictory_ones_refused(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "t.csv"
    path.write_text("row_id,grade\na_right,2\nb_left,1\na_right,2\na_right,2.0\n")
    assert [row for _, row, _ in tables.row_grades(path, "012")] == ["a_right", "b_left"]
    assert "1 rows repeat another word for word: counted once (line 4)" in caplog.text
    path.write_text("row_id,grade\na_right,2\nb_left,1\na_right,1\n")
    with pytest.raises(ValueError, match="line 2, 4: rows contradict each other about a_right; keep one"):
        tables.row_grades(path, "012")


@pytest.mark.parametrize(("row", "said"), [("a_right", "line 3: fewer cells"), ("a_right,1,7", "line 3: more cells")])
def test_rows_of_another_width_are_refused_with_their_line(tmp_path, row, said):
    path = tmp_path / "t.csv"
    path.write_text(f"row_id,grade\nb_left,1\n{row}\n")
    with pytest.raises(ValueError, match=said):
        tables.row_grades(path, "012")


@pytest.mark.parametrize("task", ["knee-xray", "spider"])
def test_truth_tables_of_all_tasks_go_through_the_same_reader(tmp_path, task):
    target = TASKS[task].targets[0]
    path = tmp_path / "t.csv"
    path.write_text(f"Row_ID;Grade\nx_{target};2,0\n", encoding="utf-16")
    assert set(TASKS[task].read_labels(path)["x"]) == {target}


def test_ids_match_folders_in_spite_of_leading_zeros_and_decimals():
    assert tables.matched(["7", "8.0", "12", "x"], ["007", "8", "12", "0012", "y"]) == {"7": "007", "8.0": "8"}
    assert tables.matched(["5"], ["05", "005"]) == {}  # which one is meant nobody knows


def test_links_that_lead_to_themselves_are_no_folders_and_no_files(tmp_path):
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert tables.subfolders(tmp_path) == [] and tables.count_files(tmp_path) == 0
    assert not tables.has_files(tmp_path) and not tables.has_files(tmp_path / "ring")


def test_decimal_commas_are_numbers():
    np.testing.assert_array_equal(tables.numbers(pd.Series(["0,5", "1.5", "1,2,3", ""])), [0.5, 1.5, np.nan, np.nan])


@pytest.mark.parametrize("task", sorted(TASKS))
def test_no_target_ends_in_another_so_that_different_studies_never_share_a_row(task):
    targets = TASKS[task].targets
    assert not [(a, b) for a in targets for b in targets if a != b and b.endswith(f"_{a}")]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "truth.csv").write_text("row_id,grade,Grade\na,2,3\n")
    with pytest.raises(ValueError, match="line 1: column grade stands there twice"):
        tables.row_grades(tmp_path / "truth.csv", ("2", "3"))
