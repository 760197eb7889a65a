"""Vectors, and losses of them that lightly computes (benchmarks/peer_scripts/losses.py), as references."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LIGHTLY = json.loads((Path(__file__).parent / "lightly_losses.json").read_text())


def vectors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return two views, and the teacher's outputs for them, `12 x 8` each."""
    a, b, s, t = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 12, 8))).float()
    return a, b, s, t


def dot(x: Tensor, y: Tensor) -> float:
    return sum(float(p) * float(q) for p, q in zip(x, y, strict=True))


def cosine(x: Tensor, y: Tensor) -> float:
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))
