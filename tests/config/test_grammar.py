"""Overrides that turn one config into another."""

import pytest

from sslrun.config.compose import compose_config
from sslrun.config.grammar import differing, with_override
from sslrun.config.nodes import plain
from sslrun.config.types import Node


def composed(overrides: list[str]) -> Node:
    return plain(compose_config("finetune", overrides, None))


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=sgd"],
        ["optimizer=lars", "optimizer.momentum=0.5"],
        ["dataset=digits", "backbone=smallcnn", "backbone.widths=[4,8]", "mode=probe"],
        ["dataset=folder", "dataset.root='a b=c,{d}'", 'dataset.classes={low: ["0","1"], high ones: ["8"]}'],
        ["dataset=folder", "dataset.root=a", r"dataset.classes={a\:b: [x], c\,d: [y]}"],
        ["init=scratch", "label_fraction=0.1", "seed=3", "augment.crop_scale=[0.5,1]", "train.epochs=2"],
        [
            "augment.horizontal_flip=false",
            "train.gradient_clip=1.5",
            "labels=60",
            "validation=extra",
            'search=["optimizer.weight_decay=0"]',
        ],
    ],
)
def test_overrides_reproduce_a_config(overrides: list[str]) -> None:
    """Also if another choice of a group has other keys, and if text has special characters."""
    wanted, base = composed(overrides), composed([])
    arguments = differing(wanted, base)
    assert composed(arguments) == wanted
    assert composed([*overrides, *differing(base, wanted)]) == base


def test_keys_that_the_other_choice_does_not_have_are_removed() -> None:
    betas = {"_target_": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.1}
    momentum = {"_target_": "sgd", "momentum": 0.9, "weight_decay": 0.1}
    result = differing({"optimizer": momentum}, {"optimizer": betas})
    assert result == ["~optimizer.betas", "optimizer._target_='sgd'", "+optimizer.momentum=0.9"]
    result = differing({"dataset": {"_target_": "digits"}}, {"dataset": {"_target_": None, "labels": None}})
    assert result == ["dataset.labels=0", "~dataset.labels", "dataset._target_='digits'"]


def test_any_text_survives_quoting() -> None:
    texts = ["", "a b", "it's", '"', "\\", "a\\", "${oops}", "\\${x}", "null", "1", "true", "[a]", "ü 花"]
    wanted: Node = {"search": texts, "dataset": {"classes": {f"key {i}": [t] for i, t in enumerate(texts)}}}
    config = composed(["dataset=digits", *differing(wanted, {"search": [], "dataset": {"classes": None}})])
    assert config["search"] == texts
    assert config["dataset"]["classes"] == wanted["dataset"]["classes"]


def test_a_resolved_config_with_another_value_is_a_copy() -> None:
    config = {"mode": "auto", "train": {"steps": 5, "rates": [1.0, 2.0]}, "augment": {"probability": 1.0}}
    changed = with_override(config, "train.rates=[0.5,0.1]")
    assert changed == {**config, "train": {"steps": 5, "rates": [0.5, 0.1]}}
    assert with_override(config, "augment.probability=0")["augment"] == {"probability": 0}
    assert with_override(config, "mode=knn") == {**config, "mode": "knn"}
    assert with_override(config, "train.steps=null")["train"]["steps"] is None
    assert config["train"] == {"steps": 5, "rates": [1.0, 2.0]}
