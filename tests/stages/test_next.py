"""The command to type after a finished one."""

from pathlib import Path
from typing import Any

import pytest

from sslrun.config.commands import COMMANDS
from sslrun.stages.next import next_command

FOLDER: dict[str, Any] = {"dataset": {"_target_": "sslrun.data.sources.folder.folder", "root": "my photos"}}
DIGITS: dict[str, Any] = {"dataset": {"_target_": "sslrun.data.sources.digits.digits"}}
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
