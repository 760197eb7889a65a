"""Which functions and classes a config may name."""

import json
from pathlib import Path

import torch

from sslrun.run import checkpoint
from sslrun.run.find import LAST
from tests.helpers import Cli, only_run


def test_case_19_a_config_from_a_file_calls_nothing_foreign(finished_run: Path, cli: Cli) -> None:
    """The weights of a run from somebody else may be harmless while its config names a function to call."""
    place = only_run()
    content = checkpoint.load(place / LAST)
    content["config"]["backbone"]["widths"] = {"_target_": "pathlib.Path.touch", "self": "gotcha"}
    torch.save(content, place / LAST)
    answer = cli("finetune", f"init={place}", "label_fraction=0.5")
    assert answer.code == 1
    assert "has the _target_ pathlib.Path.touch, which is neither" in answer.err
    summary = json.loads((place / "summary.json").read_text())
    summary["config"]["pretext"]["_target_"] = "os.abort"
    (place / "summary.json").write_text(json.dumps(summary))
    answer = cli("pretrain", f"resume={place}")
    assert answer.code == 1
    assert "has the _target_ os.abort, which is neither" in answer.err
