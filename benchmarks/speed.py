"""How close a training step comes to the bare network, and whether autotuning chooses the fastest mode.

    python benchmarks/speed.py overhead [--quick] [--only TASK ...]  a pretraining step against its networks alone
    python benchmarks/speed.py modes [--quick]                       every precision and memory format, also compiled

Both sides of a ratio run alternately in one process, so that other load affects both.
"""

import argparse
import copy
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from sslrun.augment import Rng, generator
from sslrun.base.paths import CONF
from sslrun.config.build import build
from sslrun.config.compose import compose_config
from sslrun.data.images import Images, digests
from sslrun.device import Device
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.run.log import read_metrics
from sslrun.run.run import Run
from sslrun.tasks.pretext.masked import Masked
from sslrun.tasks.task import Task, build_task
from sslrun.training.autotune import EQUAL, Candidate, choose, measure
from sslrun.training.batches import Batches
from sslrun.training.loop import fit
from sslrun.training.optimizers import build_optimizer
from sslrun.training.state import State

PRETEXTS = sorted({p.stem for p in (CONF / "pretext").glob("*.yaml")} - {"distill"})  # which needs published weights
BACKBONES, SIZES = ("smallcnn", "resnet18", "mobilenetv2"), (32, 64)
FIRST = ("simclr", "rotation", "jigsaw")  # measured with every backbone and size; the others with two networks at 32 px
FEW = ((32, "smallcnn"), (32, "resnet18"))
Call = tuple[Callable[[Tensor], Any], Tensor, bool]
STEP = 0.5  # seconds that a step should take on a CPU; a whole batch takes longer, and shows less overhead
SMALL_SET = 3000  # images; the cost of a checkpoint every fifth epoch is spread over five times as many


def config_of(pretext: str, backbone: str, size: int, *more: str) -> dict[str, Any]:
    """Return the config of `sslrun pretrain` with these choices."""
    overrides = [f"pretext={pretext}", f"backbone={backbone}", f"dataset.image_size={size}", *more]
    return OmegaConf.to_container(compose_config("pretrain", overrides, None), resolve=True)  # type: ignore[return-value]


def noise(n: int, size: int) -> Images:
    """Return images of noise, uint8 in memory."""
    array = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return Images([torch.from_numpy(array)], digests(array))


def bare(task: Task, images: Tensor, device: Device) -> Callable[[], None]:
    """Return a function that runs all networks of a task's step forward and backward, on inputs that are ready.

    The inputs are those of one step, recorded. What a step runs without gradients, such as a teacher, runs without.
    """
    calls: list[Call] = []
    with recorded(task, calls), device.autocast():
        task.train()
        task({"images": images, "rows": torch.arange(len(images))}, Rng(generator(0)))

    def step() -> None:
        with device.autocast():
            total = torch.zeros((), device=device.torch)
            for network, x, gradient in calls:
                with torch.set_grad_enabled(gradient):
                    out = network(x)
                    if gradient:
                        total = total + (out[-1] if isinstance(out, list) else out).float().square().mean()
        total.backward()
        task.zero_grad(set_to_none=True)

    return step


@contextmanager
def recorded(task: Task, calls: list[Call]) -> Iterator[None]:
    """Record the calls of a task's networks: each with its input, and whether it has gradients."""
    depth = [0]

    def enter(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not depth[0]:
            ready = given[0].detach().clone()
            ready.requires_grad_(given[0].requires_grad and torch.is_grad_enabled())
            calls.append((module, ready, torch.is_grad_enabled()))
        depth[0] += 1

    def leave(*_: Any) -> None:
        depth[0] -= 1

    if isinstance(task, Masked):  # whose network is sparse: convolutions and the decoder as one
        predicted = task.predicted

        def record(images: Tensor, visible: Tensor) -> Tensor:
            calls.append((lambda x: predicted(x, visible), images.clone(), True))
            return predicted(images, visible)

        task.predicted = record  # type: ignore[method-assign]
        yield
        del task.predicted
        return
    networks = dict.fromkeys(networks_of(task))
    handles = [m.register_forward_pre_hook(enter) for m in networks]
    handles += [m.register_forward_hook(leave) for m in networks]
    yield
    for handle in handles:
        handle.remove()


def networks_of(task: nn.Module) -> Iterator[nn.Module]:
    """Yield the networks of a task: its children, those of lists and of tasks inside it, and the encoder's backbone."""
    for child in task.children():
        if isinstance(child, Task | nn.ModuleList):
            yield from networks_of(child)
        else:
            yield child
            if isinstance(child, Encoder):
                yield child.backbone


def overhead(quick: bool, only: Sequence[str] = ()) -> None:
    """Print the table of floor 1, of all tasks or only these."""
    print("### 1. No overhead: a whole pretraining step against the network alone\n")
    print("Images/s of the data set (each is seen as 1 or 2 views, 4 copies, or 4 to 9 tiles). `alone` is forward")
    print(
        "and backward of all networks of the step on ready inputs, a teacher forward; `step` is reading, views, loss,"
    )
    print(
        "optimizer, logging every step (by default every tenth), and its share of the checkpoints. The two alternate,"
    )
    print(f"step by step; medians of {5 if quick else 24} pairs.\n")
    print("| pretext | backbone | px | batch | mode | alone | step | ratio |\n|---|---|---|---|---|---|---|---|")
    rows = []
    every = itertools.product(SIZES, BACKBONES, PRETEXTS)
    for size, backbone, pretext in every:
        if pretext not in (only or PRETEXTS) or (pretext not in FIRST and (size, backbone) not in FEW):
            continue
        share, rate, ceiling, mode, n = _overhead(pretext, backbone, size, quick)
        rows.append(share)
        line = f"| {pretext} | {backbone} | {size} | {n} | {mode} | {ceiling:.0f} | {rate:.0f} | {share:.3f} |"
        print(line, flush=True)
        print(line, file=sys.stderr)
    print(f"\nLowest ratio {min(rows):.3f}, median {statistics.median(rows):.3f}; the floor is 0.93.\n")


def _overhead(pretext: str, backbone: str, size: int, quick: bool) -> tuple[float, float, float, str, int]:
    """Train with `fit`, running the bare network on the same batch after every step; return the median ratio."""
    config = config_of(pretext, backbone, size)
    device: Device = build(config["device"])
    device.claim()
    torch.manual_seed(0)
    encoder = build_encoder(config["backbone"], size, [0.5] * 3, [0.25] * 3)
    choose(device, config["backbone"], size, config["train"]["batch_size"])
    task: Task = build_task(config["pretext"], encoder, size)
    task.set_sizes(8 * 256, 8)
    device.put(task)
    probe = bare(task, device.floats(noise(8, size)[:]), device)
    probe()
    began = time.perf_counter()
    probe()
    device.wait()
    n = (
        256
        if device.torch.type == "cuda"
        else min(256, max(16, int(8 * STEP / (time.perf_counter() - began)) // 16 * 16))
    )
    on_device = noise(8 * n, size).on(device.torch)  # whole batches, of the size used by `alone`
    alone = bare(task, device.floats(on_device[:n]), device)
    spent: list[float] = []
    own = task.after_step

    def after_step(step: int, total: int) -> None:
        own(step, total)
        device.wait()
        began = time.perf_counter()
        alone()
        device.wait()
        spent.append(time.perf_counter() - began)

    task.after_step = after_step  # type: ignore[method-assign]
    pairs = 5 if quick else 24
    train = {**config["train"], "epochs": None, "steps": pairs + 3, "batch_size": n, "evaluations": 1, "log_every": 1}
    keep = {"stage": "pretrain", "config": config}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), "pretrain", OmegaConf.create({}), {})
        began = time.perf_counter()
        batches = Batches(on_device, None, n, pairs + 3, 0, device)
        training = build(train)
        optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)
        state = State(run, task, optimizer, device, keep, "x")
        fit(task, batches, optimizer, training, device, state, dict)
        whole = time.perf_counter() - began
        both = [n / row["images_per_second"] for row in read_metrics(run.directory) if "images_per_second" in row]
        run.close("finished")
    checkpoint = max(0.0, whole - sum(both)) / 2  # one before the first step, one after the last
    steps = [b - a + checkpoint * n / (5 * SMALL_SET) for a, b in zip(spent, both, strict=True)][3:]
    spent = spent[3:]  # the first steps allocate the optimizer's state and fill the caches
    share = statistics.median(a / b for a, b in zip(spent, steps, strict=True))
    mode = f"{device.precision} {device.memory_format}"
    return share, n / statistics.median(steps), n / statistics.median(spent), mode, n


def every_mode(quick: bool) -> None:
    """Print the table of floor 2."""
    print("### 2. Autotuning: the mode that `device.precision=auto` chose against the fastest\n")
    print("Images/s of forward and backward, best of 5 rounds (3 in quick mode). `compiled`: by torch.compile, its own")
    print("time not counted; in quick mode of the chosen mode alone, at 32 px. `cost` is the time of autotuning,")
    print("spent once per network and machine.\n")
    head = ("fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last")
    print("| backbone | px | batch | " + " | ".join(head) + " | compiled, best | chosen | ratio | cost |")
    print("|---|---|---|" + "---|" * 8)
    ratios = []
    for backbone, size in itertools.product(BACKBONES, SIZES):
        row, ratio = _modes(backbone, size, quick)
        ratios.append(ratio)
        print(row, flush=True)
        print(row, file=sys.stderr)
    print(f"\nLowest ratio {min(ratios):.3f}; the floor is 0.97, and 5 s for the cost.\n")


def _modes(backbone: str, size: int, quick: bool) -> tuple[str, float]:
    config = config_of("simclr", backbone, size)
    device: Device = build(config["device"])
    device.claim()
    torch.manual_seed(0)
    encoder = build_encoder(config["backbone"], size, [0.5] * 3, [0.25] * 3)
    options = list(itertools.product(device.precisions, device.formats))
    usual = device.precision, device.memory_format
    began = time.perf_counter()
    rates = measure(device, config["backbone"], size, config["train"]["batch_size"], options)
    cost = time.perf_counter() - began
    rates = rates or {" ".join(m): float(m == usual) for m in options}  # too busy to measure
    chosen = next(m for m in options if rates[" ".join(m)] >= EQUAL * max(rates.values()))
    n = min(256, max(16, int(max(rates.values()) * 0.5) // 8 * 8))
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    runners: dict[str, tuple[Candidate, nn.Module]] = {}
    for mode in options:
        runners[" ".join(mode)] = (mode, _placed(device, encoder, mode))
    compiled = not quick or size == 32
    if compiled:
        for mode in [chosen] if quick else options:
            torch._dynamo.reset()
            network = _placed(device, encoder, mode)
            network.compile()
            runners[f"{mode[0]} {mode[1]} compiled"] = (mode, network)
    best = dict.fromkeys(runners, 0.0)
    for round_ in range(5 if quick else 7):
        for name, (mode, network) in runners.items():
            device.use(*mode)
            began = time.perf_counter()
            with device.autocast():
                features = network(device.floats(images))
            features.float().square().mean().backward()
            network.zero_grad(set_to_none=True)
            device.wait()
            if round_ > 1:  # the first two may compile
                best[name] = max(best[name], n / (time.perf_counter() - began))
    ratio = best[" ".join(chosen)] / max(best.values())
    cells = [f"{best[f'{p} {f}']:.0f}" if f"{p} {f}" in best else "" for p, f in
             itertools.product(("fp32", "bf16"), ("contiguous", "channels_last"))]  # fmt: skip
    fastest = max((v, k) for k, v in best.items() if k.endswith("compiled")) if compiled else (0.0, "")
    cells += [f"{fastest[0]:.0f} ({fastest[1].split()[0]})" if compiled else "not run"]
    return (
        f"| {backbone} | {size} | {n} | {' | '.join(cells)} | {' '.join(chosen)} | {ratio:.3f} | {cost:.1f} s |",
        ratio,
    )


def _placed(device: Device, encoder: nn.Module, mode: Candidate) -> nn.Module:
    device.use(*mode)
    return device.put(copy.deepcopy(encoder)).train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "modes"])
    parser.add_argument("--quick", action="store_true", help="fewer rounds; fewer compilations")
    parser.add_argument("--only", nargs="+", default=[], help="overhead of these tasks")
    args = parser.parse_args()
    if args.what == "overhead":
        overhead(args.quick, args.only)
    else:
        every_mode(args.quick)
