"""Gains in words."""

from dataclasses import replace

import numpy as np
import pytest

from sslrun.report.gains import gain_text, p_text
from sslrun.study.gains import Gain, gain_on_one_subset, gains_over_scratch

BETTER = Gain(gain=0.061, low=0.04, high=0.082, p=0.0003, df=9.1, basis="pooled", pretrainings=3, subsets=5)
UNCLEAR = Gain(gain=0.01, low=-0.009, high=0.029, p=0.3, df=9.1, basis="pooled", pretrainings=3, subsets=5)


def test_a_gain_names_its_size_interval_p_and_number_of_comparisons() -> None:
    assert (
        gain_text(BETTER, 0.0042, 15) == "better than scratch by 6.1 points [4.0, 8.2]; Holm p = 0.004, 15 comparisons"
    )
    assert gain_text(BETTER, 0.0003, 1) == "better than scratch by 6.1 points [4.0, 8.2]; p < 0.001"


def test_a_loss_is_a_positive_number_of_points() -> None:
    loss = replace(BETTER, gain=-0.061, low=-0.082, high=-0.04)
    assert gain_text(loss, 0.0042, 15) == "worse than scratch by 6.1 points [4.0, 8.2]; Holm p = 0.004, 15 comparisons"


def test_without_a_difference_the_largest_gain_that_the_data_allow_is_named() -> None:
    assert gain_text(UNCLEAR, 0.6, 3) == (
        "no difference shown: +1.0 points [-0.9, 2.9]; Holm p = 0.60, 3 comparisons; "
        "the data allow a gain of up to 2.9 points"
    )
    wide = replace(UNCLEAR, low=-0.02, high=0.04)
    assert gain_text(wide, 1.0, 3).endswith("the data allow a gain of up to 4.0 points; too imprecise to decide")
    worse = replace(UNCLEAR, gain=-0.01, low=-0.019, high=-0.001)
    assert gain_text(worse, 0.08, 3) == (
        "no difference shown: -1.0 points [-1.9, -0.1]; Holm p = 0.080, 3 comparisons; the interval contains no gain"
    )


def test_the_corrected_p_decides_and_not_the_interval() -> None:
    assert gain_text(BETTER, 0.06, 15).startswith("no difference shown: +6.1 points [4.0, 8.2]; Holm p = 0.060")


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "< 0.001"), (0.001, "0.001"), (0.0494, "0.049"), (0.0497, "0.0497"), (0.0503, "0.0503"), (0.23, "0.23")],
)
def test_a_p_value_has_the_digit_that_decides(p: float, text: str) -> None:
    assert p_text(p) == text


def test_zero_has_no_sign() -> None:
    text = gain_text(replace(UNCLEAR, gain=-0.0001, low=-0.0004, high=0.0002), 0.9, 1)
    assert text.startswith("no difference shown: +0.0 points [0.0, 0.0]")


def test_one_pretraining_is_a_statement_on_its_checkpoint() -> None:
    (gain,) = gains_over_scratch({"simclr": np.array([[0.05, 0.06, 0.07, 0.055, 0.065]])}).values()
    assert gain_text(gain, 0.001, 3) == (
        "better than scratch by 6.0 points [5.0, 7.0] for this pretrained checkpoint; Holm p = 0.001, 3 comparisons; "
        "for another pretraining [2.9, 9.1], with an SD of 1.5 points assumed, not measured"
    )
    (gain,) = gains_over_scratch({"simclr": np.array([[0.05, -0.06, 0.07]])}).values()
    assert gain_text(gain, 1.0, 3).startswith("no difference shown for this pretrained checkpoint: +2.0 points [-15.4,")


def test_one_subset_is_a_statement_on_its_training_set() -> None:
    gain = gain_on_one_subset(np.array([[0.90], [0.91]]), np.array([0.8, 0.81]))
    assert gain_text(gain, 0.01, 3).startswith("better than scratch by 10.0 points [7.0, 13.0] given these labels;")
    gain = gain_on_one_subset(np.array([[0.90, 0.91]]), np.array([0.8, 0.81]))
    assert " for this pretrained checkpoint, given these labels; Holm" in gain_text(gain, 0.01, 3)


def test_an_interval_of_its_own_is_named_with_the_reason() -> None:
    assert gain_text(replace(BETTER, alone=(-0.01, 0.132)), 0.01, 3).endswith(
        "; from its own runs alone [-1.0, 13.2], since its pretrainings vary more than those of other tasks"
    )


@pytest.mark.parametrize(
    ("gain", "text"),
    [
        (gains_over_scratch({"x": np.zeros((3, 5))})["x"],
         "undecided: same accuracy as scratch with each of 3 pretrainings and 5 label subsets; "
         "a confidence interval needs runs that differ"),
        (gains_over_scratch({"x": np.full((1, 2), 0.05)})["x"],
         "undecided: +5.0 points with each of 1 pretraining and 2 label subsets; "
         "a confidence interval needs runs that differ"),
        (gain_on_one_subset(np.array([[0.9], [0.8]]), np.array([0.8])),
         "undecided given these labels: +5.0 points; "
         "a confidence interval needs two or more runs on each side that differ"),
    ],
)  # fmt: skip
def test_without_an_interval_the_reason_is_named(gain: Gain, text: str) -> None:
    assert gain_text(gain, None, 3) == text


@pytest.mark.parametrize("p", [0.001, 0.2, None])
@pytest.mark.parametrize("gain", [BETTER, UNCLEAR, gains_over_scratch({"x": np.zeros((3, 5))})["x"]])
def test_no_text_claims_that_there_is_no_effect(gain: Gain, p: float | None) -> None:
    text = gain_text(gain, p, 15)
    assert "no effect" not in text
    assert "equivalent" not in text
