"""Exported networks, used without sslrun."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import sslrun
from tests.helpers import QUICK, REPOSITORY, Cli, runs

FILES = {"onnx": "classifier.onnx", "torch_export": "classifier.pt2", "safetensors": "classifier.safetensors"}


def without_sslrun(photos: Path, size: int) -> tuple[list[str], np.ndarray]:
    """Return files and their pixels, `N x 3 x S x S` uint8, decoded by Pillow only."""
    files = sorted(photos.rglob("*.jpg"))[::7]
    squares = [np.asarray(Image.open(f).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)) for f in files]
    return [str(f) for f in files], np.stack(squares).transpose(0, 3, 1, 2)


def test_onnx_has_the_outputs_of_the_classifier_for_any_batch_size(in_world: Path, cli: Cli, photos: Path) -> None:
    answer = cli("export", "out=mine/flowers.onnx")
    assert answer.code == 0, answer.err
    about = {p.key: p.value for p in onnx.load("mine/flowers.onnx").metadata_props}
    assert json.loads(about["class_names"]) == ["flower", "temple"]
    assert json.loads(about["image_size"]) == 32
    model = sslrun.load(device="cpu")
    assert json.loads(about["temperature"]) == pytest.approx(model.temperature)
    session = onnxruntime.InferenceSession("mine/flowers.onnx")
    files, pixels = without_sslrun(photos, 32)
    expected = model.probabilities(files)
    (result,) = session.run(None, {"images": pixels})
    assert np.abs(result - expected).max() < 0.02  # sslrun decodes JPEGs at a reduced size, and these are not
    exact = torch.cat(list(model.pixels(files))).numpy()
    for n in (1, 2, 5):
        (result,) = session.run(["probabilities"], {"images": exact[:n]})
        assert np.abs(result - expected[:n]).max() < 1e-4
    again = cli("export", "out=mine/flowers.onnx")
    assert again.code == 1
    assert "out=mine/flowers.onnx already exists" in again.err


def test_the_example_in_the_docs_has_the_outputs_of_predict(in_world: Path, cli: Cli, photos: Path) -> None:
    answer = cli("export", "out=classifier.onnx", f"images=['{next(photos.rglob('*.jpg'))}']")  # one image is enough
    assert answer.code == 0, answer.err
    photo = Image.open(sorted(photos.rglob("*.jpg"))[3]).convert("RGBA").resize((50, 40))
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save("image.jpg", "PNG")  # in spite of its name
    page = (REPOSITORY / "docs/export.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    name, confidence = done.stdout.split()
    (expected,) = sslrun.load(device="cpu").predict("image.jpg")
    assert (name, float(confidence)) == (expected.class_name, pytest.approx(expected.confidence, abs=2e-4))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch_export", "safetensors"])
def test_other_formats_have_the_same_outputs(in_world: Path, cli: Cli, photos: Path, format: str) -> None:
    answer = cli("export", f"format={format}")
    assert answer.code == 0, answer.err
    file = next(Path("outputs/export").glob(f"*/{FILES[format]}"))
    model = sslrun.load(device="cpu")
    files, _ = without_sslrun(photos, 32)
    pixels = torch.cat(list(model.pixels(files)))
    if format == "torch_export":
        extra = {"sslrun.json": ""}
        network = torch.export.load(str(file), extra_files=extra).module()
        assert json.loads(extra["sslrun.json"])["class_names"] == ["flower", "temple"]
        with torch.no_grad():
            assert np.abs(network(pixels).numpy() - model.probabilities(files)).max() < 1e-4
        return
    weights = load_file(str(file))
    with safe_open(str(file), "pt") as opened:
        about = opened.metadata()
    mean, std = (torch.tensor(json.loads(about[k])).view(3, 1, 1) for k in ("mean", "std"))
    assert torch.allclose(mean, weights["encoder.mean"])
    assert torch.allclose(std, weights["encoder.std"])
    assert weights["head.weight"].shape[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
def test_torchvision_loads_an_exported_backbone(in_world: Path, cli: Cli, photos: Path, backbone: str) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=32")
    made = cli(
        "finetune", "init=scratch", f"backbone={backbone}", "backbone.stem=imagenet", *data, "mode=probe", *QUICK
    )
    assert made.code == 0, made.err
    answer = cli("export", "what=backbone", "format=safetensors", "out=weights.safetensors")
    assert answer.code == 0, answer.err
    net = getattr(torchvision.models, {"resnet18": "resnet18", "mobilenetv2": "mobilenet_v2"}[backbone])()
    missing, unexpected = net.load_state_dict(load_file("weights.safetensors"), strict=False)
    assert not unexpected
    assert set(missing) == {f"{h}.{k}" for h in ("fc", "classifier.1") for k in ("weight", "bias")} & set(missing)
    assert len(missing) == 2  # the head of ImageNet's classes
    for name in ("fc", "classifier"):
        if hasattr(net, name):
            setattr(net, name, torch.nn.Identity())
    model = sslrun.load(device="cpu")
    files, _ = without_sslrun(photos, 32)
    encoder = model.network.encoder
    x = (torch.cat(list(model.pixels(files))) / 255 - encoder.mean) / encoder.std
    with torch.no_grad():
        assert np.allclose(net.eval()(x).numpy(), model.embed(files), atol=1e-3)


def test_the_backbone_of_a_pretrained_network_is_exported_without_a_classifier(in_world: Path, cli: Cli) -> None:
    run = runs("pretrain")[-1]
    answer = cli("export", f"run={run}", "what=backbone", "format=safetensors", "out=weights.safetensors")
    assert answer.code == 0, answer.err
    backbone = sslrun.load(run, device="cpu").network.encoder.backbone.state_dict()
    weights = load_file("weights.safetensors")
    assert weights.keys() == backbone.keys()
    assert all(torch.equal(weights[k], backbone[k]) for k in weights)
    with safe_open("weights.safetensors", "pt") as opened:
        assert "class_names" not in opened.metadata()


def test_export_errors_are_one_line(in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = runs("pretrain")[0]
    assert "without a classifier: train one with sslrun finetune init=" in cli("export", f"run={pretrained}").err
    assert cli("finetune", "mode=knn", "label_fraction=0.5", *QUICK).code == 0
    assert "a kNN classifier, which has no head to export" in cli("export").err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "format=onnx needs onnx, onnxscript, onnxruntime; install with pip install" in cli("export").err
