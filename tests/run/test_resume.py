"""What a resumed run refuses, and what it leaves unchanged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.base.version import __version__
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.run import checkpoint
from sslrun.run.find import LAST
from sslrun.run.resume import differing_keys, fixed, refuse_older, resumed_config
from tests.helpers import SHORT, STEPS, TINY, Cli, only_run, runs, summary


def test_case_8_resume_continues_in_the_same_directory_and_refuses_other_settings(cli: Cli) -> None:
    settings = ("dataset.max_images=100", "dataset.image_size=16", *TINY, "train.steps=4", "train.evaluations=2")
    assert cli("pretrain", "dataset=digits", *settings).code == 0
    run = runs("pretrain")[0]
    answer = cli("pretrain", f"resume={run}", "train.steps=6")
    assert answer.code == 0
    assert "Resuming after step 4" in answer.err
    assert runs("pretrain") == [run]
    assert len(list(Path("outputs/pretrain").iterdir())) == 1
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    refused = cli("pretrain", "resume=latest", "pretext.temperature=0.4")
    assert refused.code == 1
    assert "pretext.temperature=0.4: the run was started with 0." in refused.err
    assert "is a pretrain run" in cli("finetune", f"resume={run}").err


def test_case_7_resuming_a_finished_run_reports_that_it_is_complete(finished_run: Path, cli: Cli) -> None:
    before = (only_run() / LAST).read_bytes()
    answer = cli("pretrain", "resume=latest")
    assert answer.code == 0
    assert f"Nothing to do: all {STEPS} steps are done" in answer.err
    assert (only_run() / LAST).read_bytes() == before


def files(short_run: Path) -> dict[str, bytes]:
    """Return the content of a run's files, except for its log and curves."""
    return {
        p.name: p.read_bytes()
        for p in short_run.iterdir()
        if p.is_file() and p.name not in ("run.log", ".lock") and "events" not in p.name
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.stepz=3",), "train.stepz: no such key; did you mean train.steps?"),
        (("seed.x=1",), "seed.x: no such key"),
        (("~train.steps",), "only plain values"),
        (("train.steps=9,10",), "only plain values"),
        (("train.save_minutes=${oops}",), "only plain values"),
        (("train.steps=[9",), "cannot be parsed"),
        (("pretext=nonesuch",), "pretext=nonesuch: no such pretext"),
        (("pretext=rotation",), "pretext=rotation: the run was started with other _target_"),
        (("dataset=null",), "dataset=null: no such dataset"),
        (("train={learning_rate:5.0,steps:9}",), "set its keys one by one"),
        (("experiment=simclr_digits",), "the run was not started with it"),
        (("train.steps=4",), "8 steps are done already"),
        (("dataset.root=nowhere", "train.steps=12", "seed=3"), "seed=3: the run was started with 0"),
    ],
)
def test_case_8_a_refused_change_is_reported_and_leaves_the_run_unchanged(
    short_run: Path, cli: Cli, overrides: tuple[str, ...], words: str
) -> None:
    before = files(short_run)
    result = cli("pretrain", f"resume={short_run}", *overrides)
    assert words in result.err
    assert result.code == 1
    assert "Traceback" not in result.err
    assert files(short_run) == before


def test_case_8_a_choice_with_other_values_is_refused_and_the_same_choice_is_not(cli: Cli) -> None:
    Path("mine/pretext").mkdir(parents=True)
    mild = Path("mine/pretext/mild.yaml")
    mild.write_text("defaults: [simclr, _self_]\ntemperature: 0.4\n")
    assert cli("pretrain", "-cd", "mine", "pretext=mild", *SHORT).code == 0
    (run,) = runs("pretrain")
    again = cli("pretrain", "-cd", "mine", f"resume={run}", "pretext=mild", *SHORT[:-2], "train.steps=10")
    assert again.code == 0, again.err
    other = cli("pretrain", f"resume={run}", "pretext=simclr")
    assert "started with other temperature" in other.err
    assert summary(run)["config"]["pretext"]["temperature"] == 0.4


@pytest.mark.slow
def test_a_preset_may_be_repeated(cli: Cli) -> None:
    assert cli("pretrain", "experiment=simclr_digits", *SHORT).code == 0
    (run,) = runs("pretrain")
    again = cli("pretrain", "experiment=simclr_digits", *SHORT, f"resume={run}")
    assert again.code == 0, again.err
    assert "Nothing to do" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("change", ["removed", "renamed"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_is_not_resumed_with_other_images(
    stage: str, change: str, photos: Path, cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "mine")
    data = ("dataset=folder", "dataset.root=mine", "dataset.image_size=16", "train.steps=4", "train.evaluations=1")
    start = () if stage == "pretrain" else ("init=scratch", "backbone=smallcnn")
    assert cli(stage, *start, *data, *TINY).code == 0
    (run,) = runs(stage)
    if change == "removed":
        next((tmp_path / "mine/flower").iterdir()).unlink()
    else:
        (tmp_path / "mine/flower").rename(tmp_path / "mine/zinnia")
    if (stage, change) == ("pretrain", "renamed"):
        return  # the images are the same: pretrain does not use the class names
    before = files(run)
    result = cli(stage, f"resume={run}", "train.steps=6")
    assert "was started with other images" in result.err
    assert result.code == 1
    assert files(run) == before


def test_a_typo_does_not_change_the_status_of_a_finished_run(photos: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "mine")
    data = ("dataset=folder", "dataset.root=mine", "dataset.image_size=16", "train.steps=4", "train.evaluations=1")
    assert cli("pretrain", *data, *TINY).code == 0
    (run,) = runs("pretrain")
    before = files(run)
    assert cli("pretrain", f"resume={run}", "dataset.root=nowhere").code == 1
    assert files(run) == before
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert cli("pretrain", f"resume={run}", "dataset.root=moved").code == 0
    assert summary(run)["status"] == "finished"
    assert "error" not in summary(run)


def test_a_checkpoint_of_another_run_is_refused(short_run: Path, cli: Cli) -> None:
    assert cli("pretrain", *SHORT, "seed=5", "train.learning_rate=0.1").code == 0
    shutil.copy(runs("pretrain")[1] / "last.pt", short_run / "last.pt")
    result = cli("pretrain", f"resume={short_run}", "train.steps=12")
    assert "has other settings than this run: seed, train.learning_rate differ" in result.err
    assert result.code == 1


@pytest.mark.parametrize(("content", "words"), [("best.pt", "is not the checkpoint of a training"), (-5, "step is -5")])
def test_a_checkpoint_that_is_not_of_a_training_is_skipped(
    short_run: Path, cli: Cli, content: str | int, words: str
) -> None:
    if isinstance(content, str):
        shutil.copy(short_run / content, short_run / "last.pt")
    else:
        torch.save({**checkpoint.load(short_run / "last.pt"), "step": content}, short_run / "last.pt")
    result = cli("pretrain", f"resume={short_run}", "train.steps=12")
    assert words in result.err
    assert "Resuming after step 4" in result.err  # previous.pt
    assert result.code == 0


@pytest.mark.parametrize(("key", "value"), [("optimizer", {}), ("best", []), ("window", {})])
def test_an_incomplete_checkpoint_is_refused_with_a_message(short_run: Path, cli: Cli, key: str, value: object) -> None:
    content = checkpoint.load(short_run / "last.pt")
    torch.save({**content, key: value}, short_run / "last.pt")
    result = cli("pretrain", f"resume={short_run}", "train.steps=12")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert str(short_run / "last.pt") in result.err


@pytest.mark.parametrize(
    "change", [{"config": None}, {"config": {}}, {"overrides": None}, {"overrides": ["a"]}, {"wall_time_seconds": "x"}]
)
def test_a_damaged_summary_is_reported_in_one_line(short_run: Path, cli: Cli, change: dict[str, object]) -> None:
    (short_run / "summary.json").write_text(json.dumps({**summary(short_run), **change}))
    result = cli("pretrain", f"resume={short_run}", "train.steps=10")
    assert result.lines() == [f"sslrun: {short_run / 'summary.json'} is not the summary of a run"]
    assert result.code == 1


def resumed_device(overrides: dict[str, str], **before: Any) -> tuple[str, str, str]:
    """Return name, precision and memory format of a resumed run that was started with such a device."""
    config = plain(compose_config("pretrain", ["device=cpu"], None))
    summary = {"stage": "pretrain", "status": "interrupted", "overrides": [], "wall_time_seconds": 1.0}
    config["device"] |= {"name": "cpu", **before}
    Path("run").mkdir()
    write_json(Path("run/summary.json"), {**summary, "config": config, "versions": {"sslrun": __version__}})
    Path("run/last.pt").touch()
    composed = compose_config("pretrain", [f"{k}={v}" for k, v in overrides.items()], None)
    device = resumed_config(Path("run"), "pretrain", {"resume": "run", **overrides}, composed).device
    return device.name, device.precision, device.memory_format


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("overrides", [{}, {"device": "cpu"}, {"device.threads": "1"}])
def test_a_resumed_run_keeps_precision_and_memory_format(
    precision: str, memory_format: str, overrides: dict[str, str]
) -> None:
    """Also if the same device is named again."""
    kept = resumed_device(overrides, precision=precision, memory_format=memory_format)
    assert kept == ("cpu", precision, memory_format)


@pytest.mark.parametrize(
    ("overrides", "used"),
    [
        ({"device.precision": "fp32"}, ("cpu", "fp32", "channels_last")),
        ({"device.memory_format": "contiguous"}, ("cpu", "bf16", "contiguous")),
    ],
)
def test_a_resumed_run_uses_the_device_of_its_overrides(overrides: dict[str, str], used: tuple[str, str, str]) -> None:
    assert resumed_device(overrides, precision="bf16", memory_format="channels_last") == used


def test_autotuning_is_repeated_on_another_device() -> None:
    device = resumed_device({"device": "cpu"}, name="cuda", precision="fp16", memory_format="channels_last")
    assert device == ("cpu", "auto", "auto")


def resumed(requested: dict[str, str], stage: str = "pretrain", **changes: Any) -> Any:
    """Return the config of a run that was started with `pretext.temperature=0.4 seed=3`, as it is resumed."""
    known = ["device=cpu", "pretext.temperature=0.4", "seed=3", "train.steps=7", "dataset=digits"]
    config = plain(compose_config("pretrain", known, None)) | changes.pop("config", {})
    del config["train"]["keep_every"]  # as if from an older version
    summary = {"stage": "pretrain", "status": "interrupted", "overrides": known, "wall_time_seconds": 1.0,
               "versions": {"sslrun": __version__}, "config": config, **changes}  # fmt: skip
    Path("run").mkdir(exist_ok=True)
    write_json(Path("run/summary.json"), summary)
    if not changes.get("resumable"):
        (Path("run") / LAST).touch()
    composed = compose_config("pretrain", [f"{k}={v}" for k, v in requested.items()], None)
    return resumed_config(Path("run"), stage, {"resume": "run", **requested}, composed)


def test_a_resumed_run_has_its_own_settings_and_those_that_may_change() -> None:
    changes = {"train.steps": "9", "unlabeled": "more", "train.save_minutes": "2", "device.threads": "1"}
    config = resumed({**changes, "seed": "3", "dataset.split_seed": "0", "pretext": "simclr", "hydra.verbose": "true"})
    assert (config.seed, config.pretext.temperature, config.resume) == (3, 0.4, "run")
    assert (config.train.steps, config.train.save_minutes, config.unlabeled) == (9, 2, "more")
    assert config.train.keep_every is None
    assert config.device.threads == 1
    assert resumed({}).train.steps == 7
    assert (Path("run") / LAST).exists()


def test_a_run_that_was_started_without_keys_of_today_is_one_line() -> None:
    resumed({})
    path = Path("run/summary.json")
    old = json.loads(path.read_text())
    del old["config"]["init"], old["config"]["seed"]
    write_json(path, old)
    with pytest.raises(UserError, match=r"^run was started by a version without init, seed, and cannot be resumed"):
        resumed_config(Path("run"), "pretrain", {"resume": "run"}, compose_config("pretrain", ["device=cpu"], None))


def test_mistakes_in_resuming_are_reported_together() -> None:
    with pytest.raises(UserError) as error:
        resumed(
            {
                "seed": "4",
                "pretext.temperature": "0.2",
                "train.steps": "9",
                "dataset": "folder",
                "train.batch_size": "8",
            }
        )
    assert str(error.value).splitlines() == [
        "seed=4: the run was started with 3; remove it, or start a new run",
        "pretext.temperature=0.2: the run was started with 0.4; remove it, or start a new run",
        "dataset=folder: the run was started with other _target_; remove it",
        f"train.batch_size=8: the run was started with {resumed({}).train.batch_size}; remove it, or start a new run",
    ]
    with pytest.raises(UserError, match="resume=run is a pretrain run: use sslrun pretrain resume="):
        resumed({}, "finetune")
    (Path("run") / LAST).unlink()
    assert resumed({}, resumable="study").seed == 3
    with pytest.raises(UserError, match="resume=run has no checkpoint yet"):
        resumed({}, resumable="checkpoint")


def test_a_run_of_another_minor_version_is_refused() -> None:
    major, minor = __version__.split(".")[:2]
    refuse_older(Path("run"), {"versions": {"sslrun": f"{major}.{minor}.99"}})
    Path("run").mkdir()
    for other in (f"{major}.{int(minor) + 1}.0", f"{int(major) + 1}.{minor}.0"):
        with pytest.raises(UserError) as error:
            refuse_older(Path("run"), {"versions": {"sslrun": other}})
        assert str(error.value).startswith(
            f"run was started with sslrun {other} and cannot be resumed with {__version__}"
        )
        assert str(error.value).endswith("or start a new run")
    Path("run", LAST).touch()
    with pytest.raises(UserError, match="or start a new run from its weights with init=run"):
        refuse_older(Path("run"), {})


def test_settings_that_may_differ_when_a_run_is_resumed() -> None:
    now = {
        "seed": 0,
        "train": {"steps": 9, "batch_size": 8},
        "device": {"name": "cpu"},
        "resume": "a",
        "new": 1,
        "x": 1,
    }
    then = {
        "seed": 1,
        "train": {"steps": 7, "batch_size": 4},
        "device": {"name": "cuda"},
        "resume": None,
        "old": 1,
        "x": 1,
    }
    assert differing_keys(now, then) == ["seed", "train.batch_size"]
    assert fixed(
        ["seed=1", "train.steps=3", "device=cpu", "device.threads=1", "train.batch_size=4", "dataset.root=a"]
    ) == [
        "seed=1",
        "train.batch_size=4",
    ]
