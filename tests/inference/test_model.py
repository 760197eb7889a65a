"""The Python API."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sslrun
from sslrun.augment import Rng
from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.config.commands import WITH_CLASSIFIER, WITH_ENCODER
from sslrun.config.compose import choice_node
from sslrun.device import Device
from sslrun.inference import model as model_module
from sslrun.inference.model import Model
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.models.trained import Trained
from sslrun.run import checkpoint
from tests.helpers import QUICK, Cli, Pixels, runs


def test_a_script_without_a_guard_may_predict_many_files(in_world: Path, photo_files: list[str]) -> None:
    Path("script.py").write_text(
        "import sys\nimport sslrun\nimport sslrun.data.workers as w\nw.WORTH_PROCESSES = 2\n"
        "print([p.class_name for p in sslrun.load(device='cpu').predict(sys.argv[1:])])\n"
    )
    done = subprocess.run([sys.executable, "script.py", *photo_files], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([p.class_name for p in sslrun.load(device="cpu").predict(photo_files)])
    assert "predicting" not in done.stderr


def test_views_of_an_image_do_not_depend_on_the_rest_of_the_batch(in_world: Path, photo_files: list[str]) -> None:
    model = sslrun.load(device="cpu")
    together = model.probabilities(photo_files[:4], views=3)
    alone = np.concatenate([model.probabilities(f, views=3) for f in photo_files[:4]])
    assert np.allclose(together, alone, atol=1e-5)
    assert not np.allclose(together, model.probabilities(photo_files[:4]), rtol=1e-3, atol=0)


def test_a_confidence_equal_to_the_threshold_is_not_unsure(in_world: Path, photo_files: list[str]) -> None:
    """All confidences are equal, and the threshold is fitted to them."""
    from sslrun.evaluation.calibration import tempered, threshold

    model = sslrun.load(device="cpu")
    p = tempered(np.tile([[0.9999, 0.0001]], (60, 1)), 2.7)
    fitted = threshold(p, np.zeros(60, int))
    assert fitted is not None
    model.confidence_threshold = fitted.value
    model.novelty = None
    model._calibrated = lambda pixels, views, batch_size: (p[: len(pixels)], [])  # type: ignore[method-assign]
    assert not any(g.unsure for g in model.predict(photo_files))


def test_the_python_api_predicts_the_same_as_the_command(in_world: Path, cli: Cli, photo_files: list[str]) -> None:
    rows = json.loads(cli("predict", *photo_files, "format=json", "figures=0", *QUICK).out)
    model = sslrun.load(runs("finetune")[0], device="cpu")
    result = model.predict(photo_files)
    assert [(p.image, p.class_name, p.unsure) for p in result] == [(r["image"], r["class"], r["unsure"]) for r in rows]
    assert [p.confidence for p in result] == pytest.approx([r["confidence"] for r in rows], abs=1e-4)
    p = model.probabilities(photo_files)
    assert p.shape == (len(photo_files), 2)
    assert p.sum(1) == pytest.approx(1)
    assert [model.class_names[k] for k in p.argmax(1)] == [r["class"] for r in rows]


def test_loading_does_not_change_the_random_state(in_world: Path) -> None:
    for run in (runs("pretrain")[0], runs("finetune")[0]):
        before = torch.get_rng_state()
        sslrun.load(run, device="cpu")
        assert torch.equal(torch.get_rng_state(), before)


def test_embeddings_of_any_stage(in_world: Path, photo_files: list[str]) -> None:
    model = sslrun.load()
    assert model.embed(photo_files).shape == (len(photo_files), 16)
    assert model.embed(photo_files, stage=1).shape == (len(photo_files), 8)
    assert np.array_equal(model.embed(photo_files, stage=2), model.embed(photo_files))
    assert np.allclose(model.embed(photo_files, batch_size=3), model.embed(photo_files), atol=1e-5)
    with pytest.raises(UserError, match="stage=3: this backbone has stages 1 to 2"):
        model.embed(photo_files, stage=3)


def test_views_are_averaged_and_deterministic(in_world: Path, photo_files: list[str]) -> None:
    model = sslrun.load()
    once, nine = model.probabilities(photo_files), model.probabilities(photo_files, views=9)
    assert not np.allclose(once, nine, atol=1e-4)
    assert np.array_equal(nine, model.probabilities(photo_files, views=9))
    assert nine.sum(1) == pytest.approx(1)


SLOPE, OFFSET = 4.0, 1.5  # logit of "light" by the brightness of an image


class Darker:
    """Halves the brightness of every image."""

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        return images / 2


def set_head(classifier: Classifier) -> Classifier:
    with torch.no_grad():
        classifier.head.weight.zero_()
        classifier.head.weight[1] = SLOPE / 3
        classifier.head.bias.copy_(torch.tensor([0.0, -OFFSET]))
    return classifier


def model(temperature: float = 1.0, confidence_threshold: float | None = None) -> Model:
    """Return a classifier of dark and light images, whose probability of light is `light` of the brightness."""
    encoder = Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8)
    config = {
        "dataset": {"image_size": 8, "resize": "crop", "channels": "rgb", "range": None},
        "augment": {"_target_": f"{__name__}.Darker"},
    }
    network = Trained(
        encoder,
        config,
        Path("run/best.pt"),
        set_head(Classifier(encoder, 2)),
        ["dark", "light"],
        temperature,
        confidence_threshold,
    )
    return Model(
        network,
        Device(
            name="cpu", precision="fp32", memory_format="contiguous", compile=None, deterministic=False, threads=None
        ),
    )


def light(brightness: float, temperature: float = 1.0) -> float:
    return 1 / (1 + math.exp(-(SLOPE * brightness / 255 - OFFSET) / temperature))


def shades(*brightness: int) -> list[np.ndarray]:
    return [np.full((8, 8, 3), b, np.uint8) for b in brightness]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_and_confidences_are_calibrated(temperature: float) -> None:
    result, images = model(temperature), shades(0, 100, 250)
    expected = [light(b, temperature) for b in (0, 100, 250)]
    assert result.probabilities(images)[:, 1] == pytest.approx(expected, abs=1e-5)
    predictions = result.predict(images)
    assert [p.class_name for p in predictions] == ["dark" if e < 0.5 else "light" for e in expected]
    assert [p.confidence for p in predictions] == pytest.approx([max(e, 1 - e) for e in expected], abs=1e-4)
    assert [g.class_name for g in predictions[0].top] == ["dark", "light"]


@pytest.mark.parametrize("views", [1, 2, 3, 6])
def test_probabilities_are_averaged_over_the_image_and_its_views(views: int) -> None:
    expected = [(light(b) + (views - 1) * light(b / 2)) / views for b in (40, 200)]
    assert model().probabilities(shades(40, 200), views=views)[:, 1] == pytest.approx(expected, abs=1e-5)
    confidence = model().predict(shades(200), views=views)[0].confidence
    assert confidence == pytest.approx(max(expected[1], 1 - expected[1]), abs=1e-4)


def test_the_mean_over_views_is_calibrated() -> None:
    mean = (light(200) + light(100)) / 2
    expected = 1 / (1 + ((1 - mean) / mean) ** (1 / 3))
    assert model(3.0).probabilities(shades(200), views=2)[0, 1] == pytest.approx(expected, abs=1e-5)


class Drawing:
    """Changes nothing, and remembers the random numbers of each view."""

    draws: ClassVar[list[float]] = []

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        self.draws.append(float(rng.rand()))
        return images


def test_each_random_view_of_an_image_is_drawn_anew() -> None:
    drawing = model()
    drawing.network.config["augment"] = {"_target_": f"{__name__}.Drawing"}
    Drawing.draws.clear()
    drawing.probabilities(shades(40), views=5)
    assert len(set(Drawing.draws)) == len(Drawing.draws) == 4


@pytest.mark.parametrize(
    ("confidence_threshold", "threshold", "unsure"),
    [
        (0.9999, "auto", [True, True, True]),
        (0.80, "auto", [False, True, False]),
        (0.85, "auto", [True, True, False]),
        (None, "auto", [None, None, None]),
        (0.9999, None, [None, None, None]),
        (0.9999, 0.80, [False, True, False]),
        (None, 0.9999, [True, True, True]),
        (None, 0.0, [False, False, False]),
    ],
)
def test_a_prediction_below_the_threshold_is_unsure(
    confidence_threshold: float | None, threshold: Any, unsure: list[bool | None]
) -> None:
    """`auto` is the threshold that was fitted on validation."""
    result = model(confidence_threshold=confidence_threshold).predict(shades(0, 100, 250), unsure=threshold)
    assert [p.confidence for p in result] == pytest.approx([0.8176, 0.5172, 0.9184], abs=1e-3)
    assert [p.unsure for p in result] == unsure
    same = model().predict(shades(0, 100, 250), unsure=result[0].confidence)  # as it is shown
    assert [p.unsure for p in same] == [False, True, False]


@pytest.mark.parametrize(
    ("metrics", "temperature"), [({"val/temperature": 2.5, "val/confidence_threshold": 0.8}, 2.5), ({}, 1)]
)
def test_a_loaded_run_predicts_with_the_calibration_of_its_best_state(
    metrics: dict[str, float], temperature: float
) -> None:
    """`last.pt` has a different one, and is not read."""
    backbone = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [4]}
    device = {"_target_": "sslrun.device.Device", "name": "cpu", "precision": "fp32", "memory_format": "contiguous"}
    config = {
        "backbone": backbone,
        "dataset": {"image_size": 8, "resize": "crop", "channels": "rgb", "range": None},
        "device": device,
    }
    encoder = build_encoder(backbone, 8, [0.5] * 3, [0.5] * 3)
    classifier = Classifier(encoder, 2).eval()
    state = {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    content = {"config": config, "class_names": ["dark", "light"], "downstream": "classifier.encoder", "step": 5}
    Path("run").mkdir()
    checkpoint.save(Path("run/best.pt"), {**content, "metrics": metrics, "model": state})
    other = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    checkpoint.save(Path("run/last.pt"), {**content, "metrics": {"val/temperature": 9.0}, "model": other})
    summary = {"stage": "finetune", "status": "finished", "config": config, "overrides": [], "wall_time_seconds": 1.0}
    write_json(Path("run/summary.json"), summary)
    result = sslrun.load("run", device="cpu")
    with torch.no_grad():
        logits = classifier.head(encoder(torch.full((1, 3, 8, 8), 200 / 255)))
    assert result.probabilities(shades(200)) == pytest.approx((logits / temperature).softmax(1).numpy(), abs=1e-5)
    assert (result.temperature, result.confidence_threshold) == (temperature, metrics.get("val/confidence_threshold"))


def test_as_many_classes_as_requested_are_returned_with_rounded_confidences() -> None:
    for top, count in ((1, 1), (2, 2), (9, 2)):
        (prediction,) = model().predict(shades(0), top=top)
        assert [g.class_name for g in prediction.top] == ["dark", "light"][:count]
        assert [g.confidence for g in prediction.top] == [round(1 - light(0), 4), round(light(0), 4)][:count]
    assert prediction.image is None


def test_predictions_and_features_belong_to_their_images_in_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where files cannot be read; features are the brightness."""
    monkeypatch.setattr(model_module, "cores", lambda: 1)
    brightness = [10, 200, 30, 250, 90, 170, 60]
    files = [f"{b}.png" for b in brightness]
    for b, file in zip(brightness, files, strict=True):
        Image.fromarray(shades(b)[0]).save(file)
    files[2:2] = ["gone.png"]
    expected = [light(b) for b in brightness]
    for batch_size in (1, 3, 64):
        result = model().predict(files, batch_size=batch_size)
        assert [p.image for p in result] == files
        assert [p.error for p in result] == [None, None, "no such file", None, None, None, None, None]
        assert (result[2].top, result[2].unsure, result[2].class_name, result[2].confidence) == ([], None, None, None)
        readable = [p for p in result if not p.error]
        shown = [p.confidence if p.class_name == "light" else 1 - (p.confidence or 0) for p in readable]
        assert shown == pytest.approx(expected, abs=1e-4)
        features, bad = model().embed_readable(files, batch_size=batch_size)
        assert bad == {"gone.png": "no such file"}
        assert features[:, 0] * 255 == pytest.approx(brightness, abs=1e-3)
        arrays = shades(*brightness)
        assert model().probabilities(arrays, batch_size=batch_size)[:, 1] == pytest.approx(expected, abs=1e-5)
        assert model().embed(arrays, batch_size=batch_size)[:, 2] * 255 == pytest.approx(brightness, abs=1e-3)
    with pytest.raises(UserError, match=r"^gone\.png: no such file$"):
        model().probabilities(files)
    names = np.array(files[:2])
    assert model().embed(names)[:, 0] * 255 == pytest.approx(brightness[:2], abs=1e-3)
    assert model().embed(Path(files[1])).shape == (1, 3)


def test_no_images_give_no_rows() -> None:
    assert model().probabilities([]).shape == (0, 2)
    assert model().embed([]).shape == (0, 3)
    assert model().predict([]) == []


def test_images_are_resized_as_in_training() -> None:
    """Of a wide image, the middle half is light, which is all that a crop keeps."""
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200
    Image.fromarray(wide).save("wide.png")
    for resize, mean in (("crop", 200), ("pad", (100 + 128) / 2), ("squash", 100)):
        resized = model()
        resized.network.config["dataset"]["resize"] = resize
        for item in (wide, "wide.png"):
            assert resized.embed(item)[0, 0] * 255 == pytest.approx(mean, abs=8)
    gray = model()
    gray.network.config["dataset"]["channels"] = "gray"
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save("red.png")
    for item in (red, "red.png"):
        assert gray.embed(item)[0] * 255 == pytest.approx([60, 60, 60], abs=1)


class TwoStages(nn.Module):
    """A backbone whose first map is dark."""

    channels = (3, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x / 4, x]


def test_stages_are_counted_from_1_and_the_last_is_the_default() -> None:
    staged = model()
    staged.network.encoder = Encoder(TwoStages(), [0.0] * 3, [1.0] * 3, image_size=8)
    for stage, expected in ((None, 200), (1, 50), (2, 200)):
        assert staged.embed(shades(200), stage=stage)[0, 0] * 255 == pytest.approx(expected, abs=1e-3)
    for stage in (0, -1, 3):
        with pytest.raises(UserError, match=f"stage={stage}: this backbone has stages 1 to 2"):
            staged.embed(shades(200), stage=stage)
    with pytest.raises(UserError, match="stage='1': must be an integer or None"):
        staged.embed(shades(200), stage="1")  # type: ignore[arg-type]


def test_a_network_that_was_only_pretrained_embeds_but_does_not_predict() -> None:
    pretrained = model()
    pretrained.network.classifier = None
    assert pretrained.embed(shades(200)).shape == (1, 3)
    with pytest.raises(UserError, match=r"run was only pretrained .* sslrun finetune init=run$"):
        pretrained.predict(shades(200))


def test_latest_is_the_newest_classifier_and_commands_choose_their_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands show progress and may start processes; the Python API does not."""
    requested: list[tuple[Any, Any]] = []
    network = model().network
    network.config["device"] = {"precision": "fp32", "memory_format": "contiguous"}
    monkeypatch.setattr(model_module, "find_run", lambda run, stages, trained=False: requested.append((run, stages)))
    monkeypatch.setattr(model_module, "load_network", lambda _: network)
    assert not sslrun.load(device="cpu")._command
    sslrun.load("some run", device="cpu")
    node = choice_node("device", "cpu")
    assert model_module.open_model("latest", node)._command
    assert model_module.open_model("latest", node, ("finetune",)).device.memory_format == "contiguous"
    assert requested == [
        ("latest", WITH_CLASSIFIER), ("some run", WITH_ENCODER), ("latest", WITH_ENCODER), ("latest", ("finetune",)),
    ]  # fmt: skip
