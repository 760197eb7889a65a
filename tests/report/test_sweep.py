import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sslrun.report import sweep
from sslrun.report.sweep import finish_sweep, sweep_rows, sweep_table
from tests.helpers import QUICK, Cli, summary


@pytest.mark.slow
def test_a_sweep_averages_over_seeds_only(in_world: Path, cli: Cli) -> None:
    """Not over learning rates, nor over initial weights from different runs."""
    rates = ("train.learning_rate=0.001,0.01", "seed=0,1", "train.steps=2", "train.evaluations=1")
    assert cli("finetune", "-m", "mode=finetune", *rates, *QUICK).code == 0
    sweep = next(Path("outputs/finetune").glob("*/sweep.csv")).parent
    answer = cli("evaluate", f"run={sweep}", "stages=false", *QUICK)
    table = [line.split() for line in answer.err.splitlines() if line.split() and line.split()[-1] == "2"]
    assert re.search(r"test accuracy +SD ", answer.err)
    assert all(re.fullmatch(r"\d+\.\d", line[-4]) and line[-3] == "%" for line in table)
    assert {r for line in table for r in line if r in ("0.001", "0.01")} == {"0.001", "0.01"}
    rows = list(csv.DictReader(next(Path("outputs/evaluate").glob("*/sweep.csv")).open()))
    assert [r["of_run"] for r in rows] == [f"{sweep}/{i}" for i in range(4)]
    (sweep / "1/summary.json").write_text(json.dumps({**summary(sweep / "1"), "status": "failed"}))
    assert cli("evaluate", f"run={sweep}", "stages=false", *QUICK).code == 0
    assert len(list(csv.DictReader(max(Path("outputs/evaluate").glob("*/sweep.csv")).open()))) == 3


def job(name: str, accuracy: float | None, status: str = "finished", **more: Any) -> None:
    """Write the summary of a finetuning, as a job of the folder `sweep`."""
    folder = Path("sweep", name)
    folder.mkdir(parents=True)
    known = {"stage": "finetune", "config": {"seed": 0}, "overrides": ["seed=0", "train.steps=3"],
             "wall_time_seconds": 1.0, "status": status, "init": "simclr", "source": "a", "mode": "probe",
             "label_budget": "label_fraction=0.1", "labels_total": 39, "labels_train": 30, "labels_val": 9,
             "seeds": {"training": 4, "split": 5},
             "val/loss": 0.7}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({**known, "val/accuracy": accuracy, **more}))


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, with its header."""
    table = sweep_table(rows)
    return [
        [str(c.header) for c in table.columns],
        *(list(map(str, r)) for r in zip(*(c.cells for c in table.columns), strict=True)),
    ]


def test_rows_of_a_sweep_are_in_order_and_have_what_varies_and_the_metrics() -> None:
    for name in ("10", "9"):
        job(name, 0.5)
    job("2", 0.6, of_overrides=["optimizer=sgd"], of_run="b")
    (Path("sweep/11/.hydra")).mkdir(parents=True)
    job("12", 0.5)
    Path("sweep/12/summary.json").write_text("{")
    rows = sweep_rows(Path("sweep"))
    assert [(r["job"], r["run"], r["status"], r["score"]) for r in rows] == [
        ("2", "sweep/2", "finished", 0.6), ("9", "sweep/9", "finished", 0.5), ("10", "sweep/10", "finished", 0.5),
        ("11", "sweep/11", "failed", None), ("12", "sweep/12", "failed", None),
    ]  # fmt: skip
    evaluated, tuned = rows[:2]
    assert {k: v for k, v in evaluated.items() if k.startswith("override ")} == {"override optimizer": "sgd"}
    assert {k: v for k, v in tuned.items() if k.startswith("override ")} == {"override train.steps": "3"}
    assert [tuned[f"labels_{k}"] for k in ("total", "train", "val")] == [39, 30, 9]
    assert (tuned["training_seed"], tuned["split_seed"]) == (4, 5)
    assert (tuned["val/accuracy"], tuned["val/loss"], tuned["score_name"]) == (0.5, 0.7, "val/accuracy")
    assert (evaluated["of_run"], tuned["source"], tuned["mode"], tuned["label_budget"]) == (
        "b", "a", "probe", "label_fraction=0.1",
    )  # fmt: skip


def test_the_table_of_a_sweep_has_mean_and_deviation_over_seeds() -> None:
    job("0", 0.5)
    job("1", 0.7, seeds={"training": 5, "split": 5})
    job("2", None, "failed", seeds={"training": 6, "split": 5}, mode="knn")  # no mode of a finished job
    job("3", 0.8, label_budget="labels=1060", labels_total=1060, labels_train=1060, labels_val=0)
    job("4", 0.9, "interrupted", label_budget="labels_per_class=9", labels_train=90)
    assert lines(sweep_rows(Path("sweep"))) == [
        ["init", "label budget", "labels", "val accuracy", "SD", "runs"],
        ["simclr", "label_fraction=0.1", "30 + 9 val", "60.0 %", "14.1", "2, 1 failed"],
        ["simclr", "labels=1060", "1,060", "80.0 %", "", "1"],
        ["simclr", "labels_per_class=9", "90 + 9 val", "failed", "", "0, 1 failed"],
    ]


def test_the_table_of_a_sweep_names_only_what_varies() -> None:
    for i, (source, steps) in enumerate((("a", 3), ("b", 3), ("a", 4), ("b", 4))):
        job(f"{i}", 0.5, source=source, overrides=[f"train.steps={steps}"], of_run=f"{i}")
    header, *rows = lines(sweep_rows(Path("sweep")))
    assert header[:4] == ["init", "source", "label budget", "train.steps"]
    assert [r[:4] for r in rows] == [["simclr", s, "label_fraction=0.1", n] for n in "34" for s in "ab"]
    same = sweep_rows(Path("sweep"))
    for r in same:
        r["init"] = r["source"]
    assert lines(same)[0][:3] == ["init", "label budget", "train.steps"]


def test_a_finished_job_without_a_score_has_not_failed_and_a_budget_is_one_column() -> None:
    for i, labels in enumerate((10, 30, 2)):
        budget: dict[str, Any] = {
            "label_budget": f"labels={labels}",
            "labels_total": labels,
            "labels_train": labels,
            "labels_val": 0,
        }
        overrides = [f"labels={labels}"]
        if labels == 2:
            job(str(i), None, "failed", overrides=overrides, label_budget=None)
        else:
            job(str(i), 0.5 if labels == 30 else None, overrides=overrides, **budget)
    header, *rows = lines(sweep_rows(Path("sweep")))
    assert header == ["init", "label budget", "labels", "val accuracy", "SD", "runs"]
    assert [[r[1], *r[3:]] for r in rows] == [
        ["labels=10", "-", "", "1"], ["labels=30", "50.0 %", "", "1"], ["labels=2", "failed", "", "0, 1 failed"],
    ]  # fmt: skip


def test_the_end_of_a_sweep_counts_failures_and_needs_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(sweep, "ERR", SimpleNamespace(print=printed.append))
    job("0", None)
    job("1", None, "failed")
    assert finish_sweep(Path("sweep")) == 1
    assert not printed
    assert not Path("sweep/sweep.csv").exists()
    job("2", 0.5)
    assert finish_sweep(Path("sweep")) == 1
    assert len(printed) == 1
    written = list(csv.DictReader(Path("sweep/sweep.csv").read_text().splitlines()))
    assert [r["job"] for r in written] == ["0", "1", "2"]
    assert finish_sweep(Path("nowhere")) == 0
