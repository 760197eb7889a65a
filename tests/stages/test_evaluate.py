"""`sslrun evaluate`, of one classifier and of two."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sslrun
from sslrun.base.errors import UserError
from sslrun.data.dataset import load_test
from sslrun.data.labeled import load_labeled
from sslrun.data.labels import LabelBudget
from sslrun.evaluation.intervals import effective_size, proportion_interval, wilson_interval
from sslrun.run import checkpoint
from sslrun.stages import evaluate
from tests.helpers import QUICK, TINY, Cli, folder_node, frames, runs, source_node, summary


def test_a_report_of_one_classifier(in_world: Path, cli: Cli) -> None:
    result = cli("evaluate", *QUICK)
    assert result.code == 0, result.err
    (run,) = runs("evaluate")
    actual = json.loads((run / "report.json").read_text())
    kept = np.load(run / "predictions.npz")
    right = kept["probabilities"].argmax(1) == kept["labels"]
    assert actual["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert actual["accuracy_interval"][0] <= actual["accuracy"] <= actual["accuracy_interval"][1]
    low, high = (100 * x for x in actual["accuracy_interval"])
    assert f"test accuracy {100 * actual['accuracy']:.1f} % (95 % CI {low:.1f} to {high:.1f})" in result.err
    assert sum(r["images"] for r in actual["reliability"]) == len(right)
    classifier, made = summary(runs("finetune")[0]), summary(run)
    for key in (
        "init",
        "mode",
        "backbone",
        "label_budget",
        "labels_total",
        "labels_train",
        "labels_val",
        "seeds",
        "subset_fingerprint",
    ):
        assert made[key] == classifier[key]
    assert (made["of_run"], made["of_overrides"]) == (str(runs("finetune")[0]), classifier["overrides"])
    assert (made["config"]["run"], made["config"]["dataset"]) == (made["of_run"], classifier["config"]["dataset"])
    assert (made["source"], made["dataset"], made["images"]) == (
        classifier["source"],
        classifier["dataset"],
        len(right),
    )
    assert made["data_fingerprint"] == load_test(classifier["config"]["dataset"]).fingerprint()
    for key in ("accuracy", "precision_macro", "balanced_accuracy", "f1_macro", "nll", "ece", "ece_calibrated"):
        assert made[f"test/{key}"] == actual[key]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["test/accuracy"]) for m in metrics] == [(0, pytest.approx(actual["accuracy"], abs=1e-6))]
    assert kept["names"].tolist() == load_test(classifier["config"]["dataset"]).names
    assert actual["temperature"] == pytest.approx(classifier["val/temperature"])
    assert {"test/nll", "test/ece", "test/ece_calibrated"} <= summary(run).keys()
    assert [s["features"] for s in actual["stages"]] == [8, 16]
    assert all(0 <= s["probe_accuracy"] <= 1 and 0 <= s["knn_accuracy"] <= 1 for s in actual["stages"])
    page = (run / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    for heading in ("Calibration (reliability diagram)", "Confusion matrix", "Metrics by class", "by backbone stage"):
        assert heading in page
    for figure in ("reliability.png", "reliability.svg", "confusion_matrices.png", "confusion_matrices.svg"):
        assert (run / "figures" / figure).is_file()


def test_confidences_of_an_evaluation_are_those_of_predict(
    in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the figure of mistakes; the predicted classes are the same with any temperature."""
    (best,) = Path("outputs/finetune").glob("*/best.pt")
    content = checkpoint.load(best)
    checkpoint.save(best, {**content, "metrics": {**content["metrics"], "val/temperature": 4.0}})
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(evaluate, "mistakes_figure", lambda run, images, labels, p, names: drawn.append(p))
    assert cli("evaluate", "stages=false", *QUICK).code == 0
    kept = np.load(runs("evaluate")[-1] / "predictions.npz")
    model, images = sslrun.load(best.parent, device="cpu"), load_test(summary(best.parent)["config"]["dataset"])
    expected = model.probabilities([*images.images[torch.arange(len(images))]])
    assert kept["probabilities"] == pytest.approx(expected, abs=2e-3)
    assert drawn[0] == pytest.approx(expected, abs=2e-3)
    report = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert report["nll_calibrated"] == pytest.approx(
        -np.log(expected[np.arange(len(images)), kept["labels"]]).mean(), abs=5e-3
    )
    assert report["nll"] != pytest.approx(report["nll_calibrated"], abs=5e-3)


def test_classes_without_or_with_few_test_images_are_named(in_world: Path, cli: Cli, photos: Path) -> None:
    """With a kNN classifier."""
    for name in ("flower", "temple"):
        shutil.copytree(photos / name, f"set/train/{name}")
        Path("set/test", name).mkdir(parents=True)
        for i in range(7 if name == "flower" else 1):
            shutil.copy(photos / name / f"{name} {i:02d}.jpg", f"set/test/{name}")
    Path("set/train/blank").mkdir()
    for i in range(10):
        Image.new("RGB", (40, 40), (i, 250, 9)).save(f"set/train/blank/{i}.png")
    init = f"init={runs('pretrain')[-1]}"
    knn = cli("finetune", init, "mode=knn", "dataset=folder", "dataset.root=set", "pooling=average", *QUICK)
    assert knn.code == 0, knn.err
    answer = cli("evaluate", *QUICK)
    assert answer.code == 0, answer.err
    assert "1 of 3 classes has no test images: blank; the balanced accuracy leaves it out." in answer.err
    run = runs("evaluate")[-1]
    report = json.loads((run / "report.json").read_text())
    blank, flower, temple = report["classes"]
    ends = f"{100 * temple['recall_low']:.1f} to {100 * temple['recall_high']:.1f}"
    few = f"1 test image of class temple: too few to measure its recall (95 % CI {ends})."
    assert [line for line in answer.err.splitlines() if "too few" in line] == [few]
    assert re.search(r"blank +- +- +- +0 +0 *\n", answer.err)
    assert [blank[k] for k in ("precision", "recall", "recall_low", "recall_high", "f1", "images")] == [None] * 5 + [0]
    assert report["balanced_accuracy"] == pytest.approx(np.mean([c["recall"] for c in report["classes"][1:]]))
    rows = list(csv.DictReader((run / "per_class.csv").open()))
    assert list(rows[0]) == ["class", "precision", "precision_low", "precision_high", "recall", "recall_low",
                             "recall_high", "f1", "images", "predicted"]  # fmt: skip
    assert rows[0] == {**dict.fromkeys(rows[0], ""), "class": "blank", "images": "0", "predicted": "0"}
    assert float(rows[1]["recall_low"]) == flower["recall_low"] < flower["recall"]
    page = (run / "report.html").read_text()
    assert few in page
    assert "approximate, since a class has fewer than 10 test images" in page or report["f1_macro_interval"] is None
    assert "1 of 3 classes has no test images: blank" in page
    assert f"{100 * flower['recall_low']:.1f} to {100 * flower['recall_high']:.1f}" in page


@pytest.mark.slow
def test_two_classifiers_are_compared_image_by_image(in_world: Path, cli: Cli) -> None:
    (classifier,) = runs("finetune")
    assert cli("finetune", "mode=knn", "label_fraction=0.5", *QUICK).code == 0
    rival = runs("finetune")[-1]
    result = cli("evaluate", f"run={classifier}", f"against={rival}", "stages=false", *QUICK)
    assert result.code == 0, result.err
    actual = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert cli("evaluate", f"run={rival}", "stages=false", *QUICK).code == 0
    other = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert actual["against"]["accuracy"] == pytest.approx(other["accuracy"])
    assert actual["against"]["difference"] == pytest.approx(actual["accuracy"] - other["accuracy"])
    (line,) = [line for line in result.err.splitlines() if "McNemar's mid-p test" in line]
    assert line.endswith("This compares two trained classifiers, not two methods: other labels or seeds may give "
                         "another result.")  # fmt: skip
    assert f"compared with {rival}; only this classifier correct: " in line
    assert "stages" not in actual
    same = cli("evaluate", f"run={classifier}", f"against={classifier}", "stages=false", *QUICK)
    assert "no difference shown: accuracy +0.0 points (95 % CI -" in same.err


def test_the_accuracy_of_against_is_that_of_the_other_classifier() -> None:
    labels, names = np.array([0, 1, 1, 0]), ["a", "b", "c", "d"]

    def evaluated(name: str, *predicted: int) -> Any:
        data = SimpleNamespace(names=names, class_names=["flower", "temple"], groups=None)
        return SimpleNamespace(directory=Path(name), data=data, labels=labels, probabilities=np.eye(2)[list(predicted)])

    result = evaluate._compared(evaluated("this", 0, 1, 1, 1), evaluated("other", 0, 0, 0, 1))
    assert (result["run"], result["accuracy"], result["difference"]) == ("other", 0.25, 0.5)
    assert (result["only_this"], result["only_rival"]) == (2, 0)


@pytest.mark.slow
def test_without_the_training_images_the_stages_are_not_probed(in_world: Path, cli: Cli, photos: Path) -> None:
    shutil.copytree(photos, "mine")
    assert cli("finetune", "mode=probe", "dataset.root=mine", *QUICK).code == 0
    Path("mine").rename("moved")
    result = cli("evaluate", "dataset.root=moved", *QUICK)
    assert result.code == 0, result.err
    before = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert len(before["stages"]) == 2
    for image in sorted(Path("moved").rglob("*.jpg"))[::3]:
        image.unlink()
    result = cli("evaluate", "dataset.root=moved", *QUICK)
    assert result.code == 0, result.err
    assert "Skipped the probes of the stages" in result.err
    nowhere = cli("evaluate", "against=nowhere", *QUICK)
    assert nowhere.code == 1
    assert "nowhere is not a run of sslrun" in nowhere.err


def test_case_52_only_evaluate_reads_test_images(cli: Cli, photos: Path) -> None:
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos, "set/test")
    for path in Path("set/test").glob("*/*"):
        path.write_text("whoever reads this fails")
    assert (
        cli("pretrain", "dataset=folder", "dataset.root=set", "dataset.image_size=16", *TINY, "train.steps=2").code == 0
    )
    assert cli("finetune", "mode=finetune", "train.steps=2", *QUICK).code == 0
    answer = cli("evaluate", *QUICK)
    assert answer.code == 1
    assert "60 of 60 images cannot be read" in answer.err


@pytest.mark.slow
def test_evaluate_on_other_images_of_the_same_classes(in_world: Path, cli: Cli, photos: Path) -> None:
    shutil.copytree(photos, "more/train")
    shutil.copytree(photos, "more/test")
    assert cli("evaluate", "dataset=folder", "dataset.root=more", *QUICK).code == 0
    assert summary(runs("evaluate")[-1])["images"] == 60
    assert (
        len(json.loads((runs("evaluate")[-1] / "report.json").read_text())["stages"]) == 2
    )  # the probes use the labels of the run
    shutil.move("more/train/temple", "more/train/castle")
    shutil.move("more/test/temple", "more/test/castle")
    answer = cli("evaluate", "dataset=folder", "dataset.root=more", *QUICK)
    assert "has the classes castle, flower" in answer.err


def test_a_folder_of_runs_without_its_key_is_recognized(in_world: Path, cli: Cli) -> None:
    newest = runs("finetune")[-1]
    for given, meant in (("outputs/finetune", f"run={newest}"), (str(newest), f"run={newest}")):
        answer = cli("evaluate", given)
        assert answer.code == 1
        assert answer.err == f"sslrun: unexpected argument: {given}; did you mean {meant}?\n"


def test_a_folder_is_not_evaluated_with_a_classifier_of_digits(short_run: Path, cli: Cli, photos: Path) -> None:
    assert cli("finetune", "mode=probe", "labels=20", *QUICK).code == 0
    answer = cli("evaluate", str(photos))
    assert answer.code == 1
    assert answer.lines()[-1].endswith("is a classifier of digits, which is no folder; add dataset=folder")


def test_classifiers_with_other_test_images_labels_or_classes_are_not_compared() -> None:
    def evaluated(names: str = "abc", labels: str = "011", classes: str = "xy") -> Any:
        data = SimpleNamespace(names=list(names), class_names=list(classes), groups=None)
        labels_of = np.array([int(c) for c in labels])
        return SimpleNamespace(directory=Path("run"), data=data, labels=labels_of, probabilities=np.eye(2)[labels_of])

    assert evaluate._compared(evaluated(), evaluated())["accuracy"] == 1
    for other in (evaluated("abd"), evaluated(labels="010"), evaluated(classes="xz")):
        with pytest.raises(UserError, match="run and run have different test images or classes"):
            evaluate._compared(evaluated(), other)


@pytest.mark.parametrize("validation", ["inside", "extra"])
def test_stages_are_probed_on_the_labels_of_the_run(
    validation: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its images have moved, but not on other labels."""
    node = folder_node("gone", val_fraction=0.2)
    shutil.copytree(photos, "mine")
    here = node | {"root": "mine"}
    settings: Any = {"labels": None, "label_fraction": None, "labels_per_class": 3, "subset_seed": 7}
    config: dict[str, Any] = {"dataset": node, **settings, "seed": 5, "validation": validation}
    chosen = load_labeled(here, LabelBudget(per_class=3, seed=7), config["validation"])
    used: list[Any] = []

    def map_probes(*given: Any) -> list[dict[str, int]]:
        used.append(given)
        return [{"features": 8}]

    monkeypatch.setattr(evaluate, "map_probes", map_probes)
    known = {"subset_fingerprint": chosen.budget.fingerprint()}
    monkeypatch.setattr(evaluate, "read_summary", lambda directory: known)
    trained = SimpleNamespace(config=config, encoder="encoder")
    classifier: Any = SimpleNamespace(trained=trained, dataset=here, directory=Path("run"), data="test", device="cpu")
    assert evaluate._map_probes(classifier, 9) == [{"features": 8}]
    ((encoder, labeled, folds, test, device, batch_size),) = used
    assert (encoder, test, device, batch_size) == ("encoder", "test", "cpu", 9)
    assert labeled.every.names == chosen.every.names
    assert len(labeled.every) == (6 if validation == "inside" else 6 + 10)
    assert [len(f.train) for f in folds] == ([4, 4, 4] if validation == "inside" else [6])
    known["subset_fingerprint"] = "other"
    assert evaluate._map_probes(classifier, 9) == []
    known["subset_fingerprint"] = chosen.budget.fingerprint()
    config["dataset"] = here | {"root": str(photos)}  # which is still there
    assert evaluate._map_probes(classifier, 9) == [{"features": 8}]
    shutil.rmtree("mine")
    assert evaluate._map_probes(classifier, 9) == [{"features": 8}]
    assert len(used) == 3
    config["dataset"] = node
    assert evaluate._map_probes(classifier, 9) == []


def test_another_folder_is_evaluated_whole_unless_it_has_images_of_the_training(
    in_world: Path, cli: Cli, photos: Path
) -> None:
    def tested(root: str) -> tuple[int, str]:
        answer = cli("evaluate", "dataset=folder", f"dataset.root={root}", "stages=false", *QUICK)
        assert answer.code == 0, answer.err
        return summary(runs("evaluate")[-1])["images"], answer.err

    shutil.copytree(photos, "copy")
    Image.new("RGB", (40, 40), "red").save("copy/flower/new.jpg")
    n, words = tested("copy")
    assert n == 12
    assert "copy contains 48 images of the training: only its test split is used." in words
    for name in ("flower", "temple"):
        Path("other", name).mkdir(parents=True)
        for i in range(7):
            Image.new("RGB", (40, 40), (i, 200, 9)).save(f"other/{name}/{i}.png")
    n, words = tested("other")
    assert n == 14
    assert "other has no image of the training: if it has no test/, all its images are used." in words


def test_a_folder_may_be_that_of_the_training_if_its_images_cannot_be_read_any_more(tmp_path: Path) -> None:
    Path("other/a").mkdir(parents=True)
    Path("empty").mkdir()
    for name in ("x", "y", "z"):
        Image.new("RGB", (8, 8), (len(name), 9, 9)).save(f"other/a/{name}.png")
    node, cifar = folder_node("other", test_fraction=0.2), source_node("cifar10", "data/cifar10")
    assert not evaluate._is_other_folder(node, folder_node("empty"))
    assert not evaluate._is_other_folder(node, folder_node("nowhere"))
    assert evaluate._is_other_folder(node, cifar)  # which is not downloaded
    assert not Path("data").exists()


def test_keys_that_make_training_images_test_images_are_refused(in_world: Path, cli: Cli) -> None:
    trained_on = Path(summary(runs("finetune")[0])["config"]["dataset"]["root"])
    files = sorted(str(p.relative_to(trained_on)) for p in trained_on.rglob("*.jpg"))
    Path("mine.csv").write_text("".join(f"{f},{f.split('/')[0]},{'test' if i % 2 else 'train'}\n"
                                        for i, f in enumerate(files)).join(["file,label,split\n", ""]))  # fmt: skip
    for key, training in (("dataset.test_fraction=0.5", "0.2"), ("dataset.labels=mine.csv", "None")):
        answer = cli("evaluate", key, *QUICK)
        assert answer.code == 1
        last = answer.err.splitlines()[-1]
        assert re.match(rf"sslrun: {re.escape(key)}: \d+ of the 30 test images are images of the training", last)
        assert last.endswith(f"evaluate with {key.partition('=')[0]}={training}, as in the training")


FRAMES = ("dataset=folder", "dataset.root=frames", "dataset.image_size=24", "validation=extra",
          "dataset.val_fraction=0.3", "init=scratch", "mode=probe", "pooling=grid", "backbone=smallcnn",
          *TINY)  # fmt: skip
OF_AN_OBJECT = r"dataset.groups=([^/]+)_\d+\."


def excess_of(cli: Cli, *overrides: str) -> tuple[float, float, dict[str, Any], str]:
    """Evaluate the newest classifier; return validation and test accuracy, the report, and what is logged of both."""
    answer = cli("evaluate", "stages=false", *overrides, *QUICK)
    assert answer.code == 0, answer.err
    run = runs("evaluate")[-1]
    line = "\n".join(line for line in answer.lines() if "exceeds test accuracy" in line)
    assert ("exceeds test accuracy" in (run / "report.html").read_text()) == bool(line)
    report = json.loads((run / "report.json").read_text())
    return summary(runs("finetune")[-1])["val/accuracy"], summary(run)["test/accuracy"], report, line


@pytest.mark.slow
def test_frames_of_one_object_on_both_sides_make_validation_accuracy_too_high(cli: Cli) -> None:
    """As trial 24 was: few objects with many frames each, and other objects in the test split."""
    frames("frames/train", 30, 6, 2)
    frames("frames/test", 20, 6, 1002, first=30)
    assert cli("finetune", *FRAMES).code == 0
    val, test, report, line = excess_of(cli)
    assert val > 0.95
    assert test < 0.7
    excess = report["validation_excess"]
    assert excess["reason"] == "no_groups"
    assert (excess["validation"]["accuracy"], excess["validation"]["images"]) == (val, 108)
    assert (excess["test"]["accuracy"], excess["test"]["images"]) == (test, 240)
    low, high = excess["test"]["interval"]
    assert f"validation accuracy {100 * val:.1f} % (108 images, 95 % CI 96.6 to 100.0) exceeds test accuracy " in line
    assert f"{100 * test:.1f} % (240 images, 95 % CI {100 * low:.1f} to {100 * high:.1f})" in line
    assert "set dataset.groups, so that no object is in both training and validation" in line

    assert cli("finetune", *FRAMES, OF_AN_OBJECT).code == 0
    val, test, report, line = excess_of(cli)
    assert (line, "validation_excess" in report) == ("", False)
    low, high = wilson_interval(round(test * 240), 240)
    assert wilson_interval(round(val * 108), 108)[0] < high
    assert low < wilson_interval(round(val * 108), 108)[1]


@pytest.mark.slow
def test_the_reasons_for_a_lower_test_accuracy(cli: Cli) -> None:
    """Images of another folder differ from those of the training, whatever the groups."""
    frames("frames/train", 20, 6, 0)
    frames("frames/test", 12, 6, 1000, first=20)
    frames("same/test", 20, 6, 0)
    frames("other/test", 12, 6, 1000)
    assert cli("finetune", *FRAMES).code == 0
    assert "validation_excess" not in excess_of(cli, "dataset.root=same")[2]
    report, line = excess_of(cli, "dataset.root=other")[2:]
    assert report["validation_excess"]["reason"] == "other_images"
    assert line.endswith("by more than both intervals allow: the test images differ from the training images")


@pytest.mark.slow
def test_the_test_split_of_a_run_with_groups_is_that_of_its_training(cli: Cli) -> None:
    """Even if the folder is typed again without them, its groups decide which images are held out."""
    frames("frames", 10, 4, 0)
    assert cli("finetune", *FRAMES, OF_AN_OBJECT).code == 0
    for overrides in ((), ("dataset=folder", "dataset.root=frames"), ("dataset.test_fraction=0.2",)):
        typed = ("dataset=folder", "dataset.root=frames") if overrides[-1:] == ("dataset.test_fraction=0.2",) else ()
        assert cli("evaluate", "stages=false", *typed, *overrides, *QUICK).code == 0
        names = np.load(runs("evaluate")[-1] / "predictions.npz")["names"].tolist()
        objects = {n.rpartition("_")[0] for n in names}
        assert len(names) == 4 * len(objects) == 16
        report = json.loads((runs("evaluate")[-1] / "report.json").read_text())
        assert (report["groups"], report["accuracy_interval"]) == (4, None)
        page = (runs("evaluate")[-1] / "report.html").read_text()
        assert "no CI: 4 groups of dependent images, at least 10 are needed" in page
    frames("elsewhere", 3, 2, 1, "{object}{frame:02d}.png")  # which the expression does not match
    assert cli("evaluate", "stages=false", "dataset=folder", "dataset.root=elsewhere", *QUICK).code == 0
    assert len(np.load(runs("evaluate")[-1] / "predictions.npz")["names"]) == 12


def test_groups_of_the_test_images_widen_the_interval_and_change_the_comparison(cli: Cli) -> None:
    frames("frames/train", 20, 4, 0)
    frames("frames/test", 15, 8, 1000, first=20)
    for mode in ("probe", "knn"):
        assert cli("finetune", *FRAMES, f"mode={mode}", OF_AN_OBJECT).code == 0
    first, second = runs("finetune")
    answer = cli("evaluate", f"run={first}", f"against={second}", "stages=false", *QUICK)
    assert answer.code == 0, answer.err
    report = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    kept = np.load(runs("evaluate")[-1] / "predictions.npz")
    correct = kept["probabilities"].argmax(1) == kept["labels"]
    groups = np.array([n.rpartition("_")[0] for n in kept["names"]])
    assert report["accuracy_interval"] == list(proportion_interval(correct, groups) or ())
    low, high = (100 * end for end in report["accuracy_interval"])
    n = effective_size(correct, groups)
    assert n is not None
    assert n < 120 < len(correct)
    assert (
        f"test accuracy {100 * correct.mean():.1f} % (95 % CI {low:.1f} to {high:.1f}, images of one group count as "
        f"dependent: effective n = {n:.0f})" in answer.err
    )
    assert report["against"]["groups"] == 30
    assert re.search(r"p = \S+ \(t test over 30 groups of dependent images\)", answer.err)
    page = (runs("evaluate")[-1] / "report.html").read_text()
    assert f"images of one group count as dependent: effective n = {n:.0f}" in page
    assert "95 % CIs of precision and recall consider that images of one group are dependent" in page
    assert "bootstrap over groups" in page


def test_groups_of_a_data_set_without_the_key_are_refused(cli: Cli) -> None:
    assert (
        cli(
            "finetune",
            "dataset=digits",
            "dataset.max_images=60",
            "backbone=smallcnn",
            "init=scratch",
            "mode=probe",
            *TINY,
        ).code
        == 0
    )
    answer = cli("evaluate", "dataset.groups=x", *QUICK)
    assert answer.code == 1
    assert answer.lines()[-1] == "sslrun: digits has no key dataset.groups; it is one of dataset=folder"


@pytest.mark.slow
def test_labels_that_have_changed_since_the_training_are_a_warning(photos: Path, cli: Cli) -> None:
    files = sorted(photos.rglob("*.jpg"))

    def write(test: int) -> None:
        rows = [
            f"{f.parent.name}/{f.name},{f.parent.name},{'test' if i % 2 == test else 'train'}"
            for i, f in enumerate(files)
        ]
        Path("labels.csv").write_text("\n".join(["file,label,split", *rows]))

    write(1)
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=16", "dataset.labels=labels.csv")
    assert (
        cli("finetune", "init=scratch", "mode=probe", *data, "backbone=smallcnn", "backbone.widths=[8,16]", *QUICK).code
        == 0
    )
    warning = "their labels or groups have changed since the training: test images may be among those it was trained on"
    assert warning not in cli("evaluate", "stages=false", *QUICK).err
    write(0)
    assert warning in cli("evaluate", "stages=false", *QUICK).err
    Path("all.csv").write_text(Path("labels.csv").read_text().replace(",train", ",test", 40))
    answer = cli("evaluate", "dataset.labels=all.csv", *QUICK)
    assert answer.code == 1
    assert "images are images of the training: evaluate with dataset.labels=labels.csv" in answer.err


def test_another_folder_is_read_with_its_own_labels_and_what_is_left_out_is_logged(photos: Path, cli: Cli) -> None:
    rows = [
        f"{f.parent.name}/{f.name},{'flower' if f.parent.name == 'temple' else 'temple'}" for f in photos.rglob("*.jpg")
    ]
    Path("wrong.csv").write_text("\n".join(["file,label", *rows]))
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=16", "dataset.labels=wrong.csv")
    assert (
        cli("finetune", "init=scratch", "mode=probe", *data, "backbone=smallcnn", "backbone.widths=[8,16]", *QUICK).code
        == 0
    )
    for name in ("flower", "temple"):
        Path("other", name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40), (i, 200, len(name))).save(f"other/{name}/{i}.png")
    Path("other/flower/raw.cr2").touch()
    answer = cli("evaluate", "dataset.root=other", "stages=false", *QUICK)
    assert answer.code == 0, answer.err
    assert "other: 10 images, 2 classes" in answer.err
    assert "left out: 1 file of other formats: 1 .cr2" in answer.err
    assert "wrong.csv" not in answer.err
