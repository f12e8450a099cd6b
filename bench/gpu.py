"""Everything of the kit that runs on a GPU, once, in under eight minutes: does it work there, and how fast is it?

    python bench/gpu.py --out gpu.json                        # the first GPU that works
    python bench/gpu.py --out gpu.json --device cpu --tiny    # all parts, small, on a CPU: a test of this script

Needs a checkout with its shipped weights, and nothing from the network. Each part (``gpu_parts.py`` says what it
measures) is a process of its own with its own time limit; one that fails or is late is reported with what it had
measured, and the others go on. Writes the JSON file and a table of the same name in Markdown, anew after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).resolve().parent
TOTAL_S = 460.0
LIMITS_S = {  # part -> seconds, in the order of worth: what there is no time left for is said to be left out
    "probe": 60,
    "phantoms": 90,
    "answers": 90,
    "inference": 90,
    "train-fp16": 75,
    "train-bf16": 60,
    "two-devices": 60,
    "train-fp16-compiled": 90,
    "train-bf16-compiled": 90,
}
TINY = 5  # times as long for a test of this script: its CPUs may be busy
LEAST_S = 10.0  # a part with less is not begun
LAST_LINES = 8


@dataclass(frozen=True)
class Outcome:
    """What became of a part. state: "done", "failed", "out of time" or "left out"; said: the end of its log where it
    is not done; rows: what it measured, up to where it ended."""

    part: str
    state: str
    seconds: float
    rows: tuple[Mapping[str, Any], ...]
    said: str = ""


def run_part(part: str, command: Sequence[str], folder: Path, limit_s: float) -> Outcome:
    """Run a command that adds lines of JSON to the file whose name is its last argument; it is killed when late."""
    rows_path, log_path, begun = folder / f"{part}.jsonl", folder / f"{part}.log", time.monotonic()
    if limit_s < LEAST_S:
        return Outcome(part, "left out", 0.0, (), "no time was left")
    with log_path.open("wb") as log_file:
        process = subprocess.Popen(
            [*command, str(rows_path)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own children end with it
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    state = "done" if code == 0 else "out of time" if code is None else "failed"
    said = "" if code == 0 else _end_of(log_path) + ("" if code is None else f"\nexit code {code}")
    return Outcome(part, state, round(time.monotonic() - begun, 1), _rows(rows_path), said.strip())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a part and of the processes that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    process.wait()


def _rows(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The complete lines of a file that was perhaps cut off while it was written."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return tuple(json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n"))


def _end_of(log_path: Path) -> str:
    return "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])


def write(outcomes: Sequence[Outcome], said: str, out: Path) -> None:
    """The JSON file, and its tables beside it."""
    facts = {"machine": machine.described(), "watch": said, "parts": [asdict(one) for one in outcomes]}
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {machine.described()}", "", f"{said}", "", "| part | state | seconds |", "|---|---|---|"]
    lines += [f"| {one.part} | {one.state} | {one.seconds:g} |" for one in outcomes]
    for one in outcomes:
        lines += ["", f"## {one.part}", "", *table(one.rows)]
        lines += ["", "```", *one.said.splitlines(), "```"] if one.said else []
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as lines of a Markdown table; of a single one a line for each of its values."""
    if not rows:
        return ["Nothing was measured."]
    if len(rows) == 1:
        return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows[0].items())]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return [*lines, *(f"| {' | '.join(_cell(row.get(name, '')) for name in names)} |" for row in rows)]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--tiny", action="store_true", help="few and small studies, short trainings")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(LIMITS_S), help="all if not given")
    parser.add_argument("--seconds", type=float, default=0, help="for all parts; default: 460")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(LIMITS_S):
        parser.error(f"unknown parts {sorted(unknown)}; known: {list(LIMITS_S)}")
    scale = TINY if args.tiny else 1
    ends, watch = time.monotonic() + (args.seconds or scale * TOTAL_S), machine.Watch()
    command = [sys.executable, str(HERE / "gpu_parts.py"), "--device", args.device, *["--tiny"][: args.tiny]]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place:
        for part in [part for part in LIMITS_S if part in args.parts]:
            limit = min(scale * LIMITS_S[part], ends - time.monotonic())
            one = run_part(part, [*command, "--data", str(Path(place) / "data"), part], Path(place), limit)
            outcomes.append(one)
            print(f"{part}: {one.state}, {one.seconds:g} s{one.said and ': '}{one.said}", flush=True)
            write(outcomes, str(watch), args.out)
    print(f"written: {args.out} and {args.out.with_suffix('.md')}")
    return 0 if all(one.state == "done" for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
