import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import QUICK, Cli, process

COMMANDS = ("pretrain", "finetune", "evaluate", "predict")


def runs(stage: str) -> list[Path]:
    return sorted(p.parent for p in Path("outputs", stage).glob("**/summary.json"))


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


# ------------------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", ["--help", "--version", *(f"{c} --help" for c in (*COMMANDS, "runs", "demo"))])
def test_case_72_help_and_version_answer_without_torch(command: str) -> None:
    code = "import sys; from sslrun.cli.app import main; sys.argv = ['sslrun', *sys.argv[1:]]\n"
    code += "try: main()\nexcept SystemExit as e: print('exit', e.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("exit 0 False") or "exit" not in done.stdout
    assert "True" not in done.stdout.splitlines()[-1]
    assert len(done.stdout) > 10


def test_help_of_a_command_lists_its_groups_choices_and_keys(cli: Cli) -> None:
    result = cli("pretrain", "--help").out
    assert "jigsaw | rotation | simclr" in result
    assert "mobilenetv2 | resnet18 | smallcnn" in result
    for name in ("cifar10", "folder", "rotation_flowers", "learning_rate: ", "-m sweeps"):
        assert name in result
    assert "from_checkpoint" not in result
    assert "from_checkpoint" in cli("finetune", "--help").out


def test_cfg_shows_the_config_and_starts_nothing(cli: Cli) -> None:
    answer = cli("pretrain", "--cfg", "job", "pretext=rotation", "train.epochs=7")
    assert answer.code == 0
    assert "_target_: sslrun.tasks.pretext.rotation.Rotation" in answer.out
    assert "epochs: 7" in answer.out
    assert not Path("outputs").exists()


# -------------------------------------------------------------------------------------------------------- mistakes


def test_cases_65_to_67_all_mistakes_at_once_with_the_nearest_name(cli: Cli) -> None:
    answer = cli(
        "pretrain", "pretext.temprature=0.2", "train.epochs=0", "train.batch_size=many", "optimizer=adamv",
        "epochs=3", "device.precision=bf17", "seed=1.5",
    )  # fmt: skip
    assert answer.code == 1
    result = answer.err
    assert "pretext.temprature: no such key; did you mean pretext.temperature?" in result
    assert "train.epochs: must be at least 1, found 0" in result
    assert "train.batch_size: must be a whole number, found many" in result
    assert "optimizer=adamv: no such optimizer; did you mean adam? Choices: adam, adamw, lars, sgd" in result
    assert "epochs: no such key; did you mean train.epochs?" in result
    assert "device.precision: must be one of auto, fp32, bf16 or fp16, found bf17" in result
    assert "seed: must be a whole number, found 1.5" in result
    assert len(answer.lines()) == 7
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "simclr"], "did you mean pretext=simclr?"),
        (["pretrain", "dataset=folder"], "dataset.root: must be given"),
        (["pretrain", "dataset=from_checkpoint"], "no checkpoint"),
        (["finetune", "pretext=rotation"], "say init=rotation"),
        (["finetune", "label_fraction=0"], "label_fraction: must be greater than 0"),
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
        (["predict"], "no picture named"),
        (["finetune", "label_fraction=0.1", "labels_per_class=3"], "not both"),
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


def test_a_typo_inside_a_yaml_file_is_caught(cli: Cli) -> None:
    Path("mine/dataset").mkdir(parents=True)
    Path("mine/experiment").mkdir()
    Path("mine/dataset/mine.yaml").write_text(
        "defaults: [_shared, _self_]\n_target_: sslrun.data.sources.digits.digits\nroot: null\n"
        "image_sise: 24\nimage_size: big\n"
    )
    Path("mine/experiment/mine.yaml").write_text("# @package _global_\ntrain: {epochz: 3}\nsed: 1\n")
    answer = cli("pretrain", "-cd", "mine", "dataset=mine", "experiment=mine")
    assert answer.code == 1
    assert "dataset.image_sise: no such key; did you mean dataset.image_size?" in answer.err
    assert "dataset.image_size: must be a whole number, found big" in answer.err
    assert "train.epochz: no such key; did you mean train.epochs?" in answer.err
    assert "sed: no such key; did you mean seed?" in answer.err
    assert len(answer.lines()) == 4


def test_mistakes_in_a_process_of_its_own_exit_with_1() -> None:
    answer = process("pretrain", "train.epochs=0")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "sslrun: train.epochs: must be at least 1, found 0\n"
