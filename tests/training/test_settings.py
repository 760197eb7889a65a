import math

import pytest

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.training import settings as settings_module
from sslrun.training.settings import Training
from tests.helpers import TRAINING
from tests.training.fitting import SETTINGS


def test_length_is_epochs_or_steps_whichever_ends_first() -> None:
    def total_steps(n: int, epochs: int | None, steps: int | None, batch_size: int) -> int:
        return Training(**{**TRAINING, "epochs": epochs, "steps": steps, "batch_size": batch_size}).total_steps(n)

    assert total_steps(100, 3, None, 10) == 30
    assert total_steps(100, None, 7, 10) == 7
    assert total_steps(100, 3, 7, 10) == 7
    assert total_steps(100, 3, 70, 10) == 30
    assert total_steps(101, 1, None, 10) == 11
    assert total_steps(101, 3, None, 10) == 31  # 303 images
    assert total_steps(7, 3, None, 10) == 3
    with pytest.raises(UserError, match=r"train\.epochs"):
        total_steps(100, None, None, 10)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    training = Training(**{**TRAINING, "learning_rate": 1.0, "warmup_fraction": 0.1})
    rates = [training.learning_rate_at(s, 100) for s in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] < 0.001


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


@pytest.mark.parametrize(
    ("passes", "evaluated", "expected"),
    [
        (30_000, 300, 20),
        (21_000, 300, 20),
        (20_990, 300, 19),
        (3_000, 300, 2),
        (2_990, 300, 1),
        (30, 300, 1),
        (999, 0, 20),
    ],
)
def test_evaluations_take_at_most_a_tenth_of_the_training(
    passes: int, evaluated: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass costs a third; the evaluation before the first step counts."""
    monkeypatch.setattr(settings_module, "EVALUATION_SHARE", 0.1)
    messages: list[str] = []
    monkeypatch.setattr(log, "info", lambda text, *values: messages.append(text % values))
    n = training(evaluations=20).with_affordable_evaluations(passes, evaluated, quiet=False).evaluations
    assert n == expected
    assert n == 1 or (n + 1) * evaluated / 3 <= passes / 10 + 1e-9
    assert bool(messages) == (n < 20)
    assert all(f"{n} instead of train.evaluations=20" in m for m in messages)


def test_what_ends_first_is_logged_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(log, "info", lambda text, *values: messages.append(text % values))
    for steps, by in ((7, "train.steps"), (70, "train.epochs")):
        settings = training(epochs=3, steps=steps, batch_size=10)
        settings.total_steps(95)
        assert messages == []
        assert settings.total_steps(95, quiet=False) == min(29, steps)
        assert messages == [f"train.epochs=3 is 29 steps, train.steps={steps}: {by} ends first."]
        messages.clear()
    training(steps=7).total_steps(95, quiet=False)
    assert messages == []


def test_a_training_of_warmup_only_has_no_division_by_zero() -> None:
    settings = training(warmup_fraction=1.0)
    assert [settings.learning_rate_at(step, 4) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert settings.learning_rate_at(0, 1) == pytest.approx(0.5)


def test_checkpoints_are_kept_at_multiples_of_keep_every() -> None:
    assert [step for step in range(1, 13) if training(keep_every=4).kept_after(step)] == [4, 8, 12]
    assert not any(training().kept_after(step) for step in range(1, 13))
