"""Which candidates of mode=auto are tried."""

import logging

import pytest

from sslrun.training.candidates import candidates_of
from sslrun.training.choosing import affordable
from sslrun.training.estimate import ClassifierEstimate
from sslrun.training.settings import Training
from tests.training.fitting import SETTINGS
from tests.training.folding import changed


@pytest.mark.parametrize(
    ("images_per_second", "search", "kept", "line"),
    [
        (100.0, [], ["probe", "finetune", "scratch"], None),
        (25.0, [], ["probe", "finetune"], "does not try scratch: on this CPU the trainings in the folds would take"),
        (
            25.0,
            ["seed=0", "seed=1"],
            ["probe"],
            "does not try finetune or scratch: on this CPU",
        ),
        (5.0, [], ["probe"], "does not try finetune or scratch: on this CPU"),
    ],
)
def test_a_published_network_is_trained_in_the_folds_only_if_it_takes_under_two_minutes(
    images_per_second: float, search: list[str], kept: list[str], line: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Three folds of 20 images, 30 steps: 1,800 images a candidate, one training at a time."""
    measured = ClassifierEstimate(images_per_second, images_per_second, 1, 1.0, labels=30, validation=0, folds=[20] * 3)
    settings = Training(**{**SETTINGS, "batch_size": 64, "steps": 30, "epochs": None})
    candidates = candidates_of(changed(init="pretrained", mode="auto"), search)
    with caplog.at_level(logging.INFO):
        result = affordable(candidates, measured, settings, 30)
    assert list(dict.fromkeys(c.name for c in result)) == kept
    if line is None:
        assert len(result) == len(candidates)
        assert not caplog.messages
    else:
        (message,) = caplog.messages
        assert line in message
        assert message.endswith("set mode=finetune for it." if kept == ["probe"] else "set init=scratch for it.")
