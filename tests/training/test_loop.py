import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.base import console, processes, signals
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.run import checkpoint
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
    answer = cli(*FINETUNE, "validation=extra")
    assert answer.code == 0, answer.err
    (row,) = re.findall(r"^step 24/24 (.*)", answer.err, re.M)
    names = re.split(r" [\d.,e+-]+(?: %|)(?:  |$)", row)
    assert names[:2] == ["train loss", "train accuracy"]
    assert names[2:5] == ["val accuracy", "val f1 macro", "val loss"]
    assert re.search(r"train accuracy \d+\.\d %  val accuracy \d+\.\d %  val f1 macro \d+\.\d %  val loss [\d.]+ ", row)
    assert re.search(r"  [\d,]+ images/s$", row)
    assert re.search(r"^finetune step 23/24, [\d,]+ images/s, [\d.]+ s left  train loss [\d.]+$", answer.err, re.M)
    assert "finished earlier" not in answer.err


def test_checkpoints_are_kept_at_steps_with_and_without_an_evaluation() -> None:
    train(MeanTask(), ramp(32), "run", steps=8, evaluations=2, keep_every=2)
    assert sorted(p.name for p in Path("run").glob("step_*.pt")) == [f"step_{n:06d}.pt" for n in (2, 4, 6, 8)]


class Recorder(MeanTask):
    """Remembers what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Dropout(0.5)
        self.calls: list[tuple[Any, ...]] = []
        self.drops: list[list[float]] = []

    def before_step(self, step: int, total: int) -> None:
        self.calls.append(("before", step, total, self.training))

    def after_step(self, step: int, total: int) -> None:
        self.calls.append(("after", step, total, self.weight.grad is not None))

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        self.drops.append(self.layer(torch.ones(16)).tolist())
        return super().forward(batch, rng)


def test_a_task_gets_each_step_and_is_evaluated_before_the_first_and_evenly_afterwards() -> None:
    task, modes = Recorder(), []

    def evaluate() -> dict[str, float]:
        modes.append((len(task.calls) // 2, task.training, torch.is_grad_enabled()))
        return {"val/accuracy": 0.5}

    train(task, ramp(16), "run", steps=6, evaluations=3, evaluate=evaluate)
    assert task.calls == [c for i in range(6) for c in (("before", i, 6, True), ("after", i, 6, True))]
    assert modes == [(0, False, False), (2, False, False), (4, False, False), (6, False, False)]
    assert [r["step"] for r in metric_rows("run") if "val/accuracy" in r] == [0, 2, 4, 6]


def test_dropout_differs_between_steps_and_is_that_of_the_seed() -> None:
    drops: list[list[list[float]]] = []
    for where, seed in (("a", 0), ("b", 0), ("c", 1)):
        task = Recorder()
        torch.manual_seed(len(drops))  # does not matter
        train(task, ramp(16), where, steps=5, seed=seed)
        drops.append(task.drops)
    assert drops[0] == drops[1] != drops[2]
    assert len(set(map(tuple, drops[0]))) == 5


def test_lines_of_metrics_are_logged_every_few_steps_and_before_evaluations() -> None:
    """With two steps an epoch; each line has the means since the last one."""
    task = MeanTask()
    train(task, ramp(16), "run", steps=10, evaluations=2, log_every=3, learning_rate=1e-9)
    rows = [r for r in metric_rows("run") if "train/loss" in r]
    assert [r["step"] for r in rows] == [3, 5, 6, 9, 10]
    assert [r["epoch"] for r in rows] == [1.5, 2.5, 3, 4.5, 5]
    losses = [float((s / 255).square().mean()) for s in task.seen]
    expected = [losses[:3], losses[3:5], losses[5:6], losses[6:9], losses[9:]]
    assert [r["train/loss"] for r in rows] == pytest.approx([sum(e) / len(e) for e in expected], abs=2e-6)


def test_a_training_cannot_be_resumed_to_fewer_steps_than_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    train(MeanTask(), ramp(16), "run", steps=6)
    with pytest.raises(UserError, match="cannot end after 4 steps: 6 steps are done already"):
        train(MeanTask(), ramp(16), "run", resumed=True, steps=4)
    messages: list[str] = []
    monkeypatch.setattr(log, "info", lambda text, *values, **_: messages.append(text % values))
    train(MeanTask(), ramp(16), "run", resumed=True, steps=6)
    assert any(m.startswith("Nothing to do: all 6 steps are done.") for m in messages)
    messages.clear()
    longer = MeanTask()
    train(longer, ramp(16), "run", resumed=True, steps=8, evaluate=lambda: {"val/accuracy": 0.5})
    assert not any("Nothing to do" in m for m in messages)
    assert len(longer.seen) == 2
    (line,) = [m for m in messages if m.startswith("step 8/8 ")]
    assert "val accuracy 50.0 %" in line
    assert "train loss" in line


def test_a_stop_saves_the_last_complete_step() -> None:
    class Stops(MeanTask):
        def after_step(self, step: int, total: int) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with signals.handled(), pytest.raises(signals.Stopped):
        train(Stops(), ramp(16), "run", steps=10, evaluations=1)
    assert checkpoint.load(Path("run/last.pt"))["step"] == 3


def test_gradients_do_not_add_up_over_steps() -> None:
    task = Slope(head=1.0, encoder=1.0)
    fit_slope(task, steps=2, learning_rate=0.5)
    assert task.moved() == pytest.approx((0.75, 0.75))  # 0.5, then half of it: the cosine is halfway


def test_a_training_that_ended_in_an_evaluation_repeats_it_when_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process evaluates; when the others have ended meanwhile, it saves what it has."""
    whole, calls = MeanTask(), 0

    def evaluate() -> dict[str, float]:
        return {"val/accuracy": 0.5}

    def interrupted() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("Connection closed by peer")
        return evaluate()

    train(whole, ramp(16), "whole", steps=6, evaluations=2, evaluate=evaluate)
    monkeypatch.setattr(processes, "is_lost", lambda error: True)
    monkeypatch.setattr(processes, "leave", lambda: None)
    with pytest.raises(UserError, match="the state after step 3 is saved"):
        train(MeanTask(), ramp(16), "run", steps=6, evaluations=2, evaluate=interrupted)
    resumed = MeanTask()
    train(resumed, ramp(16), "run", resumed=True, steps=6, evaluations=2, evaluate=evaluate)
    assert [r["step"] for r in metric_rows("run") if "val/accuracy" in r] == [0, 3, 6]
    assert torch.equal(resumed.weight, whole.weight)
    train(MeanTask(), ramp(16), "run", resumed=True, steps=6, evaluations=2, evaluate=evaluate)
    assert [r["step"] for r in metric_rows("run") if "val/accuracy" in r] == [0, 3, 6]


def test_a_checkpoint_between_two_evaluations_is_not_evaluated_when_resumed() -> None:
    """Also one of an earlier version, which does not say when it was evaluated."""

    class Fails(MeanTask):
        def before_step(self, step: int, total: int) -> None:
            if step == 4:
                raise RuntimeError

    keys: dict[str, Any] = {"steps": 6, "evaluations": 2, "evaluate": lambda: {"val/accuracy": 0.5}}
    for where, keep_every, evaluated in (("between", 2, [0, 3, 6]), ("older", 3, [0, 3, 6])):
        with pytest.raises(RuntimeError):
            train(Fails(), ramp(16), where, keep_every=keep_every, **keys)
        if where == "older":
            content = checkpoint.load(Path(where, "last.pt"))
            del content["evaluated_at"]
            checkpoint.save(Path(where, "last.pt"), content)
        train(MeanTask(), ramp(16), where, resumed=True, keep_every=keep_every, **keys)
        assert [r["step"] for r in metric_rows(where) if "val/accuracy" in r] == evaluated


def test_an_evaluation_that_is_repeated_keeps_its_checkpoint_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def interrupted() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("Connection closed by peer")
        return {}

    monkeypatch.setattr(processes, "is_lost", lambda error: True)
    monkeypatch.setattr(processes, "leave", lambda: None)
    with pytest.raises(UserError, match="the state after step 3 is saved"):
        train(MeanTask(), ramp(16), "run", steps=6, evaluations=2, keep_every=3, evaluate=interrupted)
    caplog.set_level("INFO", "sslrun")
    assert "is repeated" not in caplog.text
    train(MeanTask(), ramp(16), "run", resumed=True, steps=6, evaluations=2, keep_every=3)
    assert "The evaluation after step 3 was interrupted, and is repeated" in caplog.messages
    assert sorted(p.name for p in Path("run").glob("step_*.pt")) == ["step_000003.pt", "step_000006.pt"]


def test_the_loss_is_logged_whatever_is_returned_before_it() -> None:
    class Backwards(MeanTask):
        def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
            out = super().forward(batch, rng)
            return {"sizes": out["sizes"], "loss": out["loss"]}

    for where, task in (("a", MeanTask()), ("b", Backwards())):
        train(task, ramp(16), where, steps=4)
    one, other = ([{k: r.get(k) for k in ("train/loss", "train/sizes")} for r in metric_rows(w)] for w in "ab")
    assert one == other
