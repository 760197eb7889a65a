"""The command line: Typer commands that pass their arguments to Hydra. torch is not imported here."""

import io
import os
import sys
from typing import Annotated

import typer

from sslrun.base.version import __version__
from sslrun.cli.launch import guarded, run_command
from sslrun.config.commands import COMMANDS

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Download, check and preview data sets.")
TO_HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _version(requested: bool) -> None:
    if requested:
        print(f"sslrun {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Self-supervised learning of image classifiers: pretrain without labels, finetune with few labels."""


def _register(name: str, group: typer.Typer) -> None:
    """Register a command that Hydra runs with Typer."""

    @group.command(name, context_settings=TO_HYDRA, help=COMMANDS[name].about)
    def command(ctx: typer.Context) -> None:
        run_command(name, ctx.args)


for _name, _command in COMMANDS.items():
    _register(_name, data if _command.is_data else app)
app.add_typer(data, name="data")


STAGE = typer.Argument(help="pretrain, finetune, evaluate, ...; default: all; format=table, json or csv")


@app.command()
def runs(
    arguments: Annotated[list[str] | None, STAGE] = None,
    format: Annotated[str, typer.Option(help="table, json or csv")] = "table",
) -> None:
    """List the runs in outputs/; json and csv have the newest evaluation of each."""

    def action() -> None:
        from sslrun.cli.listing import print_runs

        stages, chosen = _with_format(arguments or [], format)
        print_runs(stages[0] if stages else None, chosen)

    guarded(action)


def _with_format(arguments: list[str], format: str) -> tuple[list[str], str]:
    """Return the stages and the format, which may also be `format=csv`, as for the other commands."""
    from sslrun.base.errors import UserError

    stages = [a for a in arguments if not a.startswith("format=")]
    given = [a.removeprefix("format=") for a in arguments if a.startswith("format=")]
    if len(stages) > 1 or len(given) > 1:
        raise UserError(f"{' '.join(arguments)}: at most one stage and one format")
    return stages, given[0] if given else format


@app.command()
def weights(
    arguments: Annotated[list[str] | None, typer.Argument(help="format=table, json or csv")] = None,
    format: Annotated[str, typer.Option(help="table, json or csv")] = "table",
) -> None:
    """List published weights: those on this machine, and some that can be had."""

    def action() -> None:
        others, chosen = _with_format(arguments or [], format)
        from sslrun.base.errors import UserError

        if others:
            raise UserError(f"unexpected argument: {others[0]}")
        from sslrun.cli.weights import print_weights  # which imports torch

        print_weights(chosen)

    guarded(action)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="directories of finetune or evaluate runs, sweeps or studies")],
) -> None:
    """Compare existing runs in an HTML report."""

    def action() -> None:
        from sslrun.cli.places import refuse_missing_runs

        refuse_missing_runs(runs)
        from sslrun.stages.report import report_on  # which imports torch

        report_on(runs)

    guarded(action)


@app.command()
def guide(
    folder: Annotated[str, typer.Argument(help="a folder of images")],
    run: Annotated[bool, typer.Option("--run", help="run the commands")] = False,
) -> None:
    """Look a folder of images over, and print the commands that fit it, with their times on this machine."""

    def action() -> None:
        from sslrun.cli.guide import guide as print_guide  # which imports torch

        print_guide(folder, run)

    guarded(action)


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish")]) -> None:
    """Print a script with which a shell completes commands, choices and keys."""

    def action() -> None:
        from sslrun.cli.completion import script

        print(script(shell), end="")

    guarded(action)


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(help="pretraining epochs")] = 32,
    seeds: Annotated[int, typer.Option(help="number of label subsets")] = 3,
) -> None:
    """Run a demo on digits: pretraining compared with training from scratch on 30 labels."""
    from sslrun.cli.demo import demo as run_demo

    guarded(lambda: run_demo(epochs, seeds))


def main() -> None:
    """Run the command line."""
    if sys.stdout is None:  # `sslrun runs >&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not be valid UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # outside a run; a run handles it itself
        sys.exit(130)
    except BrokenPipeError:  # `sslrun runs | head`
        sys.stderr.close()
        sys.exit(141)
