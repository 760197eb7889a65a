"""The command line. It imports no torch, and hands what follows a command's name to Hydra."""

import io
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from sslrun import CONF, __version__, command

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
TO_HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
WITH_VALUE = {
    "-cd",
    "--config-dir",
    "-cp",
    "--config-path",
    "-cn",
    "--config-name",
    "-p",
    "--package",
    "-c",
    "--cfg",
}
WITH_VALUE |= {"--experimental-rerun"}
FROM_CHECKPOINT = "from_checkpoint"  # the choice of a group that leaves it to the checkpoint
SHOWING = {"-c", "--cfg", "-i", "--info", "--hydra-help"}  # these show something and start nothing
SWEEP = "multirun.yaml"  # which Hydra writes into a sweep's folder
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


def _version(asked: bool) -> None:
    if asked:
        print(f"sslrun {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Self-supervised learning of image classifiers: pretrain without labels, finetune with a few."""


@app.command(context_settings=TO_HYDRA)
def pretrain(ctx: typer.Context) -> None:
    """Learn features from pictures without their labels."""
    _run("pretrain", ctx.args)


@app.command(context_settings=TO_HYDRA)
def finetune(ctx: typer.Context) -> None:
    """Make a classifier from few labels."""
    _run("finetune", ctx.args)


@app.command(context_settings=TO_HYDRA)
def evaluate(ctx: typer.Context) -> None:
    """Measure a classifier on the test split."""
    _run("evaluate", ctx.args)


@app.command(context_settings=TO_HYDRA)
def predict(ctx: typer.Context) -> None:
    """Name what is on pictures."""
    _run("predict", ctx.args)


@app.command(context_settings=TO_HYDRA)
def compare(ctx: typer.Context) -> None:
    """Does pretraining help, and from how many labels on?"""
    _run("compare", ctx.args)


data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Fetch, check and look at data sets.")
app.add_typer(data, name="data")


@data.command(context_settings=TO_HYDRA)
def fetch(ctx: typer.Context) -> None:
    """Have a published data set where it belongs."""
    _run("fetch", ctx.args)


@data.command(context_settings=TO_HYDRA)
def check(ctx: typer.Context) -> None:
    """Look a data set over before training on it."""
    _run("check", ctx.args)


@data.command(context_settings=TO_HYDRA)
def preview(ctx: typer.Context) -> None:
    """Draw what a network is shown of it."""
    _run("preview", ctx.args)


@app.command()
def runs(
    stage: Annotated[str | None, typer.Argument(help="pretrain, finetune, evaluate or predict; all by default")] = None,
    format: Annotated[str, typer.Option(help="table, json or csv")] = "table",
) -> None:
    """List what is in outputs/."""
    _guarded(lambda: _list_runs(stage, format))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="evaluated classifiers, sweeps of them, or studies")],
) -> None:
    """Compare runs that are there already, on a page."""
    from sslrun.existing import report_on

    _guarded(lambda: report_on(runs))


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(help="epochs of pretraining")] = 32,
    seeds: Annotated[int, typer.Option(help="label subsets")] = 3,
) -> None:
    """Run the main job on scikit-learn's digits: does pretraining help with 30 labels?"""
    from sslrun.demo import demo as run_demo

    _guarded(lambda: run_demo(epochs, seeds))


def _list_runs(stage: str | None, format: str) -> None:
    from sslrun.listing import print_runs

    print_runs(stage, format)


def main() -> None:
    """Run the command line."""
    if sys.stdout is None:  # `sslrun runs >&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # before or after a run, which ends itself in order
        sys.exit(130)
    except BrokenPipeError:  # `sslrun runs | head`
        sys.stderr.close()
        sys.exit(141)


# ---------------------------------------------------------------------------------------------- Hydra's commands


def _run(stage: str, args: list[str]) -> None:
    flags, values, others = split_arguments(args)
    if "-h" in flags or "--help" in flags:
        print_help(stage, config_dir(flags))
        return
    _guarded(lambda: _launch(stage, flags, values, others))


def _guarded(action: Callable[[], object]) -> None:
    """Show a user's mistake as plain lines; `HYDRA_FULL_ERROR=1` shows where it was found."""
    from sslrun.console import start_logging
    from sslrun.errors import UserError

    start_logging()
    try:
        action()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"sslrun: {error}", file=sys.stderr)
        sys.exit(1)


def split_arguments(args: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Sort the arguments into Hydra's flags, overrides, and others, which are pictures' names."""
    flags: list[str] = []
    values: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in WITH_VALUE:
            flags += [arg, *([v] if (v := next(rest, None)) is not None else [])]
        elif flags and flags[-1] in ("-i", "--info") and arg in INFO:
            flags.append(arg)
        elif os.path.exists(arg):  # whatever its name looks like
            others.append(arg)
        elif arg.startswith("-"):
            flags.append(arg)
        elif arg.startswith("~") or "=" in arg:
            values.append(arg)
        else:
            others.append(arg)
    return flags, values, others


def config_dir(flags: list[str]) -> str | None:
    """Return the folder that `-cd DIR` or `--config-dir=DIR` names."""
    for i, flag in enumerate(flags):
        if flag in ("-cd", "--config-dir") and i + 1 < len(flags):
            return flags[i + 1]
        if flag.startswith("--config-dir="):
            return flag.split("=", 1)[1]
    return None


def _launch(stage: str, flags: list[str], values: list[str], others: list[str]) -> None:
    import hydra

    from sslrun import config, job, overrides, run
    from sslrun.errors import UserError

    own = config_dir(flags)
    if own is not None and not Path(own).is_dir():
        raise UserError(f"{own}: no such folder (-cd)")
    if others and stage != "predict":
        hints = [f"{g}={a}" for a in others for g in config.groups(own) if a in config.choices(g, own)]
        hint = f"; did you mean {hints[0]}?" if hints else "; settings look like key=value"
        raise UserError(f"unexpected: {' '.join(others)}{hint}")
    if stage == "predict" and others and any(v.startswith("images=") for v in values):
        raise UserError("name the pictures as they are or as images=[...], not both ways")
    if stage == "predict" and others:
        values.append("images=[" + ",".join(quoted(o) for o in others) + "]")
    sys.path.append(str(Path.cwd()))
    multirun = any(f in ("-m", "--multirun") for f in flags)
    if stage == "evaluate":
        values, multirun = _whole_sweep(values, multirun)
        flags = [*flags, "-m"] if multirun and "-m" not in flags and "--multirun" not in flags else flags
    if stage == "compare":
        values = _classifiers_settings(values, own, multirun)
    values = _latest(stage, values)
    sweep = _stopped_sweep(values)
    if sweep is not None:
        values, own = _as_started(sweep, stage, values)
        multirun, flags = True, [*flags, *(["-cd", own] if own and config_dir(flags) is None else [])]
        flags = [*flags, "-m"] if "-m" not in flags and "--multirun" not in flags else flags
    place = _resumed(values)
    if place is not None and multirun:
        raise UserError("resume= goes on with one run: leave -m away")
    if place is None:
        overrides.check_overrides(stage, values, own, multirun)
    else:  # it has a config of its own, which is checked once it is read
        asked = [v for v in values if not _is_resume(v)]
        overrides.check_resumed(stage, asked, run.read_summary(place)["config"], own)
        values = _in_its_own_directory(values, place)
    if multirun and sweep is None:
        _sweep_is_new(values)
    if not SHOWING & {f.split("=")[0] for f in flags}:
        _outputs_writable(stage)
    sys.argv = [command(stage), *flags, *values]
    with ExitStack() as ended:
        if sweep is not None:
            ended.callback(run.locked(sweep).release)
        hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name=stage)(job.job)()


def _classifiers_settings(values: list[str], own: str | None, multirun: bool) -> list[str]:
    """Check `finetune.KEY=VALUE` as settings of finetune, and gather them in the study's list."""
    from sslrun import overrides
    from sslrun.errors import UserError

    if multirun:
        raise UserError("a study is a sweep of its own: leave -m away")
    settings = [v.removeprefix("finetune.") for v in values if v.startswith("finetune.")]
    if not settings:
        return values
    if any(v.startswith("finetune=") for v in values):
        raise UserError("say finetune=[...] or finetune.KEY=VALUE, not both")
    try:
        overrides.check_overrides("finetune", settings, own, False)
    except UserError as error:
        raise UserError("\n".join(f"finetune.{line}" for line in str(error).splitlines())) from None
    gathered = f"finetune=[{','.join(map(quoted, settings))}]"
    return [*(v for v in values if not v.startswith("finetune.")), gathered]


def _sweep_is_new(values: list[str]) -> None:
    """Refuse a sweep into the folder of an earlier one, which would mix their jobs."""
    from sslrun.errors import UserError

    for value in values:
        key, _, text = value.partition("=")
        folder = Path(text.strip("'\""))
        if key == "hydra.sweep.dir" and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: a sweep needs a folder of its own")


def _outputs_writable(stage: str) -> None:
    """Find out before anything starts whether outputs/ can be written."""
    from sslrun.errors import UserError
    from sslrun.run import OUTPUTS

    folder = OUTPUTS / stage
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(f"cannot write into {folder} below {Path.cwd()}: {error.strerror}") from None


def quoted(text: str) -> str:
    """Quote any text for Hydra's override grammar; OmegaConf must not take `${` for an interpolation."""
    escaped = text.replace("\\", "\\\\") if text.endswith("\\") else text.replace("${", "\\${")
    return "'" + escaped.replace("'", r"\'") + "'"


def _whole_sweep(values: list[str], multirun: bool) -> tuple[list[str], bool]:
    """Turn `run=SWEEP` into a sweep over its finished jobs."""
    from sslrun import run
    from sslrun.console import log

    for i, value in enumerate(values):
        key, _, text = value.partition("=")
        folder = Path(text)
        if key == "run" and folder.is_dir() and not (folder / "summary.json").exists():
            every = [p.parent for p in folder.glob("*/config.yaml")]
            jobs = [p for p in every if run.is_finished(p)]
            left_out = sorted(p.name for p in every if p not in jobs)
            if left_out:
                log.warning("%d of %d jobs did not finish and are left out: %s", len(left_out), len(every), left_out)
            if jobs:
                ordered = sorted(jobs, key=run.job_order)
                return [
                    *values[:i],
                    "run=" + ",".join(quoted(str(p)) for p in ordered),
                    *values[i + 1 :],
                ], True
    return values, multirun


def _latest(stage: str, values: list[str]) -> list[str]:
    """Turn `resume=latest` into the newest run of a stage, or into the sweep that it is in."""
    from sslrun import run
    from sslrun.errors import UserError

    if _resumed(values) != Path("latest"):
        return values
    found = run.find([stage])
    if not found:
        raise UserError(f"resume=latest: no {stage} run in outputs/{stage}")
    newest = found[-1][0]
    place = newest.parent if (newest.parent / SWEEP).is_file() else newest
    return [f"resume={place}" if _is_resume(v) else v for v in values]


def _stopped_sweep(values: list[str]) -> Path | None:
    """Return the folder of the sweep that `resume=` names, if it is one."""
    place = _resumed(values)
    return place if place is not None and (place / SWEEP).is_file() else None


def _as_started(sweep: Path, stage: str, values: list[str]) -> tuple[list[str], str | None]:
    """Return what a sweep was started with, into the same folder, and the user's config folder if it had one.

    The jobs that are finished are passed over.
    """
    from omegaconf import OmegaConf

    from sslrun.errors import UserError

    others = [v for v in values if not _is_resume(v)]
    if others:
        raise UserError(f"{' '.join(others)}: a sweep goes on as it was started; leave it away")
    try:
        hydra = OmegaConf.load(sweep / SWEEP).hydra
        started, settings, was = list(hydra.overrides.task), list(hydra.overrides.hydra), hydra.job.config_name
        folders = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    except Exception as error:
        raise UserError(f"{sweep / SWEEP} cannot be read: {error}") from None
    if was != stage:
        raise UserError(f"resume={sweep} is a {was} sweep: say sslrun {was} resume=...")
    kept = [o for o in settings if not o.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    if any("_target_" in o for o in kept):
        raise UserError(f"{sweep / SWEEP} would have Hydra call something of its own: start the sweep anew")
    return [*started, *kept, f"hydra.sweep.dir={quoted(str(sweep))}"], folders[0] if folders else None


def _is_resume(value: str) -> bool:
    return value.lstrip("+").startswith("resume=")


def _resumed(values: list[str]) -> Path | None:
    """Return the run or sweep that `resume=` names, if it does."""
    from sslrun.errors import UserError

    named = [v.partition("=")[2].strip("'\"") for v in values if _is_resume(v)]
    if len(named) > 1:
        raise UserError(f"resume= was said {len(named)} times: one run goes on at a time")
    return Path(named[0]) if named and named[0] not in ("", "null") else None


def _in_its_own_directory(values: list[str], place: Path) -> list[str]:
    """Let a run go on in its own directory: Hydra is told not to make another.

    What is asked for is held against the run's config, not against the defaults, so Hydra must take any key.
    """
    kept = [v for v in values if not _is_resume(v) and not v.startswith(("hydra.run.dir=", "hydra.output_subdir="))]
    free = [f"++{v.lstrip('+')}" if "." in v.partition("=")[0] and not v.startswith("hydra") else v for v in kept]
    where = quoted(str(place))
    return [*free, f"resume={where}", f"hydra.run.dir={where}", "hydra.output_subdir=null"]


def print_help(stage: str, own: str | None) -> None:
    """Print a command's groups with their choices, and its keys with their defaults and what they mean."""
    folders = [CONF, *([Path(own)] if own else [])]
    lines = (CONF / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
    about = [line.removeprefix("#").strip() for line in lines if line.startswith("# ")]
    defaults, keys = _of_stage(stage)
    print(f"Usage: {command(stage)} [flags] {'[IMAGE or FOLDER ...] ' if stage == 'predict' else ''}[key=value ...]\n")
    print("\n".join(f"  {line}" for line in about))
    chosen: list[tuple[str, str]] = []
    print("\nGroups (group=choice, then group.key=value):")
    for line in defaults:
        item = line.split("#")[0].strip(" -").removeprefix("optional ").replace("override ", "")
        if ":" in item and not item.startswith("hydra"):
            group, default = (part.strip() for part in item.split(":"))
            names = {p.stem for f in folders for p in (f / group).glob("*.yaml") if not p.stem.startswith("_")}
            names -= {FROM_CHECKPOINT} if default != FROM_CHECKPOINT else set()
            print(f"  {group + '=' + default:<27}{' | '.join(sorted(names))}")
            chosen.append((group, default))
    print("\nKeys and their defaults:")
    print("\n".join(f"  {line}" for line in keys if line.strip()))
    for group, default in chosen:
        if default not in ("null", FROM_CHECKPOINT):
            print(f"  {group}:  # {default}")
            print("\n".join(f"    {line}" for line in _keys(folders, group, default)))
    print(
        "\nFlags: -m sweeps over values with commas, --cfg job shows the config, -cd DIR adds config files of your own;"
        "\nmore with --hydra-help. Put flags before key=value."
    )


def _of_stage(stage: str) -> tuple[list[str], list[str]]:
    """Return the lines of a stage's file: its defaults, and its keys; with those of the stage that it builds on."""
    lines = (CONF / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    start = body.index("defaults:") + 1
    end = next((i for i in range(start, len(body)) if not body[i].startswith(" ")), len(body))
    defaults, keys = body[start:end], body[end:]
    for under in [line.strip(" -") for line in defaults]:
        if under != "_base" and (CONF / f"{under}.yaml").is_file():
            more = _of_stage(under)
            defaults, keys = [*defaults, *more[0]], [*keys, *more[1]]
    return defaults, keys


def _keys(folders: list[Path], group: str, choice: str) -> list[str]:
    """Return the lines of a group's file, over those of its `_shared.yaml`."""
    lines: dict[str, str] = {}
    for name in ("_shared", choice):
        file = next((f / group / f"{name}.yaml" for f in folders if (f / group / f"{name}.yaml").is_file()), None)
        for line in file.read_text(encoding="utf-8").splitlines() if file else []:
            if line.strip() and not line.startswith(("#", "_target_", "defaults:")):
                lines[line.split(":")[0]] = line
    return list(lines.values())
