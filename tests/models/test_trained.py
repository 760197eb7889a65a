from pathlib import Path

import torch

from sslrun.models.initialization import resolve
from sslrun.models.trained import load_network
from sslrun.runs import checkpoint
from tests.helpers import runs


def test_a_checkpoint_names_the_downstream_encoder(in_world: Path) -> None:
    """For example the teacher, where there is also a student."""
    run = runs("pretrain")[0]
    content = checkpoint.load(run / "last.pt")
    encoder = {k.removeprefix("encoder."): v for k, v in content["model"].items() if k.startswith("encoder.")}
    both = {f"encoder.{k}": torch.zeros_like(v) for k, v in encoder.items()}
    both |= {f"teacher.encoder.{k}": v for k, v in encoder.items()}
    checkpoint.save(run / "last.pt", {**content, "model": both, "downstream": "teacher.encoder"})
    loaded = load_network(run).encoder.state_dict()
    weights = resolve(str(run), {}, {}, {}).weights
    assert weights is not None
    assert weights.keys() == loaded.keys() == encoder.keys()
    assert all(torch.equal(v, loaded[k]) and torch.equal(v, weights[k]) for k, v in encoder.items())
