"""Peak memory of inference.py, which must not depend on how many studies there are.

    python bench/memory.py --weights weights/lumbar-mr-phantom --studies 30 300

A few phantoms are made and their files linked under new ids as often as needed (hard links: folders that lead out of
the data are refused); every run is a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

from osteograde import phantom

ROOT = Path(__file__).resolve().parents[1]
TABLE, IMAGES = "test_series_descriptions.csv", "test_images"


def repeated(source: Path, out: Path, count: int) -> None:
    """A data set of ``count`` studies whose files are those of ``source``."""
    with (source / TABLE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    studies = sorted({row["study_id"] for row in rows})
    (out / IMAGES).mkdir(parents=True)
    with (out / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for k in range(count):
            study, name = studies[k % len(studies)], str(100_000 + k)
            shutil.copytree(source / IMAGES / study, out / IMAGES / name, copy_function=link)
            writer.writerows({**row, "study_id": name} for row in rows if row["study_id"] == study)


def link(source: str, out: str) -> None:
    """The same file under another name; a copy where that is on another disk."""
    try:
        os.link(source, out)
    except OSError:
        shutil.copy(source, out)


def peak_mib(data: Path, weights: Path, out: Path) -> tuple[float, float]:
    """Peak resident memory in MiB and seconds of one run of inference.py."""
    command = [sys.executable, str(ROOT / "inference.py"), "lumbar-mr", "--data", str(data), "--weights", str(weights)]
    begun = time.perf_counter()
    with subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"inference.py ended with {process.returncode}")
    return usage.ru_maxrss / 1024, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--studies", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--made", type=int, default=10, help="phantoms behind the links")
    parser.add_argument("--data", type=Path, help="phantoms made before, instead of new ones")
    args = parser.parse_args()
    watch = machine.Watch()
    print(machine.described(), end="\n\n")
    print("| studies | peak memory, MiB | seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        source = args.data or Path(place) / "made"
        if not args.data:
            phantom.write("lumbar-mr", source, studies=0, test=args.made, seed=888002, workers=os.cpu_count() or 1)
        for count in args.studies:
            data = Path(place) / str(count)
            repeated(source, data, count)
            peak, seconds = peak_mib(data, args.weights, Path(place) / f"{count}.csv")
            print(f"| {count} | {peak:.0f} | {seconds:.0f} |", flush=True)
    print(f"\n{watch}")


if __name__ == "__main__":
    main()
