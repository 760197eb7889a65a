import json
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.runs.find import find, find_run, is_complete, job_order, labels_text, newest, read_summary, score
from tests.helpers import QUICK, Cli, runs, summary


def test_latest_skips_runs_that_did_not_finish(in_world: Path, cli: Cli) -> None:
    newest = runs("pretrain")[-1]
    answer = summary(newest)
    (newest / "summary.json").write_text(json.dumps({**answer, "status": "running"}))
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    assert summary(runs("finetune")[-1])["init"] == "rotation"
    assert "did not finish (running)" in cli("finetune", f"init={newest}", "mode=probe", *QUICK).err


def found(name: str, started: str, stage: str = "finetune", **more: Any) -> Path:
    """Write the summary of a finished run."""
    path = Path("outputs", stage, name)
    path.mkdir(parents=True)
    summary = {"stage": stage, "status": "finished", "config": {"seed": 0}, "overrides": [],
               "wall_time_seconds": 1.0, "started": started, **more}  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_the_newest_run_is_the_one_started_last_whatever_its_name() -> None:
    found("study_runs/z-1", "2026-01-01T10:00:00")
    newest = found("a", "2026-01-03T10:00:00")
    found("b", "2026-01-02T10:00:00")
    found("study_runs/candidate-2", "2026-01-04T10:00:00")
    assert [p.name for p, _ in find(["finetune"], study_runs=True)] == ["z-1", "b", "a", "candidate-2"]
    assert find_run("latest") == newest  # of those that the user started


def test_runs_of_studies_are_found_on_request_only_and_damaged_ones_are_skipped() -> None:
    for i, name in enumerate(("parts/a", "study_runs/b", "sweep/0", "single")):
        found(name, f"2026-01-0{4 - i}")
    found("c", "2026-01-09", "pretrain")
    (found("damaged", "2026-01-09") / "summary.json").write_text("{")
    assert [p.name for p, _ in find(["finetune"])] == ["single", "0"]
    assert [p.name for p, _ in find(["finetune"], study_runs=True)] == ["single", "0", "b", "a"]
    assert [p.name for p, _ in find()] == ["single", "0", "c"]
    assert find(["evaluate"]) == []


def test_the_newest_run_that_fits() -> None:
    runs: list[tuple[Path, dict[str, Any]]] = [
        (Path(n), {"status": s}) for n, s in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    assert newest(runs) == runs[2]
    assert newest(runs, lambda _, summary: summary["status"] == "x") == runs[1]
    assert newest(runs, lambda path, _: path.name == "a") == runs[0]
    assert newest(runs, lambda *_: False) is None


def test_the_score_of_a_run_is_its_test_accuracy_or_else_validation() -> None:
    summary: dict[str, Any] = {"val/knn_accuracy": 1, "val/loss": 3.0}
    assert score(summary) == ("val/knn_accuracy", 1.0)
    assert score(summary | {"val/accuracy": 0.2}) == ("val/accuracy", 0.2)
    assert score(summary | {"val/accuracy": 0.2, "test/accuracy": 0.1}) == ("test/accuracy", 0.1)
    assert score({"val/accuracy": None, "val/loss": 3.0}) is None


def test_labels_are_shown_with_those_of_a_validation_split() -> None:
    assert labels_text({"labels_total": 1060, "labels_train": 1060, "labels_val": 0}) == "1,060"
    assert labels_text({"labels_total": 361, "labels_train": 60, "labels_val": 301}) == "60 + 301 val"
    assert labels_text({"stage": "pretrain"}) is None


def test_jobs_are_sorted_by_number() -> None:
    assert sorted(map(Path, ("a/10", "a/9", "b/2")), key=job_order) == [Path("b/2"), Path("a/9"), Path("a/10")]


def test_a_run_that_trains_an_encoder_is_complete_with_its_checkpoint() -> None:
    pretrained, evaluated = found("a", "", "pretrain"), found("b", "", "evaluate")
    assert is_complete(evaluated)
    assert not is_complete(pretrained)
    (pretrained / "previous.pt").touch()
    assert is_complete(pretrained)
    assert not is_complete(found("c", "", "evaluate", status="failed"))
    assert not is_complete(Path("nowhere"))


def test_a_named_run_is_of_the_right_stage(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO", "sslrun")
    pretrained = found("a", "2026-01-03", "pretrain")
    classifier = found("b", "2026-01-02", **{"val/sure_above": 0.5})  # type: ignore[arg-type]
    unfinished = found("c", "2026-01-04", status="interrupted")
    evaluated = found("d", "2026-01-05", "evaluate")
    both = ("pretrain", "finetune")
    assert find_run("latest") == classifier
    assert find_run("latest", both) == pretrained
    assert caplog.messages == [f"Using {classifier}", f"Using {pretrained}"]
    with pytest.raises(UserError) as error:
        find_run(str(unfinished))
    assert str(error.value) == f"{unfinished} has not finished (interrupted) and has no classifier yet: run it again"
    resumable = found("e", "2026-01-04", status="interrupted", resumable="checkpoint")
    with pytest.raises(UserError, match=f"yet: continue it with sslrun finetune resume={resumable}$"):
        find_run(str(resumable))
    (unfinished / "best.pt").touch()
    assert find_run(str(unfinished)) == unfinished
    assert caplog.messages[2:] == [f"{unfinished} did not finish (interrupted): using its best checkpoint so far"]
    assert find_run(str(classifier)) == classifier
    assert len(caplog.messages) == 3
    assert read_summary(classifier)["val/confidence_threshold"] == 0.5  # named as in an older version
    for run, stages, words in (
        (pretrained, ("finetune",), f"without a classifier: train one with sslrun finetune init={pretrained}"),
        (evaluated, ("finetune",), "is an evaluate run, without a classifier: use another run"),
        (evaluated, both, "is an evaluate run, without a network of its own: use another run"),
        (Path("outputs"), both, "outputs is not a run of sslrun (it has no summary.json)"),
        (Path("outputs/finetune"), both, "is a sweep; use one of its runs, such as outputs/finetune/b"),
        (classifier / "summary.json", both, f"summary.json is a file: use the run's folder, {classifier}"),
        (Path("latest"), ("export", "predict"), "no finished export or predict run in outputs: start one with "),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            find_run(str(run), stages)
        assert words in str(error.value)
