"""Initialization of a classifier."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import models

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.config.compose import compose_nodes
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images, digests
from sslrun.models.encoder import build_encoder
from sslrun.models.initialization import resolve, unchanged
from sslrun.run import checkpoint
from tests.helpers import QUICK, Cli, runs, summary


@pytest.mark.slow
def test_initializations(in_world: Path, cli: Cli) -> None:
    quick = ("mode=probe", *QUICK)
    pretrained = runs("pretrain")
    bare = torch.load(pretrained[0] / "last.pt", weights_only=True)["model"]
    states = {summary(p)["pretext"]: torch.load(p / "last.pt", weights_only=True)["model"] for p in pretrained}
    encoders = {n: {k: v for k, v in s.items() if k.startswith("encoder.")} for n, s in states.items()}
    torch.save({k.removeprefix("encoder.backbone."): v for k, v in bare.items() if "backbone" in k}, "bare.pt")
    config = summary(pretrained[0])["config"]
    data = ("dataset=folder", f"dataset.root={config['dataset']['root']}", "dataset.image_size=32")
    for init, name in [
        ("rotation", "rotation"), ("simclr", "simclr"), (str(pretrained[0]), "rotation"),
        (str(pretrained[1] / "best.pt"), "simclr"), ("scratch", "scratch"),
    ]:  # fmt: skip
        assert cli("finetune", f"init={init}", *quick).code == 0
        result = summary(runs("finetune")[-1])
        assert result["init"] == name
        assert result["config"]["backbone"]["widths"] == [8, 16]
        started = torch.load(runs("finetune")[-1] / "last.pt", weights_only=True)["model"]
        same = {n: all(torch.equal(started[f"classifier.{k}"], v) for k, v in s.items()) for n, s in encoders.items()}
        assert same == {n: n == name for n in encoders}
    assert cli("finetune", "init=bare.pt", "backbone=smallcnn", "backbone.widths=[8,16]", *data, *quick).code == 0
    torch.save({"model": torch.load("bare.pt"), "epoch": 3}, "foreign.pt")
    assert cli("finetune", "init=foreign.pt", "backbone=smallcnn", "backbone.widths=[8,16]", *data, *quick).code == 0
    refused = cli("finetune", "init=bare.pt", *quick)
    assert "add backbone=" in refused.err
    wrong = cli("finetune", "init=bare.pt", "backbone=smallcnn", *data, *quick)
    assert "do not match this network" in wrong.err
    assert wrong.code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset.image_size=64"], "dataset.image_size=64 does not match"),
        (["dataset.mean=[0,0,0]"], "dataset.mean"),
        (["backbone=resnet18", "init=RUN"], "backbone=resnet18 does not match"),
        (["backbone=smallcnn", "backbone.widths=[4]", "init=RUN"], "backbone.widths"),
        (["backbone=resnet18", "init=latest"], "no pretrain run of resnet18"),
        (["dataset.classes=[flower]"], "one class"),
    ],
)
def test_overrides_that_contradict_the_checkpoint_are_an_error(
    in_world: Path, cli: Cli, arguments: list[str], words: str
) -> None:
    answer = cli("finetune", "mode=finetune", *(a.replace("RUN", str(runs("pretrain")[-1])) for a in arguments), *QUICK)
    assert answer.code == 1
    assert words in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.slow
def test_scratch_has_the_same_backbone_and_data_set(in_world: Path, cli: Cli) -> None:
    """The baseline of a pretrained network, with and without explicit backbone and data set."""
    has = summary(runs("pretrain")[-1])["config"]
    named = ("dataset=folder", f"dataset.root={has['dataset']['root']}", "backbone=smallcnn")
    for extra in ((), named):
        assert cli("finetune", "init=scratch", "mode=probe", *extra, *QUICK).code == 0
        config = summary(runs("finetune")[-1])["config"]
        assert config["backbone"] == has["backbone"]
        assert config["dataset"]["image_size"] == 32
        assert config["dataset"]["root"] == has["dataset"]["root"]
    assert cli("finetune", "init=scratch", "mode=probe", "dataset.image_size=24", *named, *QUICK).code == 0
    assert summary(runs("finetune")[-1])["config"]["dataset"]["image_size"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pretrained", "imagenet"])
def test_a_classifier_from_published_weights_can_be_loaded(
    in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    original = models.resnet18()
    downloaded(original, monkeypatch)
    size = ("dataset.image_size=64", "dataset.max_images=20")
    assert cli("finetune", f"init={init}", "backbone=resnet18", "mode=probe", *size, *QUICK).code == 0
    result = summary(runs("finetune")[-1])
    assert result["dataset"].startswith("folder")  # that of the newest pretraining run, although of another backbone
    assert (result["init"], result["config"]["init"]) == ("pretrained", "pretrained")
    assert result["config"]["backbone"]["stem"] == "imagenet_small"  # at up to 64 px
    assert result["config"]["dataset"]["mean"] == [0.485, 0.456, 0.406]
    first = checkpoint.load(runs("finetune")[-1] / "best.pt")["model"]["classifier.encoder.backbone.conv1.weight"]
    assert torch.equal(first, original.state_dict()["conv1.weight"])
    assert cli("evaluate", *QUICK).code == 0


def downloaded(net: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save weights where torchvision would have downloaded them."""
    monkeypatch.setenv("TORCH_HOME", str(Path("torch").absolute()))
    path = Path("torch/hub/checkpoints", models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1])
    path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), path)


@pytest.mark.parametrize("name", ["imagenet.pt", "scratch.pt"])
def test_a_file_may_have_the_name_of_another_value_of_init(in_world: Path, cli: Cli, name: str) -> None:
    pretrained = runs("pretrain")[0]
    state = torch.load(pretrained / "last.pt", weights_only=True)["model"]
    weights = {k.removeprefix("encoder.backbone."): v for k, v in state.items() if "encoder.backbone." in k}
    torch.save(weights, name)
    config = summary(pretrained)["config"]
    data = ("dataset=folder", f"dataset.root={config['dataset']['root']}", "dataset.image_size=32")
    network = ("backbone=smallcnn", "backbone.widths=[8,16]")
    answer = cli("finetune", f"init={name}", "mode=probe", *network, *data, *QUICK)
    assert answer.code == 0, answer.err
    result = summary(runs("finetune")[-1])
    assert (result["init"], result["source"], result["config"]["init"]) == (
        name,
        name,
        name,
    )
    started = torch.load(runs("finetune")[-1] / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(started[f"classifier.encoder.backbone.{k}"], v) for k, v in weights.items())


@pytest.mark.parametrize("name", ["auto", "pretrained", "imagenet", "scratch"])
def test_the_value_of_init_for_a_file_without_a_suffix_finds_it_again(name: str) -> None:
    torch.save({"weight": torch.ones(1)}, name)
    backbone, dataset = compose_nodes("pretrain", "backbone", "dataset")
    for init in (f"./{name}", f"././{name}"):
        network = resolve(init, backbone, dataset, {})
        assert (network.kind, network.init) == ("file", f"./{name}")
        assert resolve(network.init, backbone, dataset, {}).weights == network.weights
    if name != "auto":
        resnet = {"_target_": RESNET18, "stem": "auto"}
        kind = "scratch" if name == "scratch" else "pretrained"
        assert resolve(name, resnet, dataset, {}).kind == kind


@pytest.mark.slow
def test_a_run_without_steps_can_initialize_another(short_run: Path, cli: Cli) -> None:
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    result = cli("finetune", f"init={runs('finetune')[0]}", "mode=probe", *QUICK)
    assert result.code == 0, result.err


SMALLCNN = "sslrun.models.backbones.smallcnn.smallcnn"
RESNET18 = "sslrun.models.backbones.resnet18.resnet18"
FOLDER = "sslrun.data.sources.folder.folder"
UNSET: dict[str, Any] = {}


def made_run(name: str, started: str, *, status: str = "finished", backbone: Any = None, **dataset: Any) -> Path:
    """Write a pretrain run with a checkpoint, without training."""
    path = Path("outputs/pretrain", name)
    path.mkdir(parents=True)
    config = {
        "backbone": backbone or {"_target_": SMALLCNN, "widths": [4]},
        "dataset": {
            "_target_": FOLDER, "root": "photos", "image_size": 12, "resize": "pad", "channels": "gray",
            "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "val_fraction": 0.3, **dataset,
        },
        "pretext": {"_target_": "sslrun.tasks.pretext.simclr.SimCLR"},
    }  # fmt: skip
    encoder = build_encoder(config["backbone"], 12, [0.7] * 3, [0.8] * 3)
    model = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    checkpoint.save(path / "last.pt", {"config": config, "stage": "pretrain", "model": model})
    summary = {"stage": "pretrain", "status": status, "config": config, "overrides": [], "wall_time_seconds": 1.0}
    write_json(path / "summary.json", {**summary, "started": started})
    return path


def images(size: int = 12) -> Dataset:
    array = np.full((4, size, size, 3), 51, np.uint8)
    return Dataset(Images([torch.from_numpy(array)], digests(array)), None, [], list("abcd"))


def test_a_network_of_a_run_has_its_weights_preprocessing_and_backbone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = made_run("a", "1")
    network = resolve("latest", UNSET, UNSET, {})
    assert (network.kind, network.name, network.path, network.init) == (
        "run",
        "simclr",
        run / "last.pt",
        f"{run}/last.pt",
    )
    assert "Initializing from outputs/pretrain/a" in caplog.text
    assert (network.backbone["widths"], network.dataset["resize"], network.dataset["val_fraction"]) == ([4], "pad", 0.3)
    encoder = network.encoder(images(), "grid")
    assert encoder.pooling == "grid"
    assert encoder.mean.flatten().tolist() == pytest.approx([0.7] * 3)  # of the weights
    caplog.clear()
    assert resolve(str(run), UNSET, UNSET, {}).path == run / "last.pt"
    assert not caplog.records
    other = {"_target_": FOLDER, "root": "others", "image_size": 64, "resize": "crop", "channels": "rgb", "mean": None,
             "std": None, "val_fraction": 0.1}  # fmt: skip
    data = resolve(str(run), UNSET, other, {"dataset.root": "others"}).dataset
    assert (data["root"], data["val_fraction"]) == ("others", 0.1)  # of this command
    preprocessing = {k: data[k] for k in ("image_size", "resize", "channels", "mean", "std")}
    assert preprocessing == {k: network.dataset[k] for k in preprocessing}
    same = {**other, "image_size": 12}
    assert resolve(str(run), UNSET, same, {"dataset.image_size": "12"}).dataset["image_size"] == 12
    for key in preprocessing:
        with pytest.raises(UserError, match=rf"dataset\.{key}=.* does not match .*last\.pt, which has dataset\.{key}="):
            resolve(str(run), UNSET, other, {f"dataset.{key}": "x"})


@pytest.mark.parametrize(("mode", "counts"), [("finetune", False), ("probe", True)])
def test_a_network_that_has_seen_labels_is_a_warning(mode: str, counts: bool, caplog: pytest.LogCaptureFixture) -> None:
    run = made_run("a", "1")
    content = checkpoint.load(run / "last.pt")
    config = {k: v for k, v in content["config"].items() if k != "pretext"}
    config |= {"mode": mode, "labels": 300, "label_fraction": 1.0, "labels_per_class": None}
    checkpoint.save(run / "last.pt", {**content, "stage": "finetune", "config": config})
    resolve(str(run), UNSET, UNSET, {})
    line = f"{run}/last.pt was trained with labels (labels=300): the label budget of this run does not count them."
    assert (line not in caplog.messages) == counts


def test_a_backbone_that_differs_from_the_checkpoint_is_refused() -> None:
    run = made_run("a", "1")
    with pytest.raises(UserError, match=r"backbone=resnet18 does not match .*, which has backbone=smallcnn"):
        resolve(str(run), {"_target_": RESNET18, "stem": "auto"}, UNSET, {})
    with pytest.raises(UserError, match=r"backbone\.widths=\[8\] does not match .*, which has backbone\.widths=\[4\]"):
        resolve(str(run), {"widths": [8]}, UNSET, {"backbone.widths": "[8]"})
    named = {"_target_": SMALLCNN, "widths": [9]}  # the default, which is not given
    assert resolve(str(run), named, UNSET, {}).backbone["widths"] == [4]


def test_a_run_that_did_not_finish_is_used_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    finished, unfinished = made_run("a", "1"), made_run("b", "2", status="interrupted")
    assert resolve("latest", UNSET, UNSET, {}).path == finished / "last.pt"
    assert "did not finish" not in caplog.text
    assert resolve(str(unfinished), UNSET, UNSET, {}).path == unfinished / "last.pt"
    assert "outputs/pretrain/b did not finish (interrupted); using its last checkpoint" in caplog.text


def test_a_baseline_has_the_backbone_and_data_of_the_newest_run_that_fits() -> None:
    made_run("a", "1", image_size=8)
    made_run("b", "2", backbone={"_target_": RESNET18, "stem": "auto"}, image_size=16)
    made_run("c", "3", backbone={"_target_": SMALLCNN, "widths": [5]}, root="others", image_size=20)
    network = resolve("scratch", UNSET, UNSET, {})
    assert (network.kind, network.name, network.path, network.init) == ("scratch", "scratch", None, "scratch")
    assert network.weights is None
    assert (network.backbone["widths"], network.dataset["image_size"]) == ([5], 20)
    resnet = {"_target_": RESNET18, "stem": "auto"}
    for init in ("pretrained", "imagenet"):  # the images of its newest run, but the image size of the weights
        network = resolve(init, resnet, UNSET, {})
        assert (network.kind, network.name, network.init) == ("pretrained", "pretrained", "pretrained")
        assert (network.backbone, network.dataset["root"], network.dataset["image_size"]) == (resnet, "photos", 224)
    photos = {"_target_": FOLDER, "root": "photos", "image_size": 64, "resize": "crop", "channels": "rgb", "mean": None,
              "std": None}  # fmt: skip
    assert resolve("scratch", UNSET, photos, {}).dataset["image_size"] == 16
    of_smallcnn = resolve("scratch", {"_target_": SMALLCNN, "widths": [9]}, photos, {})
    assert (of_smallcnn.backbone["widths"], of_smallcnn.dataset["image_size"]) == ([4], 8)
    of_mobilenet = {"_target_": "sslrun.models.backbones.mobilenetv2.mobilenetv2", "stem": "auto"}
    assert resolve("scratch", of_mobilenet, photos, {}).backbone == of_mobilenet
    assert resolve("scratch", of_mobilenet, photos, {}).dataset["image_size"] == 16
    own = resolve("scratch", {"widths": [7]}, {**photos, "resize": "squash"},
                  {"backbone.widths": "[7]", "dataset.resize": "squash", "dataset.root": "photos"})  # fmt: skip
    assert own.dataset["resize"] == "squash"
    small = {**photos, "image_size": 32}, {"dataset.image_size": "32"}
    stems = {init: resolve(init, resnet, *small).backbone["stem"] for init in ("scratch", "imagenet")}
    assert stems == {"scratch": "auto", "imagenet": "imagenet_small"}
    large = resolve("imagenet", resnet, {**photos, "image_size": 128}, {"dataset.image_size": "128"})
    assert (large.backbone["stem"], large.dataset["image_size"]) == ("auto", 128)


def test_a_run_whose_config_names_foreign_code_is_not_a_baseline() -> None:
    made_run("a", "1")
    path = made_run("b", "2") / "summary.json"
    path.write_text(path.read_text().replace(SMALLCNN, "os.system"))
    with pytest.raises(UserError, match=r"outputs/pretrain/b has the _target_ os\.system"):
        resolve("scratch", UNSET, UNSET, {})


def test_a_resumed_run_keeps_its_initialization() -> None:
    made_run("a", "1", backbone={"_target_": RESNET18, "stem": "small"}, image_size=48)  # since it was started
    data = {"_target_": FOLDER, "root": "photos", "image_size": 32, "resize": "crop", "channels": "rgb",
            "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    for init, stem in (("pretrained", "imagenet_small"), ("scratch", "auto")):
        backbone = {"_target_": RESNET18, "stem": stem}
        resumed = {"init": "its name", "config": {"backbone": backbone, "dataset": data, "init": init}}
        network = resolve("latest", UNSET, UNSET, {}, resumed)
        assert (network.kind, network.name, network.path, network.weights) == ("resume", "its name", None, None)
        assert network.backbone["stem"] == stem
        network = unchanged(init, backbone, data)  # without a checkpoint
        assert (network.kind, network.name, network.init) == (init, init, init)
        assert (network.backbone, network.dataset) == (backbone, data)
        assert (network.published is None) == (init == "scratch")


def test_a_file_may_have_the_weights_of_an_encoder_or_of_its_backbone_alone() -> None:
    backbone = {"_target_": SMALLCNN, "widths": [4]}
    data = {"_target_": FOLDER, "root": "photos", "image_size": 12, "mean": None, "std": None}
    encoder = build_encoder(backbone, 12, [0.7] * 3, [0.8] * 3)
    torch.save(encoder.state_dict(), "whole.pt")
    torch.save(encoder.backbone.state_dict(), "alone.pt")
    for file, mean in (("whole", 0.7), ("alone", 0.2)):
        network = resolve(f"{file}.pt", backbone, data, {})
        assert (network.kind, network.name, network.init) == ("file", file, f"{file}.pt")
        loaded = network.encoder(images())
        assert loaded.mean.flatten().tolist() == pytest.approx([mean] * 3)  # in the file, or else of the images
        for key, value in encoder.backbone.state_dict().items():
            assert torch.equal(loaded.backbone.state_dict()[key], value)
    for what, nodes in (("backbone", (UNSET, data)), ("dataset", (backbone, UNSET))):
        with pytest.raises(UserError, match=rf"alone\.pt contains only weights: add {what}="):
            resolve("alone.pt", nodes[0], nodes[1], {})


@pytest.mark.parametrize(
    ("command", "init"), [("pretrain", "scratch"), ("pretrain", "simclr"), ("finetune", "scratch"), ("finetune", "run")]
)
def test_a_file_of_weights_that_is_not_used_is_one_line(in_world: Path, cli: Cli, command: str, init: str) -> None:
    init = str(runs("pretrain")[0]) if init == "run" else init
    weights = ("backbone=timm", "backbone.name=test_resnet", "backbone.weights=missing.pth")
    data = ["dataset=digits"] if command == "pretrain" else []
    answer = cli(command, *data, f"init={init}", *weights, *QUICK)
    assert answer.code == 1
    assert answer.lines() == [f"sslrun: backbone.weights needs init=pretrained, found init={init}; remove one of them"]


@pytest.mark.slow
def test_a_backbone_and_an_image_size_of_an_experiment_are_kept(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights of another network would be taken if only the command line counted."""
    downloaded(models.resnet18(), monkeypatch)
    Path("mine/experiment").mkdir(parents=True)
    experiment = "# @package _global_\ndefaults:\n  - override /backbone: resnet18\ndataset:\n  image_size: 40\n"
    Path("mine/experiment/small.yaml").write_text(experiment)
    data = ("dataset=digits", "dataset.max_images=20", "train.steps=1", "train.batch_size=4", *QUICK)
    answer = cli("pretrain", "-cd", "mine", "experiment=small", "init=pretrained", *data)
    assert answer.code == 0, answer.err
    config = summary(runs("pretrain")[-1])["config"]
    assert (config["backbone"]["_target_"], config["dataset"]["image_size"]) == (RESNET18, 40)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_normalization_other_than_that_of_published_weights_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str, key: str
) -> None:
    downloaded(models.resnet18(), monkeypatch)
    data = ("dataset=digits", f"dataset.{key}=[0.5,0.5,0.5]", "backbone=resnet18")
    answer = cli(command, "init=pretrained", *data, *QUICK)
    assert answer.code == 1
    assert answer.lines() == [
        f"sslrun: dataset.{key}: images are normalized as those of the published weights; remove it"
    ]


@pytest.mark.slow
def test_labels_that_a_pretraining_started_from_are_not_forgotten(short_run: Path, cli: Cli) -> None:
    few = ("train.steps=1", "train.batch_size=8", *QUICK)
    assert cli("finetune", "mode=finetune", "labels=20", *few).code == 0
    assert (
        "trained with labels (labels=20)" in cli("pretrain", "dataset=digits", f"init={runs('finetune')[-1]}", *few).err
    )
    run = runs("pretrain")[-1]
    assert summary(run)["labels_seen"] == "labels=20"
    assert cli("pretrain", f"resume={run}", "train.steps=2").code == 0
    line = "trained with labels (labels=20): the label budget of this run does not count them."
    answer = cli("finetune", "mode=probe", "labels=30", *QUICK)
    assert answer.code == 0
    assert line in answer.err
    probe = runs("finetune")[-1]
    assert summary(probe)["source"].startswith(str(run))
    assert summary(probe)["labels_seen"] == "labels=20"
    assert line in cli("finetune", f"init={probe}", "mode=probe", *QUICK).err  # whose own labels trained no encoder
    assert cli("finetune", "init=scratch", "mode=probe", *QUICK).code == 0
    assert "labels_seen" not in summary(runs("finetune")[-1])


def test_a_pretraining_names_only_its_own_values_of_init(short_run: Path, cli: Cli) -> None:
    answer = cli("pretrain", "dataset=digits", "init=auto", *QUICK)
    assert answer.code == 1
    (line,) = answer.lines()
    assert line.startswith("sslrun: init=auto: no such pretext task, run or file")
    assert "did you mean auto?" not in line
    assert line.endswith("or use latest, scratch, pretrained, a run directory or a file")
