import json
from pathlib import Path
from typing import Any

from sslrun.run.find import find, is_complete, job_order, labels_text, newest, score
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
    assert [p.name for p, _ in find(["finetune"])] == ["b", newest.name]  # those that the user started


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
