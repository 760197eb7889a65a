"""Properties of every pretext task, and the hooks of a task."""

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.base.errors import UserError
from sslrun.base.paths import CONF
from sslrun.models.encoder import Encoder
from sslrun.tasks import task as task_module
from sslrun.tasks.task import HOOKS, Task, build_task, views_per_image
from tests.helpers import IDENTITY, batch_of, make_task, rng, small_encoder

TASKS = sorted({p.stem for p in (CONF / "pretext").glob("*.yaml")} - {"distill"})  # which needs a teacher
MILD = {"augment": {"_target_": "sslrun.augment.Augment", **IDENTITY, "crop_scale": [0.8, 1.0]}}
# Steps on 16 images, and the loss after them as a fraction of that before, where the loss has no other scale.
LEARNED: dict[str, tuple[int, float]] = {
    "rotation": (80, 0.7), "jigsaw": (120, 0.7), "simclr": (60, 0.7), "moco": (100, 0.4), "byol": (30, 0.2),
    "barlowtwins": (200, 0.6), "vicreg": (60, 0.9), "swav": (60, 0.3), "dino": (60, 0.2), "relative_patch": (60, 0.3),
    "inpainting": (60, 0.4), "masked": (140, 0.8), "autoencoder": (40, 0.3), "vae": (40, 0.4), "gan": (60, 0.8),
    "amdim": (80, 0.85), "colorization": (60, 0.3), "simclr_rotation": (60, 0.85), "simsiam": (40, -2.0),
}  # fmt: skip
ACCURATE = ("rotation", "jigsaw", "simclr", "moco", "relative_patch", "gan", "amdim", "colorization")


def fit_one_batch(model: Task, images: Tensor, steps: int, rate: float = 3e-3) -> dict[str, float]:
    """Train on one batch and return the mean metrics of the last 10 steps."""
    model.set_sizes(len(images), len(images))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    kept: list[dict[str, Tensor]] = []
    for step in range(steps):
        model.before_step(step, steps)
        out = model(batch_of(images), rng(step))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        model.after_step(step, steps)
        kept.append({k: v.detach() for k, v in out.items()})
    return {k: float(torch.stack([o[k] for o in kept[-10:]]).mean()) for k in kept[0]}


def mild(name: str) -> Task:
    return make_task(name, **(MILD if name != "simclr_rotation" else {}))


@pytest.mark.parametrize("name", TASKS)
def test_case_60_every_task_learns_one_batch(name: str, pieces: Tensor) -> None:
    steps, fraction = LEARNED[name]
    first = fit_one_batch(mild(name), pieces[:16], 1)["loss"]
    last = fit_one_batch(mild(name), pieces[:16], steps)
    assert last["loss"] < fraction * (math.log(1 + 8) if name == "moco" else abs(first))  # its queue begins at random
    assert name not in ACCURATE or last["pretext_accuracy"] > 0.4


@pytest.mark.parametrize("name", TASKS)
def test_every_weight_of_the_encoder_gets_a_gradient(name: str, pieces: Tensor) -> None:
    task: Any = make_task(name)
    task.before_step(10, 20)
    task(batch_of(pieces[:8]), rng())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.encoder.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_depends_only_on_the_given_random_numbers(name: str, pieces: Tensor) -> None:
    losses = [float(make_task(name).eval()(batch_of(pieces), rng(s))["loss"].detach()) for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *[(n, "head") for n in ("rotation", "jigsaw", "relative_patch", "gan", "dino")],
        *[(n, "projector") for n in ("simclr", "moco", "byol", "simsiam", "barlowtwins", "vicreg", "swav", "amdim")],
        ("vae", "posterior"),
    ],
)
def test_heads_compute_in_float32_outside_autocast(name: str, head: str, pieces: Tensor) -> None:
    task, seen = make_task(name), []
    task.get_submodule(head).register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        task(batch_of(pieces), rng())
    logits = seen[0]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(("name", "views"), [("rotation", 4), ("jigsaw", 1), ("simclr", 2), ("byol", 2), ("vae", 1)])
def test_the_number_of_views_per_image(name: str, views: int) -> None:
    task, before = make_task(name), torch.random.get_rng_state()
    assert views_per_image(task, 32) == views
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", TASKS)
def test_views_are_images(name: str, pieces: Tensor) -> None:
    for views in make_task(name).views(pieces[:4], rng()).values():
        assert views.shape == (4, 3, 32, 32)
        assert views.min() >= 0
        assert views.max() <= 1


@pytest.mark.parametrize(("name", "chance"), [("rotation", 4), ("jigsaw", 24), ("relative_patch", 8)])
def test_cases_54_and_55_constant_images_stay_at_chance(name: str, chance: int) -> None:
    colors = rng().rand(32, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()
    model = make_task(name)
    out = fit_one_batch(model, colors, 60, rate=1e-3)
    assert out["pretext_accuracy"] < 1.6 / chance
    assert out["loss"] > 0.95 * math.log(chance) - 0.1


@pytest.mark.parametrize("name", [n for n in TASKS if type(make_task(n)).figures is not Task.figures])
@torch.no_grad()
def test_figures_are_images(name: str, pieces: Tensor) -> None:
    for drawn in make_task(name).eval().figures(pieces[:4], rng()).values():
        assert drawn.shape == (4, 3, 32, 32)
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_no_task_knows_another() -> None:
    folder = Path(task_module.__file__).parent / "pretext"
    importing = [f.name for f in folder.glob("*.py") if "sslrun.tasks.pretext" in f.read_text()]
    assert importing == []


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


class Good(Task):
    """A task whose parts may be replaced by wrong ones."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, encoder: Encoder, image_size: int) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        Good.calls.append((batch["images"].shape, self.training))
        return {"loss": self.encoder(batch["images"] + torch.rand(1)).square().mean(), "other": torch.tensor(1.0)}

    def before_step(self, step: int, total: int) -> None:
        Good.calls.append(("before", step, total))

    def after_step(self, step: int, total: int) -> None:
        Good.calls.append(("after", step, total))
        with torch.no_grad():
            for p in self.parameters():
                p.add_(1)

    def learning_rates(self) -> dict[str, float]:
        return {"encoder.": 0.1}

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        Good.calls.append(("views", images.shape, self.training, torch.is_grad_enabled()))
        return {"a": images.mul_(0.5)}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        Good.calls.append(("figures", float(images.max()) > 0.5, self.training, torch.is_grad_enabled()))
        return {"b": images[..., :4, :2]}


class Many(Good):
    """Needs 16 images."""

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        if len(batch["images"]) < 16:
            raise ValueError("only " + str(len(batch["images"])))
        return super().forward(batch, rng)


class Never(Good):
    """Fails with every batch."""

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        raise ValueError("not with " + str(len(batch["images"])))


class Abstract(Task):
    """Has no forward."""


class Lazy(Good):
    """Has a weight without a shape."""

    def __init__(self, encoder: Encoder, image_size: int) -> None:
        super().__init__(encoder, image_size)
        self.head = nn.LazyLinear(3)


def built(name: str) -> Task:
    return build_task({"_target_": f"{__name__}.{name}"}, small_encoder((4,)), 32)


def test_a_task_of_the_users_own_is_tried_on_a_copy() -> None:
    """With a step of few images in training mode, then figures in evaluation mode; nothing of the task changes."""
    Good.calls.clear()
    encoder, random = small_encoder((4,)), torch.get_rng_state()
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    task = build_task({"_target_": f"{__name__}.Good"}, encoder, 32)
    assert torch.equal(torch.get_rng_state(), random)
    assert Good.calls == [
        ("before", 0, 100),
        ((4, 3, 32, 32), True),
        ("after", 0, 100),
        ("views", (4, 3, 32, 32), True, False),
        ("figures", True, False, False),
    ]
    assert all(torch.equal(v, state[k]) for k, v in task.encoder.state_dict().items())  # type: ignore[union-attr]
    assert task.training


def test_a_task_that_needs_more_images_is_tried_with_16() -> None:
    Good.calls.clear()
    assert isinstance(built("Many"), Many)
    assert [c[0] for c in Good.calls if isinstance(c[0], torch.Size)] == [(16, 3, 32, 32)]
    with pytest.raises(UserError, match=r"forward\(batch, rng\) raised ValueError: not with 4 "):
        built("Never")


@pytest.mark.parametrize(
    ("name", "words"), [("Abstract", r"must define forward\(self, batch, rng\)"), ("Lazy", r"lazy ones: head\.weight")]
)
def test_an_incomplete_task_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(name)


SCALAR = torch.ones(1, requires_grad=True).sum()


@pytest.mark.parametrize(
    ("method", "result", "words"),
    [
        ("forward", SCALAR, "a dict with `loss`, found Tensor"),
        ("forward", {}, "a dict with `loss`, found the keys none"),
        ("forward", {"los": SCALAR, "b": 1}, "a dict with `loss`, found the keys los, b"),
        ("forward", {"loss": SCALAR, "b": 1.5}, "`b` as a scalar tensor, such as a mean, found float"),
        ("forward", {"loss": SCALAR[None]}, r"`loss` as a scalar tensor, such as a mean, found shape \[1\]"),
        ("forward", {"loss": torch.tensor(1.0)}, "`loss` must depend on the weights"),
        ("learning_rates", ["encoder."], "learning_rates must return a dict, found list"),
        ("learning_rates", {"encoder.": 0.1, "backbone.": 0.1}, "name prefixes of parameters, found 'backbone.'"),
        ("views", [torch.rand(4, 3, 8, 8)], "views must return a dict of images by name, found list"),
        ("views", {"a": torch.rand(3, 3, 8, 8)}, r"found 'a' of 4 images: \[3, 3, 8, 8\], torch.float32"),
        ("figures", {"a": torch.rand(4, 1, 8, 8)}, r"found 'a' of 4 images: \[4, 1, 8, 8\]"),
        ("figures", {"a": torch.ones(4, 3, 8, 8, dtype=torch.uint8)}, "torch.uint8"),
        ("figures", {"a": torch.rand(4, 3, 8)}, r"figures must return N x 3 x H x W .*\[4, 3, 8\]"),
        ("figures", {"a": None}, "found 'a' of 4 images: NoneType"),
    ],
)
def test_a_wrong_result_of_a_task_is_named(
    method: str, result: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Task, *_: Any) -> Any:
        return result

    monkeypatch.setattr(Good, method, wrong)
    monkeypatch.setattr(task_module, "_check_methods", lambda *_: None)
    with pytest.raises(UserError, match=words):
        built("Good")


@pytest.mark.parametrize("method", ["before_step", "after_step", "learning_rates", "views", "figures"])
def test_an_error_in_a_method_is_reported_with_its_name(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Task, *_: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(Good, method, wrong)
    monkeypatch.setattr(task_module, "_check_methods", lambda *_: None)
    with pytest.raises(UserError, match=rf"{method}\(.*\) raised KeyError: 'x'"):
        built("Good")


@pytest.mark.parametrize(
    ("method", "expected"),
    [("forward", r"forward\(self, batch, rng\)"), ("after_step", r"after_step\(self, step, total\)"),
     ("learning_rates", r"learning_rates\(self\)"), ("views", r"views\(self, images, rng\)")],
)  # fmt: skip
def test_a_method_with_other_parameters_is_refused(method: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Good, method, lambda self, a, b, c: None)
    with pytest.raises(UserError, match=rf"must define {expected}, found {method}\(self, a, b, c\)"):
        built("Good")


def test_downstream_may_be_any_path_of_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Good):
        def __init__(self, encoder: Encoder, image_size: int) -> None:
            super().__init__(encoder, image_size)
            self.teacher = encoder  # shared

    monkeypatch.setattr(f"{__name__}.Good", Two)
    monkeypatch.setattr(Two, "downstream", "teacher")
    assert built("Good").downstream == "teacher"
    monkeypatch.setattr(Two, "downstream", "encoder.backbone")
    with pytest.raises(UserError, match=r"found 'encoder\.backbone'; the task has encoder, teacher"):
        built("Good")
