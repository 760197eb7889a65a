"""The labeled images of a classifier: inside a label budget, or with a validation split outside it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.data.dataset import load_train
from sslrun.data.labeled import Labeled, labeled_of, load_labeled
from sslrun.data.labels import LabelBudget, label_order
from tests.helpers import folder_node, source_node

KEPT = {"labels": None, "label_fraction": 1.0, "labels_per_class": None, "subset_seed": 0}


@pytest.fixture
def with_val(photos: Path) -> dict[str, Any]:
    """The node of a folder with 30 training, 10 validation and 4 test images of two classes."""
    for split, first, last in (("train", 0, 15), ("val", 15, 20), ("test", 20, 22)):
        for name in ("flower", "temple"):
            Path("set", split, name).mkdir(parents=True)
            for file in sorted((photos / name).glob("*.jpg"))[first:last]:
                shutil.copy(file, Path("set", split, name))
    return folder_node("set", val_fraction=0.2)


def sides(labeled: Labeled) -> list[int]:
    return [len(labeled.pool), len(labeled.budget), len(labeled.val or ())]


@pytest.mark.parametrize("validation", ["auto", "inside"])
def test_without_a_val_folder_the_budget_is_all_that_is_used(photos: Path, validation: Any) -> None:
    labeled = load_labeled(source_node("folder", photos), LabelBudget(12, seed=3), validation)
    assert (labeled.validation, labeled.val, sides(labeled)) == ("inside", None, [48, 12, 0])
    assert labeled.sizes == {"labels_total": 12, "labels_train": 12, "labels_val": 0}
    data, _ = load_train(source_node("folder", photos))
    assert data.labels is not None
    assert labeled.budget.names == [data.names[i] for i in sorted(label_order(data.labels.numpy(), 3)[:12])]
    assert labeled.every.names == labeled.budget.names


def test_validation_extra_splits_off_images_outside_the_budget(photos: Path) -> None:
    node = source_node("folder", photos, val_fraction=0.25)
    labeled = load_labeled(node, LabelBudget(12), "extra", ["dataset.val_fraction", "validation"])
    assert (labeled.validation, sides(labeled)) == ("extra", [36, 12, 12])
    assert labeled.sizes == {"labels_total": 24, "labels_train": 12, "labels_val": 12}
    assert labeled.val is not None
    assert labeled.every.names == labeled.budget.names + labeled.val.names
    assert not {*labeled.pool.names} & {*labeled.val.names}


def test_a_fraction_is_of_all_training_images_with_a_validation_split_too(photos: Path) -> None:
    node = source_node("folder", photos, val_fraction=0.25)
    for validation in ("inside", "extra"):
        assert len(load_labeled(node, LabelBudget(fraction=0.5), validation).budget) == 24
    assert sides(load_labeled(node, LabelBudget(), "extra")) == [36, 36, 12]
    with pytest.raises(UserError, match="labels=40: there are only 36 labels for training"):
        load_labeled(node, LabelBudget(40), "extra")


@pytest.mark.parametrize("validation", ["auto", "extra"])
def test_a_val_folder_is_the_validation_split(with_val: dict[str, Any], validation: Any) -> None:
    for fraction in (0.2, 0.0):
        labeled = load_labeled({**with_val, "val_fraction": fraction}, LabelBudget(6), validation)
        assert (labeled.validation, sides(labeled)) == ("extra", [30, 6, 10])
        assert labeled.val is not None
        assert {name.split("/")[0] for name in labeled.val.names} == {"val"}
        assert labeled.sizes == {"labels_total": 16, "labels_train": 6, "labels_val": 10}


@pytest.mark.parametrize("key", ["dataset.val_fraction", "dataset.split_seed"])
def test_keys_of_a_split_that_a_val_folder_replaces_are_refused(with_val: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=f"{key} has no effect: folder set has 10 validation images of its own; remove"):
        load_labeled(with_val, LabelBudget(6), "auto", [key])


def test_classes_missing_in_a_val_folder_are_named(with_val: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    load_labeled(with_val, LabelBudget(6), "auto")
    assert "No validation images" not in caplog.text
    shutil.rmtree("set/val/temple")
    load_labeled(with_val, LabelBudget(6), "auto")
    assert "No validation images of temple: add some, or set validation=inside" in caplog.text


def test_validation_inside_joins_a_val_folder_to_training(with_val: dict[str, Any]) -> None:
    labeled = load_labeled(with_val, LabelBudget(fraction=1.0), "inside")
    assert (labeled.validation, sides(labeled)) == ("inside", [40, 40, 0])
    assert sum(name.startswith("val/") for name in labeled.pool.names) == 10
    assert labeled.sizes == {"labels_total": 40, "labels_train": 40, "labels_val": 0}
    assert load_labeled(with_val, LabelBudget(6), "inside").pool.fingerprint() == labeled.pool.fingerprint()


@pytest.mark.parametrize("validation", ["auto", "inside"])
def test_val_fraction_is_refused_where_nothing_is_split_off(photos: Path, validation: Any) -> None:
    with pytest.raises(UserError) as error:
        load_labeled(source_node("folder", photos), LabelBudget(12), validation, ["labels", "dataset.val_fraction"])
    assert str(error.value) == (
        "dataset.val_fraction is for validation=extra; by default choices are made by cross-validation inside the "
        "label budget: remove it, or add validation=extra"
    )


def test_validation_extra_without_validation_images_is_one_line(photos: Path) -> None:
    with pytest.raises(UserError, match=r"validation=extra needs validation images: set dataset\.val_fraction above 0"):
        load_labeled(folder_node(photos, val_fraction=0.0), LabelBudget(12), "extra")


@pytest.mark.parametrize("validation", ["inside", "extra"])
@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (LabelBudget(1), "labels=1 is fewer than the 2 classes"),
        (LabelBudget(fraction=0.02), "label_fraction=0.02 is 1 label, which is fewer than the 2 classes"),
        (LabelBudget(1000), "labels=1000: there are only "),
    ],
)
def test_a_budget_that_cannot_be_met_is_one_line(
    photos: Path, validation: Any, budget: LabelBudget, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load_labeled(source_node("folder", photos), budget, validation)


@pytest.mark.parametrize("validation", ["inside", "extra"])
def test_data_that_cannot_train_a_classifier_is_one_line(photos: Path, validation: Any) -> None:
    with pytest.raises(UserError, match="has no labels: put the images into one folder per class"):
        load_labeled(source_node("folder", photos / "flower"), LabelBudget(), validation)
    with pytest.raises(UserError, match=r"has only one class \(temple\)"):
        load_labeled(source_node("folder", photos, classes=["temple"]), LabelBudget(), validation)


def test_any_class_that_only_val_has_images_of_is_refused_unless_val_is_joined(photos: Path) -> None:
    for split, name in (("train", "flower"), ("train", "temple"), ("val", "flower"), ("test", "flower")):
        shutil.copytree(photos / name, f"set/{split}/{name}")
    shutil.copytree("set/train/temple", "set/val/temple")
    for file in Path("set/train/temple").iterdir():
        file.write_bytes(b"damaged")
    node = folder_node("set", max_bad_fraction=0.9)
    with pytest.raises(UserError, match="has no training image of temple: add some, or choose the classes with"):
        load_labeled(node, LabelBudget(6), "auto")
    assert len(load_labeled(node, LabelBudget(6), "inside").budget) == 6


def test_the_labels_of_a_run_are_those_that_its_config_names(with_val: dict[str, Any], photos: Path) -> None:
    config: dict[str, Any] = {
        **KEPT,
        "dataset": source_node("folder", photos),
        "labels": 7,
        "subset_seed": 2,
        "validation": "inside",
    }
    labeled = labeled_of(config)
    assert labeled.budget.names == load_labeled(config["dataset"], LabelBudget(7, seed=2), "inside").budget.names
    assert sides(labeled_of({**config, "validation": "extra"})) == [38, 7, 10]


def test_runs_of_older_versions_have_the_validation_split_that_they_had(with_val: dict[str, Any], photos: Path) -> None:
    old = {k: v for k, v in KEPT.items() if k != "labels"}
    assert sides(labeled_of({**old, "dataset": source_node("folder", photos)})) == [38, 38, 10]
    assert sides(labeled_of({**old, "dataset": folder_node(photos, val_fraction=0.0)})) == [48, 48, 0]
    for fraction in (0.2, 0.0):
        node = {**with_val, "val_fraction": fraction}
        assert sides(labeled_of({**old, "dataset": node, "labels_per_class": 3})) == [30, 6, 10]


def test_groups_stay_whole_in_a_validation_split(photos: Path) -> None:
    node = source_node("folder", photos, groups=r"(\w+ \d)\d", val_fraction=0.3)
    labeled = load_labeled(node, LabelBudget(20), "extra")
    assert labeled.val is not None
    assert labeled.pool.groups is not None
    assert labeled.val.groups is not None
    assert not {*labeled.pool.groups} & {*labeled.val.groups}
    assert np.unique(labeled.val.groups).size >= 2
