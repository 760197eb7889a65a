"""A logger of a server, called in a thread, so that neither a slow server nor an unreachable one stops a run."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sslrun.base.console import log
from sslrun.base.text import counted

PAUSES = (1.0, 10.0, 60.0, 300.0)  # seconds between the tries to send an entry, which is then left out
LONGEST = 150  # characters of a reason


class InBackground:
    """Passes on everything to a logger, in order, in a thread; its errors become warnings.

    Args:
        logger: any `Logger`.
        name: for the warnings.
    """

    def __init__(self, logger: Any, name: str) -> None:
        self._logger, self._name = logger, name
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._left_out, self._warned = 0, False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self._calls.put(lambda: self._logger.scalars(step, values))

    def image(self, name: str, png: Path) -> None:
        """Log an image from a file."""
        self._calls.put(lambda: self._logger.image(name, png))

    def sync(self) -> None:
        """Do nothing: nothing relies on what a server has."""

    def forget_after(self, step: int) -> None:
        """Let the logger prepare for the entries of later steps, which are repeated."""
        self._calls.put(lambda: self._logger.forget_after(step))

    def close(self, summary: Mapping[str, Any]) -> None:
        """Send the end of the run, without waiting; see `wait`."""
        self._calls.put(lambda: self._logger.close(summary))
        self._calls.put(None)
        self._closing.set()

    def wait(self, seconds: float) -> None:
        """Wait for the server after `close`, but not longer than so many seconds."""
        self._thread.join(max(0.0, seconds))
        left_out = self._left_out + (self._calls.qsize() if self._thread.is_alive() else 0)
        if left_out:
            log.warning(
                "%s: %s could not be sent; the run directory has all of them", self._name, counted(left_out, "message")
            )

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if not self._sent(call):
                self._left_out += 1

    def _sent(self, call: Callable[[], object]) -> bool:
        """Try to send an entry: several times while the run trains, once at its end or if it cannot help."""
        for pause in PAUSES:
            try:
                call()
                return True
            except BaseException as error:  # of any type: these libraries raise many
                self._warn(error)
                if _is_permanent(error):
                    return False
            if self._closing.wait(pause):
                return False
        return False

    def _warn(self, error: BaseException) -> None:
        if not self._warned:
            log.warning("%s: %s; the run continues", self._name, reason_of(error))
        self._warned = True


def _is_permanent(error: BaseException) -> bool:
    """Return whether the next try would fail in the same way."""
    return isinstance(error, ImportError | ValueError | TypeError | AttributeError) or any(
        word in str(getattr(error, "error_code", "")) for word in ("INVALID", "PERMISSION", "NOT_FOUND", "NOT_EXIST")
    )


def reason_of(error: BaseException) -> str:
    """Return the beginning of an error's message."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
