"""Checks of the files, folders and runs that a config names, before torch is imported."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sslrun.base.console import silently
from sslrun.base.errors import UserError
from sslrun.base.files import refuse_file, refuse_folder
from sslrun.config.commands import COMMANDS, EVALUATE, FINETUNE, FOR_ENCODER, PREDICT, WITH_CLASSIFIER, WITH_ENCODER
from sslrun.config.grammar import quoted
from sslrun.config.nodes import plain, short_name
from sslrun.config.types import Node
from sslrun.run.encoders import AUTO, IMAGENET, PRETRAINED, SCRATCH, newest_encoder, source_of
from sslrun.run.find import find, read_summary
from sslrun.run.named import named_run

READ, LABELED = ("unlabeled", "in"), "labeled"  # keys of folders to read, and of a folder or label file
NEW_FOLDERS = ("save", "sort_into")  # keys of folders to create
NAMING = (*READ, LABELED, *NEW_FOLDERS, "images", "out", "run", "against", "init", "what", "dataset", "backbone")
STDIN = "-"
PATHS = (
    "dataset.root",
    "dataset.labels",
    "run",
    "against",
    "init",
    "backbone.weights",
    "pretext.weights",
    "pretext.teacher",
    "resume",
    "out",
    *READ,
    LABELED,
    *NEW_FOLDERS,
)  # keys whose values are paths
EXPRESSIONS = ("dataset.label_pattern", "dataset.groups")  # keys whose values are regular expressions


def mistakes(command: str, config: DictConfig, config_dir: str | None, seen: set[str]) -> list[str]:
    """Return one line for each file, folder or run that is missing, and for each that would be overwritten.

    Args:
        config: composed config of the command.
        config_dir: the user's own config folder.
        seen: paths of earlier configs of a sweep, which are not checked again; those of this one are added.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException:
        return []  # reported by the check of the config
    named = repr({k: v for k, v in values.items() if k in NAMING})
    if named in seen:
        return []
    seen.add(named)
    run: list[Node] = []
    out: list[str] = []
    for check in (
        lambda: _images(command, values),
        lambda: _folders(values),
        lambda: run.append(_run(command, values, config_dir)),
        lambda: _against(values),
        lambda: _root(values, run[0] if run else {}),
        lambda: _labels(values),
        lambda: _new(command, values),
    ):
        out += _message(check)
    return out


def quoted_paths(overrides: Sequence[str], multirun: bool) -> list[str]:
    """Return overrides with values quoted where Hydra's grammar would read them differently.

    These are paths, such as `2024`, `a,b`, `x (1)`, and regular expressions, such as `^(\\d+)`.

    Args:
        multirun: whether a comma separates the values of a sweep, unless there is a file or folder of this name.
    """
    return [_quoted(o, multirun) for o in overrides]


def _quoted(override: str, multirun: bool) -> str:
    key, _, value = override.partition("=")
    name = key.lstrip("+").removeprefix("finetune.")
    is_path = name in PATHS and value not in ("", "null")
    if name in EXPRESSIONS and value != "null" and value[:1] not in ("", "'", '"'):
        return override if is_text(value) else f"{key}={quoted(value)}"
    if not is_path or (value[0] in "'\"[{" and not _exists(value)):
        return override
    is_sweep = multirun and ("," in value or re.match(r"\w+\(", value))
    if _exists(value) or not ("${" in value or is_sweep):
        return override if is_text(value) else f"{key}={quoted(value)}"
    if is_sweep and not re.match(r"\w+\(", value):
        return f"{key}={','.join(v if v == 'null' or is_text(v) else quoted(v) for v in value.split(','))}"
    return override


def is_text(value: str) -> bool:
    """Return whether Hydra reads an unquoted value as this text."""
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return False
    return not parsed.is_sweep_override() and parsed.value() == value and "${" not in value


def refuse_missing_root(config: DictConfig) -> None:
    """Raise if the folder of the data set in a resolved config does not exist.

    Raises:
        UserError: it does not exist.
    """
    _root(plain(config), {})


def refuse_missing_runs(paths: Sequence[str]) -> None:
    """Raise if a path is neither a run nor a folder of runs.

    Raises:
        UserError: one line for each such path.
    """
    runs = [Path(p) for p in paths if not any(Path(p).glob("*/summary.json"))]
    lines = [line for run in runs for line in _message(lambda run=run: read_summary(run))]  # type: ignore[misc]
    if lines:
        raise UserError("\n".join(lines))


def _message(check: Callable[[], object]) -> list[str]:
    try:
        with silently():  # the command itself logs the run it uses
            check()
    except UserError as error:
        return [str(error)]
    return []


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _images(command: str, values: Node) -> None:
    """Raise if no image exists, or if a query image does not; other missing images are reported at the end."""
    names = values.get("images")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return
    if not names:
        if COMMANDS[command].images:
            raise UserError("no images given: name files or folders")
        return
    missing = [n for n in names if n != STDIN and not _exists(n)]
    if missing and (len(missing) == len(names) or "in" in values):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}: no such image or folder{more}")


def _folders(values: Node) -> None:
    for key in READ:
        folder = values.get(key)
        if isinstance(folder, str) and folder != "???" and not os.path.isdir(os.path.expanduser(folder)):
            raise UserError(f"{key}={folder}: no such folder")
    labeled = values.get(LABELED)
    if isinstance(labeled, str) and labeled != AUTO and not _exists(labeled):
        raise UserError(f"{LABELED}={labeled}: no such folder or label file")


def _run(command: str, values: Node, config_dir: str | None) -> Node:
    """Return the config of the run that provides the network; an empty one if there is none."""
    if command == FINETUNE and isinstance(values["init"], str):
        init, backbone, dataset = values["init"], values["backbone"], values["dataset"]
        runs = find(FOR_ENCODER, study_runs=True)
        if init in (AUTO, SCRATCH, PRETRAINED, IMAGENET):
            latest = newest_encoder(runs, backbone, dataset) or newest_encoder(runs, {}, dataset)
            return latest[1]["config"] if latest else {}
        path = source_of(init, runs, backbone, dataset, config_dir)
        directory = path if path.is_dir() else path.parent
        return read_summary(directory)["config"] if path.is_dir() or (directory / "summary.json").is_file() else {}
    if not isinstance(values.get("run"), str):
        return {}
    classifier = command in (EVALUATE, PREDICT) or values.get("what") == "classifier"
    stages = WITH_CLASSIFIER if classifier else WITH_ENCODER
    config: Node = named_run(values["run"], stages, COMMANDS[command].images and not classifier)[1]["config"]
    return config


def _against(values: Node) -> None:
    if isinstance(values.get("against"), str):
        named_run(values["against"])


def _root(values: Node, run: Node) -> None:
    """Raise if the folder of an own data set does not exist; published data sets are downloaded."""
    node = values.get("dataset")
    if not isinstance(node, dict):
        return
    used = run.get("dataset", {}) if node.get("_target_") is None else {}
    target, root = node.get("_target_") or used.get("_target_"), node.get("root") or used.get("root")
    is_folder = isinstance(target, str) and short_name(target) == "folder"
    if is_folder and isinstance(root, str) and root != "???" and not _exists(root):
        moved = "" if node.get("root") else "; if it has moved, set dataset.root=..."
        raise UserError(f"dataset.root={root}: no such folder{moved}")


def _labels(values: Node) -> None:
    """Raise if a given label file does not exist, or the expression for labels is none."""
    node = values.get("dataset")
    labels, root = (node.get("labels"), node.get("root")) if isinstance(node, dict) else (None, None)
    in_root = isinstance(root, str) and isinstance(labels, str) and _exists(os.path.join(root, labels))
    if isinstance(labels, str) and isinstance(root, str) and not _exists(labels) and not in_root:
        raise UserError(f"dataset.labels={labels}: no such file in the working directory or in {root}")
    if isinstance(node, dict) and isinstance(pattern := node.get("label_pattern"), str):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"dataset.label_pattern={pattern} is not a regular expression: {error}") from None


def _new(command: str, values: Node) -> None:
    for key in NEW_FOLDERS:
        if isinstance(values.get(key), str):
            refuse_folder(key, Path(values[key]))
    if isinstance(values.get("out"), str):
        (refuse_folder if command == "suggest" else refuse_file)("out", Path(values["out"]))
