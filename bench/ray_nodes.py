"""Two Ray machines on loopback, one core each: a training and a grading, whole, and with one machine lost midway.

    python bench/ray_nodes.py --out RUNS [--studies 12] [--test 40]

Machines are two raylets of this one (``ray start``), so times say what Ray costs and what a loss costs, and nothing
about a network. All processes have one thread. Printed are wall times, how long after a machine was killed its task was
given out again, and whether the bytes are those of one process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import Moment, described

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from osteograde.ray_cluster import own_ip  # noqa: E402

PORT = 6391
HOST = own_ip()  # where Ray listens
ADDRESS = f"{HOST}:{PORT}"
TASK = "knee-xray"
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--what", nargs="+", default=["train", "grade"], help="grade needs what train left in --out")
    args = parser.parse_args()
    out: Path = args.out.absolute()
    data = out / "phantoms"
    if not data.is_dir():
        words = ["phantom", TASK, "--out", str(data), "--studies", str(args.studies), "--test", str(args.test)]
        subprocess.run([sys.executable, "-m", "osteograde", *words], check=True, env=ENVIRONMENT)
    print(f"{described()}; load before {Moment.now().load:.1f}")
    ways = {"one process": ("serial", False), "two machines": ("ray", False), "one of two lost": ("ray", True)}
    for what, timed, beginning in (("train", train, "ray::grade/"), ("grade", grade, "ray::film")):
        if what not in args.what:
            continue
        hashes: dict[str, str] = {}
        for name, (executor, lose) in ways.items():
            where = f"ray:{ADDRESS}" if executor == "ray" else executor
            folder = out / f"{what}-{name.replace(' ', '-')}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with machines(2 if executor == "ray" else 0) as second:
                doomed = second if lose else None
                seconds, again = watched(timed(out, folder, where), doomed, beginning)
            hashes[name] = digest(folder)
            note = f", {again:.1f} s from the loss to the next try" if again is not None else ""
            same = "the same bytes" if hashes[name] == hashes["one process"] else "OTHER BYTES"
            print(f"{what:<7}{name:<18}{seconds:7.1f} s, {same}{note}", flush=True)
    print(f"load after {Moment.now().load:.1f}")


def train(out: Path, folder: Path, executor: str) -> list[str]:
    words = ["--data", str(out / "phantoms"), "--out", str(folder), "--debug", "--device", "cpu"]
    return [str(ROOT / "train_folds.py"), TASK, *words, "--executor", executor]


def grade(out: Path, folder: Path, executor: str) -> list[str]:
    weights = out / "train-one-process"
    words = ["--data", str(out / "phantoms"), "--weights", str(weights), "--out", str(folder / "submission.csv")]
    return [str(ROOT / "inference.py"), TASK, *words, "--device", "cpu", "--executor", executor]


@contextmanager
def machines(count: int) -> Iterator[subprocess.Popen[bytes] | None]:
    """So many raylets with one core each; the last one is given. All of them end with the block."""
    begun: list[subprocess.Popen[bytes]] = []
    ray = str(Path(sys.executable).with_name("ray"))
    try:
        for number in range(count):
            role = ["--address", ADDRESS] if number else ["--head", "--port", str(PORT), "--include-dashboard", "false"]
            words = [ray, "start", *role, "--num-cpus", "1", "--block", "--disable-usage-stats"]
            quiet = subprocess.DEVNULL
            begun.append(subprocess.Popen(words, env=ENVIRONMENT, stdout=quiet, stderr=quiet, start_new_session=True))
            wait_for(lambda number=number: alive_machines() > number)  # type: ignore[misc]
        yield begun[-1] if begun else None
    finally:
        for process in reversed(begun):
            lose(process, signal.SIGTERM)
            process.wait()


def alive_machines() -> int:
    """How many machines the cluster has; 0 where nobody answers."""
    with socket.socket() as tried:
        if tried.connect_ex((HOST, PORT)):
            return 0
    code = f"from osteograde import ray_cluster as c\nwith c.connected('ray:{ADDRESS}') as r: print(len(c.nodes_of(r)))"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    return int(shown.stdout or 0) if shown.returncode == 0 else 0


def wait_for(is_so: Callable[[], bool], most_s: float = 120.0) -> None:
    until = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError(f"not so after {most_s:.0f} s")
        time.sleep(0.05)


def watched(words: list[str], doomed: subprocess.Popen[bytes] | None, beginning: str) -> tuple[float, float | None]:
    """Run a command: (seconds, seconds from the loss of a machine until its task was given out again). The machine is
    lost while it does a task whose title has this beginning."""
    begun, lost, again = time.monotonic(), None, None
    with subprocess.Popen(
        [sys.executable, "-u", *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        if doomed is not None:
            wait_for(lambda: any(one.startswith(beginning) for one in titles(doomed.pid)))
            time.sleep(0.5)
            lose(doomed, signal.SIGKILL)
            lost = time.monotonic()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if lost is not None and again is None and "was lost" in line:
                again = time.monotonic() - lost
    if process.returncode:
        raise RuntimeError("".join(lines[-20:]))
    return time.monotonic() - begun, again


def titles(pid: int) -> Iterator[str]:
    """What the processes below one are called."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
            yield from titles(int(child))


def lose(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """End all processes of a machine."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def digest(folder: Path) -> str:
    """One hash of all nets and tables of a folder."""
    paths = [*sorted(folder.glob("*/*/*.safetensors")), *sorted(folder.glob("*.csv"))]
    named = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


if __name__ == "__main__":
    main()
