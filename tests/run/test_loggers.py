"""`logger=`: MLflow with its SQLite store, Weights & Biases offline, and servers that cannot be reached."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslrun.run.log import GROUP, PARENT
from sslrun.run.loggers import missing_packages
from tests.helpers import (
    OFTEN,
    PRETRAIN,
    SMALL_STUDY,
    Cli,
    ended,
    in_steps,
    logged,
    only_run,
    run_forked,
    runs,
    start,
    summary,
    wait_for,
)

BOTH = "logger=[mlflow,wandb]"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


def store() -> Any:
    """Return a client of MLflow's default store."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{Path('outputs/mlflow/mlflow.db').absolute()}")


def of_mlflow() -> Iterator[Any]:
    """Yield the runs at MLflow, oldest first."""
    client = store()
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    yield from client.search_runs(experiments, order_by=["attributes.start_time ASC"])


def values(run: Any, metric: str) -> dict[int, list[float]]:
    """Return all values of a metric of a run at MLflow, by step."""
    out: dict[int, list[float]] = {}
    for m in store().get_metric_history(run.info.run_id, metric):
        out.setdefault(m.step, []).append(m.value)
    return out


def records(folder: Path) -> dict[str, list[Any]]:
    """Return the records in the files of runs that Weights & Biases kept offline, by kind."""
    from wandb.proto import wandb_internal_pb2

    out: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in blocks(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            out.setdefault(str(record.WhichOneof("record_type")), []).append(record)
    return out


def blocks(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log of LevelDB, whose header is 7 bytes here: `4 crc, 2 length, 1 kind, data`."""
    size, at, whole = 1 << 15, 7, b""
    while at + 7 <= len(data):
        if size - at % size < 7:
            at += size - at % size
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def history(folder: Path) -> list[dict[str, float]]:
    """Return the rows of scalars in the files of Weights & Biases."""
    rows = []
    for record in records(folder).get("history", []):
        items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
        rows.append({k: v for k, v in items.items() if k[0] != "_" and not k.startswith("figures/")})
    return [r for r in rows if r]


def test_a_logger_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_packages(["tensorboard"]) == []
    answer = cli(*PRETRAIN, BOTH)
    assert answer.code == 1
    assert answer.err == (
        "sslrun: logger=mlflow: needs the package mlflow; install it with pip install 'sslrun[mlflow]'\n"
        "logger=wandb: needs the package wandb; install it with pip install 'sslrun[wandb]'\n"
    )
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("logger=mlflow", "logger: must be a list, found mlflow; write logger=[mlflow]"),
        ("logger=[comet]", "logger: must be one of tensorboard, mlflow or wandb, found comet"),
    ],
)
def test_a_wrong_logger_is_one_line(cli: Cli, given: str, line: str) -> None:
    answer = cli(*PRETRAIN, given)
    assert (answer.code, answer.lines()) == (1, [f"sslrun: {line}"])


def test_without_loggers_there_is_only_metrics_jsonl(cli: Cli) -> None:
    assert cli(*PRETRAIN, "train.steps=2", "logger=[]").code == 0
    (run,) = runs("pretrain")
    assert logged(run)
    assert not list(run.glob("events.out.*"))


@pytest.mark.slow
def test_mlflow_and_wandb_have_what_metrics_jsonl_has() -> None:
    pytest.importorskip("mlflow")
    run_forked(*PRETRAIN, "logger=[tensorboard,mlflow,wandb]")
    run = only_run()
    (there,) = of_mlflow()
    kept = summary(run)
    assert (there.info.run_id, there.info.status) == (kept["mlflow_run"], "FINISHED")
    assert there.info.run_name == str(run.relative_to("outputs"))
    assert there.data.params["train.steps"] == str(kept["config"]["train"]["steps"])
    assert there.data.params["device.precision"] == "fp32"
    assert there.data.tags["mlflow.source.name"] == kept["command"]
    losses = {r["step"]: pytest.approx(r["train/loss"], abs=1e-6) for r in logged(run) if "train/loss" in r}
    sent = values(there, "train/loss")
    sent[0].remove(there.data.metrics["train/loss"])  # that of the summary
    assert {step: value for step, (value,) in ((s, v) for s, v in sent.items() if v)} == losses
    assert there.data.metrics["val/knn_accuracy"] == pytest.approx(kept["val/knn_accuracy"])
    client = store()
    files = {f.path for f in client.list_artifacts(there.info.run_id)}
    assert files == {"config.yaml", "summary.json", "report.html", "figures"}
    assert "figures/views.png" in {f.path for f in client.list_artifacts(there.info.run_id, "figures")}
    assert list(run.glob("events.out.*"))

    begun = records(run)["run"][0].run
    assert (begun.run_id, begun.project, begun.job_type) == (kept["wandb_run"], "sslrun", "pretrain")
    assert {r["step"]: r["train/loss"] for r in history(run) if "train/loss" in r} == losses


@pytest.mark.slow
def test_a_resumed_run_continues_its_runs_on_the_servers() -> None:
    pytest.importorskip("mlflow")
    process = start(*PRETRAIN, "train.epochs=null", "train.steps=600", "train.evaluations=1", *OFTEN, BOTH)
    wait_for(process, lambda: in_steps("pretrain/*"))
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    run = only_run()
    before = summary(run)
    (there,) = of_mlflow()
    assert there.info.status == "RUNNING"
    run_forked("pretrain", f"resume={run}")
    (there,) = of_mlflow()
    after = summary(run)
    assert (there.info.run_id, there.info.status) == (before["mlflow_run"], "FINISHED")
    assert (after["mlflow_run"], after["wandb_run"]) == (before["mlflow_run"], before["wandb_run"])
    sent = values(there, "train/loss")
    here = {int(r["step"]): r["train/loss"] for r in logged(run) if "train/loss" in r}
    assert max(here) in sent
    for step in here.keys() & sent.keys():  # some were sent twice, with the same value, or never
        assert {round(v, 6) for v in sent[step]} == {here[step]}


@pytest.mark.slow
def test_failed_and_interrupted_runs_are_told() -> None:
    pytest.importorskip("mlflow")
    process = start(*PRETRAIN, "train.epochs=null", "train.steps=5000", "train.evaluations=1", BOTH)
    wait_for(process, lambda: in_steps("pretrain/*"))
    process.terminate()
    assert ended(process) == 128 + signal.SIGTERM
    assert [r.info.status for r in of_mlflow()] == ["KILLED"]
    process = start(*PRETRAIN, "train.steps=5", "train.learning_rate=1e30", "logger=[mlflow]")
    assert ended(process) == 1
    assert sorted(r.info.status for r in of_mlflow()) == ["FAILED", "KILLED"]


@pytest.mark.slow
def test_the_jobs_of_a_sweep_have_one_parent_and_one_group() -> None:
    pytest.importorskip("mlflow")
    run_forked(*PRETRAIN[:1], "-m", *PRETRAIN[1:], "train.steps=2,3", BOTH)
    parent, *jobs = of_mlflow()
    assert [j.data.tags["mlflow.parentRunId"] for j in jobs] == [parent.info.run_id] * 2
    assert [r.info.status for r in (parent, *jobs)] == ["FINISHED"] * 3
    (sweep,) = Path("outputs/pretrain").iterdir()
    assert parent.info.run_name == f"pretrain/{sweep.name}"
    groups = {records(sweep / n)["run"][0].run.run_group for n in ("0", "1")}
    assert groups == {f"pretrain/{sweep.name}"}
    assert PARENT not in os.environ
    assert GROUP not in os.environ
    run_forked("pretrain", f"resume={sweep}")
    assert len(list(of_mlflow())) == 3


@pytest.mark.slow
def test_the_runs_of_a_study_are_its_children() -> None:
    pytest.importorskip("mlflow")
    run_forked("compare", *SMALL_STUDY, "inits=[rotation]", "labels_per_class=[3]", "seeds=1", BOTH)
    there = list(of_mlflow())
    (study,) = [r for r in there if "mlflow.parentRunId" not in r.data.tags]
    assert study.info.run_name.startswith("compare/")
    children = [r for r in there if r.data.tags.get("mlflow.parentRunId") == study.info.run_id]
    assert len(children) == len(there) - 1 >= 9
    assert {r.data.tags["stage"] for r in children} == {"pretrain", "finetune", "evaluate"}
    assert {r.info.status for r in there} == {"FINISHED"}
    (group,) = {records(p)["run"][0].run.run_group for s in ("pretrain", "finetune", "evaluate") for p in runs(s)} | {
        records(p)["run"][0].run.run_group for p in Path("outputs").glob("*/study_runs/*")
    }
    assert group == study.info.run_name
    run_forked("compare", *SMALL_STUDY, "inits=[rotation]", "labels_per_class=[3]", "seeds=1", "logger=[]")
    assert len(list(Path("outputs/finetune/study_runs").iterdir())) == len(
        [r for r in children if r.data.tags["stage"] == "finetune"]
    )  # another logger repeats no run


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_cannot_be_reached_stops_no_run(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """Either nothing listens there, or something that never answers."""
    pytest.importorskip("mlflow")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        if answers:
            silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        answer = run_forked(*PRETRAIN, BOTH)
    assert "mlflow: " in answer
    assert "; the run continues without it" in answer
    assert "wandb: offline; send it with: wandb sync" in answer
    run = only_run()
    assert summary(run)["status"] == "finished"
    assert history(run)[-1]["step"] == logged(run)[-1]["step"]
