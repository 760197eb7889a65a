"""The parsed arguments of a command."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

WITH_VALUE = {"-cd", "--config-dir", "-cp", "--config-path", "-cn", "--config-name", "-p", "--package", "-c", "--cfg",
              "--experimental-rerun"}  # fmt: skip
SHOWING = {"-c", "--cfg", "-i", "--info", "--hydra-help"}  # flags that only print something
FLAGS = WITH_VALUE | SHOWING | {"-m", "--multirun", "-r", "--run", "--resolve", "-sc", "--shell-completion", "-h",
                                "--help", "--version"}  # fmt: skip
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


@dataclass(frozen=True)
class Invocation:
    """The parsed arguments of a command; each step of `launch` returns a modified copy.

    Attributes:
        command: name of the command.
        flags: Hydra's flags, with their values.
        overrides: `key=value` and `~key`.
        others: the remaining arguments, which are paths of images or of a folder of them.
        sweep: folder of the sweep that is resumed.
    """

    command: str
    flags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    sweep: Path | None = None

    @property
    def multirun(self) -> bool:
        """Whether this is a sweep."""
        return "-m" in self.flags or "--multirun" in self.flags

    @property
    def shows_only(self) -> bool:
        """Whether Hydra only prints something and starts no run."""
        return bool(SHOWING & {f.split("=")[0] for f in self.flags})

    @property
    def config_dir(self) -> str | None:
        """The folder given by `-cd DIR` or `--config-dir=DIR`."""
        for i, flag in enumerate(self.flags):
            if flag in ("-cd", "--config-dir") and i + 1 < len(self.flags):
                return self.flags[i + 1]
            if flag.startswith("--config-dir="):
                return flag.split("=", 1)[1]
        return None

    @property
    def unknown_flags(self) -> list[str]:
        """The flags that Hydra does not have."""
        values = {i + 1 for i, flag in enumerate(self.flags) if flag in WITH_VALUE}
        return [
            f
            for i, f in enumerate(self.flags)
            if f.startswith("-") and i not in values and f.split("=")[0] not in FLAGS
        ]

    def with_overrides(self, overrides: Iterable[str]) -> "Invocation":
        """Return a copy with these overrides."""
        return replace(self, overrides=tuple(overrides))

    def with_others(self, others: Iterable[str]) -> "Invocation":
        """Return a copy with these remaining arguments."""
        return replace(self, others=tuple(others))

    def with_flags(self, *flags: str) -> "Invocation":
        """Return a copy with more flags."""
        return replace(self, flags=(*self.flags, *flags))

    def as_sweep(self) -> "Invocation":
        """Return a copy with `-m`."""
        return self if self.multirun else self.with_flags("-m")


def parsed(command: str, args: Iterable[str]) -> Invocation:
    """Parse the arguments of a command into Hydra's flags, overrides, and others."""
    flags: list[str] = []
    overrides: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in WITH_VALUE:
            flags += [arg, *([v] if (v := next(rest, None)) is not None else [])]
        elif flags and flags[-1] in ("-i", "--info") and arg in INFO:
            flags.append(arg)
        elif os.path.exists(arg):  # even if its name looks like a flag or an override
            others.append(arg)
        elif arg.startswith("-") and arg != "-":  # `-` is standard input
            flags.append(arg)
        elif arg.startswith("~") or "=" in arg:
            overrides.append(arg)
        else:
            others.append(arg)
    return Invocation(command, tuple(flags), tuple(overrides), tuple(others))
