"""Runs of 0.1.0 are read as they lie there; to go on with one is refused. See old_runs/README.md."""

import csv
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.models.encoder import build_encoder
from sslrun.models.weights import load_state
from tests.helpers import QUICK, Cli

HERE = Path(__file__).parent / "old_runs"
CPU = ("device=cpu", "device.precision=fp32", "device.memory_format=contiguous")


@pytest.fixture(autouse=True)
def _unpacked() -> None:
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not before Python 3.11.4
    with tarfile.open(HERE / "runs_0.1.0.tar.gz") as packed:
        packed.extractall(**safely)


@pytest.fixture
def golden() -> dict[str, Any]:
    """What 0.1.0 itself made of these runs."""
    result: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
    return result


def newest(stage: str) -> Path:
    return max(Path("outputs", stage).glob("20*"))


def test_predictions_of_an_old_classifier(cli: Cli, golden: dict[str, Any]) -> None:
    answer = cli("predict", "images", "run=outputs/finetune/tuned", "format=json", "device=cpu")
    assert answer.code == 0, answer.err
    for now, then in zip(json.loads(answer.out), golden["predictions"], strict=True):
        assert (now["image"], now["class"], now["unsure"]) == (then["image"], then["class"], then["unsure"])
        assert now["confidence"] == pytest.approx(then["confidence"], abs=2e-4)


def test_embeddings_of_an_old_pretraining(cli: Cli) -> None:
    answer = cli("embed", "images", "run=outputs/pretrain/simclr", "device=cpu", "out=now.npz")
    assert answer.code == 0, answer.err
    now, then = np.load("now.npz"), np.load(HERE / "embeddings.npz")
    assert now["images"].tolist() == then["images"].tolist()
    assert np.allclose(now["features"], then["features"], atol=1e-5)


def test_an_old_classifier_is_evaluated(cli: Cli, golden: dict[str, Any]) -> None:
    answer = cli("evaluate", "run=outputs/finetune/tuned", *CPU)
    assert answer.code == 0, answer.err
    summary = json.loads((newest("evaluate") / "summary.json").read_text())
    renamed = {"test/recall_macro": "test/balanced_accuracy"}
    for name, value in golden["test"].items():
        if name == "test/top5_accuracy":  # now of more than 20 classes only
            assert name not in summary
        else:
            assert summary[renamed.get(name, name)] == pytest.approx(value, abs=1e-4), name
    assert "Skipped the probes of the stages: the labeled images are not those of the run" in answer.err


@pytest.mark.slow
def test_a_classifier_starts_from_an_old_pretraining(cli: Cli) -> None:
    for init in ("outputs/pretrain/simclr", "outputs/pretrain/simclr/last.pt", "outputs/finetune/tuned", "simclr"):
        answer = cli("finetune", f"init={init}", "mode=probe", "labels_per_class=5", *QUICK)
        assert answer.code == 0, answer.err
        config = json.loads((newest("finetune") / "summary.json").read_text())["config"]
        assert config["dataset"]["image_size"] == 16
        assert config["backbone"]["widths"] == [8, 16]
        assert config["backbone"]["_target_"] == "sslrun.models.backbones.smallcnn.smallcnn"


def test_a_report_on_an_old_study_has_the_same_gains(cli: Cli, golden: dict[str, Any]) -> None:
    answer = cli("report", "outputs/compare/study")
    assert answer.code == 0, answer.err
    with (newest("report") / "gains.csv").open(newline="") as file:
        gains = {g["initialization"]: g for g in csv.DictReader(file)}
    assert len(gains) == len(golden["conclusions"])
    for sentence in golden["conclusions"]:  # that it helps by d points (low to high), of these test images
        network, _, verdict = sentence.partition(": ")
        gain, old_ends = re.match(r"helps by (\S+) points \((.*)\)", verdict).groups()  # type: ignore[union-attr]
        now = gains[network.removesuffix(", 30 labels")]
        assert f"{100 * float(now['gain']):.1f}" == gain
        low, high = (100 * float(now[f"fixed_split_{end}"]) for end in ("low", "high"))
        assert f"{low:.1f} to {high:.1f}" == old_ends
        assert re.search(rf"\+{gain} +\[", answer.err), sentence
    answer = cli("report", "outputs/evaluate/tuned")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("command", "run"),
    [("pretrain", "pretrain/simclr"), ("finetune", "finetune/tuned"), ("compare", "compare/study")],
)
def test_going_on_with_an_old_run_is_refused(cli: Cli, command: str, run: str) -> None:
    before = {p: p.read_bytes() for p in Path("outputs", run).glob("*.*") if p.name != "run.log"}
    answer = cli(command, f"resume=outputs/{run}", *(["train.steps=80"] if command != "compare" else []))
    assert answer.code == 1
    assert "was started with sslrun 0.1.0" in answer.err
    assert "use that version, or start a new run" in answer.err
    assert (f"start a new run from its weights with init=outputs/{run}" in answer.err) == (command != "compare")
    assert "Traceback" not in answer.err
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_going_on_with_an_old_sweep_is_refused_before_a_job_begins(cli: Cli) -> None:
    assert cli("pretrain", "-m", "dataset=digits", "seed=0,1", "train.steps=1", "backbone.widths=[4]", *QUICK).code == 0
    (sweep,) = Path("outputs/pretrain").glob("20*")
    shutil.rmtree(sweep / "1")  # it had not begun
    summary = json.loads((sweep / "0/summary.json").read_text())
    summary["versions"]["sslrun"] = "0.1.0"
    (sweep / "0/summary.json").write_text(json.dumps(summary))
    answer = cli("pretrain", f"resume={sweep}")
    assert answer.code == 1
    assert f"{sweep} was started with sslrun 0.1.0" in answer.err
    assert not (sweep / "1").exists()


def test_old_runs_are_listed(cli: Cli) -> None:
    answer = cli("runs")
    assert answer.code == 0
    assert all(name in answer.out for name in ("outputs/pretrain/simclr", "outputs/finetune/tuned", "compare"))


def test_weights_of_an_old_mobilenetv2_fit() -> None:
    then = json.loads((HERE / "mobilenetv2_keys.json").read_text())
    node = {"_target_": "sslrun.models.backbones.mobilenetv2.mobilenetv2", "stem": "auto"}
    encoder = build_encoder(node, 16, [0.5] * 3, [0.5] * 3)
    old = {k.removeprefix("encoder."): torch.full(s, 0.25) for k, s in then.items() if k.startswith("encoder.")}
    load_state(encoder, old, "last.pt")
    assert all((v == 0.25).all() for v in encoder.state_dict().values() if v.is_floating_point())
