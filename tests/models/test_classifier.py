"""How many neighbors a nearest-neighbor classifier uses."""

import pytest
import torch

from sslrun.models.classifier import knn_probabilities


@pytest.mark.parametrize(("bank", "k"), [(1000, 100), (500, 50), (100, 20), (7, 7), (5000, 200)])
def test_by_default_a_tenth_of_the_bank_is_used_but_20_to_200(bank: int, k: int) -> None:
    rng = torch.Generator().manual_seed(0)
    features, queries = torch.randn(bank, 6, generator=rng), torch.randn(30, 6, generator=rng)
    labels = torch.randint(3, (bank,), generator=rng)
    result = knn_probabilities(queries, features, labels, 3)
    assert torch.equal(result, knn_probabilities(queries, features, labels, 3, k=k))
    assert not torch.allclose(result, knn_probabilities(queries, features, labels, 3, k=k - 1), atol=1e-5)
    assert torch.allclose(result.sum(1), torch.ones(30))
