"""Several processes train the same model as one, up to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sslrun import augment, processes
from sslrun.augment import Augment, Rng, generator
from sslrun.base.paths import CONF
from sslrun.config.compose import compose_nodes
from sslrun.models.classifier import Classifier
from sslrun.tasks import colors
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.tasks.task import Task
from sslrun.training.batches import Batches
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer
from tests.helpers import IDENTITY, cpu, ended, make_task, small_encoder, spawn

TASKS = sorted({p.stem for p in (CONF / "pretext").glob("*.yaml")} - {"distill"})  # which needs a teacher
IMAGES, BATCH, STEPS = 22, 13, 20  # batches of two epochs, shares of unequal size
CHANGES: dict[str, dict[str, Any]] = {"moco": {"queue": 20}, "swav": {"prototypes": 8}, "rotation": {"dropout": 0.3}}


def task_named(name: str) -> Task:
    torch.manual_seed(0)
    if name != "finetuning":
        return make_task(name, **CHANGES.get(name, {}))
    classifier = Classifier(small_encoder(), 3)
    weights = torch.tensor([0.5, 1.0, 2.0])
    return Finetuning(classifier, Augment(**IDENTITY | {"grayscale": 0.5}), 0.1, 5, False, 0.5, class_weights=weights)


def train(names: list[str], rank: int, count: int, double: bool, pieces: Tensor, place: str) -> None:
    """Train each task, and save the losses and the weights of this process."""
    if double:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
        for module in (augment, colors):
            for key, value in vars(module).copy().items():
                setattr(module, key, value.double() if isinstance(value, Tensor) else value)
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}.store", rank=rank, world_size=count)
    device = cpu(precision="fp32", memory_format="contiguous")
    labels = torch.arange(IMAGES) % 3
    out = {}
    for name in names:
        task = task_named(name)
        processes.synchronize(task)
        (node,) = compose_nodes("pretrain", "optimizer")
        optimizer = build_optimizer(node, task, 0.002)
        losses = []
        steps = STEPS if double else 1
        for step in Batches(pieces, labels, BATCH, steps, 0, device).after(0):
            loss = train_step(task, step, steps, optimizer, device, 1.0)["loss"]
            losses.append(float(processes.total(loss * processes.weight())))
        out[name] = losses, {k: v.clone() for k, v in task.state_dict().items()}
    torch.save(out, f"{place}.{rank}")


@pytest.fixture(scope="module")
def trained(pieces: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what `count` processes trained: of each, the losses and the weights by task."""
    images = (pieces[:1].repeat(IMAGES, 1, 1, 1) * 0 + pieces[torch.arange(IMAGES) % len(pieces)]).mul(255).byte()
    folder = tmp_path_factory.mktemp("processes")

    def run(count: int, double: bool = True) -> list[dict[str, Any]]:
        place = str(folder / f"{count}{double}")
        if not Path(f"{place}.0").exists():
            started = [spawn(train, [*TASKS, "finetuning"], r, count, double, images, place, err=f"{place}.{r}.err")
                       for r in range(count)]  # fmt: skip
            assert [ended(p) for p in started] == [0] * count, Path(f"{place}.0.err").read_text()
        return [torch.load(f"{place}.{r}") for r in range(count)]

    return run


@pytest.mark.parametrize("name", [*TASKS, "finetuning"])
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_the_same_model_as_one(name: str, count: int, trained: Any) -> None:
    (losses, weights), *_ = [of[name] for of in trained(1)]
    several = [of[name] for of in trained(count)]
    assert losses[0] != losses[-1]
    assert several[0][0] == pytest.approx(losses, rel=1e-9, abs=1e-9)
    for key, value in weights.items():
        assert torch.allclose(value.double(), several[0][1][key].double(), rtol=1e-7, atol=1e-9), key
        assert all(torch.equal(several[0][1][key], other[1][key]) for other in several[1:]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TASKS, "finetuning"])
def test_in_single_precision_the_first_step_is_the_same(name: str, trained: Any) -> None:
    (one,), (two,) = (trained(count, False)[0][name][0] for count in (1, 2))
    assert two == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_shares_cover_the_batch_and_differ_by_one_image_at_most() -> None:
    assert (processes.count(), processes.rank(), processes.share(7), processes.sizes(7)) == (1, 0, slice(0, 7), [7])
    assert processes.weight() == 1.0


def test_random_numbers_of_a_share_are_those_of_the_global_batch() -> None:
    whole, shares = Rng(generator(3)), [Rng(generator(3), 10, s) for s in (slice(0, 3), slice(3, 10))]
    n = [3, 7]
    for draw in (
        lambda r, k: r.rand(k, 4),
        lambda r, k: r.randn(2, k, dim=1),
        lambda r, k: r.copy().randint(9, 5, k, 2, dim=1),
        lambda r, k: r.randint(9, k),
    ):
        dim = 1 if draw(whole.copy(), 10).shape[0] in (2, 5) else 0
        assert torch.equal(draw(whole, 10), torch.cat([draw(r, k) for r, k in zip(shares, n, strict=True)], dim))
    with pytest.raises(ValueError, match=r"numbers for 10 rows along dim=0, where this process has 3 samples"):
        shares[0].rand(10)
