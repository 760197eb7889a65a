"""From what was typed to Hydra, in small steps; all mistakes are told of before anything starts."""

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sslrun.base.paths import CONF
from sslrun.cli.invocation import Invocation, parsed
from sslrun.config.commands import COMMANDS, COMPARE, EVALUATE, FINETUNE, typed


def run_command(command: str, args: list[str]) -> None:
    """Run one of Hydra's commands, or print its help."""
    invocation = parsed(command, args)
    if "-h" in invocation.flags or "--help" in invocation.flags:
        from sslrun.cli.help import print_help

        print_help(command, invocation.config_dir)
        return
    guarded(lambda: launch(invocation))


def guarded(action: Callable[[], object]) -> None:
    """Show a user's mistake as plain lines; `HYDRA_FULL_ERROR=1` shows where it was found."""
    from sslrun.base.console import start_logging
    from sslrun.base.errors import UserError

    start_logging()
    try:
        action()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"sslrun: {error}", file=sys.stderr)
        sys.exit(1)


def launch(invocation: Invocation) -> None:
    """Check what was typed, and hand it to Hydra.

    Raises:
        UserError: with a line for every mistake.
    """
    import hydra

    from sslrun.base.locks import locked
    from sslrun.cli import resume, sweeps
    from sslrun.config.renames import renamed_overrides

    _refuse_others(invocation)
    invocation = invocation.with_overrides(renamed_overrides(invocation.overrides, notice=True))
    invocation = _with_images(invocation)
    sys.path.append(str(Path.cwd()))
    if invocation.command == EVALUATE:
        invocation = sweeps.of_finished_jobs(invocation)
    if invocation.command == COMPARE:
        invocation = _with_settings_of_classifiers(invocation)
    invocation = resume.sweep_as_started(resume.newest_named(invocation))
    invocation = _resumed_or_checked(invocation)
    if invocation.multirun and invocation.sweep is None:
        sweeps.refuse_used_folder(invocation)
    if not invocation.shows_only:
        _refuse_unwritable_outputs(invocation.command)
    sys.argv = [typed(invocation.command), *invocation.flags, *invocation.overrides]
    from sslrun.stages.table import job

    with ExitStack() as ended:
        if invocation.sweep is not None:
            ended.callback(locked(invocation.sweep).release)
        hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name=invocation.command)(job)()


def _refuse_others(invocation: Invocation) -> None:
    """Refuse a config folder that is not there, and words that are no settings where no pictures are named."""
    from sslrun.base.errors import UserError
    from sslrun.config.compose import choices, groups

    own, others = invocation.config_dir, invocation.others
    if own is not None and not Path(own).is_dir():
        raise UserError(f"{own}: no such folder (-cd)")
    if others and not COMMANDS[invocation.command].images:
        hints = [f"{g}={a}" for a in others for g in groups(own) if a in choices(g, own)]
        hint = f"; did you mean {hints[0]}?" if hints else "; settings look like key=value"
        raise UserError(f"unexpected: {' '.join(others)}{hint}")


def _with_images(invocation: Invocation) -> Invocation:
    """Turn names of pictures into `images=[...]`."""
    from sslrun.base.errors import UserError
    from sslrun.config.grammar import quoted

    others = invocation.others
    if not others:
        return invocation
    if any(v.startswith("images=") for v in invocation.overrides):
        raise UserError("name the pictures as they are or as images=[...], not both ways")
    if "-" in others and invocation.multirun:
        raise UserError("-: standard input can be read once, not by every job of a sweep: leave -m away")
    return invocation.with_overrides([*invocation.overrides, f"images=[{','.join(map(quoted, others))}]"])


def _with_settings_of_classifiers(invocation: Invocation) -> Invocation:
    """Check `finetune.KEY=VALUE` as settings of finetune, and gather them in the study's list."""
    from sslrun.base.errors import UserError
    from sslrun.config.grammar import quoted

    if invocation.multirun:
        raise UserError("a study is a sweep of its own: leave -m away")
    values = invocation.overrides
    of_classifiers = [v.removeprefix("finetune.") for v in values if v.startswith("finetune.")]
    if not of_classifiers:
        return invocation
    if any(v.startswith("finetune=") for v in values):
        raise UserError("say finetune=[...] or finetune.KEY=VALUE, not both")
    gathered = f"finetune=[{','.join(map(quoted, of_classifiers))}]"
    return invocation.with_overrides([*(v for v in values if not v.startswith("finetune.")), gathered])


def _resumed_or_checked(invocation: Invocation) -> Invocation:
    """Check the overrides: those of a run that goes on against its own config, the others against the defaults."""
    from sslrun.base.errors import UserError
    from sslrun.cli import resume

    command, place = invocation.command, resume.named(invocation.overrides)
    if place is not None and COMMANDS[command].one_go and invocation.sweep is None:
        raise UserError(f"sslrun {command} has nothing to go on with: start it again, without resume=")
    if place is not None and invocation.multirun:
        raise UserError("resume= goes on with one run: leave -m away")
    if place is None:
        _check(invocation)
        return invocation
    return resume.checked(invocation, place)


def _check(invocation: Invocation) -> None:
    """Check what the config alone shows, without torch; only if that is right, what signatures say, which need it."""
    from sslrun.cli import places, study
    from sslrun.config.overrides import check_signatures, composed_configs

    command, own = invocation.command, invocation.config_dir

    seen: set[str] = set()

    def more(config: Any) -> list[str]:
        lines = [] if invocation.shows_only else places.mistakes(command, config, own, seen)
        return lines + (study.mistakes(config, own) if command == COMPARE else [])

    configs = composed_configs(command, invocation.overrides, own, invocation.multirun, more)

    from sslrun.stages.table import settings

    check_signatures(configs, settings(command))
    if command == COMPARE:
        for config in configs:
            study.check_classifiers(config, settings(FINETUNE), own)


def _refuse_unwritable_outputs(command: str) -> None:
    """Find out before anything starts whether outputs/ can be written."""
    from sslrun.base.errors import UserError
    from sslrun.runs.find import OUTPUTS

    folder = OUTPUTS / command
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(f"cannot write into {folder} below {Path.cwd()}: {error.strerror}") from None
