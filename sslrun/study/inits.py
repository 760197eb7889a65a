"""The entries of `inits=`: what a study compares. torch is not imported here."""

import shlex
from collections.abc import Sequence

from sslrun.base.errors import UserError
from sslrun.config.grammar import key_of
from sslrun.config.names import nearest
from sslrun.run.encoders import IMAGENET, PRETRAINED, SCRATCH

WITHOUT_TASK = (SCRATCH, PRETRAINED, IMAGENET)  # entries that are no pretext task
OF_WEIGHTS = ("dataset.image_size", "dataset.mean", "dataset.std")  # keys that follow from published weights


def parsed(entry: str, known: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of an entry and its settings: `simclr pretext.temperature=0.1`.

    Args:
        entry: scratch, pretrained, or a pretext task, with settings.
        known: names of the pretext tasks.

    Raises:
        UserError: no such task, quotes do not match, or scratch or pretrained have settings.
    """
    try:
        name, *settings = shlex.split(entry) or [""]
    except ValueError as error:
        raise UserError(str(error)) from None
    if name in WITHOUT_TASK:
        if settings:
            raise UserError(f"{name} has no settings of its own; remove {settings[0]}")
    elif name not in known:
        hint = nearest(name, [*known, SCRATCH, PRETRAINED])
        choices = ", ".join([SCRATCH, PRETRAINED, *known])
        raise UserError(f"no pretext {name!r}{hint or '.'} Choices: {choices}")
    return name, settings


def name_of(entry: str) -> str:
    """Return the name of an entry, without its settings."""
    return (entry.split() or [""])[0]


def tasks_of(inits: Sequence[str]) -> list[str]:
    """Return the entries that are pretext tasks, without repetitions."""
    return [e for e in dict.fromkeys(inits) if name_of(e) not in WITHOUT_TASK]


def has_published(inits: Sequence[str]) -> bool:
    """Return whether a network with published weights is compared."""
    return any(name_of(e) in (PRETRAINED, IMAGENET) for e in inits)


def is_continued(entry: str) -> bool:
    """Return whether a pretext task continues from published weights."""
    return any(key_of(s) == "init" and s.partition("=")[2] in (PRETRAINED, IMAGENET) for s in entry.split()[1:])
