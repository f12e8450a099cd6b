"""A folder given to the wrong task is told which task it looks like; one given to its own task is told nothing."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde import phantom
from osteograde.errors import UserError
from osteograde.grade_command import infer
from osteograde.inference import run
from osteograde.inference.submission import RunSummary, doubt
from osteograde.tasks import NAMES, TASKS
from osteograde.tasks.looks_like import Seen, guess, guess_of_places, guess_of_studies, hint
from osteograde.tasks.spec import Series, Study
from tests.dicom_files import AXIAL, dataset, write
from tests.tiny import random_bundle


def films(words="", kind="film"):
    return [Seen(f"a/{i}", kind, words) for i in range(5)]


@pytest.mark.parametrize(
    ("seen", "shows", "tasks"),
    [
        (films("knee ap left"), "radiographs of knees", ("knee-xray", "knee-progression")),
        (films("chest pa"), "radiographs of chests", ()),
        (films(), "radiographs", ("knee-xray", "knee-progression")),
        (films("l-spine t2 sag", "MR"), "MR of spines", ("spider", "lumbar-mr")),
        (films("knee pd sag", "MR"), "MR of knees", ()),
        (films("", "MR"), "MR images", ("spider", "lumbar-mr")),
        (films("abdomen", "CT"), "images of the modality CT", ()),
        ([Seen("data/9000001L"), Seen("data/9000001R")], "radiographs of knees", ("knee-xray", "knee-progression")),
        ([Seen("Knees/2/a"), Seen("Knees/3/b")], "radiographs of knees", ("knee-xray", "knee-progression")),
        ([Seen("images/1_t1"), Seen("images/1_t2"), Seen("images/3_t2_SPACE_slice7")],
         "pictures of sagittal slices of spines", ("spider",)),
        ([Seen("chest_xray/NORMAL/IM-0001"), Seen("chest_xray/PNEUMONIA/person1")], "pictures of chests", ()),
    ],
)  # fmt: skip
def test_most_images_decide_what_a_folder_shows(seen, shows, tasks):
    found = guess(seen)
    assert found is not None and (found.shows, found.tasks) == (shows, tasks)


def test_nothing_is_said_where_nothing_tells():
    assert guess([]) is None
    assert guess([Seen("a/1"), Seen("a/2")]) is None
    assert guess([*films("knee"), *films("chest pa")]) is None
    assert hint("spider", None) == ""


def test_axial_slices_and_the_competition_speak_for_the_whole_spine():
    axial = [Seen("a/1", "MR", "spine"), Seen("a/2", "MR", "spine", axial=True)]
    found = guess(axial)
    assert found is not None and found.tasks == ("lumbar-mr", "spider")
    found = guess(axial, competition=True)
    assert found is not None and found.tasks == ("lumbar-mr",)
    found = guess(films("knee"), competition=True)
    assert found is not None and found.tasks == ("knee-xray", "knee-progression")


def test_the_hint_names_the_task_and_is_silent_for_the_right_one():
    assert "try the task knee-xray or knee-progression instead of spider" in hint("spider", guess(films("knee")))
    assert hint("knee-xray", guess(films("knee"))) == ""
    assert "which no task grades" in hint("knee-xray", guess(films("chest")))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in made.items():
        phantom.write(name, folder, studies=0, test=1, seed=1)
    return made


FIXED = [name for name in NAMES if TASKS[name].of_folder is None]  # a task that is made of data takes all images


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_the_data_of_a_task_look_like_it_and_like_no_other(sets, name):
    own = guess_of_studies([sets[name]], TASKS[name].read(sets[name], "test"))
    assert own == guess_of_places([sets[name]])
    of_knees = {"knee-xray", "knee-progression"}  # two questions about the same images
    assert {task for task in FIXED if not hint(task, own)} == (of_knees if name in of_knees else {name})


@pytest.mark.slow
@pytest.mark.parametrize(("given", "task"), [("lumbar-mr", "knee-xray"), ("knee-xray", "spider")])
def test_the_studies_that_the_wrong_task_makes_of_a_folder_show_it(sets, given, task):
    studies = TASKS[task].read(sets[given], "test")
    assert f"try the task {given} " in hint(task, guess_of_studies([sets[given]], studies))


def test_tags_of_files_are_read(tmp_path):
    pixels = np.full((8, 8), 5, np.uint16)
    for i, part in enumerate(("CHEST", "THORAX", "LUNG")):
        write(tmp_path / f"{i}.dcm", dataset(pixels, Modality="CR", BodyPartExamined=part))
    found = guess_of_places([tmp_path])
    assert found is not None and found.shows == "radiographs of chests"
    for i in range(6):
        write(tmp_path / "s" / f"{i}.dcm", dataset(pixels, orientation=AXIAL, Modality="MR", BodyPartExamined="LSPINE"))
    found = guess_of_places([tmp_path / "s", tmp_path / "s" / "0.dcm"])
    assert found is not None and found.tasks == ("lumbar-mr", "spider")


def test_a_folder_without_anything_for_the_task_is_refused_with_the_hint(tmp_path):
    for name in ("9000001L.png", "9000001R.png"):
        assert cv2.imwrite(str(tmp_path / name), np.full((224, 224), 90, np.uint8))
    weights = random_bundle(tmp_path / "weights", pixels=(32, 32))
    with pytest.raises(UserError, match=r"neither test_images.*try the task knee-xray or knee-progression instead"):
        run.prepare("lumbar-mr", tmp_path, weights, device="cpu")
    with pytest.raises(UserError, match=r"no DICOM file.*try the task knee-xray or knee-progression instead"):
        run.prepare("lumbar-mr", tmp_path / "9000001L.png", weights, device="cpu")


def test_the_last_lines_of_a_doubtful_run_name_the_task(tmp_path, caplog):
    for name in ("9000001L.png", "9000001R.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "data" / name), np.full((64, 64), 90, np.uint8))
    weights = random_bundle(tmp_path / "weights", "spider")
    with caplog.at_level("INFO"):
        infer("spider", tmp_path / "data", weights, tmp_path / "s.csv", device="cpu", max_unread=9)
    said = [line for line in caplog.messages if "try the task knee-xray or knee-progression instead of spider" in line]
    assert len(said) == 2 and said[-1] in caplog.messages[-5:]


def test_most_rows_unread_or_unlike_what_is_known_are_warned_of():
    assert "of 3 of 5 studies nothing could be read" in doubt(RunSummary(studies=5, unread=3), 5)
    assert doubt(RunSummary(studies=5, unread=2), 5) == ""
    unlike = [(f"{i}_x", reason, 1) for i, reason in enumerate(["out_of_domain"] * 2 + ["film:other_body_part"])]
    assert "3 of 5 rows are about images unlike" in doubt(RunSummary(studies=5, rows=5, flags=unlike), 5)
    assert doubt(RunSummary(studies=5, rows=6, flags=unlike), 5) == ""


def test_files_that_cannot_be_read_tell_nothing_and_stop_nothing(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 64)
    assert guess_of_places([tmp_path]) is None
    lost = Study("x", "x", (Series("s", "", tmp_path / "away"),))
    assert guess_of_studies([tmp_path], [lost]) is None
