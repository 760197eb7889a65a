"""The run that `run=` names: the newest, what it is, and a better one."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.config.commands import WITH_ENCODER
from sslrun.run.find import read_summary
from sslrun.run.named import described, find_run
from tests.run.test_find import found

NOW = datetime(2026, 1, 9, 12, tzinfo=UTC)
SIMCLR: dict[str, Any] = {
    "init": "simclr", "chosen": "probe", "labels_total": 60, "labels_train": 60, "labels_val": 0,
    "val/accuracy": 0.812, "val/images": 60, "data_fingerprint": "a",
}  # fmt: skip
FROM_SCRATCH = {**SIMCLR, "init": "scratch", "chosen": "scratch", "val/accuracy": 0.7}


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (SIMCLR, "simclr, probe, 60 labels, accuracy 81.2 % out of fold"),
        ({**SIMCLR, "labels_val": 301}, "simclr, probe, 60 + 301 val labels, accuracy 81.2 % on validation"),
        (FROM_SCRATCH, "scratch, 60 labels, accuracy 70.0 % out of fold"),
        ({**SIMCLR, "chosen": "scratch"}, "simclr, scratch, 60 labels, accuracy 81.2 % out of fold"),
        ({"pretext": "rotation", "init": "scratch", "val/knn_accuracy": 0.5}, "rotation, kNN accuracy 50.0 %"),
        ({"stage": "pretrain"}, "pretrain"),
    ],
)
def test_what_a_run_is_in_words(summary: dict[str, Any], words: str) -> None:
    started = "2026-01-09T11:20:00+00:00"
    assert described({"stage": "finetune", **summary, "started": started}, NOW) == f"{words}, started 40 min ago"
    assert described({"stage": "finetune", **summary}, NOW) == words


def test_of_two_runs_of_the_same_second_the_later_is_the_newest() -> None:
    later = found("a", "2026-01-01T10:00:00.200000", **SIMCLR)
    found("b", "2026-01-01T10:00:00.100000", **SIMCLR)
    assert find_run("latest") == later


def test_where_a_pretraining_will_do_the_newest_run_is_not_one_from_scratch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sslrun")
    first = found("a", "2026-01-01", **FROM_SCRATCH)
    assert find_run("latest", WITH_ENCODER, trained=True) == first
    assert caplog.messages[0] == "No finished run started from pretrained weights."
    pretrained = found("b", "2026-01-02", "pretrain", pretext="simclr", init="scratch")
    newest = found("c", "2026-01-03", **FROM_SCRATCH)
    assert find_run("latest", WITH_ENCODER, trained=True) == pretrained
    assert find_run("latest") == find_run("latest", WITH_ENCODER) == newest
    finetuned = found("d", "2026-01-04", **SIMCLR)
    found("e", "2026-01-05", **{**SIMCLR, "chosen": "scratch"})
    assert find_run("latest", WITH_ENCODER, trained=True) == finetuned
    assert len([m for m in caplog.messages if m.startswith("No finished run")]) == 1


def test_a_better_classifier_of_the_same_images_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sslrun")
    better = found("a", "2026-01-01", **SIMCLR)
    found("b", "2026-01-02", **{**SIMCLR, "data_fingerprint": "b", "val/accuracy": 0.99})
    found("c", "2026-01-02", **{**SIMCLR, "labels_val": 9, "val/accuracy": 0.98})
    found("d", "2026-01-02", status="interrupted", **{**SIMCLR, "val/accuracy": 0.97})
    found("e", "2026-01-02", **{**SIMCLR, "val/accuracy": 0.5})
    found("h", "2026-01-02", **{**SIMCLR, "val/accuracy": 1.0, "val/images": 4})
    newest = found("f", "2026-01-03", **FROM_SCRATCH)
    assert find_run("latest") == newest
    assert caplog.messages[0].startswith(f"Using {newest}: scratch, 60 labels, accuracy 70.0 % out of fold")
    assert caplog.messages[1].startswith(
        f"{better} has a higher accuracy: simclr, probe, 60 labels, accuracy 81.2 % out of fold"
    )
    assert caplog.messages[1].endswith(f". To use it: run={better}")
    assert find_run(str(newest)) == newest
    assert len(caplog.messages) == 2
    found("g", "2026-01-04", **{**SIMCLR, "val/accuracy": 0.9})
    find_run("latest")
    assert len(caplog.messages) == 3


def test_a_named_run_is_of_the_right_stage(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO", "sslrun")
    pretrained = found("a", "2026-01-03", "pretrain")
    classifier = found("b", "2026-01-02", **{"val/sure_above": 0.5})  # type: ignore[arg-type]
    unfinished = found("c", "2026-01-04", status="interrupted")
    evaluated = found("d", "2026-01-05", "evaluate")
    assert find_run("latest") == classifier
    assert find_run("latest", WITH_ENCODER) == pretrained
    assert [m.partition(":")[0] for m in caplog.messages] == [f"Using {classifier}", f"Using {pretrained}"]
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
        (evaluated, WITH_ENCODER, "is an evaluate run, without a network of its own: use another run"),
        (Path("outputs"), WITH_ENCODER, "outputs is not a run of sslrun (it has no summary.json)"),
        (Path("outputs/finetune"), WITH_ENCODER, "is a sweep; use one of its runs, such as outputs/finetune/b"),
        (classifier / "summary.json", WITH_ENCODER, f"summary.json is a file: use the run's folder, {classifier}"),
        (Path("latest"), ("export", "predict"), "no finished export or predict run in outputs: start one with "),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            find_run(str(run), stages)
        assert words in str(error.value)
