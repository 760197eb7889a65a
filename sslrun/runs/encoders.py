"""The run or file that `init=` names. torch is not imported here, so that a missing one is reported at once."""

import os
from pathlib import Path

from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.commands import TASKS
from sslrun.config.compose import choices
from sslrun.config.names import nearest
from sslrun.config.nodes import short_name
from sslrun.config.types import Node
from sslrun.runs.find import FoundRun, has_checkpoint, newest

SCRATCH, IMAGENET, LATEST = "scratch", "imagenet", "latest"  # values of init= that are no run and no file
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # suffixes of files, for the message


def source_of(init: str, runs: list[FoundRun], backbone: Node, dataset: Node, config_dir: str | None = None) -> Path:
    """Return the run directory or the file that the weights are taken from.

    Args:
        init: `latest`, a pretext task's name (its latest run), a run directory, or a file.
        runs: pretrainings, oldest first.
        backbone, dataset: nodes as composed, which the run of `latest` or of a task must fit.
        config_dir: the user's own config folder, with own tasks.

    Raises:
        UserError: no such run or file, or no such task.
    """
    if os.path.isfile(init) or os.path.exists(os.path.join(init, "summary.json")):
        return Path(init)
    if os.sep in init or init.endswith(WEIGHTS):
        if not os.path.exists(init):
            raise UserError(f"init={init}: no such run or file")
        return Path(init)
    tasks = sorted({*choices(TASKS, config_dir), *(short_name(s["config"]["pretext"]["_target_"]) for _, s in runs)})
    if init not in (LATEST, *tasks):
        hint = nearest(init, [*tasks, LATEST, SCRATCH, IMAGENET])
        raise UserError(
            f"init={init}: no such pretext task, run or file{hint or '.'} Tasks: {', '.join(tasks)}; or say "
            f"{LATEST}, {SCRATCH}, {IMAGENET}, a run directory or a file"
        )
    run = newest_encoder(runs, backbone, dataset, None if init == LATEST else init)
    if run is None:
        raise UserError(_no_run(init, runs, backbone, dataset))
    return run[0]


def newest_encoder(runs: list[FoundRun], backbone: Node, dataset: Node, pretext: str | None = None) -> FoundRun | None:
    """Return the newest finished pretraining of this network, data set and task; an open one (None) fits all."""

    def fits(path: Path, summary: dict[str, dict[str, Node]]) -> bool:
        config = summary["config"]
        if not has_checkpoint(path) or summary["status"] != "finished":
            return False
        same = [
            not backbone.get("_target_") or backbone["_target_"] == config["backbone"]["_target_"],
            not dataset.get("_target_") or _same_images(dataset, config["dataset"]),
            pretext is None or pretext == short_name(config["pretext"]["_target_"]),
        ]
        return all(same)

    return newest(runs, fits)


def _same_images(a: Node, b: Node) -> bool:
    roots = [str(Path(os.path.expanduser(n["root"])).resolve()) if n.get("root") else None for n in (a, b)]
    return a["_target_"] == b["_target_"] and roots[0] == roots[1]


def _no_run(init: str, runs: list[FoundRun], backbone: Node, dataset: Node) -> str:
    wanted = [short_name(n["_target_"]) for n in (backbone, dataset) if n.get("_target_")]
    kind = f"{'' if init == LATEST else init + ' '}run" + (f" of {' on '.join(wanted)}" if wanted else "")
    there = f"{counted(len(runs), 'other run')} in outputs/pretrain" if runs else "no run in outputs/pretrain"
    return f"init={init}: no pretrain {kind} here ({there}): start one with sslrun pretrain, or say init=scratch"
