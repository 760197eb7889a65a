"""Resolves the run or file that `init=` names. torch is not imported, so that errors are reported at once."""

import os
from pathlib import Path

from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.commands import TASKS
from sslrun.config.compose import choices
from sslrun.config.names import nearest
from sslrun.config.nodes import network_name, same_root, short_name
from sslrun.config.types import Node
from sslrun.run.find import FoundRun, has_checkpoint, newest

SCRATCH, PRETRAINED, LATEST = "scratch", "pretrained", "latest"  # values of init= other than runs and files
IMAGENET = "imagenet"  # another name of `pretrained`
AUTO = "auto"  # the newest pretraining that fits; without one, published weights or scratch
PIXELS = "pixels"  # the backbone without weights
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # suffixes of files with weights


def source_of(
    init: str,
    runs: list[FoundRun],
    backbone: Node,
    dataset: Node,
    config_dir: str | None = None,
    values: tuple[str, ...] = (AUTO, LATEST, SCRATCH, PRETRAINED),
) -> Path:
    """Return the run directory or file with the initial weights.

    Args:
        init: `latest`, a pretext task's name (its latest run), a run directory, or a file.
        runs: pretrain runs, oldest first.
        backbone, dataset: composed nodes, which the run of `latest` or of a task must match.
        config_dir: the user's config folder, which may have further tasks.
        values: of the command's `init=` other than tasks, runs and files, for the message.

    Raises:
        UserError: there is no such run, file or task.
    """
    if os.path.isfile(init) or os.path.exists(os.path.join(init, "summary.json")):
        return Path(init)
    if os.sep in init or init.endswith(WEIGHTS):
        if not os.path.exists(init):
            raise UserError(f"init={init}: no such run or file")
        return Path(init)
    tasks = sorted({*choices(TASKS, config_dir), *(short_name(s["config"]["pretext"]["_target_"]) for _, s in runs)})
    if init not in (LATEST, *tasks):
        trained = ", ".join(sorted({short_name(s["config"]["pretext"]["_target_"]) for _, s in runs}))
        hint = nearest(init, [*tasks, *values])
        hint = "; several values need a sweep: put -m before it." if "," in init else hint
        raise UserError(
            f"init={init}: no such pretext task, run or file{hint or '.'} Pretrained here: {trained or 'none'}; or use "
            f"{', '.join(values)}, a run directory or a file"
        )
    run = newest_encoder(runs, backbone, dataset, None if init == LATEST else init)
    if run is None:
        raise UserError(_no_run(init, runs, backbone, dataset))
    return run[0]


def newest_encoder(runs: list[FoundRun], backbone: Node, dataset: Node, pretext: str | None = None) -> FoundRun | None:
    """Return the newest finished pretrain run with this backbone, data set and task; unset ones match all."""

    def fits(path: Path, summary: dict[str, dict[str, Node]]) -> bool:
        config = summary["config"]
        if not has_checkpoint(path) or summary["status"] != "finished":
            return False
        same = [
            not backbone.get("_target_") or backbone["_target_"] == config["backbone"]["_target_"],
            backbone.get("name") in (None, "???", config["backbone"].get("name")),
            not dataset.get("_target_") or dataset["_target_"] == config["dataset"]["_target_"],
            not dataset.get("_target_") or same_root(dataset, config["dataset"]),
            pretext is None or pretext == short_name(config["pretext"]["_target_"]),
        ]
        return all(same)

    return newest(runs, fits)


def _no_run(init: str, runs: list[FoundRun], backbone: Node, dataset: Node) -> str:
    wanted = [network_name(n) for n in (backbone, dataset) if n.get("_target_")]
    kind = f"{'' if init == LATEST else init + ' '}run" + (f" of {' on '.join(wanted)}" if wanted else "")
    others = f"{counted(len(runs), 'other run')} in outputs/pretrain" if runs else "no run in outputs/pretrain"
    task = "" if init == LATEST else f" {TASKS}={init}"
    return f"init={init}: no pretrain {kind} ({others}); pretrain with sslrun pretrain{task}, or use init=scratch"
