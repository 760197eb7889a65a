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


def test_every_position_of_a_map_decides_its_own_area() -> None:
    torch.manual_seed(0)
    decoder = Decoder(3, 4, 32, 16).eval()
    x = torch.zeros(1, 3, 4, 4)
    changed = x.clone()
    changed[0, :, 0, 3] = 1
    moved = (decoder(changed) - decoder(x)).abs().sum(1)[0]
    assert moved[:8, 24:].mean() > 5 * moved[16:, :16].mean()
