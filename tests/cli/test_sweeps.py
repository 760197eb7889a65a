"""Sweeps: the table at the end, and resuming a sweep."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import pytest

from sslrun.base.locks import locked
from tests.helpers import (
    PRETRAIN,
    QUICK,
    STEPS,
    TINY,
    Cli,
    ended,
    in_steps,
    only_run,
    run_forked,
    runs,
    same,
    start,
    summary,
    wait_for,
    whole,
)


def test_a_sweep_ends_with_a_table_and_a_csv_and_names_its_failures(in_world: Path, cli: Cli) -> None:
    answer = cli("finetune", "-m", "label_fraction=0.2,0.5", "seed=0,1", "mode=probe", *QUICK)
    assert answer.code == 0
    sweep = next(Path("outputs/finetune").glob("*/sweep.csv")).parent
    rows = list(csv.DictReader((sweep / "sweep.csv").open()))
    assert [(r["label_budget"], r["training_seed"], r["labels_total"]) for r in rows] == [
        ("label_fraction=0.2", "0", "10"), ("label_fraction=0.2", "1", "10"),
        ("label_fraction=0.5", "0", "24"), ("label_fraction=0.5", "1", "24"),
    ]  # fmt: skip
    table = [line.split() for line in answer.err.splitlines() if line.strip().startswith(("simclr", "label_"))]
    mean = (float(rows[0]["val/accuracy"]) + float(rows[1]["val/accuracy"])) / 2
    assert any(f"{100 * mean:.1f}" in line and "label_fraction=0.2" in line for line in table)
    answer = cli("evaluate", f"run={sweep}", *QUICK)
    assert answer.code == 0
    evaluated = next(Path("outputs/evaluate").glob("*/sweep.csv"))
    assert len(list(csv.DictReader(evaluated.open()))) == 4
    answer = cli("finetune", "-m", "init=nowhere,simclr", "mode=knn", *QUICK)
    assert answer.code == 1
    assert "init=nowhere: no such pretext task, run or file" in answer.err
    answer = cli("finetune", "-m", "dataset.classes=[flower],null", "mode=knn", *QUICK)
    assert answer.code == 1
    assert "one class" in answer.err
    assert "1 job failed" in answer.err
    assert "finished" in (max(Path("outputs/finetune").glob("*/sweep.csv"))).read_text()


@pytest.mark.slow
def test_case_10_a_job_of_a_sweep_has_the_same_numbers_as_a_single_run(cli: Cli) -> None:
    settings = ("pretext=rotation", "dataset.max_images=100", "dataset.image_size=16", *TINY, "train.steps=3")
    assert cli("pretrain", "dataset=digits", "-m", "seed=0,1", *settings).code == 0
    assert cli("pretrain", "dataset=digits", "seed=1", *settings).code == 0
    a, b = (summary(p) for p in (*(p for p in runs("pretrain") if p.name == "1"), runs("pretrain")[-1]))
    assert a["seeds"] == b["seeds"] == {"training": 1, "split": 0}
    assert a["train/loss"] == b["train/loss"]


@pytest.mark.slow
def test_an_interrupted_sweep_resumes() -> None:
    longer = tuple(a.replace(f"={STEPS}", "=100") for a in PRETRAIN[1:])
    process = start("pretrain", "-m", *longer, "seed=0,1,2")
    wait_for(process, lambda: in_steps("*/*/1"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    command = re.search(r"Resume with: sslrun pretrain (\S+)", Path("output").read_text())
    assert command is not None
    sweep = Path(command[1].removeprefix("resume="))
    first = (sweep / "0" / "summary.json").read_bytes()
    refused = start("pretrain", command[1], "seed=5")
    assert ended(refused) == 1
    assert "a sweep is resumed with its own settings" in Path("output").read_text()
    result = run_forked("pretrain", "resume=latest")
    assert result.count("Already finished") == 1
    assert "Resuming after step" in result
    assert (sweep / "0" / "summary.json").read_bytes() == first
    assert [json.loads((sweep / str(i) / "summary.json").read_text())["status"] for i in range(3)] == ["finished"] * 3
    assert len((sweep / "sweep.csv").read_text().splitlines()) == 4
    run_forked("pretrain", *longer, "seed=1", folder="straight")
    assert same(whole(sweep / "1"), whole(only_run("straight")))


@pytest.mark.slow
@pytest.mark.usefixtures("short_run")
def test_a_resumed_sweep_of_finetuning_keeps_its_initial_weights() -> None:
    """Each job has `init=simclr` and has noted which run that was."""
    jobs = (
        "finetune",
        "-m",
        "init=simclr,scratch",
        "mode=finetune",
        "label_fraction=0.5",
        "train.steps=100",
        "train.evaluations=2",
        "train.log_every=3",
        *QUICK,
    )
    process = start(*jobs)
    wait_for(process, lambda: in_steps("finetune/*/0"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    result = run_forked("finetune", "resume=latest")
    assert "Resuming after step" in result
    (sweep,) = [p.parent for p in Path("outputs").glob("finetune/*/multirun.yaml")]
    summaries = [json.loads((sweep / str(i) / "summary.json").read_text()) for i in range(2)]
    assert [s["status"] for s in summaries] == ["finished"] * 2
    assert [s["init"] for s in summaries] == ["simclr", "scratch"]
    assert summaries[0]["overrides"][0] == "init=simclr"


LOCAL = "hydra/launcher=submitit_local"


@pytest.mark.slow
def test_submitit_runs_the_jobs_of_a_sweep(cli: Cli) -> None:
    pytest.importorskip("submitit")
    sweep = ("pretrain", "-m", *PRETRAIN[1:], "train.steps=3", "train.evaluations=1", "seed=0,1")
    assert cli(*sweep, "hydra.sweep.dir=here").code == 0
    answer = run_forked(*sweep, LOCAL, "hydra.sweep.dir=there")
    assert "What the jobs print goes to there/.submitit" in answer
    for job in ("0", "1"):
        assert summary(Path("there", job))["status"] == "finished"
        assert same(*(whole(Path(sweep, job)) for sweep in ("here", "there")))
    assert re.search(r"scratch .* 2 *$", answer, re.M), answer  # the table
    failing = start(*sweep, LOCAL, "train.learning_rate=1e30", "hydra.sweep.dir=failing")
    assert ended(failing) == 1
    assert "2 jobs failed" in Path("output").read_text()


@pytest.mark.slow
def test_a_preempted_job_of_submitit_saves_is_started_again_and_resumes(cli: Cli) -> None:
    pytest.importorskip("submitit")
    settings = (
        *PRETRAIN[1:],
        "train.epochs=null",
        "train.steps=3000",
        "train.evaluations=1",
        "train.save_minutes=1000",
    )
    assert cli("pretrain", *settings, "hydra.run.dir=whole").code == 0
    process = start("pretrain", "-m", *settings, "seed=0", LOCAL, "hydra.sweep.dir=sweep")
    job = Path("sweep/0")
    wait_for(process, lambda: (job / "metrics.jsonl").exists() and "train/loss" in (job / "metrics.jsonl").read_text())
    os.kill(job_process(), signal.SIGUSR2)
    assert ended(process) == 0
    assert "Stopped by SIGUSR2" in (job / "run.log").read_text()
    assert "Resuming after step" in (job / "run.log").read_text()
    assert same(whole(job), whole(Path("whole")))


@pytest.mark.slow
def test_an_interrupted_sweep_of_submitit_says_how_to_resume_it() -> None:
    pytest.importorskip("submitit")
    settings = (*PRETRAIN[1:], "train.epochs=null", "train.steps=20000", "train.evaluations=1")
    process = start("pretrain", "-m", *settings, "seed=0", LOCAL, "hydra.sweep.dir=sweep")
    metrics = Path("sweep/0/metrics.jsonl")
    wait_for(process, lambda: metrics.exists() and "train/loss" in metrics.read_text())
    job = job_process()
    process.terminate()
    assert ended(process) == 128 + signal.SIGTERM
    assert "Resume with: sslrun pretrain resume=sweep\n" in Path("output").read_text()
    os.kill(job, signal.SIGTERM)


def job_process() -> int:
    """Return the process that runs the job of submitit in this folder."""
    return next(
        int(p.name)
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and (line := _command(p)) and "submitit.core._submit" in line and str(Path.cwd()) in line
    )


def _command(process: Path) -> str:
    """Return the command line of a process, or nothing if it has ended."""
    try:
        return (process / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_a_sweep_does_not_touch_folders_of_other_jobs(cli: Cli) -> None:
    answer = cli("pretrain", "-m", "hydra.sweep.subdir=one", "seed=0,1", *PRETRAIN[1:])
    assert answer.code == 1
    assert "contains another job" in answer.err


@pytest.mark.slow
def test_a_sweep_with_a_damaged_job_fails_after_its_table(finished_sweep: Path, cli: Cli) -> None:
    sweep = finished_sweep
    (sweep / "0/summary.json").write_text("")
    result = cli("pretrain", f"resume={sweep}")
    assert result.code == 1
    assert "cannot be read" in result.err
    assert "1 job failed" in result.err
    (sweep / "sweep.csv").unlink()
    (sweep / "sweep.csv").mkdir()
    result = cli("pretrain", f"resume={sweep}")
    assert "cannot write" in result.err
    assert result.code == 1


def test_a_job_of_a_sweep_can_be_resumed_alone_and_then_the_sweep(finished_sweep: Path, cli: Cli) -> None:
    sweep = finished_sweep
    assert cli("pretrain", f"resume={sweep / '0'}", "train.steps=10", "device.threads=1").code == 0
    result = cli("pretrain", f"resume={sweep}")
    assert result.code == 0, result.err
    assert result.err.count("Already finished") == 2


def test_a_finished_job_is_not_repeated_when_its_checkpoints_are_deleted(finished_sweep: Path, cli: Cli) -> None:
    sweep = finished_sweep
    for file in (sweep / "0").glob("*.pt"):
        file.unlink()
    before = (sweep / "0/metrics.jsonl").read_bytes()
    answer = cli("pretrain", f"resume={sweep}")
    assert answer.code == 0
    assert answer.err.count("Already finished") == 2
    assert (sweep / "0/metrics.jsonl").read_bytes() == before
    assert not [*(sweep / "0").glob("*.pt")]


def test_a_sweep_is_resumed_by_one_process_at_a_time(finished_sweep: Path, cli: Cli) -> None:
    sweep = finished_sweep
    lock = locked(sweep)
    result = cli("pretrain", f"resume={sweep}")
    lock.release()
    assert "is in use by another process" in result.err
    assert result.code == 1
