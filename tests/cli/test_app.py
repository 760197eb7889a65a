"""The command line as a whole: help and version without torch."""

import subprocess
import sys

import pytest

COMMANDS = ("pretrain", "finetune", "evaluate", "predict")


@pytest.mark.parametrize("command", ["--help", "--version", *(f"{c} --help" for c in (*COMMANDS, "runs", "demo"))])
def test_case_72_help_and_version_answer_without_torch(command: str) -> None:
    code = "import sys; from sslrun.cli.app import main; sys.argv = ['sslrun', *sys.argv[1:]]\n"
    code += "try: main()\nexcept SystemExit as e: print('exit', e.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("exit 0 False") or "exit" not in done.stdout
    assert "True" not in done.stdout.splitlines()[-1]
    assert len(done.stdout) > 10
