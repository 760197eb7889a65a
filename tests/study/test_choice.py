"""`mode=auto` and `search=`: the candidates, and how one is chosen."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.runs import checkpoint
from sslrun.runs.log import read_metrics
from sslrun.runs.run import Run, Stages
from sslrun.stages.table import job, stage
from sslrun.study.choice import choose, folds_of, score_among, score_of
from sslrun.study.launch import StudyRun
from tests.helpers import QUICK, SMALL_STUDY, STUDY_DATA, Cli, runs, study_runs, study_table, summary


def figures(run: Path) -> list[str]:
    return sorted(p.name for p in run.glob("figures/*"))


def test_auto_chooses_the_best_on_validation_and_logs_the_scores(in_world: Path, cli: Cli) -> None:
    answer = cli(
        "finetune", "label_fraction=0.5", "train.steps=6", "train.evaluations=2", "dataset.val_fraction=0.5", *QUICK
    )
    assert answer.code == 0, answer.err
    run = summary(runs("finetune")[-1])
    assert run["mode"] == "auto"
    assert run["chosen"] == max(run["candidates"], key=run["candidates"].__getitem__)
    assert f"Chosen: {run['chosen']}." in answer.err
    for name, accuracy in run["candidates"].items():
        assert f"{name} {100 * accuracy:.1f} %" in answer.err
    assert set(run["candidates"]) == {"finetune", "probe", "scratch"}
    assert len(study_runs("finetune")) == 3 * 3 + 1  # 3-fold cross-validation, then a training on all labels
    assert (runs("finetune")[-1] / "best.pt").is_file()
    assert figures(runs("finetune")[-1]) == ([] if run["chosen"] == "probe" else ["curves.png", "views.png"])
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
    search = 'search=["augment.probability=0.5","augment.probability=0"]'
    answer = cli("finetune", "labels_per_class=2", search, "train.steps=3", "train.evaluations=1", *QUICK)
    assert answer.code == 0, answer.err
    (run,) = [s for p in runs("finetune") if (s := summary(p))["mode"] == "auto"]
    names = {"probe", *(f"{n} augment.probability={p}" for n in ("finetune", "scratch") for p in ("0.5", "0"))}
    assert set(run["candidates"]) == names
    assert run["candidates"][run["chosen"]] == max(run["candidates"].values())
    assert (
        len(study_runs("finetune")) == 5 * 2 + 1
    )  # 2-fold cross-validation with two labels per class, then all labels
    probabilities = [summary(Path("outputs/finetune/study_runs", p))["config"]["augment"]["probability"]
                     for p in study_runs("finetune") if p.startswith("scratch")]  # fmt: skip
    assert {0.5, 0} <= set(probabilities)
    name, _, setting = run["chosen"].partition(" ")
    final = summary(Path(run["chosen_run"]))
    assert not setting or final["config"]["augment"]["probability"] == float(setting.partition("=")[2])
    assert (final["config"]["init"] == "scratch") == (name == "scratch")
    before = study_runs("finetune")
    same = ("labels_per_class=2", search, "train.steps=3", "train.evaluations=1", *QUICK)
    scratch = cli("finetune", "init=scratch", *same)
    assert scratch.code == 0, scratch.err
    alone = summary(runs("finetune")[-1])
    assert set(alone["candidates"]) == {n for n in names if n.startswith("scratch")}
    assert {k: run["candidates"][k] for k in alone["candidates"]} == alone["candidates"]
    assert figures(runs("finetune")[-1]) == ["curves.png", "views.png"]
    curves = [read_metrics(p) for p in (runs("finetune")[-1], Path(alone["chosen_run"]))]
    assert curves[0] == curves[1]
    assert [r["step"] for r in curves[0] if "val/accuracy" in r] == [0, 3]
    assert (
        len(study_runs("finetune")) - len(before) <= 1
    )  # its two candidates exist already, but perhaps not trained on all labels


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["mode=finetune", 'search=["augment.probability=0"]'], "search= needs mode=auto, found mode=finetune"),
        (['search=["optimizer=sgd"]'], "search: optimizer=sgd: expected a training setting"),
        (['search=["device.threads=1","train.save_minutes=1","hydra/launcher=basic"]'], "search: train.save_minutes=1"),
    ],
)
def test_invalid_searches(in_world: Path, cli: Cli, overrides: list[str], text: str) -> None:
    wrong = cli("finetune", "label_fraction=0.5", *overrides, *QUICK)
    assert wrong.code == 1
    assert text in wrong.err
    assert "Traceback" not in wrong.err


def test_auto_from_scratch_without_search_is_finetune(in_world: Path, cli: Cli) -> None:
    answer = cli("finetune", "init=scratch", "label_fraction=0.5", "train.steps=4", "train.evaluations=1", *QUICK)
    assert answer.code == 0, answer.err
    assert summary(runs("finetune")[-1])["mode"] == "finetune"
    assert not study_runs("finetune")


@pytest.mark.slow
def test_auto_with_another_optimizer_and_joined_classes(cli: Cli) -> None:
    """Candidates get the whole config as overrides, also from other groups and of mappings."""
    joined = 'dataset.classes={low ones: ["0","1","2"], high: ["8","9"]}'
    steps = ("train.steps=3", "train.evaluations=1", "train.batch_size=16")
    assert cli("pretrain", *STUDY_DATA, joined, *steps).code == 0
    answer = cli("finetune", "optimizer=sgd", "label_fraction=0.3", *steps, *QUICK)
    assert answer.code == 0, answer.err
    made = [json.loads(p.read_text())["config"] for p in Path("outputs/finetune/study_runs").glob("*/summary.json")]
    assert {c["optimizer"]["_target_"] for c in made} == {"sslrun.training.optimizers.sgd"}
    assert {tuple(c["dataset"]["classes"]) for c in made} == {("low ones", "high")}
    before = study_runs("finetune")
    assert cli("pretrain", f"resume={runs('pretrain')[0]}", "train.steps=5").code == 0
    assert cli("finetune", "optimizer=sgd", "label_fraction=0.3", *steps, *QUICK).code == 0
    assert len(study_runs("finetune")) > len(before)  # the same path with other weights


def test_auto_needs_validation_or_two_labels_per_class(in_world: Path, cli: Cli) -> None:
    answer = cli("finetune", "labels_per_class=1", "dataset.val_fraction=0", *QUICK)
    assert "mode=auto cannot choose a classifier" in answer.err
    assert answer.code == 1
    study = ("compare", *SMALL_STUDY, "pretexts=[rotation]", "seeds=1")
    nothing = cli(*study, "dataset.val_fraction=0", "labels_per_class=[1,5000]")
    assert "cannot choose a classifier without validation images and with labels_per_class=1" in nothing.err
    assert "the study sets seed itself" in cli(*study, "finetune.seed=3").err
    assert re.search(r"^labels_per_class=5000: 0 has \d+, .* all of them are used\.$", nothing.err, re.M)


def test_a_search_tries_each_setting_and_evaluates_the_best_on_validation(cli: Cli) -> None:
    search = 'search=["train.learning_rate=0.002","train.learning_rate=1e-7"]'
    short = [s for s in SMALL_STUDY if s != "search=[]"]
    answer = cli("compare", *short, search, "pretexts=[rotation]", "labels_per_class=[3]", "seeds=1")
    assert answer.code == 0, answer.err
    assert len(study_runs("finetune")) == 2 * 2 + 2  # scratch and rotation with both settings, two probes
    assert len(study_runs("evaluate")) == 4
    made = {p: summary(Path("outputs/finetune/study_runs", p)) for p in study_runs("finetune")}
    (study,) = runs("compare")
    trained = [r for r in study_table(study) if r["mode"] == "finetune"]
    assert [r["initialization"] for r in trained] == ["scratch", "rotation"]
    for r in trained:
        both = {
            s["config"]["train"]["learning_rate"]: s
            for p, s in made.items()
            if p.startswith(f"{r['initialization']}_fine")
        }
        assert set(both) == {0.002, 1e-7}
        scores = {rate: (s["val/accuracy"], -s["val/loss"]) for rate, s in both.items()}
        assert r["initialization"] != "scratch" or scores[0.002] != scores[1e-7]
        chosen = float(r["setting"].partition("=")[2])
        assert scores[chosen] == max(scores.values())
        assert summary(Path(r["finetuned"]))["config"]["train"]["learning_rate"] == chosen
    assert re.search(rf"{trained[0]['setting']} \([12] of 2\)", (study / "report.html").read_text())
    own = cli("report", str(study))  # names do not contain the searched settings
    assert "from scratch " in own.err
    assert "learning_rate" not in own.err
    for given, text in (
        ('search=["seed=3"]', "search: seed=3: expected a training setting"),
        ('search=["train.steps=many"]', "search: train.steps"),
        ('search=["train.lerning_rate=1"]', "no such key; did you mean train.learning_rate?"),
    ):
        wrong = cli("compare", *short, given, "pretexts=[rotation]")
        assert wrong.code == 1
        assert text in wrong.err
        assert "Traceback" not in wrong.err


def test_settings_of_the_user_are_not_searched() -> None:
    from sslrun.stages.table import stage
    from sslrun.study.choice import searched

    stages = Stages(stage, job)

    both = ["augment.probability=0.5", "augment.probability=0"]
    assert searched(stages, both, [], None) == both
    assert searched(stages, [*both, "label_smoothing=0"], ["augment.probability=0.2"], None) == ["label_smoothing=0"]
    momentum = ["optimizer.momentum=0.5"]
    assert searched(stages, momentum, ["optimizer=sgd"], None) == momentum
    assert searched(stages, momentum, ["dataset=folder", "optimizer=sgd"], None) == momentum  # whose root is not given
    with pytest.raises(UserError, match=r"search: optimizer\.momentum: no such key"):
        searched(stages, momentum, [], None)


@pytest.mark.slow
def test_auto_uses_cross_validation_if_validation_is_small(cli: Cli) -> None:
    answer = cli(
        "compare", *SMALL_STUDY, "pretexts=[rotation]", "labels_per_class=[3]", "seeds=1", "dataset.val_fraction=0.1"
    )
    assert answer.code == 0, answer.err
    # From scratch, finetuned and two probes; 3 folds of all but the probe of the randomly initialized network.
    assert len(study_runs("finetune")) == 4 + 3 * 3
    val = [p for p in study_runs("finetune") if "without" in p]
    result = {n: summary(Path("outputs/finetune/study_runs", n)) for n in val}
    assert all(s["labels"]["train"] == 20 and s["labels"]["validation"] > 10 for s in result.values())
    rows = study_table(runs("compare")[0])
    for r in rows:
        own = [s["val/accuracy"] for n, s in result.items() if n.startswith(f"{r['initialization']}_{r['mode']}_")]
        if own:
            assert float(r["cv_accuracy"]) == pytest.approx(np.mean(own))
    (auto,) = [r for r in rows if r["mode"] == "auto"]
    assert float(auto["cv_accuracy"]) == max(float(r["cv_accuracy"]) for r in rows if r["cv_accuracy"])


@pytest.mark.slow
def test_a_search_uses_cross_validation_if_validation_is_small(cli: Cli) -> None:
    search = 'search=["train.learning_rate=0.002","train.learning_rate=1e-7"]'
    few = [s for s in SMALL_STUDY if s != "search=[]"] + ["pretexts=[rotation]", "labels_per_class=[3]", "seeds=1"]
    answer = cli("compare", *few, "dataset.val_fraction=0.1", "mode=probe", search)
    assert answer.code == 0, answer.err
    made = {p: summary(Path("outputs/finetune/study_runs", p)) for p in study_runs("finetune")}
    val: dict[tuple[str, float], list[float]] = {}
    for name, s in made.items():
        if s["config"]["fold"]:
            val.setdefault((name.split("_")[0], s["config"]["train"]["learning_rate"]), []).append(s["val/accuracy"])
    assert {k: len(v) for k, v in val.items()} == {
        ("scratch", 0.002): 3, ("scratch", 1e-7): 3, ("rotation", 0.002): 3,
    }  # fmt: skip
    rows = {(r["initialization"], r["mode"]): r for r in study_table(runs("compare")[0])}
    (scratch, probe) = rows["scratch", "finetune"], rows["rotation", "probe"]
    mean = {k: float(np.mean(v)) for k, v in val.items()}
    assert float(scratch["cv_accuracy"]) == pytest.approx(max(mean["scratch", 0.002], mean["scratch", 1e-7]))
    assert mean["scratch", float(scratch["setting"].partition("=")[2])] == max(
        m for (initialization, _), m in mean.items() if initialization == "scratch"
    )
    assert float(probe["cv_accuracy"]) == pytest.approx(mean["rotation", 0.002])
    best = max((scratch, probe), key=lambda r: float(r["cv_accuracy"]))
    assert summary(runs("compare")[0])["best_classifier"] == best["finetuned"]
    own = cli("report", str(runs("compare")[0]))  # only probes
    assert own.code == 0, own.err
    assert re.search(r"rotation, 3\d? labels: ", own.err + own.out)
    before = study_runs("finetune")
    same = cli(
        "compare", *few, "dataset.val_fraction=0.1", "mode=probe", "search=[]", "finetune.train.learning_rate=2e-3"
    )
    assert same.code == 0, same.err
    assert study_runs("finetune") == before  # notation does not matter


@pytest.mark.slow
def test_cross_validation_depends_on_the_validation_images_of_the_classifiers(cli: Cli) -> None:
    answer = cli("compare", *SMALL_STUDY, "dataset.max_images=600", "dataset.val_fraction=0.2", "pretexts=[rotation]",
               "labels_per_class=[4]", "seeds=1", 'finetune.dataset.classes=["1","7"]')  # fmt: skip
    assert answer.code == 0, answer.err
    made = [summary(Path("outputs/finetune/study_runs", p)) for p in study_runs("finetune")]
    assert any("fold" in s["config"] and s["config"]["fold"] for s in made)  # 57 validation images, not 120
    assert {s["labels"]["train"] for s in made if not s["config"]["fold"]} == {8}


def finished(name: str, accuracy: float, loss: float) -> StudyRun:
    """Write and return a finished run of a study with these validation results."""
    run = StudyRun("finetune", name, (), "0")
    run.directory.mkdir(parents=True)
    summary = {"stage": "finetune", "status": "finished", "config": {"seed": 0}, "overrides": [],
               "wall_time_seconds": 1.0, "val/accuracy": accuracy, "val/loss": loss}  # fmt: skip
    write_json(run.directory / "summary.json", summary)
    return run


def test_ties_in_accuracy_are_broken_by_loss() -> None:
    high, low = [finished("probe", 0.8, 0.9)], [finished("finetune", 0.8, 0.4)]
    assert score_of(low, "val/accuracy") > score_of(high, "val/accuracy")
    assert score_of([finished("scratch", 0.81, 2.0)], "val/accuracy") > score_of(low, "val/accuracy")


def test_the_score_is_the_mean_over_folds() -> None:
    folds = [finished("probe_fold1of2", 0.5, 1.0), finished("probe_fold2of2", 0.9, 0.2), finished("c", 0.7, 0.3)]
    assert score_of(folds, "val/accuracy") == (pytest.approx(0.7), pytest.approx(-0.5))


def test_the_checkpoints_of_the_best_candidate_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """With candidates whose summaries and checkpoints are written by the test."""
    accuracies = {"finetune": 0.6, "probe": 0.8, "scratch": 0.7}

    def trained(runs: Sequence[StudyRun], stages: Stages, title: str = "") -> None:
        for run in runs:
            accuracy = accuracies[run.name.split("_")[0]]
            run.directory.mkdir(parents=True, exist_ok=True)
            metrics = {"val/accuracy": accuracy, "val/loss": 0.5, "val/temperature": 1.5}
            summary = {"stage": "finetune", "status": "finished", "config": {"seed": 0}, "overrides": []}
            write_json(run.directory / "summary.json", {**summary, **metrics, "wall_time_seconds": 1.0, "test/x": 1.0})
            (run.directory / "metrics.jsonl").write_text(json.dumps({"step": 0, **metrics}) + "\n")
            for name, weight in (("best.pt", accuracy), ("last.pt", -accuracy)):
                checkpoint.save(run.directory / name, {"model": {"weight": torch.tensor(weight)}, "step": 1})

    monkeypatch.setattr("sslrun.study.choice.launch_all", trained)
    config = compose_config("finetune", ["init=outputs/pretrain/a", "dataset=digits", "backbone=smallcnn"], None)
    run = Run(Path("outputs/finetune/b"), "finetune", config, {}, stages=Stages(stage, job))
    result = choose(run, ["images"], "weights", validation=200, fewest=9)
    run.close("finished")
    assert result["chosen"] == "probe"
    assert result["candidates"] == accuracies
    assert {k: v for k, v in result.items() if "/" in k} == {
        "val/accuracy": 0.8,
        "val/loss": 0.5,
        "val/temperature": 1.5,
    }
    for name, weight in (("best.pt", 0.8), ("last.pt", -0.8)):
        content = checkpoint.load(run.directory / name)
        assert content["model"]["weight"].item() == pytest.approx(weight)


@pytest.mark.parametrize(
    ("validation", "fewest", "n"), [(99, 9, 3), (100, 9, 0), (0, 3, 3), (0, 2, 2), (0, 1, 0), (200, 1, 0)]
)
def test_folds_are_used_below_100_validation_images(validation: int, fewest: int, n: int) -> None:
    folds = folds_of(validation, fewest)
    assert folds == [[k, n] for k in range(n)] if n else folds == [None]


@pytest.mark.parametrize("init", ["outputs/pretrain/a", "scratch"])
def test_candidates_are_trained_on_folds_and_the_best_one_on_all_labels(
    init: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All have the same accuracy: the loss decides. The metrics are those of the last training."""
    scores = {"finetune": [(0.9, 0.6), (0.6, 0.6)], "probe": [(0.7, 0.4), (0.8, 0.4)], "scratch": [(0.75, 0.5)] * 2}
    launched: list[tuple[str, list[StudyRun]]] = []
    made: dict[str, tuple[Any, ...]] = {}

    def named(stages: Stages, stage: str, name: str, config: Any, overrides: Any, *data: str, setting: str) -> StudyRun:
        made[name] = config, data
        return StudyRun(stage, name, tuple(overrides), "0", setting)

    def trained(runs: Sequence[StudyRun], stages: Stages, title: str = "") -> None:
        launched.append((title, list(runs)))
        for run in runs:
            name, *_, last = run.name.split("_")
            accuracy, loss = scores[name][int(last[-4]) - 1] if "fold" in last else (0.66, 0.6)
            run.directory.mkdir(parents=True, exist_ok=True)
            known = {"stage": "finetune", "status": "finished", "config": {"seed": 0}, "overrides": []}
            metrics = {"val/accuracy": accuracy, "val/loss": loss}
            write_json(run.directory / "summary.json", {**known, **metrics, "wall_time_seconds": 1.0})
            (run.directory / "metrics.jsonl").write_text(json.dumps({"step": 0, **metrics}) + "\n")
            for name in ("best.pt", "last.pt"):
                checkpoint.save(run.directory / name, {"model": {"weight": torch.tensor(accuracy)}, "step": 1})

    monkeypatch.setattr("sslrun.study.choice.launch_all", trained)
    monkeypatch.setattr("sslrun.study.choice.study_run", named)
    caplog.set_level("INFO", "sslrun")
    own = [
        "dataset=digits",
        "backbone=smallcnn",
        "seed=3",
        "labels_per_class=4",
        "train.steps=7",
        "label_smoothing=0.3",
    ]
    search = ["mode=auto", 'search=["augment.probability=0.2"]', f"init={init}"]
    run = Run(Path("run"), "finetune", compose_config("finetune", [*own, *search], None), {}, stages=Stages(stage, job))
    result = choose(run, ["images"], "weights", validation=5, fewest=2)
    run.close("finished", **result)
    (title, folds), (last, (final,)) = launched
    assert (title, last) == ("fold", "final training")
    modes = {"scratch": ("finetune", "scratch", 0.2)}
    modes |= {} if init == "scratch" else {"finetune": ("finetune", init, 0.2), "probe": ("probe", init, 0.5)}
    best = "scratch" if init == "scratch" else "probe"
    usual = plain(compose_config("finetune", own, None))
    assert usual["augment"]["probability"] != 0.2
    assert sorted(r.name for r in folds) == sorted(f"{m}_4_seed3_fold{k}of2" for m in modes for k in (1, 2))
    assert final.name == f"{best}_4_seed3"
    for r in (*folds, final):
        name = r.name.split("_")[0]
        mode, start, probability = modes[name]
        fold = None if r is final else [int(r.name[-4]) - 1, 2]
        augment = usual["augment"] | ({"probability": probability} if mode != "probe" else {})
        config, data = made[r.name]
        assert config == usual | {"mode": mode, "init": start, "fold": fold, "augment": augment}
        assert data == (("images",) if name == "scratch" else ("images", "weights"))
        assert r.setting == ("augment.probability=0.2" if mode == "finetune" else "")
    accuracies = {"finetune augment.probability=0.2": 0.75, "probe": 0.75, "scratch augment.probability=0.2": 0.75}
    assert result["candidates"] == {n: a for n, a in accuracies.items() if n.split()[0] in modes}
    assert result["chosen"] == ("probe" if best == "probe" else "scratch augment.probability=0.2")
    assert result["chosen_run"] == final.directory.as_posix()
    assert {k: v for k, v in result.items() if "/" in k} == {"val/accuracy": 0.66, "val/loss": 0.6}
    assert checkpoint.load(run.directory / "best.pt")["model"]["weight"].item() == pytest.approx(0.66)
    assert "Accuracy on 5 validation images and labeled images in 2-fold cross-validation: " in caplog.text


def test_candidates_are_compared_by_macro_f1_if_any_is_balanced() -> None:
    runs = {}
    for name, balance, accuracy, f1 in (("a", "none", 0.9, 0.3), ("b", "weights", 0.7, 0.6)):
        runs[name] = finished(name, accuracy, 1.0)
        path = runs[name].directory / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"val/f1_macro": f1, "config": {"balance": balance}}))
    assert score_among([runs["a"]]) == "val/accuracy"
    assert score_among([*runs.values()]) == "val/f1_macro"
    assert score_among([finished("older", 0.5, 1.0)]) == "val/accuracy"
    assert score_of([*runs.values()], "val/f1_macro") == (pytest.approx(0.45), -1.0)


def test_the_candidates_of_auto_are_balanced_as_it_is(in_world: Path, cli: Cli) -> None:
    common = ("balance=logit", "train.steps=2", "train.evaluations=1", "dataset.val_fraction=0.4", *QUICK)
    answer = cli("finetune", *common)
    assert answer.code == 0, answer.err
    assert "Macro F1 on " in answer.err
    made = [summary(Path("outputs/finetune/study_runs", p)) for p in study_runs("finetune")]
    assert {s["config"]["balance"] for s in made} == {"logit"}
    result = summary(sorted(Path("outputs/finetune").glob("2*"))[-1])
    assert result["val/f1_macro"] in {s["val/f1_macro"] for s in made}
