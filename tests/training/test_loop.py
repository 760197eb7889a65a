import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sslrun.base import console
from tests.helpers import FINETUNE, Cli, MeanTask, metric_rows, ramp, train
from tests.training.fitting import Slope, device, fit_slope, metrics


def test_case_9_the_same_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    models = [MeanTask() for _ in range(3)]
    for i, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        train(model, ramp(30), str(i), seed=seed)
    first, second = ([{k: v for k, v in r.items() if k != "images_per_second"} for r in metric_rows(w)] for w in "01")
    assert first == second
    assert models[0].draws == models[1].draws != models[2].draws
    assert torch.cat(models[0].seen).tolist() == torch.cat(models[1].seen).tolist()
    assert torch.cat(models[0].seen).tolist() != torch.cat(models[2].seen).tolist()
    assert len(set(models[0].draws)) == len(models[0].draws)


def test_case_7_resuming_a_finished_run_does_nothing() -> None:
    model = MeanTask()
    train(model, ramp(16), "a")
    before = Path("a/last.pt").read_bytes()
    again = MeanTask()
    train(again, ramp(16), "a", resumed=True)
    assert again.seen == []
    assert torch.equal(again.weight, model.weight)
    assert Path("a/last.pt").read_bytes() == before


def test_each_weight_moves_by_the_learning_rate_of_its_group() -> None:
    task = Slope(head=1.0, encoder=1.0, rate=0.1)
    fit_slope(task, steps=1, learning_rate=0.5)
    assert task.moved() == pytest.approx((0.5, 0.05))
    longer = Slope(head=1.0, encoder=1.0, rate=0.1)
    fit_slope(longer, "longer", steps=10, warmup_fraction=0.3)
    assert longer.moved()[1] == pytest.approx(0.1 * longer.moved()[0], rel=1e-4)


@pytest.mark.parametrize(("steps", "fraction", "peak"), [(40, 0.25, 10), (40, 0.5, 20), (7, 0.3, 2), (10, 0.0, 0)])
def test_the_learning_rate_peaks_after_the_warmup_fraction_of_all_steps(steps: int, fraction: float, peak: int) -> None:
    """There are two steps an epoch."""
    fit_slope(Slope(), steps=steps, warmup_fraction=fraction, learning_rate=0.01)
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
    """In fp16 the loss is scaled by 65,536, which must not affect clipping."""
    task = Slope(head=3.0, encoder=4.0)
    fit_slope(task, on=device(precision), steps=1, learning_rate=0.1, gradient_clip=clip)
    assert task.moved() == pytest.approx([0.1 * g for g in gradient], rel=2e-3)


def test_rows_name_training_and_validation_apart_and_progress_counts_steps(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_EVERY", 0.0)
    answer = cli(*FINETUNE)
    assert answer.code == 0, answer.err
    (row,) = re.findall(r"^step 24/24 (.*)", answer.err, re.M)
    names = re.split(r" [\d.,e+-]+(?: %|)(?:  |$)", row)
    assert names[:2] == ["train loss", "train accuracy"]
    assert names[2:4] == ["val accuracy", "val loss"]
    assert re.search(r"train accuracy \d+\.\d %  val accuracy \d+\.\d %  val loss [\d.]+ ", row)
    assert re.search(r"  [\d,]+ images/s$", row)
    assert re.search(r"^finetune step 23/24, [\d,]+ images/s, [\d.]+ s left  train loss [\d.]+$", answer.err, re.M)
    assert "finished earlier" not in answer.err


def test_checkpoints_are_kept_at_steps_with_and_without_an_evaluation() -> None:
    train(MeanTask(), ramp(32), "run", steps=8, evaluations=2, keep_every=2)
    assert sorted(p.name for p in Path("run").glob("step_*.pt")) == [f"step_{n:06d}.pt" for n in (2, 4, 6, 8)]
