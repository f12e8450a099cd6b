"""Mutated headers and pixel streams through the readers: no crash, no hang over 5 s, no memory over 1 GB.

    python bench/fuzz.py --count 10000 --seed 1
    python bench/fuzz.py --first 4000 --count 6000 --seed 1 --keep broke/

Input k of a seed is always the same bytes, so a run may be cut into parts (--first) and an input that broke a reader is
made again by its number; --keep also writes it down. Prints what came of them, by code; exit code 1 where one broke.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fuzz_inputs
import numpy as np
from numpy.random import default_rng

from osteograde.imaging import image_files
from osteograde.imaging.dicom import UnreadableSlice, read_slices
from osteograde.imaging.dicom.radiograph import film_outline, read_film
from osteograde.imaging.dicom.tags import quiet_pydicom
from osteograde.imaging.dicom.volumes import stack
from osteograde.imaging.geometry import Volume
from osteograde.imaging.windowing import window

HANG_S, WAIT_S, MEMORY_BYTES = 5.0, 120, 1 << 30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Hang(Exception):
    """Raised by the alarm in whatever takes too long."""


@dataclass(frozen=True)
class Break:
    """An input that did what none may do."""

    number: int
    kind: str
    what: str


def read(path: Path, picture: bool) -> str:
    """Through every reader that inference would use; the code that it ended with."""
    try:
        if picture:
            image_files.image_size(path)
            pixels = image_files.read_pixels(path)
            window([Volume(pixels[None], np.eye(4))])
            return "read"
        outcomes = [_slices(path)]
        for reader in (film_outline, read_film):
            with contextlib.suppress(image_files.UnreadableImage):
                reader(path)
        return outcomes[0]
    except image_files.UnreadableImage as error:
        return error.code


def _slices(path: Path) -> str:
    try:
        with quiet_pydicom():
            slices = read_slices(path)
    except UnreadableSlice as error:
        return error.code
    volumes, _ = stack(slices)
    for volume in window(volumes):
        if not np.isfinite(volume.to_mm).all():
            raise AssertionError("geometry that is not finite")
    return "read"


def peak_bytes() -> int:
    """The most memory the process had since ``forget_peak``."""
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    if CLEAR.exists():
        CLEAR.write_text("5")


def trial(number: int, kind: str, data: bytes, path: Path, picture: bool) -> str | Break:
    """What came of one input."""
    path.write_bytes(data)
    forget_peak()
    before, begun = peak_bytes(), time.process_time()
    faulthandler.dump_traceback_later(WAIT_S, exit=True)  # for what waits, and for code that no alarm can interrupt
    signal.setitimer(signal.ITIMER_PROF, HANG_S)  # of this process's own time: other work on the machine is no hang
    try:
        outcome = read(path, picture)
    except Hang:
        return Break(number, kind, f"hangs: {HANG_S} s")
    except Exception:  # whatever it is, it is what is looked for
        return Break(number, kind, traceback.format_exc(limit=-3))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    grown = peak_bytes() - before
    if grown > MEMORY_BYTES:
        return Break(number, kind, f"takes {grown >> 20} MiB")
    if time.process_time() - begun > HANG_S:
        return Break(number, kind, f"takes {time.process_time() - begun:.1f} s")
    return outcome


def run(
    first: int, count: int, seed: int, *, limit_s: float, keep: Path | None
) -> tuple[Counter[str], list[Break], int]:
    """(outcomes, breaks, inputs done) of inputs first .. first + count - 1, or as many as the limit allows."""
    bases, outcomes, broken, done = fuzz_inputs.bases(), Counter[str](), [], 0
    begun, before = time.monotonic(), signal.signal(signal.SIGPROF, _alarm)
    with tempfile.TemporaryDirectory(prefix="osteograde-fuzz-") as folder:
        for number in range(first, first + count):
            if time.monotonic() - begun > limit_s:
                break
            rng = default_rng([seed, number])
            kind, data = fuzz_inputs.mutant(bases, rng)
            picture = kind in fuzz_inputs.PICTURES
            outcome = trial(number, kind, data, Path(folder) / f"input.{kind if picture else 'dcm'}", picture)
            done += 1
            if isinstance(outcome, Break):
                broken.append(outcome)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{number}.{kind}").write_bytes(data)
            else:
                outcomes[outcome] += 1
    signal.signal(signal.SIGPROF, before)
    return outcomes, broken, done


def _alarm(number: int, frame: object) -> None:
    raise Hang


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input: goes on where a run ended")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after so many, and say where")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that broke a reader")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    begun = time.process_time()
    outcomes, broken, done = run(args.first, args.count, args.seed, limit_s=60 * args.minutes, keep=args.keep)
    for code, times in outcomes.most_common():
        print(f"{times:>7}  {code}")
    for one in broken:
        print(f"input {one.number} ({one.kind}): {one.what}")
    print(f"inputs {args.first} to {args.first + done - 1} of seed {args.seed}: {len(broken)} broke a reader, "
          f"{time.process_time() - begun:.0f} s of CPU, {peak_bytes() >> 20} MiB at the end")  # fmt: skip
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
