"""Hydra's keys that would break paths or the run directory, and plugins that are not installed."""

from pathlib import Path

import pytest

from sslrun.config import hydra_keys
from tests.helpers import PRETRAIN, Cli


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("hydra.job.chdir=true", "relative paths start from the folder in which the command is run"),
        ("++hydra.job.chdir=True", "relative paths start from"),
        ("hydra.job.name=mine", "it marks the runs of a study"),
        ("hydra.job.config_name=finetune", "it is the name of the command"),
        ("hydra.mode=MULTIRUN", "-m makes a sweep"),
        ("hydra.runtime.output_dir=elsewhere", "Hydra fills it in"),
        ("hydra.sweep.subdir=a/b", "without slashes"),
    ],
)
def test_a_key_that_would_break_paths_is_one_line(cli: Cli, override: str, reason: str) -> None:
    answer = cli("pretrain", "dataset=folder", "dataset.root=.", override)
    assert answer.code == 1
    assert f"{override}: " in answer.err
    assert reason in answer.err
    assert len(answer.lines()) == 1
    assert not Path("outputs").exists()


def test_a_yaml_file_cannot_change_the_working_directory(cli: Cli) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/mine.yaml").write_text("# @package _global_\nhydra:\n  job:\n    chdir: true\n")
    answer = cli("pretrain", "dataset=digits", "-cd", "mine", "experiment=mine")
    assert answer.code == 1
    assert answer.err.startswith("sslrun: hydra.job.chdir=true: relative paths start from")
    assert len(answer.lines()) == 1


def test_harmless_keys_are_accepted(cli: Cli) -> None:
    assert cli(*PRETRAIN, "hydra.job.chdir=false", "hydra.run.dir=here/my run").code == 0
    assert Path("here/my run/summary.json").is_file()


@pytest.mark.parametrize(
    ("override", "package"),
    [
        ("hydra/launcher=ray", "hydra-ray-launcher"),
        ("hydra/launcher=rq", "hydra-rq-launcher"),
        ("hydra/sweeper=optuna", "hydra-optuna-sweeper"),
        ("hydra/job_logging=colorlog", "hydra-colorlog"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_package(cli: Cli, override: str, package: str) -> None:
    answer = cli("pretrain", "-m", override, "seed=0,1")
    assert answer.code == 1
    assert answer.err == f"sslrun: {override}: needs the package {package}; install it with pip install {package}\n"


def test_the_launcher_of_clusters_is_named_with_our_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_keys, "_installed", lambda package: False)
    answer = cli("pretrain", "-m", "hydra/launcher=submitit_slurm", "seed=0,1")
    assert (answer.code, answer.err) == (
        1,
        "sslrun: hydra/launcher=submitit_slurm: needs the package hydra-submitit-launcher; install it with "
        "pip install 'sslrun[cluster]'\n",
    )


def test_an_unknown_plugin_gets_a_suggestion(cli: Cli) -> None:
    answer = cli("pretrain", "-m", "hydra/launcher=bassic", "seed=0,1")
    assert answer.code == 1
    assert "hydra/launcher=bassic: no such choice; did you mean basic? Choices: basic" in answer.err
    assert len(answer.lines()) == 1
