"""Initialization of a classifier."""

from pathlib import Path

import pytest
import torch

from sslrun.config.compose import compose_nodes
from tests.helpers import QUICK, Cli, runs, summary


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
        (["backbone=resnet18"], "no pretrain run of resnet18"),
        (["labels_per_class=500"], "labels_per_class=500 is more than available"),
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


def test_a_classifier_from_imagenet_weights_can_be_loaded(
    in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    original = models.resnet18()  # instead of the download
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **_: original.state_dict())
    assert cli("finetune", "init=imagenet", "backbone=resnet18", "mode=probe", *QUICK).code == 0
    result = summary(runs("finetune")[-1])
    assert result["dataset"].startswith("folder")  # that of the newest pretraining run, although of another backbone
    assert result["config"]["backbone"]["stem"] == "imagenet_small"
    assert cli("evaluate", *QUICK).code == 0


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


@pytest.mark.parametrize("name", ["imagenet", "scratch"])
def test_the_value_of_init_for_a_file_without_a_suffix_finds_it_again(name: str) -> None:
    from sslrun.models.initialization import resolve

    torch.save({"weight": torch.ones(1)}, name)
    backbone, dataset = compose_nodes("pretrain", "backbone", "dataset")
    for init in (f"./{name}", f"././{name}"):
        network = resolve(init, backbone, dataset, {})
        assert (network.kind, network.init) == ("file", f"./{name}")
        assert resolve(network.init, backbone, dataset, {}).weights == network.weights
    assert resolve(name, backbone, dataset, {}).kind == {"imagenet": "pretrained", "scratch": "scratch"}[name]


def test_a_run_without_steps_can_initialize_another(short_run: Path, cli: Cli) -> None:
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    result = cli("finetune", f"init={runs('finetune')[0]}", "mode=probe", *QUICK)
    assert result.code == 0, result.err
