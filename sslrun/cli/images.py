"""The images of a command: a folder as an argument, a root without `dataset=`, or none. torch is not imported here."""

from pathlib import Path

from sslrun.base.errors import UserError
from sslrun.base.text import listed
from sslrun.cli.invocation import Invocation
from sslrun.config.commands import COMMANDS, FINETUNE, FOR_ENCODER, typed
from sslrun.config.compose import choices
from sslrun.config.grammar import key_of
from sslrun.config.nodes import short_name
from sslrun.run.encoders import newest_encoder
from sslrun.run.find import find

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")  # suffixes of files that may be label files
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def with_folder(invocation: Invocation) -> Invocation:
    """Convert a folder as an argument into the overrides of its data set, and complete a root without `dataset=`.

    Raises:
        UserError: there are several paths, one that is no folder of images, or two data sets.
    """
    command, overrides = COMMANDS[invocation.command], list(invocation.overrides)
    keys = {key_of(o): o for o in overrides}
    if command.data is None or "resume" in keys:
        if command.data and invocation.others:
            raise UserError(f"{invocation.others[0]}: a resumed run has its data set; remove it")
        return invocation
    folders = [a for a in invocation.others if Path(a).exists() and not _is_run(Path(a))]
    if folders:
        if len(folders) > 1:
            raise UserError(
                f"{listed(folders)}: one folder at a time; several in one sweep: -m dataset.root={','.join(folders)}"
            )
        _refuse_file(Path(folders[0]))
        other = keys.get("dataset.root") or next(
            (o for k, o in keys.items() if k == "dataset" and o != "dataset=folder"), None
        )
        if other:
            raise UserError(f"{folders[0]} and {other}: two data sets; remove one of them")
        overrides.append(f"dataset.root={Path(folders[0])}")
    given = {key_of(o) for o in overrides}
    of_checkpoint = _of_checkpoint(invocation.command) and not (folders and invocation.command == FINETUNE)
    if "dataset.root" in given and "dataset" not in given and not of_checkpoint:
        overrides.append("dataset=folder")
    rest = [a for a in invocation.others if a not in folders]
    return invocation.with_overrides(overrides).with_others(rest)


def refuse_none(invocation: Invocation) -> None:
    """Raise if a command reads a data set, and none is given.

    Raises:
        UserError: with the ways to give one.
    """
    given = {key_of(o) for o in invocation.overrides}
    if COMMANDS[invocation.command].data != "given" or given & {"dataset", "experiment", "resume"}:
        return
    command = typed(invocation.command)
    raise UserError(
        f"no images given: name a folder ({command} photos), or one of the data sets "
        f"{', '.join(c for c in choices('dataset', invocation.config_dir) if c not in ('folder', 'from_checkpoint'))} "
        f"({command} dataset=digits); sslrun demo shows the workflow"
    )


def _of_checkpoint(command: str) -> bool:
    """Return whether a root is that of the checkpoint's data set, which may have moved or be another folder."""
    if COMMANDS[command].data == "given":
        return False
    if command != FINETUNE:
        return True
    latest = newest_encoder(find(FOR_ENCODER, study_runs=True), {}, {})
    return latest is not None and short_name(latest[1]["config"]["dataset"]["_target_"]) == "folder"


def _is_run(path: Path) -> bool:
    return (path / "summary.json").is_file() or any(path.glob("*/summary.json"))


def _refuse_file(path: Path) -> None:
    if path.is_dir():
        return
    suffix = path.suffix.lower()
    if suffix in TABLES:
        raise UserError(
            f"{path} is a file: name the folder of the images, and the label file with dataset.labels={path}"
        )
    if suffix in ARCHIVES:
        raise UserError(f"{path} is an archive: unpack it, and name the folder")
    raise UserError(f"{path} is a file: a folder of images is needed")
