"""Log lines and progress. One logger per room ("osteograde.inference"); an entry script calls ``to_stdout`` once.

Progress is shown in one of two ways, never in both: as bars with the time left where stderr is a terminal and the
script asks for bars, else as a log line a minute. Without ``to_stdout``, as in a notebook that imports the package, it
is not shown at all.

Part of the lowest layer: every room may import this module. A kernel carries it; tqdm is imported for a bar alone.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO, TypeVar

LINE_EVERY_S = 60.0  # of progress in a log
PROGRESS = {"progress": True}  # ``extra`` of a log line that bars show too; in a log at most one a minute is printed
T = TypeVar("T")


class _Stdout(logging.StreamHandler):
    """Writes to whatever sys.stdout is at that moment, and flushes after every line: logs are read while it runs.

    bars: progress is drawn on stderr, so lines of progress are not printed. every_s: seconds between two of them; 0 for
    all that the work itself says. said: when the last one was.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.bars, self.every_s, self.said = False, LINE_EVERY_S, time.monotonic()

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def is_due(self) -> bool:
        """Whether a line of progress may be printed."""
        return not self.bars and time.monotonic() - self.said >= self.every_s

    def handleError(self, record: logging.LogRecord) -> None:
        """A reader that is gone ends the run (``cli.run``); what else goes wrong with a line is told on stderr."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "progress", False):
            if not self.is_due():
                return
            self.said = time.monotonic()
        with _bars_aside() if self.bars else nullcontext():
            super().emit(record)


def to_stdout(*, bars: bool = False, every_s: float | None = None) -> None:
    """Print the messages of all rooms, bare, one a line, on stdout. bars: where stderr is a terminal, progress is drawn
    there. every_s: seconds between two lines of progress, ``LINE_EVERY_S`` if not given; 0 prints every finished chunk
    of studies, as the log of a kernel needs to be timed by. Calling it again changes nothing but these."""
    package = logging.getLogger("osteograde")
    package.setLevel(logging.INFO)
    handler = _handler()
    if handler is None:
        handler = _Stdout()
        package.addHandler(handler)
    handler.every_s = LINE_EVERY_S if every_s is None else every_s
    handler.bars = bars and _is_terminal(sys.stderr)


def _is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a bar has room."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def _handler() -> _Stdout | None:
    return next((one for one in logging.getLogger("osteograde").handlers if isinstance(one, _Stdout)), None)


def _bars_aside() -> Any:
    """Context in which no bar is on the screen, so that a line can be written there."""
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stdout)


class Progress:
    """Work of a known amount that is under way. Work within it is a part: its bar is drawn below, and the log line of
    a part ends with what the whole says.

    title: may be changed as the work goes on. done: units so far.
    """

    def __init__(self, title: str, total: int, unit: str, log: logging.Logger, whole: Progress | None = None) -> None:
        self.title, self.total, self.unit, self.log, self.whole = title, total, unit, log, whole
        self.done, self.note = 0, ""
        self._begun = self._last = time.monotonic()  # _last: when the units that are done were done
        handler = _handler()
        self._bar = _bar(title, total, unit) if handler is not None and handler.bars else None

    def advance(self, amount: int = 1, note: str = "") -> None:
        """So many units more are done. note: a few words that are shown beside it."""
        self.done, self.note = self.done + amount, note or self.note
        self._last = time.monotonic() if amount else self._last
        if self._bar is not None:
            self._bar.set_description(self.title, refresh=False)
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(amount)
        elif (handler := _handler()) is not None and handler.every_s and handler.is_due():
            self.log.info(self.line(), extra=PROGRESS)

    def line(self) -> str:
        """What has been done and how long the rest will take."""
        note = f", {self.note}" if self.note else ""
        own = f"{self.title}: {self.done} of {self.total} {self.unit}{note}"
        return f"{own}; {self.whole.line()}" if self.whole is not None else f"{own}, {self._time_left()}"

    def _time_left(self) -> str:
        if not self.done:
            return "time left not known yet"
        left = (self._last - self._begun) / self.done * (self.total - self.done) - (time.monotonic() - self._last)
        return f"about {duration(max(0.0, left))} left"

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()


def _bar(title: str, total: int, unit: str) -> Any:
    from tqdm import tqdm

    # smoothing 0: the time left follows from the mean speed, since studies and epochs take unequally long
    return tqdm(total=total, desc=title, unit=f" {unit}", file=sys.stderr, leave=False, dynamic_ncols=True, smoothing=0)


@contextmanager
def progress(
    title: str, total: int, unit: str, log: logging.Logger, whole: Progress | None = None
) -> Iterator[Progress]:
    """Work of ``total`` units, shown until the block is left. log: where its lines go. whole: what it is a part of."""
    one = Progress(title, total, unit, log, whole)
    try:
        yield one
    finally:
        one.close()


def counted(
    items: Sequence[T], title: str, unit: str, log: logging.Logger, whole: Progress | None = None
) -> Iterable[T]:
    """The items one by one; each is done when the next one is asked for."""
    with progress(title, len(items), unit, log, whole) as shown:
        for item in items:
            yield item
            shown.advance()


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42), duration(600), duration(4321), duration(200000)
    ('42 s', '10 min', '1 h 12 min', '55 h 33 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
