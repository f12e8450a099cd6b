"""What a run writes into its own folder of data is no data for the next run: it is passed over, named and counted."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde import cli, segment_command
from osteograde.errors import UserError
from osteograde.imaging.discovery import OUTPUT, OUTPUT_MARK, find_images, look_through
from osteograde.inference.submission import read_submission
from osteograde.tasks.outputs import prepare_outputs
from tests.tiny import noise_knees, random_bundle

TASK = "knee-xray"


@pytest.fixture
def knees(tmp_path) -> Path:
    return noise_knees(tmp_path / "knees")


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((64, 64), 90, np.uint8))
    return path


def test_pictures_of_a_run_that_lie_in_its_data_are_no_studies_of_the_next_run(knees, tmp_path, capsys):
    weights = random_bundle(tmp_path / "weights", TASK)
    command = ["grade", TASK, "--data", str(knees), "--weights", str(weights), "--device", "cpu", "--max-unread", "9"]
    command += ["--out", str(knees / "submission.csv")]
    command += ["--overlays", str(knees / "seen"), "--explain", str(knees / "runs" / "why")]
    for _ in range(2):
        assert cli.main(command) == 0
        rows = read_submission(knees / "submission.csv")
        assert {row[:8] for row in rows} == {f"{9000001 + number}L" for number in range(5)}
        picture(knees / "runs" / "why" / "9000001L_grade.png")  # as of a site that random nets do not find
    assert len(list((knees / "seen").glob("*.jpg"))) == 5
    told = capsys.readouterr().out
    assert f"2 {OUTPUT} (seen x 1, why x 1)" in told


def test_a_folder_is_read_again_once_its_mark_is_removed(knees):
    prepare_outputs(knees, {"--out": knees / "masks"})
    picture(knees / "masks" / "1.png")
    assert len(find_images(knees)) == 5
    (knees / "masks" / OUTPUT_MARK).unlink()
    assert len(find_images(knees)) == 6


def test_links_to_a_folder_of_outputs_are_passed_over_as_well(knees, tmp_path):
    prepare_outputs(tmp_path, {"--out": tmp_path / "seen"})
    picture(tmp_path / "seen" / "1.png")
    (knees / "linked").symlink_to(tmp_path / "seen")
    assert set(look_through(knees).passed.values()) == {f"{OUTPUT}: linked"}


@pytest.mark.parametrize("made", ["own", "sub/own"])
def test_a_folder_of_data_that_holds_images_is_never_taken_for_outputs(knees, made):
    own = picture(knees / made / "9000009R.png")
    new = knees / "new"
    with pytest.raises(UserError, match=r"--overlays .*own: lies in --data and holds images already"):
        prepare_outputs(knees, {"--explain": new, "--overlays": own.parent})
    assert not new.exists() and own in find_images(knees)


def test_the_folder_of_data_itself_is_refused(knees, monkeypatch):
    monkeypatch.chdir(knees)
    with pytest.raises(UserError, match=r"--out \.: is the folder of --data itself"):
        prepare_outputs(Path("../knees"), {"--out": Path()})
    assert len(find_images(knees)) == 5


def test_folders_that_no_run_looks_into_are_neither_made_nor_marked(knees, tmp_path):
    (knees / "test_images").mkdir()
    (knees / "train_images").mkdir()
    prepare_outputs(knees, {"--overlays": tmp_path / "seen", "--explain": None, "--out": knees / "W"})
    prepare_outputs([knees / "9000001L.png"], {"--overlays": knees / "near"})
    assert not (tmp_path / "seen").exists() and not (knees / "W").exists() and not (knees / "near").exists()


@pytest.mark.parametrize("command", ["train", "segment", "tune"])
def test_commands_that_write_folders_refuse_the_folder_of_data(command, knees, tmp_path, monkeypatch):
    """Before anything is written; ``grade`` is tried above."""
    if command == "tune":
        pytest.importorskip("optuna")
    pictures = [shutil.move(path, picture(knees / "1" / path.name)) for path in sorted(knees.glob("*.png"))]
    before = sorted(knees.rglob("*"))
    words = [command, TASK, "--data", str(knees), "--out", str(knees), "--device", "cpu"]
    if command == "segment":
        monkeypatch.setattr(segment_command, "_segmenting", lambda nets: [])
        words += ["--weights", str(random_bundle(tmp_path / "weights", TASK))]
    words += ["--trials", "1"] if command == "tune" else []
    if command == "train":
        words += ["--debug"]
    with pytest.raises(UserError, match="is the folder of --data itself"):
        cli.main(words)
    assert sorted(knees.rglob("*")) == before and len(pictures) == 5
