"""All cases of a table through the real inference.py in one run, beside studies that nothing was done to."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

import inference
from osteograde.imaging import files
from osteograde.inference import submission
from osteograde.tasks import TASKS
from tests.faults.case import Case
from tests.faults.studies import VIEWS, Study, write_table

UNTOUCHED = ("a_healthy", "z_healthy")  # before and after the broken ones
Cells = dict[str, tuple[str, ...]]  # target -> probabilities as written


@dataclass(frozen=True)
class Outcome:
    """What one run left behind."""

    code: int
    out: Path
    said: str  # stdout, which has the log, and stderr
    cells: dict[str, Cells]  # study -> its rows
    reasons: dict[str, dict[str, int]]  # study -> reason -> how often, of flags.csv


def name_of(number: int) -> str:
    return f"case{number:03d}"


def grade(task: str, data: Path, weights: Path, out: Path, *options: str) -> Outcome:
    """The real command line, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _mount():
        code = inference.main([task, "--data", str(data), "--weights", str(weights), "--out", str(out),
                               "--device", "cpu", "--max-unread", "999", *options])  # fmt: skip
    return Outcome(code, out, said.getvalue(), _cells(task, out), _reasons(task, out))


@contextlib.contextmanager
def _mount():
    """A network mount: files called "stumbles" fail once, files called "denied" always."""
    read, stumbled = files._read, set()

    def unsteady(path: Path, most: int) -> bytes:
        if "denied" in path.name:
            raise OSError(errno.EACCES, "Permission denied")
        if "stumbles" in path.name and path not in stumbled:
            stumbled.add(path)
            raise OSError(errno.EIO, "Input/output error")
        return read(path, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_read", unsteady)
        patch.setattr(files, "ASK_AGAIN_S", (0.0, 0.0))
        yield


def _split(task: str, row: str) -> tuple[str, str]:
    target = next(target for target in TASKS[task].targets if row.endswith(f"_{target}"))
    return row[: -len(target) - 1], target


def _cells(task: str, out: Path) -> dict[str, Cells]:
    found: dict[str, Cells] = defaultdict(dict)
    with out.open(newline="", encoding="utf-8") as file:
        for row, *values in list(csv.reader(file))[1:]:
            study, target = _split(task, row)
            found[study][target] = tuple(values)
    return dict(found)


def _reasons(task: str, out: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    with out.with_name(out.stem + ".flags.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[_split(task, row["row_id"])[0]][row["reason"]] = int(row["count"])
    return dict(found)


def build(folder: Path, healthy: Path, cases: tuple[Case, ...]) -> tuple[Path, Path]:
    """Data of the untouched studies alone, and with every case beside them."""
    clean, broken = folder / "clean", folder / "broken"
    for data, names in ((clean, UNTOUCHED), (broken, (UNTOUCHED[0], *map(name_of, range(len(cases))), UNTOUCHED[1]))):
        studies = {}
        for name in names:
            shutil.copytree(healthy, data / "test_images" / name)
            studies[name] = Study(data / "test_images" / name, dict(VIEWS))
        if data == broken:
            for k, case in enumerate(cases):
                case.make(studies[name_of(k)])
        write_table(data, studies)
        rows = {row: [1 / 3] * 3 for name in names for row in TASKS["lumbar-mr"].rows(name)}
        submission.write_submission(data / "sample_submission.csv", rows, TASKS["lumbar-mr"].classes)
    return clean, broken


def worst(a: Cells, b: Cells) -> float:
    """The largest difference between two studies' probabilities."""
    assert a.keys() == b.keys()
    return max(abs(float(x) - float(y)) for target in a for x, y in zip(a[target], b[target], strict=True))
