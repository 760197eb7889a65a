"""`search=`: the settings that may be tried."""

from pathlib import Path

import pytest

from sslrun.base.errors import UserError
from sslrun.run.run import Stages
from sslrun.stages.table import job, stage
from sslrun.study.choice import searched
from tests.helpers import QUICK, Cli


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["mode=probe", 'search=["augment.probability=0"]'],
            "search= needs mode=auto or mode=finetune, found mode=probe",
        ),
        (['search=["optimizer=sgd"]'], "search: optimizer=sgd: expected a training setting"),
        (['search=["labels=3"]'], "search: labels=3: expected a training setting"),
        (['search=["balance=auto"]'], "search: balance=auto: expected a value to try"),
        (['search=["device.threads=1","train.save_minutes=1","hydra/launcher=basic"]'], "search: train.save_minutes=1"),
    ],
)
def test_invalid_searches(in_world: Path, cli: Cli, overrides: list[str], text: str) -> None:
    wrong = cli("finetune", "label_fraction=0.5", *overrides, *QUICK)
    assert wrong.code == 1
    assert text in wrong.err
    assert "Traceback" not in wrong.err


def test_settings_of_the_user_are_not_searched() -> None:
    stages = Stages(stage, job)
    both = ["augment.probability=0.5", "augment.probability=0"]
    assert searched(stages, both, [], None) == both
    assert searched(stages, [*both, "label_smoothing=0"], ["augment.probability=0.2"], None) == ["label_smoothing=0"]
    momentum = ["optimizer.momentum=0.5"]
    assert searched(stages, momentum, ["optimizer=sgd"], None) == momentum
    assert searched(stages, momentum, ["dataset=folder", "optimizer=sgd"], None) == momentum  # whose root is not given
    with pytest.raises(UserError, match=r"search: optimizer\.momentum: no such key"):
        searched(stages, momentum, [], None)
