"""Mix all DICOM files of a folder into studies and grade them by every task: nothing may crash, reasons are listed.

    python bench/mixed_folder.py --data ../shared/data/dicom

lumbar-mr: studies of three series (one of each described view) of up to --files files each, whatever they are, beside
one study per folder as it is. spider and knee-xray: the files in plain folders. Exit code 1 where a run crashed, a row
is missing or invalid, or a name of a person was printed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pydicom

import inference
from osteograde.inference import submission
from osteograde.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTIONS = ("Sagittal T1", "Sagittal T2/STIR", "Axial T2")
SECRETS = ("PatientName", "PatientBirthDate", "ReferringPhysicianName", "InstitutionName")


def files_of(data: Path) -> list[Path]:
    return sorted(path for path in data.rglob("*") if path.is_file())


def studies(data: Path, out: Path, most: int) -> None:
    """test_images and its table: files in the order of their paths, ``most`` to a series, three series to a study; then
    every folder of the data as the three series of a study of its own."""
    rows, found = [], files_of(data)
    groups = [found[at : at + most] for at in range(0, len(found), most)]
    for k, group in enumerate(groups):
        rows.append(_series(out, f"mixed{k // 3}", k % 3, group))
    for k, folder in enumerate(sorted({path.parent for path in found})):
        own = [path for path in found if path.parent == folder]
        rows += [_series(out, f"folder{k}", view, own) for view in range(3)]
    with (out / "test_series_descriptions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("study_id", "series_id", "series_description"), *rows])


def _series(out: Path, study: str, view: int, group: list[Path]) -> tuple[str, str, str]:
    folder = out / "test_images" / study / f"s{view}"
    folder.mkdir(parents=True, exist_ok=True)
    for n, path in enumerate(group):
        shutil.copyfile(path, folder / f"{n:04d}_{path.name}")
    return study, f"s{view}", DESCRIPTIONS[view]


def plain(data: Path, out: Path) -> None:
    """The files alone, all called .dcm: every second one in one folder, the others in folders of ten."""
    for k, path in enumerate(files_of(data)):
        folder = out / ("together" if k % 2 else f"f{k // 20}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / f"{k:04d}_{path.stem}.dcm")


def secrets(data: Path) -> set[str]:
    """Values of persons' tags that no output may hold."""
    found = set()
    for path in files_of(data):
        with contextlib.suppress(Exception):
            made = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(SECRETS))
            found |= {str(made.get(keyword, "")) for keyword in SECRETS}
    return {text for text in found if len(text) > 3 and not text.isdigit()}


def grade(task: str, data: Path, weights: Path, out: Path) -> tuple[int | None, str]:
    """(exit code, what was said); None where it crashed."""
    said, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(said)
    root.addHandler(handler)
    words = [task, "--data", str(data), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return inference.main([*words, "--max-unread", "9999"]), said.getvalue()
    except Exception:  # a crash of any kind is what is looked for
        return None, said.getvalue() + traceback.format_exc()
    finally:
        root.removeHandler(handler)


def check(task: str, out: Path, said: str, hidden: set[str]) -> list[str]:
    """What is wrong with one finished run."""
    rows = submission.read_submission(out)
    bad = [row for row, values in rows.items() if not np.isfinite(values).all() or abs(values.sum() - 1) > 1e-6]
    text = said + out.read_text() + out.with_name(out.stem + ".flags.csv").read_text()
    told = sorted(name for name in hidden if name in text)
    return [f"{len(bad)} rows are invalid"] * bool(bad) + [f"{len(told)} values of persons' tags were printed"] * bool(
        told
    )


def reasons(out: Path) -> Counter[str]:
    """reason -> studies that have it, from the table of flags."""
    with out.with_name(out.stem + ".flags.csv").open(newline="") as file:
        pairs = {(row["row_id"].rpartition("_")[0].split("_")[0], row["reason"]) for row in csv.DictReader(file)}
    return Counter(reason for _, reason in pairs if ":" in reason)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("OSTEOGRADE_DATA", "../shared/data")) / "dicom"
    )
    parser.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder with a folder per task")
    parser.add_argument("--files", type=int, default=24, help="files per series")
    args = parser.parse_args(argv)
    hidden, wrong = secrets(args.data), 0
    print(f"{len(files_of(args.data))} files of {args.data.name}")
    for task in sorted(TASKS):
        weights = sorted(path.parent for path in args.weights.glob(f"{task}*/manifest.json"))
        if not weights:
            print(f"{task}: no weights below {args.weights}, not run")
            continue
        with tempfile.TemporaryDirectory(prefix="osteograde-thrown-") as name:
            data, out = Path(name) / "data", Path(name) / "s.csv"
            data.mkdir()
            if task == "lumbar-mr":
                studies(args.data, data, args.files)
            else:
                plain(args.data, data)
            code, said = grade(task, data, weights[0], out)
            problems = [f"crashed:\n{said}"] if code is None else check(task, out, said, hidden)
            wrong += len(problems)
            print(f"{task} with {weights[0].name}: exit code {code}, {'; '.join(problems) or 'every row valid'}")
            print("".join(f"  {line}\n" for line in said.splitlines()[-2:]), end="")
            if code is not None:
                print("".join(f"  {times:>5}  {reason}\n" for reason, times in reasons(out).most_common()), end="")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
