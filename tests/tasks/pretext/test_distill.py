"""Distillation: whitened targets, features of the original files, their cache, and learning."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from sslrun.augment import Augment
from sslrun.base.errors import UserError
from sslrun.data.cache import decode_all, resize_all
from sslrun.data.images import Images
from sslrun.models import teacher_features as module
from sslrun.models.teacher import Teacher, node_of, teacher_name, teacher_of
from sslrun.models.teacher_features import teacher_features
from sslrun.models.weights import load_state
from sslrun.run.find import LAST
from sslrun.tasks.pretext.distill import Distill
from sslrun.training import estimate
from tests.helpers import CPU, IDENTITY, OFTEN, cpu, only_run, rng, run_forked, runs, same, small_encoder, whole

SIZE = 32


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "native_precision", lambda _: "fp32")  # the same on every machine


@pytest.fixture
def weights(teacher_weights: str) -> str:
    return teacher_weights


@pytest.fixture
def images(photos: Path) -> Images:
    files = [str(p) for p in sorted(photos.glob("*/*.jpg"))]
    return decode_all(files, SIZE, "crop", "rgb").images()


def distill(weights: str, components: int = 8) -> Distill:
    torch.manual_seed(0)
    return Distill(
        small_encoder(),
        SIZE,
        teacher="test_resnet",
        weights=weights,
        components=components,
        augment=Augment(**IDENTITY),
    )


def test_targets_are_white_and_ordered_as_the_principal_components(weights: str, images: Images) -> None:
    task = distill(weights)
    task.prepare(images, CPU)
    assert task.features is not None
    targets = task.targets(torch.arange(len(images))).numpy()
    np.testing.assert_allclose(targets.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(targets.T), np.eye(8), atol=1e-2)
    features = task.features.astype(np.float64)
    _, singular, axes = np.linalg.svd(features - features.mean(0), full_matrices=False)
    correlation = np.corrcoef(targets.T, ((features - features.mean(0)) @ axes[:8].T).T)[:8, 8:]
    np.testing.assert_allclose(np.abs(correlation), np.eye(8), atol=1e-2)
    root = np.sqrt(singular[:8])
    np.testing.assert_allclose(task.weight.numpy(), root / root.mean(), rtol=1e-2)
    rows = torch.tensor([3, 3, 0])
    np.testing.assert_allclose(task.targets(rows).numpy(), targets[rows], atol=1e-5)


def test_the_loss_is_1_for_a_prediction_of_the_mean(weights: str, images: Images) -> None:
    task = distill(weights)
    task.prepare(images, CPU)
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    n = len(images)
    out = task({"images": images[:].float() / 255, "rows": torch.arange(n)}, rng())
    assert out["loss"].item() == pytest.approx((n - 1) / n, rel=1e-2)
    assert float(out["explained_variance"]) == pytest.approx(0, abs=1e-3)


def test_with_fewer_images_than_components_the_others_have_no_weight(weights: str, images: Images) -> None:
    task = distill(weights, 16)
    task.prepare(images.take(np.arange(5)), CPU)
    assert (task.weight[:4] > 0).all()
    assert (task.weight[4:] == 0).all()
    assert torch.isfinite(task.targets(torch.arange(5))).all()


def features_of(teacher: Teacher, images: Images) -> np.ndarray:
    return teacher_features(teacher, images, CPU)[0]


def plain_features(weights: str, pixels: Tensor) -> np.ndarray:
    teacher = teacher_of("test_resnet", weights)
    with torch.no_grad():
        return teacher.encoder(pixels.float() / 255).numpy()


def test_the_teacher_reads_the_original_files_at_its_own_size(weights: str, photos: Path, images: Images) -> None:
    teacher = teacher_of("test_resnet", weights)
    assert teacher.image_size == 160
    files = [str(p) for p in sorted(photos.glob("*/*.jpg"))]
    own = decode_all(files, 160, "crop", "rgb").images()
    expected = plain_features(weights, own[:])
    found = features_of(teacher, images)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)
    small = torch.nn.functional.interpolate(images[:].float(), (160, 160))
    assert np.abs(plain_features(weights, small) - expected).max() > 10 * np.abs(found - expected).max()


def test_rows_follow_the_order_of_the_images_whatever_arrays_they_are_in(weights: str, images: Images) -> None:
    teacher = teacher_of("test_resnet", weights)
    array = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    both = images + resize_all(array, SIZE, "rgb").images()
    order = np.array([2, len(images) + 3, 0, 2, len(images)])
    every = features_of(teacher, both)
    assert len(every) == len(images) + 4
    np.testing.assert_allclose(features_of(teacher, both.take(order)), every[order], rtol=1e-2, atol=1e-3)


def test_an_unreadable_file_has_no_row(weights: str, photos: Path, tmp_path: Path) -> None:
    files = [str(p) for p in sorted(photos.glob("*/*.jpg"))[:6]]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    teacher = teacher_of("test_resnet", weights)
    some = decode_all([files[0], str(bad), *files[1:]], SIZE, "crop", "rgb").images()
    expected = features_of(teacher, decode_all(files, SIZE, "crop", "rgb").images())
    np.testing.assert_allclose(features_of(teacher, some), expected, rtol=1e-2, atol=1e-3)


def test_features_are_computed_once_and_damaged_ones_again(
    weights: str, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    computed = module._computed

    def counted(*arguments: Any) -> np.ndarray:
        calls.append(1)
        return computed(*arguments)

    monkeypatch.setattr(module, "_computed", counted)
    teacher = teacher_of("test_resnet", weights)
    first = features_of(teacher, images)
    assert np.array_equal(features_of(teacher, images), first)
    assert len(calls) == 1
    (file,) = (tmp_path / "cache/features").glob("*/features.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert np.array_equal(features_of(teacher, images), first)
    assert len(calls) == 2
    assert "is damaged (wrong checksum); computing the features again." in caplog.text
    features_of(teacher, images.take(np.arange(7)))  # other images
    with torch.no_grad():
        next(teacher.encoder.parameters()).add_(1.0)
    features_of(teacher, images)  # another teacher
    assert len(calls) == 4


def test_the_features_are_those_of_the_files_for_a_student_of_any_size(
    weights: str, photos: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of("test_resnet", weights)
    first = features_of(teacher, images)
    monkeypatch.setattr(module, "_computed", lambda *_: pytest.fail("computed again"))
    files = [str(p) for p in sorted(photos.glob("*/*.jpg"))]
    assert np.array_equal(features_of(teacher, decode_all(files, 16, "crop", "rgb").images()), first)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        features_of(teacher, decode_all(files, SIZE, "squash", "rgb").images())


def test_the_precision_of_the_student_does_not_change_the_features(
    weights: str, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of("test_resnet", weights)
    first = features_of(teacher, images)
    monkeypatch.setattr(module, "_computed", lambda *_: pytest.fail("computed again"))
    for precision in ("fp32", "bf16"):
        device = cpu(precision=precision, memory_format="contiguous")
        assert np.array_equal(teacher_features(teacher, images, device)[0], first)
        assert device.precision == precision


def test_a_file_that_became_unreadable_is_one_line_and_nothing_is_kept(
    weights: str, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "own")
    files = [str(p) for p in sorted((tmp_path / "own").glob("*/*.jpg"))]
    images = decode_all(files, SIZE, "crop", "rgb").images()
    Path(files[2]).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\.jpg: .*; it could be read before"):
        teacher_features(teacher_of("test_resnet", weights), images, CPU)
    assert not list((tmp_path / "cache/features").glob("*/features.npy"))


def test_a_run_of_other_images_is_no_teacher(weights: str, photos: Path) -> None:
    teacher = replace(teacher_of("test_resnet", weights), source="RUN", settings={"channels": "gray", "resize": "crop"})
    files = [str(p) for p in sorted(photos.glob("*/*.jpg"))]
    with pytest.raises(UserError, match=r"pretext\.teacher=RUN was trained with dataset\.channels=gray, .* have rgb"):
        teacher.refuse_other_images(decode_all(files, SIZE, "crop", "rgb").images())
    teacher.refuse_other_images(decode_all(files, SIZE, "crop", "gray").images())


def test_the_time_that_the_cache_saves_is_kept_with_the_features(
    weights: str, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 17.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    teacher = teacher_of("test_resnet", weights)
    monkeypatch.setattr(module, "_computed", lambda *_: np.zeros((len(images), 64), np.float16))
    monkeypatch.setattr(type(teacher.encoder), "feature_dim", 64, raising=False)
    assert teacher_features(teacher, images, CPU)[1] == 0.0
    assert teacher_features(teacher, images, CPU)[1] == 7.5


def test_a_teacher_is_a_network_a_file_or_a_run(weights: str, in_world: Path) -> None:
    run = runs("pretrain")[0]
    assert teacher_of(str(run), None).image_size == 32
    assert teacher_of(None, None).name == "tf_efficientnet_lite0"
    for name, file, words in (
        ("resnot", None, r"pretext\.teacher=resnot: no run, and no network of timm or torchvision"),
        ("tf_efficientnet_lite00", None, r"torchvision; did you mean tf_efficientnet_lite0\?"),
        ("test_resnet", "none.pth", r"pretext\.weights=none\.pth: no such file"),
        ("test_convnext", weights, "these are not weights of test_convnext"),
        (None, weights, r"pretext\.weights=.* needs pretext\.teacher"),
        (str(run), weights, "has no effect on a run"),
    ):
        with pytest.raises(UserError, match=words):
            teacher_of(name, file)


def test_a_network_of_both_libraries_is_that_of_timm_unless_the_library_is_named() -> None:
    nodes = {name: node_of(name, None) for name in ("resnet50", "timm/resnet50", "torchvision/resnet50", "googlenet")}
    assert {name: (n["_target_"].split(".")[-2], n["name"]) for name, n in nodes.items()} == {
        "resnet50": ("timm", "resnet50"), "timm/resnet50": ("timm", "resnet50"),
        "torchvision/resnet50": ("torchvision", "resnet50"), "googlenet": ("torchvision", "googlenet"),
    }  # fmt: skip
    assert [teacher_name(n) for n in nodes.values()] == ["resnet50", "resnet50", "torchvision/resnet50", "googlenet"]
    assert teacher_name({"_target_": "sslrun.models.backbones.resnet18.resnet18", "stem": "auto"}) is None
    for unknown in ("timm/googlenet", "torchvision/tf_efficientnet_lite0", "keras/resnet50"):
        with pytest.raises(UserError, match=f"pretext.teacher={unknown}: no run, and no network of timm or torchvis"):
            node_of(unknown, None)


def test_neither_the_teacher_nor_its_features_are_in_the_checkpoint(weights: str) -> None:
    state = distill(weights).state_dict()
    assert {k for k in state if not k.startswith("encoder.")} == {
        "head.weight", "head.bias", "mean", "directions", "weight", "teacher"
    }  # fmt: skip


def test_the_student_learns_what_the_teacher_sees(weights: str, images: Images) -> None:
    task = distill(weights)
    task.prepare(images, CPU)
    batch = {"images": images[:].float() / 255, "rows": torch.arange(len(images))}
    optimizer = torch.optim.AdamW(task.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        out = task(batch, rng())
        out["loss"].backward()
        optimizer.step()
    assert float(out["explained_variance"]) > 0.5


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(
    weights: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_forked(
        "pretrain", "pretext=distill", "pretext.teacher=test_resnet", f"pretext.weights={weights}", "backbone=smallcnn",
        "backbone.widths=[8,16]", "dataset=folder", f"dataset.root={photos}", "dataset.image_size=32",
        "train.batch_size=16", "train.evaluations=2", "train.steps=8", *OFTEN, folder="straight",
    )  # fmt: skip
    shutil.copytree("straight", "resumed")
    run = only_run("resumed")
    (run / LAST).unlink()  # as if it was killed after step 7
    output = run_forked("pretrain", f"resume={run.relative_to('resumed')}", folder="resumed")
    assert "Resuming after step 7" in output
    assert same(whole(run), whole(only_run("straight")))


def test_a_checkpoint_of_another_teacher_is_refused(weights: str, tmp_path: Path) -> None:
    task = distill(weights)
    torch.manual_seed(1)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"learned from another teacher than test_resnet at 160 px: .*other\.pth"):
        load_state(distill(str(tmp_path / "other.pth")), task.state_dict(), "last.pt")
    load_state(distill(weights), task.state_dict(), "last.pt")


def test_a_teacher_that_sees_no_difference_is_refused(weights: str, images: Images) -> None:
    with pytest.raises(UserError, match=r"teacher test_resnet at 160 px: .* its features are infinite, or the same"):
        distill(weights).prepare(images.take(np.zeros(20, int)), CPU)


def test_a_teacher_of_gray_images_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", in_chans=1).state_dict(), tmp_path / "gray.pth")
    with pytest.raises(UserError, match=r"conv1.*expected \(.*, 3, 3, 3\), found \(.*, 1, 3, 3\)"):
        teacher_of("test_resnet", str(tmp_path / "gray.pth"))


def test_a_teacher_that_needs_more_than_half_of_the_memory_is_refused(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslrun.models.teacher.physical_memory", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"pretext\.teacher=test_resnet has .* of weights, too much for the memory"):
        teacher_of("test_resnet", weights)


def test_an_estimate_counts_the_pass_of_the_teacher_and_caches_nothing(
    weights: str, images: Images, tmp_path: Path
) -> None:
    node = {
        "_target_": "sslrun.tasks.pretext.distill.Distill", "teacher": "test_resnet", "weights": weights,
        "components": 8, "augment": IDENTITY | {"_target_": "sslrun.augment.Augment"},
    }  # fmt: skip
    backbone = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [8, 16]}
    device = {
        "_target_": "sslrun.device.Device", "name": "cpu", "precision": "fp32", "memory_format": "contiguous",
        "compile": None, "deterministic": False, "threads": None,
    }  # fmt: skip
    optimizer = {"_target_": "sslrun.training.optimizers.adamw", "weight_decay": 0.0, "betas": [0.9, 0.999]}
    found = estimate.pretraining(images, node, backbone, optimizer, device, SIZE, 32)
    assert found.preparation > 0
    assert found.images_per_second > 0
    assert not (tmp_path / "cache/features").exists()


def test_the_teachers_pass_shows_one_progress_bar(
    weights: str, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[str] = []
    progress = module.progress

    def counted(what: str, *arguments: Any) -> Any:
        bars.append(what)
        return progress(what, *arguments)

    monkeypatch.setattr(module, "progress", counted)
    monkeypatch.setattr("sslrun.data.cache.progress", counted)
    features_of(teacher_of("test_resnet", weights), images)
    assert bars == ["teacher"]
