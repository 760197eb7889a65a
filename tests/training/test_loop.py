"""What a training step does to the weights, and at which learning rate."""

from typing import Any

import pytest

from tests.training.fitting import Slope, device, metrics, train


def test_each_weight_moves_by_the_learning_rate_of_its_group() -> None:
    task = Slope(head=1.0, encoder=1.0, rate=0.1)
    train(task, steps=1, learning_rate=0.5)
    assert task.moved() == pytest.approx((0.5, 0.05))
    longer = Slope(head=1.0, encoder=1.0, rate=0.1)
    train(longer, "longer", steps=10, warmup_fraction=0.3)
    assert longer.moved()[1] == pytest.approx(0.1 * longer.moved()[0], rel=1e-4)


@pytest.mark.parametrize(("steps", "fraction", "peak"), [(40, 0.25, 10), (40, 0.5, 20), (7, 0.3, 2), (10, 0.0, 0)])
def test_the_learning_rate_peaks_after_the_warmup_fraction_of_all_steps(steps: int, fraction: float, peak: int) -> None:
    """There are two steps an epoch."""
    train(Slope(), steps=steps, warmup_fraction=fraction, learning_rate=0.01)
    rates = [row["learning_rate"] for row in metrics() if "learning_rate" in row]
    assert len(rates) == steps
    assert rates.index(max(rates)) == peak
    assert max(rates) == pytest.approx(0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("clip", "gradient"),
    [(1.0, (0.6, 0.8)), (2.5, (1.5, 2.0)), (5.1, (3.0, 4.0)), (None, (3.0, 4.0))],
    ids=["1", "half", "above", "none"],
)
def test_the_norm_of_the_whole_gradient_is_clipped(
    clip: float | None, gradient: tuple[float, float], precision: Any
) -> None:
    """In fp16 the loss is scaled by 65,536, which the limit has nothing to do with."""
    task = Slope(head=3.0, encoder=4.0)
    train(task, on=device(precision), steps=1, learning_rate=0.1, gradient_clip=clip)
    assert task.moved() == pytest.approx([0.1 * g for g in gradient], rel=2e-3)
