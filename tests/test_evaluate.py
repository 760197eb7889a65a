"""What `sslrun evaluate` says of a classifier, and of two."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sslrun.device import Device
from sslrun.evaluation.features import map_features
from sslrun.models.encoder import build_encoder
from tests.conftest import QUICK, Cli
from tests.test_cli import runs, summary


def test_a_report_of_one_classifier(in_world: Path, cli: Cli) -> None:
    answer = cli("evaluate", *QUICK)
    assert answer.code == 0, answer.err
    (run,) = runs("evaluate")
    result = json.loads((run / "report.json").read_text())
    kept = np.load(run / "predictions.npz")
    right = kept["probabilities"].argmax(1) == kept["labels"]
    assert result["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert result["accuracy_interval"][0] <= result["accuracy"] <= result["accuracy_interval"][1]
    assert f"test accuracy {result['accuracy']:.4f} (95 %" in answer.err
    assert sum(r["images"] for r in result["reliability"]) == len(right)
    classifier = summary(runs("finetune")[0])
    assert result["temperature"] == pytest.approx(classifier["val/temperature"])
    assert {"test/nll", "test/ece", "test/ece_calibrated"} <= summary(run).keys()
    assert [s["features"] for s in result["stages"]] == [8, 16]
    assert all(0 <= s["probe_accuracy"] <= 1 and 0 <= s["knn_accuracy"] <= 1 for s in result["stages"])
    page = (run / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    for heading in ("confidence can be believed", "taken for what", "Classes", "each stage"):
        assert heading in page
    for figure in ("reliability.png", "reliability.svg", "confusion_matrix.png", "confusion_matrices.svg"):
        assert (run / "figures" / figure).is_file()


def test_two_classifiers_are_compared_picture_by_picture(in_world: Path, cli: Cli) -> None:
    (classifier,) = runs("finetune")
    assert cli("finetune", "mode=knn", "label_fraction=0.5", *QUICK).code == 0
    rival = runs("finetune")[-1]
    answer = cli("evaluate", f"run={classifier}", f"against={rival}", "stages=false", *QUICK)
    assert answer.code == 0, answer.err
    result = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert cli("evaluate", f"run={rival}", "stages=false", *QUICK).code == 0
    other = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert result["against"]["accuracy"] == pytest.approx(other["accuracy"])
    assert result["against"]["difference"] == pytest.approx(result["accuracy"] - other["accuracy"])
    assert "McNemar" in answer.err
    assert "stages" not in result
    same = cli("evaluate", f"run={classifier}", f"against={classifier}", "stages=false", *QUICK)
    assert "no difference shown: +0.0 points" in same.err


@pytest.mark.slow
def test_without_the_training_pictures_there_are_no_probes_of_the_stages(
    in_world: Path, cli: Cli, photos: Path
) -> None:
    shutil.copytree(photos, "mine")
    assert cli("finetune", "mode=probe", "dataset.root=mine", *QUICK).code == 0
    Path("mine").rename("moved")
    answer = cli("evaluate", "dataset.root=moved", *QUICK)
    assert answer.code == 0, answer.err
    before = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert len(before["stages"]) == 2
    for image in sorted(Path("moved").rglob("*.jpg"))[::3]:
        image.unlink()
    answer = cli("evaluate", "dataset.root=moved", *QUICK)
    assert answer.code == 0, answer.err
    assert "No probes of the stages" in answer.err
    nowhere = cli("evaluate", "against=nowhere", *QUICK)
    assert nowhere.code == 1
    assert "nowhere: no run of sslrun there" in nowhere.err


def test_stage_features_are_the_means_of_the_maps() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(
        {"_target_": "sslrun.models.backbones.resnet18.resnet18", "stem": "auto"}, 32, [0.5] * 3, [0.5] * 3, "grid"
    )
    device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
    images = (torch.rand(5, 3, 32, 32) * 255).to(torch.uint8)
    result = map_features(encoder, images, device, batch_size=2)
    assert [f.shape for f in result] == [(5, 64), (5, 128), (5, 256), (5, 512)]
    x = (images / 255 - 0.5) / 0.5
    net = encoder.backbone.eval()
    with torch.no_grad():
        one = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))  # type: ignore[operator]
    assert torch.allclose(result[0], one.mean((2, 3)), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(result[-1], net(x)[-1].mean((2, 3)), atol=1e-5)
    assert not any(m._forward_hooks for n, m in net.named_modules() if n == "layer1")  # none is left behind
