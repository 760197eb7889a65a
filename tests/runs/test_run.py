"""The run directory."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from sslrun.base.errors import UserError
from sslrun.runs.run import Run


def test_a_run_directory_holds_what_it_should(world: Path) -> None:
    run = sorted((world / "outputs/pretrain").iterdir())[0]
    names = {p.name for p in run.iterdir()}
    assert {
        "config.yaml",
        "run.log",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "summary.json",
        "figures",
    } <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    for figure in ("views", "curves"):
        with Image.open(run / "figures" / f"{figure}.png") as image:
            assert image.width > 200
    answer = json.loads((run / "summary.json").read_text())
    assert answer["status"] == "finished"
    assert answer["pretext"] == "rotation"
    assert answer["images_per_second"] > 0
    assert answer["wall_time_seconds"] > 0
    assert answer["seeds"] == {"training": 0, "split": 0}
    assert torch.__version__.startswith(answer["versions"]["torch"])
    assert len(answer["data_fingerprint"]) == 16
    assert answer["command"].startswith("sslrun pretrain pretext=rotation dataset=folder")
    for key in (
        "train/loss",
        "train/pretext_accuracy",
        "val/feature_spread",
        "val/effective_rank",
        "val/knn_accuracy",
    ):
        assert key in answer
    assert "${" not in (run / "config.yaml").read_text()


def test_no_run_writes_into_the_directory_of_another() -> None:
    Run(Path("a"), "pretrain", OmegaConf.create({}), {}).close("finished")
    with pytest.raises(UserError, match="holds a run already"):
        Run(Path("a"), "pretrain", OmegaConf.create({}), {})
