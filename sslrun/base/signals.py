"""Graceful stop on Ctrl-C, SIGTERM, SIGHUP (a closed terminal), and the signals of a cluster that wants its node back.

SLURM sends SIGUSR1 where a job script says `#SBATCH --signal=USR1@120`, and submitit SIGUSR2.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sslrun.base.machine import is_first

OF_CLUSTER = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
HANDLED = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)] + OF_CLUSTER
SAME_SIGNAL_SECONDS = 0.5  # a repetition within this time counts as one: `timeout` signals the process and its group
_received: int | None = None  # number of the signal
_received_at = 0.0
_deferring = False


class Stopped(KeyboardInterrupt):
    """Raised when a signal requests the end of the process.

    Attributes:
        number: number of the signal; the exit code is `128 + number` by convention.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def handled() -> Iterator[None]:
    """Raise `Stopped` on a signal: immediately, or at the next `check` within `deferred()`. A second signal exits.

    Ignored signals stay ignored, such as SIGHUP under nohup. Outside the main thread this does nothing.
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
    """Defer signals until `check` is called."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def handler_outside(number: int) -> Callable[[int, None], object] | None:
    """Return what another library, such as submitit, does on a signal, after `handled()`; None for nothing."""
    handler = signal.getsignal(number)
    ours = handler in (_on_signal, signal.default_int_handler)
    return handler if callable(handler) and not ours else None


def received() -> int:
    """Return the number of the signal that arrived within `deferred()`; 0 for none."""
    return _received or 0


def check() -> None:
    """Raise `Stopped` if a signal has arrived."""
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
        if is_first():
            os.write(stderr, message.encode())  # unbuffered: the signal may have interrupted a buffered write
    except OSError:  # terminal or pipe closed: later messages must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), stderr)
    if not _deferring:
        raise Stopped(number)
