"""Mistakes on the command line: plain lines, exit code 1, nothing started."""

from pathlib import Path

import pytest
import torch

from tests.helpers import PRETRAIN, QUICK, SSLRUN, Cli, in_a_mount, process


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
        (["pretrain", "dataset=folder"], "dataset.root: must be given"),
        (["pretrain", "dataset=from_checkpoint"], "no checkpoint"),
        (["finetune", "pretext=rotation"], "say init=rotation"),
        (["finetune", "init=scratch", "label_fraction=0"], "label_fraction: must be greater than 0"),
        (["finetune", "init=scratch", "label_fraction=1.5"], "at most 1"),
        (["pretrain", "pretext.augment.crop_scale=[0.2]"], "pretext.augment.crop_scale: must be a list of at least 2"),
        (["pretrain", "train.learning_rate=-1"], "train.learning_rate: must be greater than 0"),
        (["pretrain", "train.learning_rate=.nan"], "train.learning_rate: must be"),
        (["pretrain", "seed=0,1"], "put -m before it"),
        (["pretrain", "-m", "seed=0,one"], "found one"),
        (["pretrain", "-m", "pretext=simclr,simclear"], "no such pretext; did you mean simclr?"),
        (["pretrain", "-cd", "nowhere"], "nowhere: no such folder"),
        (["pretrain", "seed=[1"], "cannot be read"),
        (["pretrain", "+train.foo=1"], "train.foo: no such key"),
        (["pretrain", "device=cuda"], "no CUDA GPU"),
        (["pretrain", "device.precision=fp16", "device=cpu"], "needs a GPU"),
        (["pretrain", "dataset=folder", "dataset.root=nowhere"], "nowhere: no such folder"),
        (["pretrain", "unlabeled=nowhere"], "nowhere: no such folder"),
        (["pretrain", "resume=nowhere"], "no run of sslrun there"),
        (["pretrain", "resume=latest"], "no pretrain run"),
        (["finetune"], "no run in outputs/pretrain): start one with sslrun pretrain"),
        (["finetune", "init=jigsaw"], "init=jigsaw: no pretrain jigsaw run"),
        (["finetune", "init=nowhere/x.pt"], "no such run or file"),
        (["finetune", "init=imagenet", *QUICK], "no ImageNet weights for this backbone"),
        (["evaluate"], "no finished finetune run"),
        (["evaluate", "run=nowhere"], "no run of sslrun there"),
        (["predict", "x.jpg"], "no finished finetune run"),
        (["predict"], "no image named"),
        (["finetune", "init=scratch", "label_fraction=0.1", "labels_per_class=3"], "not both"),
        (["pretrain", "train.batch_size=1"], "train.batch_size: must be at least 4 to pretrain"),
        (["pretrain", f"dataset.classes={{a: [{','.join(f'n{i:08d}' for i in range(60))}]}}"], "no class n00000000"),
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
    answer = cli("pretrain")
    assert answer.code == 1
    assert answer.err.startswith("sslrun: cannot write into outputs/pretrain below")
    assert len(answer.lines()) == 1


def test_mistakes_in_a_process_of_its_own_exit_with_1() -> None:
    answer = process("pretrain", "train.epochs=0")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "sslrun: train.epochs: must be at least 1, found 0\n"


def test_case_17_a_folder_that_cannot_be_written() -> None:
    done = in_a_mount("ro", f"cd disk; {SSLRUN} {' '.join(PRETRAIN)}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write into outputs/pretrain below" in done.stderr
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "format=xml"), "format: must be one of table or json, found xml"),
        (("check", "dataset=flower"), "dataset=flower: no such dataset; did you mean flowers"),
        (("check", "dataset=from_checkpoint"), "check starts from no checkpoint"),
        (("check", "batch_size=1"), "batch_size: must be at least 4, found 1"),
        (("preview", "images=0"), "images: must be at least 1, found 0"),
        (("preview", "label_fraction=1"), "label_fraction: no such key"),
        (("fetch", "pretext=simclr"), "fetch has no pretext"),
        (("fetch", "cifar10"), "unexpected: cifar10; did you mean dataset=cifar10?"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str, cli: Cli) -> None:
    answer = cli("data", *arguments)
    assert answer.code == 1
    assert words in answer.err
    assert len(answer.lines()) == 1
