"""`sslrun finetune`."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.data.labels import LabelBudget
from sslrun.stages import finetune
from sslrun.tasks.finetuning.supervised import Finetuning
from tests.helpers import QUICK, Cli, runs, source_node, summary


def test_finetune_starts_from_the_newest_run_and_logs_it(world: Path) -> None:
    run = next((world / "outputs/finetune").iterdir())
    newest = sorted((world / "outputs/pretrain").iterdir())[-1]
    result = json.loads((run / "summary.json").read_text())
    assert f"outputs/pretrain/{newest.name}" in (run / "run.log").read_text()
    assert result["init"] == "simclr"
    assert result["config"]["backbone"]["widths"] == [8, 16]
    assert result["config"]["dataset"]["image_size"] == 32
    assert result["labels"] == {"train": 24, "validation": 10}
    assert result["val/accuracy"] > 0.6
    assert "test/accuracy" not in result
    kept = f"Best state by validation accuracy: step {result['best/step']} of 20"
    assert kept in (run / "run.log").read_text()


def test_finetuning_resumes_and_a_probe_does_not(in_world: Path, cli: Cli) -> None:
    run = runs("finetune")[-1]
    before = summary(run)
    assert set(before["poolings"]) == {"average", "grid"}
    answer = cli("finetune", f"resume={run}", "train.steps=24")
    assert answer.code == 0
    assert "Resuming after step 20" in answer.err
    assert summary(run)["config"]["pooling"] == before["config"]["pooling"] != "auto"
    assert summary(run)["poolings"] == before["poolings"]
    assert summary(run)["init"] == before["init"] == "simclr"
    assert summary(run)["best/step"] <= 24
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    probe = runs("finetune")[-1]
    weights = (probe / "best.pt").read_bytes()
    assert "no steps to resume" in cli("finetune", f"resume={probe}").err
    assert (probe / "best.pt").read_bytes() == weights


def test_defaults_do_not_override_the_checkpoint(in_world: Path, cli: Cli) -> None:
    """dataset=folder has 64 px by default, the checkpoint 32, which is used."""
    root = summary(runs("pretrain")[-1])["config"]["dataset"]["root"]
    assert cli("finetune", "dataset=folder", f"dataset.root={root}", "mode=knn", *QUICK).code == 0
    assert summary(runs("finetune")[-1])["config"]["dataset"]["image_size"] == 32


@pytest.mark.parametrize("mode", ["probe", "knn", "finetune"])
def test_every_mode_gives_a_classifier_for_evaluate_and_predict(
    in_world: Path, cli: Cli, photos: Path, mode: str
) -> None:
    assert cli("finetune", f"mode={mode}", "train.steps=20", *QUICK).code == 0
    run = runs("finetune")[-1]
    answer = cli("evaluate", *QUICK)
    assert answer.code == 0
    evaluated = runs("evaluate")[-1]
    result = summary(evaluated)
    assert result["config"]["run"] == str(run)
    assert 0.5 < result["test/accuracy"] <= 1
    report = json.loads((evaluated / "report.json").read_text())
    assert sum(map(sum, report["confusion_matrix"])) == result["images"] == 12
    assert (evaluated / "figures/confusion_matrix.png").stat().st_size > 5000
    assert [r["class"] for r in csv.DictReader((evaluated / "classes.csv").open())] == ["flower", "temple"]
    answer = cli("predict", str(photos / "temple"), "format=json", *QUICK)
    rows = json.loads(answer.out)
    assert len(rows) == 30
    assert sum(r["class"] == "temple" for r in rows) > 20
    assert all(sum(g["confidence"] for g in r["top"]) == pytest.approx(1, abs=1e-3) for r in rows)


def test_finetuning_without_validation(in_world: Path, cli: Cli) -> None:
    assert (
        cli("finetune", "mode=finetune", "dataset.val_fraction=0", "labels_per_class=4", "train.steps=3", *QUICK).code
        == 0
    )
    result = summary(runs("finetune")[-1])
    assert result["labels"] == {"train": 8, "validation": 0}
    assert result["best/step"] == 3
    assert cli("evaluate", *QUICK).code == 0


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_without_a_fold_of_the_labels_validation_has_the_fold_as_well(val_fraction: float) -> None:
    node = source_node("digits", None, max_images=120, val_fraction=val_fraction)
    settings: Any = SimpleNamespace(dataset=node, budget=LabelBudget(), fold=None, subset_seed=0)
    _, every, val = finetune._labeled(settings)
    settings.fold = [0, 3]
    _, chosen, more = finetune._labeled(settings)
    before = val.names if val else []
    assert more is not None
    assert len(chosen) == pytest.approx(2 / 3 * len(every), abs=1)
    assert sorted(more.names) == sorted([*before, *(set(every.names) - set(chosen.names))])


@pytest.mark.parametrize("init", ["latest", "scratch"])
def test_freezing_and_the_backbone_rate_apply_to_pretrained_networks_only(
    init: str, in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[Finetuning] = []
    rates: list[float] = []

    def fit(task: Finetuning, batches: Any, optimizer: Any, *_: Any) -> None:
        tasks.append(task)
        rates.extend(group["rate"] for group in optimizer.param_groups)
        raise UserError("no training here")

    monkeypatch.setattr(finetune, "fit", fit)
    settings = ("label_smoothing=0.3", "backbone_rate=0.2", "freeze_fraction=0.5", "freeze_batch_norm_below=100")
    result = cli("finetune", f"init={init}", "mode=finetune", "pooling=average", *settings, *QUICK, "train.steps=8")
    assert result.lines()[-1].endswith("no training here")
    (task,) = tasks
    pretrained = init == "latest"
    assert task.label_smoothing == 0.3
    assert task.freeze_steps == (4 if pretrained else 0)
    assert task.freeze_batch_norm == pretrained
    assert task.backbone_rate == (0.2 if pretrained else 1)
    assert set(rates) == ({0.2, 1} if pretrained else {1})


def test_the_summary_has_the_metrics_of_the_best_state_not_of_the_last(in_world: Path, cli: Cli) -> None:
    """With a very high learning rate, training only makes the probe worse."""
    answer = cli("finetune", "mode=finetune", "train.steps=6", "train.learning_rate=1", "train.evaluations=2", *QUICK)
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


def test_the_pooling_is_chosen_on_the_label_budget(in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def choice(encoder: Any, data: Any, *_: Any) -> None:
        used.append(len(data))
        raise UserError("no choice here")

    monkeypatch.setattr(finetune, "better_pooling", choice)
    assert cli("finetune", "mode=probe", "pooling=auto", "labels_per_class=3", *QUICK).code == 1
    assert used == [6]


def test_init_finds_the_pretraining_of_a_study(in_world: Path, cli: Cli) -> None:
    for run in runs("pretrain")[:-1]:
        shutil.rmtree(run)
    of_study = Path("outputs/pretrain/study_runs/simclr-0123456789ab")
    of_study.parent.mkdir()
    runs("pretrain")[-1].rename(of_study)
    answer = cli("finetune", "mode=probe", "pooling=average", *QUICK)
    assert answer.code == 0, answer.err
    assert f"Initializing from {of_study}" in answer.err
