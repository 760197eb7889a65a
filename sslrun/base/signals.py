"""Stopping in order: Ctrl-C, SIGTERM (a preempted node) and SIGHUP (a closed terminal)."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AT_ONCE = 0.5  # seconds in which a repeated signal is the same one: `timeout` sends it to the process and its group
_asked: int | None = None  # the signal that came
_asked_at = 0.0
_waits = False


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
    """Turn the signals into `Stopped`: at once, or where `check` is called in `later()`. A second ends the process.

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
def later() -> Iterator[None]:
    """Let a signal wait until `check` is called."""
    global _waits
    _waits = True
    try:
        yield
    finally:
        _waits = False


def asked() -> bool:
    """Tell whether a signal came during `later()`."""
    return _asked is not None


def check() -> None:
    """Raise `Stopped` if a signal came."""
    if _asked is not None:
        raise Stopped(_asked)


def _came(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at
    now = time.monotonic()
    if _asked is not None:
        if now - _asked_at > AT_ONCE:
            os._exit(128 + number)
        return
    _asked, _asked_at = number, now
    said = f"\n{signal.Signals(number).name}: finishing the step, saving\n" if _waits else "\n"
    stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
    try:
        os.write(stderr, said.encode())  # past Python's buffers, which this may have interrupted
    except OSError:  # the terminal is closed, or the pipe's reader gone: nothing that is said later may fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), stderr)
    if not _waits:
        raise Stopped(number)
