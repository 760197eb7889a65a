"""The state of a training: saved, restored, and checked for divergence."""

import os
import shutil
import signal
import time
from pathlib import Path
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
from sslrun.runs import checkpoint
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.tasks.task import Task
from tests.helpers import IDENTITY, SGD, MeanTask, metric_rows, ramp, train
from tests.training.fitting import PLAIN_SGD, Slope, device, fit_slope


def test_case_63_a_smaller_batch_counts_by_its_size() -> None:
    train(MeanTask(), ramp(27), "a", epochs=1, steps=None, evaluations=1, learning_rate=1e-9)
    row = next(r for r in metric_rows("a") if "train/sizes" in r)
    assert row["train/sizes"] == pytest.approx((3 * 7 * 7 + 6 * 6) / 27, abs=1e-5)
    assert row["train/loss"] == pytest.approx(float((torch.arange(27) / 255).pow(2).mean()), abs=1e-5)


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
        device = Device(name="cpu", precision="fp32", memory_format=memory_format, compile=None, threads=None)
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
            device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
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
