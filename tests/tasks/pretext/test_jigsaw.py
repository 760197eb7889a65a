from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.augment import Augment
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder
from sslrun.tasks.pretext.jigsaw import Jigsaw, permutation_set
from sslrun.tasks.tiles import cut
from tests.helpers import IDENTITY, make_task, rng, small_encoder


def row_by_row(images: Tensor) -> Tensor:
    return torch.arange(4).expand(len(images), -1)


def test_tiles_without_a_gap_are_the_cells_row_by_row(pieces: Tensor) -> None:
    tiles = cut(pieces, row_by_row(pieces), 2, 16, 16, rng())
    assert torch.equal(tiles[:, 0], pieces[:, :, :16, :16])
    assert torch.equal(tiles[:, 1], pieces[:, :, :16, 16:])
    assert torch.equal(tiles[:, 2], pieces[:, :, 16:, :16])
    assert torch.equal(tiles[:, 3], pieces[:, :, 16:, 16:])


def test_tiles_of_an_image_whose_size_is_no_multiple_of_the_grid_are_the_cells_row_by_row() -> None:
    images = torch.rand(2, 3, 32, 32)
    tiles = cut(images, torch.arange(9).expand(2, -1), 3, 10, 10, rng())
    for t in range(9):
        y, x = t // 3 * 10, t % 3 * 10
        assert torch.equal(tiles[:, t], images[:, :, y : y + 10, x : x + 10])


def test_tiles_with_a_gap_are_at_independent_positions_in_their_cells(pieces: Tensor) -> None:
    place = torch.arange(32 * 32.0).view(1, 1, 32, 32).expand(50, 3, -1, -1)
    tiles = cut(place, row_by_row(place), 2, 16, 12, rng())
    corner = tiles[:, :, 0, 0, 0]
    rows, columns = corner // 32, corner % 32
    for t, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        assert ((rows[:, t] >= y) & (rows[:, t] <= y + 4)).all()
        assert ((columns[:, t] >= x) & (columns[:, t] <= x + 4)).all()
    assert len({tuple(r) for r in (corner - corner[:, :1]).tolist()}) > 10


def test_shuffled_tiles_match_the_permutation_of_the_label(pieces: Tensor) -> None:
    jigsaw = Jigsaw(
        small_encoder(),
        32,
        augment=Augment(**IDENTITY),
        grid=2,
        permutations=24,
        gap=0.0,
        normalize_tiles=False,
        hidden_dim=8,
    )
    shuffled, which = jigsaw.shuffled(pieces, rng())
    tiles = cut(pieces, row_by_row(pieces), 2, 16, 16, rng())
    for i in range(len(pieces)):
        order = jigsaw.permutations[which[i]]  # type: ignore[index]
        assert torch.equal(shuffled[i], tiles[i][order])


def test_normalized_tiles_do_not_reveal_their_brightness(pieces: Tensor) -> None:
    jigsaw = make_task("jigsaw")
    brighter = (pieces[:8] * 0.3 + 0.6).clamp(0, 1)
    tiles, _ = jigsaw.shuffled(brighter, rng())  # type: ignore[operator]
    assert tiles.mean((2, 3, 4)).std() < 1e-3


@pytest.mark.parametrize(("tiles", "count"), [(4, 24), (4, 12), (9, 100)])
def test_case_57_permutations_are_distinct_and_far_apart(tiles: int, count: int) -> None:
    orders = torch.from_numpy(permutation_set(tiles, count))
    assert orders.shape == (count, tiles)
    assert (orders.sort(1).values == torch.arange(tiles)).all()
    distance = (orders[:, None] != orders[None]).sum(2).fill_diagonal_(tiles)
    assert int(distance.min()) >= {24: 2, 12: 3, 100: 6}[count]
    assert torch.equal(orders, torch.from_numpy(permutation_set(tiles, count)))


def test_twelve_permutations_of_four_tiles_are_the_even_ones() -> None:
    for order in permutation_set(4, 12).tolist():
        swaps = sum(order[i] > order[j] for i in range(4) for j in range(i + 1, 4))
        assert swaps % 2 == 0


@pytest.mark.parametrize(
    ("changes", "words"), [({"permutations": 25}, "2 to 24"), ({"grid": 3, "gap": 0.8}, "tiles of")]
)
def test_impossible_jigsaws_are_refused_with_a_message(changes: dict[str, Any], words: str) -> None:
    from sslrun.base.errors import UserError

    with pytest.raises(UserError, match=words):
        make_task("jigsaw", **changes)


def test_tiles_are_cropped_anywhere_in_their_cell() -> None:
    place = torch.arange(32 * 32.0).view(1, 1, 32, 32).expand(400, 1, -1, -1)
    corner = cut(place, torch.arange(4).expand(400, -1), 2, 16, 12, rng())[:, :, 0, 0, 0].long()
    down, right = corner // 32 % 16, corner % 32 % 16
    assert down.unique().tolist() == right.unique().tolist() == [0, 1, 2, 3, 4]
    assert len(torch.stack([down, right], -1).flatten(0, 1).unique(dim=0)) == 25
    for tile in range(1, 4):
        assert len(torch.stack([down[:, 0], down[:, tile]], -1).unique(dim=0)) == 25


def test_normalized_tiles_have_the_mean_and_nearly_the_std_of_the_data_set() -> None:
    encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    augment = Augment(crop_scale=[1, 1], crop_ratio=[1, 1], degrees=0, horizontal_flip=False, color_jitter=[0, 0, 0, 0],
                      jitter_probability=0, grayscale=0, blur=0, probability=1)  # fmt: skip
    task = Jigsaw(encoder, 32, augment=augment, grid=2, permutations=24, gap=0.25, normalize_tiles=True, hidden_dim=8)
    noise = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    spreads = []
    for contrast, brightness in ((1.0, 0.5), (0.3, 0.7)):
        tiles, _ = task.shuffled(contrast * noise + brightness, rng())
        assert torch.allclose(tiles.mean((2, 3, 4)), torch.tensor(0.5), atol=1e-3)
        spreads.append(tiles.std((2, 3, 4)))
    assert torch.allclose(spreads[0], torch.tensor(0.25), rtol=0.2)
    assert ((spreads[1] / spreads[0] > 0.7) & (spreads[1] / spreads[0] < 1)).all()


def distances(tiles: int, count: int) -> Tensor:
    """Return the Hamming distances between the permutations of a set."""
    permutations = torch.from_numpy(permutation_set(tiles, count))
    different = (permutations[:, None] != permutations[None]).sum(2)
    return different[torch.ones(count, count).triu(1).bool()]


def test_permutations_of_nine_tiles_differ_in_most_places() -> None:
    between = distances(9, 100)
    assert int(between.min()) >= 6
    assert float(between.float().mean()) >= 8.05


def test_all_permutations_of_four_tiles_are_used_once() -> None:
    assert len(torch.from_numpy(permutation_set(4, 24)).unique(dim=0)) == 24
    assert permutation_set(4, 24)[0].tolist() == [0, 1, 2, 3]


def darker(images: Tensor, rng: Any) -> Tensor:
    return images / 2


def jigsaw(image_size: int = 32, **changes: Any) -> Jigsaw:
    encoder = Encoder(smallcnn(image_size, widths=[4, 8]), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3], image_size=image_size)
    keys: dict[str, Any] = {"grid": 2, "permutations": 24, "gap": 0.25, "normalize_tiles": False, "hidden_dim": 12}
    return Jigsaw(encoder, image_size, **{"augment": darker, **keys, **changes})


@pytest.mark.parametrize(
    ("image_size", "grid", "expected"),
    [(63, "auto", (2, 31, 23, 24)), (64, "auto", (3, 21, 16, 100)), (64, 2, (2, 32, 24, 24)), (32, 3, (3, 10, 8, 100))],
)
def test_automatic_grids_permutations_and_gaps(image_size: int, grid: Any, expected: tuple[int, int, int, int]) -> None:
    """Tiles per side, pixels of a cell and of a tile, permutations."""
    task = jigsaw(image_size, grid=grid, permutations="auto")
    assert (task.tiles.grid, task.tiles.cell, task.tiles.side, len(task.permutations)) == expected  # type: ignore[arg-type]
    assert [m.out_features for m in task.head if isinstance(m, torch.nn.Linear)] == [12, expected[3]]


def test_a_given_number_of_permutations_is_kept_and_tiles_of_4_px_are_allowed() -> None:
    assert len(jigsaw(grid=3, permutations=50).permutations) == 50  # type: ignore[arg-type]
    assert jigsaw(16, gap=0.5).tiles.side == 4
    with pytest.raises(ValueError, match="tiles of 3 px are too small"):
        jigsaw(16, gap=0.6)


@pytest.mark.parametrize(("tiles", "count", "most"), [(4, 1, 24), (4, 25, 24), (9, 1001, 1000)])
def test_there_are_at_least_two_permutations_and_at_most_1000(tiles: int, count: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"permutations must be 2 to {most} for {tiles} tiles, found {count}"):
        permutation_set(tiles, count)


@pytest.mark.parametrize("grid", [2, 3])
def test_the_view_shows_the_augmented_tiles_with_gaps_below_and_to_the_right(grid: int) -> None:
    task, images = jigsaw(grid=grid), torch.rand(5, 3, 32, 32)
    tiles, which = task.shuffled(images, rng())
    assert tiles.max() < 0.5
    again, same = task.shuffled(images, rng())
    assert torch.equal(tiles, again)
    assert torch.equal(which, same)
    expected = torch.full((5, 3, 32, 32), 0.5)
    for t in range(grid**2):
        y, x = t // grid * task.tiles.cell, t % grid * task.tiles.cell
        expected[:, :, y : y + task.tiles.side, x : x + task.tiles.side] = tiles[:, t]
    assert torch.equal(task.views(images, rng())["shuffled"], expected)


@torch.no_grad()
def test_the_permutation_is_predicted_from_the_features_of_all_tiles(pieces: Tensor) -> None:
    task = jigsaw().eval()
    tiles, which = task.shuffled(pieces, rng())
    features = torch.cat([task.encoder(tiles[:, t]) for t in range(4)], 1)
    logits = task.head(features)
    out = task({"images": pieces}, rng())
    assert float(out["loss"]) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, which)), rel=1e-4)
    right = sum(int(row.argmax()) == int(w) for row, w in zip(logits, which, strict=True))
    assert float(out["pretext_accuracy"]) == pytest.approx(right / 60)
    assert len(which.unique()) > 12
    task.head[-1].bias[int(which[0])] = 100.0  # type: ignore[operator]
    constant = float(task({"images": pieces}, rng())["pretext_accuracy"])
    assert constant == pytest.approx(float((which == which[0]).float().mean()))
