import json
from pathlib import Path

import pytest

from sslrun.base.errors import UserError
from sslrun.study.budget import Times
from tests.helpers import SMALL_STUDY, Cli, runs, summary


@pytest.mark.slow
def test_a_budget_sets_the_epochs_and_is_logged_before_the_start(cli: Cli) -> None:
    quick = ("labels_per_class=[2]", "seeds=1", "mode=probe", "budget=20s")
    answer = cli("compare", *(s for s in SMALL_STUDY if not s.startswith("train.steps")), *quick)
    assert answer.code == 0, answer.err
    epochs = summary(runs("compare")[0])["config"]["train"]["epochs"]
    assert epochs >= 1
    assert f"budget=20s allows {epochs} epoch" in answer.err
    assert answer.err.index("about") < answer.err.index("pretrain 1/1")
    (pretrained,) = Path("outputs/pretrain/study_runs").glob("*/summary.json")
    assert json.loads(pretrained.read_text())["config"]["train"]["epochs"] == epochs
    again = cli("compare", *(s for s in SMALL_STUDY if not s.startswith("train.steps")), *quick)
    assert again.code == 0, again.err
    assert "the same study in outputs/compare/" in again.err
    assert "All runs of this study are finished." in again.err


def test_a_budget_that_is_too_small_names_the_smallest_one() -> None:
    times = Times(classifiers=100.0, epoch={"rotation": 20.0, "simclr": 30.0}, epochs={})
    with pytest.raises(UserError, match="set budget=3m or more"):
        times.epochs_within(149.0)
    assert times.epochs_within(180.0) == 1  # which is 3m
