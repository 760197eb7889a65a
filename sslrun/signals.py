"""Stopping in order: Ctrl-C, SIGTERM (a preempted node) and SIGHUP (a closed terminal)."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_asked: int | None = None  # the signal that came
_in_steps = False


class Stopped(KeyboardInterrupt):
    """A signal asked for the end.

    Attributes:
        number: of the signal; shells expect `128 + number` as the exit code.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def handled() -> Iterator[None]:
    """Turn the signals into `Stopped`: at once, or after the step in `steps()`. A second signal ends the process.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Off the main thread nothing is changed.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in HANDLED}
    for s, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(s, _came)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        _asked = None


@contextmanager
def steps() -> Iterator[None]:
    """Let a signal wait until `check` is called."""
    global _in_steps
    _in_steps = True
    try:
        yield
    finally:
        _in_steps = False


def asked() -> bool:
    """Tell whether a signal came during `steps()`."""
    return _asked is not None


def check() -> None:
    """Raise `Stopped` if a signal came."""
    if _asked is not None:
        raise Stopped(_asked)


def _came(number: int, frame: FrameType | None) -> None:
    global _asked
    again, _asked = _asked is not None, number
    if again:
        os._exit(128 + number)
    if not _in_steps:
        raise Stopped(number)
    name = signal.Signals(number).name  # written past Python's buffers, which this may have interrupted
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{name}: finishing the step, saving\n".encode())
