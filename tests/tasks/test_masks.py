"""Masks, and networks that see only what is not masked."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslrun.models.encoder import Encoder
from sslrun.tasks.masks import random_masks, refuse_other_norms, resized, visible_only
from tests.helpers import encoder_of, make_task, rng


@pytest.mark.parametrize(("grid", "share", "masked"), [(4, 0.6, 10), (4, 0.01, 1), (4, 0.99, 15), (8, 0.6, 38)])
def test_every_image_has_as_many_masked_cells(grid: int, share: float, masked: int) -> None:
    masks = random_masks(50, grid, share, rng())
    assert masks.shape == (50, 1, grid, grid)
    assert set(masks.unique().tolist()) == {0, 1}
    assert (masks.flatten(1).sum(1) == grid**2 - masked).all()
    assert len({tuple(m.flatten().tolist()) for m in masks}) > 10
    frequency = (1 - random_masks(4000, grid, share, rng())).mean(0)
    assert frequency.sub(masked / grid**2).abs().max() < 0.05


def test_a_mask_at_other_sizes() -> None:
    visible = torch.tensor([[1.0, 0], [0, 0]])[None, None]
    assert resized(visible, 4, 4)[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert resized(visible, 1, 1).item() == 1
    assert resized(torch.zeros(1, 1, 2, 2), 1, 1).item() == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "size"), [("smallcnn", 32), ("resnet18", 32), ("mobilenetv2", 64)])
def test_everything_visible_is_the_network_as_it_is(name: str, size: int, training: bool) -> None:
    images = rng().rand(6, 3, size, size)
    one, two = (encoder_of(name, size).train(training) for _ in range(2))
    expected = one.maps(images)
    with visible_only(two.backbone, torch.ones(6, 1, 4, 4)):
        maps = two.maps(images)
    for a, b in zip(expected, maps, strict=True):
        assert torch.allclose(a, b, atol=2e-3, rtol=1e-3)
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-3)
    assert torch.equal(two.eval().maps(images)[-1], two.maps(images)[-1])
    assert not any("forward" in vars(m) for m in two.modules())  # the network is left as it was


@pytest.mark.parametrize(("name", "size"), [("smallcnn", 32), ("resnet18", 32), ("mobilenetv2", 32), ("smallcnn", 64)])
def test_masked_pixels_change_no_output_and_no_statistic(name: str, size: int) -> None:
    """In training mode: neither through convolutions nor through batch statistics."""
    task: Any = make_task("masked") if size == 32 else None
    images, other = rng(0).rand(6, 3, size, size), rng(1).rand(6, 3, size, size)
    visible = random_masks(6, 4, 0.6, rng(2))
    seen = torch.nn.functional.interpolate(visible, (size, size)).bool()
    changed = torch.where(seen, images, other)
    results: list[tuple[list[Tensor], list[Tensor]]] = []
    for x in (images, changed):
        encoder = encoder_of(name, size).train()
        with visible_only(encoder.backbone, visible):
            maps = encoder.maps(torch.where(seen, x, encoder.mean))
        results.append((maps, [*encoder.buffers()]))
    assert all(torch.equal(a, b) for one, two in zip(*results, strict=True) for a, b in zip(one, two, strict=True))
    for m in results[0][0]:
        hidden = (resized(visible, *m.shape[2:]) == 0).expand_as(m)
        assert (m[hidden] == 0).all()
        assert (m[~hidden] != 0).any()
    if task:
        out = [task.train().predicted(x, visible) for x in (images, changed)]
        assert torch.equal(*out)


def test_batch_statistics_are_those_of_the_visible_positions() -> None:
    norm = nn.BatchNorm2d(3).train()
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    visible = random_masks(8, 4, 0.5, rng())
    net = nn.Sequential(norm)
    with visible_only(net, visible):
        out = net(x)
    at = visible.bool().expand_as(x)
    values = x.movedim(1, -1)[at.movedim(1, -1)].view(-1, 3)
    expected = (values - values.mean(0)) / (values.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(out.movedim(1, -1)[at.movedim(1, -1)].view(-1, 3), expected, atol=1e-5)
    assert (out[~at] == 0).all()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, 0.1 * values.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * values.var(0), atol=1e-5)
    assert norm.num_batches_tracked == 1


def test_the_loss_is_that_of_masked_cells_alone(pieces: Tensor) -> None:
    """A prediction that is right on masked cells has a loss of 0, whatever it is elsewhere."""
    task: Any = make_task("masked")
    given = random_masks(60, 4, 0.6, rng())
    task._mask = lambda images, r: given
    view = task.augment(pieces, rng())
    target, _, _ = task._standardized(view)
    masked = torch.nn.functional.interpolate(given, (32, 32)) == 0
    task.predicted = lambda images, visible: torch.where(masked, target, 99.0)
    assert float(task({"images": pieces}, rng())["loss"]) == 0
    task.predicted = lambda images, visible: torch.where(masked, target + 2, target)
    assert float(task({"images": pieces}, rng())["loss"]) == pytest.approx(4, rel=1e-4)


def test_an_encoder_is_usable_as_before_after_an_error() -> None:
    encoder: Encoder = encoder_of("smallcnn", 32)
    with pytest.raises(ZeroDivisionError), visible_only(encoder.backbone, torch.ones(1, 1, 4, 4)):
        raise ZeroDivisionError
    assert not any("forward" in vars(m) for m in encoder.modules())


def test_a_network_with_another_batch_norm_is_refused() -> None:
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    refuse_other_norms(nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3)))
    for norm in (WithActivation(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, momentum=None)):
        with pytest.raises(ValueError, match="cannot leave masked areas out: take smallcnn, resnet18, mobilenetv2 or"):
            refuse_other_norms(nn.Sequential(nn.BatchNorm2d(3), norm))


def test_statistics_of_values_far_from_zero_are_exact() -> None:
    x = 100 + 0.1 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    one, two = nn.BatchNorm2d(3).train(), nn.BatchNorm2d(3).train()
    with visible_only(nn.Sequential(two), torch.ones(8, 1, 4, 4)):
        out = two(x)
    assert torch.allclose(out, one(x), atol=2e-2)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 8, 12, 20])
def test_a_position_is_visible_if_any_of_its_cells_is(side: int) -> None:
    visible = random_masks(1, 8, 0.6, rng())
    found = resized(visible, side, side)[0, 0]
    for i in range(side):
        for j in range(side):  # cells that overlap [i, i + 1) / side
            rows, columns = (slice(k * 8 // side, -(-(k + 1) * 8 // side)) for k in (i, j))
            assert found[i, j] == visible[0, 0, rows, columns].max()


def test_the_target_is_standardized_in_each_cell_and_channel(pieces: Tensor) -> None:
    task: Any = make_task("masked")
    target, _, _ = task._standardized(pieces[:4])
    pixels = (pieces[:4] - task.encoder.mean) / task.encoder.std
    for i, c, y, x in ((0, 0, 0, 0), (1, 2, 3, 1), (3, 1, 2, 2)):
        cell = pixels[i, c, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        naive = (cell - cell.mean()) / (cell.var(correction=0) + 0.01).sqrt()
        assert torch.allclose(target[i, c, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8], naive, atol=1e-4)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_decoder_sees_each_of_its_levels_and_no_masked_pixel(levels: int, pieces: Tensor) -> None:
    task: Any = make_task("masked", levels=levels).eval()
    images, visible = pieces[:4], random_masks(4, 4, 0.5, rng())
    hidden = (torch.nn.functional.interpolate(visible, (32, 32)) == 0).expand_as(images)
    with torch.no_grad():
        out = task.predicted(images, visible)
        assert torch.equal(task.predicted(torch.where(hidden, rng().rand(4, 3, 32, 32), images), visible), out)
        for lateral in task.lateral:
            weight = lateral[0].weight.clone()
            lateral[0].weight.zero_()
            assert not torch.allclose(task.predicted(images, visible), out, atol=1e-4)
            lateral[0].weight.copy_(weight)
    assert len(task.lateral) == levels
