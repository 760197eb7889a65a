import json
from pathlib import Path

import pytest

from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.runs.run import Stages
from sslrun.stages.table import job, stage
from sslrun.study.settings import overrides_of
from tests.helpers import SMALL_STUDY, Cli, runs, study_table


@pytest.mark.slow
def test_two_settings_of_one_task_are_two_networks(cli: Cli) -> None:
    two = 'pretexts=[simclr,"simclr pretext.temperature=0.5 train.steps=3"]'
    answer = cli("compare", *SMALL_STUDY, two, "labels_per_class=[3]", "seeds=1", "mode=probe")
    assert answer.code == 0, answer.err
    result = [json.loads(p.read_text())["config"] for p in Path("outputs/pretrain/study_runs").glob("*/summary.json")]
    assert sorted((c["pretext"]["temperature"], c["train"]["steps"]) for c in result) == [(0.2, 4), (0.5, 3)]
    assert {r["initialization"] for r in study_table(runs("compare")[0])} == {"scratch", "simclr", two.split('"')[1]}
    assert "undecided: 1 label subset" in answer.err


def test_a_pretraining_has_the_seed_and_the_shared_settings_of_its_study() -> None:
    config = plain(compose_config("compare", ["seed=3", "train.epochs=7", "dataset=digits", "unlabeled=more"], None))
    chosen = {"pretext": "simclr", "backbone": "smallcnn", "dataset": "digits", "optimizer": "adamw", "device": "auto"}
    pretrainings, _, _ = overrides_of(Stages(stage, job), config, chosen, None)
    (overrides,) = pretrainings.values()
    assert {"seed=3", "train.epochs=7", "unlabeled='more'"} <= set(overrides)
