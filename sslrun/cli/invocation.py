"""What was typed after a command's name."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

WITH_VALUE = {"-cd", "--config-dir", "-cp", "--config-path", "-cn", "--config-name", "-p", "--package", "-c", "--cfg",
              "--experimental-rerun"}  # fmt: skip
SHOWING = {"-c", "--cfg", "-i", "--info", "--hydra-help"}  # these show something and start nothing
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


@dataclass(frozen=True)
class Invocation:
    """What was typed, sorted; the steps of `launch` make one of another.

    Attributes:
        command: the command's name.
        flags: Hydra's.
        overrides: `key=value`, `~key`.
        others: what is neither, which are names of pictures.
        sweep: the folder of a stopped sweep that goes on.
    """

    command: str
    flags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    sweep: Path | None = None

    @property
    def multirun(self) -> bool:
        """Tell whether it is a sweep."""
        return "-m" in self.flags or "--multirun" in self.flags

    @property
    def shows_only(self) -> bool:
        """Tell whether Hydra is to show something and to start nothing."""
        return bool(SHOWING & {f.split("=")[0] for f in self.flags})

    @property
    def config_dir(self) -> str | None:
        """Return the folder that `-cd DIR` or `--config-dir=DIR` names."""
        for i, flag in enumerate(self.flags):
            if flag in ("-cd", "--config-dir") and i + 1 < len(self.flags):
                return self.flags[i + 1]
            if flag.startswith("--config-dir="):
                return flag.split("=", 1)[1]
        return None

    def with_overrides(self, overrides: Iterable[str]) -> "Invocation":
        """Return it with other overrides."""
        return replace(self, overrides=tuple(overrides))

    def with_flags(self, *flags: str) -> "Invocation":
        """Return it with more flags."""
        return replace(self, flags=(*self.flags, *flags))

    def as_sweep(self) -> "Invocation":
        """Return it as a sweep."""
        return self if self.multirun else self.with_flags("-m")


def parsed(command: str, args: Iterable[str]) -> Invocation:
    """Sort the arguments of a command into Hydra's flags, overrides, and others."""
    flags: list[str] = []
    overrides: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in WITH_VALUE:
            flags += [arg, *([v] if (v := next(rest, None)) is not None else [])]
        elif flags and flags[-1] in ("-i", "--info") and arg in INFO:
            flags.append(arg)
        elif os.path.exists(arg):  # whatever its name looks like
            others.append(arg)
        elif arg.startswith("-") and arg != "-":  # which is standard input
            flags.append(arg)
        elif arg.startswith("~") or "=" in arg:
            overrides.append(arg)
        else:
            others.append(arg)
    return Invocation(command, tuple(flags), tuple(overrides), tuple(others))
