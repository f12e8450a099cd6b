"""Training samples on disk: cut once, never rewritten, and never taken for those of other images."""

import os
from pathlib import Path

import numpy as np
import pytest

from osteograde.errors import UserError
from osteograde.learning import locator_data
from osteograde.learning.cut_once import Cutter, cut_once

STUDIES = ["a", "b", "c"]


def walked(calls: list[str], studies=STUDIES, salt: str = ""):
    """A walk that lists the studies whose pixels are really made."""

    def walk(cutter: Cutter) -> int:
        for study in studies:
            cutter.note(study, salt)
            cutter.add(0, lambda study=study: calls.append(study) or study.encode())
        return len(list(studies)) if isinstance(studies, list) else -1

    return walk


def test_samples_are_cut_once_and_found_again(tmp_path):
    calls: list[str] = []
    first = cut_once(tmp_path, ["x"], STUDIES, walked(calls))
    before = first[1][0].stat().st_mtime_ns
    assert cut_once(tmp_path, ["x"], STUDIES, walked(calls)) == first
    assert calls == STUDIES and first[1][0].read_bytes() == b"abc" and first[1][0].stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == first[1]


def test_other_facts_get_a_file_of_their_own_and_leave_the_first_one_alone(tmp_path):
    calls: list[str] = []
    _, (first,) = cut_once(tmp_path, ["x"], STUDIES, walked(calls))
    _, (other,) = cut_once(tmp_path, ["x"], STUDIES, walked(calls, salt="of another spacing"))
    assert other != first and first.is_file() and calls == STUDIES * 2


def test_studies_that_can_be_read_once_are_walked_over_once(tmp_path):
    calls: list[str] = []
    cut_once(tmp_path, ["x"], STUDIES, walked(calls))
    given = iter(STUDIES)
    _, (path,) = cut_once(tmp_path, ["x"], given, walked(calls, given))
    assert path.read_bytes() == b"abc"


def test_a_walk_that_fails_leaves_no_file(tmp_path):
    def walk(cutter: Cutter) -> None:
        cutter.add(0, lambda: b"half")
        raise UserError("nothing to learn")

    with pytest.raises(UserError):
        cut_once(tmp_path, ["x", "y"], STUDIES, walk)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_slower_takes_the_file_that_is_there(tmp_path):
    """Another process finishes while this one cuts: its file, which may be mapped into memory, is not replaced."""
    _, (path,) = cut_once(tmp_path, ["x"], STUDIES, walked([]))
    hidden = tmp_path.parent / "hidden"
    path.rename(hidden)

    def walk(cutter: Cutter) -> None:
        walked([])(cutter)
        hidden.rename(path)
        os.utime(path, ns=(1, 1))

    _, (again,) = cut_once(tmp_path, ["x"], STUDIES, walk)
    assert again == path and path.stat().st_mtime_ns == 1 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("facts", [("a", "b"), ("ab", ""), ("a", 1), ("a", np.ones(2)), ("a", np.zeros(2))])
def test_keys_tell_facts_apart(facts):
    one, other = Cutter(), Cutter()
    one.note("a", "b1")
    other.note(*facts)
    assert one.key != other.key


def test_label_images_that_change_are_other_samples(tmp_path):
    class Series:
        masks = (tmp_path / "m.png",)
        label_classes = ()

    class Study:
        series = (Series(),)

    Path(Series.masks[0]).write_bytes(b"one")
    before = locator_data._label_files(Study())
    Path(Series.masks[0]).write_bytes(b"another")
    assert locator_data._label_files(Study()) != before
