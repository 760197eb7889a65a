"""One process at a time writes into a run."""

from pathlib import Path

import pytest

from sslrun.run import checkpoint
from tests.helpers import OFTEN, PRETRAIN, ended, only_run, run_forked, start, wait_for


@pytest.mark.slow
def test_case_18_a_second_process_is_refused_and_a_killed_one_leaves_no_lock() -> None:
    process = start(*PRETRAIN[:-3], "train.steps=100000", *OFTEN, "train.evaluations=1")
    wait_for(process, lambda: bool(list(Path("outputs").glob("pretrain/*/last.pt"))))
    place = only_run()
    second = start("pretrain", f"resume={place}")
    assert ended(second) == 1
    assert "is in use by another process" in Path("output").read_text()
    process.kill()
    process.join()
    step = checkpoint.newest_intact(place)[1]["step"]
    assert f"Resuming after step {step}" in run_forked("pretrain", f"resume={place}", f"train.steps={step + 2}")
