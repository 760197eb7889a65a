"""What the tests of several rooms share: running commands, small networks and data, and reading what runs wrote.

`start` and its like run a command as a process of its own, forked from a server that has imported torch already:
that saves five seconds each.
"""

import csv
import http.server
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.cli.app import main
from sslrun.config.compose import compose_config
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset, load_train, split_validation
from sslrun.device import Device
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.report import training as figures
from sslrun.run import checkpoint
from sslrun.run.find import BEST, LAST
from sslrun.run.run import Run
from sslrun.study.results import Row
from sslrun.tasks.task import Task, build_task
from sslrun.training import autotune, estimate, initial, jobs
from sslrun.training import settings as training_settings
from sslrun.training.batches import Batches
from sslrun.training.loop import fit
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training
from sslrun.training.state import State

REPOSITORY = Path(__file__).parent.parent
QUICK = ("device=cpu", "device.precision=fp32", "device.memory_format=channels_last")
TINY = ("backbone.widths=[8,16]", "train.batch_size=64", *QUICK)  # a network that trains in a second
SMALL = ("backbone.widths=[8,16]", "batch_size=32", *QUICK)  # the same for `sslrun data check`


def one_core() -> int:
    """Return 1, so that validation trainings run in this process: starting others takes seconds."""
    return 1


def no_weights(backbone: Node) -> None:
    """Return no published weights for init=auto: a comparison with those of a package, at 224 px, takes a minute."""


QUICKER: tuple[tuple[ModuleType, str, Any], ...] = (  # for commands in this process and in forked ones
    (autotune, "SECONDS", 0.5),  # any mode will do
    (estimate, "SECONDS", 0.1),  # rough estimates will do, too
    (figures, "VIEWS_SHOWN", 2),
    (training_settings, "EVALUATION_SHARE", 1e9),  # trainings of a few steps are evaluated as often as requested
    (jobs, "cores", one_core),
    (initial, "published_here", no_weights),
)
NO_MAP = ("map=0", "projector=0", *QUICK)  # `sslrun embed` without figures
SSLRUN = f"{sys.executable} -m sslrun"  # in a shell
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    def lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]


Cli = Callable[..., Answer]


def run_here(*arguments: str) -> int:
    """Run a command in this process, which saves the seconds that importing torch takes; return the exit code."""
    before = sys.argv
    sys.argv = ["sslrun", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


def process(*arguments: str, **settings: str) -> Answer:
    """Run a command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "sslrun", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
        timeout=300,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def row(initialization: str, mode: str, **known: Any) -> Row:
    """Return what is compared of a classifier that there is not: 30 labels, and what is known of it."""
    usual: dict[str, Any] = {
        "pretrain_seed": None, "source": f"{initialization} {known.get('pretrain_seed')}",
        "labels": 30, "labels_train": 30, "labels_val": 0, "label_budget": "labels=30",
        "seed": 0, "subset": "a",
        "test_accuracy": 0.5, "test_f1_macro": 0.5, "val_accuracy": None, "val_f1_macro": None, "val_loss": None,
        "chosen": None, "setting": "", "balance": "none",
        "dataset": "digits", "backbone": "smallcnn", "image_size": 32, "stem": None, "seconds": 1.0,
        "ms_per_image": None, "megabytes": None, "minutes": None,
        "finetuned": f"{initialization} {mode}", "evaluated": "",
    }  # fmt: skip
    return Row(initialization=initialization, mode=mode, **{**usual, **known})


class Served:
    """A local HTTP server over a folder, with faults on request.

    Attributes:
        folder: what is served.
        address: without a slash at the end.
        requests: the path and Range of every request.
        cut: answers end after so many bytes, each popped once; None is a whole answer.
        ranges: whether Range is understood.
        busy: how many requests are answered with 503 first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranges, self.busy = folder, True, 0
        self.requests: list[tuple[str, str | None]] = []
        self.cut: list[int | None] = []
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = served.folder / self.path.lstrip("/")
                wanted = self.headers.get("Range")
                served.requests.append((self.path, wanted))
                if served.busy:
                    served.busy -= 1
                    self.send_error(503)
                    return
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                first = int(wanted.split("=")[1].rstrip("-")) if wanted and served.ranges else 0
                if first and first >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(data) - first))
                self.end_headers()
                end = served.cut.pop(0) if served.cut else None
                self.wfile.write(data[first:] if end is None else data[first : first + end])

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


def slow(values: Iterable[Any]) -> list[Any]:
    """Return values of a parametrized test that only `make test-all` runs."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def runs(stage: str) -> list[Path]:
    """Return the run directories of a stage, oldest first, without the parts of studies."""
    result = [p.parent for p in Path("outputs", stage).glob("**/summary.json")]
    return sorted(p for p in result if p.parent.name != "study_runs")


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


STORES: list[torch.distributed.TCPStore] = []  # of `start_several`
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["torch", "torchvision", "torch.utils.tensorboard", "matplotlib.figure", "sklearn.datasets", "sslrun.run.job",
     "sslrun.stages.pretrain", "sslrun.stages.finetune", "tests.helpers"]
)  # fmt: skip
DIGITS = ("dataset=digits", "dataset.max_images=120", "dataset.image_size=16", *TINY, "train.batch_size=32")
STEPS = 24  # 6 epochs of 4 batches
PRETRAIN = ("pretrain", *DIGITS, f"train.steps={STEPS}", "train.evaluations=3", "train.log_every=3")
FINETUNE = ("finetune", "mode=finetune", "init=scratch", "backbone=smallcnn", *PRETRAIN[1:])
SHORT = (*DIGITS, "train.steps=8", "train.evaluations=2")
OFTEN = ("train.save_minutes=0.00001",)  # after every step


def _call(
    function: Callable[..., int | None], arguments: Sequence[Any], environment: dict[str, str], places: Sequence[str]
) -> None:
    """Call a function in this new process, in a folder, with standard output and error in two files."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for module, name, value in QUICKER:
        setattr(module, name, value)
    folder, *outputs = places
    os.chdir(folder)
    for stream, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    code = function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def spawn(
    function: Callable[..., int | None], *arguments: Any, folder: str = ".", out: str = "output", err: str = "output"
) -> ForkServerProcess:
    """Call a function in a process of its own; what it prints goes to two files, or one."""
    Path(folder).mkdir(exist_ok=True)
    places = [str(Path(p).resolve()) for p in (folder, out, err)]
    process = FORKED.Process(target=_call, args=(function, arguments, dict(os.environ), places))
    process.start()
    return process


def start_several(
    count: int, *arguments: str, function: Callable[..., int | None] | None = None, **of_last: str
) -> list[ForkServerProcess]:
    """Start a command in several processes, as torchrun does; what they print goes to the files `output0` and so on.

    Args:
        function: runs the command.
        of_last: overrides of the last process alone.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started, before = [], dict(os.environ)
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        more = [f"{k}={v}" for k, v in of_last.items()] if rank == count - 1 else []
        started.append(spawn(function or run_here, *arguments, *more, out=f"output{rank}", err=f"output{rank}"))
    os.environ.clear()
    os.environ.update(before)
    STORES.append(store)  # which ends with this process
    return started


def start(*arguments: str, folder: str = ".") -> ForkServerProcess:
    """Start a command; what it prints goes to the file `output`."""
    Path("output").write_text("")
    return spawn(run_here, *arguments, folder=folder)


def stopping(function: Callable[..., Any], after: int, calls: list[int]) -> Callable[..., Any]:
    """Return the function, which sends SIGTERM to this process after so many calls."""

    def call(*given: Any) -> Any:
        result = function(*given)
        calls.append(1)
        if len(calls) == after + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    return call


def ended(process: ForkServerProcess) -> int:
    """Wait for a process; return its exit code, negative after a signal that it did not handle."""
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def run_forked(*arguments: str, folder: str = ".") -> str:
    """Run a command to its end; return what it printed."""
    code, answer = ended(start(*arguments, folder=folder)), Path("output").read_text()
    assert code == 0, answer
    return answer


def wait_for(process: ForkServerProcess, there: Callable[[], bool]) -> None:
    """Wait until something is so, while a process works on it."""
    while not there():
        assert process.is_alive(), Path("output").read_text()
        time.sleep(0.002)


def in_steps(where: str) -> bool:
    """Tell whether a run has logged more than the state before its first step."""
    return any("train/loss" in p.read_text() for p in Path("outputs").glob(f"{where}/metrics.jsonl"))


def only_run(folder: str = ".", stage: str = "pretrain") -> Path:
    """Return the only run of a stage."""
    (result,) = [p.parent for p in Path(folder, "outputs", stage).glob("*/config.yaml")]
    return result


def logged(place: Path) -> list[dict[str, float]]:
    """Return the metrics without the only number that may differ."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def same(a: Any, b: Any) -> bool:
    """Tell whether two checkpoints hold the same, to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or a != a


def whole(place: Path) -> dict[str, dict[str, Any]]:
    """Return the last and the best checkpoint without the config, in which `resume` differs."""
    result = {n: checkpoint.load(place / n) for n in (LAST, BEST)}
    return {n: {k: v for k, v in content.items() if k != "config"} for n, content in result.items()}


def in_a_mount(options: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a small file system of its own at `disk`."""
    Path("disk").mkdir()
    mounted = f"mount -t tmpfs -o {options} none disk && {script}"
    unshare = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    return subprocess.run([*unshare, "sh", "-c", mounted], capture_output=True, text=True, timeout=120)


STUDY_DATA = ("dataset=digits", "dataset.max_images=300", "dataset.image_size=16", "backbone.widths=[8,16]", *QUICK)
STUDY_STEPS = (
    *("train.steps=4", "train.batch_size=32", "train.evaluations=1"),
    *("finetune.train.steps=4", "finetune.train.evaluations=1"),
)
SMALL_STUDY = (*STUDY_DATA, "equal_time=false", "search=[]", *STUDY_STEPS)
STUDY = ("compare", *SMALL_STUDY, "inits=[rotation,simclr]", "labels_per_class=[3]", "seeds=2")
STUDY_RUNS = 2 * (4 + 2 * 2)  # seeds x (scratch, frozen, two on pixels, two tasks in two modes)


def study_runs(stage: str) -> dict[str, int]:
    """Return the runs that studies made, with the time of their last change."""
    return {p.parent.name: p.stat().st_mtime_ns for p in Path("outputs", stage, "study_runs").glob("*/summary.json")}


def study_table(study: Path) -> list[dict[str, str]]:
    with (study / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


ADAMW = {"_target_": "sslrun.training.optimizers.adamw", "weight_decay": 0.05, "betas": [0.9, 0.999]}
SGD = {"_target_": "sslrun.training.optimizers.sgd", "weight_decay": 0.0, "momentum": 0.9, "nesterov": True}
CPU = Device(
    name="cpu", precision="fp32", memory_format="channels_last", compile=None, deterministic=False, threads=None
)


class Pixels(nn.Module):
    """A backbone that returns the images as its only map."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = [3]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


class MeanTask(Task):
    """Predicts the mean brightness of its images; remembers its batches."""

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


TRAINING: dict[str, Any] = {
    **{"epochs": None, "steps": 10, "batch_size": 8, "learning_rate": 0.01, "warmup_fraction": 0.1},
    **{"gradient_clip": None, "evaluations": 2, "log_every": 5, "save_minutes": 5, "keep_every": None},
}


def train(model: Task, images: Tensor, where: str, resumed: bool = False, seed: int = 0, **keys: Any) -> dict:
    evaluate, optimizer, labels = keys.pop("evaluate", dict), keys.pop("optimizer", ADAMW), keys.pop("labels", None)
    device, monitor = keys.pop("device", CPU), keys.pop("monitor", "val/accuracy")
    training = Training(**{**TRAINING, **keys})
    run = Run(Path(where), "pretrain", OmegaConf.create({"seed": seed}), {}, resumed)
    try:
        batches = Batches(images, labels, training.batch_size, training.total_steps(len(images)), seed, device)
        built = build_optimizer(optimizer, model, training.learning_rate)
        state = State(run, model, built, device, {}, monitor)
        return fit(model, batches, built, training, device, state, evaluate)
    finally:
        run.close("finished")


def metric_rows(where: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(where, "metrics.jsonl").read_text().splitlines()]


STRONG: dict[str, Any] = {
    "crop_scale": [0.2, 1.0],
    "crop_ratio": [0.75, 1.333],
    "degrees": 10.0,
    "horizontal_flip": True,
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "jitter_probability": 0.8,
    "grayscale": 0.2,
    "blur": 0.5,
    "probability": 1.0,
}
IDENTITY: dict[str, Any] = {
    **STRONG,
    "crop_scale": [1, 1],
    "degrees": 0,
    "horizontal_flip": False,
    "color_jitter": [0, 0, 0, 0],
    "grayscale": 0,
    "blur": 0,
}


def rng(seed: int = 0) -> Rng:
    return Rng(torch.Generator().manual_seed(seed))


def batch_of(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a batch of different images."""
    return {"images": images, "rows": torch.arange(len(images))}


def small_encoder(widths: tuple[int, ...] = (16, 32)) -> Encoder:
    torch.manual_seed(0)
    return Encoder(smallcnn(32, widths=list(widths)), [0.5] * 3, [0.25] * 3)


def node_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return the node of a pretext task with some changes."""
    config = compose_config("pretrain", [f"pretext={name}"], None)
    node: dict[str, Any] = OmegaConf.to_container(config.pretext, resolve=True)  # type: ignore[assignment]
    return {**node, **changes}


def make_task(name: str, **changes: Any) -> Task:
    task = build_task(node_of(name, **changes), small_encoder(), 32)
    task.set_sizes(100_000, 128)
    return task


BACKBONES: dict[str, dict[str, Any]] = {
    "smallcnn": {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [64, 128, 256, 512]},
    "resnet18": {"_target_": "sslrun.models.backbones.resnet18.resnet18", "stem": "auto"},
    "mobilenetv2": {"_target_": "sslrun.models.backbones.mobilenetv2.mobilenetv2", "stem": "auto"},
}


def encoder_of(name: str, image_size: int) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(BACKBONES[name], image_size, [0.5] * 3, [0.25] * 3).eval()


LEFT_OPEN: dict[str, Any] = {
    "precision": "auto", "memory_format": "auto", "compile": None, "deterministic": False, "threads": None,
}  # fmt: skip


def cpu(**keys: Any) -> Device:
    return Device(name="cpu", **{**LEFT_OPEN, **keys})


def source_node(name: str, root: Path | str | None, **more: Any) -> dict[str, Any]:
    target = f"sslrun.data.sources.{name}.{name}"
    return {"_target_": target, "root": root and str(root), "image_size": 16, "val_fraction": 0.2, **more}


def folder_node(root: Path | str, **more: Any) -> dict[str, Any]:
    target = "sslrun.data.sources.folder.folder"
    return {"_target_": target, "root": str(root), "image_size": 16, "val_fraction": 0.0, **more}


FUZZ = int(os.environ.get("SSLRUN_FUZZ", "1"))
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples * FUZZ,
        deadline=None,
        derandomize=FUZZ == 1,
        database=None,
        suppress_health_check=SUPPRESSED,
    )


Changes = list[tuple[float, int]]
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)
CUT = st.one_of(st.none(), st.floats(0, 1))  # the share of a file that is left


def changed(data: bytes, changes: Changes, part: float | None) -> bytes:
    """Set some bytes, given by their place from 0 to 1, and cut the file off."""
    out = bytearray(data)
    for place, value in changes:
        out[int(place * len(out))] = value
    return bytes(out if part is None else out[: int(part * len(out))])


def frames(
    top: Path | str, objects: int, each: int, seed: int, name: str = "{object}_{frame:02d}.png", first: int = 0
) -> None:
    """Write frames of made-up objects of two classes, 24 px: `top/cup/cup3_07.png`.

    All frames of an object have its own colors, by which it can be remembered; the class hardly shows.

    Args:
        objects, each: number of objects of a class, and of frames of an object.
        name: of a file, from `object`, `frame`, and `number`, which is counted over all frames of a class.
        first: number of the first object.
    """
    rng = np.random.default_rng(seed)
    for label, kind in enumerate(("bowl", "cup")):
        Path(top, kind).mkdir(parents=True)
        for i in range(objects):
            own = Image.fromarray(rng.integers(30, 220, (4, 4, 3)).astype(np.uint8)).resize((24, 24))
            base = np.asarray(own).astype(float)
            base[8:16, 8:16] += (12, 0, -12) if label else (-12, 0, 12)
            for k in range(each):
                image = (base + rng.normal(0, 2, base.shape)).clip(0, 255).astype(np.uint8)
                file = name.format(object=f"{kind}{first + i}", frame=k, number=i * each + k)
                path = Path(top, kind, file)
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(image).save(path)


def load_split(node: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """Return the training images and those for validation: a given val/, or `dataset.val_fraction` split off."""
    data, given = load_train(node)
    return (data, given) if given else split_validation(data, node)
