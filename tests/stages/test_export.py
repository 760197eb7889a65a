"""Exported networks, used without sslrun."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import sslrun
from sslrun.models.classifier import Classifier
from sslrun.stages import export
from sslrun.stages.export import Exported
from tests.helpers import QUICK, REPOSITORY, Cli, runs, small_encoder, summary

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


FAMILIES = [("timm", n) for n in ("test_resnet", "test_efficientnet", "test_convnext")] + [
    ("torchvision", n) for n in ("shufflenet_v2_x0_5", "mobilenet_v3_small", "regnet_y_400mf")
]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), FAMILIES)
def test_networks_of_libraries_are_trained_and_exported(
    in_world: Path, cli: Cli, photos: Path, library: str, name: str
) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=64", "train.batch_size=8")
    network = (f"backbone={library}", f"backbone.name={name}", "train.steps=3", "train.evaluations=1", *QUICK)
    answer = cli("finetune", "init=scratch", "mode=finetune", *network, *data)
    assert answer.code == 0, answer.err
    answer = cli("export", "format=onnx", "out=network.onnx")  # which compares the outputs
    assert answer.code == 0, answer.err
    answer = cli("export", "what=backbone", "format=safetensors", "out=weights.safetensors")
    assert answer.code == 0, answer.err
    net = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name)
    missing, unexpected = net.load_state_dict(load_file("weights.safetensors"), strict=False)
    assert not unexpected
    assert all(k.split(".")[0] in ("fc", "classifier", "head") for k in missing)


def test_the_backbone_of_a_pretrained_network_is_exported_without_a_classifier(in_world: Path, cli: Cli) -> None:
    run = runs("pretrain")[-1]
    answer = cli("export", f"run={run}", "what=backbone", "format=safetensors", "out=weights.safetensors")
    assert answer.code == 0, answer.err
    backbone = sslrun.load(run, device="cpu").network.encoder.backbone.state_dict()
    weights = load_file("weights.safetensors")
    assert weights.keys() == backbone.keys()
    assert all(torch.equal(weights[k], backbone[k]) for k in weights)
    with safe_open("weights.safetensors", "pt") as opened:
        about = opened.metadata()
    assert "class_names" not in about
    assert (about["output"], about["backbone"], about["resize"]) == ("features: N x D", "smallcnn", "crop")
    assert (about["channels"], about["image_size"], about["sslrun"]) == ("rgb", "32", sslrun.__version__)
    encoder = sslrun.load(run, device="cpu").network.encoder
    for name in ("mean", "std"):
        assert json.loads(about[name]) == getattr(encoder, name).flatten().tolist()
    made = summary(runs("export")[-1])
    assert (made["file"], made["of_run"], made["images"]) == ("weights.safetensors", str(run), 48)
    assert made["config"]["run"] == str(run)
    assert 0 <= made["largest_difference"] < 1e-4


def test_export_errors_are_one_line(in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = runs("pretrain")[0]
    assert "without a classifier: train one with sslrun finetune init=" in cli("export", f"run={pretrained}").err
    assert cli("finetune", "mode=knn", "label_fraction=0.5", *QUICK).code == 0
    assert "a kNN classifier, which has no head to export" in cli("export").err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "format=onnx needs onnx, onnxscript, onnxruntime; install with pip install" in cli("export").err


def test_an_exported_network_maps_bytes_to_calibrated_probabilities_or_features() -> None:
    encoder = small_encoder().eval()
    encoder.pooling = "grid"
    classifier = Classifier(encoder, 3).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.nn.init.normal_(next(classifier.head.parameters()))
        logits = classifier.head(encoder(images / 255))
        expected = torch.exp(logits / 2.5) / torch.exp(logits / 2.5).sum(1, keepdim=True)
        assert torch.allclose(Exported(encoder, classifier.head, 2.5)(images), expected, atol=1e-6)
        features = Exported(encoder, None, 2.5)(images)
    with torch.no_grad():
        assert torch.allclose(features, encoder.maps(images / 255)[-1].mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_safetensors_have_all_weights_and_the_metadata_as_text(whole: bool) -> None:
    encoder = small_encoder().eval()
    encoder.mean += torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    module = Exported(encoder, Classifier(encoder, 3).head if whole else None, 1.0).eval()
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    outputs = export._safetensors(module, images, Path("a.safetensors"), {"n": 3, "names": ["ä"], "text": "x"})
    with torch.no_grad():
        assert np.allclose(outputs, module(images).numpy(), atol=1e-6)
    state = (module if whole else encoder.backbone).state_dict()
    weights = load_file("a.safetensors")
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[k], v) for k, v in state.items())
    with safe_open("a.safetensors", "pt") as opened:
        about = opened.metadata()
    assert {k: about[k] for k in ("n", "names", "text")} == {"n": "3", "names": '["ä"]', "text": "x"}
    assert json.loads(about["mean"]) == encoder.mean.flatten().tolist()
    assert json.loads(about["std"]) == encoder.std.flatten().tolist()


@pytest.mark.parametrize(("n", "rows"), [(1000, 500), (7, 7)])
def test_an_export_is_checked_on_images_from_all_of_the_training_images(
    n: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.arange(n).view(n, 1, 1, 1)

    class Data:
        def __init__(self) -> None:
            self.images = images

        def __len__(self) -> int:
            return n

    monkeypatch.setattr(export, "load_train", lambda node: (Data(), None))
    model: Any = SimpleNamespace(network=SimpleNamespace(config={"dataset": {}}))
    chosen = export._images_to_check(model, []).flatten().tolist()
    assert (len(chosen), chosen[0], chosen[-1]) == (rows, 0, n - 1)
    assert len({*chosen}) == rows


def test_a_wrong_export_is_moved_into_the_run_and_refused(
    in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = export._safetensors
    for gap, code in ((3e-4, 1), (5e-5, 0)):
        monkeypatch.setattr(export, "_safetensors", lambda *given, gap=gap: original(*given) + np.float32(gap))
        answer = cli("export", "format=safetensors", f"out={code}.safetensors")
        assert answer.code == code, answer.err
        assert Path(f"{code}.safetensors").exists() == (code == 0)
        assert (runs("export")[-1] / "wrong.safetensors").exists() == (code == 1)
        assert ("outputs of the exported network differ by 0.0003 on 48 images" in answer.err) == (code == 1)
