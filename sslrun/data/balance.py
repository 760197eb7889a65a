"""Training on imbalanced classes: sampling, class weights and logit adjustment, from the labels of the training images.

Classes without labels are never sampled, and have weight 0.
"""

from typing import Literal

import torch
from torch import Tensor

Balance = Literal["none", "sampling", "weights", "logit"]

IMBALANCED = 10.0  # ratio of the largest to the smallest class above which `auto` balances
BALANCED_BY: Balance = "weights"  # what `auto` chooses then: measured, see benchmarks/README.md
BETA = 0.999  # of effective numbers


def class_ratio(labels: Tensor) -> float:
    """Return the ratio of the largest to the smallest class among those that occur in the labels, N."""
    n = labels.unique(return_counts=True)[1]
    return float(n.max() / n.min())


def balanced_method(balance: Balance | Literal["auto"], labels: Tensor) -> Balance:
    """Return the method of balancing: `auto` is none up to a ratio of 10 between the largest and smallest class."""
    if balance != "auto":
        return balance
    return BALANCED_BY if class_ratio(labels) > IMBALANCED else "none"


def effective_number_weights(labels: Tensor, classes: int, beta: float = BETA) -> Tensor:
    """Return class weights `(1 - beta) / (1 - beta^n)` for n labels, scaled (Cui et al. 2019, eq. 2).

    Args:
        labels: N.
        classes: number of classes.

    Returns:
        `classes` weights, scaled so that their mean over the N images is 1.
    """
    n = labels.bincount(minlength=classes).double()
    return _scaled((1 - beta) / (1 - beta**n), n)


def inverse_frequency_weights(labels: Tensor, classes: int) -> Tensor:
    """Return class weights in inverse proportion to the number of labels: in expectation, class-balanced sampling.

    Args and return value: as for `effective_number_weights`.
    """
    n = labels.bincount(minlength=classes).double()
    return _scaled(1 / n, n)


def _scaled(weights: Tensor, n: Tensor) -> Tensor:
    weights = torch.where(n > 0, weights, 0.0)
    return (weights * n.sum() / (weights * n).sum()).float()


def class_priors(labels: Tensor, classes: int) -> Tensor:
    """Return the frequency of each class in the labels, `classes`."""
    return (labels.bincount(minlength=classes).double() / len(labels)).float()


def log_priors(priors: Tensor) -> Tensor:
    """Return the logarithms of the class priors, which logit adjustment adds to the logits in the loss.

    A classifier whose adjusted logits fit the labels predicts as if all classes were equally frequent, when its logits
    are not adjusted (Menon et al. 2021, eq. 10, with tau = 1). A class without labels has 0, so that it is learned
    never to be predicted.
    """
    return torch.where(priors > 0, priors, 1.0).log()


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return an epoch of class-balanced sampling (Kang et al. 2020, section 3): N indices, as often from every class.

    The numbers of images of two classes differ by at most 1. Within a class no image is repeated before all others have
    been drawn.

    Args:
        labels: N, on the CPU.
        generator: source of the random numbers.
    """
    present = labels.unique()
    each, rest = divmod(len(labels), len(present))
    one_more = torch.randperm(len(present), generator=generator) < rest
    rows = []
    for c, more in zip(present, one_more.tolist(), strict=True):
        of_class, n = (labels == c).nonzero().squeeze(1), each + more
        turns = [of_class[torch.randperm(len(of_class), generator=generator)] for _ in range(-(-n // len(of_class)))]
        rows.append(torch.cat(turns)[:n] if turns else of_class[:0])
    drawn = torch.cat(rows)
    return drawn[torch.randperm(len(drawn), generator=generator)]
