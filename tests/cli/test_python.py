"""Commands and runs from Python: in this process, in a child process, and in a notebook's kernel."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sslrun
from sslrun.cli import python
from tests.helpers import QUICK, Cli, runs, summary

SMALL = ("dataset=digits", "dataset.max_images=60", "dataset.image_size=16", *QUICK)


def test_runs_are_rows_with_their_evaluations(in_world: Path, cli: Cli) -> None:
    assert [r["stage"] for r in sslrun.runs()] == ["pretrain", "pretrain", "finetune"]
    (finetuned,) = sslrun.runs("finetune")
    assert finetuned.directory == runs("finetune")[-1]
    assert finetuned.summary == summary(finetuned.directory)
    assert finetuned["val/accuracy"] == finetuned.summary["val/accuracy"]
    assert finetuned["test/accuracy"] is finetuned["evaluation"] is None
    steps = [row["step"] for row in finetuned.metrics]
    assert steps == sorted(steps) != []
    assert cli("evaluate", *QUICK).code == 0
    (finetuned,) = sslrun.runs("finetune")
    evaluated = runs("evaluate")[-1]
    assert finetuned["evaluation"] == str(evaluated)
    assert finetuned["test/accuracy"] == summary(evaluated)["test/accuracy"]
    with pytest.raises(sslrun.UserError, match="finetuned: no such stage; did you mean finetune"):
        sslrun.runs("finetuned")


def test_pandas_takes_runs_and_metrics(in_world: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(sslrun.runs())
    assert list(table["stage"]) == ["pretrain", "pretrain", "finetune"]
    metrics = pandas.DataFrame(sslrun.runs("pretrain")[0].metrics)
    assert metrics["train/loss"].notna().any()


@pytest.mark.slow
def test_commands_run_in_a_child_process_and_return_their_run(capfd: pytest.CaptureFixture[str]) -> None:
    before = (dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGINT), threading.active_count())
    pretrained = sslrun.pretrain(*SMALL, "train.steps=2", pretext="rotation", seed=3, **{"train.batch_size": 8})
    assert pretrained.directory == runs("pretrain")[-1]
    config = pretrained.summary["config"]
    assert (config["seed"], config["train"]["batch_size"], pretrained["pretext"]) == (3, 8, "rotation")
    finetuned = sslrun.finetune(*QUICK, init=pretrained.directory, mode="probe", labels=20)
    evaluated = sslrun.evaluate(*QUICK, run=finetuned.directory)
    assert 0 < evaluated["test/accuracy"] <= 1
    assert evaluated.metrics[0]["test/accuracy"] == pytest.approx(evaluated["test/accuracy"], abs=1e-6)
    assert finetuned.metrics == [] or "val/accuracy" in finetuned.metrics[0]
    shown = capfd.readouterr()
    assert "Pretraining smallcnn with rotation" in shown.out
    assert "Next: sslrun evaluate" in shown.out
    assert shown.err == ""
    assert before == (dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGINT), threading.active_count())


@pytest.mark.slow
def test_mistakes_are_raised_as_the_command_reports_them() -> None:
    with pytest.raises(sslrun.UserError) as error:
        sslrun.pretrain("dataset=digits", pretext="rotatoin", seeds=3)
    first, second = str(error.value).splitlines()
    assert first.startswith("pretext=rotatoin: no such pretext; did you mean rotation?")
    assert second.startswith("seeds: no such key; did you mean seed?")
    with pytest.raises(sslrun.UserError, match="makes no run"):
        sslrun.pretrain("dataset=digits", "--cfg", "job")
    with pytest.raises(sslrun.UserError, match="runs one run; use a loop"):
        sslrun.pretrain("-m", "seed=0,1")


@pytest.mark.parametrize(
    ("value", "text"),
    [("rotation", "rotation"), (None, "null"), (True, "true"), (0.5, "0.5"), ([1, "a b"], "[1,'a b']"),
     (Path("a b"), "'a b'"), ("outputs/pretrain/x", "outputs/pretrain/x"), ("a,b", "'a,b'"), ({"a": 1}, "{a:1}"),
     (np.float64(0.5), "0.5"), ((1, Path("a")), "[1,'a']")],
)  # fmt: skip
def test_values_are_typed_as_the_command_line_reads_them(value: object, text: str) -> None:
    assert python._text(value) == text


@pytest.mark.slow
def test_an_interruption_reaches_the_command_which_saves_its_state(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = python._echo

    def interrupted(process: Any, kept: Any) -> None:
        monkeypatch.setattr(python, "_echo", original)
        for line in process.stdout:
            if line.startswith("Pretraining"):
                raise KeyboardInterrupt

    monkeypatch.setattr(python, "_echo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sslrun.pretrain(*SMALL, "train.steps=100000", "train.epochs=null", "train.evaluations=1000")
    assert summary(runs("pretrain")[-1])["status"] == "interrupted"
    assert "Stopped by SIGTERM" in capfd.readouterr().out


@pytest.mark.slow
def test_a_notebook_runs_a_command_and_shows_its_progress() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = f"import sslrun\nrun = sslrun.pretrain(*{SMALL!r}, 'train.steps=2')\nrun['stage'], len(run.metrics) > 0"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": os.getcwd()}}).execute()
    (cell,) = notebook.cells
    text = "".join(o.get("text", "") for o in cell.outputs if o["output_type"] == "stream")
    assert "Pretraining smallcnn with simclr" in text
    assert "Finished in" in text
    assert cell.outputs[-1]["data"]["text/plain"] == "('pretrain', True)"
    assert sys.modules["sslrun"] is sslrun
