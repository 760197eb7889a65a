"""What a classifier costs: the time of a prediction and the size of its network."""

import shutil
from pathlib import Path

import pytest
import torch

from sslrun.config.types import Node
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.study import costs
from sslrun.study.costs import megabytes, milliseconds, with_costs
from sslrun.study.results import Row
from tests.helpers import CPU, Cli, row, runs, small_encoder

DEVICE: Node = {"_target_": "sslrun.device.Device", "name": "cpu", "precision": "fp32", "memory_format": "contiguous",
                "compile": None, "deterministic": False, "threads": 1}  # fmt: skip


def test_the_size_is_that_of_all_numbers_of_the_network() -> None:
    encoder = small_encoder()
    own = sum(t.nbytes for t in encoder.state_dict().values())
    d = encoder.feature_dim
    assert megabytes(Classifier(encoder, 5)) == pytest.approx((own + 4 * 5 * (d + 1)) / 1e6)
    bank = megabytes(KNNClassifier(encoder, 5, 700)) - megabytes(KNNClassifier(encoder, 5, 300))
    assert bank == pytest.approx((400 * (4 * d + 8)) / 1e6)


def test_the_time_is_the_median_of_batches_of_64_images_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of 9, 1, 2, 6, 4 and 3 s; the network sees 64 images at a time."""
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 22.0, 30.0, 36.0, 40.0, 44.0, 50.0, 53.0])
    seen: list[tuple[int, ...]] = []
    classifier = Classifier(small_encoder(), 3)
    classifier.encoder.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    assert milliseconds(classifier, 32, CPU) == pytest.approx(3000 / 64)
    assert seen == [(64, 3, 32, 32)] * 6


def test_networks_that_are_the_same_are_measured_once(in_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def counted(classifier: torch.nn.Module, image_size: int, device: object) -> float:
        measured.append(image_size)
        return float(len(measured))

    monkeypatch.setattr(costs, "milliseconds", counted)
    run = str(runs("finetune")[0])

    def of(mode: str, **known: object) -> Row:
        return row("simclr", mode, finetuned=run, **known)

    rows = [of("probe"), of("finetune"), of("finetune", image_size=64), of("knn"), of("knn", labels_train=40)]
    made = with_costs([*rows, of("probe", seed=3)], DEVICE)
    assert [r.ms_per_image for r in made] == [1.0, 1.0, 2.0, 3.0, 4.0, 1.0]
    assert measured == [32, 64, 32, 32]
    assert {r.megabytes for r in made} == {made[0].megabytes}
    assert made[0].megabytes is not None
    assert [r.seed for r in made] == [0] * 5 + [3]


def test_a_network_whose_weights_were_deleted_is_measured_on_another_run(
    in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = runs("finetune")[0], Path("outputs/finetune/other")
    shutil.copytree(run, other)
    (run / "best.pt").unlink()
    deleted, intact = (row("simclr", "probe", finetuned=str(r)) for r in (run, other))
    monkeypatch.setattr(costs, "milliseconds", lambda *_: 2.0)
    assert with_costs([deleted], DEVICE) == [deleted]
    found = with_costs([deleted, intact, deleted], DEVICE)
    assert [r.ms_per_image for r in found] == [2.0] * 3
    assert {r.megabytes for r in found} == {found[1].megabytes}
    assert found[1].megabytes
    assert [r.finetuned for r in found] == [str(run), str(other), str(run)]
