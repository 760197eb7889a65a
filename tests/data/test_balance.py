"""Balancing of imbalanced classes."""

from collections import Counter

import numpy as np
import pytest
import torch

from sslrun.augment import generator
from sslrun.data.balance import (
    Balance,
    balanced_method,
    balanced_order,
    class_priors,
    class_ratio,
    effective_number_weights,
    inverse_frequency_weights,
    log_priors,
)

LABELS = torch.tensor([0] * 200 + [1] * 8 + [3] * 6)  # none of class 2, nor of 4


def test_weights_are_those_of_the_paper() -> None:
    """Cui et al. 2019: in inverse proportion to the effective number E = (1 - beta^n) / (1 - beta)."""
    weights = effective_number_weights(LABELS, 5, beta=0.99).double()
    e = {c: sum(0.99**i for i in range(n)) for c, n in ((0, 200), (1, 8), (3, 6))}  # the same sum, term by term
    assert float(weights[1] / weights[0]) == pytest.approx(e[0] / e[1], rel=1e-5)
    assert float(weights[3] / weights[0]) == pytest.approx(e[0] / e[3], rel=1e-5)
    assert weights[[2, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("weighting", [effective_number_weights, inverse_frequency_weights])
def test_the_mean_weight_of_the_images_is_one(weighting: object) -> None:
    assert callable(weighting)
    weights = weighting(LABELS, 5)
    assert float(weights[LABELS].double().mean()) == pytest.approx(1, abs=1e-6)
    assert weighting(torch.arange(30) % 3, 3).tolist() == pytest.approx([1, 1, 1])


def test_weights_of_large_classes_differ_less_than_their_frequencies() -> None:
    labels = torch.tensor([0] * 8000 + [1] * 4000 + [2] * 4)
    by_number, by_frequency = effective_number_weights(labels, 3), inverse_frequency_weights(labels, 3)
    assert float(by_number[1] / by_number[0]) < 1.02
    assert float(by_frequency[1] / by_frequency[0]) == pytest.approx(2)


def test_priors_are_frequencies_and_classes_without_labels_are_not_adjusted() -> None:
    priors = class_priors(LABELS, 5)
    assert priors.tolist() == pytest.approx([200 / 214, 8 / 214, 0, 6 / 214, 0])
    expected = [np.log(200 / 214), np.log(8 / 214), 0, np.log(6 / 214), 0]
    assert log_priors(priors).tolist() == pytest.approx(expected)


def test_sampling_draws_every_class_equally_often_and_its_images_evenly() -> None:
    drawn = balanced_order(LABELS, generator(0))
    assert len(drawn) == len(LABELS)
    assert sorted(LABELS[drawn].bincount(minlength=5).tolist()) == [0, 0, 71, 71, 72]
    times = Counter(drawn.tolist())
    for c, size in ((0, 200), (1, 8), (3, 6)):
        each = [times[int(i)] for i in torch.arange(len(LABELS))[LABELS.eq(c)]]
        assert len(each) == size
        assert max(each) - min(each) <= 1


def test_sampling_is_as_often_in_expectation_and_in_mixed_order() -> None:
    labels = torch.tensor([0] * 9 + [1, 2])
    n = torch.stack([labels[balanced_order(labels, generator(i))].bincount() for i in range(300)]).double()
    assert (n.mean(0) - 11 / 3).abs().max() < 0.1
    first = torch.stack([labels[balanced_order(labels, generator(i))][:4] for i in range(300)]).flatten().bincount()
    assert (first / first.sum() - 1 / 3).abs().max() < 0.06
    seen = {int(i) for k in range(20) for i in balanced_order(labels, generator(k))}
    assert seen == set(range(11))  # a frequent class is another part of its images in every epoch


def test_sampling_depends_on_the_generator_alone() -> None:
    same, again, other = (balanced_order(LABELS, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_more_classes_than_labels_of_an_epoch() -> None:
    assert sorted(balanced_order(torch.tensor([4, 2, 7]), generator(0)).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("balance", ["none", "sampling", "weights", "logit"])
def test_a_given_method_is_kept(balance: Balance) -> None:
    assert balanced_method(balance, LABELS) == balance


def test_auto_balances_above_a_ratio_of_ten_among_the_classes_with_labels() -> None:
    assert class_ratio(LABELS) == pytest.approx(200 / 6)
    assert balanced_method("auto", torch.tensor([0] * 30 + [5] * 3)) == "none"
    chosen = balanced_method("auto", torch.tensor([0] * 31 + [5] * 3))
    assert chosen in ("sampling", "weights", "logit")
    assert balanced_method("auto", LABELS) == chosen
