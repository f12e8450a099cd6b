"""Write docs/kaggle-ten.txt: the ten commands of docs/kaggle.md, typed one after the other against the stand-in.

    python -m tests.kaggle_stub.transcript FOLDER

FOLDER, empty or new, is where they run; nothing is removed from it. The commands are those of the page, with two
additions that make a transcript of minutes: the training is a ``--debug`` run, and the kernel is asked about every
second. The data of the competition are synthetic studies; the output of the kernel is the template of the competition.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

from osteograde import phantom
from osteograde.tasks import TASKS
from tests.kaggle_stub import ACCOUNT, SECRET, Stub, client_environment
from tests.kaggle_stub.world import World

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "kaggle-ten.txt"
TASK = "lumbar-mr"
STUDIES, TEST = 12, 2
ADDED = {"train_folds.py": ["--recipe", "lumbar-mr-small", "--debug"], "wait": ["--poll", "1"]}
LONGEST = 12  # lines of one command; of more, the first and the last ones
SHOWN_AT_EACH_END = 4


def commands() -> list[str]:
    """The ten commands as the page has them."""
    text = (ROOT / "docs" / "kaggle.md").read_text(encoding="utf-8")
    return [line for line in text.split("```")[1].splitlines() if line]


def typed(line: str) -> list[str]:
    """The words of a command as they are typed here."""
    words = shlex.split(line.replace("ACCOUNT", ACCOUNT))
    return words + next((more for name, more in ADDED.items() if name in words), [])


def main(folder: Path) -> None:
    """Run all of them and write the page. RuntimeError where one fails."""
    here = folder / "here"
    here.mkdir(parents=True)
    pages = []
    with Stub() as stub:
        environment = {**os.environ, **client_environment(stub, folder / "home"), "PYTHONPATH": str(ROOT / "src")}
        environment["PATH"] = f"{environment['PATH']}{os.pathsep}{os.environ['PATH']}"
        serve_competition(stub.world, folder)
        for line in commands():
            words = typed(line)
            if "push" in words:
                serve_kernel(stub.world, folder)
            program = [sys.executable, *words[1:]]
            if words[1] == "train_folds.py":
                program[1] = str(ROOT / words[1])
            done = subprocess.run(program, cwd=here, env=environment, capture_output=True, text=True)
            print(f"{done.returncode} {line}", flush=True)
            if done.returncode:
                raise RuntimeError(f"{line}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
            pages.append(f"$ {shlex.join(words)}\n{shortened(done.stdout + done.stderr, folder)}")
    text = "\n".join(pages)
    if SECRET in text:
        raise RuntimeError("the transcript holds the key")
    client = importlib.metadata.version("kaggle")
    PAGE.write_text(
        f"The ten commands of kaggle.md against the stand-in of the tests, client {client}\n\n{text}", "utf-8"
    )


def serve_competition(world: World, folder: Path) -> None:
    """Let the service have the data of the competition: synthetic studies as one archive, and its single files."""
    data = folder / "competition"
    phantom.write(TASK, data, studies=STUDIES, test=TEST, seed=20261130)
    slug = TASKS[TASK].slug
    with zipfile.ZipFile(folder / f"{slug}.zip", "w") as packed:
        for path in sorted(path for path in data.rglob("*") if path.is_file()):
            packed.write(path, path.relative_to(data).as_posix())
    files = {path.name: path.read_bytes() for path in data.glob("*.csv")}
    world.data = {**files, f"{slug}.zip": (folder / f"{slug}.zip").read_bytes()}


def serve_kernel(world: World, folder: Path) -> None:
    """Let the kernel's run have the output that a run over the test studies has: the template of the competition."""
    table = (folder / "competition" / "sample_submission.csv").read_bytes()
    world.outputs = {"submission.csv": table}
    world.log_running = log_of(f"1/{TEST} studies, 9 s (cuda:0)")
    world.log = log_of(f"result     submission.csv sha256 {hashlib.sha256(table).hexdigest()}")


def log_of(line: str) -> str:
    """The log of a kernel as the service sends it."""
    return json.dumps([{"stream_name": "stdout", "time": 1.0, "data": line + "\n"}])


def shortened(text: str, folder: Path) -> str:
    """What a command printed without the place where it ran; of many lines the first and the last ones."""
    text = text.replace(f"{folder / 'here'}/", "").replace(sys.executable, "python").replace(str(ROOT), "CLONE")
    lines = text.splitlines(keepends=True)
    if len(lines) <= LONGEST:
        return "".join(lines)
    return "".join([*lines[:SHOWN_AT_EACH_END], "...\n", *lines[-SHOWN_AT_EACH_END:]])


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("folder", type=Path, metavar="FOLDER")
    main(given.parse_args().folder.resolve())
