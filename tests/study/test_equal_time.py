import json
from pathlib import Path
from typing import Any

import pytest

from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.data.labels import LabelBudget
from sslrun.study.equal_time import equal_time_steps, usual_steps


def run(name: str, seconds: float, labels: int = 60, training: float | None = None, **train: Any) -> Path:
    """Write the summary of a run that took this long, of which `training` is the time of its trainings."""
    directory = Path("outputs", name)
    directory.mkdir(parents=True)
    config = {"train": plain(compose_config("finetune", [], None))["train"] | {"steps": 150} | train}
    summary = {"stage": "finetune", "status": "finished", "config": config, "overrides": [], "labels_train": labels}
    times = {"wall_time_seconds": seconds} | ({} if training is None else {"training_seconds": training})
    (directory / "summary.json").write_text(json.dumps(summary | times))
    return directory


def test_the_steps_are_those_that_take_the_mean_time_of_the_pretrainings() -> None:
    pretrained = [run("a", 100.0), run("b", 500.0)]
    few = {LabelBudget(60, seed=i): run(f"few{i}", s) for i, s in enumerate((11.0, 10.0, 90.0))}
    many = {LabelBudget(600): run("many", 40.0, 600, steps=200)}
    # 150 steps x 300 s / 11 s, the median over the subsets, and 200 x 300 / 40
    assert equal_time_steps(pretrained, few | many) == {"labels=60": 4100, "labels=600": 1500}


def test_the_time_of_a_run_without_its_trainings_does_not_grow_with_the_steps() -> None:
    scratch = {LabelBudget(60): run("a", 10.0, training=4.0)}
    # 150 steps x (66 - 6) s / 4 s: the run takes 6 s + 15 x 4 s
    assert equal_time_steps([run("b", 66.0)], scratch) == {"labels=60": 2200}
    assert equal_time_steps([run("c", 5.0)], scratch) == {"labels=60": 150}


def test_a_training_is_never_shortened() -> None:
    scratch = {LabelBudget(per_class=3): run("a", 50.0)}
    assert equal_time_steps([run("b", 49.0)], scratch) == {"labels_per_class=3": 150}
    assert equal_time_steps([run("c", 51.0)], scratch) == {"labels_per_class=3": 150}  # of two digits
    assert equal_time_steps([run("d", 54.0)], scratch) == {"labels_per_class=3": 160}


@pytest.mark.parametrize(
    ("train", "labels", "steps"),
    [
        ({"steps": "auto"}, 60, 100),
        ({"steps": "auto"}, 2000, 200),
        ({"steps": 7}, 60, 7),
        ({"steps": "auto", "epochs": 3}, 300, 9),
        ({"steps": 7, "epochs": 3}, 300, 7),
    ],
)
def test_the_usual_steps_follow_the_labels_unless_they_are_set(train: dict[str, Any], labels: int, steps: int) -> None:
    node = plain(compose_config("finetune", ["train.batch_size=100"], None))["train"]
    assert usual_steps(node | train, labels) == steps
