"""Sheets of images."""

import numpy as np

from sslrun.report.sheets import TILE_SIDE, contact_sheet


def test_a_long_line_ends_above_its_own_image() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    sheet = contact_sheet([[(black, "animals_nature", "true: smileys_emotion"), (black, "flags", "true: flags")]])
    pixels = np.asarray(sheet.convert("L"))
    assert (pixels[:, 8 + TILE_SIDE : 8 + TILE_SIDE + 14] == 255).all()  # between the two images
    assert (pixels[:30, :TILE_SIDE] < 255).any()
