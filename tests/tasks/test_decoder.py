"""Decoders from feature maps to images."""

import pytest
import torch

from sslrun.tasks.decoder import Decoder


@pytest.mark.parametrize(("side", "out"), [(2, 32), (4, 32), (3, 40), (1, 8), (8, 8), (4, 7), (2, 96), (16, 9)])
def test_a_decoder_has_the_size_that_was_asked(side: int, out: int) -> None:
    decoder = Decoder(5, side, out, 32, 4)
    assert decoder(torch.rand(2, 5, side, side)).shape == (2, 4, out, out)


def test_a_new_decoder_has_no_checkerboard() -> None:
    torch.manual_seed(0)
    out = Decoder(5, 4, 32, 32).eval()(torch.rand(2, 5, 4, 4))
    squares = out.view(2, 3, 16, 2, 16, 2)
    assert torch.allclose(squares.amax((3, 5)), squares.amin((3, 5)), atol=1e-6)
    assert out.std() > 0.01


def test_a_map_that_is_larger_than_the_output_is_reduced_not_cropped() -> None:
    torch.manual_seed(0)
    decoder = Decoder(3, 16, 8, 16).eval()
    x = torch.zeros(1, 3, 16, 16)
    changed = x.clone()
    changed[..., 12:, 12:] = 1
    moved = (decoder(changed) - decoder(x)).abs().sum(1)[0]
    assert moved[6:, 6:].min() > 0
    assert moved[:4, :4].max() == 0


def test_an_output_that_is_no_multiple_begins_at_the_top_left() -> None:
    """As the maps of strided layers do: position i of a side of 5 sees pixels from 8 i on, of 33."""
    torch.manual_seed(0)
    decoder = Decoder(3, 5, 33, 16).eval()
    x = torch.zeros(1, 3, 5, 5)
    changed = x.clone()
    changed[0, :, 2, 2] = 1
    moved = (decoder(changed) - decoder(x)).detach().abs().sum(1)[0]
    middle = [float((moved.sum(d) * torch.arange(33)).sum() / moved.sum()) for d in (0, 1)]
    assert middle == pytest.approx([19.5, 19.5], abs=3)  # a crop at the other end: 12.5


def test_every_position_of_a_map_decides_its_own_area() -> None:
    torch.manual_seed(0)
    decoder = Decoder(3, 4, 32, 16).eval()
    x = torch.zeros(1, 3, 4, 4)
    changed = x.clone()
    changed[0, :, 0, 3] = 1
    moved = (decoder(changed) - decoder(x)).abs().sum(1)[0]
    assert moved[:8, 24:].mean() > 5 * moved[16:, :16].mean()
