import json
import os
import shutil
import signal
import subprocess
import sys
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
from sslrun.models.weights import load_state
from sslrun.runs import checkpoint
from sslrun.runs.run import Run
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.tasks.task import Task
from sslrun.training.batches import Batches
from sslrun.training.loop import fit
from sslrun.training.optimizers import LARS, build_optimizer, parameter_groups
from sslrun.training.settings import Training, batches_per_epoch
from sslrun.training.state import State
from tests.test_views import NOTHING

ADAMW = {"_target_": "sslrun.training.optimizers.adamw", "weight_decay": 0.05, "betas": [0.9, 0.999]}
SGD = {"_target_": "sslrun.training.optimizers.sgd", "weight_decay": 0.0, "momentum": 0.9, "nesterov": True}
CPU = Device(name="cpu", precision="fp32", memory_format="channels_last", compile=None, threads=None)


class Mean(Task):
    """Predicts the mean brightness of its pictures; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []
        self.draws: list[float] = []

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        brightness = batch["images"].mean((1, 2, 3))
        self.seen.append((brightness * 255).round().long())
        self.draws.append(float(rng.rand()))
        return {
            "loss": (self.weight - brightness).pow(2).mean(),
            "sizes": torch.tensor(float(len(brightness))),
        }


def ramp(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 8, 8).contiguous()


SETTINGS: dict[str, Any] = {
    **{"epochs": None, "steps": 10, "batch_size": 8, "learning_rate": 0.01, "warmup_fraction": 0.1},
    **{"gradient_clip": None, "evaluations": 2, "log_every": 5, "save_minutes": 5, "keep_every": None},
}


def train(model: Task, images: Tensor, where: str, resumed: bool = False, seed: int = 0, **keys: Any) -> dict:
    evaluate, optimizer, labels = keys.pop("evaluate", dict), keys.pop("optimizer", ADAMW), keys.pop("labels", None)
    device = keys.pop("device", CPU)
    training = Training(**{**SETTINGS, **keys})
    run = Run(Path(where), "pretrain", OmegaConf.create({"seed": seed}), {}, resumed)
    try:
        batches = Batches(images, labels, training.batch_size, training.total_steps(len(images)), seed, device)
        built = build_optimizer(optimizer, model, training.learning_rate)
        state = State(run, model, built, device, {}, "val/accuracy")
        return fit(model, batches, built, training, device, state, evaluate)
    finally:
        run.close("finished")


def rows(where: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(where, "metrics.jsonl").read_text().splitlines()]


def test_an_epoch_shows_every_picture_once_in_batches_of_nearly_equal_size() -> None:
    model = Mean()
    train(model, ramp(27), "a", epochs=2, steps=None)
    assert [len(s) for s in model.seen] == [7, 7, 7, 6] * 2
    for epoch in (model.seen[:4], model.seen[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(27))
    assert torch.cat(model.seen[:4]).tolist() != torch.cat(model.seen[4:]).tolist()


@pytest.mark.parametrize("done", [0, 1, 3, 4, 7, 9, 10])
def test_batches_after_some_steps_are_the_last_of_all_batches(done: int) -> None:
    """Rows, labels and random numbers; 4 steps an epoch, and no step is gathered that is not needed."""
    images, gathered = ramp(27), 0

    class Counted:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, rows: Tensor) -> Tensor:
            nonlocal gathered
            gathered += 1
            return images[rows]

    def seen(after: int) -> list[tuple[int, list[int], list[int], float, int]]:
        batches = Batches(Counted(), torch.arange(27), 8, 10, 5, CPU)  # type: ignore[arg-type]
        assert batches.per_epoch == 4
        return [
            (s.step, (s.batch["images"][:, 0, 0, 0] * 255).round().tolist(), s.batch["labels"].tolist(),
             float(s.rng.rand()), s.images) for s in batches.after(after)
        ]  # fmt: skip

    everything = seen(0)
    assert [s[0] for s in everything] == list(range(10))
    assert all(s[1] == s[2] and len(s[1]) == s[4] for s in everything)
    assert len({s[3] for s in everything}) == 10
    gathered = 0
    assert seen(done) == everything[done:]
    assert gathered == 10 - done


def test_case_63_a_smaller_batch_counts_by_its_size() -> None:
    train(Mean(), ramp(27), "a", epochs=1, steps=None, evaluations=1, learning_rate=1e-9)
    row = next(r for r in rows("a") if "train/sizes" in r)
    assert row["train/sizes"] == pytest.approx((3 * 7 * 7 + 6 * 6) / 27, abs=1e-5)
    assert row["train/loss"] == pytest.approx(float((torch.arange(27) / 255).pow(2).mean()), abs=1e-5)


def test_case_9_same_seed_same_numbers_other_seed_others() -> None:
    models = [Mean() for _ in range(3)]
    for i, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        train(model, ramp(30), str(i), seed=seed)
    assert rows("0") == [{**r, "images_per_second": s.get("images_per_second")} if "images_per_second" in r else r
                         for r, s in zip(rows("1"), rows("0"), strict=True)]  # fmt: skip
    assert models[0].draws == models[1].draws != models[2].draws
    assert torch.cat(models[0].seen).tolist() == torch.cat(models[1].seen).tolist()
    assert torch.cat(models[0].seen).tolist() != torch.cat(models[2].seen).tolist()
    assert len(set(models[0].draws)) == len(models[0].draws)


class Teacher(Task):
    """Has all that there is to restore: weights, batch norm, dropout, a moving average, a queue and its place."""

    queue: Tensor
    place: Tensor

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
        self.teacher.requires_grad_(False)
        self.register_buffer("queue", torch.zeros(16, 8))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.stop_after = stop_after
        self.rates: list[float] = []

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        images = batch["images"] + 0.1 * rng.rand(*batch["images"].shape)
        with torch.no_grad():
            messages = self.teacher(images)
            self.queue = torch.cat([messages, self.queue])[:16].clone()
            self.place += len(messages)
        return {"loss": (self.student(images) - messages - self.queue.mean(0)).pow(2).mean(), "sum": messages.sum()}

    def before_step(self, step: int, total: int) -> None:
        if self.stop_after == 0:  # as by `kill -9`, with the state before the first step saved
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
def test_cases_2_to_6_everything_is_restored_bit_for_bit_wherever_it_stops(stop_after: int, optimizer: str) -> None:
    """Weights, optimiser, schedule, moving average, queue, batch norm, dropout and metrics; 4 steps an epoch."""
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
    torch.manual_seed(99)  # whatever it starts from, the checkpoint decides
    with torch.no_grad():
        again.student[1].weight.add_(1)  # type: ignore[operator]
    go(again, "broken", True)
    for (name, a), b in zip(straight.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    kept = [checkpoint.load(Path(w, "last.pt")) for w in ("straight", "broken")]
    for a, b in zip(*(k["optimizer"]["state"].values() for k in kept), strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
    actual = [
        [{k: v for k, v in r.items() if k != "images_per_second"} for r in rows(w)] for w in ("straight", "broken")
    ]
    assert actual[0] == actual[1]


def test_case_4_after_a_resume_the_second_epoch_has_an_order_of_its_own() -> None:
    class Stops(Mean):
        def after_step(self, step: int, total: int) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    first, second = Stops(), Mean()
    with signals.handled(), pytest.raises(signals.Stopped):
        train(first, ramp(32), "a", steps=8)
    train(second, ramp(32), "a", resumed=True, steps=8)
    orders = [torch.cat(m.seen).tolist() for m in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(32))
    assert orders[0] != orders[1]


def test_case_1_k_steps_and_a_resume_equal_all_steps_bit_for_bit(pieces: Tensor) -> None:
    images = (pieces * 255).to(torch.uint8)
    labels = torch.arange(60) % 2

    def model() -> Finetuning:
        torch.manual_seed(0)
        encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.2] * 3)
        augment = Augment(**{**NOTHING, "crop_scale": [0.5, 1.0]})
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
def test_a_resume_in_the_other_memory_format_goes_on_as_if_nothing_had_been(
    name: str, first: MemoryFormat, second: MemoryFormat, pieces: Tensor
) -> None:
    """The moments of the optimizer take the strides of the weights; the formats themselves round differently."""
    images, labels = (pieces * 255).to(torch.uint8), torch.arange(60) % 2
    node: Any = OmegaConf.to_container(compose_config("pretrain", [f"optimizer={name}"], None).optimizer)

    def go(where: str, memory_format: MemoryFormat, steps: int, resumed: bool = False) -> dict[str, Tensor]:
        device = Device(name="cpu", precision="fp32", memory_format=memory_format, compile=None, threads=None)
        torch.manual_seed(0)
        encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.2] * 3)
        model = Finetuning(Classifier(encoder, 2), Augment(**NOTHING), 0.1, 0, False, 1.0)
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


def test_a_run_without_a_loss_scale_goes_on_with_one_and_the_other_way_round() -> None:
    """The scaler of fp16 has a state, those of other precisions have none."""
    for first, second in (("fp32", "fp16"), ("fp16", "fp32")):
        for precision, resumed, steps in ((first, False, 4), (second, True, 6)):
            device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
            device.use(precision, "contiguous")  # type: ignore[arg-type]
            model = Mean()
            train(model, ramp(16), first, resumed, device=device, steps=steps, optimizer=SGD)
        assert len(model.seen) == 2


def test_a_checkpoint_is_made_by_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: clock)

    class Slow(Mean):
        def after_step(self, step: int, total: int) -> None:
            nonlocal clock
            clock += 100 if step == 4 else 1
            if step == 6:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        train(Slow(), ramp(16), "a", steps=10, evaluations=1, save_minutes=1)
    assert checkpoint.load(Path("a/last.pt"))["step"] == 5
    assert checkpoint.load(Path("a/previous.pt"))["step"] == 0


def test_a_checkpoint_of_before_there_was_a_window_goes_on() -> None:
    train(Mean(), ramp(16), "a", steps=4)
    content = torch.load("a/last.pt", weights_only=True)
    del content["window"]
    torch.save(content, "a/last.pt")
    again = Mean()
    train(again, ramp(16), "a", resumed=True, steps=6)
    assert len(again.seen) == 2


def test_weights_that_are_no_longer_finite_displace_no_checkpoint() -> None:
    class Breaks(Mean):
        def after_step(self, step: int, total: int) -> None:
            if step == 9:  # the last: no loss will tell
                with torch.no_grad():
                    self.weight.fill_(float("inf"))

    with pytest.raises(UserError, match=r"1 weights, the first weight, became infinite in step 10 .*learning_rate"):
        train(Breaks(), ramp(16), "a")
    assert checkpoint.load(Path("a/last.pt"))["step"] == 5


def test_a_loss_that_explodes_is_told_once_and_one_that_falls_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Grows(Mean):
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


def test_case_7_resuming_a_finished_run_does_nothing() -> None:
    model = Mean()
    train(model, ramp(16), "a")
    before = Path("a/last.pt").read_bytes()
    again = Mean()
    train(again, ramp(16), "a", resumed=True)
    assert again.seen == []
    assert torch.equal(again.weight, model.weight)
    assert Path("a/last.pt").read_bytes() == before


def test_best_is_the_state_of_the_highest_score_and_last_the_last() -> None:
    scores = iter([0.1, 0.9, 0.5])
    result = train(Mean(), ramp(16), "a", evaluate=lambda: {"val/accuracy": next(scores)})
    assert checkpoint.load(Path("a/best.pt"))["step"] == 5
    assert checkpoint.load(Path("a/last.pt"))["step"] == 10
    assert result["best/step"] == 5


def test_case_70_a_loss_that_is_not_a_number_stops_with_the_step_and_what_to_try() -> None:
    class Breaks(Mean):
        def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
            out = super().forward(batch, rng)
            return {"loss": out["loss"] * (float("nan") if len(self.seen) == 8 else 1)}

    with pytest.raises(UserError, match=r"nan in step 8 at learning rate.*try train\.learning_rate"):
        train(Breaks(), ramp(16), "a")
    assert checkpoint.load(Path("a/last.pt"))["step"] == 5
    assert all(torch.isfinite(v).all() for v in checkpoint.load(Path("a/last.pt"))["model"].values())


def test_length_is_epochs_or_steps_whichever_ends_first() -> None:
    def total_steps(n: int, epochs: int | None, steps: int | None, batch_size: int) -> int:
        return Training(**{**SETTINGS, "epochs": epochs, "steps": steps, "batch_size": batch_size}).total_steps(n)

    assert total_steps(100, 3, None, 10) == 30
    assert total_steps(100, None, 7, 10) == 7
    assert total_steps(100, 3, 7, 10) == 7
    assert total_steps(100, 3, 70, 10) == 30
    assert batches_per_epoch(101, 10) == 11
    with pytest.raises(UserError, match=r"train\.epochs"):
        total_steps(100, None, None, 10)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    training = Training(**{**SETTINGS, "learning_rate": 1.0, "warmup_fraction": 0.1})
    rates = [training.learning_rate_at(s, 100) for s in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] < 0.001


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    from sslrun.config.build import build

    node: Any = OmegaConf.to_container(compose_config("pretrain", [f"optimizer={name}"], None).optimizer)
    net = nn.Linear(4, 1)
    optimizer = build(node, parameter_groups(net, node["weight_decay"], {}), 0.5 if name == "lars" else 0.01)
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = (net(x) - x.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_lars_against_its_formula() -> None:
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([{"params": [w], "rate": 1.0}], lr=0.1, weight_decay=0.01, momentum=0.9, trust=0.02)
    value, v = w.detach().clone(), torch.zeros(1, 2)
    for _ in range(3):
        w.grad = torch.tensor([[0.6, -0.8]])
        optimizer.step()
        g = torch.tensor([[0.6, -0.8]]) + 0.01 * value
        v = 0.9 * v + 0.02 * value.norm() / g.norm() * g
        value = value - 0.1 * v
    assert torch.allclose(w, value, atol=1e-6)


def test_vectors_do_not_decay_and_parts_have_their_own_rate() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = parameter_groups(net, 0.1, {"3.": 5.0})
    assert sum(len(g["params"]) for g in groups) == 6
    for g in groups:
        assert all((p.ndim > 1) == (g["weight_decay"] == 0.1) for p in g["params"])
    assert {g["rate"] for g in groups} == {1.0, 5.0}


def test_case_59_a_frozen_backbone_keeps_every_byte(pieces: Tensor) -> None:
    encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.2] * 3)
    model = Finetuning(Classifier(encoder, 2), Augment(**NOTHING), 0.0, 10, False, 1.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images, labels = (pieces * 255).to(torch.uint8), torch.arange(60) % 2
    train(model, images, "a", labels=labels, batch_size=16, warmup_fraction=0.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("encoder" in name), name


def test_frozen_batch_norm_keeps_its_statistics_while_weights_move(pieces: Tensor) -> None:
    encoder = Encoder(smallcnn(32, widths=[4]), [0.5] * 3, [0.2] * 3)
    for freeze in (True, False):
        model = Finetuning(Classifier(encoder, 2), Augment(**NOTHING), 0.0, 0, freeze, 1.0)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.before_step(0, 1)
        loss = model({"images": pieces, "labels": torch.arange(60) % 2}, Rng(torch.Generator()))["loss"]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss.backward()
        optimizer.step()
        after = model.state_dict()
        still = [torch.equal(after[k], before[k]) for k in before if "running" in k]
        assert all(still) if freeze else not any(still)
        assert not torch.equal(
            after["classifier.encoder.backbone.0.weight"], before["classifier.encoder.backbone.0.weight"]
        )
        model.eval()


def test_case_60_the_classifier_learns_one_batch(pieces: Tensor) -> None:
    labels = torch.arange(15) % 3
    model = Finetuning(Classifier(Encoder(smallcnn(32, widths=[16, 32]), [0.5] * 3, [0.2] * 3), 3), Augment(**NOTHING),
                       0.0, 0, False, 1.0)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(60):
        model.before_step(step, 60)
        out = model({"images": pieces[::4], "labels": labels}, Rng(torch.Generator()))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["accuracy"] > 0.95


# ----------------------------------------------------------------------------------------------------- checkpoints


def test_case_20_keys_that_do_not_match_are_named() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"1 missing \(bias\); 1 unexpected \(other\)"):
        load_state(net, {"weight": torch.zeros(2, 2), "other": torch.zeros(1)}, "x.pt")
    with pytest.raises(UserError, match=r"of another shape \(weight \(3, 2\) where \(2, 2\) is needed\)"):
        load_state(net, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "x.pt")


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "missing", "pickle", "number"])
def test_cases_14_and_19_damaged_and_malicious_checkpoints_are_refused(kind: str) -> None:
    path = Path("x.pt")
    checkpoint.save(path, {"model": {"a": torch.zeros(1000)}})
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind in ("text", "empty"):
        path.write_text("hello" if kind == "text" else "")
    elif kind == "missing":
        path.unlink()
    elif kind == "number":
        torch.save(3, path)
    else:
        torch.save({"model": Mean()}, path)  # a whole object: loading it could run anything
    with pytest.raises(UserError, match=r"x\.pt"):
        checkpoint.load(path)


def test_case_13_a_write_that_is_refused_keeps_the_old_checkpoint_and_leaves_no_part() -> None:
    """The process may write no file above 50 kB."""
    code = """
import resource, torch
from pathlib import Path
from sslrun.base.errors import UserError
from sslrun.runs import checkpoint
checkpoint.save(Path("x.pt"), {"model": {"a": torch.ones(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(Path("x.pt"), {"model": {"a": torch.ones(1_000_000)}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write x.pt")
    assert checkpoint.load(Path("x.pt"))["model"]["a"].tolist() == [1.0] * 10
    assert [p.name for p in Path.cwd().iterdir()] == ["x.pt"]


def test_case_12_a_rename_that_fails_keeps_the_old_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(Path("x.pt"), {"model": {"a": torch.ones(1)}})

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        checkpoint.save(Path("x.pt"), {"model": {"a": torch.zeros(1)}})
    assert float(checkpoint.load(Path("x.pt"))["model"]["a"]) == 1
    assert [p.name for p in Path.cwd().iterdir()] == ["x.pt"]


def test_no_run_writes_into_the_directory_of_another() -> None:
    Run(Path("a"), "pretrain", OmegaConf.create({}), {}).close("finished")
    with pytest.raises(UserError, match="holds a run already"):
        Run(Path("a"), "pretrain", OmegaConf.create({}), {})
