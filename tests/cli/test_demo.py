"""`sslrun demo`."""

import json
from pathlib import Path

import pytest

from sslrun.cli import demo
from sslrun.cli.launch import guarded, run_command
from tests.helpers import QUICK, Cli, runs, summary


@pytest.mark.slow
def test_the_demo_shows_a_gain(cli: Cli) -> None:
    answer = cli("demo")
    assert answer.code == 0
    result = json.loads(next(Path("outputs/evaluate").glob("*/demo.json")).read_text())
    assert result["gain"] >= 0.04
    assert len(result["test_accuracy"]["scratch"]) == 3


def test_a_small_demo_runs_four_commands_and_prints_a_table(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def smaller(command: str, arguments: list[str]) -> None:
        more = {"pretrain": ["backbone.widths=[8,16]"], "finetune": ["train.steps=10"]}.get(command, [])
        run_command(command, [*arguments, *QUICK, *more])

    monkeypatch.setattr(demo, "run_command", smaller)
    answer = cli("demo", "--epochs", "1", "--seeds", "1")
    assert answer.code == 0
    typed = [line.split()[2] for line in answer.err.splitlines() if line.startswith("$ sslrun")]
    assert typed == ["pretrain", "finetune", "evaluate", "predict"]
    assert "from scratch" in answer.err
    assert "Digits, 30 labels of 10 classes" in answer.err
    assert [(r["labels_total"], r["labels_val"]) for r in map(summary, runs("finetune"))] == [(30, 0)] * 2
    for line in answer.err.splitlines():
        if line.startswith(("pretrained ", "classifiers ", "evaluated ", "predicted ")) and "outputs" in line:
            assert Path(line.split()[1]).is_dir()
    assert "four.png" in answer.out
    assert "at least 1" in cli("demo", "--epochs", "0").err


@pytest.mark.parametrize(("code", "reported"), [(130, 130), (1, 1)])
def test_a_stopped_demo_ends_with_the_code_of_its_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int, reported: int
) -> None:
    def stopped(command: str, arguments: list[str]) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(demo, "run_command", stopped)
    with pytest.raises(SystemExit) as end:
        guarded(lambda: demo.demo(1, 1))
    assert end.value.code == reported
    assert ("the command above failed" in capfd.readouterr().err) == (code == 1)
