"""The state of a training: saved, restored, and checked for divergence."""

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.base import signals
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.paths import CONF
from sslrun.config.compose import compose_config, compose_nodes
from sslrun.device import Device, MemoryFormat
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder
from sslrun.run import checkpoint
from sslrun.run.run import Run
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.tasks.task import Task
from sslrun.training.optimizers import build_optimizer
from sslrun.training.state import State, Window, formatted
from tests.helpers import IDENTITY, SGD, MeanTask, metric_rows, ramp, same, train
from tests.training.fitting import PLAIN_SGD, Slope, device, fit_slope


def test_case_63_every_image_counts_once_in_the_means() -> None:
    model = MeanTask()
    train(model, ramp(27), "a", epochs=1, steps=None, evaluations=1, learning_rate=1e-9)
    row = next(r for r in metric_rows("a") if "train/sizes" in r)
    assert row["train/sizes"] == 8
    assert row["train/loss"] == pytest.approx(float((torch.cat(model.seen) / 255).pow(2).mean()), abs=1e-5)


def test_without_a_monitor_the_best_state_is_the_last_and_saved_at_the_end() -> None:
    class Stops(MeanTask):
        def after_step(self, step: int, total: int) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    scores = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    keys: dict[str, Any] = {"steps": 8, "evaluations": 4, "evaluate": lambda: {"val/accuracy": next(scores)}}
    with signals.handled(), pytest.raises(signals.Stopped):
        train(Stops(), ramp(32), "a", monitor=None, **keys)
    assert not Path("a/best.pt").exists()
    result = train(MeanTask(), ramp(32), "a", monitor=None, resumed=True, **keys)
    best, last = (checkpoint.load(Path("a", name)) for name in ("best.pt", "last.pt"))
    assert result["best/step"] == best["step"] == last["step"] == 8
    assert same(best["model"], last["model"])
    assert best["metrics"] == last["metrics"]
    Path("a/best.pt").unlink()  # killed just before it was saved
    train(MeanTask(), ramp(32), "a", monitor=None, resumed=True, **keys)
    assert checkpoint.load(Path("a/best.pt"))["step"] == 8


class Teacher(Task):
    """Has all kinds of state: weights, batch norm, dropout, a moving average, a queue and its position."""

    queue: Tensor
    position: Tensor

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
        self.teacher.requires_grad_(False)
        self.register_buffer("queue", torch.zeros(16, 8))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.stop_after = stop_after
        self.rates: list[float] = []

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        images = batch["images"] + 0.1 * rng.rand(*batch["images"].shape)
        with torch.no_grad():
            targets = self.teacher(images)
            self.queue = torch.cat([targets, self.queue])[:16].clone()
            self.position += len(targets)
        return {"loss": (self.student(images) - targets - self.queue.mean(0)).pow(2).mean(), "sum": targets.sum()}

    def before_step(self, step: int, total: int) -> None:
        if self.stop_after == 0:  # like `kill -9` after the state before the first step was saved
            raise signals.Stopped(signal.SIGKILL)

    def after_step(self, step: int, total: int) -> None:
        with torch.no_grad():
            for a, b in zip(self.teacher.parameters(), self.student[1].parameters(), strict=True):
                a.lerp_(b, 0.1)
        if step + 1 == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "stop_after", [0, 1, 2, 4, 8, 9], ids=["none", "first", "mid-epoch", "epoch-end", "second-end", "third"]
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_cases_2_to_6_everything_is_restored_bit_for_bit_from_any_step(stop_after: int, optimizer: str) -> None:
    """Weights, optimizer, schedule, moving average, queue, batch norm, dropout and metrics; 4 steps an epoch."""
    node = compose_nodes("pretrain", "optimizer")[0] if optimizer == "adamw" else None
    node = node or OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / f"{optimizer}.yaml"))  # type: ignore[assignment]
    images = torch.randint(0, 256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def go(net: Teacher, where: str, resumed: bool = False) -> None:
        with signals.handled():
            train(net, images, where, resumed, optimizer=node, steps=12, log_every=3, gradient_clip=1.0)

    straight, broken, again = Teacher(), Teacher(stop_after), Teacher()
    go(straight, "straight")
    with pytest.raises(signals.Stopped):
        go(broken, "broken")
    assert checkpoint.load(Path("broken/last.pt"))["step"] == stop_after
    torch.manual_seed(99)  # the initial weights must not matter
    with torch.no_grad():
        again.student[1].weight.add_(1)  # type: ignore[operator]
    go(again, "broken", True)
    for (name, a), b in zip(straight.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    kept = [checkpoint.load(Path(w, "last.pt")) for w in ("straight", "broken")]
    for a, b in zip(*(k["optimizer"]["state"].values() for k in kept), strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
    actual = [
        [{k: v for k, v in r.items() if k != "images_per_second"} for r in metric_rows(w)]
        for w in ("straight", "broken")
    ]
    assert actual[0] == actual[1]


def test_case_1_k_steps_and_a_resume_equal_all_steps_bit_for_bit(pieces: Tensor) -> None:
    images = (pieces * 255).to(torch.uint8)
    labels = torch.arange(60) % 2

    def model() -> Finetuning:
        torch.manual_seed(0)
        encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.2] * 3)
        augment = Augment(**{**IDENTITY, "crop_scale": [0.5, 1.0]})
        return Finetuning(Classifier(encoder, 2), augment, 0.1, 3, True, 0.5)

    class Stops(Finetuning):
        def after_step(self, step: int, total: int) -> None:
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    straight, broken, again = model(), model(), model()
    broken.__class__ = Stops
    keys: dict[str, Any] = {"steps": 12, "batch_size": 16, "gradient_clip": 1.0, "evaluations": 4, "log_every": 3}
    train(straight, images, "straight", labels=labels, **keys)
    with signals.handled(), pytest.raises(signals.Stopped):
        train(broken, images, "broken", labels=labels, **keys)
    train(again, images, "broken", resumed=True, labels=labels, **keys)
    for (name, a), b in zip(straight.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
@pytest.mark.parametrize(("first", "second"), [("contiguous", "channels_last"), ("channels_last", "contiguous")])
def test_a_run_can_be_resumed_in_the_other_memory_format(
    name: str, first: MemoryFormat, second: MemoryFormat, pieces: Tensor
) -> None:
    """The moments of the optimizer take the strides of the weights; the formats themselves round differently."""
    images, labels = (pieces * 255).to(torch.uint8), torch.arange(60) % 2
    node: Any = OmegaConf.to_container(compose_config("pretrain", [f"optimizer={name}"], None).optimizer)

    def go(where: str, memory_format: MemoryFormat, steps: int, resumed: bool = False) -> dict[str, Tensor]:
        device = Device(
            name="cpu", precision="fp32", memory_format=memory_format, compile=None, deterministic=False, threads=None
        )
        torch.manual_seed(0)
        encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.2] * 3)
        model = Finetuning(Classifier(encoder, 2), Augment(**IDENTITY), 0.1, 0, False, 1.0)
        device.put(model)
        keys: dict[str, Any] = {"labels": labels, "optimizer": node, "device": device, "batch_size": 16}
        train(model, images, where, resumed, **keys, steps=steps, evaluations=1, keep_every=6, warmup_fraction=0.0)
        return {k: v.clone() for k, v in model.state_dict().items() if v.ndim == 4}

    straight = go("straight", first, 12)
    shutil.copytree("straight", "broken")
    for old in Path("broken").glob("*.pt"):
        old.unlink()
    shutil.copy("straight/step_000006.pt", "broken/last.pt")
    before = checkpoint.load(Path("straight/step_000006.pt"))["model"]
    for key, value in go("broken", second, 12, resumed=True).items():
        moved = (straight[key] - before[key]).norm()
        assert moved > 0
        assert (value - straight[key]).norm() < 1e-3 * moved, key


def test_a_run_can_be_resumed_in_another_precision() -> None:
    """Only the scaler of fp16 has a state."""
    for first, second in (("fp32", "fp16"), ("fp16", "fp32")):
        for precision, resumed, steps in ((first, False, 4), (second, True, 6)):
            device = Device(
                name="cpu",
                precision="fp32",
                memory_format="contiguous",
                compile=None,
                deterministic=False,
                threads=None,
            )
            device.use(precision, "contiguous")  # type: ignore[arg-type]
            model = MeanTask()
            train(model, ramp(16), first, resumed, device=device, steps=steps, optimizer=SGD)
        assert len(model.seen) == 2


def test_checkpoints_are_also_saved_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: clock)

    class Slow(MeanTask):
        def after_step(self, step: int, total: int) -> None:
            nonlocal clock
            clock += 100 if step == 4 else 1
            if step == 6:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        train(Slow(), ramp(16), "a", steps=10, evaluations=1, save_minutes=1)
    assert checkpoint.load(Path("a/last.pt"))["step"] == 5
    assert checkpoint.load(Path("a/previous.pt"))["step"] == 0


def test_a_checkpoint_of_an_older_version_without_window_can_be_resumed() -> None:
    train(MeanTask(), ramp(16), "a", steps=4)
    content = torch.load("a/last.pt", weights_only=True)
    del content["window"]
    torch.save(content, "a/last.pt")
    again = MeanTask()
    train(again, ramp(16), "a", resumed=True, steps=6)
    assert len(again.seen) == 2


def test_infinite_weights_do_not_overwrite_a_checkpoint() -> None:
    class Breaks(MeanTask):
        def after_step(self, step: int, total: int) -> None:
            if step == 9:  # the last step: no later loss shows it
                with torch.no_grad():
                    self.weight.fill_(float("inf"))

    with pytest.raises(UserError, match=r"1 weights, the first weight, became infinite in step 10 .*learning_rate"):
        train(Breaks(), ramp(16), "a")
    assert checkpoint.load(Path("a/last.pt"))["step"] == 5


def test_an_exploding_loss_is_logged_once_and_a_falling_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Grows(MeanTask):
        factor = 1.0

        def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
            return {"loss": super().forward(batch, rng)["loss"] * 0 + self.factor ** len(self.seen)}

    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    for factor, times in ((0.5, 0), (2.0, 1)):
        model = Grows()
        model.factor = factor
        train(model, ramp(16), f"by {factor}", steps=20)
        assert len(messages) == times
    assert "The loss rose from 12.4 to 397 by step 10, at learning rate" in messages[0]
    assert "train.gradient_clip=1" in messages[0]


def test_best_is_the_state_with_the_highest_score_and_last_is_the_last() -> None:
    scores = iter([0.1, 0.9, 0.5])
    result = train(MeanTask(), ramp(16), "a", evaluate=lambda: {"val/accuracy": next(scores)})
    assert checkpoint.load(Path("a/best.pt"))["step"] == 5
    assert checkpoint.load(Path("a/last.pt"))["step"] == 10
    assert result["best/step"] == 5


def test_case_70_a_nan_loss_stops_with_the_step_and_advice() -> None:
    class Breaks(MeanTask):
        def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
            out = super().forward(batch, rng)
            return {"loss": out["loss"] * (float("nan") if len(self.seen) == 8 else 1)}

    with pytest.raises(UserError, match=r"nan in step 8 at learning rate.*try train\.learning_rate"):
        train(Breaks(), ramp(16), "a")
    assert checkpoint.load(Path("a/last.pt"))["step"] == 5
    assert all(torch.isfinite(v).all() for v in checkpoint.load(Path("a/last.pt"))["model"].values())


def best() -> tuple[int, float]:
    """Return the step of `best.pt`, and the weight of the head in it."""
    content = checkpoint.load(Path("run/best.pt"))
    return content["step"], float(content["model"]["head.weight"])


@pytest.mark.parametrize(
    ("scores", "step"),
    [((0.1, 0.9, 0.5), 5), ((0.1, 0.9, 0.9), 10), ((0.9, 0.9, 0.5), 5), ((0.9, 0.1, 0.5), 0), ((), 10)],
    ids=["highest", "last two equal", "first two equal", "before training", "without scores"],
)
def test_best_is_the_latest_state_with_the_highest_score(scores: tuple[float, ...], step: int) -> None:
    result = fit_slope(Slope(), scores=scores)
    assert best()[0] == result["best/step"] == step


def test_a_resumed_training_keeps_a_best_state_that_was_better() -> None:
    with pytest.raises(RuntimeError):
        fit_slope(Slope(fails_in=7), scores=(0.1, 0.9))
    kept = best()
    result = fit_slope(Slope(), scores=(0.5,), resumed=True)
    assert best() == kept
    assert kept[0] == result["best/step"] == 5
    assert result["val/accuracy"] == 0.5


def test_a_resumed_training_replaces_a_best_state_that_was_worse() -> None:
    with pytest.raises(RuntimeError):
        fit_slope(Slope(fails_in=7), scores=(0.1, 0.4))
    assert fit_slope(Slope(), scores=(0.5,), resumed=True)["best/step"] == best()[0] == 10


def test_a_resumed_training_keeps_the_loss_scale_of_fp16() -> None:
    """An infinite gradient halves the scale and changes no weights."""
    task, first, second = Slope(head=1e36, encoder=0.0), device("fp16"), device("fp16")
    assert first.scaler.get_scale() == 65536
    fit_slope(task, on=first, steps=1)
    assert first.scaler.get_scale() == 32768
    assert task.moved() == (0, 0)
    fit_slope(Slope(head=1.0), on=second, steps=2, resumed=True)
    assert second.scaler.get_scale() == 32768


def test_a_resumed_training_keeps_the_momentum() -> None:
    node = {**PLAIN_SGD, "momentum": 0.9}
    with pytest.raises(RuntimeError):
        fit_slope(Slope(fails_in=7), optimizer=node)
    straight, resumed = Slope(), Slope()
    fit_slope(resumed, optimizer=node, resumed=True)
    fit_slope(straight, "straight", optimizer=node)
    assert torch.equal(resumed.head.weight, straight.head.weight)


def test_a_finished_training_that_is_resumed_reports_its_last_validation_accuracy_again() -> None:
    once = train(MeanTask(), ramp(16), "a", evaluate=lambda: {"val/accuracy": 0.75})
    again = train(MeanTask(), ramp(16), "a", resumed=True, evaluate=lambda: {"val/accuracy": 0.5})
    assert again["val/accuracy"] == once["val/accuracy"] == 0.75


def test_best_holds_the_weights_and_metrics_of_its_step() -> None:
    fit_slope(Slope(), scores=(0.1, 0.9, 0.5), keep_every=5)
    best, kept, last = (checkpoint.load(Path("run", f"{name}.pt")) for name in ("best", "step_000005", "last"))
    assert torch.equal(best["model"]["head.weight"], kept["model"]["head.weight"])
    assert not torch.equal(best["model"]["head.weight"], last["model"]["head.weight"])
    assert best["metrics"] == {"val/accuracy": 0.9}
    assert last["metrics"] == {"val/accuracy": 0.5}


def out(loss: float, **others: float) -> dict[str, Tensor]:
    return {k: torch.tensor(v) for k, v in {"loss": loss, **others}.items()}


RUN: Any = type("Fake", (), {"directory": Path("somewhere")})()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr("sslrun.training.state.time.perf_counter", lambda: now[0])
    return now


def test_a_window_has_the_means_and_the_speed_since_the_last_line(clock: list[float]) -> None:
    window = Window()
    window.start_clock()
    for loss, accuracy, n, seconds in ((1.0, 0.5, 10, 1.0), (4.0, 0.0, 5, 2.0)):
        clock[0] += seconds
        window.add(out(loss, accuracy=accuracy), n)
    clock[0] += 0.75  # waiting for the device
    row = window.close(2, 0.01, RUN)
    assert row == {
        "train/loss": 2.0, "train/accuracy": pytest.approx(1 / 3), "learning_rate": 0.01, "images_per_second": 4.0,
    }  # fmt: skip
    assert window.note == "train loss 2"
    clock[0] += 50  # an evaluation
    window.start_clock()
    clock[0] += 1
    window.add(out(0.5, accuracy=1.0), 20)
    assert window.close(3, 0.02, RUN) == {
        "train/loss": 0.5, "train/accuracy": 1.0, "learning_rate": 0.02, "images_per_second": 20.0,
    }  # fmt: skip
    assert window.summary() == {"train/loss": 0.5, "train/accuracy": 1.0, "images_per_second": round(35 / 4.75, 1)}


def test_a_restored_window_continues_with_the_same_means_and_speed(clock: list[float]) -> None:
    window = Window()
    clock[0] += 1
    window.add(out(3.0), 8)
    window.close(1, 0.1, RUN)
    clock[0] += 2
    window.add(out(1.0), 8)
    saved = window.state()
    assert Window().summary() == {}
    restored = Window()
    restored.restore(saved, device())
    assert restored.summary() == {"train/loss": 3.0}
    for w in (window, restored):
        w.start_clock()
        clock[0] += 2
        w.add(out(2.0), 24)
        row = w.close(3, 0.1, RUN)
        assert (row["train/loss"], row["images_per_second"]) == (1.75, 8.0)
    assert restored.summary() == {"train/loss": 1.75, "images_per_second": 8.0}
    assert window.summary() == {"train/loss": 1.75, "images_per_second": 8.0}
    assert (restored.first, restored.warned) == (3.0, False)


@pytest.mark.parametrize(
    ("first", "later", "warned"), [(0.5, 2.4, 0), (0.5, 2.6, 1), (10.0, 29.0, 0), (10.0, 31.0, 1), (-4.0, 4.5, 1)]
)
def test_a_loss_that_rises_by_twice_its_first_value_and_at_least_2_is_logged(
    first: float, later: float, warned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    window = Window()
    for step, loss in enumerate((first, min(first, later) - 0.1, later, later), 1):
        window.add(out(loss), 1)
        window.close(step, 0.02, RUN)
        window.restore(window.state(), device())
    assert len(messages) == warned
    if warned:
        assert (
            f"The loss rose from {first:.3g} to {later:.3g} by step 3, at learning rate 0.02: try train.lea"
            in messages[0]
        )
        assert "train.learning_rate=0.002 " in messages[0]


@pytest.mark.parametrize(("bad", "step"), [((5,), 11), ((0, 3), 6), ((2,), 8)])
def test_the_first_loss_that_is_not_finite_is_named_with_its_step(bad: tuple[int, ...], step: int) -> None:
    """The window has the steps 6 to 11."""
    window = Window()
    for i in range(6):
        window.add(out(float("inf") if i == bad[0] else float("nan") if i in bad else 1.0), 1)
    with pytest.raises(UserError) as error:
        window.close(11, 0.05, RUN)
    assert str(error.value) == (
        f"the loss became inf in step {step} at learning rate 0.05; try train.learning_rate=0.005, "
        "train.gradient_clip=1 or device.precision=fp32. The last good checkpoint is somewhere/last.pt"
    )


@pytest.mark.parametrize(("precision", "advice"), [("bf16", True), ("fp32", False)])
def test_a_loss_that_is_not_finite_before_any_update_is_no_matter_of_the_learning_rate(
    precision: str, advice: bool
) -> None:
    window = Window()
    for loss in (float("nan"), 1.0):
        window.add(out(loss), 1)
    run: Any = SimpleNamespace(config={"device": {"precision": precision}})
    with pytest.raises(UserError, match=r"^the loss is nan in step 1, before any update of the weights") as error:
        window.close(2, 0.05, run)
    assert ("device.precision=fp32" in str(error.value)) == advice


def test_a_row_is_shown_without_learning_rate_and_epoch() -> None:
    row = {"train/loss": 0.5123, "learning_rate": 0.1, "images_per_second": 1234.4, "val/accuracy": 0.831, "epoch": 2}
    assert formatted(row) == "train loss 0.5123  val accuracy 83.1 %  1,234 images/s"
    assert formatted({"val/loss": 1.0}) == "val loss 1"


def state_of(task: Task, where: str = "run", resumed: bool = False, config: dict[str, Any] | None = None) -> State:
    run = Run(Path(where), "pretrain", OmegaConf.create({"seed": 0}), {}, resumed)
    optimizer = build_optimizer(PLAIN_SGD, task, 0.5)
    return State(run, task, optimizer, device(), {"config": config or {}, "class_names": ["a"]}, "val/accuracy")


def test_every_checkpoint_holds_all_that_is_needed_and_the_last_two_are_kept() -> None:
    state = state_of(Slope())
    try:
        state.evaluated(0, {"val/accuracy": 0.5})
        state.save(3)
        state.evaluated(4, {"val/accuracy": 0.4, "val/loss": 2.0}, "step_000004.pt")
    finally:
        state.run.close("failed")
    best, previous, last, kept = (
        checkpoint.load(Path("run", n)) for n in ("best.pt", "previous.pt", "last.pt", "step_000004.pt")
    )
    assert [c["step"] for c in (best, previous, last, kept)] == [0, 3, 4, 4]
    assert all(c["class_names"] == ["a"] and c["downstream"] == "encoder" for c in (best, previous, last, kept))
    assert [c["best"] for c in (previous, last, kept)] == [[0.5, 0]] * 3
    assert previous["metrics"] == best["metrics"] == {"val/accuracy": 0.5}
    assert last["metrics"] == kept["metrics"] == {"val/accuracy": 0.4, "val/loss": 2.0}
    for name in ("optimizer", "scaler", "window"):
        assert name in last
        assert name in kept
        assert name not in best
    assert state.summary() == {"val/accuracy": 0.4, "val/loss": 2.0, "best/step": 0}
    assert [r["step"] for r in metric_rows("run")] == [0, 4]


def test_the_minutes_since_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("sslrun.training.state.time.monotonic", lambda: now[0])
    state = state_of(Slope())
    try:
        now[0] += 90
        assert state.minutes() == 1.5
        state.save(1)
        assert state.minutes() == 0
    finally:
        state.run.close("failed")


def test_a_damaged_last_checkpoint_is_set_aside_and_the_previous_one_restored() -> None:
    fit_slope(Slope(), steps=4, evaluations=2, scores=(0.1, 0.2, 0.3))
    whole = Path("run/last.pt").read_bytes()
    Path("run/last.pt").write_bytes(whole[:100])
    state = state_of(Slope(), resumed=True)
    try:
        assert state.restore() == 2
    finally:
        state.run.close("failed")
    assert not Path("run/last.pt").exists()
    assert Path("run/damaged.pt").read_bytes() == whole[:100]
    assert state.best == (0.2, 2)
    assert state.metrics == {"val/accuracy": 0.2}
    assert max(r["step"] for r in metric_rows("run")) == 2


def test_a_checkpoint_with_other_settings_or_another_network_is_refused() -> None:
    first = state_of(Slope(), config={"a": {"b": 1}, "train": {"steps": 3}})
    first.save(3)
    first.run.close("failed")
    for config, words in (
        ({"a": {"b": 2}, "train": {"steps": 3}}, r"last\.pt has other settings than this run: a\.b differ"),
        ({"a": {"b": 1}, "train": {"steps": 9}}, ""),
    ):
        state = state_of(Slope(), resumed=True, config=config)
        try:
            if words:
                with pytest.raises(UserError, match=words):
                    state.restore()
            else:
                assert state.restore() == 3
        finally:
            state.run.close("failed")
    content = torch.load("run/last.pt", weights_only=True)
    content["optimizer"]["param_groups"] = []
    torch.save(content, "run/last.pt")
    state = state_of(Slope(), resumed=True)
    try:
        with pytest.raises(UserError, match=r"does not match this training .*start a new run"):
            state.restore()
    finally:
        state.run.close("failed")


def test_the_learning_rate_of_a_line_is_that_of_the_head() -> None:
    encoder = Encoder(smallcnn(32, widths=[4]), [0.5] * 3, [0.2] * 3)
    state = state_of(Finetuning(Classifier(encoder, 2), Augment(**IDENTITY), 0.0, 0, False, 0.1))
    try:
        for group in state.optimizer.param_groups:
            group["lr"] = 0.5 * group["rate"]
        state.window.add(out(1.0), 8)
        assert state.log(7, 1.75)["learning_rate"] == 0.5
    finally:
        state.run.close("failed")
    (row,) = metric_rows("run")
    assert (row["step"], row["epoch"], row["learning_rate"], row["train/loss"]) == (7, 1.75, 0.5, 1.0)
