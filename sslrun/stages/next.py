"""The command to type after a finished one."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslrun.config.grammar import key_of
from sslrun.config.nodes import short_name
from sslrun.config.types import Node

OF_PREVIEW = ("images", "seed")  # keys of `data preview`
OF_DATA = ("dataset", "dataset.root")  # what `_data_set` chooses
IMAGE, FOLDER = "image.jpg", "photos"  # stand for the user's own
SUGGESTED = 50  # images


def next_command(summary: Mapping[str, Any], elsewhere: Path | None = None) -> str | None:
    """Return the command that follows a finished one, or None if nothing follows.

    Args:
        summary: of the finished run.
        elsewhere: directory of the run, if `latest` does not find it.
    """
    config: Node = summary["config"]
    match summary["stage"]:
        case "fetch":
            return f"sslrun data check {_data_set(config)}"
        case "check":
            return f"sslrun {'finetune' if summary.get('labeled') else 'pretrain'} {_data_set(config)}"
        case "doubt" if summary["doubts"]:
            return f"sslrun finetune {_data_set({'dataset': summary['of_dataset']})}"
        case "preview":
            own = [o for o in summary.get("overrides", []) if key_of(o) not in (*OF_PREVIEW, *OF_DATA, "pretext")]
            task = f"pretext={short_name(config['pretext']['_target_'])}"
            return shlex.join(["sslrun", "pretrain", *shlex.split(_data_set(config)), task, *own])
        case "pretrain" if summary.get("labeled"):
            return f"sslrun finetune{_named('init', elsewhere)}"
        case "pretrain":
            photos = _quoted(config["dataset"].get("root") or FOLDER)
            return f"sslrun suggest {photos} n={_few(summary)}{_named('run', elsewhere)}"
        case "finetune":
            return f"sslrun evaluate{_named('run', elsewhere)}"
        case "evaluate":
            return f"sslrun predict {IMAGE} run={_quoted(summary['of_run'])}"
        case "compare" if summary.get("best_classifier"):
            return f"sslrun predict {IMAGE} run={_quoted(summary['best_classifier'])}"
        case "predict" | "embed":
            folder = next((path for path in config["images"] if os.path.isdir(os.path.expanduser(path))), None)
            return folder and f"sslrun suggest {_quoted(folder)} n={_few(summary)}"
        case "search":
            return f"sslrun suggest {_quoted(config['in'])} n={_few(summary)}"
        case "suggest":
            return f"sslrun finetune {_quoted(config['out'])} init={_quoted(summary['of_run'])}"
    return None


def _named(key: str, directory: Path | None) -> str:
    return f" {key}={_quoted(directory.as_posix())}" if directory else ""


def _few(summary: Mapping[str, Any]) -> int:
    """Return a number of images to label first, at most all."""
    return min(SUGGESTED, summary.get("images", SUGGESTED))


def _data_set(config: Node) -> str:
    """Return the arguments that choose a data set: a folder, or `dataset=NAME`."""
    name = short_name(config["dataset"]["_target_"])
    return _quoted(config["dataset"]["root"]) if name == "folder" else f"dataset={name}"


def _quoted(path: str) -> str:
    return shlex.quote(str(path))
