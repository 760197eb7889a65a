"""`report.html` of a pretraining and of a finetuning."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from sslrun.evaluation.metrics import COLLAPSED_RANK, COLLAPSED_SPREAD
from sslrun.report.run_page import finetuning_text, health_text
from tests.helpers import QUICK, TINY, Cli, runs, summary


@pytest.mark.parametrize(
    ("spread", "rank", "collapsed"),
    [(0.2, 192.0, False), (COLLAPSED_SPREAD / 2, 50.0, True), (0.9, COLLAPSED_RANK - 0.5, True)],
)
def test_the_page_calls_collapsed_what_the_alarm_does(spread: float, rank: float, collapsed: bool) -> None:
    text = health_text({"val/feature_spread": spread, "val/effective_rank": rank})
    assert ("The features have collapsed" in text) == collapsed
    assert ("No collapse" in text) != collapsed
    assert f"{spread:.2f}" in text
    assert health_text({"val/feature_spread": spread}) == ""


def test_a_duration_that_is_not_known_is_left_out() -> None:
    made: dict[str, Any] = {
        "labels_total": 60, "labels_val": 0, "val/accuracy": 0.8, "backbone": "smallcnn", "init": "simclr",
        "mode": "knn", "dataset": "digits", "device": "cpu", "precision": "fp32", "config": {},
    }  # fmt: skip
    title, text, compared = finetuning_text(made, 32)
    assert title == "Classifier from 60 labels: accuracy 80.0 % out of fold, corrected for the choice"
    assert "at 32 px; on cpu" in text
    assert "at 32 px, in 12 s; on cpu" in finetuning_text({**made, "training_seconds": 12.0}, 32)[1]
    assert compared == ""
    assert "macro F1: probe 70.0 %, finetune 80.0 %" in finetuning_text(
        {**made, "candidates": {"probe": 0.7, "finetune": 0.8}, "config": {"balance": "weights"}}, 32
    )[2]  # fmt: skip


def test_the_pages_need_no_other_file_and_end_with_the_next_command(cli: Cli, photos: Path) -> None:
    short = ("dataset.image_size=16", *TINY, "train.steps=20", "train.batch_size=8", "train.evaluations=2")
    assert cli("pretrain", str(photos), "pretext=rotation", *short).code == 0
    assert cli("finetune", "labels=20", "mode=probe", *QUICK).code == 0
    for stage, following, parts in (
        ("pretrain", "sslrun finetune", ("curves", "health", "views", "neighbors")),
        ("finetune", "sslrun evaluate", ("neighbors",)),
    ):
        run = runs(stage)[-1]
        page = (run / "report.html").read_text()
        assert not re.search(r"(src|href)=\"(?!data:|#)", page)
        assert f"<pre>{following}</pre>" in page
        assert tuple(re.findall(r"<h2 id=\"(\w+)\"", page)) == parts
        assert page.count('<img alt="') == page.count("<img ")
        assert unescape(page).count(summary(run)["command"]) == 1
