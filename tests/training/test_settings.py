"""How the learning rate goes."""

import math

import pytest

from sslrun.training.settings import Training
from tests.training.fitting import SETTINGS


def training(**changes: float) -> Training:
    return Training(**{**SETTINGS, "learning_rate": 1.0, **changes})


def test_the_warmup_starts_above_zero_and_rises_by_equal_steps_to_the_peak() -> None:
    settings = training(warmup_fraction=0.1)
    rates = [settings.learning_rate_at(step, 100) for step in range(12)]
    assert rates[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert rates[11] < 1


def test_the_learning_rate_falls_by_half_a_cosine() -> None:
    settings = training(warmup_fraction=0.2)
    for step in (20, 40, 60, 80, 99):
        expected = 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert settings.learning_rate_at(step, 100) == pytest.approx(expected)
    assert settings.learning_rate_at(60, 100) == pytest.approx(0.5)


def test_a_multiple_of_the_learning_rate_is_a_multiple_in_every_step() -> None:
    settings = training(warmup_fraction=0.5)
    for step in range(20):
        assert settings.learning_rate_at(step, 20, 0.1) == pytest.approx(0.1 * settings.learning_rate_at(step, 20))


def test_evaluations_are_spread_evenly_and_one_is_after_the_last_step() -> None:
    assert training(evaluations=4).evaluated_after(100) == {25, 50, 75, 100}
    assert training(evaluations=3).evaluated_after(10) == {4, 7, 10}
    assert training(evaluations=20).evaluated_after(3) == {1, 2, 3}
