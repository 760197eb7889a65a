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

from sslrun import CONF, WITH_PICTURES, __version__, command

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
ONE_GO = (*WITH_PICTURES, "export")  # commands that nothing is lost of when they are stopped
SHOWING = {"-c", "--cfg", "-i", "--info", "--hydra-help"}  # these show something and start nothing
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
def embed(ctx: typer.Context) -> None:
    """Turn pictures into features, and draw them on a map."""
    _run("embed", ctx.args)


@app.command(context_settings=TO_HYDRA)
def search(ctx: typer.Context) -> None:
    """Find the pictures that look most like one."""
    _run("search", ctx.args)


@app.command(context_settings=TO_HYDRA)
def suggest(ctx: typer.Context) -> None:
    """Choose the pictures to label first."""
    _run("suggest", ctx.args)


@app.command(context_settings=TO_HYDRA)
def export(ctx: typer.Context) -> None:
    """Take a classifier, or its backbone, to where sslrun is not."""
    _run("export", ctx.args)


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
    stage: Annotated[str | None, typer.Argument(help="pretrain, finetune, evaluate, ...; all by default")] = None,
    format: Annotated[str, typer.Option(help="table, json or csv")] = "table",
) -> None:
    """List what is in outputs/."""
    _guarded(lambda: _list_runs(stage, format))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="evaluated classifiers, sweeps of them, or studies")],
) -> None:
    """Compare runs that are there already, on a page."""
    from sslrun.stages.report import report_on

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
        from sslrun.usage import print_help

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
        elif arg.startswith("-") and arg != "-":  # which is standard input
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

    from sslrun import config, job, overrides, resume, run
    from sslrun.errors import UserError

    own = config_dir(flags)
    if own is not None and not Path(own).is_dir():
        raise UserError(f"{own}: no such folder (-cd)")
    if others and stage not in WITH_PICTURES:
        hints = [f"{g}={a}" for a in others for g in config.groups(own) if a in config.choices(g, own)]
        hint = f"; did you mean {hints[0]}?" if hints else "; settings look like key=value"
        raise UserError(f"unexpected: {' '.join(others)}{hint}")
    multirun = any(f in ("-m", "--multirun") for f in flags)
    if others and any(v.startswith("images=") for v in values):
        raise UserError("name the pictures as they are or as images=[...], not both ways")
    if "-" in others and multirun:
        raise UserError("-: standard input can be read once, not by every job of a sweep: leave -m away")
    if others:
        values.append("images=[" + ",".join(overrides.quoted(o) for o in others) + "]")
    sys.path.append(str(Path.cwd()))
    if stage == "evaluate":
        values, multirun = _whole_sweep(values, multirun)
        flags = [*flags, "-m"] if multirun and "-m" not in flags and "--multirun" not in flags else flags
    if stage == "compare":
        values = _classifiers_settings(values, own, multirun)
    values = resume.latest(stage, values)
    sweep = resume.stopped_sweep(values)
    if sweep is not None:
        values, own = resume.as_started(sweep, stage, values)
        multirun, flags = True, [*flags, *(["-cd", own] if own and config_dir(flags) is None else [])]
        flags = [*flags, "-m"] if "-m" not in flags and "--multirun" not in flags else flags
    place = resume.named(values)
    if place is not None and stage in ONE_GO and sweep is None:
        raise UserError(f"sslrun {stage} has nothing to go on with: start it again, without resume=")
    if place is not None and multirun:
        raise UserError("resume= goes on with one run: leave -m away")
    if place is None:
        overrides.check_overrides(stage, values, own, multirun)
    else:  # it has a config of its own, which is checked once it is read
        summary = run.read_summary(place)
        if stage == "compare":
            more, launcher = resume.of_study(summary, own, values)
            flags, values, own = [*flags, *more], [*values, *launcher], own or config_dir(more)
        asked = [v for v in values if not resume.is_resume(v)]
        overrides.check_resumed(stage, asked, summary["config"], own)
        values = resume.in_its_own_directory(values, place)
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
    gathered = f"finetune=[{','.join(map(overrides.quoted, settings))}]"
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


def _whole_sweep(values: list[str], multirun: bool) -> tuple[list[str], bool]:
    """Turn `run=SWEEP` into a sweep over its finished jobs."""
    from sslrun import run
    from sslrun.console import log
    from sslrun.overrides import quoted

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
