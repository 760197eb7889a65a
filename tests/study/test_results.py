"""Rows of results, their names, and the best classifier of a study."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.config.types import Node
from sslrun.study import results
from sslrun.study.results import Row, best_classifier, disambiguated, row_of, rows_of
from tests.helpers import row


def test_a_choice_of_scratch_is_recognized_with_any_setting(tmp_path: Path) -> None:
    run, test = tmp_path / "run", tmp_path / "test"
    for folder in (run, test):
        folder.mkdir()
    made = {"mode": "auto", "chosen": "scratch augment.probability=0.5", "labels": {"train": 9, "validation": 9},
            "seeds": {"training": 0}, "label_fraction": 0.1, "subset_fingerprint": "a", "dataset": "digits",
            "backbone": "smallcnn", "source": "scratch"}  # fmt: skip
    scores = {"of_run": str(run), "test/accuracy": 0.5, "test/f1_macro": 0.5}
    own = {
        "stage": "",
        "status": "finished",
        "config": {"seed": 0, "dataset": {"image_size": 16}},
        "overrides": [],
        "wall_time_seconds": 1.0,
    }
    (run / "summary.json").write_text(json.dumps(own | made))
    (test / "summary.json").write_text(json.dumps(own | scores))
    row = results.row_of(test, "simclr")
    assert (row.chosen, row.setting, row.labels) == ("scratch", "augment.probability=0.5", 18)


SUMMARY: dict[str, Any] = {
    "status": "finished", "config": {"seed": 3, "dataset": {"image_size": 16}}, "overrides": []
}  # fmt: skip
FINETUNED: dict[str, Any] = {
    **{"stage": "finetune", "init": "simclr", "source": "outputs/pretrain/a", "mode": "probe", "dataset": "digits"},
    **{"backbone": "smallcnn", "label_budget": "label_fraction=0.25", "subset_fingerprint": "5ub5e7"},
    **{"labels_total": 58, "labels_train": 41, "labels_val": 17},
    **{"seeds": {"training": 3, "subset": 4, "split": 5}, "chosen": "probe", "setting": ""},
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
    assert (row.labels, row.labels_train, row.labels_val, row.seed, row.subset) == (58, 41, 17, 3, "5ub5e7")
    assert (row.mode, row.initialization, row.dataset, row.backbone) == ("probe", "simclr", "digits", "smallcnn")
    assert (row.image_size, row.ms_per_image, row.megabytes) == (16, None, None)
    assert row.stem is None
    assert (row.seconds, row.finetuned, row.evaluated) == (12.5, "outputs/finetune/a", "outputs/evaluate/b")
    assert (row.label_budget, row.chosen, row.setting) == ("label_fraction=0.25", "probe", "")


@pytest.mark.parametrize(
    ("stem", "image_size", "built"),
    [("auto", 64, "small"), ("auto", 96, "imagenet"), ("imagenet_small", 64, "imagenet_small")],
)
def test_a_row_has_the_stem_as_built(stem: str, image_size: int, built: str) -> None:
    config = {"seed": 3, "dataset": {"image_size": image_size}, "backbone": {"stem": stem}}
    assert row_of(written(config=config), "simclr").stem == built


def test_a_row_of_an_older_run_counts_its_validation_labels() -> None:
    old = {
        "labels": {"train": 41, "validation": 17},
        "label_fraction": None,
        "labels_per_class": 4,
        "chosen": "finetune a=1",
    }
    new = ("labels_total", "labels_train", "labels_val", "label_budget", "setting")
    evaluated = written(**old)
    path = Path("outputs/finetune/a/summary.json")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in new}))
    row = row_of(evaluated, "simclr")
    assert (row.labels, row.labels_train, row.labels_val, row.label_budget) == (58, 41, 17, "labels_per_class=4")
    assert (row.chosen, row.setting) == ("finetune", "a=1")


def test_a_row_has_the_seed_of_its_pretraining() -> None:
    evaluated = written(source="outputs/pretrain/a/last.pt")
    assert row_of(evaluated, "simclr").pretrain_seed is None  # it was deleted
    assert row_of(evaluated, "simclr").minutes is None
    Path("outputs/pretrain/a").mkdir(parents=True)
    known = {**SUMMARY, "stage": "pretrain", "config": {"seed": 7}, "wall_time_seconds": 107.5}
    Path("outputs/pretrain/a/summary.json").write_text(json.dumps(known))
    assert row_of(evaluated, "simclr").pretrain_seed == 7
    assert row_of(evaluated, "simclr").minutes == (107.5 + 12.5) / 60
    assert row_of(evaluated, "pretrained").minutes == (107.5 + 12.5) / 60


def test_a_deleted_pretraining_has_a_name_of_its_own_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def made(name: str, source: str) -> Row:
        run = Path("outputs/finetune", name)
        run.mkdir(parents=True)
        summary = {**SUMMARY, **FINETUNED, "source": source, "config": {"train": {}}}
        (run / "summary.json").write_text(json.dumps(summary))
        return row("scratch" if source == "scratch" else "simclr", "finetune", finetuned=str(run), source=source)

    for seed in range(3):
        Path(f"outputs/pretrain/{seed}").mkdir(parents=True)
        known = {**SUMMARY, "stage": "pretrain", "config": {"seed": seed}, "wall_time_seconds": 1.0}
        Path(f"outputs/pretrain/{seed}/summary.json").write_text(json.dumps(known))
    rows = [made("s", "scratch")]
    rows += [made(f"{seed}{run}", f"outputs/pretrain/{seed}/last.pt") for seed in range(3) for run in "ab"]
    assert [r.initialization for r in disambiguated(rows)] == ["scratch"] + ["simclr"] * 6
    assert not caplog.records
    for seed in (1, 2):
        Path(f"outputs/pretrain/{seed}/summary.json").unlink()
    names = ["scratch"] + ["simclr"] * 2 + ["simclr 2"] * 2 + ["simclr 3"] * 2
    assert [r.initialization for r in disambiguated(rows)] == names
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        f"outputs/pretrain/{seed}/last.pt was deleted" for seed in (1, 2)
    ]


def test_a_row_of_a_classifier_without_validation_has_no_validation_accuracy() -> None:
    row = row_of(written(**{"val/accuracy": None, "val/loss": None}), "simclr")
    assert row.val_accuracy is row.val_loss is row.selection_score("val/accuracy") is None
    assert row.test_accuracy == 0.72


def test_a_classifier_and_its_evaluation_are_the_same_row() -> None:
    evaluated = written(label_budget="labels_per_class=4")
    assert rows_of(evaluated) == rows_of(Path("outputs/finetune/a")) == [row_of(evaluated, "simclr")]
    assert row_of(evaluated, "simclr").label_budget == "labels_per_class=4"


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


def validated(initialization: str, mode: str, accuracy: float, loss: float, **known: Any) -> Row:
    return row(initialization, mode, val_accuracy=accuracy, val_loss=loss, **known)


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
        row_of(evaluated, "simclr"),
        row_of(evaluated, "scratch", "equal_time"),
    ]
    study = Path("study")
    study.mkdir()
    (study / "summary.json").write_text(json.dumps({**SUMMARY, "stage": "compare", "wall_time_seconds": 1.0}))
    with (study / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(r) for r in [*rows, replace(rows[0], mode="auto")])
    assert rows_of(study) == rows


def test_a_study_knows_the_costs_of_a_deleted_pretraining() -> None:
    row = row_of(written(), "simclr")
    assert row.minutes is None
    study = Path("study")
    study.mkdir()
    (study / "summary.json").write_text(json.dumps({**SUMMARY, "stage": "compare", "wall_time_seconds": 1.0}))
    measured = replace(row, ms_per_image=1.5, megabytes=2.5, minutes=3.5)
    for known in (measured, row):
        with (study / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(row)))
            writer.writeheader()
            writer.writerow(asdict(known))
        assert rows_of(study) == [known]


def test_of_several_evaluations_of_a_run_the_newest_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(path: str, stage: str, started: str, **more: Any) -> Path:
        directory = Path("outputs", path)
        directory.mkdir(parents=True)
        config = {"seed": 0, "dataset": {"image_size": 16}}
        summary = {"stage": stage, "status": "finished", "config": config, "overrides": [], "wall_time_seconds": 1.0,
                   "started": started, "init": "scratch", **more}  # fmt: skip
        (directory / "summary.json").write_text(json.dumps(summary))
        return directory

    run = written("finetune/a", "finetune", "2026-01-01")
    written("evaluate/z", "evaluate", "2026-01-02", of_run=str(run))
    newest = written("evaluate/study_runs/a", "evaluate", "2026-01-03", of_run=str(run))
    monkeypatch.setattr(results, "row_of", lambda evaluated, initialization: (evaluated, initialization))
    assert rows_of(run) == rows_of(run.resolve()) == [(newest, "scratch")]


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
                  "init": name, "labels": len(runs), **changes.pop("config", {})}  # fmt: skip
        source = changes.pop("source", "outputs/pretrain/a")
        run = Path("outputs", name)
        run.mkdir(parents=True)
        summary = {**SUMMARY, **FINETUNED, "source": source, "config": config, **changes}
        (run / "summary.json").write_text(json.dumps(summary))
        runs.append(name)
        return row(initialization, mode, setting=setting, finetuned=str(run), source=source)

    runs: list[str] = []
    longer, grid = {"train": {"steps": 9}}, {"pooling": "grid"}
    weights = {"backbone": {"name": "resnet50"}, "dataset": {"root": "j2", "image_size": 224, "mean": [0.5] * 3}}
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
        made("j2", "pretrained", "probe", source="pretrained", config=weights),
        made("j3", "jigsaw init=pretrained", source="z2", config={"dataset": {"root": "j3", "mean": [0.5] * 3}}),
    ]
    assert [r.initialization for r in disambiguated(rows)] == [
        "simclr train.steps=9", "simclr 2", "simclr pooling=grid", "simclr pooling=auto", "scratch", "scratch",
        "scratch train.steps=9", "imagenet", "imagenet", "rotation",
        "pretrained", "jigsaw init=pretrained",
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


def test_names_do_not_depend_on_seeds_steps_that_follow_the_labels_or_equal_time() -> None:
    def made(name: str, initialization: str, mode: str = "finetune", labels: int = 30, **changes: Any) -> Row:
        config: Node = {"train": {"steps": 150}, "backbone": {"_target_": "smallcnn"}, **changes.pop("config", {})}
        run = Path("outputs/finetune", name)
        run.mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps({**SUMMARY, **FINETUNED, "config": config, **changes}))
        source = changes.get("source", FINETUNED["source"])
        return row(initialization, mode, labels=labels, finetuned=str(run), source=source)

    def pretrained(seed: int, epochs: int = 9) -> str:
        run = Path(f"outputs/pretrain/{seed}-{epochs}")
        run.mkdir(parents=True)
        known = {**SUMMARY, "stage": "pretrain", "config": {"seed": seed, "train": {"epochs": epochs}}}
        (run / "summary.json").write_text(json.dumps({**known, "wall_time_seconds": 1.0}))
        return str(run / "last.pt")

    longer = {"train": {"steps": 300}}
    pixels = {"backbone": {"_target_": "pixels"}}
    rows = [
        made("a", "scratch"), made("b", "scratch"), made("c", "scratch", labels=900, config=longer),
        made("d", "scratch", "equal_time", config=longer), made("e", "pixels", "knn", config=pixels),
        made("f", "simclr", source=pretrained(0)), made("g", "simclr", source=pretrained(1)),
        made("h", "simclr", labels=900, config=longer, source=pretrained(2)),
        made("i", "simclr", source=pretrained(0, 20)),
    ]  # fmt: skip
    names = ["scratch"] * 4 + ["pixels"] + ["simclr"] * 3 + ["simclr 2"]
    assert [r.initialization for r in disambiguated(rows)] == names


def test_several_networks_with_published_weights_are_named_by_backbone_and_image_size() -> None:
    def made(backbone: str, size: int, weights: str | None = None, initialization: str = "pretrained") -> Row:
        run = Path("outputs/finetune", f"{backbone}-{size}-{weights}-{initialization}")
        run.mkdir(parents=True, exist_ok=True)
        config: Node = {"backbone": {"name": backbone, "weights": weights}, "dataset": {"image_size": size}}
        if backbone == "resnet50":
            config["dataset"]["mean"] = [0.4, 0.5, 0.6]
        (run / "summary.json").write_text(json.dumps({**SUMMARY, **FINETUNED, "source": "x", "config": config}))
        known = {"finetuned": str(run), "source": "x", "backbone": backbone, "image_size": size}
        return row(initialization, "probe", **known)

    def names(*rows: Row) -> list[str]:
        return [r.initialization for r in disambiguated(rows)][1:]

    scratch = made("smallcnn", 32, initialization="scratch")
    lite0, resnet50 = made("lite0", 224), made("resnet50", 224)
    assert names(scratch, lite0, lite0) == ["pretrained"] * 2
    two = ["pretrained lite0 at 224 px", "pretrained resnet50 at 224 px"]
    assert names(scratch, lite0, resnet50, lite0) == [*two, two[0]]
    assert names(scratch, resnet50, made("resnet50", 160)) == [two[1], "pretrained resnet50 at 160 px"]
    other = made("lite0", 224, "other.pth")
    assert names(scratch, lite0, other, other) == [two[0], *["pretrained lite0 at 224 px, 2"] * 2]


def test_an_older_run_has_the_subset_of_a_newer_one_with_the_same_pixels() -> None:
    """It knows only the pixels, which differ at another image size."""

    def made(name: str, pixels: str, **subset: str) -> Row:
        run = Path("outputs/finetune", name)
        run.mkdir(parents=True)
        summary = {**SUMMARY, **FINETUNED, "subset_fingerprint": pixels, **subset}
        (run / "summary.json").write_text(json.dumps(summary))
        return row("scratch", "finetune", finetuned=str(run), subset=subset.get("subset", pixels))

    old, other = made("old", "small 0"), made("other", "small 1")
    new, large = made("new", "small 0", subset="names 0"), made("large", "large 0", subset="names 0")
    shared = results.with_shared_subsets([old, other, new, large])
    assert [r.subset for r in shared] == ["names 0", "small 1", "names 0", "names 0"]
    assert results.with_shared_subsets([old, other]) == [old, other]
