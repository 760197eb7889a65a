"""Checkpoints: atomic save, and a load that executes nothing and checks every key."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslrun import __version__
from sslrun.config import UserError

State = dict[str, Tensor]
ENCODER = (
    "encoder.",
    "classifier.encoder.",
)  # where a pretext task's and a classifier's state has the encoder


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint as a whole or not at all: temporary file, flush, fsync, rename.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the checkpoint before it is intact.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save({"sslrun": __version__, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        raise UserError(f"cannot write {path} ({reason}); the checkpoint before it is kept, free some space") from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours or a bare state dict, with `weights_only=True`: nothing in it can execute.

    Raises:
        UserError: no such file, damaged, or not weights.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or is not a file of weights: {reason[:150]}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds {type(content).__name__}, not weights")
    return content


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
