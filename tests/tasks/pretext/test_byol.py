"""BYOL."""

import pytest
import torch

from sslrun.tasks.pretext.byol import byol_loss
from sslrun.tasks.pretext.simsiam import negative_cosine
from tests.tasks.pretext.references import LIGHTLY, cosine, vectors


def test_byol_and_simsiam() -> None:
    a, b, s, t = vectors()
    naive = sum(cosine(a[i], t[i]) + cosine(b[i], s[i]) for i in range(12)) / 24
    predicted, target = torch.cat([a, b]), torch.cat([s, t])
    assert float(byol_loss(predicted, target)) == pytest.approx(2 - 2 * naive, rel=1e-5)
    assert float(byol_loss(predicted, target)) == pytest.approx(LIGHTLY["byol"], rel=1e-5)
    assert float(negative_cosine(predicted, target)) == pytest.approx(-naive, rel=1e-5)
    assert float(negative_cosine(predicted, target)) == pytest.approx(LIGHTLY["simsiam"], rel=1e-5)
