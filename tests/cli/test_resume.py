"""Values of `resume=`."""

from pathlib import Path

from tests.helpers import Cli


def test_resume_takes_one_run_and_no_file(short_run: Path, cli: Cli) -> None:
    assert "given 2 times" in cli("pretrain", f"resume={short_run}", f"resume={short_run}").err
    assert f"use the run's folder, {short_run}" in cli("pretrain", f"resume={short_run / 'last.pt'}").err
