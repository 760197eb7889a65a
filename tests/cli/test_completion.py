"""The scripts of `sslrun completion`, in the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sslrun.cli.app import app
from sslrun.cli.completion import PLAIN, entries, script
from sslrun.config.commands import COMMANDS
from tests.helpers import Cli, slow

BASH = """
source ./script
compopt() { :; }
COMP_LINE="$1" COMP_POINT=${#1}
_sslrun
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compadd() { local -a all; all=(${@[$@[(i)--]+1,-1]}); print -rl -- ${(M)all:#${typed}*} }
_files() { }
source ./script
line=("${(@s: :)1}"); words=("${line[@]}"); CURRENT=$#line; typed=${line[-1]}
_sslrun
"""


def completed(shell: str, line: str) -> list[str]:
    """Return what a shell offers at the end of a line."""
    Path("script").write_text(script(shell))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    arguments = {
        "bash": ["bash", "-c", BASH, "bash", line],
        "zsh": ["zsh", "-fc", ZSH, "zsh", line],
        "fish": ["fish", "--no-config", "-c", f"source ./script; complete -C '{line}'"],
    }
    result = subprocess.run(arguments[shell], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    return [word for word in result.stdout.split() if word]


@pytest.mark.parametrize("shell", ["bash", *slow(["zsh", "fish"])])
def test_a_shell_completes_commands_choices_and_keys(shell: str) -> None:
    assert sorted(completed(shell, "sslrun pre")) == ["predict", "pretrain"]
    assert sorted(completed(shell, "sslrun data ")) == sorted(n for n, c in COMMANDS.items() if c.is_data)
    whole = shell != "bash"  # which replaces only what follows the =
    for command in ("pretrain", "data preview"):
        offered = completed(shell, f"sslrun {command} photos pretext=r")
        assert ("pretext=rotation" if whole else "rotation") in offered
        assert not [o for o in offered if "simclr" in o]
    assert "train.batch_size=" in completed(shell, "sslrun finetune photos train.b")
    assert "labels=" in completed(shell, "sslrun finetune la")
    assert "--help" in completed(shell, "sslrun pretrain --h") or shell == "fish"  # which offers flags after a -


def test_all_commands_are_offered_and_all_keys_exist(cli: Cli) -> None:
    typed = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert {*PLAIN, *(n for n, c in COMMANDS.items() if not c.is_data)} == {*typed, "data"}
    for command in ("pretrain", "compare", "check"):
        offered = entries(command)
        assert len(offered) == len(set(offered)) > 30
        assert "train=" not in offered
        assert "dataset=from_checkpoint" not in offered
    assert cli("completion", "bash").out == script("bash")
    answer = cli("completion", "tcsh")
    assert (answer.code, answer.err) == (1, "sslrun: tcsh: no such shell. Shells: bash, zsh, fish\n")
