"""The command to type after a finished one."""

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
        ({"stage": "doubt", "config": {}}, "sslrun finetune"),
        ({"stage": "preview", "config": FOLDER | SIMCLR}, "sslrun pretrain 'my photos' pretext=simclr"),
        ({"stage": "pretrain", "config": FOLDER, "labeled": True}, "sslrun finetune"),
        ({"stage": "pretrain", "config": FOLDER, "labeled": False}, "sslrun suggest 'my photos' n=50"),
        ({"stage": "finetune", "config": {}}, "sslrun evaluate"),
        ({"stage": "evaluate", "config": {}, "of_run": "a b"}, "sslrun predict image.jpg run='a b'"),
        ({"stage": "compare", "config": {}, "best_classifier": "c"}, "sslrun predict image.jpg run=c"),
        ({"stage": "compare", "config": {}, "best_classifier": None}, None),
        ({"stage": "predict", "config": {"images": list("abcde")}}, "sslrun suggest a b c n=50"),
        ({"stage": "embed", "config": {"images": ["x y"]}}, "sslrun suggest 'x y' n=50"),
        ({"stage": "search", "config": {"in": "x"}}, "sslrun suggest x n=50"),
        ({"stage": "suggest", "config": {"out": "o"}, "of_run": "r"}, "sslrun finetune o init=r"),
        ({"stage": "export", "config": {}}, None),
    ],
)
def test_the_next_command(summary: dict[str, Any], command: str | None) -> None:
    assert next_command(summary) == command
    assert summary["stage"] in COMMANDS
