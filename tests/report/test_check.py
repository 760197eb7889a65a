"""The findings of `sslrun data check` in sentences."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from sslrun.data.orientation import orientation
from sslrun.report.check import findings


def report(**pixels: Any) -> dict[str, Any]:
    return {
        "options": {
            "image_size": 32,
            "resize": "crop",
            "range": None,
            "max_bad_fraction": 0.01,
            "horizontal_flip": True,
        },
        "splits": {
            "train": {"images": 100, "classes": {"a": 50, "b": 50}, "unreadable": [], "outside_range": {"images": 0}}
        },
        "other_files": {},
        "unreadable_folders": [],
        "duplicates": {
            **{k: [] for k in ("exact", "near", "train_and_test", "classes_differ")},
            "test_images_in_training": 0,
        },
        "groups": None,
        "labels": {
            "budget": "labels_per_class=20",
            "classes": 2,
            "too_few": {},
            "labels": 40,
            "mistake": None,
            "single": [],
        },
        "pixels": {"gray": 0.0, "blank": 0.0, "orientation": None, **pixels},
    }


@pytest.mark.parametrize(
    ("rotation", "half", "text"),
    [
        (0.26, 0.2, "no canonical orientation"),
        (0.5, 0.48, "have an axis, but no clear top"),
        (0.6, 0.15, "have a canonical orientation"),
        (0.9, 0.1, "have a canonical orientation"),
        (0.99, 0.0, "orientation is obvious"),
    ],
)
def test_advice_on_rotation(rotation: float, half: float, text: str) -> None:
    result = findings(report(orientation={"rotation": rotation, "errors_by_180": half, "flip": 0.5, "images": 500}))
    assert len(result) == 1
    assert text in result[0][1]


@pytest.mark.parametrize("n", [50, 100, 300])
def test_noise_has_no_canonical_orientation_at_any_sample_size(n: int) -> None:
    for seed in range(12):
        noise = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        (finding,) = findings(report(orientation=asdict(orientation(noise))))
        assert "no canonical orientation" in finding[1]


def test_advice_on_flips_requires_horizontal_flip() -> None:
    data = report(orientation={"rotation": 0.6, "errors_by_180": 0.1, "flip": 0.9, "images": 500})
    assert "horizontal_flip=false" in findings(data)[-1][1]
    data["options"]["horizontal_flip"] = False
    assert not any("horizontal_flip" in text for _, text in findings(data))


def test_a_batch_that_does_not_fit_is_a_warning() -> None:
    big = report() | {"estimate": {"batch_size": 512, "training_bytes": 30e9, "memory_bytes": 24e9}}
    assert findings(big) == [
        ("warning", "a training step on 512 images needs about 30.0 GB of 24.0 GB of memory: "
         "reduce train.batch_size")
    ]  # fmt: skip


def test_no_findings_for_good_data() -> None:
    assert findings(report()) == []


def test_what_a_label_budget_means_is_reported() -> None:
    def found(**labels: Any) -> list[tuple[str, str]]:
        return [(level, text) for level, text in findings(report() | {"labels": {**report()["labels"], **labels}})]

    assert found(too_few={"a": 7, "b": 9}) == [
        ("warning", "labels_per_class=20 is more than these classes have: a (7), b (9); all of their labels are used")
    ]
    assert found(mistake="labels=1 is fewer than the 2 classes", labels=None) == [
        ("error", "labels=1 is fewer than the 2 classes")
    ]
    assert found(budget="labels=3", single=["b"]) == [
        ("advice", "classes with one label (labels=3): b; cross-validation cannot tell how well they are recognized")
    ]


def test_groups_that_training_and_test_share_are_a_warning() -> None:
    groups = {"groups": 12, "largest": "cup", "largest_images": 8, "train_and_test": ["cup", "mug"]}
    assert findings(report() | {"groups": groups}) == [
        ("warning", "groups in both training and test: 2, such as cup, mug"),
        ("advice", "dataset.groups: 12 groups; the largest, cup, has 8 images"),
    ]


def test_blank_images_may_be_those_of_another_range() -> None:
    data = report(blank=0.33)
    assert findings(data) == [("warning", "33 % of the images are blank")]
    data["options"]["range"] = [0, 65535]
    assert findings(data) == [
        ("warning", "33 % of the images are blank; is dataset.range=[0, 65535] that of all gray images?")
    ]
    assert findings(report(blank=1.0)) == [("warning", "100 % of the images are blank")]
