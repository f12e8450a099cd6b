"""``inspect`` of images and labels of one's own: the folder defines the task, and what contradicts it is said first."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osteograde import cli
from osteograde.errors import UserError
from osteograde.models.bundle import write_manifest
from osteograde.models.manifest import Manifest
from osteograde.report import data_census as census
from osteograde.report.data_survey import as_shown, gather
from osteograde.tasks import TASKS


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve pictures of three classes whose names would end a page."""
    images, rng = tmp_path / "data" / "images", np.random.default_rng(0)
    images.mkdir(parents=True)
    names = ("<b>cyst</b>", "a/b & c", "ü")
    lines = ["image,label"]
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (24, 32), np.uint8)).save(images / f"p{i:02d}.png")
        lines.append(f"p{i:02d}.png,{names[i % 3]}")
    (images.parent / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return images.parent


def answered(folder: Path) -> Path:
    """A weights folder without nets, with out-of-fold answers for every image of the folder."""
    weights = folder.parent / "weights"
    weights.mkdir()
    task = TASKS["table"].for_data(folder)
    studies = task.read(folder, "train")
    prior = {target: tuple(map(float, values)) for target, values in task.prior.items()}
    write_manifest(weights, Manifest("table", {}, {"label": 32}, 1, prior, definition=task.definition))
    (weights / "folds.csv").write_text(
        "study_id,patient,fold\n" + "".join(f"{study.id},{study.patient},{i % 2}\n" for i, study in enumerate(studies))
    )
    rows = [f"{study.id},0.2,0.3,0.5,{i % 2},{study.labels['']}\n" for i, study in enumerate(studies)]
    (weights / "oof.csv").write_text("row_id,<b>cyst</b>,a/b & c,ü,fold,label\n" + "".join(rows), encoding="utf-8")
    return weights


def inspected(folder: Path, capsys, *options: str) -> dict:
    out = folder.parent / "page.html"
    assert cli.main(["inspect", "table", "--data", str(folder), "--out", str(out), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])  # other tests of the process may have asked for logs


def test_labels_are_counted_by_the_classes_of_the_folder(folder, capsys):
    found = inspected(folder, capsys)
    counted = next(table for table in found["tables"] if table["name"] == "labels by site and class")
    assert counted["columns"] == ["site", "<b>cyst</b>", "a/b & c", "ü", "all"]
    assert counted["rows"] == [["", 4, 4, 4, 12]]
    page = (folder.parent / "page.html").read_text(encoding="utf-8")
    assert "<b>cyst" not in page and "&lt;b&gt;cyst" in page


def test_a_table_that_training_refuses_is_the_first_thing_to_look_at(folder, capsys):
    table = folder / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8") + "\np00.png,ü\n", encoding="utf-8")
    first = next(fact for fact in inspected(folder, capsys)["facts"] if fact["fault"] and fact["count"])
    assert first["what"] == census.REFUSED and "line 2 and 14" in first["examples"]


def test_labels_are_held_against_out_of_fold_answers_of_the_same_folder(folder, capsys):
    weights = answered(folder)
    found = inspected(folder, capsys, "--oof", str(weights))
    rows = next(table for table in found["tables"] if table["name"] == "likeliest label errors")["rows"]
    assert len(rows) == 12 and {row[3] for row in rows} == {"<b>cyst</b>", "a/b & c", "ü"}


def test_answers_for_other_data_are_refused_before_images_are_read(folder, capsys):
    weights = answered(folder)
    for path in (folder / "images").glob("*.png"):
        path.rename(path.with_name(f"other_{path.name}"))
    table = folder / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("\np", "\nother_p"), encoding="utf-8")
    with pytest.raises(UserError, match=r"none of the 12 labelled studies .* names p00, p01, p02"):
        inspected(folder, capsys, "--oof", str(weights))


def test_a_folder_that_defines_nothing_keeps_the_task_and_tells_why_once(folder, caplog):
    (folder / "labels.csv").write_text("image,grade\np00.png,1\n")
    with caplog.at_level(logging.INFO):
        task = as_shown(TASKS["table"], folder)
        found = gather(task, folder)
    assert task is TASKS["table"] and not caplog.messages
    assert "no column label" in found.refused


def test_pictures_without_a_pixel_size_are_given_none_in_mm(folder, capsys):
    names = [table["name"] for table in inspected(folder, capsys)["tables"]]
    assert "size, rows x columns" in names and "pixel spacing, mm" not in names
