"""Mistakes on the command line: plain lines, exit code 1, nothing started."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import PRETRAIN, QUICK, SSLRUN, Cli, in_a_mount, process, runs

SIXTY = ",".join(f"n{i:08d}" for i in range(60))  # classes


def test_cfg_shows_the_config_and_starts_nothing(cli: Cli) -> None:
    answer = cli("pretrain", "--cfg", "job", "pretext=rotation", "train.epochs=7")
    assert answer.code == 0
    assert "_target_: sslrun.tasks.pretext.rotation.Rotation" in answer.out
    assert "epochs: 7" in answer.out
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "simclr"], "did you mean pretext=simclr?"),
        (["pretrain", "dataset=folder"], "dataset.root: required; set dataset.root=..."),
        (["pretrain", "dataset=from_checkpoint"], "does not start from a checkpoint"),
        (["finetune", "pretext=rotation"], "use init=rotation"),
        (["finetune", "init=scratch", "label_fraction=0"], "label_fraction: must be greater than 0"),
        (["finetune", "init=scratch", "label_fraction=1.5"], "at most 1"),
        (["pretrain", "dataset=digits", "pretext.augment.crop_scale=[0.2]"], "crop_scale: must be a list of at least"),
        (["pretrain", "dataset=digits", "train.learning_rate=-1"], "train.learning_rate: must be greater than 0"),
        (["pretrain", "dataset=digits", "train.learning_rate=.nan"], "train.learning_rate: must be"),
        (["pretrain", "seed=0,1"], "put -m before it"),
        (["pretrain", "-m", "seed=0,one"], "found one"),
        (["pretrain", "-m", "pretext=simclr,simclear"], "no such pretext; did you mean simclr?"),
        (["pretrain", "-cd", "nowhere"], "nowhere: no such folder"),
        (["pretrain", "seed=[1"], "cannot be parsed"),
        (["pretrain", "+train.foo=1"], "train.foo: no such key"),
        (["pretrain", "dataset=digits", "device=cuda"], "no CUDA GPU"),
        (["pretrain", "dataset=digits", "device.precision=fp16", "device=cpu"], "needs a GPU"),
        (["pretrain", "dataset=folder", "dataset.root=nowhere"], "nowhere: no such folder"),
        (["pretrain", "unlabeled=nowhere"], "nowhere: no such folder"),
        (["pretrain", "resume=nowhere"], "is not a run of sslrun"),
        (["pretrain", "resume=latest"], "no pretrain run"),
        (["finetune", "init=latest"], "no run in outputs/pretrain); pretrain with sslrun pretrain, or use"),
        (["finetune", "--lr=3"], "--lr=3: no such flag; settings are given as key=value; did you mean train.learn"),
        (["pretrain", "--epochs", "10"], "--epochs: no such flag; settings are given as key=value; did you mean train"),
        (["compare", "dataset=digits", "budget=2"], "budget=2: expected a time such as 90s, 30m or 2h"),
        (["compare", "dataset=digits", "inits=simclr"], "inits: must be a list, found simclr; write inits=[simclr]"),
        (["compare", "dataset=digits", "label_fractions=0.1"], "must be a list, found 0.1; write label_fractions="),
        (["compare", "finetune.train.steps=1,2"], "finetune.train.steps=1,2: expected one value; to try several, use"),
        (["finetune", "init=jigsaw"], "init=jigsaw: no pretrain jigsaw run"),
        (["finetune", "init=nowhere/x.pt"], "no such run or file"),
        (["finetune", "init=imagenet", "backbone=smallcnn", *QUICK], "there are no published weights of smallcnn"),
        (["evaluate"], "no finished finetune run"),
        (["evaluate", "run=nowhere"], "is not a run of sslrun"),
        (["predict", "x.jpg"], "no finished finetune run"),
        (["predict"], "no images given"),
        (["finetune", "init=scratch", "label_fraction=0.1", "labels_per_class=3"], "set only one of"),
        (["pretrain", "dataset=digits", "train.batch_size=1"], "train.batch_size: must be at least 4 to pretrain"),
        (["pretrain", "dataset=digits", f"dataset.classes={{a: [{SIXTY}]}}"], "no class n00000000"),
        (["runs", "finetuned"], "no such stage"),
        (["runs", "--format", "xml"], "one of table, json, csv"),
    ],
)  # fmt: skip
def test_case_71_a_mistake_gets_plain_lines_and_exit_code_1(cli: Cli, arguments: list[str], words: str) -> None:
    if torch.cuda.is_available() and "device=cuda" in arguments:
        return
    answer = cli(*arguments)
    assert answer.code == 1
    assert words in answer.err
    assert "Traceback" not in answer.err
    assert "HYDRA_FULL_ERROR" not in answer.err
    assert len(answer.lines()) <= 3 or "no class" in words
    assert answer.out == ""


def test_an_outputs_folder_that_cannot_be_written(cli: Cli) -> None:
    Path("outputs").write_text("a file in the way")
    answer = cli("pretrain", "dataset=digits")
    assert answer.code == 1
    assert answer.err.startswith("sslrun: cannot write to outputs/pretrain in")
    assert len(answer.lines()) == 1


@pytest.mark.slow
def test_mistakes_in_a_separate_process_exit_with_1() -> None:
    answer = process("pretrain", "dataset=digits", "train.epochs=0")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "sslrun: train.epochs: must be at least 1, found 0\n"


@pytest.mark.slow
def test_case_17_a_folder_that_cannot_be_written() -> None:
    done = in_a_mount("ro", f"cd disk; {SSLRUN} {' '.join(PRETRAIN)}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write to outputs/pretrain in" in done.stderr
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "dataset=digits", "format=xml"), "format: must be one of table or json, found xml"),
        (("check", "dataset=flower"), "dataset=flower: no such dataset; did you mean flowers"),
        (("check", "dataset=from_checkpoint"), "check does not start from a checkpoint"),
        (("check", "dataset=digits", "batch_size=1"), "batch_size: must be at least 4, found 1"),
        (("preview", "dataset=digits", "images=0"), "images: must be at least 1, found 0"),
        (("preview", "label_fraction=1"), "label_fraction: no such key"),
        (("fetch", "pretext=simclr"), "fetch has no pretext"),
        (("fetch", "cifar10"), "unexpected argument: cifar10; did you mean dataset=cifar10?"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str, cli: Cli) -> None:
    answer = cli("data", *arguments)
    assert answer.code == 1
    assert words in answer.err
    assert len(answer.lines()) == 1


CHECKED = """
import sys
from sslrun.cli.app import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["sslrun", *line.split()]
    try:
        main()
    except SystemExit as end:
        print(end.code, "torch" in sys.modules, line)
"""


def test_what_the_config_shows_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    """Importing torch takes seconds. Every command, and every value of a sweep."""
    lines = """\
pretrain pretext=simcrl
pretrain dataset=foldr backbone=resnet device=gpu optimizer=adamv
pretrain train.epochz=3 optimizer.lr=0.1
pretrain dataset=folder
pretrain dataset=folder dataset.root=nowhere
pretrain unlabeled=nowhere
pretrain train.batch_size=many
pretrain -m seed=0,one
pretrain -m pretext=simclr,simcrl
pretrain -m dataset=folder dataset.root=.,nowhere
pretrain resume=nowhere
pretrain hydra.job.chdir=true
pretrain -m hydra/launcher=ray seed=0,1
finetune init=latest
finetune init=moco
finetune init=nowhere/best.pt
finetune -m init=scratch,nowhere/best.pt
finetune init=scratch label_fraction=few
evaluate
evaluate run=nowhere
predict x.jpg
predict format=csv out=x.csv
embed x.jpg
search x.jpg in=nowhere
suggest nowhere
export run=nowhere
compare inits=[rotatoin]
compare finetune.train.stepz=3
data check dataset=foldr
data fetch dataset=cifar
data preview images=many
runs finetuned
report nowhere"""
    done = subprocess.run([sys.executable, "-c", CHECKED], input=lines, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"1 False {line}" for line in lines.splitlines()]
    assert "Traceback" not in done.stderr
    assert not Path("outputs").exists()


def test_a_resumed_run_is_checked_before_torch_is_imported(in_world: Path) -> None:
    run = runs("pretrain")[0]
    lines = [
        f"pretrain resume={run} {o}"
        for o in ("train.stepz=3", "train.save_minutes=often", "pretext.copies=1", "seed=7")
    ]
    lines += [f"finetune resume={run}", f"evaluate run={run}", f"predict run={run} {run}"]
    done = subprocess.run(
        [sys.executable, "-c", CHECKED], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [f"1 False {line}" for line in lines]
    for words in (
        "train.stepz: no such key; did you mean train.steps?",
        "train.save_minutes: must be a number, found often",
        "pretext.copies=1: the run was started with 4",
        "seed=7: the run was started with 0",
        f"resume={run} is a pretrain run",
        f"{run} is a pretrain run, without a classifier",
    ):
        assert words in done.stderr
