"""`sslrun finetune`."""

import csv
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sslrun.base.errors import UserError
from sslrun.data.dataset import Dataset, load_train
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget
from sslrun.evaluation.intervals import wilson_interval
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.initialization import Network
from sslrun.runs import checkpoint
from sslrun.runs.run import Run
from sslrun.stages import finetune
from sslrun.tasks.finetuning.supervised import Finetuning
from tests.helpers import CPU, QUICK, TINY, Cli, runs, small_encoder, source_node, summary


def test_finetune_starts_from_the_newest_run_and_logs_it(world: Path) -> None:
    run = next((world / "outputs/finetune").iterdir())
    newest = sorted((world / "outputs/pretrain").iterdir())[-1]
    result = json.loads((run / "summary.json").read_text())
    assert f"outputs/pretrain/{newest.name}" in (run / "run.log").read_text()
    assert result["init"] == "simclr"
    assert (result["mode"], result["backbone"], result["resumable"]) == ("finetune", "smallcnn", "checkpoint")
    assert result["source"] == result["config"]["init"] == f"outputs/pretrain/{newest.name}/last.pt"
    assert (result["label_fraction"], result["labels_per_class"]) == (0.5, None)
    assert result["seeds"] == {"training": 0, "subset": 0, "split": 0}
    data, _ = load_train(result["config"]["dataset"])
    assert result["data_fingerprint"] == data.fingerprint()
    assert result["subset_fingerprint"] == data.within(LabelBudget(0.5)).fingerprint()
    assert (result["precision"], result["memory_format"]) == ("fp32", "channels_last")
    assert result["config"]["device"]["precision"] == "fp32"
    content = checkpoint.load(run / "best.pt")
    assert (content["stage"], content["class_names"]) == ("finetune", ["flower", "temple"])
    assert content["config"]["pooling"] == result["config"]["pooling"] != "auto"
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
    trained = cli("finetune", f"mode={mode}", "train.steps=20", *QUICK)
    assert trained.code == 0
    run = runs("finetune")[-1]
    accuracy, n = summary(run)["val/accuracy"], summary(run)["labels"]["validation"]
    ends = " to ".join(f"{100 * end:.1f}" for end in wilson_interval(round(accuracy * n), n))
    assert f"Validation accuracy {100 * accuracy:.1f} % (95 % CI {ends}) on {n} images\n" in trained.err
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
    few = ("dataset.val_fraction=0", "labels_per_class=4", "train.steps=3")
    answer = cli("finetune", "mode=finetune", *few, *QUICK)
    assert answer.code == 0
    assert "Validation accuracy" not in answer.err
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


def labeled(n: int) -> Dataset:
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 32, 32, 3).contiguous()
    return Dataset(Images([pixels], np.zeros((n, 16), np.uint8)), torch.arange(n) % 2, ["a", "b"], [""] * n)


@pytest.mark.parametrize("mode", ["probe", "knn"])
def test_a_classifier_on_frozen_features_is_fitted_on_the_labeled_images(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[Any, ...]] = []
    features = lambda encoder, data, device: (torch.full((len(data), 32), float(len(data))), data.labels)  # noqa: E731
    monkeypatch.setattr(finetune, "labeled_features", features)
    monkeypatch.setattr(finetune, "fit_head", lambda *given: fitted.append(given))
    settings: Any = SimpleNamespace(mode=mode, seed=7, balanced_by="weights")
    data, val = labeled(6), labeled(4)
    data.groups = np.array([*"aabbcc"], dtype=object)
    made = finetune._on_frozen_features(settings, small_encoder(), data, val, CPU, 0.25)
    assert data.labels is not None
    if mode == "knn":
        assert isinstance(made, KNNClassifier)
        assert torch.equal(made.labels, data.labels)
        assert made.bank.tolist() == [[6.0] * 32] * 6
        assert not fitted
        return
    assert isinstance(made, Classifier)
    finetune._on_frozen_features(settings, small_encoder(), data, None, CPU, None)
    (
        (head, bank, labels, (val_bank, val_labels), seed, regularization, groups, balance),
        (*_, no_val, _, unknown, _, _),
    ) = fitted
    assert balance == "weights"
    assert (head, seed, regularization, no_val, unknown) == (made, 7, 0.25, None, None)
    assert (len(bank), len(val_bank)) == (6, 4)
    assert labels is data.labels
    assert groups is data.groups  # which no fold of a cross-validation divides
    assert val_labels is val.labels


@pytest.mark.parametrize(
    ("init", "requested", "search", "mode", "resumable"),
    [
        ("scratch", "auto", [], "finetune", "checkpoint"),
        ("scratch", "auto", ["augment.probability=0.5"], "auto", "study"),
        ("run", "auto", [], "auto", "study"),
        ("run", "probe", [], "probe", None),
        ("scratch", "finetune", [], "finetune", "checkpoint"),
    ],
)
def test_auto_from_scratch_has_one_candidate_and_is_resumed_like_finetuning(
    init: str, requested: str, search: list[str], mode: str, resumable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(init, init, None, {"b": 1}, {"d": 1})  # type: ignore[arg-type]
    monkeypatch.setattr(finetune, "resolve", lambda *_: network)
    monkeypatch.setattr(finetune, "_searched", lambda *_: search)
    monkeypatch.setattr(finetune, "built_settings", lambda settings, config: config)
    run = Run(Path("run"), "finetune", OmegaConf.create({"mode": requested, "search": ["x"], "init": "given"}), {})
    settings: Any = SimpleNamespace(mode=requested, budget=LabelBudget(), init="given", backbone={}, dataset={})
    _, config = finetune._resolved(run, settings)
    assert config == {"mode": mode, "search": search, "init": init, "backbone": {"b": 1}, "dataset": {"d": 1}}
    assert run.summary.get("resumable") == resumable
    if search:
        settings.mode = "probe"
        with pytest.raises(UserError, match="search= needs mode=auto, found mode=probe"):
            finetune._resolved(run, settings)
        settings.mode = requested
    run.resumed = True
    if mode == "probe":
        with pytest.raises(UserError, match="mode=probe has no steps to resume"):
            finetune._resolved(run, settings)
    else:
        assert finetune._resolved(run, settings)[1]["init"] == "given"  # type: ignore[index]
    run.close("finished")


def test_a_label_budget_per_class_is_noted_without_a_fraction() -> None:
    data, few, val = labeled(8), labeled(4), labeled(2)
    nodes = {"backbone": {"_target_": "a.smallcnn"}, "dataset": {"_target_": "digits", "split_seed": 6}}
    budget = {"label_fraction": 0.3, "labels_per_class": 2}
    config = {"mode": "probe", "init": "outputs/a", "seed": 4, "subset_seed": 5, **nodes, **budget}
    run = Run(Path("run"), "finetune", OmegaConf.create(config), {})
    finetune._begin(run, Network("run", "simclr", None, {}, {}), CPU, data, few, val)
    result = run.summary
    run.close("finished")
    assert (result["label_fraction"], result["labels_per_class"]) == (None, 2)
    assert result["labels"] == {"train": 4, "validation": 2}
    assert result["seeds"] == {"training": 4, "subset": 5, "split": 6}
    assert (result["init"], result["source"]) == ("simclr", "outputs/a")
    assert result["data_fingerprint"] == data.fingerprint() != few.fingerprint() == result["subset_fingerprint"]


def test_auto_chooses_by_the_data_the_weights_and_the_smallest_class(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(finetune, "_begin", lambda *_: None)
    best = {"val/accuracy": 1.0}

    def choose(*values: Any) -> dict[str, float]:
        given.append(values[1:])
        return best

    monkeypatch.setattr(finetune, "choose", choose)
    run: Any = SimpleNamespace(in_study=True)
    Path("a.pt").write_text("weights")
    data, few, val = labeled(8), labeled(5), labeled(3)
    for path in (Path("a.pt"), None):
        network = Network("run", "imagenet", path, {}, {})
        assert finetune._best(run, network, CPU, data, few, val) == best
    finetune._best(run, network, CPU, data, few, None)
    prints, alone = [data.fingerprint(), val.fingerprint()], [data.fingerprint(), ""]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert given == [(prints, digest, 3, 2), (prints, "imagenet", 3, 2), (alone, "imagenet", 0, 2)]


def test_the_summary_has_no_threshold_of_another_state(
    in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, last = {"val/accuracy": 0.9, "val/loss": 1.0}, {"val/accuracy": 0.5, "val/confidence_threshold": 0.8}
    states = iter([best, last])
    monkeypatch.setattr(finetune, "classifier_metrics", lambda *_: next(states))
    answer = cli("finetune", "mode=finetune", "pooling=average", "train.steps=2", "train.evaluations=1", *QUICK)
    assert answer.code == 0, answer.err
    assert {k: v for k, v in summary(runs("finetune")[-1]).items() if k.startswith("val/")} == best


@pytest.fixture
def uneven(photos: Path, tmp_path: Path) -> tuple[str, ...]:
    """30 photos of a temple and 3 of a flower: 19 and 1 of them for training."""
    for name, n in (("temple", 30), ("flower", 3)):
        (tmp_path / "uneven" / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir())[:n]:
            shutil.copy(file, tmp_path / "uneven" / name)
    data = ("dataset=folder", "dataset.root=uneven", "dataset.image_size=16", "dataset.val_fraction=0.2")
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
    assert "balance=weights: the largest class has 19 times the labels of the smallest.\n" in answer.err
    result = summary(runs("finetune")[-1])
    assert result["config"]["balance"] == "weights"
    assert f"Best state by validation macro F1: step {result['best/step']} of 3" in answer.err
    assert 0 <= result["val/f1_macro"] <= 1
    assert "val/f1_macro" in (runs("finetune")[-1] / "metrics.jsonl").read_text()


def test_a_small_class_gives_all_its_labels_and_that_is_logged(uneven: tuple[str, ...], cli: Cli) -> None:
    answer = cli("finetune", *uneven, "mode=probe", "labels_per_class=4")
    assert answer.code == 0, answer.err
    assert "labels_per_class=4: flower has 1 (without validation); all of them are used.\n" in answer.err
    result = summary(runs("finetune")[-1])
    assert result["labels"]["train"] == 5
    assert result["config"]["balance"] == "none"
    assert "balance=" not in answer.err.replace("balance=none", "")


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
