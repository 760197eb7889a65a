"""Commands and runs from Python: `sslrun.pretrain(...)`, `sslrun.runs()`. torch and Hydra are not imported here."""

import os
import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

PLAIN = re.compile(r"[\w./~:@-]+")  # text that the command line reads as it is
FINISHED = re.compile(r"Finished in [^:]+: (.+)")
KEPT = 200  # last lines of the output


class PastRun(dict[str, Any]):
    """One run: a flat mapping, as `sslrun runs --format json` prints it.

    A list of them is a table: `pandas.DataFrame(sslrun.runs())`.
    """

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self["run"])

    @property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        from sslrun.run.find import read_summary

        return read_summary(self.directory)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of `metrics.jsonl`: metrics while training, by step; none if the run trained no network."""
        from sslrun.run.log import METRICS, read_metrics

        return read_metrics(self.directory) if (self.directory / METRICS).is_file() else []


def runs(command: str | None = None) -> list[PastRun]:
    """Return the runs in outputs/, oldest first.

    Args:
        command: pretrain, finetune, evaluate, ...; None for all.

    Raises:
        UserError: no such command.
    """
    from sslrun.cli.listing import rows

    return [PastRun(row) for row in rows(command)]


def pretrain(*arguments: str | Path, **settings: Any) -> PastRun:
    """Run `sslrun pretrain` in a child process; print its messages, and return the finished run.

    Args:
        arguments: as on the command line: a folder of images, `key=value`.
        settings: further keys with their values, such as `pretext="rotation"`.

    Raises:
        UserError: what the command reports.
    """
    return _finished("pretrain", arguments, settings)


def finetune(*arguments: str | Path, **settings: Any) -> PastRun:
    """Run `sslrun finetune`, as `pretrain` does."""
    return _finished("finetune", arguments, settings)


def evaluate(*arguments: str | Path, **settings: Any) -> PastRun:
    """Run `sslrun evaluate`, as `pretrain` does."""
    return _finished("evaluate", arguments, settings)


def _finished(command: str, arguments: tuple[str | Path, ...], settings: dict[str, Any]) -> PastRun:
    """Run a command and return its run; an interruption is passed on, so that the command saves its state."""
    from sslrun.base.errors import UserError
    from sslrun.cli.listing import row_of

    words = [*map(str, arguments), *(f"{key}={_text(value)}" for key, value in settings.items())]
    if "-m" in words or "--multirun" in words:
        raise UserError(f"sslrun.{command} runs one run; use a loop, or the command line for a sweep (-m)")
    lines: deque[str] = deque(maxlen=KEPT)
    with subprocess.Popen(
        [sys.executable, "-m", "sslrun", command, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", env=_environment(),
        start_new_session=True,  # signals of this process reach it only if they are passed on
    ) as process:  # fmt: skip
        try:
            _echo(process, lines)
        except KeyboardInterrupt:
            process.terminate()  # SIGINT is ignored in processes of a shell's background
            _echo(process, lines)
            raise
        finally:
            if process.poll() is None and sys.exc_info()[0] not in (None, KeyboardInterrupt):
                process.terminate()
    if process.returncode != 0:
        raise UserError(_mistakes(list(lines)) or f"sslrun {command} ended with exit code {process.returncode}")
    directory = next((m[1] for line in reversed(lines) if (m := FINISHED.fullmatch(line))), None)
    if directory is None:
        raise UserError(f"sslrun {' '.join([command, *words])} makes no run")
    return PastRun(row_of(Path(directory)))


def _mistakes(lines: list[str]) -> str:
    """Return the last message of an error, which may have several lines."""
    begins = [i for i, line in enumerate(lines) if line.startswith("sslrun: ")]
    return "\n".join(lines[begins[-1] :]).removeprefix("sslrun: ") if begins else ""


def _echo(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))


def _environment() -> dict[str, str]:
    """Return the environment of the child process, which imports the same sslrun."""
    package = str(Path(__file__).parents[2])
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "CLICOLOR_FORCE")}  # which kernels set
    return kept | {
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
    }


def _text(value: Any) -> str:
    """Return a value as it is typed."""
    from sslrun.config.grammar import literal

    plain = _plain(value)
    return plain if isinstance(plain, str) and PLAIN.fullmatch(plain) else literal(plain)


def _plain(value: Any) -> Any:
    """Return a value without paths, tuples, and numbers of NumPy."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.item() if hasattr(value, "item") else value
