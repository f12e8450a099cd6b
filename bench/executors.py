"""One training, done by different numbers of processes and threads: wall time, processor time, and whether bytes agree.

    python bench/executors.py --out RUNS [--task TASK] [--studies 12] [--rounds 1]

Each is the same debug run of phantoms in a fresh interpreter, in turns. Processor time counts all processes of a run;
where the machine is busy with other work, wall times say little, so its load is printed before and after. Nets that
were trained with other numbers of threads differ in their last bits, so bytes are compared where threads agree.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = {  # name: (--executor, threads of every process)
    "one process, one thread": ("serial", 1),
    "one process, two threads": ("serial", 2),
    "two workers, one thread each": ("local:2", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--task", default="knee-xray")
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    data = args.out / "phantoms"
    if not data.is_dir():
        words = ["phantom", args.task, "--out", str(data), "--studies", str(args.studies), "--seed", "3"]
        subprocess.run([sys.executable, "-m", "osteograde", *words], check=True, env=_environment(1))
    print(f"{os.cpu_count()} cores, load before: {_load()}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    hashes: dict[str, str] = {}
    for _ in range(args.rounds):
        for name, (executor, threads) in WAYS.items():
            out = args.out / name.replace(" ", "-").replace(",", "")
            shutil.rmtree(out, ignore_errors=True)
            times[name].append(timed(args.task, data, out, executor, threads))
            hashes[name] = digest(out)
    print(f"load after: {_load()}")
    for name, found in times.items():
        wall, processor = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:<30}{wall:8.1f} s wall{processor:8.1f} s of processor time   bytes {hashes[name][:8]}")


def timed(task: str, data: Path, out: Path, executor: str, threads: int) -> tuple[float, float]:
    """Seconds of (wall, processor) of a debug run; all of its processes count."""
    words = [task, "--data", str(data), "--out", str(out), "--debug", "--device", "cpu", "--executor", executor]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, str(ROOT / "train_folds.py"), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_environment(threads))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, used


def digest(out: Path) -> str:
    """One hash of all nets and of the out-of-fold table."""
    paths = [*sorted(out.glob("*/*/*.safetensors")), out / "oof.csv"]
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "src")}


def _load() -> str:
    return " ".join(f"{one:.1f}" for one in os.getloadavg()) if hasattr(os, "getloadavg") else "not known"


if __name__ == "__main__":
    main()
