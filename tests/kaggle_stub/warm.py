"""The real client without its start: most of the time of a command goes into importing the packages that it needs.

A process imports them once, and forks for every command. The package ``kaggle`` itself, which logs in when it is
imported, and whatever it reads of its environment are new in every fork, as in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLIENT = [sys.executable, "-m", "kaggle"]  # how the package starts it
PROGRAM = """
import json, os, runpy, sys, tempfile
import kaggle
for name in [name for name in sys.modules if name.partition(".")[0] == "kaggle"]:
    del sys.modules[name]
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(asked["environment"])
        tempfile.tempdir = None  # which may be kept from before
        os.chdir(asked["folder"])
        for number, name in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(name, os.O_RDWR), number)
        sys.argv[1:] = asked["words"]
        runpy.run_module("kaggle", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class WarmClient:
    """Takes the place of ``subprocess`` in osteograde.kaggle.client, where that starts the client. A context."""

    TimeoutExpired, DEVNULL = subprocess.TimeoutExpired, subprocess.DEVNULL

    def __enter__(self) -> WarmClient:
        command = [sys.executable, "-c", PROGRAM]
        environment = {**os.environ, "KAGGLE_USERNAME": "nobody", "KAGGLE_KEY": "0"}  # else it looks for an account
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input is its end

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """As subprocess.run answers where it captures texts; there is no time limit."""
        assert list(command[:3]) == CLIENT and options["capture_output"] and options["text"]
        assert self.process.stdin is not None and self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch()
            err.touch()
            asked = {"words": command[3:], "environment": dict(os.environ), "folder": str(Path.cwd())}
            self.process.stdin.write(json.dumps({**asked, "out": str(out), "err": str(err)}) + "\n")
            self.process.stdin.flush()
            code = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())
