import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset, listing_hash
from sslrun.data.images import Images
from sslrun.data.labeled import Pool, Validation
from sslrun.data.labels import LabelBudget
from sslrun.models.published import TORCHVISION, published
from sslrun.run.run import Stages
from sslrun.stages.table import job, stage
from sslrun.study import plan
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Plan, StudyData, load_data, plan_of
from sslrun.study.settings import StudyOverrides
from tests.helpers import SMALL_STUDY, Cli, folder_node, runs, study_runs, study_table, summary


@pytest.mark.slow
def test_duplicates_run_once_and_lost_weights_are_trained_again(cli: Cli) -> None:
    twice = (
        'inits=[rotation,rotation,"rotation  train.steps=4"]',
        "label_fractions=[0.1,0.1001]",
        "mode=finetune",
        "seeds=1",
    )
    answer = cli("compare", *SMALL_STUDY, *twice)
    assert answer.code == 0, answer.err
    assert (
        "Label budgets label_fraction=0.1 and label_fraction=0.1001 both give 30 labels; only the first is used."
        in answer.err
    )
    assert "inits: rotation is named several times, and run only once." in answer.err
    assert "rotation  train.steps=4 is the same as rotation, so it is run only once." in answer.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 5)
    (study,) = runs("compare")
    assert len(study_table(study)) == 5
    own = cli("report", str(study))  # without auto, since there is no pretrained probe
    assert own.code == 0, own.err
    assert "auto" not in own.out + own.err
    (weights,) = {p.parent for p in Path("outputs/pretrain/study_runs").glob("*/*.pt")}
    before = (weights / "summary.json").read_text()
    for path in weights.glob("*.pt"):
        path.unlink()
    again = cli("compare", *SMALL_STUDY, *twice[:-1], "seeds=2")
    assert again.code == 0, again.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 10)
    assert json.loads(before)["data_fingerprint"] == summary(weights)["data_fingerprint"]
    damaged = Path("outputs/finetune/study_runs", min(study_runs("finetune")))
    (damaged / "summary.json").write_text("{")
    wrong = cli("compare", *SMALL_STUDY, *twice)
    assert wrong.code == 1
    assert f"move {damaged} away to repeat the run" in wrong.err
    (study / "results.csv").write_text("begin,mode\n1,2\n")
    for path, text in ((study, "is not a table of results"), (runs("compare")[-1], "is an unfinished study")):
        wrong = cli("report", str(path))
        assert wrong.code == 1
        assert text in wrong.err
        assert "Traceback" not in wrong.err


def composed(command: str, overrides: Sequence[str]) -> Node:
    return plain(compose_config(command, list(overrides), None))


def with_labels(n: int, value: int = 0) -> Dataset:
    pixels = torch.full((n, 2, 2, 3), value, dtype=torch.uint8)
    return Dataset(Images([pixels], np.full((n, 16), value, np.uint8)), torch.arange(n) % 2, ["a", "b"], [""] * n)


def pool_of(data: Dataset, validation: Validation = "inside", val: Dataset | None = None) -> Pool:
    return Pool(data, data, val, validation, "photos")


COMMON = ["dataset=folder", "dataset.root=photos", "backbone=smallcnn", "device=cpu"]
ON_PIXELS = ["backbone=pixels", *(o for o in COMMON if o != "backbone=smallcnn")]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, tuple[Node, tuple[str, ...]]]]:
    """Config and data of each run by command and name; the two tasks of the study have the same settings."""
    made: dict[str, dict[str, tuple[Node, tuple[str, ...]]]] = {s: {} for s in ("pretrain", "finetune", "evaluate")}

    def named(stages: Any, stage: str, name: str, config: Node, overrides: Any, *data: str) -> StudyRun:
        made[stage][name] = config, data
        return StudyRun(stage, name, tuple(overrides), f"{len(made[stage])}" if stage != "pretrain" else config["seed"])

    monkeypatch.setattr(plan, "study_run", named)
    given = StudyOverrides({"rotation": COMMON, "again": COMMON}, COMMON, ON_PIXELS, ["label_smoothing=0.3"])
    monkeypatch.setattr(plan, "overrides_of", lambda *_: given)
    return made


def planned(*own: str, equal_time: dict[str, int] | None = None, pool: Pool | None = None) -> Plan:
    config = composed("compare", [*COMMON, "seeds=2", "inits=[rotation]", "device.threads=1", *own])
    pool = pool or pool_of(with_labels(20))
    data = StudyData(pool, pool.data.images + with_labels(3, 7).images, "test")
    return plan_of(Stages(stage, job), config, {"device": "cpu"}, data, None, equal_time)


def test_the_runs_of_a_study_have_its_settings_and_depend_on_the_data_that_they_read(
    made: dict[str, dict[str, tuple[Node, tuple[str, ...]]]],
) -> None:
    result = planned("labels=[4]", "pretrain_seeds=2", "mode=finetune")
    images = (with_labels(20).images + with_labels(3, 7).images).fingerprint().hexdigest()
    assert list(result.pretrainings) == ["rotation"]  # the other one has the same keys
    assert {s: r.name for s, r in result.pretrainings["rotation"].items()} == {0: "rotation_seed0", 1: "rotation_seed1"}
    for seed in (0, 1):
        config, data = made["pretrain"][f"rotation_seed{seed}"]
        assert (config, data) == (composed("pretrain", [*COMMON, f"seed={seed}"]), (images,))
    shared = [
        ("scratch", "finetune", None),
        ("scratch", "probe", None),
        ("pixels", "probe", None),
        ("pixels", "knn", None),
    ]
    networks = [*shared, ("rotation", "finetune", 0), ("rotation", "finetune", 1)]
    cells = list(result.classifiers)
    assert [(c.initialization, c.mode, c.pretrain_seed) for c in cells] == networks * 2
    assert [c.budget for c in cells] == [LabelBudget(4)] * 6 + [LabelBudget(4, seed=1)] * 6
    assert result.matched == 2
    for cell, run in result.classifiers.items():
        seed = cell.budget.seed
        init = {"rotation": "outputs/pretrain/study_runs/" + f"rotation_seed{cell.pretrain_seed}-{cell.pretrain_seed}"}
        own = {"init": init.get(cell.initialization, "scratch"), "mode": cell.mode, "labels": 4, "seed": seed}
        own |= {"validation": "inside", "search": ["label_smoothing=0.3"] if cell.mode == "finetune" else []}
        common = ON_PIXELS if cell.initialization == "pixels" else COMMON
        used, fingerprints = made["finetune"][run.name]
        assert used == composed("finetune", common) | own | {"subset_seed": seed}
        assert seed or composed("finetune", list(run.overrides)) == used
        assert fingerprints == (with_labels(20).fingerprint(), "")
        seeded = "" if cell.pretrain_seed is None else f"_seed{cell.pretrain_seed}"
        assert run.name == f"{cell.initialization}{seeded}_{cell.mode}_labels4_subset{seed}"
        reading = {o.replace("'", "") for o in result.evaluations[cell].overrides}
        place = {"dataset.root=photos", "dataset.test_fraction=0.2"}
        assert reading == {
            f"run={run.directory.as_posix()}",
            "device=cpu",
            "device.threads=1",
            "logger=[tensorboard]",
            *place,
        }
    assert {r.stage for r in result.evaluations.values()} == {"evaluate"}
    assert {d for _, d in made["evaluate"].values()} == {("test",)}
    assert {c["run"] for c, _ in made["evaluate"].values()} == {
        r.directory.as_posix() for r in result.classifiers.values()
    }


def test_a_validation_split_is_passed_to_every_classifier(
    made: dict[str, dict[str, tuple[Node, tuple[str, ...]]]],
) -> None:
    data, val = with_labels(20), with_labels(6, 9)
    planned("labels_per_class=[2]", "mode=probe", "equal_time=false", pool=pool_of(data, "extra", val))
    assert {c["validation"] for c, _ in made["finetune"].values()} == {"extra"}
    assert {d for _, d in made["finetune"].values()} == {(data.fingerprint(), val.fingerprint())}


def test_scratch_is_trained_for_as_long_as_a_pretraining_once_the_steps_are_known(
    made: dict[str, dict[str, tuple[Node, tuple[str, ...]]]],
) -> None:
    """A number of steps that is the usual one needs no further run."""
    result = planned("labels=[4,6]", "seeds=1", equal_time={"labels=4": 900, "labels=6": 100})
    assert result.matched == 0
    few, more = (
        {
            c.mode: r
            for c, r in result.classifiers.items()
            if (c.initialization, c.budget) == ("scratch", LabelBudget(n))
        }
        for n in (4, 6)
    )
    usual, longer = (made["finetune"][few[m].name][0] for m in ("finetune", "equal_time"))
    assert longer == usual | {"train": {**usual["train"], "steps": 900}}
    assert composed("finetune", list(few["equal_time"].overrides)) == longer
    assert more["equal_time"] is more["finetune"]
    assert len(made["finetune"]) == 2 * 6 + 1  # one is longer
    assert sorted(b.text for b in result.scratch) == ["labels=4", "labels=6"]


def test_the_classifiers_of_each_mode() -> None:
    def cells(
        mode: str = "auto", published: bool = False, seeds: int = 1, equal_time: bool = False, tasks: bool = True
    ) -> list[tuple[str, str, int | None]]:
        config = {"mode": mode, "seeds": seeds, "equal_time": equal_time}
        seeded = {"simclr": [3, 4]} if tasks else {}
        found = plan._cells(config, seeded, [LabelBudget(fraction=0.1)], published)
        return [(c.initialization, c.mode, c.pretrain_seed) for c in found]

    scratch, frozen = ("scratch", "finetune", None), ("scratch", "probe", None)
    base = [scratch, frozen, ("pixels", "probe", None), ("pixels", "knn", None)]
    pretrained = [("simclr", mode, seed) for seed in (3, 4) for mode in ("probe", "finetune")]
    assert cells() == [*base, *pretrained]
    assert cells("finetune") == [*base, *(("simclr", "finetune", s) for s in (3, 4))]
    assert cells("probe") == [*base, *(("simclr", "probe", s) for s in (3, 4))]
    assert cells(equal_time=True) == [scratch, ("scratch", "equal_time", None), *base[1:], *pretrained]
    assert len(cells(seeds=3)) == 3 * len(cells())
    for mode, own in (("auto", "probe"), ("probe", "probe"), ("finetune", "finetune")):
        assert cells(mode, True)[4] == ("pretrained", own, None)
        assert len(cells(mode, True)) == len(cells(mode)) + 1
    assert cells(published=True, equal_time=True, tasks=False) == [*base, ("pretrained", "probe", None)]


NO_BUDGET: Node = {"labels": None, "labels_per_class": None, "label_fractions": None, "seeds": 3}


def test_label_budgets_are_sorted_and_those_of_the_same_size_are_used_once() -> None:
    pool = pool_of(with_labels(20))
    fractions = [LabelBudget(fraction=f) for f in (0.1, 0.5, 1.0)]
    assert plan._budgets(NO_BUDGET | {"label_fractions": [1.0, 0.5, 0.1, 0.5, 0.11]}, pool) == fractions
    per_class = [LabelBudget(per_class=n) for n in (2, 10)]
    assert plan._budgets(NO_BUDGET | {"labels_per_class": [10, 2, 2]}, pool) == per_class
    assert plan._budgets(NO_BUDGET | {"labels": [7, 5]}, pool) == [LabelBudget(5), LabelBudget(7)]


def test_default_budgets_without_a_label_of_each_class_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert plan._budgets(NO_BUDGET, pool_of(with_labels(30))) == [LabelBudget(fraction=f) for f in (0.1, 1.0)]
    assert caplog.messages == [
        "label_fraction=0.01 is 0 labels, which is fewer than the 2 classes; this budget is left out."
    ]


@pytest.mark.parametrize(
    ("budgets", "text"),
    [
        ({"labels": [5, 1]}, "labels=1 is fewer than the 2 classes"),
        ({"labels": [5, 21]}, "labels=21: there are only 20 labels"),
        ({"label_fractions": [0.02, 1.0]}, "label_fraction=0.02 is 0 labels, which is fewer than the 2 classes"),
    ],
)
def test_label_budgets_that_cannot_be_drawn(budgets: Node, text: str) -> None:
    with pytest.raises(UserError, match=text):
        plan._budgets(NO_BUDGET | budgets, pool_of(with_labels(20)))


def test_groups_that_exclude_one_class_from_a_fold_are_named_with_their_budget() -> None:
    labels, groups = [0, 1, 1, 2, 1, 1, 0, 0, 0, 2, 2, 1], "zyxywwwzwzzy"
    data = replace(with_labels(12), labels=torch.tensor(labels), class_names=["a", "b", "c"])
    pool = pool_of(replace(data, groups=np.array(list(groups), dtype=object)))
    with pytest.raises(UserError, match=r"labels=12, subset 0: .* 2 folds would have no training image of 1 class"):
        plan._budgets(NO_BUDGET | {"labels": [12]}, pool)


def test_one_label_per_class_is_logged_since_nothing_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    plan._budgets(NO_BUDGET | {"labels": [2, 6]}, pool_of(with_labels(20)))
    assert [r.message for r in caplog.records] == [
        "labels=2: every class has one label, so nothing can be chosen by cross-validation, and the defaults are used."
    ]


def test_a_study_pretrains_on_all_training_and_unlabeled_images_and_needs_a_test_split(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {**folder_node("set"), "val_fraction": 0.2}
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos, "set/test")
    shutil.copytree(photos / "temple", "set/unlabeled")
    Path("set/test/flower/flower 00.jpg").unlink()
    inside, extra = (load_data(node, str(photos / "flower"), v) for v in ("inside", "extra"))
    assert extra.pool.val is not None
    assert (len(extra.pool.data), len(extra.pool.val), len(extra.images)) == (48, 12, 60 + 30 + 30)
    assert (len(inside.pool.data), inside.pool.val, len(inside.images)) == (60, None, 60 + 30 + 30)
    for loaded, n in ((inside, 30), (extra, 30)):  # a fraction is of all training images
        assert len(loaded.pool.labeled(LabelBudget(fraction=0.5)).budget) == n
    assert inside.test == listing_hash(node, "test") != listing_hash(node, "train")
    monkeypatch.setattr(plan, "listing_hash", lambda *_: "")
    with pytest.raises(UserError, match="has no test split, which a study needs"):
        load_data(node, None, "inside")


def test_published_weights_are_part_of_the_key_of_a_run(
    made: dict[str, dict[str, tuple[Node, tuple[str, ...]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their cells have the overrides of their own network, and are no pretraining."""
    weights = ["backbone=timm", "backbone.name=resnet50", *COMMON[:2], "device=cpu"]
    network: Any = SimpleNamespace(identity="package weights 0.1.0")
    given = StudyOverrides({"rotation": COMMON}, COMMON, ON_PIXELS, [], network, weights)
    monkeypatch.setattr(plan, "overrides_of", lambda *_: given)
    result = planned("labels=[4]", "seeds=1")
    assert result.network is network
    (cell,) = (c for c in result.classifiers if c.initialization == "pretrained")
    assert (cell.mode, cell.pretrain_seed) == ("probe", None)
    own = {"init": "pretrained", "mode": "probe", "labels": 4, "validation": "inside", "seed": 0, "subset_seed": 0}
    assert made["finetune"]["pretrained_probe_labels4_subset0"] == (
        composed("finetune", weights) | own, (with_labels(20).fingerprint(), "", "package weights 0.1.0")
    )  # fmt: skip
    assert composed("finetune", list(result.classifiers[cell].overrides)) == composed("finetune", weights) | own
    assert [data for name, (_, data) in made["finetune"].items() if name != "pretrained_probe_labels4_subset0"] == (
        [(with_labels(20).fingerprint(), "")] * 6
    )


def test_a_pretraining_has_another_key_with_other_weights_in_the_same_file(tmp_path: Path) -> None:
    """Also a distillation; weights that are downloaded are known by their address, before and after."""
    weights = tmp_path / "own.pth"
    backbone = ["backbone=timm", "backbone.name=test_resnet", f"backbone.weights={weights}"]
    taught = [COMMON[0], "pretext=distill", "pretext.teacher=test_resnet", f"pretext.weights={weights}"]
    known = []
    for content in ("one", "another"):
        weights.write_text(content)
        continued = plan._weights(composed("pretrain", [*backbone, "init=pretrained"]))
        assert continued == plan._weights(composed("pretrain", taught))
        known += continued
        assert plan._weights(composed("pretrain", [*backbone, "init=scratch"])) == []
    assert len(set(known)) == 2
    with pytest.raises(UserError, match=r"^pretext\.weights=none\.pth: no such file"):
        plan._weights(composed("pretrain", [*taught[:-1], "pretext.weights=none.pth"]))
    downloaded = published({"_target_": TORCHVISION, "name": "resnet18", "weights": None})
    assert downloaded.identity == replace(downloaded, path=weights).identity == downloaded.url


@pytest.mark.slow
def test_a_study_of_published_weights_continued_ones_and_a_distillation(
    cli: Cli, teacher_weights: str, photos: Path
) -> None:
    """Each is evaluated on the same subset, the published network at its own image size."""
    entries = '[pretrained,"rotation init=pretrained","distill pretext.components=4"]'
    backbone = ("backbone=timm", "backbone.name=test_resnet", f"backbone.weights={teacher_weights}")
    answer = cli(
        "compare", "dataset=folder", f"dataset.root={photos}", "dataset.image_size=48", *backbone, f"inits={entries}",
        "labels_per_class=[3]", "seeds=1", "search=[]", "train.batch_size=16", "mode=probe", "equal_time=false",
        "train.steps=2", "train.evaluations=1", "finetune.train.steps=2", "device=cpu", "device.precision=fp32",
        "device.memory_format=contiguous",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert f"pretrained is test_resnet at 160 px ({teacher_weights}, license: not stated)" in answer.err
    assert "; the others are test_resnet at 48 px" in answer.err
    (study,) = runs("compare")
    rows = {r["initialization"]: r for r in study_table(study) if r["mode"] == "probe"}
    assert list(rows) == ["scratch", "pixels", "pretrained", "rotation init=pretrained", "distill pretext.components=4"]
    assert {name: r["image_size"] for name, r in rows.items() if r["image_size"] != "48"} == {"pretrained": "160"}
    assert len({r["subset"] for r in rows.values()}) == 1
    for r in rows.values():
        assert float(r["ms_per_image"]) > 0
        assert float(r["megabytes"]) > 0
        assert float(r["minutes"]) >= float(r["seconds"]) / 60
    distilled = summary(next(Path("outputs/pretrain/study_runs").glob("distill*")))["config"]["pretext"]
    assert (distilled["teacher"], distilled["weights"]) == ("test_resnet", teacher_weights)
    assert summary(study)["published"] == {
        "network": "test_resnet at 160 px", "source": teacher_weights, "license": "not stated"
    } == summary(study)["teacher"]  # fmt: skip
    again = cli("report", str(study))
    assert again.code == 0, again.err
    (reported,) = Path("outputs/report").glob("*/results.csv")
    found = {r["initialization"]: r for r in study_table(reported.parent) if r["mode"] == "probe"}
    columns = ("ms_per_image", "megabytes", "minutes", "test_accuracy")
    assert {n: [r[c] for c in columns] for n, r in found.items()} == {
        n: [r[c] for c in columns] for n, r in rows.items()
    }
