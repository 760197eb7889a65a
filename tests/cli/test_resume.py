"""What `resume=` may name."""

from pathlib import Path

from tests.helpers import Cli


def test_one_run_goes_on_at_a_time_and_a_file_is_not_a_run(short_run: Path, cli: Cli) -> None:
    assert "given 2 times" in cli("pretrain", f"resume={short_run}", f"resume={short_run}").err
    assert f"name the run's folder, {short_run}" in cli("pretrain", f"resume={short_run / 'last.pt'}").err
