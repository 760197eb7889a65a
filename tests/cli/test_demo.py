"""`sslrun demo`."""

import json
from pathlib import Path

import pytest

from tests.helpers import Cli


@pytest.mark.slow
def test_the_demo_shows_a_gain(cli: Cli) -> None:
    answer = cli("demo")
    assert answer.code == 0
    result = json.loads(next(Path("outputs/evaluate").glob("*/demo.json")).read_text())
    assert result["gain"] >= 4
    assert len(result["test_accuracy"]["scratch"]) == 3


def test_the_demo_in_miniature_types_four_commands_and_ends_with_a_table(cli: Cli) -> None:
    answer = cli("demo", "--epochs", "1", "--seeds", "1")
    assert answer.code == 0
    typed = [line.split()[2] for line in answer.err.splitlines() if line.startswith("$ sslrun")]
    assert typed == ["pretrain", "finetune", "evaluate", "predict"]
    assert "from scratch" in answer.err
    for line in answer.err.splitlines():
        if line.startswith(("pretrained ", "classifiers ", "evaluated ", "predicted ")) and "outputs" in line:
            assert Path(line.split()[1]).is_dir()
    assert "four.png" in answer.out
    assert "at least 1" in cli("demo", "--epochs", "0").err
