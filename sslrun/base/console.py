"""Logging and progress on standard error; standard output is reserved for results."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from sslrun.base.machine import is_first
from sslrun.base.text import duration

log = logging.getLogger("sslrun")
_logged: set[tuple[str, str]] = set()  # of `log_once`
PLAIN_EVERY = 15.0  # seconds between lines of progress where there is no terminal
QUIET_EVERY = 60.0  # the same for runs of a study
ERR = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr and sys.stderr.isatty() else 160)


class _ToConsole(logging.Handler):
    """Prints above an active progress bar; if `quiet`, only warnings, errors and progress."""

    quiet = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.quiet and record.levelno < logging.WARNING and not hasattr(record, "progress"):
            return
        style = {logging.WARNING: "yellow", logging.ERROR: "bold red"}.get(record.levelno)
        ERR.print(Text(self.format(record), style=style or ""))


def start_logging() -> None:
    """Log to standard error; repeated calls have no effect."""
    log.setLevel(logging.INFO if is_first() else logging.CRITICAL)
    log.propagate = False
    logging.raiseExceptions = False  # no traceback if the log's disk is full
    if not any(isinstance(h, _ToConsole) for h in log.handlers):
        log.addHandler(_ToConsole())


@contextmanager
def quietly() -> Iterator[None]:
    """Show only warnings, errors and progress within the context; the run's log still gets everything."""
    before, _ToConsole.quiet = _ToConsole.quiet, True
    try:
        yield
    finally:
        _ToConsole.quiet = before


@contextmanager
def silently() -> Iterator[None]:
    """Log nothing for a while: what is looked at beforehand is looked at again, and logged, when it is used."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def log_once(place: Path | str, text: str, level: int = logging.INFO) -> None:
    """Log a line about a file or folder, unless it has been logged for this run: data is read for each split."""
    entry = (os.path.abspath(place), text)
    if entry not in _logged and not log.disabled:
        _logged.add(entry)
        log.log(level, "%s", text)


def forget_logged() -> None:
    """Let `log_once` log everything again, for the next run."""
    _logged.clear()


def printable(name: str) -> str:
    """Return a file name as text on one line, with undecodable bytes escaped."""
    return " ".join(name.encode("utf-8", "backslashreplace").decode().split())


class _Rate(ProgressColumn):
    def __init__(self, unit: str, per: float) -> None:
        super().__init__(Column(no_wrap=True))  # one line on any terminal
        self.unit, self.per = unit, per

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{self.per * speed:,.0f} {self.unit}/s" if speed else "")


@contextmanager
def progress(what: str, total: int, unit: str, before: int = 0, per: float = 1.0) -> Iterator[Callable[..., None]]:
    """Show a progress bar with rate and remaining time, or plain lines at intervals without a terminal.

    Args:
        what: description of the work.
        total: number of units, 0 if unknown.
        unit: of the rate; `B` is bytes.
        before: units done by an earlier run.
        per: how many of the unit one of the total is, such as the images of a step.

    Yields:
        A function `advance(n, note="")`, to be called after every `n` units.
    """
    if ERR.is_terminal and is_first():
        counts = (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(), _Rate(unit, per))
        columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=ERR) as bar:
            task = bar.add_task(what, total=total or None, completed=before, note="")

            def show(n: int, note: str = "") -> None:
                bar.update(task, advance=n, note=note or bar.tasks[0].fields["note"])

            yield show
        return
    started = last = time.monotonic()
    scale, shown = (1e6, "MB") if unit == "B" else (1, unit)
    every = QUIET_EVERY if _ToConsole.quiet else PLAIN_EVERY
    done = before

    def line(n: int, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= every:
            last = now
            rate = (done - before) / (now - started)
            whole = f"/{total / scale:.0f}" if total else ""
            left = f", {duration((total - done) / rate)} left" if total > done else ""
            text = f"{what} {done / scale:.0f}{whole}, {per * rate / scale:,.0f} {shown}/s{left}  {note}"
            log.info("%s", text.rstrip(), extra={"progress": True})

    yield line
