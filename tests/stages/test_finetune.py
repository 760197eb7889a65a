"""Which settings of `sslrun finetune` the training gets."""

from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.stages import finetune
from sslrun.tasks.finetuning.supervised import Finetuning
from tests.conftest import QUICK, Cli


@pytest.mark.parametrize("init", ["latest", "scratch"])
def test_the_freeze_and_the_backbone_rate_are_for_pretrained_networks_alone(
    init: str, in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[Finetuning] = []
    rates: list[float] = []

    def fit(task: Finetuning, batches: Any, optimizer: Any, *_: Any) -> None:
        tasks.append(task)
        rates.extend(group["rate"] for group in optimizer.param_groups)
        raise UserError("no training here")

    monkeypatch.setattr(finetune, "fit", fit)
    settings = ("label_smoothing=0.3", "backbone_rate=0.2", "freeze_fraction=0.5", "freeze_batch_norm_below=100")
    result = cli("finetune", f"init={init}", "mode=finetune", "pooling=average", *settings, *QUICK, "train.steps=8")
    assert result.lines()[-1].endswith("no training here")
    (task,) = tasks
    pretrained = init == "latest"
    assert task.label_smoothing == 0.3
    assert task.freeze_steps == (4 if pretrained else 0)
    assert task.freeze_batch_norm == pretrained
    assert task.backbone_rate == (0.2 if pretrained else 1)
    assert set(rates) == ({0.2, 1} if pretrained else {1})
