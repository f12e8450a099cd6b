"""Ctrl-C: the first one ends a command in good order and with a word on how to go on, the second one at once.

Python raises KeyboardInterrupt wherever the main thread happens to be. Where that is a function that compiled code has
called, the compiled code may turn it into an error of its own: safetensors that is stopped while it makes a tensor ends
in a ValueError. So whatever error ends a command after Ctrl-C is taken for the interrupt (``explained``), and a loop
that passes over single failures asks whether Ctrl-C was one of them (``check``).

Part of the lowest layer: every room may import this module.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_AGAIN_S = 0.02  # after which an interrupt that came during an import is tried again


def listen() -> None:
    """From now on Ctrl-C is what this module says. A process that ignores it, as one
    in the background of a shell does, goes on ignoring it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def was_sent() -> bool:
    """Whether Ctrl-C has come since ``listen``."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # which Python itself never sets


def check() -> None:
    """Raise KeyboardInterrupt where Ctrl-C has come and its own was lost."""
    if was_sent():
        _forget_the_delayed_one()
        raise KeyboardInterrupt


class explained:
    """A block whose end by Ctrl-C is a KeyboardInterrupt that says how to go on.

    how: called with what the KeyboardInterrupt says so far, "" if nothing; gives the text of the one that leaves the
    block. Every other error that leaves it after Ctrl-C becomes the same; before, errors pass unchanged.
    """

    def __init__(self, how: Callable[[str], str]) -> None:
        self.how = how

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or not (isinstance(error, KeyboardInterrupt) or was_sent()):
            return
        _forget_the_delayed_one()
        said = " ".join(map(str, error.args)) if isinstance(error, KeyboardInterrupt) else ""
        raise KeyboardInterrupt(self.how(said)) from None


@contextmanager
def ignored() -> Iterator[Callable[[], None]]:
    """Ignore SIGINT until the function that this gives is called, or the block ends.

    A process that is started meanwhile ignores it for good, from its first moment: Ctrl-C is then the parent's alone,
    which says one line, and no process dies with a traceback or breaks the pool. In other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def restore() -> None:
        signal.signal(signal.SIGINT, before)

    try:
        yield restore
    finally:
        restore()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; where a module is being imported, once that is over: half a module, or an extension that
    takes the interrupt for a fault of its own, would end in some other error."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one ends the process, whatever it is doing
    if _is_importing(frame):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        raise KeyboardInterrupt


def _forget_the_delayed_one() -> None:
    """No second KeyboardInterrupt comes from an import that the first signal waited for."""
    if was_sent():
        signal.setitimer(signal.ITIMER_REAL, 0)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False
