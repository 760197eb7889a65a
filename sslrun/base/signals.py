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
SAME_SIGNAL_SECONDS = (
    0.5  # seconds in which a repeated signal is the same one: `timeout` sends it to the process and its group
)
_received: int | None = None  # the signal that came
_received_at = 0.0
_deferring = False


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
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in HANDLED}
    for s, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(s, _on_signal)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        _received = None


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait until `check` is called."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def stop_requested() -> bool:
    """Tell whether a signal came during `later()`."""
    return _received is not None


def check() -> None:
    """Raise `Stopped` if a signal came."""
    if _received is not None:
        raise Stopped(_received)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    now = time.monotonic()
    if _received is not None:
        if now - _received_at > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)
        return
    _received, _received_at = number, now
    message = f"\n{signal.Signals(number).name}: finishing the step, saving\n" if _deferring else "\n"
    stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
    try:
        os.write(stderr, message.encode())  # past Python's buffers, which this may have interrupted
    except OSError:  # the terminal is closed, or the pipe's reader gone: nothing that is said later may fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), stderr)
    if not _deferring:
        raise Stopped(number)
