"""`mode=auto`: what it tries, by what it chooses, and that it never looks at the test split."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sslrun.report.study import conclusions
from sslrun.study import results
from sslrun.study.results import Row
from tests.conftest import QUICK, Cli, row
from tests.test_cli import runs, summary
from tests.test_compare import DIGITS, SHORT, study_runs


def test_auto_takes_the_best_on_validation_and_says_why(in_world: Path, cli: Cli) -> None:
    answer = cli(
        "finetune", "label_fraction=0.5", "train.steps=6", "train.evaluations=2", "dataset.val_fraction=0.5", *QUICK
    )
    assert answer.code == 0, answer.err
    run = summary(runs("finetune")[-1])
    assert run["mode"] == "auto"
    assert run["chosen"] == max(run["candidates"], key=run["candidates"].__getitem__)
    assert f"So: {run['chosen']}." in answer.err
    assert set(run["candidates"]) == {"finetune", "probe", "scratch"}
    assert len(study_runs("finetune")) == 3 * 3 + 1  # held-out thirds of the few labels, then all of them
    assert (runs("finetune")[-1] / "best.pt").is_file()
    test = cli("evaluate", *QUICK)
    assert test.code == 0, test.err
    assert summary(runs("evaluate")[-1])["mode"] == "auto"
    assert cli("report", str(runs("finetune")[-1])).code == 0
    (page,) = Path("outputs/report").glob("*/report.html")
    assert f"; {run['precision']} {run['memory_format']}<" in page.read_text()
    before = study_runs("finetune")
    again = cli("finetune", f"resume={runs('finetune')[-1]}")
    assert again.code == 0, again.err
    assert study_runs("finetune") == before


def test_auto_tries_each_setting_of_a_search(in_world: Path, cli: Cli) -> None:
    tried = 'search=["augment.probability=0.5","augment.probability=0"]'
    answer = cli("finetune", "labels_per_class=2", tried, "train.steps=3", "train.evaluations=1", *QUICK)
    assert answer.code == 0, answer.err
    (run,) = [s for p in runs("finetune") if (s := summary(p))["mode"] == "auto"]
    names = {"probe", *(f"{n} augment.probability={p}" for n in ("finetune", "scratch") for p in ("0.5", "0"))}
    assert set(run["candidates"]) == names
    assert run["candidates"][run["chosen"]] == max(run["candidates"].values())
    assert len(study_runs("finetune")) == 5 * 2 + 1  # halves of two labels a class, then all of them
    probabilities = [summary(Path("outputs/finetune/study_runs", p))["config"]["augment"]["probability"]
                     for p in study_runs("finetune") if p.startswith("scratch")]  # fmt: skip
    assert {0.5, 0} <= set(probabilities)
    name, _, setting = run["chosen"].partition(" ")
    final = summary(Path(run["chosen_run"]))
    assert not setting or final["config"]["augment"]["probability"] == float(setting.partition("=")[2])
    assert (final["config"]["init"] == "scratch") == (name == "scratch")
    before = study_runs("finetune")
    same = ("labels_per_class=2", tried, "train.steps=3", "train.evaluations=1", *QUICK)
    scratch = cli("finetune", "init=scratch", *same)
    assert scratch.code == 0, scratch.err
    alone = summary(runs("finetune")[-1])
    assert set(alone["candidates"]) == {n for n in names if n.startswith("scratch")}
    assert {k: run["candidates"][k] for k in alone["candidates"]} == alone["candidates"]
    assert len(study_runs("finetune")) - len(before) <= 1  # its two candidates were there; perhaps not on all labels


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["mode=finetune", 'search=["augment.probability=0"]'], "search= is of mode=auto"),
        (['search=["optimizer=sgd"]'], "search: optimizer=sgd: say a setting of the training"),
        (['search=["device.threads=1","train.save_minutes=1","hydra/launcher=basic"]'], "search: train.save_minutes=1"),
    ],
)
def test_what_cannot_be_searched(in_world: Path, cli: Cli, overrides: list[str], words: str) -> None:
    wrong = cli("finetune", "label_fraction=0.5", *overrides, *QUICK)
    assert wrong.code == 1
    assert words in wrong.err
    assert "Traceback" not in wrong.err


def test_auto_from_scratch_has_nothing_to_choose(in_world: Path, cli: Cli) -> None:
    answer = cli("finetune", "init=scratch", "label_fraction=0.5", "train.steps=4", "train.evaluations=1", *QUICK)
    assert answer.code == 0, answer.err
    assert summary(runs("finetune")[-1])["mode"] == "finetune"
    assert not study_runs("finetune")


def test_folds_are_stratified_and_cover_every_label_once() -> None:
    from sslrun.data.labels import fold_rows

    labels = np.repeat([0, 1, 2], [9, 6, 1])
    cv = [fold_rows(labels, k, 3, seed=0) for k in range(3)]
    assert sorted(np.concatenate(cv).tolist()) == list(range(16))
    for rows in cv:
        assert (labels[rows] == 0).sum() == 3
        assert (labels[rows] == 1).sum() == 2
    assert not np.array_equal(cv[0], fold_rows(labels, 0, 3, seed=1))


def test_auto_never_looks_at_the_test_split() -> None:
    def tested(initialization: str, mode: str, val: float, test: float) -> Row:
        return row(initialization, mode, val_accuracy=val, val_loss=1.0, test_accuracy=test)

    rows = [
        tested("scratch", "finetune", 0.8, 0.9),
        tested("simclr", "finetune", 0.7, 1.0),
        tested("simclr", "probe", 0.9, 0.1),
    ]
    (chosen,) = results.with_auto(rows, ["simclr"])
    assert (chosen.chosen, chosen.test_accuracy, chosen.initialization) == ("probe", 0.1, "simclr")
    rows[2] = replace(rows[2], val_accuracy=0.75)
    assert results.with_auto(rows, ["simclr"])[0].chosen == "scratch"


def test_where_there_is_nothing_to_choose_by_nothing_is_chosen() -> None:
    def judged(initialization: str, mode: str, val: float | None, cv: float | None = None) -> Row:
        return row(initialization, mode, val_accuracy=val, val_loss=1.0, cv_accuracy=cv, cv_loss=1.0)

    rows = [judged("scratch", "finetune", None), judged("simclr", "finetune", None), judged("simclr", "probe", None)]
    assert results.with_auto(rows, ["simclr"]) == []
    assert results.best_classifier(rows) is None
    # what was held out and what was not cannot be compared: a few pictures of validation flatter
    cv = [
        judged("scratch", "probe", 0.99),
        judged("scratch", "finetune", 0.9, 0.7),
        judged("simclr", "probe", 0.8, 0.75),
    ]
    best = results.best_classifier(cv)
    assert best is not None
    assert best.finetuned == "simclr probe"


def test_scratch_is_scratch_whatever_setting_it_was_chosen_with(tmp_path: Path) -> None:
    run, test = tmp_path / "run", tmp_path / "test"
    for folder in (run, test):
        folder.mkdir()
    made = {"mode": "auto", "chosen": "scratch augment.probability=0.5", "labels": {"train": 9, "validation": 9},
            "seeds": {"training": 0}, "label_fraction": 0.1, "subset_fingerprint": "a", "dataset": "digits",
            "backbone": "smallcnn"}  # fmt: skip
    scores = {"of_run": str(run), "test/accuracy": 0.5, "test/f1_macro": 0.5}
    own = {"stage": "", "status": "finished", "config": {"seed": 0}, "overrides": [], "wall_time_seconds": 1.0}
    (run / "summary.json").write_text(json.dumps(own | made))
    (test / "summary.json").write_text(json.dumps(own | scores))
    rows = [results.row_of(test, "simclr")]
    assert conclusions(results.compared(rows), "auto") == [
        "simclr, 9 labels: nothing to compare with (scratch was chosen each time)"
    ]


@pytest.mark.slow
def test_auto_with_another_optimizer_and_joined_classes(cli: Cli) -> None:
    """Its candidates get the whole config by overrides: of groups whose keys differ, and of mappings."""
    joined = 'dataset.classes={low ones: ["0","1","2"], high: ["8","9"]}'
    steps = ("train.steps=3", "train.evaluations=1", "train.batch_size=16")
    assert cli("pretrain", *DIGITS, joined, *steps).code == 0
    answer = cli("finetune", "optimizer=sgd", "label_fraction=0.3", *steps, *QUICK)
    assert answer.code == 0, answer.err
    made = [json.loads(p.read_text())["config"] for p in Path("outputs/finetune/study_runs").glob("*/summary.json")]
    assert {c["optimizer"]["_target_"] for c in made} == {"sslrun.training.optimizers.sgd"}
    assert {tuple(c["dataset"]["classes"]) for c in made} == {("low ones", "high")}
    before = study_runs("finetune")
    assert cli("pretrain", f"resume={runs('pretrain')[0]}", "train.steps=5").code == 0
    assert cli("finetune", "optimizer=sgd", "label_fraction=0.3", *steps, *QUICK).code == 0
    assert len(study_runs("finetune")) > len(before)  # the weights are others now, in the same place


def test_auto_says_when_there_is_nothing_to_choose_by(in_world: Path, cli: Cli) -> None:
    answer = cli("finetune", "labels_per_class=1", "dataset.val_fraction=0", *QUICK)
    assert "mode=auto has nothing to choose by" in answer.err
    assert answer.code == 1
    nothing = cli("compare", *SHORT, "dataset.val_fraction=0", "labels_per_class=[1]", "seeds=1")
    assert "nothing to choose by, without validation and with labels_per_class=1" in nothing.err
    assert "the study sets seed itself" in cli("compare", *SHORT, "finetune.seed=3").err
    assert "labels_per_class=5000 is more than there are" in cli("compare", *SHORT, "labels_per_class=[5000]").err


def test_a_gain_that_random_features_have_too_is_not_praised_alone() -> None:
    def rows(initialization: str, mode: str, test: float) -> list[Row]:
        return [row(initialization, mode, test_accuracy=test + 0.001 * n, subset=str(n), seed=n) for n in range(3)]

    pretrained = [*rows("scratch", "finetune", 0.5), *rows("simclr", "finetune", 0.7)]
    (answer,) = conclusions(results.compared([*pretrained, *rows("scratch", "probe", 0.72)]), "finetune")
    assert "helps by 20.0 points" in answer
    assert answer.endswith("but a probe of the untrained network reaches 72.1 %")
    (answer,) = conclusions(results.compared([*pretrained, *rows("scratch", "probe", 0.6)]), "finetune")
    assert "untrained" not in answer
