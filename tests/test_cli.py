import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from sslrun.config.compose import compose_nodes
from tests.conftest import QUICK, REPOSITORY, TINY, Cli, process

COMMANDS = ("pretrain", "finetune", "evaluate", "predict")


def runs(stage: str) -> list[Path]:
    """Return the run directories of a stage, oldest first, without the parts of studies."""
    actual = [p.parent for p in Path("outputs", stage).glob("**/summary.json")]
    return sorted(p for p in actual if p.parent.name != "study_runs")


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


# ------------------------------------------------------------------------------------------------------- main job


def test_a_run_directory_holds_what_it_should(world: Path) -> None:
    run = sorted((world / "outputs/pretrain").iterdir())[0]
    names = {p.name for p in run.iterdir()}
    assert {
        "config.yaml",
        "run.log",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "summary.json",
        "figures",
    } <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    for figure in ("views", "curves"):
        with Image.open(run / "figures" / f"{figure}.png") as image:
            assert image.width > 200
    result = json.loads((run / "summary.json").read_text())
    assert result["status"] == "finished"
    assert result["pretext"] == "rotation"
    assert result["images_per_second"] > 0
    assert result["wall_time_seconds"] > 0
    assert result["seeds"] == {"training": 0, "split": 0}
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert len(result["data_fingerprint"]) == 16
    assert result["command"].startswith("sslrun pretrain pretext=rotation dataset=folder")
    for key in (
        "train/loss",
        "train/pretext_accuracy",
        "val/feature_spread",
        "val/effective_rank",
        "val/knn_accuracy",
    ):
        assert key in result
    assert "${" not in (run / "config.yaml").read_text()


def test_tensorboard_has_curves_views_and_hparams(world: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    run = sorted((world / "outputs/pretrain").iterdir())[0]
    events = EventAccumulator(str(run)).Reload()
    assert {"train/loss", "val/knn_accuracy"} <= set(events.Tags()["scalars"])
    assert "views" in events.Tags()["images"]
    assert any("session_end_info" in t for t in events.summary_metadata)
    begun = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(begun).hparams
    assert {"pretext", "pretext.copies", "train.learning_rate", "seeds.training"} <= set(hparams)
    assert events.Scalars("val/knn_accuracy")[-1].step == 0  # the score that stands beside the hyperparameters


def test_finetune_takes_everything_from_the_newest_run_and_names_it(world: Path) -> None:
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


def test_starting_points(in_world: Path, cli: Cli) -> None:
    quick = ("mode=probe", *QUICK)
    pretrained = runs("pretrain")
    bare = torch.load(pretrained[0] / "last.pt", weights_only=True)["model"]
    states = {summary(p)["pretext"]: torch.load(p / "last.pt", weights_only=True)["model"] for p in pretrained}
    encoders = {n: {k: v for k, v in s.items() if k.startswith("encoder.")} for n, s in states.items()}
    torch.save({k.removeprefix("encoder.backbone."): v for k, v in bare.items() if "backbone" in k}, "bare.pt")
    config = summary(pretrained[0])["config"]
    data = ("dataset=folder", f"dataset.root={config['dataset']['root']}", "dataset.image_size=32")
    for init, name in [
        ("rotation", "rotation"), ("simclr", "simclr"), (str(pretrained[0]), "rotation"),
        (str(pretrained[1] / "best.pt"), "simclr"), ("scratch", "scratch"),
    ]:  # fmt: skip
        assert cli("finetune", f"init={init}", *quick).code == 0
        result = summary(runs("finetune")[-1])
        assert result["init"] == name
        assert result["config"]["backbone"]["widths"] == [8, 16]
        started = torch.load(runs("finetune")[-1] / "last.pt", weights_only=True)["model"]
        same = {n: all(torch.equal(started[f"classifier.{k}"], v) for k, v in s.items()) for n, s in encoders.items()}
        assert same == {n: n == name for n in encoders}
    assert cli("finetune", "init=bare.pt", "backbone=smallcnn", "backbone.widths=[8,16]", *data, *quick).code == 0
    torch.save({"model": torch.load("bare.pt"), "epoch": 3}, "foreign.pt")
    assert cli("finetune", "init=foreign.pt", "backbone=smallcnn", "backbone.widths=[8,16]", *data, *quick).code == 0
    refused = cli("finetune", "init=bare.pt", *quick)
    assert "add backbone=" in refused.err
    wrong = cli("finetune", "init=bare.pt", "backbone=smallcnn", *data, *quick)
    assert "do not fit this network" in wrong.err
    assert wrong.code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset.image_size=64"], "dataset.image_size=64 was asked for, but"),
        (["dataset.mean=[0,0,0]"], "dataset.mean"),
        (["backbone=resnet18", "init=RUN"], "backbone=resnet18 was asked for, but"),
        (["backbone=smallcnn", "backbone.widths=[4]", "init=RUN"], "backbone.widths"),
        (["backbone=resnet18"], "no pretrain run of resnet18"),
        (["labels_per_class=500"], "labels_per_class=500 is more than there are"),
        (["dataset.classes=[flower]"], "one class"),
    ],
)
def test_asking_for_other_than_the_checkpoint_has_is_an_error(
    in_world: Path, cli: Cli, arguments: list[str], words: str
) -> None:
    answer = cli("finetune", "mode=finetune", *(a.replace("RUN", str(runs("pretrain")[-1])) for a in arguments), *QUICK)
    assert answer.code == 1
    assert words in answer.err
    assert "Traceback" not in answer.err


def test_scratch_is_the_same_network_on_the_same_pictures(in_world: Path, cli: Cli) -> None:
    """The opponent of a pretrained network, whether backbone and data set are named or not."""
    has = summary(runs("pretrain")[-1])["config"]
    named = ("dataset=folder", f"dataset.root={has['dataset']['root']}", "backbone=smallcnn")
    for extra in ((), named):
        assert cli("finetune", "init=scratch", "mode=probe", *extra, *QUICK).code == 0
        config = summary(runs("finetune")[-1])["config"]
        assert config["backbone"] == has["backbone"]
        assert config["dataset"]["image_size"] == 32
        assert config["dataset"]["root"] == has["dataset"]["root"]
    assert cli("finetune", "init=scratch", "mode=probe", "dataset.image_size=24", *named, *QUICK).code == 0
    assert summary(runs("finetune")[-1])["config"]["dataset"]["image_size"] == 24


def test_imagenet_weights_make_a_classifier_that_can_be_read(
    in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    original = models.resnet18()  # stands for the download
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **_: original.state_dict())
    assert cli("finetune", "init=imagenet", "backbone=resnet18", "mode=probe", *QUICK).code == 0
    result = summary(runs("finetune")[-1])
    assert result["dataset"].startswith("folder")  # the pictures of the newest pretraining, though of another backbone
    assert result["config"]["backbone"]["stem"] == "imagenet_small"
    assert cli("evaluate", *QUICK).code == 0


@pytest.mark.parametrize("name", ["imagenet.pt", "scratch.pt"])
def test_a_file_may_be_named_as_another_value_of_init(in_world: Path, cli: Cli, name: str) -> None:
    pretrained = runs("pretrain")[0]
    state = torch.load(pretrained / "last.pt", weights_only=True)["model"]
    weights = {k.removeprefix("encoder.backbone."): v for k, v in state.items() if "encoder.backbone." in k}
    torch.save(weights, name)
    config = summary(pretrained)["config"]
    data = ("dataset=folder", f"dataset.root={config['dataset']['root']}", "dataset.image_size=32")
    network = ("backbone=smallcnn", "backbone.widths=[8,16]")
    answer = cli("finetune", f"init={name}", "mode=probe", *network, *data, *QUICK)
    assert answer.code == 0, answer.err
    result = summary(runs("finetune")[-1])
    assert (result["init"], result["source"], result["config"]["init"]) == (
        name,
        name,
        name,
    )  # not what else it may mean
    started = torch.load(runs("finetune")[-1] / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(started[f"classifier.encoder.backbone.{k}"], v) for k, v in weights.items())


@pytest.mark.parametrize("name", ["imagenet", "scratch"])
def test_a_file_without_a_suffix_is_said_so_that_it_is_found_again(name: str) -> None:
    from sslrun.models.initialization import resolve

    torch.save({"weight": torch.ones(1)}, name)
    backbone, dataset = compose_nodes("pretrain", "backbone", "dataset")
    for init in (f"./{name}", f"././{name}"):
        network = resolve(init, backbone, dataset, {})
        assert (network.kind, network.init) == ("file", f"./{name}")
        assert resolve(network.init, backbone, dataset, {}).weights == network.weights
    assert resolve(name, backbone, dataset, {}).kind == {"imagenet": "pretrained", "scratch": "scratch"}[name]


def test_latest_passes_over_runs_that_did_not_finish(in_world: Path, cli: Cli) -> None:
    newest = runs("pretrain")[-1]
    result = summary(newest)
    (newest / "summary.json").write_text(json.dumps({**result, "status": "running"}))
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    assert summary(runs("finetune")[-1])["init"] == "rotation"
    assert "did not finish (running)" in cli("finetune", f"init={newest}", "mode=probe", *QUICK).err


def test_a_finetuning_resumes_and_a_probe_has_nothing_to_resume(in_world: Path, cli: Cli) -> None:
    run = runs("finetune")[-1]
    before = summary(run)
    assert set(before["poolings"]) == {"average", "grid"}
    answer = cli("finetune", f"resume={run}", "train.steps=24")
    assert answer.code == 0
    assert "Going on after step 20" in answer.err
    assert summary(run)["config"]["pooling"] == before["config"]["pooling"] != "auto"
    assert summary(run)["poolings"] == before["poolings"]
    assert summary(run)["init"] == before["init"] == "simclr"
    assert summary(run)["best/step"] <= 24
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    probe = runs("finetune")[-1]
    weights = (probe / "best.pt").read_bytes()
    assert "no steps to go on with" in cli("finetune", f"resume={probe}").err
    assert (probe / "best.pt").read_bytes() == weights


def test_defaults_of_the_command_line_do_not_displace_the_checkpoint(in_world: Path, cli: Cli) -> None:
    """dataset=folder has 64 px by default, the checkpoint 32: the checkpoint's is used."""
    root = summary(runs("pretrain")[-1])["config"]["dataset"]["root"]
    assert cli("finetune", "dataset=folder", f"dataset.root={root}", "mode=knn", *QUICK).code == 0
    assert summary(runs("finetune")[-1])["config"]["dataset"]["image_size"] == 32


@pytest.mark.parametrize("mode", ["probe", "knn", "finetune"])
def test_every_mode_makes_a_classifier_that_evaluate_and_predict_read(
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


def test_case_52_test_is_unread_before_evaluate(cli: Cli, photos: Path) -> None:
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


def test_case_53_permuted_labels_leave_pretrained_weights_unchanged(cli: Cli) -> None:
    Path("mine/dataset").mkdir(parents=True)
    Path("permuted.py").write_text(
        "from dataclasses import replace\nimport numpy as np\nfrom sslrun.data.sources.digits import digits\n"
        "def permuted(split, *, root):\n    found = digits(split, root=None)\n"
        "    return found and replace(found, labels=np.random.default_rng(0).permutation(found.labels))\n"
    )
    ours = (REPOSITORY / "conf/dataset/digits.yaml").read_text()
    Path("mine/dataset/permuted.yaml").write_text(
        ours.replace("sslrun.data.sources.digits.digits", "permuted.permuted")
    )
    states = []
    for name in ("digits", "permuted"):
        settings = ("pretext=simclr", f"dataset={name}", "dataset.val_fraction=0", *TINY, "train.steps=3")
        assert cli("pretrain", "-cd", "mine", *settings).code == 0
        states.append(torch.load(runs("pretrain")[-1] / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_evaluate_on_other_pictures_of_the_same_classes(in_world: Path, cli: Cli, photos: Path) -> None:
    shutil.copytree(photos, "more/train")
    shutil.copytree(photos, "more/test")
    assert cli("evaluate", "dataset=folder", "dataset.root=more", *QUICK).code == 0
    assert summary(runs("evaluate")[-1])["images"] == 60
    assert (
        len(json.loads((runs("evaluate")[-1] / "report.json").read_text())["stages"]) == 2
    )  # probed on its own labels
    shutil.move("more/train/temple", "more/train/castle")
    shutil.move("more/test/temple", "more/test/castle")
    answer = cli("evaluate", "dataset=folder", "dataset.root=more", *QUICK)
    assert "has the classes castle, flower" in answer.err


def test_a_sweep_ends_with_a_table_and_a_csv_and_names_its_failures(in_world: Path, cli: Cli) -> None:
    answer = cli("finetune", "-m", "label_fraction=0.2,0.5", "seed=0,1", "mode=probe", *QUICK)
    assert answer.code == 0
    sweep = next(Path("outputs/finetune").glob("*/sweep.csv")).parent
    rows = list(csv.DictReader((sweep / "sweep.csv").open()))
    assert [(r["label_fraction"], r["training_seed"], r["labels_train"]) for r in rows] == [
        ("0.2", "0", "10"), ("0.2", "1", "10"), ("0.5", "0", "24"), ("0.5", "1", "24"),
    ]  # fmt: skip
    table = [line.split() for line in answer.err.splitlines() if line.strip().startswith(("simclr", "0."))]
    mean = (float(rows[0]["val/accuracy"]) + float(rows[1]["val/accuracy"])) / 2
    assert any(f"{mean:.4f}" in line and "0.2" in line for line in table)
    answer = cli("evaluate", f"run={sweep}", *QUICK)
    assert answer.code == 0
    evaluated = next(Path("outputs/evaluate").glob("*/sweep.csv"))
    assert len(list(csv.DictReader(evaluated.open()))) == 4
    answer = cli("finetune", "-m", "init=nowhere,simclr", "mode=knn", *QUICK)
    assert answer.code == 1
    assert "init=nowhere: no pretrain nowhere run" in answer.err
    assert "1 of the jobs failed" in answer.err
    assert "finished" in (max(Path("outputs/finetune").glob("*/sweep.csv"))).read_text()


def test_a_sweep_keeps_apart_what_was_varied(in_world: Path, cli: Cli) -> None:
    """Seeds are averaged over; learning rates and the runs that a network started from are not."""
    rates = ("train.learning_rate=0.001,0.01", "seed=0,1", "train.steps=2", "train.evaluations=1")
    assert cli("finetune", "-m", "mode=finetune", *rates, *QUICK).code == 0
    sweep = next(Path("outputs/finetune").glob("*/sweep.csv")).parent
    answer = cli("evaluate", f"run={sweep}", *QUICK)
    table = [line.split() for line in answer.err.splitlines() if line.split() and line.split()[-1] == "2"]
    assert {r for line in table for r in line if r in ("0.001", "0.01")} == {"0.001", "0.01"}
    rows = list(csv.DictReader(next(Path("outputs/evaluate").glob("*/sweep.csv")).open()))
    assert [r["of_run"] for r in rows] == [f"{sweep}/{i}" for i in range(4)]
    (sweep / "1/summary.json").write_text(json.dumps({**summary(sweep / "1"), "status": "failed"}))
    assert cli("evaluate", f"run={sweep}", *QUICK).code == 0
    assert len(list(csv.DictReader(max(Path("outputs/evaluate").glob("*/sweep.csv")).open()))) == 3


def test_predict_on_names_that_look_like_settings_and_bad_files(in_world: Path, cli: Cli, photos: Path) -> None:
    strange = [
        "a=b.jpg",
        "it's, a [picture] {x}.jpg",
        "tab\tü.jpg",
        "-dash.jpg",
        "back\\slash.jpg",
        "$dollar ${x}.jpg",
    ]
    for name in strange:
        shutil.copy(photos / "temple/temple 00.jpg", name)
    answer = cli("predict", "format=csv", "top=1", *QUICK, "--", *strange)
    assert answer.code == 0
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert [r["image"] for r in rows] == strange
    assert len({(r["class_1"], r["confidence_1"]) for r in rows}) == 1
    Path("text.jpg").write_text("hello")
    answer = cli("predict", "a=b.jpg", "text.jpg", "missing.jpg", "format=json", *QUICK)
    assert answer.code == 1
    rows = json.loads(answer.out)
    assert [r["error"] for r in rows] == [None, "not a picture in a known format", "no such file"]
    assert "2 of 3 could not be read" in answer.err
    Path("empty").mkdir()
    assert "no pictures in empty" in cli("predict", "empty").err


def test_predict_draws_pictures_and_prints_a_table(in_world: Path, cli: Cli, photos: Path) -> None:
    answer = cli("predict", str(photos / "flower/flower 01.jpg"), *QUICK)
    assert "flower 01.jpg" in answer.out
    assert "%" in answer.out
    figures = list(Path("outputs/predict").glob("*/figures/*.png"))
    assert len(figures) == 1


def test_predict_in_a_process_writes_nothing_but_the_answer_to_stdout(in_world: Path, photos: Path) -> None:
    answer = process("predict", str(photos / "flower"), "format=json")
    assert answer.code == 0
    assert len(json.loads(answer.out)) == 30
    assert "written to outputs/predict" in answer.err


def test_runs_lists_everything(in_world: Path, cli: Cli) -> None:
    rows = json.loads(cli("runs", "--format", "json").out)
    assert [r["stage"] for r in rows] == ["pretrain", "pretrain", "finetune"]
    assert [r["pretext"] for r in rows] == ["rotation", "simclr", "simclr"]
    assert rows[2]["fraction"] == 0.5
    assert re.fullmatch(r"val/accuracy [01]\.\d+", rows[2]["score"])
    assert "rotation" in cli("runs").out
    assert cli("runs", "finetune", "--format", "csv").out.count("\n") == 2
    shutil.rmtree("outputs")
    empty = cli("runs")
    assert (empty.code, empty.out) == (0, "")
    assert "No runs" in empty.err


def test_case_68_and_69_overrides_win_and_the_saved_config_runs_again(cli: Cli) -> None:
    overrides = (
        "pretrain",
        "pretext=simclr",
        "pretext.temperature=0.3",
        "dataset.max_images=100",
        *TINY,
        "train.steps=3",
    )
    assert cli(*overrides).code == 0
    first = summary(runs("pretrain")[-1])
    assert first["config"]["pretext"]["temperature"] == 0.3
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/again.yaml").write_text(
        "# @package _global_\n" + (runs("pretrain")[-1] / "config.yaml").read_text()
    )
    assert cli("pretrain", "-cd", "mine", "experiment=again").code == 0
    second = summary(runs("pretrain")[-1])
    assert second["train/loss"] == first["train/loss"]
    assert second["config"] == first["config"]


def test_case_10_a_job_of_a_sweep_gives_the_numbers_of_the_job_alone(cli: Cli) -> None:
    settings = ("pretext=rotation", "dataset.max_images=100", *TINY, "train.steps=3")
    assert cli("pretrain", "-m", "seed=0,1", *settings).code == 0
    assert cli("pretrain", "seed=1", *settings).code == 0
    a, b = (summary(p) for p in (*(p for p in runs("pretrain") if p.name == "1"), runs("pretrain")[-1]))
    assert a["seeds"] == b["seeds"] == {"training": 1, "split": 0}
    assert a["train/loss"] == b["train/loss"]


def test_case_8_a_resume_goes_on_in_the_same_directory_and_refuses_other_settings(cli: Cli) -> None:
    settings = ("dataset.max_images=100", *TINY, "train.steps=4", "train.evaluations=2")
    assert cli("pretrain", *settings).code == 0
    run = runs("pretrain")[0]
    answer = cli("pretrain", f"resume={run}", "train.steps=6")
    assert answer.code == 0
    assert "Going on after step 4" in answer.err
    assert runs("pretrain") == [run]
    assert len(list(Path("outputs/pretrain").iterdir())) == 1
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    refused = cli("pretrain", "resume=latest", "pretext.temperature=0.4")
    assert refused.code == 1
    assert "pretext.temperature=0.4: the run was started with 0." in refused.err
    assert "is a pretrain run" in cli("finetune", f"resume={run}").err


def test_unlabelled_pictures_are_added_to_pretraining(cli: Cli, photos: Path) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=16", *TINY, "train.steps=2")
    assert cli("pretrain", *data).code == 0
    assert cli("pretrain", *data, f"unlabeled={photos / 'flower'}").code == 0
    a, b = (summary(p)["images"] for p in runs("pretrain"))
    assert b == a + 30


def test_case_47_a_pile_pretrains_and_finetuning_on_it_is_a_clear_error(cli: Cli, photos: Path) -> None:
    data = ("dataset=folder", f"dataset.root={photos / 'flower'}", "dataset.image_size=16")
    assert cli("pretrain", *data, *TINY, "train.steps=2").code == 0
    result = summary(runs("pretrain")[-1])
    assert "val/effective_rank" in result
    assert "val/knn_accuracy" not in result
    answer = cli("finetune", "mode=finetune", *QUICK)
    assert answer.code == 1
    assert "has no labels: put the pictures into a folder a class" in answer.err
    other = ("dataset=folder", f"dataset.root={photos}")
    assert cli("finetune", f"init={runs('pretrain')[-1]}", *other, "mode=probe", *QUICK).code == 0


def test_validation_can_be_left_out(in_world: Path, cli: Cli) -> None:
    assert (
        cli("finetune", "mode=finetune", "dataset.val_fraction=0", "labels_per_class=4", "train.steps=3", *QUICK).code
        == 0
    )
    result = summary(runs("finetune")[-1])
    assert result["labels"] == {"train": 8, "validation": 0}
    assert result["best/step"] == 3
    assert cli("evaluate", *QUICK).code == 0


NINE = [(b, p) for b in ("smallcnn", "resnet18", "mobilenetv2") for p in ("rotation", "simclr", "jigsaw")]
SLOW = [("resnet18", "rotation"), ("resnet18", "simclr"), ("mobilenetv2", "rotation"), ("mobilenetv2", "jigsaw")]


@pytest.mark.parametrize(
    ("backbone", "pretext"), [pytest.param(*n, marks=pytest.mark.slow) if n in SLOW else n for n in NINE]
)
def test_three_tasks_times_three_backbones_pretrain_and_finetune(
    cli: Cli, photos: Path, pretext: str, backbone: str
) -> None:
    data = (
        "dataset=folder",
        f"dataset.root={photos}",
        "dataset.image_size=32",
        "train.batch_size=16",
        "train.steps=2",
    )
    assert cli("pretrain", f"pretext={pretext}", f"backbone={backbone}", *data).code == 0
    assert cli("finetune", "mode=finetune", "train.steps=2").code == 0
    assert cli("evaluate").code == 0


@pytest.mark.parametrize("name", sorted(p.stem for p in (REPOSITORY / "conf/experiment").glob("*.yaml")))
def test_every_preset_composes_and_passes_the_check(cli: Cli, name: str) -> None:
    assert cli("pretrain", "--cfg", "job", f"experiment={name}").code == 0
