"""Several processes train the same model as one, up to rounding."""

import datetime
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor, nn

from sslrun import augment
from sslrun.augment import Rng, generator
from sslrun.base import processes
from sslrun.base.batch_norm import synchronize
from sslrun.base.errors import UserError
from sslrun.config.compose import compose_nodes
from sslrun.run import checkpoint
from sslrun.run.find import LAST
from sslrun.run.run import Run
from sslrun.tasks import colors
from sslrun.training.batches import Batches
from sslrun.training.loop import fit, step_within_memory, train_step
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training
from sslrun.training.state import State
from tests.every_task import IMAGES, PRETEXT, task_named
from tests.helpers import (
    DIGITS,
    TRAINING,
    Cli,
    cpu,
    ended,
    metric_rows,
    run_here,
    runs,
    spawn,
    start_several,
    summary,
)
from tests.training.fitting import PLAIN_SGD, Slope

BATCH, STEPS = 13, 20  # batches of two epochs of 22 images, shares of unequal size


def compute_in_double_precision() -> None:
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    for module in (augment, colors):
        for key, value in vars(module).copy().items():
            setattr(module, key, value.double() if isinstance(value, Tensor) else value)


def train(names: list[str], rank: int, count: int, double: bool, pieces: Tensor, place: str) -> None:
    """Train each task, and save the losses and the weights of this process."""
    if double:
        compute_in_double_precision()
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}.store", rank=rank, world_size=count)
    device = cpu(precision="fp32", memory_format="contiguous")
    labels = torch.arange(IMAGES) % 3
    out = {}
    for name in names:
        task = task_named(name)
        synchronize(task)
        (node,) = compose_nodes("pretrain", "optimizer")
        optimizer = build_optimizer(node, task, 0.002)
        losses = []
        steps = STEPS if double else 1
        for step in Batches(pieces, labels, BATCH, steps, 0, device).after(0):
            loss = train_step(task, step, steps, optimizer, device, 1.0)["loss"]
            losses.append(float(processes.total(loss * processes.weight())))
        out[name] = losses, {k: v.clone() for k, v in task.state_dict().items()}
    torch.save(out, f"{place}.{rank}")


@pytest.fixture(scope="module")
def trained(pieces: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what `count` processes trained: of each, the losses and the weights by task."""
    images = (pieces[:1].repeat(IMAGES, 1, 1, 1) * 0 + pieces[torch.arange(IMAGES) % len(pieces)]).mul(255).byte()
    folder = tmp_path_factory.mktemp("processes")

    def run(count: int, double: bool = True) -> list[dict[str, Any]]:
        place = str(folder / f"{count}{double}")
        if not Path(f"{place}.0").exists():
            started = [spawn(train, [*PRETEXT, "finetuning"], r, count, double, images, place, err=f"{place}.{r}.err")
                       for r in range(count)]  # fmt: skip
            assert [ended(p) for p in started] == [0] * count, Path(f"{place}.0.err").read_text()
        return [torch.load(f"{place}.{r}") for r in range(count)]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PRETEXT, "finetuning"])
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_the_same_model_as_one(name: str, count: int, trained: Any) -> None:
    (losses, weights), *_ = [of[name] for of in trained(1)]
    several = [of[name] for of in trained(count)]
    assert losses[0] != losses[-1]
    assert several[0][0] == pytest.approx(losses, rel=1e-9, abs=1e-9)
    for key, value in weights.items():
        assert torch.allclose(value.double(), several[0][1][key].double(), rtol=1e-7, atol=1e-9), key
        assert all(torch.equal(several[0][1][key], other[1][key]) for other in several[1:]), key


PHASES = ((2, 6), (1, 12), (4, STEPS))  # processes, and after how many steps they end
RESUMED = ("moco", "byol", "rotation", "swav", "finetuning")  # a queue, an average, dropout, prototypes, given labels


def train_in_phases(rank: int, phase: int, phases: tuple[tuple[int, int], ...], pieces: Tensor, place: str) -> None:
    """Train a part of all steps, as far as the phase goes; each process has a directory of its own."""
    compute_in_double_precision()
    count, end = phases[phase]
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}.store{phase}", rank=rank, world_size=count)
    device, labels, weights = cpu(precision="fp32", memory_format="contiguous"), torch.arange(IMAGES) % 3, {}
    (node,) = compose_nodes("pretrain", "optimizer")
    training = Training(**TRAINING | {"steps": STEPS, "batch_size": BATCH, "keep_every": 6, "gradient_clip": 1.0})
    for name in RESUMED:
        task, steps = task_named(name), list[int]()

        def stop(step: int, total: int, before: Any = task.before_step, steps: list[int] = steps) -> None:
            steps.append(step)
            if step == end:
                raise InterruptedError
            before(step, total)

        task.before_step = stop  # type: ignore[method-assign]
        run = Run(Path(f"{place}.{rank}/{name}"), "pretrain", OmegaConf.create({"logger": []}), {}, phase > 0)
        optimizer = build_optimizer(node, task, training.learning_rate)
        state = State(run, task, optimizer, device, {}, None)
        with suppress(InterruptedError):
            fit(task, Batches(pieces, labels, BATCH, STEPS, 0, device), optimizer, training, device, state, dict)
        run.close("interrupted")
        assert steps[0] == (phases[phase - 1][1] if phase else 0)
        weights[name] = task.state_dict()
    torch.save(weights, f"{place}.{rank}.pt")


@pytest.mark.slow
def test_a_training_resumed_in_other_numbers_of_processes_is_that_of_one(pieces: Tensor, tmp_path: Path) -> None:
    images, found = pieces[torch.arange(IMAGES) % len(pieces)].mul(255).byte(), []
    for phases in (((1, STEPS),), PHASES):
        place = str(tmp_path / str(len(phases)))
        for phase, (count, _) in enumerate(phases):
            for rank in range(1, count if phase else 0):
                shutil.copytree(f"{place}.0", f"{place}.{rank}", dirs_exist_ok=True)
            started = [
                spawn(train_in_phases, r, phase, phases, images, place, err=f"{place}.err") for r in range(count)
            ]
            assert [ended(p) for p in started] == [0] * count, Path(f"{place}.err").read_text()
        found.append(torch.load(f"{place}.0.pt"))
    one, several = found
    for name in RESUMED:
        for key, value in one[name].items():
            assert torch.allclose(value.double(), several[name][key].double(), rtol=1e-7, atol=1e-9), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PRETEXT, "finetuning"])
def test_in_single_precision_the_first_step_is_the_same(name: str, trained: Any) -> None:
    (one,), (two,) = (trained(count, False)[0][name][0] for count in (1, 2))
    assert two == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_one_process_has_the_whole_batch() -> None:
    assert (processes.count(), processes.rank(), processes.share(7), processes.sizes(7)) == (1, 0, slice(0, 7), [7])
    assert processes.weight() == 1.0


@pytest.mark.parametrize("n", [4, 7, 128, 130])
def test_shares_cover_the_batch_and_differ_by_one_image_at_most(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(range(n)[processes.share(n)])
    assert [i for share in shares for i in share] == list(range(n))
    assert [len(share) for share in shares] == processes.sizes(n)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_random_numbers_of_a_share_are_those_of_the_global_batch() -> None:
    whole, shares = Rng(generator(3)), [Rng(generator(3), 10, s) for s in (slice(0, 3), slice(3, 10))]
    n = [3, 7]
    for draw in (
        lambda r, k: r.rand(k, 4),
        lambda r, k: r.randn(2, k, dim=1),
        lambda r, k: r.copy().randint(9, 5, k, 2, dim=1),
        lambda r, k: r.randint(9, k),
    ):
        dim = 1 if draw(whole.copy(), 10).shape[0] in (2, 5) else 0
        assert torch.equal(draw(whole, 10), torch.cat([draw(r, k) for r, k in zip(shares, n, strict=True)], dim))
    with pytest.raises(ValueError, match=r"numbers for 10 rows along dim=0, where this process has 3 samples"):
        shares[0].rand(10)


# Commands

FINETUNE = ("finetune", "backbone=smallcnn", "init=scratch", "mode=finetune", "labels_per_class=3")
SHORT = (*DIGITS, "train.steps=6", "train.evaluations=2", "train.log_every=1")


def printed(rank: int) -> str:
    return Path(f"output{rank}").read_text()


def losses(run: Path) -> list[float]:
    return [r["train/loss"] for r in metric_rows(str(run)) if "train/loss" in r]


@pytest.mark.parametrize("command", [("pretrain",), pytest.param(FINETUNE, marks=pytest.mark.slow)])
def test_two_processes_write_one_run_with_the_numbers_of_one(command: tuple[str, ...], cli: Cli) -> None:
    given = tuple(s for s in SHORT if command[0] == "pretrain" or "evaluations" not in s)
    assert cli(*command, *given).code == 0
    assert [ended(p) for p in start_several(2, *command, *given)] == [0, 0], printed(0)
    one, two = runs(command[0])
    assert (summary(one)["processes"], summary(two)["processes"]) == (1, 2)
    assert summary(two)["status"] == "finished"
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-5)
    assert losses(two) == pytest.approx(losses(one), rel=0.02)
    assert {p.name for p in two.iterdir() if "events" not in p.name} == {
        p.name for p in one.iterdir() if "events" not in p.name
    }
    assert printed(1) == ""
    assert printed(0).count("Finished in") == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_two_processes_compile_their_steps(cli: Cli) -> None:
    for compiled in ("null", "default"):
        both = start_several(2, "pretrain", *SHORT, f"device.compile={compiled}")
        assert [ended(p) for p in both] == [0, 0], printed(0)
    eager, compiled_run = runs("pretrain")
    assert losses(compiled_run) == pytest.approx(losses(eager), rel=1e-2)


class Overflows(Slope):
    """The gradient of the second process overflows in the second step."""

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        loss = super().forward(batch, rng)["loss"]
        return {"loss": loss * (float("inf") if processes.rank() == 1 and self.step == 1 else 1.0)}

    def before_step(self, step: int, total: int) -> None:
        self.step = step


def overflow(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}.store", rank=rank, world_size=2)
    on, task, rows = cpu(precision="fp32"), Overflows(), []
    on.use("fp16", "channels_last")  # which a CPU supports, slowly
    optimizer = build_optimizer(PLAIN_SGD, task, 0.01)
    for step in Batches(torch.zeros(16, 3, 8, 8, dtype=torch.uint8), None, 8, 4, 0, on).after(0):
        before = task.moved()
        train_step(task, step, 4, optimizer, on, 1.0)
        rows.append((task.moved() != before, on.scaler.get_scale()))
    torch.save((rows, task.state_dict()), f"{place}.{rank}")


def test_an_overflow_in_one_process_skips_the_step_in_all(tmp_path: Path) -> None:
    place = str(tmp_path / "overflow")
    both = [spawn(overflow, r, place, err=f"{place}.{r}.err") for r in range(2)]
    assert [ended(p) for p in both] == [0, 0], Path(f"{place}.0.err").read_text()
    (rows, weights), (others, same) = (torch.load(f"{place}.{r}") for r in range(2))
    assert rows == others == [(True, 65536), (False, 32768), (True, 32768), (True, 32768)]
    assert all(torch.equal(weights[k], same[k]) for k in weights)


class Full(Slope):
    """Each process holds 10 images."""

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        if len(batch["images"]) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(batch, rng)


def fill(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}.store", rank=rank, world_size=2)
    on, task = cpu(precision="fp32"), Full()
    optimizer = build_optimizer(PLAIN_SGD, task, 0.01)
    step = next(Batches(torch.zeros(64, 3, 8, 8, dtype=torch.uint8), None, 64, 4, 0, on).after(0))
    try:
        step_within_memory(task, step, 4, optimizer, on, 1.0)
    except UserError as error:
        Path(f"{place}.{rank}").write_text(str(error))


def test_full_memory_in_several_processes_names_the_batch_of_all(tmp_path: Path) -> None:
    place = str(tmp_path / "full")
    both = [spawn(fill, r, place, err=f"{place}.{r}.err") for r in range(2)]
    assert [ended(p) for p in both] == [0, 0], Path(f"{place}.0.err").read_text()
    for rank in range(2):
        message = Path(f"{place}.{rank}").read_text()
        assert message == ("out of memory with batches of 64 images: about 20 fit, as measured: train.batch_size=20")


def test_after_an_error_on_a_gpu_a_process_ends_without_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would wait for the others. Where all stop together, the group is left."""
    ended: list[Any] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append("left"))
    monkeypatch.setattr(os, "_exit", ended.append)
    for on_gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda on_gpu=on_gpu: on_gpu)
        for error in (None, SystemExit(143), SystemExit(1), ValueError("x")):
            with suppress(SystemExit, ValueError):
                try:
                    if error:
                        raise error
                finally:
                    processes.end()
    assert [e for e in ended if e != "left"] == [1, 1]
    assert ended[:2] == ended[-4:-2] == ["left", "left"]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(cli: Cli) -> None:
    assert [ended(p) for p in start_several(2, "pretrain", *SHORT)] == [0, 0]
    assert cli("pretrain", "resume=latest", "train.steps=8").code == 0
    assert [ended(p) for p in start_several(3, "pretrain", "resume=latest", "train.steps=10")] == [0, 0, 0], printed(0)
    (run,) = runs("pretrain")
    assert [r["step"] for r in metric_rows(str(run)) if "train/loss" in r] == list(range(1, 11))
    assert checkpoint.load(run / LAST)["step"] == 10
    assert summary(run)["processes"] == 3


LONG = ("pretrain", *DIGITS, "train.steps=4000", "train.evaluations=1", "train.log_every=1", "train.save_minutes=0.001")


def started(number: int = 1) -> Path:
    """Wait for the first steps of the last of so many runs."""
    for _ in range(600):
        found = runs("pretrain") if Path("outputs/pretrain").exists() else []
        if len(found) == number and (found[-1] / LAST).exists() and len(losses(found[-1])) > 3:
            return found[-1]
        time.sleep(0.1)
    raise AssertionError(printed(0))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(rank: int, cli: Cli) -> None:
    both = start_several(2, *LONG)
    run = started()
    os.kill(both[rank].pid or 0, signal.SIGTERM)
    assert [ended(p) for p in both] == [143, 143]
    assert summary(run)["status"] == "interrupted"
    assert f"Stopped by SIGTERM. Resume with: sslrun pretrain resume={run}" in printed(0)
    steps = checkpoint.load(run / LAST)["step"]
    assert cli("pretrain", "resume=latest", f"train.steps={steps + 2}").code == 0


@pytest.mark.slow
def test_where_another_process_is_killed_the_last_whole_step_is_saved(cli: Cli) -> None:
    both = start_several(2, *(o for o in LONG if "save_minutes" not in o))
    run = started()
    os.kill(both[1].pid or 0, signal.SIGKILL)
    assert [ended(p) for p in both] == [1, -signal.SIGKILL]
    step = checkpoint.load(run / LAST)["step"]
    assert step >= len(losses(run)) > 3
    assert f"another process has ended, or did not answer; the state after step {step} is saved. Go on" in printed(0)
    assert f"resume={run}" in printed(0)
    assert cli("pretrain", "resume=latest", f"train.steps={step + 2}").code == 0
    assert losses(run)[-1] > 0


@pytest.mark.slow
def test_where_the_first_process_is_killed_another_one_says_how_to_go_on(cli: Cli) -> None:
    both = start_several(2, *LONG)
    run = started()
    os.kill(both[0].pid or 0, signal.SIGKILL)
    assert [ended(p) for p in both] == [-signal.SIGKILL, 1]
    assert "process 1: sslrun: another process has ended, or did not answer; go on from the last" in printed(1)
    assert f"checkpoint: resume={run}" in printed(1)
    step = checkpoint.load(run / LAST)["step"]
    assert cli("pretrain", "resume=latest", f"train.steps={step + 1}").code == 0


def run_impatiently(*arguments: str) -> int | None:
    processes.TIME_LIMIT = datetime.timedelta(seconds=8)
    return run_here(*arguments)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_after_the_time_limit(cli: Cli) -> None:
    both = start_several(2, *LONG, function=run_impatiently)
    run = started()
    os.kill(both[1].pid or 0, signal.SIGSTOP)
    assert ended(both[0]) == 1
    os.kill(both[1].pid or 0, signal.SIGKILL)
    ended(both[1])
    step = checkpoint.load(run / LAST)["step"]
    assert f"another process has ended, or did not answer; the state after step {step} is saved" in printed(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", *DIGITS, "pretext=moco", "pretext.queue=500"), "sslrun: pretext.queue=500 is longer than"),
        (("pretrain", *DIGITS, "pretext=mae"), "sslrun: pretext=mae: no such pretext; did you mean masked?"),
        (("evaluate",), "sslrun: sslrun evaluate runs in one process: start it without torchrun"),
        (("pretrain", "-m", "seed=1,2"), "sslrun: a sweep runs in one process; remove -m, or"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_of_the_first_process(arguments: tuple[str, ...], message: str) -> None:
    assert [ended(p) for p in start_several(2, *arguments)] == [1, 1]
    assert [line for line in printed(0).splitlines() if line.startswith("sslrun: ")] == [printed(0).splitlines()[-1]]
    assert message in printed(0)
    assert printed(1) == ""


@pytest.mark.slow
def test_more_processes_than_images_in_a_batch_are_refused() -> None:
    five = start_several(5, "pretrain", *DIGITS, "train.batch_size=4")
    assert [ended(p) for p in five] == [1] * 5
    assert "sslrun: 5 processes need batches of at least as many images, found 4: start fewer, or" in printed(0)


@pytest.mark.slow
def test_a_process_with_other_settings_is_named() -> None:
    assert [ended(p) for p in start_several(3, "pretrain", *SHORT, seed="7")] == [1, 1, 1]
    assert "sslrun: the processes must have the same config, and process 2 of 0 to 2 has another: " in printed(0)


def collect(rank: int, place: str) -> None:
    """What single functions do in three processes, each with another value."""
    dist.init_process_group("gloo", init_method=f"file://{place}.store", rank=rank, world_size=3)
    calls: list[int] = []

    def alone() -> int:
        calls.append(rank)
        return processes.count()

    assert processes.from_first(alone) == 1
    assert calls == ([0] if rank == 0 else [])
    assert processes.largest(rank, -rank) == [2, 0]
    with pytest.raises(UserError, match="must have the same code, and process 2 of 0 to 2 has another: b instead of a"):
        processes.refuse_differences(code="aab"[rank], data="x")
    with processes.alone():
        assert processes.count() == 1
    processes.begin(7)  # shares of 2, 2 and 3
    assert processes.weight() == [2, 2, 3][rank] / 7
    own = torch.arange(14).view(2, 7)[:, processes.share(7)]  # of two views
    assert torch.equal(processes.gathered(own.flatten(), views=2), torch.arange(14))

    layers = [nn.Linear(1, 1) for _ in range(3)]
    layers[0].weight.grad = torch.full((1, 1), 1.0)
    if rank == 1:
        layers[1].weight.grad = torch.full((1, 1), 5.0)
    processes.sum_gradients(nn.ModuleList(layers))
    assert [None if m.weight.grad is None else m.weight.grad.item() for m in layers] == [3, 5, None]

    torch.manual_seed(rank)
    other = nn.BatchNorm1d(4)
    nn.init.normal_(other.weight)
    processes.broadcast(other)
    assert processes.from_first(lambda: other.weight.tolist()) == other.weight.tolist()

    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match=r"the batch norm of this network .Own. cannot have the statistics of several"):
        synchronize(nn.Sequential(nn.BatchNorm2d(3), Own(3)))


def test_what_the_processes_tell_each_other(tmp_path: Path) -> None:
    three = [spawn(collect, rank, str(tmp_path / "x"), err=f"{rank}.err") for rank in range(3)]
    assert [ended(p) for p in three] == [0, 0, 0], Path("0.err").read_text()


def test_a_port_in_use_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        answer = cli("pretrain", *DIGITS, "train.steps=1")
    assert answer.code == 1
    assert answer.lines()[-1] == (
        f"sslrun: the 2 processes cannot meet at 127.0.0.1:{port}: address already in use; start them with torchrun, "
        "and with --master-port=PORT if a port is in use"
    )
    monkeypatch.delenv("MASTER_PORT")
    answer = cli("pretrain", *DIGITS, "train.steps=1")
    assert answer.lines()[-1].startswith("sslrun: the 2 processes cannot meet at 127.0.0.1:?: Error initializing")


@pytest.mark.slow
def test_torchrun_itself_starts_stops_and_reports(cli: Cli) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "sslrun"]
    done = subprocess.run([*torchrun, "pretrain", *SHORT], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Finished in") == 1
    wrong = subprocess.run([*torchrun, "evaluate"], check=False, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.count("sslrun: sslrun evaluate runs in one process") == 1
    with Path("output0").open("w") as file:
        running = subprocess.Popen([*torchrun, *LONG], stderr=file)
        run = started(2)
        running.terminate()
        assert running.wait() != 0
    assert summary(run)["status"] == "interrupted"
    assert cli("pretrain", "resume=latest", f"train.steps={len(losses(run)) + 2}").code == 0
