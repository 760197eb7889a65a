"""What is the best state, and what a resumed training remembers."""

from pathlib import Path

import pytest
import torch

from sslrun.runs import checkpoint
from tests.training.fitting import SGD, Slope, device, train


def best() -> tuple[int, float]:
    """Return the step of `best.pt`, and the weight of the head in it."""
    content = checkpoint.load(Path("run/best.pt"))
    return content["step"], float(content["model"]["head.weight"])


@pytest.mark.parametrize(
    ("scores", "step"),
    [((0.1, 0.9, 0.5), 5), ((0.1, 0.9, 0.9), 10), ((0.9, 0.9, 0.5), 5), ((0.9, 0.1, 0.5), 0), ((), 10)],
    ids=["highest", "last two equal", "first two equal", "before training", "without scores"],
)
def test_best_is_the_latest_of_the_states_with_the_highest_score(scores: tuple[float, ...], step: int) -> None:
    result = train(Slope(), scores=scores)
    assert best()[0] == result["best/step"] == step


def test_a_resumed_training_keeps_a_best_state_that_was_better() -> None:
    with pytest.raises(RuntimeError):
        train(Slope(fails_in=7), scores=(0.1, 0.9))
    kept = best()
    result = train(Slope(), scores=(0.5,), resumed=True)
    assert best() == kept
    assert kept[0] == result["best/step"] == 5
    assert result["val/accuracy"] == 0.5


def test_a_resumed_training_replaces_a_best_state_that_was_worse() -> None:
    with pytest.raises(RuntimeError):
        train(Slope(fails_in=7), scores=(0.1, 0.4))
    assert train(Slope(), scores=(0.5,), resumed=True)["best/step"] == best()[0] == 10


def test_a_resumed_training_keeps_the_loss_scale_of_fp16() -> None:
    """An infinite gradient halves the scale and moves nothing."""
    task, first, second = Slope(head=1e36, encoder=0.0), device("fp16"), device("fp16")
    assert first.scaler.get_scale() == 65536
    train(task, on=first, steps=1)
    assert first.scaler.get_scale() == 32768
    assert task.moved() == (0, 0)
    train(Slope(head=1.0), on=second, steps=2, resumed=True)
    assert second.scaler.get_scale() == 32768


def test_a_resumed_training_keeps_the_momentum() -> None:
    node = {**SGD, "momentum": 0.9}
    with pytest.raises(RuntimeError):
        train(Slope(fails_in=7), optimizer=node)
    straight, resumed = Slope(), Slope()
    train(resumed, optimizer=node, resumed=True)
    train(straight, "straight", optimizer=node)
    assert torch.equal(resumed.head.weight, straight.head.weight)
