"""`sslrun export`: export a classifier or its backbone for use without sslrun."""

import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sslrun.base.console import log, quietly
from sslrun.base.errors import UserError
from sslrun.base.files import creating, new_file
from sslrun.base.text import counted
from sslrun.base.version import __version__
from sslrun.config.commands import WITH_CLASSIFIER, WITH_ENCODER
from sslrun.config.nodes import network_name
from sslrun.data.dataset import load_train
from sslrun.device import Device
from sslrun.evaluation import calibration
from sslrun.inference.inputs import named_images
from sslrun.inference.model import Model
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder, average
from sslrun.models.features import probabilities
from sslrun.models.trained import load_network
from sslrun.run.named import find_run
from sslrun.run.run import Run

CHECKED, BATCH = 500, 50  # images to check an export on, and their batch size
TOLERANCE = 1e-4
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
METADATA = "sslrun.json"  # extra file in a torch_export archive


class Exported(nn.Module):
    """The exported network: maps uint8 images, `N x 3 x S x S`, to probabilities or features.

    Args:
        encoder: in fp32 on the CPU.
        head: head of the classifier; None for the backbone only.
        temperature: of the calibration (temperature scaling).
    """

    def __init__(self, encoder: Encoder, head: nn.Module | None, temperature: float) -> None:
        super().__init__()
        self.encoder, self.head, self.temperature = encoder, head, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return calibrated probabilities, `N x classes`, or the backbone's features, `N x D`."""
        x = images.float() / 255
        if self.head is None:
            return average(self.encoder.maps(x)[-1])
        return (self.head(self.encoder(x)) / self.temperature).softmax(1)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Settings of `sslrun export`, documented in conf/export.yaml."""

    run: str
    what: Literal["classifier", "backbone"]
    format: Literal["onnx", "torch_export", "safetensors"]
    out: str | None
    images: list[str]


def export(run: Run, settings: Export) -> dict[str, Any]:
    """Write a network to a file with all the metadata needed to use it, and check that its outputs are the same.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no classifier, a kNN classifier, a file that exists already, a missing package, no images to check
            the export on, or an exported network with different outputs.
    """
    _installed(settings.format)
    network = load_network(find_run(settings.run, WITH_ENCODER if settings.what == "backbone" else WITH_CLASSIFIER))
    head: nn.Module | None = None
    if settings.what == "classifier":
        if not isinstance(network.classifier, Classifier):
            raise UserError(
                f"{network.path.parent} is a kNN classifier, which has no head to export; train one with mode=probe"
            )
        head = network.classifier.head
    device = Device(
        name="cpu", precision="fp32", memory_format="contiguous", compile=None, deterministic=False, threads=None
    )
    path = new_file(
        "out", Path(settings.out) if settings.out else run.directory / f"{settings.what}{SUFFIXES[settings.format]}"
    )
    run.resolve(run=str(network.path.parent), out=str(path))
    model = Model(network, device, command=True)
    images = _images_to_check(model, settings.images)
    module = Exported(network.encoder, head, model.temperature).eval()
    if network.classifier and head is not None:  # as `sslrun predict` computes it
        p = probabilities(network.classifier, images, device).numpy()
        expected = calibration.tempered(p, model.temperature)
    else:
        expected = _outputs(module, images)
    about = _about(model, settings.what)
    write = {"safetensors": _safetensors, "onnx": _onnx, "torch_export": _torch_export}[settings.format]
    with creating(path, "out", SUFFIXES[settings.format]) as temporary:
        outputs = write(module, images, temporary, about)
        gap = float(np.abs(outputs - expected).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if not gap <= allowed:
            wrong = Path(shutil.move(temporary, run.directory / f"wrong{SUFFIXES[settings.format]}"))
            raise UserError(
                f"outputs of the exported network differ by {gap:.2g} on {counted(len(images), 'image')}; see {wrong}"
            )
    log.info("Written to %s, %.1f MB; on %s its outputs differ by at most %.1g.", path, path.stat().st_size / 1e6,
             counted(len(images), "image"), gap)  # fmt: skip
    return {"file": str(path), "images": len(images), "largest_difference": gap, "of_run": str(network.path.parent)}


def _example(images: Tensor) -> Tensor:
    """Return a batch of two images to trace with; a batch of one would fix the batch size."""
    return torch.zeros(2, *images.shape[1:], dtype=torch.uint8)


def _outputs(network: Callable[[Tensor], Tensor], images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([network(chunk) for chunk in images.split(BATCH)]).numpy()


def _installed(format: str) -> None:
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}.get(format, ())
    missing = [p for p in needed if importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(f"format={format} needs {', '.join(missing)}; install with pip install {' '.join(missing)}")


def _images_to_check(model: Model, images: list[str]) -> Tensor:
    """Return images to check an export on, `N x 3 x S x S` uint8: the given ones, or some training images."""
    if images:
        return torch.cat(list(model.pixels(named_images(images))))
    try:
        data, _ = load_train(model.network.config["dataset"])
    except UserError as error:
        raise UserError(f"{error}\ngive images to check the export on: images=[a.jpg,folder]") from None
    return data.images[torch.linspace(0, len(data) - 1, min(CHECKED, len(data))).long()].contiguous()


def _about(model: Model, what: str) -> dict[str, Any]:
    """Return the metadata needed to use the file on its own."""
    dataset = model.network.config["dataset"]
    classifier = {
        "class_names": model.class_names,
        "temperature": model.temperature,
        "confidence_threshold": model.confidence_threshold,
        "confidence_certified": model.confidence_certified,
    }
    return {
        "input": f"images: N x 3 x {dataset['image_size']} x {dataset['image_size']}, uint8 RGB",
        "output": "probabilities: N x classes" if what == "classifier" else "features: N x D",
        **(classifier if what == "classifier" else {}),
        "image_size": dataset["image_size"],
        "resize": dataset["resize"],
        "channels": dataset["channels"],
        "range": dataset["range"],
        "backbone": network_name(model.network.config["backbone"]),
        "sslrun": __version__,
    }


def _onnx(module: Exported, images: Tensor, path: Path, about: dict[str, Any]) -> np.ndarray:
    import onnx
    import onnxruntime

    batch = {"images": {0: torch.export.Dim("batch")}}
    name = "features" if module.head is None else "probabilities"
    with warnings.catch_warnings(), quietly():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (_example(images),), dynamo=True, input_names=["images"], output_names=[name],
            dynamic_shapes=batch, verbose=False,
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    onnx.save(proto, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": chunk.numpy()})[0] for chunk in images.split(BATCH)])


def _torch_export(module: Exported, images: Tensor, path: Path, about: dict[str, Any]) -> np.ndarray:
    batch = {"images": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        program = torch.export.export(module, (_example(images),), dynamic_shapes=batch)
        extra = {METADATA: json.dumps(about, ensure_ascii=False)}
        torch.export.save(program, str(path), extra_files=extra)
    return _outputs(torch.export.load(str(path)).module(), images)


def _safetensors(module: Exported, images: Tensor, path: Path, about: dict[str, Any]) -> np.ndarray:
    """Write weights only: of a backbone with its library's names, of a classifier with `encoder.` and `head.`."""
    from safetensors.torch import load_file, save_file

    backbone = module.encoder.backbone
    kept: nn.Module = getattr(backbone, "net", backbone) if module.head is None else module
    state = kept.state_dict()
    about = about | {"mean": module.encoder.mean.flatten().tolist(), "std": module.encoder.std.flatten().tolist()}
    words = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in about.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, str(path), words)
    kept.load_state_dict(load_file(str(path)))
    return _outputs(module, images)
