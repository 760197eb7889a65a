"""From the arguments of a command to Hydra, in small steps; all mistakes are reported before anything starts."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sslrun.base.machine import is_first, started_processes
from sslrun.base.paths import CONF
from sslrun.cli.invocation import Invocation, parsed
from sslrun.config.commands import COMMANDS, COMPARE, EVALUATE, FINETUNE, PRETRAIN, TASKS, typed

FEW = 20  # paths of images that are written without quotes, where they need none


def run_command(command: str, args: list[str]) -> None:
    """Run a command with Hydra, or print its help."""
    invocation = parsed(command, args)
    if "-h" in invocation.flags or "--help" in invocation.flags:
        from sslrun.cli.help import print_help

        print_help(command, invocation.overrides, invocation.config_dir)
        return
    guarded(lambda: launch(invocation))


def guarded(action: Callable[[], object]) -> None:
    """Print a `UserError` without a traceback and exit with 1; `HYDRA_FULL_ERROR=1` shows the traceback."""
    from sslrun.base.console import start_logging
    from sslrun.base.errors import UserError

    start_logging()
    try:
        action()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        message = f"sslrun: {error}"
        if started_processes() == 1:
            print(message, file=sys.stderr)
        else:
            from sslrun.base import processes

            processes.report(lambda: print(message, file=sys.stderr))
        sys.exit(1)


def launch(invocation: Invocation) -> None:
    """Check an invocation, and run it with Hydra.

    Raises:
        UserError: one line for each mistake.
    """
    import hydra

    from sslrun.base.locks import locked
    from sslrun.cli import images, resume, sweeps
    from sslrun.cli.places import quoted_paths
    from sslrun.config.grammar import quoted
    from sslrun.config.renames import renamed_overrides
    from sslrun.run import slurm

    _refuse_processes(invocation)
    invocation = images.with_folder(invocation)
    _refuse_others(invocation)
    invocation = invocation.with_overrides(renamed_overrides(invocation.overrides, notice=True))
    invocation = _with_images(invocation.with_overrides(quoted_paths(invocation.overrides, invocation.multirun)))
    sys.path.append(str(Path.cwd()))
    if invocation.command == EVALUATE:
        invocation = sweeps.over_finished_jobs(invocation)
    if invocation.command == COMPARE:
        invocation = _with_settings_of_classifiers(_with_inits(invocation))
    invocation = resume.restored_sweep(resume.requeued(resume.with_latest_run(invocation)))
    invocation = _resumed_or_checked(invocation)
    if invocation.multirun and invocation.sweep is None:
        sweeps.refuse_used_folder(invocation)
    if not invocation.shows_only:
        _refuse_unwritable_outputs(invocation.command)
    sys.argv = [typed(invocation.command), *invocation.flags, *invocation.overrides]
    from sslrun.stages.table import job

    with ExitStack() as stack:
        if not is_first():  # which writes into the run directory
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sslrun"))
            sys.argv.append(f"hydra.run.dir={quoted(folder + '/run')}")
        if invocation.sweep is not None:
            stack.callback(locked(invocation.sweep).release)
        stack.callback(sweeps.end_interrupted)
        stack.enter_context(slurm.requeued_on_signals())
        hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name=invocation.command)(job)()


def _refuse_processes(invocation: Invocation) -> None:
    """Raise if torchrun has started several processes of a command that runs in one."""
    from sslrun.base.errors import UserError

    several = started_processes() > 1
    if several and invocation.command not in (PRETRAIN, FINETUNE):
        raise UserError(f"{typed(invocation.command)} runs in one process: start it without torchrun")
    if several and invocation.multirun:
        raise UserError("a sweep runs in one process; remove -m, or start it without torchrun")


def _refuse_others(invocation: Invocation) -> None:
    """Raise if the config folder does not exist, or at an argument that the command does not have."""
    from sslrun.base.errors import UserError
    from sslrun.config.names import key_hint
    from sslrun.config.overrides import keys_of

    command, config_dir, others = invocation.command, invocation.config_dir, invocation.others
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"{config_dir}: no such folder (-cd)")
    if invocation.unknown_flags:
        flag = invocation.unknown_flags[0]
        hint = key_hint(flag.lstrip("-").split("=")[0], keys_of(command, config_dir))
        raise UserError(f"{flag}: no such flag; settings are given as key=value{hint}")
    if others and not COMMANDS[command].images:
        hints = [h for a in others for h in _meant(a, keys_of(command, config_dir), config_dir)]
        if COMMANDS[command].data and not hints:
            raise UserError(f"{others[0]}: no such folder; settings are given as key=value")
        hint = f"; did you mean {hints[0]}?" if hints else "; settings are given as key=value"
        raise UserError(f"unexpected argument: {' '.join(others)}{hint}")


def _meant(argument: str, keys: list[str], config_dir: str | None) -> Iterator[str]:
    """Yield the settings that an argument may stand for: a choice of a group, or a run."""
    from sslrun.config.compose import choices, groups

    path = Path(argument)
    yield from (f"{g}={argument}" for g in groups(config_dir) if argument in choices(g, config_dir))
    if "run" in keys and path.is_dir():
        runs = [path] if (path / "summary.json").is_file() else sorted(p.parent for p in path.glob("*/summary.json"))
        yield from (f"run={run}" for run in runs[-1:])
    if "init" in keys and (path / "summary.json").is_file():
        yield f"init={path}"


def _with_images(invocation: Invocation) -> Invocation:
    """Convert paths of images into `images=[...]`."""
    from sslrun.base.errors import UserError
    from sslrun.cli.places import is_text
    from sslrun.config.grammar import quoted

    others = invocation.others
    if not others:
        return invocation
    if any(v.startswith("images=") for v in invocation.overrides):
        raise UserError("give the images as arguments or as images=[...], not both")
    if "-" in others and invocation.multirun:
        raise UserError("-: the jobs of a sweep cannot all read standard input; remove -m")
    few = len(others) <= FEW
    values = [o if few and is_text(o) else quoted(o) for o in others]
    return invocation.with_overrides([*invocation.overrides, f"images=[{','.join(values)}]"])


def _with_inits(invocation: Invocation) -> Invocation:
    """Convert the older keys `pretexts=` and `imagenet=` into `inits=`."""
    from sslrun.config.compose import chosen
    from sslrun.config.renames import with_inits

    choices = [o for o in invocation.overrides if o.partition("=")[0] in (TASKS, "experiment")]
    return invocation.with_overrides(
        with_inits(invocation.overrides, lambda: chosen(COMPARE, TASKS, choices, invocation.config_dir))
    )


def _with_settings_of_classifiers(invocation: Invocation) -> Invocation:
    """Collect `finetune.KEY=VALUE` in the study's list `finetune=[...]`; a sign before it is kept."""
    from sslrun.base.errors import UserError
    from sslrun.config.grammar import key_of, quoted

    if invocation.multirun:
        raise UserError("compare runs its own sweeps; remove -m")
    values = invocation.overrides
    is_of_classifiers = {v: key_of(v).startswith(f"{FINETUNE}.") for v in values}
    of_classifiers = [v.replace(f"{FINETUNE}.", "", 1) for v in values if is_of_classifiers[v]]
    if not of_classifiers:
        return invocation
    if any(v.startswith("finetune=") for v in values):
        raise UserError("use finetune=[...] or finetune.KEY=VALUE, not both")
    collected = f"finetune=[{','.join(map(quoted, of_classifiers))}]"
    return invocation.with_overrides([*(v for v in values if not is_of_classifiers[v]), collected])


def _resumed_or_checked(invocation: Invocation) -> Invocation:
    """Check the overrides: of a resumed run against its own config, otherwise against the defaults."""
    from sslrun.base.errors import UserError
    from sslrun.cli import resume

    command, directory = invocation.command, resume.resumed_directory(invocation.overrides)
    if directory is not None and COMMANDS[command].one_shot and invocation.sweep is None:
        raise UserError(f"{typed(command)} cannot be resumed; run it again without resume=")
    if directory is not None and invocation.multirun:
        raise UserError("resume= resumes one run; remove -m")
    if directory is None:
        _check(invocation)
        return invocation
    return resume.checked(invocation, directory)


def _check(invocation: Invocation) -> None:
    """Check the config without torch first, so that most mistakes are reported at once; then against signatures."""
    from sslrun.cli import images, places, study
    from sslrun.config.overrides import check_signatures, composed_configs
    from sslrun.run.loggers import missing_packages

    command, config_dir = invocation.command, invocation.config_dir
    seen: set[str] = set()

    def more(config: Any) -> list[str]:
        lines = missing_packages(config.get("logger") or [])
        lines += [] if invocation.shows_only else places.mistakes(command, config, config_dir, seen)
        return lines + (
            study.mistakes(config, invocation.overrides, config_dir) if command in (COMPARE, FINETUNE) else []
        )

    configs = composed_configs(command, invocation.overrides, config_dir, invocation.multirun, more)
    if not (invocation.shows_only or invocation.sweep):
        images.refuse_none(invocation)

    from sslrun.stages.table import settings

    check_signatures(configs, settings(command))
    if command == COMPARE:
        for config in configs:
            study.check_classifiers(config, settings(FINETUNE), config_dir)


def _refuse_unwritable_outputs(command: str) -> None:
    """Raise if outputs/ is not writable, before anything starts."""
    from sslrun.base.errors import UserError
    from sslrun.run.find import OUTPUTS

    folder = OUTPUTS / command
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(f"cannot write to {folder} in {Path.cwd()}: {error.strerror}") from None
