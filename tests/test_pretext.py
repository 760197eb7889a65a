import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor, nn

from sslrun.augment import Augment
from sslrun.config.compose import compose_nodes
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder
from sslrun.tasks.pretext.jigsaw import Jigsaw, cut, permutation_set
from sslrun.tasks.pretext.rotation import Rotation
from sslrun.tasks.pretext.simclr import cosine, dcl, ntxent
from sslrun.tasks.task import HOOKS, Task, build_task
from tests.test_views import NOTHING, STRONG, rng

TASKS = ("rotation", "simclr", "jigsaw")


def encoder(widths: tuple[int, ...] = (16, 32)) -> Encoder:
    torch.manual_seed(0)
    return Encoder(smallcnn(32, widths=list(widths)), [0.5] * 3, [0.25] * 3)


def task(name: str, **changes: Any) -> Task:
    from sslrun.config.compose import compose_config

    config = compose_config("pretrain", [f"pretext={name}"], None)
    from omegaconf import OmegaConf

    node: dict[str, Any] = OmegaConf.to_container(config.pretext, resolve=True)  # type: ignore[assignment]
    return build_task({**node, **changes}, encoder(), 32)


def train(model: nn.Module, images: Tensor, steps: int, rate: float = 3e-3) -> dict[str, float]:
    """Train on one batch and return the means of the last 10 steps."""
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
    mild = {"augment": {"_target_": "sslrun.augment.Augment", **NOTHING, "crop_scale": [0.8, 1.0]}}
    first = train(task(name, **mild), pieces[:16], 1)
    last = train(task(name, **mild), pieces[:16], 120)
    assert last["loss"] < 0.7 * first["loss"]
    assert last["pretext_accuracy"] > 0.4


@pytest.mark.parametrize("name", TASKS)
def test_same_numbers_same_loss_other_numbers_another(name: str, pieces: Tensor) -> None:
    losses = [float(task(name).eval()({"images": pieces}, rng(s))["loss"].detach()) for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", TASKS)
def test_views_are_pictures(name: str, pieces: Tensor) -> None:
    for views in task(name).views(pieces[:4], rng()).values():
        assert views.shape == (4, 3, 32, 32)
        assert views.min() >= 0
        assert views.max() <= 1


def test_case_56_a_quarter_turn_four_times_is_nothing(pieces: Tensor) -> None:
    rotations = Rotation(encoder(), 32, augment=Augment(**NOTHING), copies=4, hidden_dim=None, dropout=0.0)
    images, which = rotations.rotated(pieces, rng())
    n = len(pieces)
    assert torch.equal(images[:n], pieces)
    for k in range(4):
        assert (which[k * n : (k + 1) * n] == k).all()
        assert torch.equal(torch.rot90(images[k * n : (k + 1) * n], -k, (2, 3)), pieces)


def test_one_copy_turns_each_picture_as_its_label_says(pieces: Tensor) -> None:
    rotations = Rotation(encoder(), 32, augment=Augment(**NOTHING), copies=1, hidden_dim=8, dropout=0.0)
    images, which = rotations.rotated(pieces, rng())
    assert set(which.tolist()) == {0, 1, 2, 3}
    for image, rotated, k in zip(pieces, images, which.tolist(), strict=True):
        assert torch.equal(torch.rot90(image, k, (1, 2)), rotated)


@pytest.mark.parametrize(("name", "chance"), [("rotation", 4), ("jigsaw", 24)])
def test_cases_54_and_55_constant_images_stay_at_chance(name: str, chance: int) -> None:
    colors = rng().rand(64, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()
    model = task(name)
    out = train(model, colors, 60, rate=1e-3)
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
def test_a_name_that_is_nearly_a_hook_is_refused(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"^Mine\.{name}: .* did you mean {meant}\?$"):
        type("Mine", (Task,), {name: None})


def test_other_names_and_private_ones_are_as_one_likes() -> None:
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


# ---------------------------------------------------------------------------------------------- contrastive losses


def projections(n: int = 6, d: int = 5) -> Tensor:
    return torch.randn(2 * n, d, generator=torch.Generator().manual_seed(0))


def naive(z: Tensor, temperature: float, decoupled: bool) -> float:
    z = F.normalize(z, dim=1)
    n = len(z) // 2
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i and not (decoupled and k == j)]
        below = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in others)
        total += -float(z[i] @ z[j]) / temperature + math.log(below)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_case_58_losses_against_naive_loops(temperature: float) -> None:
    z = projections()
    assert float(ntxent(cosine(z), temperature)) == pytest.approx(naive(z, temperature, False), rel=1e-5)
    assert float(dcl(cosine(z), temperature)) == pytest.approx(naive(z, temperature, True), rel=1e-5)


def test_case_58_ntxent_against_pytorch_metric_learning() -> None:
    z = projections(16, 8)
    theirs = NTXentLoss(temperature=0.2)(z, torch.arange(16).repeat(2))
    assert float(ntxent(cosine(z), 0.2)) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("loss", [ntxent, dcl])
def test_losses_do_not_depend_on_the_order_of_views_or_pictures(loss: Any) -> None:
    z = projections()
    a, b = z.chunk(2)
    permutation = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    expected = float(loss(cosine(z), 0.2))
    assert float(loss(cosine(torch.cat([b, a])), 0.2)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(cosine(torch.cat([a[permutation], b[permutation]])), 0.2)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(cosine(3 * z), 0.2)) == pytest.approx(expected, rel=1e-5)


def test_closer_partners_cost_less() -> None:
    a = projections()[:6]
    far = torch.cat([a, projections()[6:]])
    near = torch.cat([a, a + 0.1 * projections()[6:]])
    for loss in (ntxent, dcl):
        assert loss(cosine(near), 0.2) < loss(cosine(far), 0.2)


# ---------------------------------------------------------------------------------------------------------- jigsaw


def row_by_row(images: Tensor) -> Tensor:
    return torch.arange(4).expand(len(images), -1)


def test_tiles_without_gap_are_the_cells_row_by_row(pieces: Tensor) -> None:
    tiles = cut(pieces, row_by_row(pieces), 2, 16, 16, rng())
    assert torch.equal(tiles[:, 0], pieces[:, :, :16, :16])
    assert torch.equal(tiles[:, 1], pieces[:, :, :16, 16:])
    assert torch.equal(tiles[:, 2], pieces[:, :, 16:, :16])
    assert torch.equal(tiles[:, 3], pieces[:, :, 16:, 16:])


def test_tiles_with_a_gap_lie_somewhere_in_their_cell_each_at_its_own_place(pieces: Tensor) -> None:
    place = torch.arange(32 * 32.0).view(1, 1, 32, 32).expand(50, 3, -1, -1)
    tiles = cut(place, row_by_row(place), 2, 16, 12, rng())
    corner = tiles[:, :, 0, 0, 0]
    rows, columns = corner // 32, corner % 32
    for t, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        assert ((rows[:, t] >= y) & (rows[:, t] <= y + 4)).all()
        assert ((columns[:, t] >= x) & (columns[:, t] <= x + 4)).all()
    assert len({tuple(r) for r in (corner - corner[:, :1]).tolist()}) > 10


def test_shuffled_tiles_are_in_the_order_that_the_label_names(pieces: Tensor) -> None:
    jigsaw = Jigsaw(
        encoder(),
        32,
        augment=Augment(**NOTHING),
        grid=2,
        permutations=24,
        gap=0.0,
        normalize_tiles=False,
        hidden_dim=8,
    )
    shuffled, which = jigsaw.shuffled(pieces, rng())
    tiles = cut(pieces, row_by_row(pieces), 2, 16, 16, rng())
    for i in range(len(pieces)):
        permutation = jigsaw.permutations[which[i]]  # type: ignore[index]
        assert torch.equal(shuffled[i], tiles[i][permutation])


def test_normalized_tiles_do_not_tell_their_brightness(pieces: Tensor) -> None:
    jigsaw = task("jigsaw")
    brighter = (pieces[:8] * 0.3 + 0.6).clamp(0, 1)
    tiles, _ = jigsaw.shuffled(brighter, rng())  # type: ignore[operator]
    assert tiles.mean((2, 3, 4)).std() < 1e-3


@pytest.mark.parametrize(("tiles", "count"), [(4, 24), (4, 12), (9, 100)])
def test_case_57_orders_are_distinct_permutations_far_apart(tiles: int, count: int) -> None:
    permutations = torch.from_numpy(permutation_set(tiles, count))
    assert permutations.shape == (count, tiles)
    assert (permutations.sort(1).values == torch.arange(tiles)).all()
    distance = (permutations[:, None] != permutations[None]).sum(2).fill_diagonal_(tiles)
    assert int(distance.min()) >= {24: 2, 12: 3, 100: 6}[count]
    assert torch.equal(permutations, torch.from_numpy(permutation_set(tiles, count)))


def test_twelve_orders_of_four_tiles_are_the_even_ones() -> None:
    for permutation in permutation_set(4, 12).tolist():
        swaps = sum(permutation[i] > permutation[j] for i in range(4) for j in range(i + 1, 4))
        assert swaps % 2 == 0


@pytest.mark.parametrize(
    ("changes", "words"), [({"permutations": 25}, "2 to 24"), ({"grid": 3, "gap": 0.8}, "tiles of")]
)
def test_impossible_jigsaws_are_refused_in_words(changes: dict[str, Any], words: str) -> None:
    from sslrun.base.errors import UserError

    with pytest.raises(UserError, match=words):
        task("jigsaw", **changes)


def test_default_nodes_are_complete() -> None:
    (pretext,) = compose_nodes("pretrain", "pretext")
    assert set(pretext["augment"]) == {*STRONG, "_target_"}
