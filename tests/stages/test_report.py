"""`sslrun report`."""

from pathlib import Path

import pytest

from tests.helpers import QUICK, Cli, runs, study_table


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
    assert "no network trained from scratch to compare with" in answer.err


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
