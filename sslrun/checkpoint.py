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
from torch import Tensor, nn

from sslrun import __version__
from sslrun.config import UserError, refuse_foreign
from sslrun.console import log

State = dict[str, Tensor]
ENCODER = (
    "encoder.",
    "classifier.encoder.",
)  # where a pretext task's and a classifier's state has the encoder


LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


def save(path: Path, content: dict[str, Any], before: Path | None = None) -> None:
    """Write a checkpoint as a whole or not at all: temporary file, flush, fsync, rename.

    torch writes a checksum of each tensor, which `load` compares.

    Args:
        before: where the file that `path` was before goes; None drops it.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the checkpoint before it is intact.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save({"sslrun": __version__, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if before is not None and path.exists():
            os.replace(path, before)
        os.replace(part, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
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


def there_is_one(directory: Path) -> bool:
    """Tell whether a run directory has a checkpoint to go on from."""
    return (directory / LAST).is_file() or (directory / PREVIOUS).is_file()


def newest(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Read the newest checkpoint of a run that is whole; a damaged one is passed over, and said.

    Raises:
        UserError: none is whole.
    """
    try:
        return directory / LAST, load(directory / LAST)
    except UserError as error:
        if not (directory / PREVIOUS).is_file():
            raise
        content = load(directory / PREVIOUS)
        log.warning("%s. The checkpoint before it is used, of step %s", error, content.get("step"))
        return directory / PREVIOUS, content


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours or a bare state dict, with `weights_only=True`: nothing in it can execute.

    Raises:
        UserError: no such file, damaged, or not weights.
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
    except Exception as error:  # of many kinds, all of which mean bytes that are not a checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or is not a file of weights: {reason[:150]}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds {type(content).__name__}, not weights")
    _check_parts(content, path)
    return content


def _check_parts(content: dict[str, Any], path: Path) -> None:
    """Refuse a file whose parts are not what their names say, and a config that would call what is not ours."""
    kinds = {"config": dict, "class_names": list, "step": int, "metrics": dict}
    wrong = [k for k, kind in kinds.items() if k in content and not isinstance(content[k], kind)]
    for key in ("model", "state_dict"):
        state = content.get(key, {})
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            wrong.append(key)
    if wrong:
        raise UserError(f"{path} is damaged or is not a file of weights: its {', '.join(wrong)} is something else")
    refuse_foreign(content.get("config"), path)


def load_state(module: nn.Module, state: State, source: Path | str) -> None:
    """Load weights; every key and shape must match.

    Raises:
        UserError: with what is missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    missing, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} where {tuple(own[k].shape)} is needed"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    parts = [("missing", missing), ("unexpected", strange), ("of another shape", sorted(shapes))]
    if any(keys for _, keys in parts):
        said = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
                         for what, keys in parts if keys)  # fmt: skip
        raise UserError(f"the weights in {source} do not fit this network: {said}. Is it another backbone's?")
    module.load_state_dict(state)


def part(state: State, *prefixes: str) -> State:
    """Return the entries below the first prefix that has any, without the prefix."""
    for prefix in prefixes:
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if found:
            return found
    return {}
