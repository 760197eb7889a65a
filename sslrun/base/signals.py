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
from typing import Any

from sslrun.base.machine import is_first

OF_CLUSTER = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
HANDLED = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)] + OF_CLUSTER
SAME_SIGNAL_SECONDS = 0.5  # a repetition within this time counts as one: `timeout` signals the process and its group
FIRST = 1000  # added to the rank of a signal of the cluster, which comes before others
_received: int | None = None  # number of the signal
_outside: dict[int, Any] = {}  # handlers before the outermost `handled()`
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

    Those of a cluster may come several times, and count more than others. Ignored signals stay ignored, such as SIGHUP
    under nohup. Outside the main thread this does nothing; contexts may be nested.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in HANDLED}
    outermost = _on_signal not in before.values()
    if outermost:
        _outside.update(before)
    for s, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(s, _on_signal)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        if outermost:
            _outside.clear()
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
    """Return what another library, such as submitit, does on a signal, where `handled()` is not nested; else None."""
    handler = _outside.get(number)
    return handler if callable(handler) and handler is not signal.default_int_handler else None


def received() -> int:
    """Return the rank of the signal that arrived within `deferred()`, see `of_rank`; 0 for none."""
    return 0 if _received is None else _received + FIRST * (_received in OF_CLUSTER)


def of_rank(rank: int) -> int:
    """Return the number of the signal with a rank: of several in several processes the largest counts."""
    return rank % FIRST


def check() -> None:
    """Raise `Stopped` if a signal has arrived."""
    if _received is not None:
        raise Stopped(_received)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    now = time.monotonic()
    if _received is not None:
        if number in OF_CLUSTER:
            _received = number
        elif now - _received_at > SAME_SIGNAL_SECONDS and _received not in OF_CLUSTER:
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
