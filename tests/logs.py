"""The lines that a room of the package logs, for tests that read them or stop a run at one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Lines(logging.Handler):
    def __init__(self, stop: Callable[[str], bool]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.stop = stop

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if self.stop(self.lines[-1]):
            raise KeyboardInterrupt


@contextmanager
def logged(room: str, stop: Callable[[str], bool] = lambda line: False) -> Iterator[list[str]]:
    """Collects the lines of ``osteograde.<room>``. Where ``stop`` holds for a line the run is killed there."""
    logger, handler = logging.getLogger(f"osteograde.{room}"), _Lines(stop)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
