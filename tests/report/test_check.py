"""The findings of `sslrun data check` in words."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from sslrun.data.orientation import orientation
from sslrun.report.check import findings


def report(**pixels: Any) -> dict[str, Any]:
    return {
        "options": {"image_size": 32, "resize": "crop", "max_bad_fraction": 0.01, "horizontal_flip": True},
        "splits": {"train": {"images": 100, "classes": {"a": 50, "b": 50}, "unreadable": []}},
        "other_files": {},
        "duplicates": {
            **{k: [] for k in ("exact", "near", "train_and_test", "classes_differ")},
            "test_images_in_training": 0,
        },
        "labels": {"classes": 2, "too_few_for_validation": [], "too_few": {}, "labels_per_class": None},
        "pixels": {"gray": 0.0, "blank": 0.0, "orientation": None, **pixels},
    }


@pytest.mark.parametrize(
    ("turn", "half", "words"),
    [
        (0.26, 0.2, "show no up"),
        (0.5, 0.48, "have an axis, but hardly a top"),
        (0.6, 0.15, "have an up"),
        (0.9, 0.1, "have an up"),
        (0.99, 0.0, "shows at once"),
    ],
)
def test_advice_on_rotation(turn: float, half: float, words: str) -> None:
    result = findings(report(orientation={"rotation": turn, "errors_by_180": half, "flip": 0.5, "images": 500}))
    assert len(result) == 1
    assert words in result[0][1]


@pytest.mark.parametrize("n", [50, 100, 300])
def test_noise_is_not_said_to_have_an_up_however_few_pictures_there_are(n: int) -> None:
    for seed in range(12):
        noise = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        (answer,) = findings(report(orientation=asdict(orientation(noise))))
        assert "show no up" in answer[1]


def test_advice_on_mirroring_only_where_pictures_are_mirrored() -> None:
    messages = report(orientation={"rotation": 0.6, "errors_by_180": 0.1, "flip": 0.9, "images": 500})
    assert "horizontal_flip=false" in findings(messages)[-1][1]
    messages["options"]["horizontal_flip"] = False
    assert not any("horizontal_flip" in text for _, text in findings(messages))


def test_a_batch_that_does_not_fit_is_a_warning() -> None:
    big = report() | {"estimate": {"batch_size": 512, "training_bytes": 30e9, "memory_bytes": 24e9}}
    assert findings(big) == [
        ("warning", "a step on 512 pictures takes about 30.0 GB of the 24.0 GB of memory: "
         "a smaller train.batch_size takes less")
    ]  # fmt: skip


def test_nothing_to_say_about_good_data() -> None:
    assert findings(report()) == []
