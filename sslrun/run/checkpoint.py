"""Checkpoints: saved atomically, loaded without executing code, with checksums and keys verified.

last.pt          the newest, with the optimizer state, for resuming
previous.pt      the one before it, in case the newest is damaged
best.pt          the weights with the best validation metric, or the last ones if nothing is chosen
step_000500.pt   every `train.keep_every` steps, if set
"""

import os
import re
import warnings
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
from sslrun.run.find import LAST, PREVIOUS


class Damaged(UserError):
    """A checkpoint is damaged or incomplete."""


RESUMABLE_KEYS = {"model", "optimizer", "scaler", "step", "best", "metrics"}  # required to resume a training
OURS = "sslrun"  # key of the version, which only checkpoints of sslrun have


def save(path: Path, content: dict[str, Any], before: Path | None = None) -> None:
    """Save a checkpoint atomically: temporary file, flush, fsync, rename.

    torch writes a checksum of each tensor, which `load` verifies.

    Args:
        before: path that the previous file is moved to; None overwrites it.

    Raises:
        UserError: the disk is full or the folder is not writable; the previous checkpoint is intact.
    """
    try:
        with replacing(path, before) as temporary, temporary.open("wb") as file:
            torch.save({OURS: __version__, **content}, file)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        raise UserError(f"cannot write {path} ({reason}); the previous checkpoint is kept") from None


def _sync(folder: Path) -> None:
    """Flush a rename in a folder to the disk. Windows does not support this."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            log.info("Cannot fsync %s: %s", folder, error.strerror)  # some network drives
        finally:
            os.close(handle)


def newest_intact(directory: Path, resumable: bool = False) -> tuple[Path, dict[str, Any]]:
    """Load the newest intact checkpoint of a run; log a warning if the newest is damaged.

    Args:
        resumable: require the full state of a training, not only weights.

    Returns:
        Path and content.

    Raises:
        UserError: no checkpoint is intact.
    """
    last, previous = directory / LAST, directory / PREVIOUS

    def loaded(path: Path) -> dict[str, Any]:
        content = load(path)
        if resumable and not content.keys() >= RESUMABLE_KEYS:
            missing = ", ".join(sorted(RESUMABLE_KEYS - content.keys()))
            raise Damaged(f"{path} is not the checkpoint of a training: it has no {missing}")
        if resumable and content["step"] < 0:
            raise Damaged(f"{path} is damaged: step is {content['step']}")
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
    log.warning("%s. Using the previous checkpoint, of step %s", reason, content.get("step"))
    return previous, content


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint of sslrun or a bare state dict, with `weights_only=True`, so that no code is executed.

    Raises:
        Damaged: the file is damaged or not a checkpoint.
        UserError: there is no such file, it cannot be read, or its config would call foreign code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if zipfile.is_zipfile(path):  # files of torch < 1.6 are not zip archives and have no checksums
            with zipfile.ZipFile(path) as file:
                wrong = file.testzip()
            if wrong:
                raise zipfile.BadZipFile(f"wrong checksum in {wrong}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are reported below if they cannot be read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'out of memory'}") from None
    except Exception as error:  # torch raises many types for invalid files
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise Damaged(
                f"{path} has more than tensors: loading it could run code ({code[1]}), so it is refused; save only the "
                "state dict"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.partition(". ")[0]  # torch advises to load the file without protection
        if reason == "Weights only load failed" or reason.isdigit():
            reason = "it is no file of torch.save, or has more than tensors"
        raise Damaged(f"{path} is damaged or not a checkpoint: {reason[:150]}") from None
    if not isinstance(content, dict) or not content:
        raise Damaged(f"{path} is not a checkpoint: expected a dict of weights, found {type(content).__name__}")
    if OURS in content:
        _check_entries(content, path)
        if "config" in content:
            content["config"] = renamed(content["config"])
        if "metrics" in content:
            content["metrics"] = renamed_keys(content["metrics"], SUMMARY)
    return content


def _check_entries(content: dict[str, Any], path: Path) -> None:
    """Check the types of a checkpoint's entries, and that its config calls no foreign code."""
    types = {"config": dict, "class_names": list, "step": int, "metrics": dict, "model": dict}
    wrong = [k for k, type_ in types.items() if k in content and not isinstance(content[k], type_)]
    if not wrong and not all(isinstance(v, Tensor) for v in content.get("model", {}).values()):
        wrong = ["model"]
    if wrong:
        raise Damaged(f"{path} is damaged: wrong type of {', '.join(wrong)}")
    refuse_foreign(renamed(content.get("config")), path)
