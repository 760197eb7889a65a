import json
from pathlib import Path

import pytest

from sslrun.base.errors import UserError
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.config.types import Node
from sslrun.models.teacher import node_of
from sslrun.run.run import Stages
from sslrun.stages.table import job, stage
from sslrun.study import settings as study_settings
from sslrun.study.settings import StudyOverrides, device_of, overrides_of
from tests.helpers import SMALL_STUDY, Cli, runs, study_table


@pytest.mark.slow
def test_two_settings_of_one_task_are_two_networks(cli: Cli) -> None:
    two = 'inits=[simclr,"simclr pretext.temperature=0.5 train.steps=3"]'
    answer = cli("compare", *SMALL_STUDY, two, "labels_per_class=[3]", "seeds=1", "mode=probe")
    assert answer.code == 0, answer.err
    result = [json.loads(p.read_text())["config"] for p in Path("outputs/pretrain/study_runs").glob("*/summary.json")]
    assert sorted((c["pretext"]["temperature"], c["train"]["steps"]) for c in result) == [(0.2, 4), (0.5, 3)]
    networks = {"scratch", "pixels", "simclr", two.split('"')[1]}
    assert {r["initialization"] for r in study_table(runs("compare")[0])} == networks
    assert "undecided for this pretrained checkpoint, given these labels" in answer.err


def test_a_pretraining_has_the_seed_and_the_shared_settings_of_its_study() -> None:
    config = plain(compose_config("compare", ["seed=3", "train.epochs=7", "dataset=digits", "unlabeled=more"], None))
    chosen = {"pretext": "simclr", "backbone": "smallcnn", "dataset": "digits", "optimizer": "adamw", "device": "auto"}
    (overrides,) = overrides_of(Stages(stage, job), config, chosen, None).pretrainings.values()
    assert {"seed=3", "train.epochs=7", "unlabeled='more'"} <= set(overrides)


CHOSEN = {"pretext": "simclr", "backbone": "smallcnn", "dataset": "digits", "optimizer": "adamw", "device": "cpu"}


def composed(command: str, overrides: list[str]) -> Node:
    return plain(compose_config(command, overrides, None))


def test_the_overrides_of_a_study_give_the_configs_of_its_runs() -> None:
    """The task of `pretext=` has its settings, another task its own ones."""
    own = ["dataset.image_size=16", "dataset.classes={low ones: ['1','2'], high: ['8']}", "dataset.max_images=200",
           "backbone.widths=[8,16]", "optimizer.weight_decay=0.3"]  # fmt: skip
    device = ["device=cpu", "device.threads=1", "device.precision=fp32"]
    inits = 'inits=[simclr,rotation,"simclr pretext.temperature=0.7 train.steps=3 seed=9"]'
    more = ["pretext.temperature=0.4", "train.learning_rate=0.5", inits, "seed=4"]
    classifiers = ['finetune=["label_smoothing=0.3","dataset.max_images=50"]', 'search=["augment.probability=0.1"]']
    config = composed("compare", [*own, *device, *more, *classifiers])
    given = overrides_of(Stages(stage, job), config, CHOSEN, None)
    pretrainings, common = given.pretrainings, given.common
    assert list(pretrainings) == ["simclr", "rotation", "simclr pretext.temperature=0.7 train.steps=3 seed=9"]
    shared = [*own, *device, "train.learning_rate=0.5"]
    expected = [
        [*shared, "pretext=simclr", "pretext.temperature=0.4", "seed=4"],
        [*shared, "pretext=rotation", "seed=4"],
        [*shared, "pretext=simclr", "pretext.temperature=0.7", "train.steps=3", "seed=9"],
    ]
    for overrides, same in zip(pretrainings.values(), expected, strict=True):
        assert composed("pretrain", overrides) == composed("pretrain", same)
    data = ["dataset=digits", "dataset.max_images=50", "backbone=smallcnn", "backbone.widths=[8,16]", *own[:2], *device]
    assert composed("finetune", common) == composed("finetune", [*data, "label_smoothing=0.3"])
    assert given.search == ["augment.probability=0.1"]
    on_pixels = composed("finetune", ["dataset=digits", "dataset.max_images=50", "backbone=pixels", *own[:2], *device])
    assert composed("finetune", given.of_classifier("pixels", "probe")) == on_pixels | {"label_smoothing": 0.3}
    assert composed("evaluate", device_of(config, CHOSEN, "evaluate")) == composed("evaluate", device)
    config |= {"search": [], "inits": None}
    given = overrides_of(Stages(stage, job), config, CHOSEN, None)
    (overrides,) = given.pretrainings.values()
    assert list(given.pretrainings) == ["simclr"]
    assert composed("pretrain", overrides)["pretext"]["temperature"] == 0.4
    assert given.search == []


def test_the_given_settings_of_classifiers_are_not_searched() -> None:
    config = composed(
        "compare", ['finetune=["augment.probability=0.3"]', 'search=["augment.probability=0.1","seed=1"]']
    )
    with pytest.raises(UserError, match="search: seed=1: expected a training setting"):
        overrides_of(Stages(stage, job), config, CHOSEN, None)
    config["search"].pop()
    assert overrides_of(Stages(stage, job), config, CHOSEN, None).search == []


def test_only_a_budget_forbids_the_length_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_settings, "_common", lambda *_: [])
    config = composed("compare", [])
    for key in ("train.epochs", "train.steps"):
        config |= {"inits": [f"simclr {key}=3"], "budget": None}
        (overrides,) = overrides_of(Stages(stage, job), config, CHOSEN, None).pretrainings.values()
        assert overrides[-1] == f"{key}=3"
        config["budget"] = "9m"
        with pytest.raises(UserError, match=f"budget= sets the epochs of each pretraining; remove {key}=3"):
            overrides_of(Stages(stage, job), config, CHOSEN, None)


def test_the_validation_fraction_is_given_to_classifiers_with_a_validation_split_only() -> None:
    for validation in ("inside", "extra"):
        config = composed("compare", ["dataset.val_fraction=0.3", f"validation={validation}"])
        common = overrides_of(Stages(stage, job), config, CHOSEN, None).common
        assert ("dataset.val_fraction=0.3" in common) == (validation == "extra")


def test_knn_on_pixels_does_not_balance_classes() -> None:
    given = overrides_of(Stages(stage, job), composed("compare", ['finetune=["balance=weights"]']), CHOSEN, None)
    assert "balance=weights" in given.of_classifier("pixels", "probe")
    assert "balance=weights" not in given.of_classifier("pixels", "knn")
    assert "backbone=smallcnn" in given.of_classifier("scratch", "probe")


def test_seeds_of_a_task_conflict_with_several_pretrainings() -> None:
    config = composed("compare", ['inits=["simclr seed=3"]', "pretrain_seeds=2"])
    with pytest.raises(UserError, match=r"inits: simclr seed=3: pretrain_seeds=2 sets the seeds .*; remove seed=3"):
        overrides_of(Stages(stage, job), config, CHOSEN, None)


def study(*overrides: str, **chosen: str) -> StudyOverrides:
    config = composed("compare", [*overrides])
    return overrides_of(Stages(stage, job), config, CHOSEN | chosen, None)


LITE0 = ["backbone=timm", "backbone.name=tf_efficientnet_lite0"]


def test_published_weights_have_their_own_network_and_image_size() -> None:
    """All other settings of the data set are the study's."""
    own = ["dataset.mean=[0.1,0.1,0.1]", "dataset.std=[0.2,0.2,0.2]", "dataset.image_size=16", "dataset.resize=squash"]
    given = study("inits=[pretrained,rotation]", *own, 'finetune=["label_smoothing=0.3"]')
    assert given.network is not None
    assert (given.network.name, given.network.image_size) == ("tf_efficientnet_lite0", 224)
    overrides = given.of_classifier("pretrained", "probe")
    expected = composed("finetune", [*LITE0, "dataset=digits", own[-1], "label_smoothing=0.3"])
    assert composed("finetune", overrides) == expected
    assert not {"dataset.image_size", "dataset.mean", "dataset.std"} & {o.partition("=")[0] for o in overrides}
    assert list(given.pretrainings) == ["rotation"]
    assert study("inits=[rotation]").network is None


def test_published_weights_of_the_backbone_come_before_the_first_on_this_machine(teacher_weights: str) -> None:
    backbone = ["backbone=timm", "backbone.name=test_resnet", f"backbone.weights={teacher_weights}"]
    given = study("inits=[imagenet]", *backbone, backbone="timm")
    assert given.network is not None
    assert (given.network.name, given.network.image_size, given.network.source) == ("test_resnet", 160, teacher_weights)
    used = composed("finetune", given.of_classifier("pretrained", "probe"))["backbone"]
    assert used == composed("pretrain", backbone)["backbone"]


def test_by_default_the_task_of_the_study_and_published_weights_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert study_settings.inits_of(composed("compare", []), CHOSEN) == ["scratch", "simclr", "pretrained"]
    for backbone in ("resnet18", "smallcnn"):  # resnet18 has weights, which were not downloaded
        monkeypatch.setattr(study_settings, "on_this_machine", lambda: iter(()))
        config = composed("compare", [f"backbone={backbone}"])
        assert study_settings.inits_of(config, CHOSEN | {"pretext": "jigsaw"}) == ["scratch", "jigsaw"]


def test_without_published_weights_what_needs_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslrun.models.published.on_this_machine", lambda: iter(()))
    for name, other in (("pretrained", "choose a network with backbone="), ("distill", "name a teacher, whose")):
        words = rf"^inits: {name}: no published weights are on this machine; get them with .*, or {other}"
        with pytest.raises(UserError, match=words) as wrong:
            study(f"inits=[rotation,{name}]")
        assert len(str(wrong.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"^inits: distill: no published weights"):
        study("inits=[distill]", "backbone=resnet18", backbone="resnet18")
    given = study('inits=["distill pretext.teacher=tf_efficientnet_lite0"]')
    assert given.network is given.teacher is None


def test_the_teacher_of_a_distillation_is_the_backbone_of_the_study_if_it_has_a_name(teacher_weights: str) -> None:
    def teacher(*overrides: str, **chosen: str) -> list[object]:
        given = study(*overrides, **chosen)
        (of_distill,) = given.pretrainings.values()
        pretext = composed("pretrain", of_distill)["pretext"]
        if given.teacher:  # that of the log
            assert node_of(pretext["teacher"], pretext["weights"]) == given.teacher.backbone
        return [pretext["teacher"], pretext["weights"]]

    backbone = ["backbone=timm", "backbone.name=test_resnet", f"backbone.weights={teacher_weights}"]
    assert teacher("inits=[pretrained,distill]") == ["tf_efficientnet_lite0", None]
    assert teacher("inits=[distill]") == ["tf_efficientnet_lite0", None]
    assert teacher("inits=[pretrained,distill]", *backbone, backbone="timm") == ["test_resnet", teacher_weights]
    resnet50 = ["backbone=torchvision", "backbone.name=resnet50"]
    assert teacher("inits=[distill]", *resnet50, backbone="torchvision") == ["torchvision/resnet50", None]
    ours = study("inits=[pretrained,distill]", "backbone=resnet18", backbone="resnet18")
    assert (ours.network and ours.network.name) == "resnet18"
    assert (ours.teacher and ours.teacher.name) == "tf_efficientnet_lite0"
    assert teacher("inits=[distill]", "backbone=resnet18", backbone="resnet18") == ["tf_efficientnet_lite0", None]
    assert teacher('inits=["distill pretext.teacher=resnet50"]') == ["resnet50", None]
    of_study = ["pretext=distill", "pretext.teacher=resnet50"]
    assert teacher("inits=[pretrained,distill]", *of_study, pretext="distill") == ["resnet50", None]


def test_a_task_continues_from_published_weights_at_the_size_of_the_study(teacher_weights: str) -> None:
    """The classifiers take the stem and the normalization of the weights from its checkpoint."""
    backbone = ["backbone=timm", "backbone.name=test_resnet", f"backbone.weights={teacher_weights}"]
    entry = "rotation init=pretrained train.steps=3"
    given = study(f'inits=[rotation,"{entry}"]', *backbone, "dataset.image_size=48", backbone="timm")
    assert given.network is None
    for overrides, init in zip(given.pretrainings.values(), ("scratch", "pretrained"), strict=True):
        config = composed("pretrain", overrides)
        assert (config["init"], config["dataset"]["image_size"]) == (init, 48)
    assert "dataset.image_size=48" in given.pretrainings[entry]  # else it would be that of the weights
    common, own = (given.of_classifier(name, "probe") for name in ("rotation", entry))
    assert set(common) - set(own) == {"dataset.mean=null", "dataset.std=null"}
    given = study('inits=["rotation init=pretrained"]', "backbone=resnet18", backbone="resnet18")
    removed = set(given.common) - set(given.of_classifier("rotation init=pretrained", "probe"))
    assert removed == {"backbone.stem='auto'", "dataset.mean=null", "dataset.std=null"}


@pytest.mark.parametrize(
    ("inits", "words"),
    [
        ('["rotation init=pretrained"]', "inits: rotation init=pretrained: .*no published weights of smallcnn"),
        ('["rotation init=latest"]', "inits: rotation init=latest: init=latest: a task of a study starts from scratch"),
        ('["pretrained mode=probe"]', "inits: pretrained mode=probe: pretrained has no settings of its own"),
        ("[rotatoin]", "inits: rotatoin: no pretext 'rotatoin'; did you mean rotation"),
    ],
)
def test_entries_that_cannot_be_run(inits: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        study(f"inits={inits}")


def test_a_budget_needs_a_pretraining() -> None:
    with pytest.raises(UserError, match="budget=9m sets the epochs of pretrainings, and inits= has none"):
        study("inits=[scratch,pretrained]", "budget=9m")
