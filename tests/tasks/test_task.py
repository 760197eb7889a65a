"""Properties of every pretext task, and the hooks of a task."""

import math

import pytest
import torch
from torch import Tensor, nn

from sslrun.tasks.task import HOOKS, Task
from tests.helpers import IDENTITY, make_task, rng

TASKS = ("rotation", "simclr", "jigsaw")


def fit_one_batch(model: nn.Module, images: Tensor, steps: int, rate: float = 3e-3) -> dict[str, float]:
    """Train on one batch and return the mean metrics of the last 10 steps."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    kept: list[dict[str, Tensor]] = []
    for step in range(steps):
        out = model({"images": images}, rng(step))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        kept.append({k: v.detach() for k, v in out.items()})
    return {k: float(torch.stack([o[k] for o in kept[-10:]]).mean()) for k in kept[0]}


@pytest.mark.parametrize("name", TASKS)
def test_case_60_every_task_learns_one_batch(name: str, pieces: Tensor) -> None:
    mild = {"augment": {"_target_": "sslrun.augment.Augment", **IDENTITY, "crop_scale": [0.8, 1.0]}}
    first = fit_one_batch(make_task(name, **mild), pieces[:16], 1)
    last = fit_one_batch(make_task(name, **mild), pieces[:16], {"rotation": 80, "simclr": 60, "jigsaw": 120}[name])
    assert last["loss"] < 0.7 * first["loss"]
    assert last["pretext_accuracy"] > 0.4


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_depends_only_on_the_given_random_numbers(name: str, pieces: Tensor) -> None:
    losses = [float(make_task(name).eval()({"images": pieces}, rng(s))["loss"].detach()) for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", TASKS)
def test_views_are_images(name: str, pieces: Tensor) -> None:
    for views in make_task(name).views(pieces[:4], rng()).values():
        assert views.shape == (4, 3, 32, 32)
        assert views.min() >= 0
        assert views.max() <= 1


@pytest.mark.parametrize(("name", "chance"), [("rotation", 4), ("jigsaw", 24)])
def test_cases_54_and_55_constant_images_stay_at_chance(name: str, chance: int) -> None:
    colors = rng().rand(32, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()
    model = make_task(name)
    out = fit_one_batch(model, colors, 60, rate=1e-3)
    assert out["pretext_accuracy"] < 1.6 / chance
    assert out["loss"] > 0.95 * math.log(chance) - 0.1


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("before_steps", "before_step"),
        ("after_stp", "after_step"),
        ("afterStep", "after_step"),
        ("view", "views"),
        ("figure", "figures"),
        ("learning_rate", "learning_rates"),
        ("foward", "forward"),
        ("down_stream", "downstream"),
    ],
)
def test_a_misspelled_hook_is_refused(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"^Mine\.{name}: .* did you mean {meant}\? See .*extending\.md$"):
        type("Mine", (Task,), {name: None})


def test_other_names_and_private_names_are_allowed() -> None:
    names = ("augment", "figure_out", "views_of", "preview", "step", "update", "forward_features", "encoder", "teacher")
    own = (
        "after_epoch",
        "learning",
        "rates",
        "upstream",
        "stream",
        "head",
        "loss",
        "temperature",
        "shuffled",
        "rotated",
    )
    type("Mine", (Task,), dict.fromkeys((*names, *own, "_view", "_before_steps", "__call__", *HOOKS)))
