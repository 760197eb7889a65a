"""Where the tiles of a jigsaw puzzle are cut, how they are normalized, and which permutations there are."""

import torch
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder
from sslrun.tasks.pretext.jigsaw import Jigsaw, cut, permutation_set


def rng() -> Rng:
    return Rng(torch.Generator().manual_seed(0))


def test_tiles_are_cut_anywhere_in_their_cell_in_both_directions() -> None:
    place = torch.arange(32 * 32.0).view(1, 1, 32, 32).expand(400, 1, -1, -1)
    corner = cut(place, torch.arange(4).expand(400, -1), 2, 16, 12, rng())[:, :, 0, 0, 0].long()
    down, right = corner // 32 % 16, corner % 32 % 16
    assert down.unique().tolist() == right.unique().tolist() == [0, 1, 2, 3, 4]
    assert len(torch.stack([down, right], -1).flatten(0, 1).unique(dim=0)) == 25
    for tile in range(1, 4):
        assert len(torch.stack([down[:, 0], down[:, tile]], -1).unique(dim=0)) == 25


def test_normalized_tiles_have_the_mean_and_nearly_the_spread_of_all_images_whatever_their_contrast() -> None:
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
    """Return in how many places each two permutations of a set differ."""
    permutations = torch.from_numpy(permutation_set(tiles, count))
    different = (permutations[:, None] != permutations[None]).sum(2)
    return different[torch.ones(count, count).triu(1).bool()]


def test_permutations_of_nine_tiles_differ_in_most_places() -> None:
    between = distances(9, 100)
    assert int(between.min()) >= 6
    assert float(between.float().mean()) >= 8.05


def test_all_permutations_of_four_tiles_are_each_there_once() -> None:
    assert len(torch.from_numpy(permutation_set(4, 24)).unique(dim=0)) == 24
    assert permutation_set(4, 24)[0].tolist() == [0, 1, 2, 3]
