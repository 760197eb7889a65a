"""The command to type after a finished one."""

from pathlib import Path
from typing import Any

import pytest

from sslrun.config.commands import COMMANDS
from sslrun.stages.next import next_command
from tests.helpers import QUICK, Cli

FOLDER: dict[str, Any] = {"dataset": {"_target_": "sslrun.data.sources.folder.folder", "root": "my photos"}}
DIGITS: dict[str, Any] = {"dataset": {"_target_": "sslrun.data.sources.digits.digits"}}
GIVEN = ["dataset=folder", "dataset.root='my photos'", "dataset.image_size=32", "pretext.augment.crop_scale=[0.3, 1]"]
SIMCLR = {"pretext": {"_target_": "sslrun.tasks.pretext.simclr.SimCLR"}}


@pytest.mark.parametrize(
    ("summary", "command"),
    [
        ({"stage": "fetch", "config": DIGITS}, "sslrun data check dataset=digits"),
        ({"stage": "check", "config": FOLDER, "labeled": True}, "sslrun finetune 'my photos'"),
        ({"stage": "check", "config": DIGITS, "labeled": False}, "sslrun pretrain dataset=digits"),
        ({"stage": "doubt", "config": {}, "doubts": 0}, None),
        ({"stage": "doubt", "config": {}, "doubts": 2, "of_dataset": FOLDER["dataset"]}, "sslrun finetune 'my photos'"),
        ({"stage": "preview", "config": FOLDER | SIMCLR}, "sslrun pretrain 'my photos' pretext=simclr"),
        (
            {
                "stage": "preview",
                "config": FOLDER | SIMCLR,
                "overrides": [*GIVEN, "pretext=simclr", "images=3", "seed=1"],
            },
            "sslrun pretrain 'my photos' pretext=simclr dataset.image_size=32 'pretext.augment.crop_scale=[0.3, 1]'",
        ),
        ({"stage": "pretrain", "config": FOLDER, "labeled": True}, "sslrun finetune"),
        ({"stage": "pretrain", "config": FOLDER, "labeled": False}, "sslrun suggest 'my photos' n=50"),
        ({"stage": "finetune", "config": {}}, "sslrun evaluate"),
        ({"stage": "evaluate", "config": {}, "of_run": "a b"}, "sslrun predict image.jpg run='a b'"),
        ({"stage": "compare", "config": {}, "best_classifier": "c"}, "sslrun predict image.jpg run=c"),
        ({"stage": "compare", "config": {}, "best_classifier": None}, None),
        ({"stage": "predict", "config": {"images": ["a.jpg", "b c", "d"]}}, "sslrun suggest 'b c' n=50"),
        ({"stage": "predict", "config": {"images": ["a.jpg", "-"]}}, None),
        ({"stage": "embed", "config": {"images": ["d"]}}, "sslrun suggest d n=50"),
        ({"stage": "search", "config": {"in": "x"}, "images": 12}, "sslrun suggest x n=12"),
        ({"stage": "suggest", "config": {"out": "o"}, "of_run": "r"}, "sslrun finetune o init=r"),
        ({"stage": "export", "config": {}}, None),
    ],
)
def test_the_next_command(summary: dict[str, Any], command: str | None) -> None:
    for folder in ("b c", "d"):
        Path(folder).mkdir()
    assert next_command(summary) == command
    assert summary["stage"] in COMMANDS


@pytest.mark.slow
def test_the_next_command_after_a_run_outside_outputs_names_it(cli: Cli) -> None:
    answer = cli("pretrain", "dataset=digits", "train.steps=1", "hydra.run.dir=my runs/a", *QUICK)
    assert answer.code == 0, answer.err
    assert answer.lines()[-1] == "Next: sslrun finetune init='my runs/a'"
    answer = cli("finetune", "init=my runs/a", "mode=probe", "hydra.run.dir=my runs/b", *QUICK)
    assert answer.lines()[-1] == "Next: sslrun evaluate run='my runs/b'"
    assert cli("evaluate", "run=my runs/b", *QUICK).code == 0
