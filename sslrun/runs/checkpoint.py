"""Checkpoints: atomic save, and a load that executes nothing and checks every byte and key.

last.pt          the newest, with the optimiser's state: a run goes on from it
previous.pt      the one before, in case the newest is damaged
best.pt          the weights that were best on validation
step_000500.pt   every so many steps, if train.keep_every says so
"""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import replacing
from sslrun.base.version import __version__
from sslrun.config.build import refuse_foreign, renamed
from sslrun.config.renames import SUMMARY, renamed_keys
from sslrun.runs.find import LAST, PREVIOUS


class Damaged(UserError):
    """A file does not hold what was written into it."""


RESUMABLE_KEYS = {"model", "optimizer", "scaler", "step", "best", "metrics"}  # what a training goes on from
OURS = "sslrun"  # the key under which a checkpoint of ours has the version


def save(path: Path, content: dict[str, Any], before: Path | None = None) -> None:
    """Write a checkpoint as a whole or not at all: temporary file, flush, fsync, rename.

    torch writes a checksum of each tensor, which `load` compares.

    Args:
        before: where the file that `path` was before goes; None drops it.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the checkpoint before it is intact.
    """
    try:
        with replacing(path, before) as temporary, temporary.open("wb") as file:
            torch.save({OURS: __version__, **content}, file)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        raise UserError(f"cannot write {path} ({reason}); the checkpoint before it is kept, free some space") from None


def _sync(folder: Path) -> None:
    """Have a rename on the disk before anything else is done; Windows knows no such thing for folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            log.info("%s cannot be synchronised: %s", folder, error.strerror)  # some network drives
        finally:
            os.close(handle)


def newest_intact(directory: Path, resumable: bool = False) -> tuple[Path, dict[str, Any]]:
    """Read the newest checkpoint of a run that is whole; a damaged one is passed over, and said.

    Args:
        resumable: it must hold the state of a training, not weights alone.

    Raises:
        UserError: none is whole.
    """
    last, previous = directory / LAST, directory / PREVIOUS

    def loaded(path: Path) -> dict[str, Any]:
        content = load(path)
        if resumable and not content.keys() >= RESUMABLE_KEYS:
            raise Damaged(
                f"{path} has no {', '.join(sorted(RESUMABLE_KEYS - content.keys()))}: it is not of a training"
            )
        if resumable and content["step"] < 0:
            raise Damaged(f"{path} is damaged: it is of step {content['step']}")
        return content

    reason = f"{last} is missing"  # a process was killed between two renames
    if last.is_file() or not previous.is_file():
        try:
            return last, loaded(last)
        except Damaged as error:
            if not previous.is_file():
                raise
            reason = str(error)
    content = loaded(previous)
    log.warning("%s. The checkpoint before it is used, of step %s", reason, content.get("step"))
    return previous, content


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours or a bare state dict, with `weights_only=True`: nothing in it can execute.

    Raises:
        Damaged: the file is not whole, or no file of weights.
        UserError: no such file, it cannot be read, or it would call what is not ours.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if zipfile.is_zipfile(path):  # files of torch before 1.6 are none, and have no checksums
            with zipfile.ZipFile(path) as file:
                wrong = file.testzip()
            if wrong:
                raise zipfile.BadZipFile(f"wrong checksum of {wrong}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'no memory is left'}") from None
    except Exception as error:  # of many kinds, all of which mean bytes that are not a checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"{path} is damaged or is not a file of weights: {reason[:150]}") from None
    if not isinstance(content, dict) or not content:
        raise Damaged(f"{path} holds {type(content).__name__}, not weights")
    if OURS in content:
        _check_entries(content, path)
        if "config" in content:
            content["config"] = renamed(content["config"])
        if "metrics" in content:
            content["metrics"] = renamed_keys(content["metrics"], SUMMARY)
    return content


def _check_entries(content: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose parts are not what their names say, or whose config would call what is not ours."""
    kinds = {"config": dict, "class_names": list, "step": int, "metrics": dict, "model": dict}
    wrong = [k for k, kind in kinds.items() if k in content and not isinstance(content[k], kind)]
    if not wrong and not all(isinstance(v, Tensor) for v in content.get("model", {}).values()):
        wrong = ["model"]
    if wrong:
        raise Damaged(f"{path} is damaged: its {', '.join(wrong)} is something else")
    refuse_foreign(renamed(content.get("config")), path)
