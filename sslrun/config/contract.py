"""Checks of a user's own task, backbone or data set, with one line for whatever is missing or wrong."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslrun.base.errors import UserError, described
from sslrun.base.paths import EXTENDING, shown
from sslrun.config.build import locate, parameters


class Contract:
    """A function or class that a config names, and the checks of it.

    Args:
        group: config group: `pretext`, `backbone` or `dataset`.
        target: dotted name of the function or class.

    Attributes:
        ours: whether it is part of sslrun.

    Raises:
        UserError: it cannot be imported.
    """

    def __init__(self, group: str, target: str) -> None:
        self.group, self.target, self.callable = group, target, locate(target)
        self.ours = target.startswith("sslrun.")

    def broken(self, what: str) -> UserError:
        """Return an error with the target, its file, what is wrong, and the page on extending sslrun."""
        file = getattr(sys.modules[self.target.rpartition(".")[0]], "__file__", None)
        location = f" ({shown(Path(file))})" if file else ""
        return UserError(f"{self.group}: {self.target}{location}: {what}; see {shown(EXTENDING)}")

    @contextmanager
    def running(self, call: str) -> Iterator[None]:
        """Convert an error in the user's own code to one line; `HYDRA_FULL_ERROR=1` also shows the traceback."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.ours:
                raise
            hint = "HYDRA_FULL_ERROR=1 shows the traceback"
            raise self.broken(f"{call} raised {described(error)}; {hint}") from error

    def check_parameters(self, supplied: tuple[str, ...]) -> None:
        """Check that the arguments from sslrun come first, and that no other positional parameter is required.

        Args:
            supplied: names of the arguments from sslrun.

        Raises:
            UserError: the parameters differ, or an annotation cannot be resolved.
        """
        try:
            signature = inspect.signature(self.callable)
            parameters(self.callable)
        except Exception as error:  # of any type: the user's annotations may be strings
            raise self.broken(f"its annotations cannot be read: {described(error)}") from error
        kinds = [p.kind for p in signature.parameters.values()]
        names = [n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        more = [n for n in names[len(supplied) :] if signature.parameters[n].default is inspect.Parameter.empty]
        elsewhere = [n for n in supplied if n in signature.parameters and supplied.index(n) != _index(n, names)]
        enough = len(names) >= len(supplied) or inspect.Parameter.VAR_POSITIONAL in kinds
        if not enough or more or elsewhere:
            needed = f"({', '.join(supplied)}, *, keys of its YAML)"
            raise self.broken(f"its parameters must be {needed}, found {signature}")


def _index(name: str, names: list[str]) -> int:
    return names.index(name) if name in names else -1
