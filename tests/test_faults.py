"""Faults injected for real: processes that are killed or stopped, full and read-only disks, damaged files.

A run is a process of its own, forked from a server that has imported torch already: that saves five seconds each.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.models.weights import below
from sslrun.runs import checkpoint
from sslrun.runs.find import BEST, LAST, PREVIOUS, has_checkpoint
from tests.conftest import TINY, Cli, run_here

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["torch", "torchvision", "torch.utils.tensorboard", "matplotlib.figure", "sklearn.datasets", "sslrun.runs.job",
     "sslrun.stages.pretrain", "sslrun.stages.finetune", "tests.test_faults"]
)  # fmt: skip
DIGITS = ("dataset=digits", "dataset.max_images=120", "dataset.image_size=16", *TINY, "train.batch_size=32")
STEPS = 24  # 6 epochs of 4 batches
PRETRAIN = ("pretrain", *DIGITS, f"train.steps={STEPS}", "train.evaluations=3", "train.log_every=3")
FINETUNE = (
    "finetune",
    "mode=finetune",
    "init=scratch",
    "backbone=smallcnn",
    *DIGITS,
    f"train.steps={STEPS}",
    "train.evaluations=3",
    "train.log_every=3",
)
OFTEN = ("train.save_minutes=0.00001",)  # after every step


def _command(arguments: tuple[str, ...], folder: str, output: str) -> None:
    """Be a `sslrun` process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(folder)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = run_here(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(*arguments: str, folder: str = ".") -> ForkServerProcess:
    """Start a command; what it prints goes to the file `result`."""
    Path(folder).mkdir(exist_ok=True)
    Path("said").write_text("")
    process = FORKED.Process(target=_command, args=(arguments, folder, str(Path("said").resolve())))
    process.start()
    return process


def ended(process: ForkServerProcess) -> int:
    """Wait for a command; return its exit code, negative after a signal that it did not handle."""
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def run(*arguments: str, folder: str = ".") -> str:
    """Run a command to its end; return what it printed."""
    code, result = ended(start(*arguments, folder=folder)), Path("said").read_text()
    assert code == 0, result
    return result


def wait_for(process: ForkServerProcess | subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    """Wait until something is so, while a process works on it."""
    while not there():
        alive = process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
        assert alive, Path("said").read_text()
        time.sleep(0.002)


def in_steps(where: str) -> bool:
    """Tell whether a run has logged more than the state before its first step."""
    return any(len(p.read_text().splitlines()) > 1 for p in Path("outputs").glob(f"{where}/metrics.jsonl"))


def directory(folder: str = ".", stage: str = "pretrain") -> Path:
    """Return the only run of a stage."""
    (actual,) = [p.parent for p in Path(folder, "outputs", stage).glob("*/config.yaml")]
    return actual


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
    actual = {n: checkpoint.load(place / n) for n in (LAST, BEST)}
    return {n: {k: v for k, v in content.items() if k != "config"} for n, content in actual.items()}


# ---------------------------------------------------------------------------------------------------------- killed


def killed_until_done(kills: int, stage: tuple[str, ...], seed: int) -> None:
    """Kill runs at random moments, go on with each, and compare every one that ends with one that was left alone."""
    began = time.monotonic()
    run(*stage, *OFTEN, folder="straight")
    longest = time.monotonic() - began
    reference = directory("straight", stage[0])
    rng, done, n = random.Random(seed), 0, 0
    while done < kills:
        folder = f"broken{n}"
        n += 1
        arguments = (*stage, *OFTEN)
        while True:
            process = start(*arguments, folder=folder)
            process.join(rng.uniform(0.0, longest) if done < kills else 120)
            if process.exitcode is not None:
                assert process.exitcode == 0, Path("said").read_text()
                break
            process.kill()
            process.join()
            done += 1
            actual = list(Path(folder, "outputs", stage[0]).glob("*/summary.json"))
            begun = [p.parent for p in actual if has_checkpoint(p.parent)]
            if begun:
                checkpoint.newest_intact(begun[0])  # the last good one loads
                arguments = (stage[0], "resume=latest")
            else:
                shutil.rmtree(Path(folder, "outputs"), ignore_errors=True)  # nothing to go on with: anew
        place = directory(folder, stage[0])
        assert same(whole(place), whole(reference))
        assert logged(place) == logged(reference)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_case_11_a_run_killed_twenty_times_at_random_ends_as_if_it_had_not_been(stage: tuple[str, ...]) -> None:
    killed_until_done(int(os.environ.get("SSLRUN_KILLS", "20")), stage, 1)


def test_case_18_a_second_process_is_refused_and_a_killed_one_leaves_no_lock() -> None:
    process = start(*PRETRAIN[:-3], "train.steps=100000", *OFTEN, "train.evaluations=1")
    wait_for(process, lambda: bool(list(Path("outputs").glob("pretrain/*/last.pt"))))
    place = directory()
    second = start("pretrain", f"resume={place}")
    assert ended(second) == 1
    assert "is being written by another process" in Path("said").read_text()
    process.kill()
    process.join()
    step = checkpoint.newest_intact(place)[1]["step"]
    assert f"Going on after step {step}" in run("pretrain", f"resume={place}", f"train.steps={step + 2}")


# --------------------------------------------------------------------------------------------------------- signals


def stopped(number: int, stage: tuple[str, ...]) -> tuple[Path, str]:
    """Stop a run by a signal as soon as it takes steps; return its directory and what it said."""
    process = start(*stage)
    wait_for(process, lambda: in_steps("*/*"))
    assert process.pid is not None
    os.kill(process.pid, number)
    code, result = ended(process), Path("said").read_text()
    assert code == 128 + number, result
    assert "Traceback" not in result
    return directory(stage=stage[0]), result


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_case_23_a_signal_saves_and_prints_the_command_that_goes_on(number: int, stage: tuple[str, ...]) -> None:
    longer = tuple(a.replace(f"steps={STEPS}", "steps=400") for a in stage)
    place, result = stopped(number, longer)
    assert json.loads((place / "summary.json").read_text())["status"] == "interrupted"
    step = checkpoint.load(place / LAST)["step"]
    assert 1 < step < 400
    command = re.search(r"Go on with: sslrun (\S+) (\S+)", result)
    assert command is not None
    assert f"Going on after step {step}" in run(*command.groups())
    assert (place / "run.log").read_text().count("Stopped by") == 1
    shutil.move("outputs", "broken")
    run(*longer)
    straight = directory(stage=stage[0])
    broken = Path("broken", *place.parts[1:])
    assert same(whole(broken), whole(straight))
    assert logged(broken) == logged(straight)


SLOW = """
import time
from sslrun.tasks.task import Task

class Slow(Task):
    def __init__(self, encoder, image_size, *, seconds: float) -> None:
        super().__init__()
        self.encoder, self.seconds = encoder, seconds

    def views(self, images, rng):
        return {"view": images}

    def forward(self, batch, rng):
        time.sleep(self.seconds)
        return {"loss": self.encoder(batch["images"]).square().mean()}
"""


def slow(seconds: float) -> ForkServerProcess:
    """Start a run whose steps take so many seconds, and wait until it is in one."""
    Path("mine/pretext").mkdir(parents=True)
    Path("slow.py").write_text(SLOW)
    Path("mine/pretext/slow.yaml").write_text(f"_target_: slow.Slow\nseconds: {seconds}\n")
    process = start("pretrain", "-cd", "mine", "pretext=slow", *DIGITS, "train.steps=50")
    wait_for(process, lambda: bool(list(Path("outputs").glob("pretrain/*/last.pt"))))
    time.sleep(0.3)
    assert process.pid is not None
    return process


def test_case_24_a_second_signal_ends_at_once_and_a_repeated_one_is_the_same() -> None:
    process = slow(20.0)
    assert process.pid is not None
    for pause in (0.1, 0.7):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(pause)
        assert process.is_alive()
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 15  # the step would have gone on for longer
    assert "Go on with" not in Path("said").read_text()
    checkpoint.load(directory() / LAST)


def test_case_23_a_terminal_that_is_closed_loses_nothing() -> None:
    """Standard error is a pipe whose reader is gone by the time of the signal, as with `2>&1 | tee` and Ctrl-C."""
    command = [sys.executable, "-m", "sslrun", *PRETRAIN, "train.steps=20000", "train.evaluations=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=reset_hangup)
    wait_for(process, lambda: in_steps("*/*"))
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert json.loads((directory() / "summary.json").read_text())["status"] == "interrupted"
    assert checkpoint.load(directory() / LAST)["step"] > 1
    assert "Stopped by SIGHUP. Go on with: sslrun pretrain resume=" in (directory() / "run.log").read_text()


def reset_hangup() -> None:
    """Undo what nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_case_25_a_signal_during_a_save() -> None:
    """With 20 MB of weights and a checkpoint after each of its short steps, nearly all the time is spent saving."""
    large = [a for a in PRETRAIN if not a.startswith(("backbone", "dataset.image", "train.batch", "train.steps"))]
    large += ["backbone.widths=[8,16,512,512]", "dataset.image_size=12", "train.batch_size=4", "train.steps=400"]
    for _ in range(3):
        place, _said = stopped(signal.SIGTERM, (*large, *OFTEN))
        assert checkpoint.load(place / LAST)["step"] > 0
        assert checkpoint.load(place / PREVIOUS)["step"] >= 0
        assert not list(place.glob(".*.part"))
        shutil.rmtree("outputs")


def test_a_sweep_goes_on_where_it_stopped() -> None:
    seeds = "seed=0,1,2"
    process = start("pretrain", "-m", *(a.replace(f"={STEPS}", "=150") for a in PRETRAIN[1:]), seeds)
    wait_for(process, lambda: in_steps("*/*/1"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    command = re.search(r"Go on with: sslrun pretrain (\S+)", Path("said").read_text())
    assert command is not None
    sweep = Path(command[1].removeprefix("resume="))
    first = (sweep / "0" / "summary.json").read_bytes()
    refused = start("pretrain", command[1], "seed=5")
    assert ended(refused) == 1
    assert "a sweep goes on as it was started" in Path("said").read_text()
    result = run("pretrain", "resume=latest")
    assert result.count("Finished before") == 1
    assert "Going on after step" in result
    assert (sweep / "0" / "summary.json").read_bytes() == first
    assert [json.loads((sweep / str(i) / "summary.json").read_text())["status"] for i in range(3)] == ["finished"] * 3
    assert len((sweep / "sweep.csv").read_text().splitlines()) == 4
    run(*(a.replace(f"={STEPS}", "=150") for a in PRETRAIN), "seed=1", folder="straight")
    assert same(whole(sweep / "1"), whole(directory("straight")))


def test_case_7_resuming_a_finished_run_says_that_nothing_is_left(cli: Cli) -> None:
    assert cli(*PRETRAIN).code == 0
    before = (directory() / LAST).read_bytes()
    answer = cli("pretrain", "resume=latest")
    assert answer.code == 0
    assert f"Nothing is left to do: all of its {STEPS} steps are done" in answer.err
    assert (directory() / LAST).read_bytes() == before


def test_a_sweep_of_finetunings_goes_on_from_the_starts_that_it_named() -> None:
    """Each job was told `init=simclr` and noted which run that was."""
    run(*PRETRAIN)
    jobs = (
        "finetune",
        "-m",
        "init=simclr,scratch",
        "mode=finetune",
        "label_fraction=0.5",
        "train.steps=150",
        *TINY[-3:],
    )
    process = start(*jobs)
    wait_for(process, lambda: in_steps("finetune/*/0"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    result = run("finetune", "resume=latest")
    assert "Going on after step" in result
    (sweep,) = [p.parent for p in Path("outputs").glob("finetune/*/multirun.yaml")]
    summaries = [json.loads((sweep / str(i) / "summary.json").read_text()) for i in range(2)]
    assert [s["status"] for s in summaries] == ["finished"] * 2
    assert [s["init"] for s in summaries] == ["simclr", "scratch"]
    assert summaries[0]["overrides"][0] == "init=simclr"


def test_a_sweep_into_folders_of_other_jobs_does_nothing_to_them(cli: Cli) -> None:
    answer = cli("pretrain", "-m", "hydra.sweep.subdir=one", "seed=0,1", *PRETRAIN[1:])
    assert answer.code == 1
    assert "is of another job" in answer.err


# ----------------------------------------------------------------------------------------------------------- disks


def in_a_mount(options: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a small file system of its own at `disk`."""
    Path("disk").mkdir()
    mounted = f"mount -t tmpfs -o {options} none disk && {script}"
    unshare = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    return subprocess.run([*unshare, "sh", "-c", mounted], capture_output=True, text=True, timeout=120)


SSLRUN = f"{sys.executable} -m sslrun"


def test_case_13_a_disk_that_fills_up_leaves_a_checkpoint_that_goes_on() -> None:
    more = " ".join([*PRETRAIN, *OFTEN, "train.steps=2000", "train.keep_every=1", "backbone.widths=[8,16,64]"])
    done = in_a_mount(
        "size=10m", f"cd disk; {SSLRUN} {more}; echo rc $?; cp -r outputs ../kept; find . -name '.*.part'"
    )
    assert done.stdout.splitlines() == ["rc 1"], done.stdout + done.stderr
    assert "cannot write outputs/pretrain/" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.move("kept", "outputs")
    content = checkpoint.newest_intact(directory())[1]
    assert content["step"] > 0
    assert "Going on" in run("pretrain", "resume=latest", f"train.steps={content['step'] + 3}")


def test_case_17_a_folder_that_cannot_be_written() -> None:
    done = in_a_mount("ro", f"cd disk; {SSLRUN} {' '.join(PRETRAIN)}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write into outputs/pretrain below" in done.stderr
    assert "Read-only file system" in done.stderr


# ----------------------------------------------------------------------------------------------------------- files


def test_case_14_a_truncated_newest_falls_back_to_the_one_before_and_says_so(cli: Cli) -> None:
    assert cli(*PRETRAIN).code == 0
    place = directory()
    before, reference = logged(place), whole(place)
    last = place / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    answer = cli("pretrain", "resume=latest")
    assert answer.code == 0
    assert "last.pt is damaged" in answer.err
    assert "The checkpoint before it is used, of step 16" in answer.err
    assert same(whole(place), reference)
    assert logged(place) == before
    assert (place / "damaged.pt").exists()


def test_case_14_finetuning_falls_back_too_and_two_damaged_ones_are_an_error(cli: Cli) -> None:
    assert cli(*PRETRAIN).code == 0
    for name, code in ((LAST, 0), (PREVIOUS, 1)):
        (directory() / name).write_bytes(b"PK")
        answer = cli("finetune", "mode=finetune", "label_fraction=0.5", "train.steps=2", *TINY[-3:])
        assert answer.code == code
        assert "is damaged" in answer.err
        assert "Traceback" not in answer.err


def test_case_15_a_flipped_bit_is_caught_or_changes_nothing() -> None:
    path = Path("x.pt")
    content = {"step": 3, "model": {"a": torch.randn(3000), "b": torch.arange(5)}, "metrics": {"x": 0.5}}
    checkpoint.save(path, content)
    good, loaded = path.read_bytes(), checkpoint.load(path)
    rng, caught = random.Random(0), 0
    for _ in range(400):
        where = rng.randrange(len(good))
        flipped = bytearray(good)
        flipped[where] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(checkpoint.load(path), loaded), f"byte {where} is not what was saved"
        except UserError:
            caught += 1
    assert caught > 300  # the rest are paddings


def test_case_16_retention_keeps_last_best_and_every_nth(cli: Cli) -> None:
    assert cli(*PRETRAIN, "train.keep_every=10").code == 0
    place = directory()
    assert sorted(p.name for p in place.glob("*.pt")) == [
        "best.pt", "last.pt", "previous.pt", "step_000010.pt", "step_000020.pt"]  # fmt: skip
    assert [checkpoint.load(place / f"step_0000{s}0.pt")["step"] for s in (1, 2)] == [10, 20]
    assert checkpoint.load(place / LAST)["step"] == STEPS
    scores = {r["step"]: r["val/knn_accuracy"] for r in logged(place) if "val/knn_accuracy" in r}
    best = checkpoint.load(place / BEST)
    assert best["metrics"]["val/knn_accuracy"] == pytest.approx(max(scores.values()), abs=1e-6)


def test_case_19_a_config_from_a_file_calls_nothing_foreign(cli: Cli) -> None:
    """The weights of a run that somebody sent may be harmless while its config names a function to call."""
    assert cli(*PRETRAIN).code == 0
    place = directory()
    content = checkpoint.load(place / LAST)
    content["config"]["backbone"]["widths"] = {"_target_": "pathlib.Path.touch", "self": "gotcha"}
    torch.save(content, place / LAST)
    answer = cli("finetune", f"init={place}", "label_fraction=0.5")
    assert answer.code == 1
    assert "would call pathlib.Path.touch" in answer.err
    summary = json.loads((place / "summary.json").read_text())
    summary["config"]["pretext"]["_target_"] = "os.abort"
    (place / "summary.json").write_text(json.dumps(summary))
    answer = cli("pretrain", f"resume={place}")
    assert answer.code == 1
    assert "would call os.abort" in answer.err


def test_case_21_another_networks_weights_are_refused_with_the_shapes(cli: Cli) -> None:
    assert cli(*PRETRAIN).code == 0
    weights = below(checkpoint.load(directory() / LAST)["model"], "encoder.backbone.")
    torch.save(weights, "bare.pt")
    answer = cli(
        "finetune",
        "mode=finetune",
        "init=bare.pt",
        "backbone=smallcnn",
        *DIGITS,
        "backbone.widths=[8,32]",
        "train.steps=2",
    )
    assert answer.code == 1
    assert "(16, 8, 3, 3) where (32, 8, 3, 3) is needed" in answer.err


def test_case_22_a_checkpoint_from_a_gpu_loads_on_a_cpu() -> None:
    """torch writes down where each tensor was; the file is changed as a GPU would have written it."""
    import zipfile

    checkpoint.save(Path("cpu.pt"), {"model": {"a": torch.arange(4.0)}})
    with zipfile.ZipFile("cpu.pt") as old, zipfile.ZipFile("gpu.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, data)
    with contextlib.suppress(RuntimeError):
        torch.load("gpu.pt", weights_only=True)
        assert torch.cuda.is_available()
    assert checkpoint.load(Path("gpu.pt"))["model"]["a"].tolist() == [0, 1, 2, 3]
