"""What a run that goes on refuses, and what it leaves as it was."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sslrun.base.locks import locked
from sslrun.runs import checkpoint
from tests.conftest import TINY, Cli
from tests.test_cli import runs, summary

DIGITS = ("dataset=digits", "dataset.max_images=120", "dataset.image_size=16", *TINY)
SHORT = (*DIGITS, "train.batch_size=32", "train.steps=8", "train.evaluations=2")


@pytest.fixture
def run(cli: Cli) -> Path:
    """A pretraining of 8 steps."""
    assert cli("pretrain", *SHORT).code == 0
    return runs("pretrain")[0]


def files(run: Path) -> dict[str, bytes]:
    """Return what a run is judged by, but for its log and curves."""
    return {
        p.name: p.read_bytes()
        for p in run.iterdir()
        if p.is_file() and p.name not in ("run.log", ".lock") and "events" not in p.name
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.stepz=3",), "train.stepz: no such key; did you mean train.steps?"),
        (("seed.x=1",), "seed.x: no such key"),
        (("~train.steps",), "plain values alone"),
        (("train.steps=9,10",), "plain values alone"),
        (("train.save_minutes=${oops}",), "plain values alone"),
        (("train.steps=[9",), "cannot be read"),
        (("pretext=nonesuch",), "pretext=nonesuch: no such pretext"),
        (("pretext=rotation",), "pretext=rotation: the run was started with other _target_"),
        (("dataset=null",), "dataset=null: no such dataset"),
        (("train={learning_rate:5.0,steps:9}",), "say its keys one by one"),
        (("experiment=simclr_digits",), "the run was not started with it"),
        (("train.steps=4",), "8 steps are done already"),
        (("dataset.root=nowhere", "train.steps=12", "seed=3"), "seed=3: the run was started with 0"),
    ],
)
def test_case_8_a_refused_change_is_named_and_leaves_the_run_as_it_was(
    run: Path, cli: Cli, overrides: tuple[str, ...], words: str
) -> None:
    before = files(run)
    result = cli("pretrain", f"resume={run}", *overrides)
    assert words in result.err
    assert result.code == 1
    assert "Traceback" not in result.err
    assert files(run) == before


def test_case_8_a_choice_with_other_values_is_refused_and_the_same_again_is_not(cli: Cli) -> None:
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


def test_a_preset_may_be_said_again(cli: Cli) -> None:
    assert cli("pretrain", "experiment=simclr_digits", *SHORT).code == 0
    (run,) = runs("pretrain")
    again = cli("pretrain", "experiment=simclr_digits", *SHORT, f"resume={run}")
    assert again.code == 0, again.err
    assert "Nothing is left to do" in again.err


@pytest.mark.parametrize("change", ["removed", "renamed"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_other_pictures_than_it_was_started_with_are_refused(
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
        return  # the same pictures: pretraining does not look at the names
    before = files(run)
    result = cli(stage, f"resume={run}", "train.steps=6")
    assert "was started with other pictures" in result.err
    assert result.code == 1
    assert files(run) == before


def test_a_typing_error_does_not_make_a_finished_run_a_failed_one(photos: Path, cli: Cli, tmp_path: Path) -> None:
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


def test_a_checkpoint_of_another_run_is_refused(run: Path, cli: Cli) -> None:
    assert cli("pretrain", *SHORT, "seed=5", "train.learning_rate=0.1").code == 0
    shutil.copy(runs("pretrain")[1] / "last.pt", run / "last.pt")
    result = cli("pretrain", f"resume={run}", "train.steps=12")
    assert "other settings than this run's: seed, train.learning_rate differ" in result.err
    assert result.code == 1


@pytest.mark.parametrize(("content", "words"), [("best.pt", "it is not of a training"), (-5, "it is of step -5")])
def test_what_is_no_state_of_a_training_is_passed_over(run: Path, cli: Cli, content: str | int, words: str) -> None:
    if isinstance(content, str):
        shutil.copy(run / content, run / "last.pt")
    else:
        torch.save({**checkpoint.load(run / "last.pt"), "step": content}, run / "last.pt")
    result = cli("pretrain", f"resume={run}", "train.steps=12")
    assert words in result.err
    assert "Going on after step 4" in result.err  # previous.pt
    assert result.code == 0


@pytest.mark.parametrize(("key", "value"), [("optimizer", {}), ("best", []), ("window", {})])
def test_a_checkpoint_that_lacks_parts_is_refused_in_words(run: Path, cli: Cli, key: str, value: object) -> None:
    content = checkpoint.load(run / "last.pt")
    torch.save({**content, key: value}, run / "last.pt")
    result = cli("pretrain", f"resume={run}", "train.steps=12")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert str(run / "last.pt") in result.err


def test_a_run_without_steps_is_a_start_for_another(run: Path, cli: Cli) -> None:
    assert cli("finetune", "mode=probe", *DIGITS[-3:]).code == 0
    result = cli("finetune", f"init={runs('finetune')[0]}", "mode=probe", *DIGITS[-3:])
    assert result.code == 0, result.err


def test_damaged_lines_of_metrics_are_left_out(run: Path, cli: Cli) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"a": 1}\n5\n{"step": "x"}\n\xff\xfe\n')
    result = cli("pretrain", f"resume={run}", "train.steps=10")
    assert result.code == 0, result.err
    assert result.err.count("Left out a damaged line") == 4
    assert [r["step"] for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())][-1] == 10


@pytest.mark.parametrize(
    "change", [{"config": None}, {"config": {}}, {"overrides": None}, {"overrides": ["a"]}, {"wall_time_seconds": "x"}]
)
def test_a_damaged_summary_is_said_in_a_line(run: Path, cli: Cli, change: dict[str, object]) -> None:
    (run / "summary.json").write_text(json.dumps({**summary(run), **change}))
    result = cli("pretrain", f"resume={run}", "train.steps=10")
    assert result.lines() == [f"sslrun: {run / 'summary.json'} is not the summary of a run"]
    assert result.code == 1


def test_the_end_of_a_sweep_with_a_damaged_job_is_a_failure_with_a_table(cli: Cli) -> None:
    assert cli("pretrain", "-m", "seed=0,1", *SHORT).code == 0
    (sweep,) = Path("outputs/pretrain").iterdir()
    (sweep / "0/summary.json").write_text("")
    result = cli("pretrain", f"resume={sweep}")
    assert result.code == 1
    assert "cannot be read" in result.err
    assert "1 of the jobs failed" in result.err
    (sweep / "sweep.csv").unlink()
    (sweep / "sweep.csv").mkdir()
    result = cli("pretrain", f"resume={sweep}")
    assert "cannot write" in result.err
    assert result.code == 1


def test_a_job_of_a_sweep_may_go_on_alone_for_longer_and_the_sweep_after_it(cli: Cli) -> None:
    assert cli("pretrain", "-m", "seed=0,1", *SHORT).code == 0
    (sweep,) = Path("outputs/pretrain").iterdir()
    assert cli("pretrain", f"resume={sweep / '0'}", "train.steps=10", "device.threads=1").code == 0
    result = cli("pretrain", f"resume={sweep}")
    assert result.code == 0, result.err
    assert result.err.count("Finished before") == 2


def test_a_finished_job_of_a_sweep_is_not_done_again_when_its_checkpoints_were_deleted(cli: Cli) -> None:
    assert cli("pretrain", "-m", "seed=0,1", "train.steps=2", *TINY).code == 0
    (sweep,) = Path("outputs/pretrain").iterdir()
    for file in (sweep / "0").glob("*.pt"):
        file.unlink()
    before = (sweep / "0/metrics.jsonl").read_bytes()
    answer = cli("pretrain", f"resume={sweep}")
    assert answer.code == 0
    assert answer.err.count("Finished before") == 2
    assert (sweep / "0/metrics.jsonl").read_bytes() == before
    assert not [*(sweep / "0").glob("*.pt")]


def test_a_sweep_goes_on_in_one_process_at_a_time(cli: Cli) -> None:
    assert cli("pretrain", "-m", "seed=0,1", *SHORT).code == 0
    (sweep,) = Path("outputs/pretrain").iterdir()
    lock = locked(sweep)
    result = cli("pretrain", f"resume={sweep}")
    lock.release()
    assert "is being written by another process" in result.err
    assert result.code == 1


def test_one_run_goes_on_at_a_time_and_a_file_is_not_a_run(run: Path, cli: Cli) -> None:
    assert "said 2 times" in cli("pretrain", f"resume={run}", f"resume={run}").err
    assert f"name the run's folder, {run}" in cli("pretrain", f"resume={run / 'last.pt'}").err
