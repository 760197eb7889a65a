"""Numbers that tell a collapsed embedding without labels."""

import pytest
import torch

from sslrun.evaluation.metrics import embedding_health, has_collapsed


def test_identical_features_have_no_spread() -> None:
    feature = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    health = embedding_health(feature.repeat(500, 1))
    assert health["feature_spread"] < 0.05
    assert health["effective_rank"] == 1
    assert has_collapsed(health)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_health_does_not_depend_on_the_length_of_the_features(scale: float) -> None:
    features = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    expected = embedding_health(features)
    assert embedding_health(scale * features) == pytest.approx(expected, rel=1e-6)


def test_the_effective_rank_does_not_count_what_all_features_share() -> None:
    features = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)) + 3
    assert embedding_health(features)["effective_rank"] == pytest.approx(32, rel=0.02)
    assert not has_collapsed(embedding_health(features))
