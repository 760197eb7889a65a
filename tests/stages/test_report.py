"""`sslrun report`."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.evaluation.correctness import Correctness
from sslrun.stages import report
from sslrun.study.results import Row
from tests.helpers import QUICK, Cli, row, runs, study_table, summary


@pytest.mark.slow
def test_report_of_existing_runs_equals_that_of_the_study(in_study: Path, cli: Cli) -> None:
    answer = cli("report", str(in_study))
    assert answer.code == 0, answer.err
    (report,) = Path("outputs/report").iterdir()
    assert {tuple(sorted(r.items())) for r in study_table(report)} == {
        tuple(sorted(r.items())) for r in study_table(in_study)
    }
    classifiers = sorted(str(p) for p in Path("outputs/finetune/study_runs").iterdir())
    answer = cli("report", *classifiers)
    assert answer.code == 0, answer.err
    assert "rotation, auto" in answer.err


def test_report_names_unusable_runs(in_world: Path, cli: Cli) -> None:
    (classifier,) = runs("finetune")
    assert f"has not been evaluated; run: sslrun evaluate run={classifier}" in cli("report", str(classifier)).err
    assert "is a pretrain run" in cli("report", str(runs("pretrain")[0])).err
    assert "is not a run of sslrun" in cli("report", "nowhere").err
    assert cli("evaluate", *QUICK).code == 0
    answer = cli("report", str(classifier))
    assert answer.code == 0, answer.err
    assert "no network trained from scratch on the same labels to compare with" in answer.err


@pytest.mark.slow
def test_runs_on_the_same_labels_are_paired_at_every_image_size(cli: Cli) -> None:
    data = (
        "dataset=digits",
        "dataset.max_images=120",
        "labels=20",
        "backbone=smallcnn",
        "backbone.widths=[8,16]",
        *QUICK,
    )
    short = ("mode=finetune", "train.steps=2", "train.evaluations=1", "search=[]")
    for size, own in ((8, ("mode=probe",)), (16, short)):
        answer = cli("finetune", "init=scratch", f"dataset.image_size={size}", *data, *own)
        assert answer.code == 0, answer.err
    probe, tuned = runs("finetune")
    for run in (probe, tuned):
        assert cli("evaluate", f"run={run}", *QUICK).code == 0
    pixels = [summary(run)["subset_fingerprint"] for run in (probe, tuned)]
    assert pixels[0] != pixels[1]
    assert cli("report", str(probe), str(tuned)).code == 0
    (page,) = Path("outputs/report").iterdir()
    assert len({r["subset"] for r in study_table(page)}) == 1


@pytest.mark.slow
def test_report_distinguishes_runs_with_other_settings(in_world: Path, cli: Cli) -> None:
    short = ("mode=finetune", "label_fraction=0.5", "train.evaluations=1", *QUICK)
    assert cli("finetune", "-m", "init=scratch,simclr", "train.steps=2", *short).code == 0
    assert cli("finetune", "train.steps=3", *short).code == 0
    for run in [p for p in runs("finetune")][-2:]:
        assert cli("evaluate", f"run={run}", *QUICK).code == 0
    evaluated = [str(p) for p in runs("evaluate")]
    answer = cli("report", *evaluated, str(Path("outputs/evaluate")))
    assert "simclr train.steps=3, finetuned" in answer.err
    assert "simclr, finetuned" in answer.err


def reported(monkeypatch: pytest.MonkeyPatch, *rows: Row, tests: tuple[str, ...] = ("a",)) -> tuple[list[Row], str]:
    """Return the rows and the mode of the report on classifiers; a path is given for each, and twice for the first."""
    seen: list[tuple[list[Row], str]] = []
    named = [SimpleNamespace(path=str(i), row=r) for i, r in enumerate(rows)]
    paths = [*(n.path for n in named), *(["00"] if rows else [])]

    def publish(directory: Path, compared: list[Row], mode: str, *more: Any) -> None:
        assert more == (None, None)
        seen.append((compared, mode))

    fingerprints = {r.evaluated: tests[i % len(tests)] for i, r in enumerate(rows)}
    monkeypatch.setattr(report, "rows_of", lambda path: [rows[int(str(path))]])
    monkeypatch.setattr(report, "disambiguated", list)
    monkeypatch.setattr(report, "with_shared_subsets", list)
    monkeypatch.setattr(report, "read_summary", lambda path: {"data_fingerprint": fingerprints[str(path)]})
    monkeypatch.setattr(report, "publish", publish)
    page = report.report_on(paths, Path("out"))
    assert page == next(Path("out/report").iterdir()) / "report.html"
    page.parent.rmdir()
    return seen[0]


def test_a_report_compares_the_best_mode_of_the_pretrained_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(initialization: str, mode: str, **known: Any) -> Row:
        return row(initialization, mode, evaluated=f"{initialization} {mode}", **known)

    judged = {"val_accuracy": 0.5, "val_loss": 1.0}
    scratch, tuned = evaluated("scratch", "finetune", **judged), evaluated("simclr", "finetune", **judged)
    probe, knn = evaluated("simclr", "probe", val_accuracy=0.9, val_loss=1.0), evaluated("simclr", "knn")
    rows, mode = reported(monkeypatch, scratch, tuned, probe)
    assert (rows[:3], mode) == ([scratch, tuned, probe], "auto")
    assert [(r.mode, r.chosen, r.initialization) for r in rows[3:]] == [("auto", "probe", "simclr")]
    assert reported(monkeypatch, scratch, tuned) == ([scratch, tuned], "finetune")
    assert reported(monkeypatch, knn, scratch, probe) == ([knn, scratch, probe], "probe")
    assert reported(monkeypatch, scratch, knn)[1] == "knn"
    assert reported(monkeypatch, scratch)[1] == "finetune"
    assert reported(monkeypatch, probe, knn)[1] == "probe"
    rows, mode = reported(monkeypatch, evaluated("simclr", "auto", **judged), tuned, probe)
    assert (len(rows), mode) == (3, "auto")
    with pytest.raises(UserError, match="evaluated on 2 different sets of images"):
        reported(monkeypatch, tuned, probe, tests=("a", "b"))
    with pytest.raises(UserError, match="no finished run"):
        reported(monkeypatch)


def test_the_same_test_images_at_another_size_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pixels differ; their names do not."""
    names = {"small": ["a", "b"], "large": ["a", "b"], "others": ["a", "c"]}

    def correctness(evaluated: Path) -> Correctness | None:
        known = names.get(str(evaluated))
        return None if known is None else Correctness(np.ones(2, dtype=bool), np.array(known), None)

    monkeypatch.setattr(report, "read_correctness", correctness)
    small = row("scratch", "finetune", evaluated="small")
    large = row("pretrained", "probe", evaluated="large", image_size=224)
    rows, mode = reported(monkeypatch, small, large, tests=("a", "b"))
    assert (rows, mode) == ([small, large], "probe")
    for evaluated in ("others", "without predictions"):
        with pytest.raises(UserError, match="evaluated on 2 different sets of images"):
            reported(monkeypatch, small, replace(large, evaluated=evaluated), tests=("a", "b"))
