import math

import pytest
import torch
from torch import Tensor

from sslrun.models.classifier import Classifier, KNNClassifier, knn_probabilities
from tests.helpers import small_encoder


def test_knn_against_a_naive_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(50, 4, generator=rng), torch.randn(7, 4, generator=rng)
    labels = torch.randint(3, (50,), generator=rng)
    p = knn_probabilities(queries, bank, labels, 3, k=5)
    for q in range(7):
        s = [float(torch.cosine_similarity(queries[q], b, 0)) for b in bank]
        nearest = sorted(range(50), key=lambda i: -s[i])[:5]
        votes = [sum(math.exp(s[i] / 0.07) for i in nearest if labels[i] == c) for c in range(3)]
        assert p[q].tolist() == pytest.approx([v / sum(votes) for v in votes], abs=1e-4)


def test_knn_with_fewer_images_than_neighbors_and_huge_features() -> None:
    bank = torch.eye(3) * 1e6
    assert knn_probabilities(bank, bank, torch.arange(3), 3).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("bank", "k"), [(1000, 100), (500, 50), (100, 20), (7, 7), (5000, 200)])
def test_the_default_k_is_a_tenth_of_the_bank_from_20_to_200(bank: int, k: int) -> None:
    rng = torch.Generator().manual_seed(0)
    features, queries = torch.randn(bank, 6, generator=rng), torch.randn(30, 6, generator=rng)
    labels = torch.randint(3, (bank,), generator=rng)
    result = knn_probabilities(queries, features, labels, 3)
    assert torch.equal(result, knn_probabilities(queries, features, labels, 3, k=k))
    assert not torch.allclose(result, knn_probabilities(queries, features, labels, 3, k=k - 1), atol=1e-5)
    assert torch.allclose(result.sum(1), torch.ones(30))


def test_many_queries_in_half_precision_are_classified_as_in_full() -> None:
    rng = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(300, 8, generator=rng), torch.randn(2500, 8, generator=rng)
    labels = torch.randint(3, (300,), generator=rng)
    full = knn_probabilities(queries, bank, labels, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn_probabilities(queries, bank, labels, 3), full)
    alone = torch.cat([knn_probabilities(q, bank, labels, 3) for q in queries[[0, 1024, 2499]].split(1)])
    assert torch.allclose(full[[0, 1024, 2499]], alone, atol=1e-5)
    assert knn_probabilities(queries[:3], bank, labels, 5).shape == (3, 5)


def test_classifiers_give_the_probabilities_of_their_features() -> None:
    encoder = small_encoder((4, 6)).eval()
    images = torch.rand(5, 3, 32, 32)
    linear = Classifier(encoder, 3)
    features = encoder(images)
    assert torch.allclose(linear.probabilities(images), linear.head(features).softmax(1), atol=1e-6)
    knn = KNNClassifier(encoder, 3, 40)
    knn.bank.copy_(torch.rand(40, 6))
    knn.labels.copy_(torch.arange(40) % 3)
    assert torch.allclose(knn.probabilities(images), knn_probabilities(features, knn.bank, knn.labels, 3), atol=1e-6)
    assert {"bank", "labels"} <= knn.state_dict().keys()


def test_logits_are_float32_when_the_network_is_bf16(pieces: Tensor) -> None:
    classifier = Classifier(small_encoder(), 3).eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            features, found = classifier.encoder(pieces), classifier.probabilities(pieces)
        expected = classifier.head(features).softmax(1)
    assert torch.equal(found, expected)
