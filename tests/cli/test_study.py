"""Mistakes in the lists of a study are reported with the name of the list."""

from pathlib import Path

import pytest

from sslrun.cli.study import mistakes
from sslrun.config.compose import compose_config
from tests.helpers import Cli


def test_mistakes_in_all_lists_are_reported_together(cli: Cli) -> None:
    answer = cli(
        "compare", 'inits=[rotatoin,"simclr pretext.temprature=1"]', 'search=["augment.probabilty=1"]',
        "finetune.train.stepz=3", "seeds=many",
    )  # fmt: skip
    assert answer.code == 1
    for words in (
        "inits: rotatoin: no pretext 'rotatoin'; did you mean rotation? Choices: scratch, pretrained, amdim, "
        "autoencoder, barlowtwins, byol, colorization, dino, distill, gan, ",
        "inits: simclr pretext.temprature=1: pretext.temprature: no such key; did you mean pretext.temperature?",
        "search: augment.probabilty: no such key; did you mean augment.probability?",
        "finetune.train.stepz: no such key; did you mean train.steps?",
        "seeds: must be an integer, found many",
    ):
        assert words in answer.err
    assert len(answer.lines()) == 5
    assert not Path("outputs").exists()


def test_ranges_of_classifier_settings_are_checked_later(cli: Cli) -> None:
    answer = cli("compare", "dataset=digits", "finetune.train.steps=0")
    assert answer.err == "sslrun: finetune.train.steps: must be at least 1 or auto, found 0\n"


def test_settings_of_a_task_may_be_those_of_the_chosen_optimizer() -> None:
    spec = 'inits=["simclr optimizer.momentum=0.8"]'
    assert not found(spec, "optimizer=sgd")
    assert found(spec) == [
        "inits: simclr optimizer.momentum=0.8: optimizer.momentum: no such key; it is a key of optimizer=lars|sgd"
    ]


def found(*overrides: str) -> list[str]:
    return mistakes(compose_config("compare", list(overrides), None), overrides, None)


def test_settings_of_a_task_that_a_study_does_not_train_are_refused() -> None:
    without = "inits= has no vae, so it would have no effect; add vae to inits=, or remove it"
    given = ("pretext=vae", "pretext.beta=3")
    assert found("inits=[scratch,byol]", *given) == [f"{o}: {without}" for o in given]
    assert found("inits=[byol]", "pretext.temperature=0.1")[0].startswith("pretext.temperature=0.1: inits= has no simc")
    assert not found(*given)
    assert not found('inits=[byol,"vae pretext.width=8"]', *given)


@pytest.mark.parametrize("sign", ["", "++"])
def test_settings_of_classifiers_may_have_signs(cli: Cli, sign: str) -> None:
    answer = cli("compare", "dataset=digits", f"{sign}finetune.pooling=grid", "finetune.train.stepz=3")
    assert answer.err == "sslrun: finetune.train.stepz: no such key; did you mean train.steps?\n"


def test_settings_searched_by_finetune_are_checked_before_its_network(cli: Cli) -> None:
    answer = cli("finetune", "init=scratch", 'search=["augment.probabilty=1"]')
    assert answer.err == "sslrun: search: augment.probabilty: no such key; did you mean augment.probability?\n"
    assert not Path("outputs").exists()


def test_a_search_needs_no_required_key_of_the_data_set(cli: Cli) -> None:
    search = 'search=["augment.probability=0"]'
    answer = cli("finetune", "init=scratch", "dataset=folder", "dataset.root=nowhere", search)
    assert "required" not in answer.err
    assert "nowhere" in answer.err


def test_searched_keys_may_be_those_of_the_chosen_optimizer() -> None:
    search = 'search=["optimizer.momentum=0.5"]'
    assert found(search) == ["search: optimizer.momentum: no such key; it is a key of optimizer=lars|sgd"]
    assert not found(search, 'finetune=["optimizer=sgd"]')
    config = compose_config("finetune", ["optimizer=sgd", search], None)
    assert not mistakes(config, ["optimizer=sgd", search], None)
