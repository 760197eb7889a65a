"""metrics.jsonl and TensorBoard."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from sslrun.run.log import JsonLines, read_metrics
from sslrun.run.loggers import Loggers
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
    networks = {(s, m) for s in ("scratch", "rotation", "simclr") for m in ("finetune", "probe")}
    assert shown == {(s, m, n) for s, m in (*networks, ("scratch", "knn")) for n in (0, 1)}  # kNN on pixels
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


def curves(directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory)).Reload()


def test_a_resumed_run_continues_its_curves_after_the_step_of_its_checkpoint(tmp_path: Path) -> None:
    first = Loggers(tmp_path, ["tensorboard"])
    for step in (0, 10, 20):
        first.scalars(step, {"train/loss": step / 3})
    first.close({"status": "failed"})
    second = Loggers(tmp_path, ["tensorboard"])
    second.forget_after(10)
    second.scalars(15, {"train/loss": 15.0})
    second.forget_after(10)  # also with an open file
    second.scalars(16, {"train/loss": 16.0})
    second.close({"status": "failed"})
    assert [e.step for e in curves(tmp_path).Scalars("train/loss")] == [0, 10, 16]
    rows = [{"step": 0, "train/loss": 0.0}, {"step": 10, "train/loss": 3.333333}, {"step": 16, "train/loss": 16.0}]
    assert read_metrics(tmp_path) == rows


def test_a_step_without_metrics_has_no_row(tmp_path: Path) -> None:
    log = Loggers(tmp_path, ["tensorboard"])
    log.scalars(0, {})
    log.scalars(10, {"train/loss": 1.0})
    log.close({"status": "failed"})
    assert read_metrics(tmp_path) == [{"step": 10, "train/loss": 1.0}]


def test_only_a_finished_run_has_hyperparameters(tmp_path: Path) -> None:
    config = {"train": {"steps": 3}, "classes": None, "name": "digits"}
    summary = {
        "config": config,
        "pretext": "simclr",
        "seeds": {"training": 1},
        "val/accuracy": 0.5,
        "val/n": 3,
        "x": 1.0,
    }
    for name in ("failed", "finished"):
        (tmp_path / name).mkdir()
        logger = Loggers(tmp_path / name, ["tensorboard"])
        logger.scalars(1, {"train/loss": 1.0})
        logger.close(summary | {"status": name})
    from tensorboard.plugins.hparams import metadata

    assert not curves(tmp_path / "failed").summary_metadata.keys() & {metadata.SESSION_START_INFO_TAG}
    finished = curves(tmp_path / "finished")
    start = finished.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(start).hparams
    assert set(hparams) == {"train.steps", "name", "pretext", "seeds.training"}
    assert hparams["train.steps"].number_value == 3
    assert set(finished.Tags()["scalars"]) == {"train/loss", "val/accuracy"}


def test_metrics_are_on_the_disk_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Loggers(tmp_path, ["tensorboard"])
    logger.sync()
    logger.scalars(1, {"train/loss": 1.0})
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    logger.sync()
    assert synced == [(tmp_path / "metrics.jsonl").stat().st_ino]
    assert [e.step for e in curves(tmp_path).Scalars("train/loss")] == [1]
    logger.close({"status": "failed"})
