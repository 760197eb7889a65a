"""Heads of training tasks."""

import itertools

from torch import Tensor, nn

from sslrun.augment import Rng, moved


def mlp(*widths: int, batch_norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Return linear layers from each width to the next, with batch norm and ReLU between them.

    Args:
        widths: of the input, the hidden layers and the output.
        batch_norm: after each hidden layer; without it, the hidden layers have a bias.
        last_norm: batch norm without weights after the last layer, which then has no bias.
    """
    layers: list[nn.Module] = []
    for in_dim, out_dim in itertools.pairwise(widths[:-1]):
        layers.append(nn.Linear(in_dim, out_dim, bias=not batch_norm))
        layers += [nn.BatchNorm1d(out_dim)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm))
    layers += [nn.BatchNorm1d(widths[-1], affine=False)] if last_norm else []
    return nn.Sequential(*layers)


def dropped(x: Tensor, rate: float, rng: Rng, views: int) -> Tensor:
    """Return x with dropout (Srivastava et al. 2014), whose random numbers are those of the step.

    Args:
        x: `views * N x D`, view by view.
        rate: probability of a value to be 0; the others are divided by 1 - rate.
    """
    kept = rng.rand(views, len(x) // views, x.shape[1], dim=1).flatten(0, 1) >= rate
    return x * moved(kept, x.device) / (1 - rate)
