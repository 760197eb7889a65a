"""metrics.jsonl and TensorBoard."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from sslrun.runs.log import JsonLines, read_metrics
from tests.helpers import STUDY_RUNS, Cli, study_table


def test_tensorboard_has_curves_views_and_hparams(world: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    run = sorted((world / "outputs/pretrain").iterdir())[0]
    events = EventAccumulator(str(run)).Reload()
    assert {"train/loss", "val/knn_accuracy"} <= set(events.Tags()["scalars"])
    assert "views" in events.Tags()["images"]
    assert any("session_end_info" in t for t in events.summary_metadata)
    start = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(start).hparams
    assert {"pretext", "pretext.copies", "train.learning_rate", "seeds.training"} <= set(hparams)
    assert events.Scalars("val/knn_accuracy")[-1].step == 0  # the score of the hyperparameters


@pytest.mark.slow
def test_tensorboards_hparams_tab_compares_a_studys_classifiers(in_study: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", "outputs/evaluate", "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    try:
        overrides = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "sliceSize": 100}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/data/plugin/hparams/session_groups",
            json.dumps(overrides).encode(),
            {"Content-Type": "application/json"},
        )
        groups: list[dict[str, Any]] = []
        for _ in range(120):  # until it has read them all
            with contextlib.suppress(OSError):
                groups = json.load(urllib.request.urlopen(request)).get("sessionGroups", [])
            if len(groups) == STUDY_RUNS:
                break
            time.sleep(0.5)
    finally:
        board.terminate()
        board.wait()
    assert len(groups) == STUDY_RUNS
    shown = {(g["hparams"]["init"], g["hparams"]["mode"], g["hparams"]["seeds.subset"]) for g in groups}
    assert shown == {
        (s, m, n) for s in ("scratch", "rotation", "simclr") for m in ("finetune", "probe") for n in (0, 1)
    }
    metrics = [{m["name"]["tag"]: m["value"] for m in g["metricValues"]} for g in groups]
    kept = [float(r["test_accuracy"]) for r in study_table(in_study) if r["mode"] != "auto"]
    assert sorted(m["test/accuracy"] for m in metrics) == pytest.approx(sorted(kept), abs=1e-6)


def test_damaged_lines_of_metrics_are_skipped(short_run: Path, cli: Cli) -> None:
    with (short_run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"a": 1}\n5\n{"step": "x"}\n\xff\xfe\n')
    answer = cli("pretrain", f"resume={short_run}", "train.steps=10")
    assert answer.code == 0, answer.err
    assert answer.err.count("Skipped a damaged line") == 4
    assert [r["step"] for r in map(json.loads, (short_run / "metrics.jsonl").read_text().splitlines())][-1] == 10


def test_a_resumed_run_keeps_the_metrics_of_the_step_of_its_checkpoint(tmp_path: Path) -> None:
    log = JsonLines(tmp_path)
    for step in (0, 10, 10, 20):
        log.scalars(step, {"train/loss": 1.0})
    log.forget_after(10)
    assert [r["step"] for r in read_metrics(tmp_path)] == [0, 10, 10]
