"""What a run leaves behind when it is killed, told to stop, out of disk, forbidden to write or out of time.

    python bench/kill.py --kills 20 --seed 1
    python bench/kill.py --data DIR --weights DIR --kills 20

Each run is a forked child that grades the same studies (phantoms made on the spot, the shipped weights; or --data and
--weights). Prints one line per question and the number of times the answer was wrong; exit code 1 where it was.
"""

from __future__ import annotations

import argparse
import csv
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import inference
from osteograde import cli, phantom
from osteograde.inference import submission

ROOT = Path(__file__).resolve().parents[1]
TASK = "lumbar-mr"
FIRST_SECOND = 1.0  # of a run's own time (a busy machine may give it none): from here on a valid file must be there
SMALL = 4096  # bytes a file may have where the disk is full: less than any submission
NOBODY = 65534


@dataclass(frozen=True)
class Job:
    """What is graded, and the template that its submission must fit."""

    data: Path
    weights: Path

    @property
    def template(self) -> Path:
        return self.data / "sample_submission.csv"


def start(job: Job, out: Path, *options: str, before: Callable[[], object] = lambda: None) -> int:
    """Grade in a forked child, quietly; returns its process id. ``before`` is called in the child."""
    words = [
        TASK,
        "--data",
        str(job.data),
        "--weights",
        str(job.weights),
        "--out",
        str(out),
        "--device",
        "cpu",
        *options,
    ]
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        before()
        code = cli.run(lambda: inference.main(words))
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """The exit code of a child; minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def interrupt(job: Job, out: Path, after_s: float, number: int) -> tuple[int, float]:
    """Start a run and send it a signal after a while; (exit code, seconds of processor time it had)."""
    begun = time.monotonic()
    child = start(job, out)
    time.sleep(max(0.0, after_s - (time.monotonic() - begun)))
    os.kill(child, number)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def is_whole(job: Job, out: Path) -> bool:
    return out.is_file() and submission.validate(out, job.template) == []


def kills(job: Job, folder: Path, good: bytes, takes_s: float, times: int, rng: random.Random) -> list[str]:
    """kill -9 at random moments, then the same again undisturbed; what was wrong."""
    wrong = []
    for k in range(times):
        out = folder / f"kill{k}.csv"
        code, had = interrupt(job, out, rng.uniform(0.0, takes_s), signal.SIGKILL)
        if not is_whole(job, out) and (out.exists() or had >= FIRST_SECOND):
            wrong.append(f"kill {k} after {had:.1f} s (exit {code}): no whole file")
        if finish(start(job, out)) != 0 or out.read_bytes() != good:
            wrong.append(f"kill {k} after {had:.1f} s: the next run differs from the undisturbed one")
    return wrong


def stops(
    job: Job, folder: Path, good: dict[str, list[float]], takes_s: float, times: int, rng: random.Random
) -> list[str]:
    """SIGTERM at random moments; what was wrong."""
    wrong = []
    for k in range(times):
        out = folder / f"stop{k}.csv"
        code, had = interrupt(job, out, rng.uniform(0.0, takes_s), signal.SIGTERM)
        if code == -signal.SIGTERM and (not out.exists() or is_whole(job, out)):
            continue  # before there was anything to flush, or between the last row and the end
        if code != 0 or not is_whole(job, out):
            wrong.append(
                f"stop {k} after {had:.1f} s: exit code {code}, file {'whole' if is_whole(job, out) else 'not whole'}"
            )
            continue
        with out.with_name(f"{out.stem}.flags.csv").open(newline="") as file:
            left = {row["row_id"] for row in csv.DictReader(file) if row["reason"] == "stopped"}
        rows = submission.read_submission(out)
        if any(list(rows[row]) != good[row] for row in rows if row not in left):
            wrong.append(f"stop {k} after {had:.1f} s: rows that are not flagged as left out differ")
    return wrong


def full(job: Job, folder: Path, good: bytes) -> list[str]:
    """A full disk (files may have a few kB), with a good file in place; what was wrong."""
    out = folder / "full.csv"
    out.write_bytes(good)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))

    code = finish(start(job, out, before=limit))
    return [] if code in (1, 2) and out.read_bytes() == good else [f"full disk: exit code {code}"]


def tmpfs(job: Job, folder: Path) -> list[str] | None:
    """A file system of 16 kB that holds no submission; None where mounting is not permitted."""
    place = folder / "tmpfs"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    try:
        if subprocess.run(words, capture_output=True, check=False).returncode:
            return None
    except FileNotFoundError:
        return None
    try:
        (place / "filler").write_bytes(bytes(16384))
        code = finish(start(job, place / "s.csv"))
        left = {path.name for path in place.iterdir()}
    except OSError as error:
        return [f"tmpfs: {errno.errorcode.get(error.errno or 0, error.errno)}"]
    finally:
        subprocess.run(["umount", str(place)], check=False)
    return [] if code in (1, 2) and left == {"filler"} else [f"tmpfs: exit code {code}, left {sorted(left)}"]


def forbidden(job: Job, folder: Path, good: bytes) -> list[str]:
    """A folder that may not be written (as another user where this one may write everything); what was wrong."""
    place = folder / "forbidden"
    place.mkdir()
    (place / "s.csv").write_bytes(good)
    place.chmod(0o555)

    def drop() -> None:
        if os.getuid() == 0:
            os.setuid(NOBODY)

    open_job = Job(folder / "open" / "data", folder / "open" / "weights")
    for source, copy in ((job.data, open_job.data), (job.weights, open_job.weights)):
        shutil.copytree(source, copy)
    for path in (folder / "open").rglob("*.*"):
        path.chmod(0o755)
    code = finish(start(open_job, place / "s.csv", before=drop))
    place.chmod(0o777)
    allowed = finish(start(open_job, place / "other.csv", before=drop))  # the folder was what it failed for
    place.chmod(0o755)
    if code in (1, 2) and allowed == 0 and (place / "s.csv").read_bytes() == good:
        return []
    return [f"read-only folder: exit code {code}; {allowed} where it may be written"]


def late(job: Job, folder: Path, seconds: float) -> list[str]:
    """A time budget of seconds; what was wrong."""
    out = folder / "late.csv"
    begun = time.monotonic()
    code = finish(start(job, out, "--time-budget", str(seconds / 3600)))
    took = time.monotonic() - begun
    print(f"  a budget of {seconds:.0f} s took {took:.1f} s")
    return [] if code == 0 and is_whole(job, out) else [f"time budget: exit code {code}"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="default: phantoms made on the spot")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "lumbar-mr-phantom")
    parser.add_argument("--studies", type=int, default=3, help="phantoms to make")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a process with threads may not be forked
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="osteograde-kill-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        data = args.data or folder / "data"
        if args.data is None:
            phantom.write(TASK, data, studies=0, test=args.studies, seed=20261127)
        return report(Job(data, args.weights), folder, args, rng)


def report(job: Job, folder: Path, args: argparse.Namespace, rng: random.Random) -> int:
    begun = time.monotonic()
    if finish(start(job, folder / "good.csv")) != 0:
        print("the undisturbed run failed")
        return 1
    takes_s, good = time.monotonic() - begun, (folder / "good.csv").read_bytes()
    rows = {row: list(values) for row, values in submission.read_submission(folder / "good.csv").items()}
    print(f"undisturbed: {takes_s:.1f} s, {len(rows)} rows")
    answers = {
        f"kill -9, {args.kills} times": kills(job, folder, good, takes_s, args.kills, rng),
        f"SIGTERM, {args.stops} times": stops(job, folder, rows, takes_s, args.stops, rng),
        "full disk (file size limit)": full(job, folder, good),
        "full disk (tmpfs)": tmpfs(job, folder),
        "read-only folder": forbidden(job, folder, good),
        "time budget": late(job, folder, args.budget),
    }
    for question, wrong in answers.items():
        print(f"{question}: {'not permitted here' if wrong is None else f'{len(wrong)} wrong'}")
        print("".join(f"  {line}\n" for line in wrong or []), end="")
    return int(any(answers.values()))


if __name__ == "__main__":
    sys.exit(main())
