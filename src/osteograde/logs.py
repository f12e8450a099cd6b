"""Log lines on the terminal. One logger per room ("osteograde.inference"); an entry script calls ``to_stdout`` once.

Part of the lowest layer: every room may import this module.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO


class _Stdout(logging.StreamHandler):
    """Writes to whatever sys.stdout is at that moment, and flushes after every line: logs are read while it runs."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def to_stdout() -> None:
    """Print the messages of all rooms, bare, one a line, on stdout. Calling it again changes nothing."""
    package = logging.getLogger("osteograde")
    package.setLevel(logging.INFO)
    if not any(isinstance(handler, _Stdout) for handler in package.handlers):
        package.addHandler(_Stdout())
