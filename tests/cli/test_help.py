"""`sslrun COMMAND --help`."""

import pytest

from tests.helpers import Cli


def test_help_of_a_command_lists_its_groups_choices_and_keys(cli: Cli) -> None:
    result = cli("pretrain", "--help").out
    choices = " ".join(result.split())
    assert "autoencoder | barlowtwins | byol" in choices
    assert "rotation | simclr | simclr_rotation" in choices
    assert "mobilenetv2 | pixels | resnet18 | smallcnn" in result
    for name in ("cifar10", "folder", "rotation_flowers", "learning_rate: ", "-m  "):
        assert name in result
    assert "from_checkpoint" not in result
    assert "from_checkpoint" in cli("finetune", "--help").out


def test_help_with_a_choice_shows_its_keys(cli: Cli) -> None:
    default, chosen = cli("pretrain", "--help").out, cli("pretrain", "pretext=vae", "--help").out
    assert ("temperature: " in default, "beta: " in default) == (True, False)
    assert ("temperature: " in chosen, "beta: " in chosen) == (False, True)
    assert "beta: " in cli("pretrain", "-m", "pretext=vae,simclr", "--help").out
    wrong = cli("pretrain", "pretext=mae", "--help")
    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.err.startswith("sslrun: pretext=mae: no such pretext; did you mean masked? Choices: amdim, ")


@pytest.mark.parametrize("command", ["fetch", "check", "preview"])
def test_help_of_the_data_commands(command: str, cli: Cli) -> None:
    answer = cli("data", command, "--help")
    assert answer.code == 0
    folder = "" if command == "fetch" else "[FOLDER] "
    assert f"Usage: sslrun data {command} [flags] {folder}[key=value ...]" in answer.out
    assert "dataset=digits" in answer.out
    assert "from_checkpoint" not in answer.out
