"""Losses of lightly 1.6 for fixed random vectors, as references for the tests; runs in a separate environment.

    python benchmarks/peer_scripts/losses.py > tests/tasks/pretext/lightly_losses.json

The vectors are those of `numpy.random.default_rng(0).standard_normal((4, 12, 8))`, in this order: two views, and the
teacher's outputs for them.
"""

import json
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss


def main() -> None:
    """Print the losses by the name of the task."""
    a, b, s, t = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 12, 8))).float()
    cosine = NegativeCosineSimilarity()
    queue = NTXentLoss(temperature=0.2, memory_bank_size=(24, 8))
    queue.memory_bank.bank = F.normalize(torch.cat([s, t]), dim=1)
    queue.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    values = {
        "moco": queue(a, b),
        "byol": 2 + cosine(a, t) + cosine(b, s),
        "simsiam": 0.5 * (cosine(a, t) + cosine(b, s)),
        "barlowtwins": BarlowTwinsLoss(lambda_param=0.005)(a, b),
        "vicreg": VICRegLoss()(a, b),
        "swav": SwaVLoss()([F.normalize(a, dim=1), F.normalize(b, dim=1)], []),
        "dino": DINOLoss(8)([s, t], [a, b]),
    }
    print(json.dumps({"lightly": version("lightly"), **{k: round(float(v), 6) for k, v in values.items()}}, indent=1))


if __name__ == "__main__":
    main()
