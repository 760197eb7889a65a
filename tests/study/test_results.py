"""Verdicts in simulations, rows of results, and the choice of `mode=auto`."""

import csv
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sslrun.base.errors import UserError
from sslrun.evaluation.intervals import mean_interval, paired
from sslrun.report.study import conclusions, verdict_text
from sslrun.study import results
from sslrun.study.results import (
    Row,
    best_classifier,
    compared,
    disambiguated,
    labels_needed,
    row_of,
    rows_of,
    verdict,
    with_auto,
)
from tests.helpers import named_values, row


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_false_positive_rate_is_5_percent(seeds: int) -> None:
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(2000):
        subset = rng.normal(0, 0.05, seeds)  # the effect of the subset is common to both
        a, b = 0.7 + subset + rng.normal(0, 0.01, (2, seeds))
        texts.append(verdict_text(verdict(paired(dict(named_values(a)), dict(named_values(b))))))
    none = sum(t.startswith("no difference shown") for t in texts) / len(texts)
    assert abs(none - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)
    assert sum(t.startswith("better") for t in texts) == pytest.approx(
        sum(t.startswith("worse") for t in texts), abs=45
    )


def test_pairing_gives_power() -> None:
    rng = np.random.default_rng(1)
    result = unpaired = 0
    for _ in range(200):
        subset = rng.normal(0, 0.05, 5)
        a, b = 0.75 + subset + rng.normal(0, 0.01, 5), 0.7 + subset + rng.normal(0, 0.01, 5)
        text = verdict_text(verdict(paired(dict(named_values(a)), dict(named_values(b)))))
        result += text.startswith("better than scratch by")
        unpaired += stats.ttest_ind(a, b).pvalue < 0.05
    assert result > 195
    assert unpaired < 120


def test_labels_needed_interpolates_the_curve() -> None:
    curve = [(1000, 0.9), (10, 0.5), (100, 0.7)]
    for n, accuracy in curve:
        assert labels_needed(curve, accuracy) == (pytest.approx(n), "=")
    assert labels_needed(curve, 0.6) == (pytest.approx(math.sqrt(10 * 100)), "=")
    assert labels_needed(curve, 0.95) == (1000, ">")
    assert labels_needed(curve, 0.4) == (10, "<")
    assert labels_needed([(10, 0.5), (100, 0.45), (1000, 0.9)], 0.5)[0] == pytest.approx(10)  # not after the dip


def test_auto_does_not_use_test_accuracy() -> None:
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


def test_without_validation_nothing_is_chosen() -> None:
    def judged(initialization: str, mode: str, val: float | None, val_features: float | None = None) -> Row:
        return row(initialization, mode, val_accuracy=val, val_loss=1.0, cv_accuracy=val_features, cv_loss=1.0)

    rows = [judged("scratch", "finetune", None), judged("simclr", "finetune", None), judged("simclr", "probe", None)]
    assert results.with_auto(rows, ["simclr"]) == []
    assert results.best_classifier(rows) is None
    # cross-validation and a small validation split, which is optimistic, cannot be compared
    val_features = [
        judged("scratch", "probe", 0.99),
        judged("scratch", "finetune", 0.9, 0.7),
        judged("simclr", "probe", 0.8, 0.75),
    ]
    best = results.best_classifier(val_features)
    assert best is not None
    assert best.finetuned == "simclr probe"


def test_a_choice_of_scratch_is_recognized_with_any_setting(tmp_path: Path) -> None:
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
        "simclr, 9 labels: no network trained from scratch to compare with (auto chose scratch on every label subset)"
    ]


SUMMARY: dict[str, Any] = {"status": "finished", "config": {"seed": 3}, "overrides": []}
FINETUNED: dict[str, Any] = {
    **{"stage": "finetune", "init": "simclr", "source": "outputs/pretrain/a", "mode": "probe", "dataset": "digits"},
    **{"backbone": "smallcnn", "label_fraction": 0.25, "labels_per_class": None, "subset_fingerprint": "5ub5e7"},
    **{"labels": {"train": 41, "validation": 17}, "seeds": {"training": 3, "subset": 4, "split": 5}},
    **{"val/accuracy": 0.61, "val/loss": 1.23, "wall_time_seconds": 12.5},
}
EVALUATED: dict[str, Any] = {
    **{"stage": "evaluate", "test/accuracy": 0.72, "test/f1_macro": 0.68, "test/nll": 0.9, "wall_time_seconds": 99.0}
}


def written(**changes: Any) -> Path:
    """Write the summaries of a classifier and of its evaluation; return the directory of the evaluation."""
    finetuned, evaluated = Path("outputs/finetune/a"), Path("outputs/evaluate/b")
    for folder, summary in ((finetuned, FINETUNED | changes), (evaluated, {**EVALUATED, "of_run": str(finetuned)})):
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(SUMMARY | summary))
    return evaluated


def test_a_row_has_validation_and_training_from_the_classifier_and_test_from_its_evaluation() -> None:
    row = row_of(written(), "simclr")
    assert (row.val_accuracy, row.val_loss) == (0.61, 1.23)
    assert (row.test_accuracy, row.test_f1_macro) == (0.72, 0.68)
    assert (row.labels, row.labels_validation, row.seed, row.subset) == (41, 17, 3, "5ub5e7")
    assert (row.mode, row.initialization, row.dataset, row.backbone) == ("probe", "simclr", "digits", "smallcnn")
    assert (row.seconds, row.finetuned, row.evaluated) == (12.5, "outputs/finetune/a", "outputs/evaluate/b")
    assert row.label_budget == "0.25 of the labels"


def test_a_row_of_a_classifier_without_validation_has_no_validation_accuracy() -> None:
    row = row_of(written(**{"val/accuracy": None, "val/loss": None}), "simclr")
    assert row.val_accuracy is row.val_loss is row.selection_score("val/accuracy") is None
    assert row.test_accuracy == 0.72


def test_a_classifier_and_its_evaluation_are_the_same_row() -> None:
    evaluated = written(label_fraction=None, labels_per_class=4)
    assert rows_of(evaluated) == rows_of(Path("outputs/finetune/a")) == [row_of(evaluated, "simclr")]
    assert row_of(evaluated, "simclr").label_budget == "4 per class"


@pytest.mark.parametrize("cv", [{"val/accuracy": 0.55, "val/f1_macro": 0.5, "val/loss": 0.9}, None])
def test_classifiers_are_compared_by_cross_validation_where_there_is_one(cv: dict[str, float] | None) -> None:
    row = row_of(written(**{"val/f1_macro": 0.6}), "simclr", cv)
    assert row.selection_score("val/accuracy") == ((0.55, -0.9) if cv else (0.61, -1.23))
    assert row.selection_score("val/f1_macro") == ((0.5, -0.9) if cv else (0.6, -1.23))
    assert (row.cv_accuracy, row.cv_f1_macro, row.cv_loss) == ((0.55, 0.5, 0.9) if cv else (None, None, None))


def test_balanced_classifiers_are_chosen_by_macro_f1_even_if_only_one_is() -> None:
    def judged(mode: str, accuracy: float, f1: float, **known: Any) -> Row:
        return row("simclr", mode, val_accuracy=accuracy, val_f1_macro=f1, val_loss=1.0, **known)

    rows = [judged("finetune", 0.9, 0.3), judged("probe", 0.7, 0.6)]
    best = results.best_classifier(rows)
    assert best is not None
    assert best.mode == "finetune"
    best = results.best_classifier([rows[0], replace(rows[1], balance="logit")])
    assert best is not None
    assert best.mode == "probe"
    (auto,) = results.with_auto([replace(rows[0], balance="logit"), rows[1]], ["simclr"])
    assert auto.chosen == "probe"


def validated(initialization: str, mode: str, accuracy: float, loss: float, **known: Any) -> Row:
    return row(initialization, mode, val_accuracy=accuracy, val_loss=loss, **known)


@pytest.mark.parametrize("by", ["validation", "folds"])
def test_ties_in_accuracy_are_broken_by_loss(by: str) -> None:
    def judged(initialization: str, mode: str, loss: float) -> Row:
        if by == "validation":
            return validated(initialization, mode, 0.8, loss)
        return validated(initialization, mode, 0.9, 1 / loss, cv_accuracy=0.8, cv_loss=loss)

    losses = {("scratch", "finetune"): 0.5, ("simclr", "finetune"): 0.7, ("simclr", "probe"): 0.2}
    for smallest in losses:
        rows = [judged(*network, 0.1 if network == smallest else loss) for network, loss in losses.items()]
        (chosen,) = with_auto(rows, ["simclr"])
        assert chosen.chosen == ("scratch" if smallest[0] == "scratch" else smallest[1])
        best = best_classifier(rows)
        assert best is not None
        assert (best.initialization, best.mode) == smallest


def test_auto_chooses_among_networks_with_the_same_labels_and_seed() -> None:
    """Better ones with another seed, subset or label budget are not candidates."""
    ours = [validated("simclr", "finetune", 0.7, 1.0), validated("simclr", "probe", 0.6, 1.0)]
    for other in ({"seed": 1}, {"subset": "b"}, {"label_budget": "0.5 of the labels"}):
        (chosen,) = with_auto([*ours, validated("simclr", "probe", 0.9, 1.0, **other)], ["simclr"])
        assert (chosen.chosen, chosen.val_accuracy) == ("finetune", 0.7)


def test_runs_of_two_seeds_on_the_same_labels_are_two_pairs() -> None:
    """As with all labels, where the subset does not depend on the seed."""
    accuracies = {"scratch": (0.50, 0.60), "simclr": (0.55, 0.69)}
    rows = [row(s, "finetune", seed=n, test_accuracy=a) for s, both in accuracies.items() for n, a in enumerate(both)]
    for given in (rows, rows[::-1]):
        verdict = next(e.verdict for e in compared(given) if e.initialization == "simclr")
        assert verdict is not None
        assert verdict.difference is not None
        assert verdict.difference.n == 2
        assert verdict.difference.mean == pytest.approx(0.07)


def test_differences_are_paired_by_subset() -> None:
    rows = [row("scratch", "finetune", subset=s, test_accuracy=a) for s, a in (("a", 0.4), ("b", 0.6), ("c", 0.9))]
    rows += [row("simclr", "finetune", subset=s, test_accuracy=a) for s, a in (("b", 0.7), ("a", 0.5), ("d", 0.1))]
    verdict = next(e.verdict for e in compared(rows) if e.initialization == "simclr")
    assert verdict is not None
    assert verdict.difference is not None
    assert (verdict.difference.n, verdict.difference.mean) == (2, pytest.approx(0.1))


def test_the_best_classifier_has_the_most_labels() -> None:
    """Even if one with fewer labels has a higher validation accuracy."""
    few = [validated("simclr", "probe", 0.95, 0.1, labels=30), validated("scratch", "finetune", 0.9, 0.1, labels=30)]
    many = [validated("simclr", "probe", 0.8, 0.5, labels=300), validated("simclr", "finetune", 0.7, 0.5, labels=300)]
    for rows in ([*few, *many], [*many, *few]):
        best = best_classifier(rows)
        assert best is not None
        assert (best.labels, best.mode) == (300, "probe")


def test_rows_of_a_study_are_read_back() -> None:
    evaluated = written()
    rows = [
        row_of(evaluated, "simclr", {"val/accuracy": 0.7, "val/loss": 0.3}),
        row_of(evaluated, "simclr 2", setting="augment.probability=0.5"),
    ]
    study = Path("study")
    study.mkdir()
    (study / "summary.json").write_text(json.dumps({**SUMMARY, "stage": "compare", "wall_time_seconds": 1.0}))
    with (study / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(r) for r in [*rows, replace(rows[0], mode="auto")])
    assert rows_of(study) == rows


def test_of_several_evaluations_of_a_run_the_newest_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(path: str, stage: str, started: str, **more: Any) -> Path:
        directory = Path("outputs", path)
        directory.mkdir(parents=True)
        summary = {"stage": stage, "status": "finished", "config": {"seed": 0}, "overrides": [],
                   "wall_time_seconds": 1.0, "started": started, "init": "scratch", **more}  # fmt: skip
        (directory / "summary.json").write_text(json.dumps(summary))
        return directory

    run = written("finetune/a", "finetune", "2026-01-01")
    written("evaluate/z", "evaluate", "2026-01-02", of_run=str(run))
    newest = written("evaluate/study_runs/a", "evaluate", "2026-01-03", of_run=str(run))
    monkeypatch.setattr(results, "row_of", lambda evaluated, initialization: (evaluated, initialization))
    assert rows_of(run) == rows_of(run.resolve()) == [(newest, "scratch")]


def test_verdicts() -> None:
    def of(*differences: float) -> tuple[str, float | None]:
        both = {str(i): (0.5 + d, 0.5) for i, d in enumerate(differences)}
        result = verdict(paired({k: a for k, (a, _) in both.items()}, {k: b for k, (_, b) in both.items()}))
        return result.kind, result.difference.mean if result.difference else None

    assert of(0.10, 0.11, 0.12) == ("better", pytest.approx(0.11))
    assert of(-0.10, -0.11, -0.12) == ("worse", pytest.approx(-0.11))
    assert of(-0.10, 0.11, 0.02) == ("none", pytest.approx(0.01))
    assert of(0.10) == ("too few subsets", pytest.approx(0.1))
    assert of() == ("no baseline", None)


def test_entries_are_sorted_by_labels_then_network_then_mode_and_compared_at_the_same_budget() -> None:
    def rows(initialization: str, mode: str, labels: int, *accuracies: float, budget: str = "") -> list[Row]:
        known: dict[str, Any] = {"labels": labels, "label_budget": budget or f"{labels}"}
        return [row(initialization, mode, subset=f"s{i}", test_accuracy=a, **known) for i, a in enumerate(accuracies)]

    auto = rows("simclr", "auto", 30, 0.9, 0.8, 0.8)
    auto = [replace(r, chosen=c) for r, c in zip(auto, ("probe", "scratch", "probe"), strict=True)]
    given = [
        *rows("simclr", "probe", 300, 0.7, 0.7), *auto, *rows("simclr", "finetune", 30, 0.65, 0.75, 0.7),
        *rows("scratch", "probe", 30, 0.1), *rows("scratch", "finetune", 300, 0.8, 0.8),
        *rows("scratch", "finetune", 30, 0.55, 0.65, 0.6), *rows("scratch", "finetune", 30, 0.2, budget="0.1"),
    ]  # fmt: skip
    given = [replace(r, chosen="probe") if r.mode == "finetune" else r for r in given]
    entries = compared(given)
    assert [(e.labels, e.initialization, e.mode, e.label_budget) for e in entries] == [
        (30, "simclr", "auto", "30"), (30, "simclr", "finetune", "30"), (30, "scratch", "finetune", "30"),
        (30, "scratch", "finetune", "0.1"), (30, "scratch", "probe", "30"), (300, "simclr", "probe", "300"),
        (300, "scratch", "finetune", "300"),
    ]  # fmt: skip
    auto_entry, tuned, base, _, frozen, probe, _ = entries
    assert auto_entry.chosen == {"probe": 2, "scratch": 1}
    assert tuned.chosen == {}
    assert tuned.accuracy == mean_interval([0.65, 0.75, 0.7])
    assert base.verdict is None
    assert base.labels_needed is None
    differences = [e.verdict.difference.mean for e in (tuned, frozen, probe) if e.verdict and e.verdict.difference]
    assert differences == pytest.approx([0.1, -0.45, -0.1])
    assert tuned.labels_needed is not None
    assert tuned.labels_needed == (pytest.approx(30 * 10**0.5), "=")
    assert compared(rows("simclr", "probe", 30, 0.7))[0].labels_needed is None


def test_auto_needs_a_score_of_every_candidate_and_keeps_its_name() -> None:
    ours = [validated("simclr", "finetune", 0.7, 1.0), validated("simclr", "probe", 0.6, 1.0)]
    scratch = [validated("scratch", "finetune", 0.8, 1.0), validated("scratch", "probe", 0.99, 1.0)]
    (chosen,) = with_auto([*ours, *scratch, validated("simclr", "knn", 0.5, 1.0)], ["simclr"])
    assert (chosen.initialization, chosen.mode, chosen.chosen, chosen.val_accuracy) == (
        "simclr",
        "auto",
        "scratch",
        0.8,
    )
    assert with_auto([*ours, replace(scratch[0], val_loss=None)], ["simclr"]) == []
    both = [*ours, *scratch, validated("rotation", "finetune", 0.9, 1.0)]
    assert [(r.initialization, r.chosen) for r in with_auto(both, ["rotation", "simclr"])] == [
        ("rotation", "finetune"),
        ("simclr", "scratch"),
    ]
    assert best_classifier([*ours, validated("simclr", "auto", 0.99, 1.0)]) == ours[0]


def test_rows_of_a_sweep_are_its_finished_jobs_in_order() -> None:
    for name, status in (("10", "finished"), ("9", "finished"), ("2", "failed")):
        job, run = Path("sweep", name), Path("outputs/finetune", name)
        for folder, known in ((job, {**EVALUATED, "of_run": str(run)}), (run, FINETUNED)):
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps({**SUMMARY, **known, "status": status}))
    assert [r.evaluated for r in rows_of(Path("sweep"))] == ["sweep/9", "sweep/10"]
    assert [r.finetuned for r in rows_of(Path("sweep"))] == ["outputs/finetune/9", "outputs/finetune/10"]


def test_what_cannot_be_reported_is_named() -> None:
    for stage, words in (("compare", "is an unfinished study; to continue it: sslrun compare resume=a"),
                         ("pretrain", "is a pretrain run; a report needs"),
                         ("finetune", "has not been evaluated; run: sslrun evaluate run=a")):  # fmt: skip
        Path("a").mkdir(exist_ok=True)
        Path("a/summary.json").write_text(json.dumps({**SUMMARY, "stage": stage, "wall_time_seconds": 1.0}))
        with pytest.raises(UserError, match=words):
            rows_of(Path("a"))
    evaluated = written()
    unfinished = {**SUMMARY, **EVALUATED, "of_run": "outputs/finetune/a", "status": "failed"}
    (evaluated / "summary.json").write_text(json.dumps(unfinished))
    with pytest.raises(UserError, match="has not been evaluated"):
        rows_of(Path("outputs/finetune/a"))


def test_networks_are_named_by_what_differs_from_those_from_scratch() -> None:
    def made(name: str, initialization: str, mode: str = "finetune", setting: str = "", **changes: Any) -> Row:
        config = {"train": {"steps": 5}, "pooling": "average", "augment": {"probability": 0.8}, "seed": len(runs),
                  "subset_seed": len(runs), "device": {"threads": len(runs)}, "dataset": {"root": name}, "mode": mode,
                  "init": name, "label_fraction": len(runs), **changes.pop("config", {})}  # fmt: skip
        source = changes.pop("source", "outputs/pretrain/a")
        run = Path("outputs", name)
        run.mkdir(parents=True)
        summary = {**SUMMARY, **FINETUNED, "source": source, "config": config, **changes}
        (run / "summary.json").write_text(json.dumps(summary))
        runs.append(name)
        return row(initialization, mode, setting=setting, finetuned=str(run))

    runs: list[str] = []
    longer, grid = {"train": {"steps": 9}}, {"pooling": "grid"}
    rows = [
        made("a", "simclr", config=longer),
        made("b", "simclr", source="outputs/pretrain/b"),
        made("c", "simclr", config=grid),
        made("d", "simclr", "probe", poolings={}, config=grid),
        made("e", "scratch"),
        made("f", "scratch", source="scratch"),
        made("g", "scratch", config=longer),
        made("h", "imagenet", source="x"),
        made("i", "imagenet", source="y"),
        made("j", "rotation", source="z"),
    ]
    assert [r.initialization for r in disambiguated(rows)] == [
        "simclr train.steps=9", "simclr 2", "simclr pooling=grid", "simclr pooling=auto", "scratch", "scratch",
        "scratch train.steps=9", "imagenet", "imagenet", "rotation",
    ]  # fmt: skip
    key = "augment.probability"
    mild: dict[str, Any] = {"augment": {"probability": 0.2}}
    searched = [
        made("k", "scratch", setting=f"{key}=0.2", config=mild),
        made("l", "simclr", setting=f"{key}=0.8"),
        made("m", "simclr", "probe", config=mild),
    ]
    assert [r.initialization for r in disambiguated(searched)] == ["scratch", "simclr", "simclr"]
    alone = [made("n", "simclr", config=longer), made("o", "simclr", config=longer), made("p", "simclr")]
    assert [r.initialization for r in disambiguated(alone)] == ["simclr", "simclr", "simclr train.steps=5"]
    many = [made("q", "simclr", config=longer), made("r", "simclr", config=longer), made("s", "scratch")]
    many.append(made("t", "rotation", config={"train": {}}))
    names = ["simclr train.steps=9", "simclr train.steps=9", "scratch", "rotation train.steps=None"]
    assert [r.initialization for r in disambiguated(many)] == names
    assert disambiguated([]) == []
