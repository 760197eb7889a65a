"""Numbers as people read them: one metric looks the same everywhere."""

import pytest

from sslrun.base.text import (
    counted,
    duration,
    interval,
    is_share,
    listed,
    metric,
    percent,
    percent_or_dash,
    speed,
    time_range,
)


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.831, "83.1 %"), (1.0, "100.0 %"), (0.0, "0.0 %"), (0.26, "26.0 %"), (0.9996, "100.0 %")]
)
def test_a_fraction_is_percent_with_one_decimal(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_metrics_have_their_split_in_their_name_and_losses_their_digits() -> None:
    assert metric("val/accuracy", 0.831) == "val accuracy 83.1 %"
    assert metric("val/knn_accuracy", 0.5) == "val knn accuracy 50.0 %"
    assert metric("val/confidence_threshold", 0.71) == "val confidence threshold 71.0 %"
    assert metric("train/loss", 0.52341) == "train loss 0.5234"
    assert metric("val/temperature", 1.5) == "val temperature 1.5"
    assert interval(0.802, 0.857) == "80.2 to 85.7"


def test_an_estimate_of_a_time_is_a_range() -> None:
    assert time_range(50) == "40 s to 62 s"
    assert time_range(600) == "8 min to 12 min"


def test_only_parts_of_a_whole_are_percent() -> None:
    shares = (
        "accuracy",
        "top5_accuracy",
        "precision_macro",
        "recall",
        "f1",
        "confidence_threshold",
        "accuracy_if_confident",
    )
    others = ("loss", "temperature", "effective_rank", "feature_spread", "nll")
    assert [n for n in (*shares, *others) if is_share(f"test/{n}")] == list(shares)


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [(0, "image", "0 images"), (1, "image", "1 image"), (2, "image", "2 images"), (2000, "label", "2,000 labels"),
     (1, "finetune run", "1 finetune run"), (3, "batch", "3 batches"), (2, "class", "2 classes"),
     (77, "epoch", "77 epochs")],
)  # fmt: skip
def test_numbers_have_a_plural(n: int, noun: str, text: str) -> None:
    assert counted(n, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.001 s"), (0.031, "0.03 s"), (0.5, "0.5 s"), (0.97, "1 s"), (1.4, "1 s"), (99.4, "99 s"), (120, "2 min"),
     (5940, "99 min"), (9000, "2.5 h")],
)  # fmt: skip
def test_no_time_is_nothing(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_rate_needs_something_to_measure() -> None:
    assert speed(1, "images", 0.02) == "0.02 s"
    assert speed(1, "images", 4.0) == "4 s"
    assert speed(50, "images", 0.02) == "0.02 s"
    assert speed(3000, "images", 2.0) == "2 s, 1,500 images/s"


def test_an_undefined_fraction_is_a_dash_and_0_is_not() -> None:
    assert [percent_or_dash(f) for f in (None, 0.0, 0.5)] == ["-", "0.0 %", "50.0 %"]


def test_of_a_long_list_only_the_first_names_are_shown() -> None:
    assert listed(["a"]) == "a"
    assert listed(list("abc"), 3) == "a, b, c"
    assert listed(list("abcde"), 3) == "a, b, c and 2 more"
