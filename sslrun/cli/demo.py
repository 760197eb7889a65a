"""`sslrun demo`: the whole workflow, as a user would type it, on scikit-learn's digits."""

import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from sslrun.base.console import ERR
from sslrun.base.errors import UserError
from sslrun.base.output import new_table, write_json
from sslrun.base.text import percent
from sslrun.cli.launch import run_command
from sslrun.config.commands import typed
from sslrun.run.find import OUTPUTS, find, newest

LABELS = 30  # in all
NUMBERS = ("test accuracy", "±", "label subsets")  # right-aligned columns


def demo(epochs: int, seeds: int) -> None:
    """Pretrain, finetune and train from scratch on the same labels, evaluate both, and predict one image.

    Raises:
        UserError: one of the commands failed.
    """
    if epochs < 1 or seeds < 1:
        raise UserError("sslrun demo: --epochs and --seeds must be at least 1")
    began = time.monotonic()
    subsets = ",".join(map(str, range(seeds)))
    sslrun("pretrain", "experiment=simclr_digits", f"train.epochs={epochs}")
    pretrained = _newest("pretrain")
    sslrun(
        "finetune",
        "-m",
        f"init={pretrained},scratch",
        f"labels={LABELS}",
        f"seed={subsets}",
        "mode=finetune",
    )
    sweep = _newest("finetune").parent
    sslrun("evaluate", f"run={sweep}")
    evaluated = _newest("evaluate").parent
    image = _test_image(OUTPUTS / "demo")
    sslrun("predict", str(image), f"run={sweep / '0'}")
    predicted = _newest("predict")
    _print_results(
        evaluated,
        {"pretrained": pretrained, "classifiers": sweep, "evaluated": evaluated, "predicted": predicted},
    )
    ERR.print(f"Finished in {time.monotonic() - began:.0f} s.")


def sslrun(command: str, *arguments: str) -> None:
    """Print a command and run it in this process, so that torch is imported only once."""
    ERR.print(f"\n$ {shlex.join([*typed(command).split(), *arguments])}", style="bold", markup=False)
    before = sys.argv
    try:
        run_command(command, list(arguments))
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:  # stopped by a signal, which the command has reported
            raise
        if end.code:
            raise UserError("stopped: the command above failed") from None
    finally:
        sys.argv = before


def _newest(command: str) -> Path:
    run = newest(find([command]))
    assert run is not None
    return run[0]


def _test_image(folder: Path) -> Path:
    """Write an image of the test split to a PNG file, and return its path."""
    import numpy as np
    from PIL import Image

    from sslrun.data.sources.digits import digits

    test = digits("test", root=None)
    assert test is not None
    assert isinstance(test.items, np.ndarray)
    assert test.labels is not None
    index = int(np.flatnonzero(test.labels == 4)[0])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "four.png"
    Image.fromarray(test.items[index][..., 0]).save(path)
    return path


def _print_results(evaluated: Path, directories: dict[str, Path]) -> None:
    runs: list[dict[str, Any]] = [json.loads(p.read_text()) for p in sorted(evaluated.glob("*/summary.json"))]
    arms = {name: [r for r in runs if r["init"] == name] for name in ("simclr", "scratch")}
    title = f"Digits, {runs[0]['labels_total']} labels of 10 classes"
    table = new_table(("network", *NUMBERS), NUMBERS, title=title)
    rows: dict[str, list[float]] = {}
    for name, label in (("simclr", "pretrained with SimCLR"), ("scratch", "from scratch")):
        rows[name] = [r["test/accuracy"] for r in arms[name]]
        spread = f"{100 * statistics.stdev(rows[name]):.1f}" if len(rows[name]) > 1 else ""
        table.add_row(label, percent(statistics.mean(rows[name])), spread, str(len(rows[name])))
    gain = statistics.mean(rows["simclr"]) - statistics.mean(rows["scratch"])
    table.add_section()
    table.add_row("gain", f"{100 * gain:+.1f}", "", "")
    write_json(evaluated / "demo.json", {"test_accuracy": rows, "gain": gain})
    ERR.print()
    ERR.print(table)
    for name, path in directories.items():
        ERR.print(f"{name:<12} {path}", markup=False)
    figure = next((directories["evaluated"] / "0" / "figures").glob("*.png"), None)
    if figure:
        ERR.print(f"{'a figure':<12} {figure}", markup=False)
    ERR.print("Curves: tensorboard --logdir outputs", markup=False)
    ERR.print("Next: sslrun guide photos, a folder of your own", markup=False)
