"""`sslrun finetune`."""

import csv
import gc
import itertools
import json
import os
import re
import shutil
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslrun.base.errors import UserError
from sslrun.base.machine import cores
from sslrun.data import labeled
from sslrun.data.dataset import Dataset, load_train
from sslrun.data.labels import LabelBudget
from sslrun.evaluation import calibration
from sslrun.evaluation.intervals import wilson_interval
from sslrun.evaluation.selection import Predictions, choose, corrected_accuracy
from sslrun.run import checkpoint
from sslrun.run.find import BEST, LAST
from sslrun.stages import finetune
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.training import candidates, choosing, jobs, loop
from sslrun.training.batches import Batches
from sslrun.training.candidates import OUT_OF_FOLD
from sslrun.training.estimate import Measurement
from sslrun.training.frozen import Frozen
from tests.data.test_workers import children_of
from tests.helpers import (
    QUICK,
    TINY,
    Cli,
    ended,
    only_run,
    run_here,
    runs,
    same,
    slow,
    spawn,
    stopping,
    summary,
    wait_for,
)

EXTRA = ("validation=extra", "dataset.val_fraction=0.2")
FEW = ("labels=30", "train.steps=3", "train.evaluations=1", "train.batch_size=16", *QUICK)


def sizes(run: Path) -> tuple[int, int, int]:
    """Return the numbers of labels of a run: in all, for training, and for validation."""
    result = summary(run)
    return result["labels_total"], result["labels_train"], result["labels_val"]


def predictions_of(run: Path) -> tuple[Predictions, list[str]]:
    """Return the out-of-fold predictions of a run, and the names of the variants."""
    with np.load(run / OUT_OF_FOLD) as file:
        variants = file["candidates"].tolist()
        return Predictions([v.split()[0] for v in variants], file["probabilities"], file["labels"]), variants


def weights(run: Path, name: str = BEST) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = checkpoint.load(run / name)["model"]
    return model


def test_finetune_starts_from_the_newest_run_and_logs_it(world: Path) -> None:
    run = next((world / "outputs/finetune").iterdir())
    newest = sorted((world / "outputs/pretrain").iterdir())[-1]
    result = json.loads((run / "summary.json").read_text())
    assert f"outputs/pretrain/{newest.name}" in (run / "run.log").read_text()
    assert result["init"] == "simclr"
    assert (result["mode"], result["backbone"], result["resumable"]) == ("finetune", "smallcnn", "study")
    assert result["source"] == result["config"]["init"] == f"outputs/pretrain/{newest.name}/last.pt"
    assert result["label_budget"] == "label_fraction=0.5"
    assert result["seeds"] == {"training": 0, "subset": 0, "split": 0}
    data, given = load_train(result["config"]["dataset"])
    assert given is None
    assert result["data_fingerprint"] == data.fingerprint()
    assert result["subset_fingerprint"] == data.labeled(LabelBudget(fraction=0.5), "photos").fingerprint()
    assert result["subset"] == data.labeled(LabelBudget(fraction=0.5), "photos").listing_fingerprint()
    assert (result["precision"], result["memory_format"]) == ("fp32", "channels_last")
    assert result["config"]["device"]["precision"] == "fp32"
    content = checkpoint.load(run / "best.pt")
    assert (content["stage"], content["class_names"]) == ("finetune", ["flower", "temple"])
    assert content["config"]["pooling"] == result["pooling"] != "auto"
    assert result["config"]["backbone"]["widths"] == [8, 16]
    assert result["config"]["dataset"]["image_size"] == 32
    assert sizes(run) == (24, 24, 0)
    assert result["config"]["validation"] == "inside"
    assert result["val/accuracy"] > 0.6
    assert "test/accuracy" not in result
    assert result["best/step"] == 20
    assert "Best state" not in (run / "run.log").read_text()


def test_finetuning_resumes_and_a_finished_probe_says_so(in_world: Path, cli: Cli) -> None:
    run = runs("finetune")[-1]
    before = summary(run)
    answer = cli("finetune", f"resume={run}", "train.steps=24")
    assert answer.code == 0
    assert "Resuming after step 20" in answer.err
    assert "The accuracy in the folds, the temperature and the threshold stay those of the first length." in answer.err
    after = summary(run)
    assert after["config"]["train"]["steps"] == after["best/step"] == checkpoint.load(run / BEST)["step"] == 24
    for key in ("pooling", "chosen", "candidates", "init", "val/accuracy", "val/temperature"):
        assert after[key] == before[key]
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    probe = runs("finetune")[-1]
    weights = (probe / BEST).read_bytes()
    answer = cli("finetune", f"resume={probe}")
    assert answer.code == 0
    assert f"{probe} is finished: a classifier on frozen features has no steps to continue." in answer.err
    assert (probe / BEST).read_bytes() == weights


def test_defaults_do_not_override_the_checkpoint(in_world: Path, cli: Cli) -> None:
    """dataset=folder has 64 px by default, the checkpoint 32, which is used."""
    root = summary(runs("pretrain")[-1])["config"]["dataset"]["root"]
    assert cli("finetune", "dataset=folder", f"dataset.root={root}", "mode=knn", *QUICK).code == 0
    assert summary(runs("finetune")[-1])["config"]["dataset"]["image_size"] == 32


@pytest.mark.parametrize("mode", ["probe", "knn", "finetune"])
def test_every_mode_gives_a_classifier_for_evaluate_and_predict(
    in_world: Path, cli: Cli, photos: Path, mode: str
) -> None:
    trained = cli("finetune", f"mode={mode}", "train.steps=20", *QUICK)
    assert trained.code == 0
    run = runs("finetune")[-1]
    accuracy, n = summary(run)["val/accuracy"], summary(run)["val/images"]
    assert sizes(run) == (48, n, 0) == (48, 48, 0)
    ends = " to ".join(f"{100 * end:.1f}" for end in wilson_interval(round(accuracy * n), n))
    line = f"Out-of-fold accuracy, corrected for the choice: {100 * accuracy:.1f} % (95 % CI {ends}) on 48 images"
    assert line in trained.lines()
    answer = cli("evaluate", *QUICK)
    assert answer.code == 0
    evaluated = runs("evaluate")[-1]
    result = summary(evaluated)
    assert result["config"]["run"] == str(run)
    assert 0.5 < result["test/accuracy"] <= 1
    report = json.loads((evaluated / "report.json").read_text())
    assert sum(map(sum, report["confusion_matrix"])) == result["images"] == 12
    assert (evaluated / "figures/confusion_matrices.png").stat().st_size > 5000
    assert [r["class"] for r in csv.DictReader((evaluated / "per_class.csv").open())] == ["flower", "temple"]
    answer = cli("predict", str(photos / "temple"), "format=json", *QUICK)
    rows = json.loads(answer.out)
    assert len(rows) == 30
    assert sum(r["class"] == "temple" for r in rows) > 20
    assert all(sum(g["confidence"] for g in r["top"]) == pytest.approx(1, abs=1e-3) for r in rows)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["latest", "scratch"])
def test_freezing_and_the_backbone_rate_apply_to_pretrained_networks_only(
    init: str, in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[Finetuning] = []
    seen: list[float] = []

    def fit(task: Finetuning, batches: Any, optimizer: Any, *_: Any) -> None:
        tasks.append(task)
        seen.extend(group["rate"] for group in optimizer.param_groups)
        raise UserError("no training here")

    monkeypatch.setattr(finetune, "fit", fit)
    rates = ("backbone_rate=0.2", "layer_decay=1", "head_rate=0.05")
    settings = ("label_smoothing=0.3", *rates, "freeze_fraction=0.5", "freeze_batch_norm=true")
    result = cli("finetune", f"init={init}", "mode=finetune", "pooling=average", *settings, *QUICK, "train.steps=8")
    assert result.lines()[-1].endswith("no training here")
    (task,) = tasks
    pretrained = init == "latest"
    assert task.label_smoothing == 0.3
    assert task.freeze_steps == (4 if pretrained else 0)
    assert task.freeze_batch_norm == pretrained
    assert task.backbone_rate == (0.2 if pretrained else 1)
    assert set(seen) == ({0.2, 0.05} if pretrained else {1})


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "candidates"), [(0.001, ["probe", "finetune", "scratch"]), (10.0, ["probe"])])
def test_a_published_network_that_is_slow_on_this_cpu_is_not_trained_by_auto(
    seconds: float, candidates: list[str], photos: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing.estimate, "measure", lambda *_: Measurement(1 / seconds, 0))
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=32")
    answer = cli("finetune", "init=pretrained", "pooling=average", "labels=8", *data, *QUICK, "train.steps=2")
    assert answer.code == 0, answer.err
    assert list(summary(runs("finetune")[-1])["candidates"]) == candidates
    assert ("mode=auto does not try finetune or scratch: on this CPU" in answer.err) == (len(candidates) == 1)


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("init", ["latest", "scratch"])
def test_a_finetuning_whose_best_state_is_the_first_says_so(init: str, cli: Cli) -> None:
    answer = cli("finetune", "mode=finetune", f"init={init}", "train.learning_rate=3", *EXTRA, *FEW)
    assert answer.code == 0, answer.err
    assert ("step 0 of 3: finetuning did not improve on the probe it started from" in answer.err) == (init == "latest")


@pytest.mark.slow
@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("arguments", [("mode=auto",), ("mode=finetune", *EXTRA)])
def test_neither_features_nor_worker_processes_are_kept_during_the_training(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    networks: list[weakref.ref[Frozen]] = []
    events: list[str] = []

    def frozen(*given: Any) -> Frozen:
        networks.append(weakref.ref(made := Frozen(*given)))
        return made

    def fit(*_: Any) -> None:
        gc.collect()
        events.extend("features" for network in networks if network() is not None)
        raise UserError("no training here")

    monkeypatch.setattr(choosing, "choose", lambda p: len(p.names) - 1)
    monkeypatch.setattr(candidates, "Frozen", frozen)
    monkeypatch.setattr(finetune, "fit", fit)
    monkeypatch.setattr(jobs, "stop", lambda: events.append("stop"))
    assert cli("finetune", *arguments, *FEW).lines()[-1].endswith("no training here")
    assert len(networks) == (2 if arguments == ("mode=auto",) else 1)
    assert events == ["stop"]


def test_the_summary_has_the_metrics_of_the_best_state_not_of_the_last(in_world: Path, cli: Cli) -> None:
    """With a very high learning rate, training only makes the probe worse."""
    answer = cli(
        "finetune", "mode=finetune", "train.steps=6", "train.learning_rate=1", "train.evaluations=2", *EXTRA, *QUICK
    )
    assert answer.code == 0, answer.err
    run = runs("finetune")[-1]
    logged = {
        r["step"]: r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "val/loss" in r
    }
    result, best = summary(run), logged[summary(run)["best/step"]]
    assert best["val/loss"] != logged[6]["val/loss"]
    assert {k: round(v, 6) for k, v in result.items() if k.startswith("val/")} == {
        k: v for k, v in best.items() if k.startswith("val/")
    }
    assert f"step {result['best/step']} of 6" in answer.err


def test_init_finds_the_pretraining_of_a_study(in_world: Path, cli: Cli) -> None:
    for run in runs("pretrain")[:-1]:
        shutil.rmtree(run)
    of_study = Path("outputs/pretrain/study_runs/simclr-0123456789ab")
    of_study.parent.mkdir()
    runs("pretrain")[-1].rename(of_study)
    answer = cli("finetune", "mode=probe", "pooling=average", *QUICK)
    assert answer.code == 0, answer.err
    assert f"Initializing from {of_study}" in answer.err


@pytest.fixture
def uneven(photos: Path, tmp_path: Path) -> tuple[str, ...]:
    """30 photos of a temple and 3 of a flower: 24 and 2 of them for training."""
    for name, n in (("temple", 30), ("flower", 3)):
        (tmp_path / "uneven" / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir())[:n]:
            shutil.copy(file, tmp_path / "uneven" / name)
    data = ("dataset=folder", "dataset.root=uneven", "dataset.image_size=16")
    return (
        *data,
        "backbone=smallcnn",
        "init=scratch",
        "pooling=average",
        *TINY,
        "train.batch_size=8",
        "train.evaluations=1",
    )


def test_imbalanced_classes_are_balanced_by_default_and_judged_by_macro_f1(uneven: tuple[str, ...], cli: Cli) -> None:
    answer = cli("finetune", *uneven, "mode=finetune", "train.steps=3")
    assert answer.code == 0, answer.err
    assert "balance=weights: the largest class has 12 times the labels of the smallest.\n" in answer.err
    result = summary(runs("finetune")[-1])
    assert result["config"]["balance"] == "weights"
    assert 0 <= result["val/f1_macro"] <= 1
    answer = cli("finetune", *uneven, "mode=finetune", "train.steps=3", *EXTRA)
    assert answer.code == 0, answer.err
    result = summary(runs("finetune")[-1])
    assert f"Best state by validation macro F1: step {result['best/step']} of 3" in answer.err
    assert "val/f1_macro" in (runs("finetune")[-1] / "metrics.jsonl").read_text()


def test_a_small_class_gives_all_its_labels_and_that_is_logged(uneven: tuple[str, ...], cli: Cli) -> None:
    answer = cli("finetune", *uneven, "mode=probe", "labels_per_class=4")
    assert answer.code == 0, answer.err
    assert "labels_per_class=4: flower has 2; all of them are used.\n" in answer.err
    result = summary(runs("finetune")[-1])
    assert sizes(runs("finetune")[-1]) == (6, 6, 0)
    assert result["config"]["balance"] == "none"
    assert "balance=" not in answer.err.replace("balance=none", "")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["finetune", "probe"])
def test_every_method_of_balancing_changes_the_classifier(uneven: tuple[str, ...], cli: Cli, mode: str) -> None:
    heads = []
    for balance in ("none", "sampling", "weights", "logit"):
        answer = cli("finetune", *uneven, f"mode={mode}", "train.steps=2", f"balance={balance}")
        assert answer.code == 0, answer.err
        content = checkpoint.load(runs("finetune")[-1] / "last.pt")
        assert content["config"]["balance"] == balance
        heads.append(content["model"]["classifier.head.bias"])
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(heads, 2))


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["sampling", "weights", "logit"])
def test_balanced_training_resumes_exactly(uneven: tuple[str, ...], cli: Cli, balance: str) -> None:
    answer = cli("finetune", *uneven, "mode=finetune", "train.steps=6", "train.keep_every=2", f"balance={balance}")
    assert answer.code == 0, answer.err
    run = runs("finetune")[-1]
    whole = checkpoint.load(run / "last.pt")["model"]
    shutil.copy(run / "step_000002.pt", run / "last.pt")
    answer = cli("finetune", f"resume={run}")
    assert "Resuming after step 2" in answer.err
    again = checkpoint.load(run / "last.pt")["model"]
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_neighbors_are_not_balanced(uneven: tuple[str, ...], cli: Cli) -> None:
    answer = cli("finetune", *uneven, "mode=knn", "balance=logit")
    assert answer.code == 1
    line = "sslrun: mode=knn does not balance classes; remove balance=logit, or set mode=probe"
    assert answer.err.strip().splitlines()[-1] == line
    assert cli("finetune", *uneven, "mode=knn").code == 0
    assert summary(runs("finetune")[-1])["config"]["balance"] == "none"


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("init", ["latest", *slow(["scratch"])])
@pytest.mark.parametrize("mode", ["knn", "finetune", *slow(["probe", "auto"])])
def test_inside_a_budget_every_number_of_labels_is_at_most_the_budget(cli: Cli, mode: str, init: str) -> None:
    answer = cli("finetune", f"mode={mode}", f"init={init}", *FEW)
    assert answer.code == 0, answer.err
    run = runs("finetune")[-1]
    result, (predictions, variants) = summary(run), predictions_of(run)
    assert sizes(run) == (30, 30, 0)
    assert result["label_budget"] == "labels=30"
    printed = answer.err + (run / "run.log").read_text()
    counted = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:\w+ )?labels?\b", printed)]
    assert max(counted) == 30
    assert len(predictions.labels) == 30
    trained = "scratch" if init == "scratch" else "finetune"
    expected = {"finetune": [trained], "auto": ["scratch"] if init == "scratch" else ["probe", "finetune", "scratch"]}
    assert [*dict.fromkeys(predictions.names)] == expected.get(mode, [mode]) == [*result["candidates"]]
    assert predictions.probabilities.shape == (len(variants), 30, 10)
    assert predictions.probabilities.dtype == np.float32
    sums = predictions.probabilities.sum(2)
    assert np.allclose(sums[~np.isnan(sums)], 1, atol=1e-5)
    chosen = choose(predictions)
    assert result["chosen"] == predictions.names[chosen]
    rows = predictions.evaluated(np.array([chosen]))
    p, labels = predictions.probabilities[chosen, rows], predictions.labels[rows]
    assert result["val/images"] == len(rows)
    assert result["val/accuracy"] == pytest.approx(corrected_accuracy(predictions), abs=1e-6)
    assert result["val/temperature"] == pytest.approx(calibration.fit_temperature(p, labels), abs=1e-6)
    assert result["val/loss"] == pytest.approx(calibration.log_loss(p, labels), abs=1e-6)
    metrics = checkpoint.load(run / BEST)["metrics"]
    assert metrics == {k: pytest.approx(v, abs=1e-6) for k, v in result.items() if k in metrics}
    assert same(weights(run), weights(run, LAST))
    assert result.get("best/step", 3) == 3
    assert not (run / "folds").exists()


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("mode", ["probe", "finetune", "auto"])
def test_a_validation_split_outside_the_budget_is_counted_and_named(cli: Cli, mode: str) -> None:
    answer = cli("finetune", f"mode={mode}", *EXTRA, *FEW)
    assert answer.code == 0, answer.err
    run = runs("finetune")[-1]
    total, train, val = sizes(run)
    assert (total, train) == (30 + val, 30)
    assert f"on 30 labels of digits + {val} validation labels" in answer.err
    assert summary(run)["val/images"] == val
    assert f"on {val} images" in answer.lines()[-3]
    if mode != "finetune":  # whose only choice is that of its best state
        predictions, _ = predictions_of(run)
        assert len(predictions.labels) == total
        assert np.isnan(predictions.probabilities[:, :30]).all()
        assert not np.isnan(predictions.probabilities[:, 30:]).any()


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("mode", ["finetune", "probe", "knn"])
def test_no_classifier_is_trained_on_a_validation_split(cli: Cli, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    heads: list[list[int]] = []
    trained: list[int] = []
    head = Frozen.head

    def of_rows(frozen: Frozen, rows: np.ndarray) -> Any:
        heads.append(rows.tolist())
        return head(frozen, rows)

    def batches(images: Any, labels: Any, *given: Any) -> Batches:
        trained.extend([len(images), len(labels)])
        return Batches(images, labels, *given)

    monkeypatch.setattr(Frozen, "head", of_rows)
    monkeypatch.setattr(finetune, "Batches", batches)
    answer = cli("finetune", f"mode={mode}", "pooling=average", *EXTRA, *FEW)
    assert answer.code == 0, answer.err
    run = runs("finetune")[-1]
    assert sizes(run)[2] > 0
    assert heads == ([] if mode == "knn" else [list(range(30))])
    assert trained == ([30, 30] if mode == "finetune" else [])
    if mode == "knn":
        assert len(weights(run)["classifier.bank"]) == len(weights(run)["classifier.labels"]) == 30


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("mode", ["finetune", "probe", "auto"])
def test_with_one_label_per_class_nothing_is_chosen_and_one_line_says_so(cli: Cli, mode: str) -> None:
    answer = (
        cli("finetune", f"mode={mode}", "labels=10", 'search=["label_smoothing=0"]', *FEW[1:])
        if mode != "probe"
        else (cli("finetune", "mode=probe", "labels=10", *FEW[1:]))
    )
    assert answer.code == 0, answer.err
    (line,) = [line for line in answer.lines() if "Every class has one label: nothing can be chosen" in line]
    assert ("the defaults are used and search= is not tried, and" in line) == (mode != "probe")
    run = runs("finetune")[-1]
    result = summary(run)
    assert not (run / OUT_OF_FOLD).exists()
    assert result["chosen"] == ("finetune" if mode == "finetune" else "probe")
    assert (result["setting"], result["pooling"]) == ("", "average")
    assert not any(k.startswith("val/") for k in result)
    assert "Out-of-fold accuracy" not in answer.err
    assert (run / BEST).is_file()


def test_the_accuracy_of_images_in_groups_has_no_interval(cli: Cli, photos: Path) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=16", r"dataset.groups='(\w+ \d)\d'")
    answer = cli("finetune", *data, "init=scratch", "backbone=smallcnn", "mode=probe", *TINY)
    assert answer.code == 0, answer.err
    accuracy, n = summary(runs("finetune")[-1])["val/accuracy"], summary(runs("finetune")[-1])["val/images"]
    line = f"{100 * accuracy:.1f} % (no CI, since images of one group are dependent) on {n} images\n"
    assert f"Out-of-fold accuracy, corrected for the choice: {line}" in answer.err


def test_evaluations_inside_a_budget_are_not_ignored_silently(in_world: Path, cli: Cli) -> None:
    answer = cli("finetune", "mode=finetune", "pooling=average", "train.steps=2", "train.evaluations=2", *QUICK)
    assert "train.evaluations has no effect without validation images: the last state is the result.\n" in answer.err
    answer = cli("finetune", "mode=finetune", "pooling=average", "train.steps=2", *QUICK)
    assert "train.evaluations" not in answer.err


@pytest.mark.slow
@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("mode", ["finetune", "auto"])
def test_a_search_tries_every_setting_for_every_trained_network(
    cli: Cli, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = "finetune label_smoothing=0.3"
    variants: list[str] = []
    save: Any = np.savez_compressed

    def saved(file: Any, **arrays: np.ndarray) -> None:
        variants.extend(arrays["candidates"].tolist())
        save(file, **arrays)

    position = {"finetune": 1, "auto": 15}[mode]
    monkeypatch.setattr(choosing, "choose", lambda predictions: position)
    monkeypatch.setattr(np, "savez_compressed", saved)
    search = 'search=["label_smoothing=0.2","label_smoothing=0.3"]'
    answer = cli("finetune", f"mode={mode}", search, *FEW)
    assert answer.code == 0, answer.err
    tried = [f"{name} label_smoothing={s}" for name in ("finetune", "scratch") for s in (0.2, 0.3)]
    trained = tried[:2] if mode == "finetune" else tried
    assert variants[-len(trained) :] == trained
    run = runs("finetune")[-1]
    result, config = summary(run), checkpoint.load(run / BEST)["config"]
    assert f"{result['chosen']} {result['setting']}" == variants[position]
    if variants[position] == best:
        assert config["label_smoothing"] == 0.3
    assert (config["search"], config["mode"]) == ([], result["chosen"].replace("scratch", "finetune"))
    assert f"Chosen: {variants[position]}" in answer.err.replace("probe average C=1", "probe")


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("chosen", ["finetune", *slow(["probe", "scratch"])])
def test_the_classifier_of_auto_is_that_of_the_chosen_mode_alone(
    chosen: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = ("backbone_rate=0.5", "freeze_fraction=0.4")  # have no effect from scratch
    with monkeypatch.context() as patch:
        patch.setattr(choosing, "choose", lambda predictions: [*predictions.names].index(chosen))
        answer = cli("finetune", "mode=auto", *pretrained, *FEW)
        assert answer.code == 0, answer.err
    auto = runs("finetune")[-1]
    assert summary(auto)["chosen"] == chosen
    alone = ("mode=finetune", "init=scratch") if chosen == "scratch" else (f"mode={chosen}",)
    answer = cli("finetune", *alone, *pretrained, *FEW)
    assert answer.code == 0, answer.err
    run = runs("finetune")[-1]
    assert same(weights(run), weights(auto))
    (of_auto, names), (single, _) = predictions_of(auto), predictions_of(run)
    rows = [i for i, name in enumerate(names) if name.split()[0] == chosen]
    assert np.array_equal(of_auto.probabilities[rows], single.probabilities, equal_nan=True)


@pytest.mark.usefixtures("short_run")
def test_the_number_of_steps_follows_the_number_of_labels(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "default_steps", lambda labels: 100 + labels)
    for arguments, steps in ((("labels=30",), 130), (("labels=30", *EXTRA), 130), (("train.epochs=3",), None)):
        assert cli("finetune", "mode=probe", "pooling=average", *arguments, *QUICK).code == 0
        assert summary(runs("finetune")[-1])["config"]["train"]["steps"] == steps


class Permuting:
    """Permutes the labels of all training images outside the first draw; the draw itself is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draws: dict[int, np.ndarray] = {}  # by number of images: dataset.max_images is drawn like a label budget
        self.changed = 0
        draw, load = LabelBudget.rows, labeled.load_train

        def rows(budget: LabelBudget, labels: np.ndarray, of: int | None = None) -> np.ndarray:
            if len(labels) not in self.draws:
                self.draws[len(labels)] = draw(budget, labels, of)
            return self.draws[len(labels)]

        def loaded(node: Any) -> tuple[Dataset, Dataset | None]:
            data, given = load(node)
            if len(data) in self.draws:
                assert data.labels is not None
                drawn = self.draws[len(data)]
                others = np.setdiff1d(np.arange(len(data)), drawn)
                before, data.labels = data.labels, data.labels.clone()
                data.labels[others] = data.labels[np.random.default_rng(0).permutation(others)]
                self.changed = int((before != data.labels).sum())
                assert torch.equal(before[drawn], data.labels[drawn])
            return data, given

        monkeypatch.setattr(LabelBudget, "rows", rows)
        monkeypatch.setattr(labeled, "load_train", loaded)


def twice(cli: Cli, *arguments: str) -> tuple[Path, Path]:
    """Run a finetuning twice."""
    for _ in range(2):
        answer = cli("finetune", *arguments)
        assert answer.code == 0, answer.err
    first, second = runs("finetune")[-2:]
    return first, second


def assert_same_classifier(a: Path, b: Path) -> None:
    assert same(weights(a), weights(b))
    assert same(weights(a, LAST), weights(b, LAST))
    assert same(checkpoint.load(a / BEST)["metrics"], checkpoint.load(b / BEST)["metrics"])
    (one, names), (other, again) = predictions_of(a), predictions_of(b)
    assert names == again
    assert np.array_equal(one.probabilities, other.probabilities, equal_nan=True)
    assert np.array_equal(one.labels, other.labels)
    mine, its = ({k: v for k, v in summary(p).items() if k.startswith(("val/", "train/"))} for p in (a, b))
    assert mine == its
    for key in ("chosen", "setting", "pooling", "candidates", "labels_total"):
        assert summary(a)[key] == summary(b)[key]


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize("budget", ["labels=24", *slow(["labels_per_class=3", "label_fraction=0.25"])])
@pytest.mark.parametrize("mode", ["finetune", *slow(["probe", "knn", "auto"])])
def test_labels_outside_the_budget_change_no_bit(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, mode: str, budget: str
) -> None:
    """Every mode with every budget, and each of both with a pretrained network and from scratch."""
    position = ["labels=24", "labels_per_class=3", "label_fraction=0.25"].index(budget)
    init = ("latest", "scratch")[(position + (mode in ("knn", "finetune"))) % 2]
    spy = Permuting(monkeypatch)
    settings = ('search=["label_smoothing=0"]',) if mode == "finetune" else ()
    assert_same_classifier(*twice(cli, f"mode={mode}", f"init={init}", budget, *settings, *FEW[1:]))
    assert spy.changed > 40


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["probe", "finetune", "auto"])
def test_labels_outside_the_budget_change_no_bit_of_imbalanced_classes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    rng = np.random.default_rng(0)
    for name, n in (("a", 110), ("b", 8)):
        Path("many", name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(0, 200, (16, 16, 3)) + 50 * (name == "b")
            Image.fromarray(noise.astype(np.uint8)).save(f"many/{name}/{i}.png")
    spy = Permuting(monkeypatch)
    data = ("dataset=folder", "dataset.root=many", "dataset.image_size=16", "backbone=smallcnn", *TINY)
    few = ("label_fraction=0.5", "train.steps=3", "train.batch_size=16", "train.evaluations=1")
    first, second = twice(cli, f"mode={mode}", "init=scratch", *data, *few)
    assert_same_classifier(first, second)
    assert summary(first)["config"]["balance"] == summary(second)["config"]["balance"] == "weights"
    assert spy.changed


@pytest.mark.slow
@pytest.mark.usefixtures("short_run")
def test_case_69_the_saved_config_of_a_finetuning_runs_again(cli: Cli) -> None:
    assert cli("finetune", "mode=auto", 'search=["label_smoothing=0"]', *FEW).code == 0
    first = runs("finetune")[-1]
    config = summary(first)["config"]
    keys = ("init", "mode", "labels", "validation", "seed", "subset_seed", "pooling", "balance", "label_smoothing")
    train = [f"train.{k}={config['train'][k]}" for k in ("steps", "batch_size", "learning_rate", "evaluations")]
    search = "search=" + json.dumps(config["search"])
    answer = cli("finetune", *(f"{k}={config[k]}" for k in keys), *train, search, *QUICK)
    assert answer.code == 0, answer.err
    second = runs("finetune")[-1]
    assert summary(second)["config"] == summary(first)["config"]
    assert_same_classifier(first, second)


@pytest.mark.slow
@pytest.mark.usefixtures("short_run")
def test_case_10_a_finetuning_in_a_sweep_is_that_of_a_single_run(cli: Cli) -> None:
    assert cli("finetune", "-m", "seed=0,1", "mode=auto", *FEW).code == 0
    (of_sweep,) = [p for p in runs("finetune") if p.name == "1"]
    assert cli("finetune", "seed=1", "mode=auto", *FEW).code == 0
    assert_same_classifier(of_sweep, runs("finetune")[-1])


@pytest.mark.usefixtures("short_run")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("labels=9",), "labels=9 is fewer than the 10 classes; every class needs a label"),
        (("labels=121",), "labels=121: there are only 120 labels for training; set fewer"),
        (("label_fraction=0.01",), "label_fraction=0.01 is 1 label, which is fewer than the 10 classes"),
        (("label_fraction=2",), "label_fraction must be at most 1, found 2; for a number of labels use labels=2"),
        (("labels=30", "labels_per_class=3"), "set only one of labels, labels_per_class"),
        (("dataset.val_fraction=0.1",), "dataset.val_fraction is for validation=extra"),
        (("dataset.split_seed=1",), "dataset.split_seed is for validation=extra"),
        (("validation=extra", "dataset.val_fraction=0"), "validation=extra needs validation images"),
        (("validation=inside", "dataset.val_fraction=0.1"), "dataset.val_fraction is for validation=extra"),
        (('search=["label_smoothing=0"]', "mode=probe"), "search= needs mode=auto or mode=finetune, found mode=probe"),
        (('search=["pooling=grid"]',), "search: pooling=grid: expected a training setting"),
        (('search=["labels=20"]',), "search: labels=20: expected a training setting"),
        (('search=["label_smoothing=2"]',), "label_smoothing"),
        (('search=["train.epochs=9"]',), "search: train.epochs=9: train.steps=auto may end before; search train.steps"),
        (("fold=[0,3]",), "fold"),
    ],
)
def test_bad_input_is_one_line_before_training(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    def trained(*_: Any) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(finetune, "Frozen", trained)
    answer = cli("finetune", *arguments, *QUICK)
    assert answer.code == 1
    assert "Traceback" not in answer.err
    (reported,) = [text for text in answer.lines() if text.startswith("sslrun: ")]
    assert line in reported


@pytest.mark.usefixtures("short_run")
def test_a_budget_on_the_command_line_is_not_overridden_by_a_file(cli: Cli) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/few.yaml").write_text("# @package _global_\nlabels: 30\nlabel_fraction: 0.5\n")
    mine = ("-cd", "mine", "+experiment=few", "mode=probe", "pooling=average", *QUICK)
    answer = cli("finetune", *mine, "labels_per_class=2")
    assert answer.code == 1
    line = "sslrun: labels_per_class=2 has no effect, since labels=30 is set, too: add labels=null"
    assert answer.lines()[-1] == line
    assert cli("finetune", *mine, "labels_per_class=2", "labels=null").code == 0
    assert sizes(runs("finetune")[-1]) == (20, 20, 0)
    assert cli("finetune", *mine, "labels=24").code == 0
    assert sizes(runs("finetune")[-1]) == (24, 24, 0)


@pytest.fixture
def uninterrupted(short_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finetuning with `AUTO` in which finetuning was chosen."""
    names = ["probe", "finetune", "scratch"]
    monkeypatch.setattr(choosing, "choose", lambda p: [*p.names].index(names[1]))
    answer = cli("finetune", *AUTO)
    assert answer.code == 0, answer.err
    return runs("finetune")[-1]


AUTO = ("init=simclr", "mode=auto", *FEW, "train.steps=6")


def resumed(cli: Cli, answer: Any) -> Any:
    """Run the command that an interrupted run has printed."""
    command = re.search(r"Resume with: sslrun finetune (\S+)", answer.err)
    assert command is not None, answer.err
    result = cli("finetune", command[1])
    assert result.code == 0, result.err
    return result


@pytest.mark.slow
def test_cases_23_and_26_an_interrupted_validation_training_repeats_no_fold(
    uninterrupted: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "fold_probabilities", stopping(candidates.fold_probabilities, 4, calls))
        answer = cli("finetune", *AUTO)
        assert answer.code == 128 + signal.SIGTERM
        run = runs("finetune")[-1]
        assert summary(run)["status"] == "interrupted"
        assert not (run / BEST).exists()
        assert not (run / LAST).exists()
        assert len(list((run / "folds").glob("*.npy"))) == 4 + 1  # and the images
        resumed(cli, answer)
    assert len(calls) == 5 + 2  # three folds of finetuning and three from scratch, of which four were kept
    assert not (run / "folds").exists()
    assert_same_classifier(uninterrupted, run)


@pytest.mark.slow
def test_cases_23_and_26_an_interrupted_final_training_repeats_no_fold_and_has_no_classifier(
    uninterrupted: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step_within_memory", stopping(loop.step_within_memory, 2, steps))
        answer = cli("finetune", *AUTO)
    assert answer.code == 128 + signal.SIGTERM
    run = runs("finetune")[-1]
    assert checkpoint.load(run / LAST)["step"] == 3
    assert not (run / BEST).exists()
    for command in (("evaluate",), ("predict", str(photos)), ("export",)):
        refused = cli(*command, f"run={run}", *(QUICK if command != ("export",) else ()))
        assert refused.code == 1
        (line,) = refused.lines()[-1:]
        assert "has no classifier yet" in line
        assert f"sslrun finetune resume={run}" in line
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "fold_probabilities", stopping(candidates.fold_probabilities, 99, calls))
        assert "Resuming after step 3" in resumed(cli, answer).err
    assert not calls
    assert_same_classifier(uninterrupted, run)


def on_cores(n: int, *arguments: str) -> int:
    """Run a command with so many cores, and worker processes."""
    jobs.cores = cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n])
    torch.set_num_threads(n)
    return run_here(*arguments)


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="this machine has one core")
@pytest.mark.usefixtures("short_run")
def test_the_number_of_cores_changes_no_bit_of_the_predictions_in_folds() -> None:
    for n in (1, 2):
        Path("output").write_text("")
        process = spawn(on_cores, n, "finetune", *AUTO)
        assert ended(process) == 0, Path("output").read_text()
    first, second = runs("finetune")
    (one, names), (two, again) = predictions_of(first), predictions_of(second)
    assert names == again
    assert np.array_equal(one.probabilities, two.probabilities, equal_nan=True)
    for key in ("chosen", "setting", "pooling", "candidates", "val/accuracy", "val/temperature"):
        assert summary(first)[key] == summary(second)[key]


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="this machine has one core")
@pytest.mark.usefixtures("short_run")
def test_case_26_an_interrupted_validation_training_leaves_no_worker_process() -> None:
    Path("output").write_text("")
    process = spawn(on_cores, 2, "finetune", *AUTO, "train.steps=100000")
    pid = process.pid or 0
    wait_for(process, lambda: bool(list(Path("outputs/finetune").glob("*/folds"))))
    wait_for(process, lambda: len(children_of(pid)) == 2)
    children = children_of(pid)
    os.kill(pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    assert "Traceback" not in Path("output").read_text()
    assert summary(only_run(stage="finetune"))["status"] == "interrupted"
    deadline = time.monotonic() + 20
    while any(state_of(child) != "Z" for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {state_of(child) for child in children} == {"Z"}


def state_of(pid: int) -> str:
    """Return the state of a process; Z if it has ended and nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
