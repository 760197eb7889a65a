"""The Python API: `sslrun.load(run)` returns a model that classifies and embeds images. The commands use it, too.

import sslrun

model = sslrun.load("outputs/finetune/...")       # or "latest"; the model of a pretrain run can only embed
for p in model.predict(["a.jpg", "b.png"]):
    print(p.image, p.class_name, p.confidence, p.unsure)
features = model.embed(["a.jpg", "b.png"])        # N x D
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslrun.augment import VIEWS, Rng, generator
from sslrun.base.console import log, progress
from sslrun.base.errors import UserError
from sslrun.base.machine import cores
from sslrun.base.text import counted, listed
from sslrun.config.build import build
from sslrun.config.commands import WITH_CLASSIFIER, WITH_ENCODER
from sslrun.config.compose import choice_node, choices
from sslrun.config.nodes import network_name
from sslrun.config.types import Node
from sslrun.data.decode import decode_some
from sslrun.data.depth import clipped_text
from sslrun.data.workers import in_order, workers
from sslrun.device import Device, inference_device
from sslrun.evaluation import calibration
from sslrun.evaluation.novelty import NOVELTY, Novelty
from sslrun.inference.inputs import Block, ImageLike, decoded_one, to_tensor
from sslrun.models.features import map_features, probabilities, probabilities_and_maps
from sslrun.models.trained import Trained, load_network
from sslrun.run.find import read_summary
from sslrun.run.named import described, find_run


@dataclass(frozen=True)
class Guess:
    """A class and its confidence in [0, 1], calibrated on validation."""

    class_name: str
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        image: path of the file; None for an image in memory.
        top: the most likely classes, in descending order; empty if the image could not be read.
        unsure: whether the confidence is below the threshold; None if there is no threshold, or the image could not be
            read.
        distance: to the nearest training image, as a multiple of the threshold of `Novelty`. None if the run has not
            measured it, or the image could not be read.
        error: why the image could not be read, or None.
    """

    image: str | None
    top: list[Guess]
    unsure: bool | None
    distance: float | None
    error: str | None

    @property
    def unlike_training(self) -> bool | None:
        """Return whether the image is unlike all training images; None if that is unknown."""
        return None if self.distance is None else self.distance > 1

    @property
    def class_name(self) -> str | None:
        """Return the most likely class; None if the image could not be read."""
        return self.top[0].class_name if self.top else None

    @property
    def confidence(self) -> float | None:
        """Return the confidence of the most likely class; None if the image could not be read."""
        return self.top[0].confidence if self.top else None


class Model:
    """A trained network on a device: an encoder and, if it was finetuned, a classifier.

    Args:
        network: network of a run.
        device: device that the network is moved to.
        command: whether a command uses the model: show progress and allow worker processes.

    Attributes:
        class_names: in the order of the probabilities; empty if the network was only pretrained.
        image_size: in px; images are resized as in training.
        gray_range: the values of gray images of more than 8 bits that become black and white, as in training; None if
            it had no such images.
        temperature: for calibration, fitted on validation.
        confidence_threshold: the confidence at or above which the accuracy should be 95 %; None if there is none.
        confidence_certified: whether it is at least 95 %, with 95 % confidence; otherwise the threshold aims at it.
    """

    def __init__(self, network: Trained, device: Device, command: bool = False) -> None:
        self.network, self.device, self._command = network, device, command
        self.class_names, self.temperature = network.class_names, network.temperature
        self.confidence_threshold = network.confidence_threshold
        self.confidence_certified = bool(network.metrics.get("val/confidence_certified"))
        self.image_size: int = network.config["dataset"]["image_size"]
        self.gray_range: list[float] | None = network.config["dataset"]["range"]
        device.put(network.classifier or network.encoder)

    @cached_property
    def novelty(self) -> Novelty | None:
        """Return how far images are from the training images; None if the run has not measured it, as in a study.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.network.path.parent / NOVELTY
        return Novelty.load(path) if self.network.classifier and path.is_file() else None

    def __repr__(self) -> str:
        """Return what it is: network, image size, classes, and the run, as `run=latest` names it."""
        config, directory = self.network.config, self.network.path.parent
        parts = [f"{network_name(config['backbone'])} at {self.image_size} px"]
        if self.class_names:
            parts.append(f"{counted(len(self.class_names), 'class')} ({listed(self.class_names, 5)})")
        with suppress(UserError):
            parts.append(described(read_summary(directory)))
        return f"<Model of {directory}: {'; '.join(parts)}>"

    def predict(
        self,
        images: Sequence[ImageLike] | ImageLike,
        top: int = 3,
        unsure: float | Literal["auto"] | None = "auto",
        views: int = 1,
        batch_size: int = 64,
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: paths, PIL images, `H x W x 3` or `H x W` uint8 arrays, or `3 x H x W` tensors (uint8, or floats
                in [0, 1]); the prediction for a file that cannot be read has an `error`.
            top: number of classes per prediction.
            unsure: predictions with a lower confidence are `unsure`; `auto` is `confidence_threshold`, None disables:
                `unsure` is None then, as it is if there is no `confidence_threshold`.
            views: average the probabilities over this many views: the image itself and random views as in training.

        Raises:
            UserError: invalid images or arguments, or the network has no classifier.
        """
        for key, value in (("top", top), ("views", views), ("batch_size", batch_size)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{key}={value!r}: must be an integer, at least 1")
        threshold = self.confidence_threshold if unsure == "auto" else unsure
        out: list[Prediction] = []
        for names, pixels, reasons in self._blocks(images, batch_size, "predicting"):
            p, maps = self._calibrated(pixels, views, batch_size)
            distances = self._distances(maps, len(p))
            guesses = torch.from_numpy(p).topk(min(top, len(self.class_names)), 1)
            for name, reason, ids, values, distance in zip(
                names, reasons, guesses.indices.tolist(), guesses.values.tolist(), distances, strict=True
            ):
                if reason:
                    out.append(Prediction(name, [], None, None, reason))
                    continue
                # Confidences are displayed with four decimals, and the threshold has four, too.
                results = [Guess(self.class_names[i], round(v, 4)) for i, v in zip(ids, values, strict=True)]
                below = None if threshold is None else results[0].confidence < threshold
                out.append(Prediction(name, results, below, distance, None))
        return out

    def probabilities(
        self, images: Sequence[ImageLike] | ImageLike, views: int = 1, batch_size: int = 64
    ) -> np.ndarray:
        """Return calibrated probabilities, `N x classes`.

        Args:
            images, views: see `predict`.

        Raises:
            UserError: an image cannot be read.
        """
        results = [self._calibrated(pixels, views, batch_size)[0] for pixels in self.pixels(images, batch_size)]
        return np.concatenate(results) if results else np.zeros((0, len(self.class_names)))

    def embed(
        self, images: Sequence[ImageLike] | ImageLike, stage: int | None = None, batch_size: int = 256
    ) -> np.ndarray:
        """Return features, `N x D`, float32.

        Args:
            images: see `predict`.
            stage: stage of the backbone, counted from 1; None is the last.

        Raises:
            UserError: an image cannot be read, or no such stage.
        """
        features, reasons = self.embed_readable(images, stage, batch_size)
        if reasons:
            name, reason = next(iter(reasons.items()))
            raise UserError(f"{name}: {reason}")
        return features

    def embed_readable(
        self, images: Sequence[ImageLike] | ImageLike, stage: int | None = None, batch_size: int = 256
    ) -> tuple[np.ndarray, dict[str, str]]:
        """Return the features of the readable images, in their order, and the reasons for unreadable files.

        Args, raises: see `embed`.
        """
        one = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
        results = [self.features_of(one, stage)[:0]]
        bad: dict[str, str] = {}
        for names, pixels, reasons in self._blocks(images, batch_size, "embedding"):
            bad |= {n or "image in memory": r for n, r in zip(names, reasons, strict=True) if r}
            good = torch.tensor([not r for r in reasons])
            if good.any():
                results.append(self.features_of(pixels[good], stage))
        return np.concatenate(results), bad

    def features_of(self, pixels: Tensor, stage: int | None = None) -> np.ndarray:
        """Return the features, `N x D`, of decoded images, `N x 3 x S x S`, uint8.

        Raises:
            UserError: no such stage.
        """
        if stage is not None and not isinstance(stage, int):
            raise UserError(f"stage={stage!r}: must be an integer or None")
        stages = map_features(self.network.encoder, pixels, self.device)
        if stage is not None and not 1 <= stage <= len(stages):
            raise UserError(f"stage={stage}: this backbone has stages 1 to {len(stages)}")
        return stages[-1 if stage is None else stage - 1].numpy()

    def _distances(self, maps: list[Tensor], n: int) -> list[float | None]:
        """Return the `distance` of n images with these means of feature maps."""
        if not self.novelty:
            return [None] * n
        relative = self.novelty.distances(maps) / self.novelty.threshold
        return [round(d, 3) if math.isfinite(d) else None for d in relative.tolist()]

    def _calibrated(self, pixels: Tensor, views: int, batch_size: int) -> tuple[np.ndarray, list[Tensor]]:
        """Return the calibrated probabilities of decoded images, `N x 3 x S x S`, uint8, and means of their maps."""
        classifier = self.network.classifier
        if classifier is None:
            run = self.network.path.parent
            raise UserError(
                f"{run} was only pretrained and has no classifier; train one with sslrun finetune init={run}"
            )
        p, maps = probabilities_and_maps(classifier, pixels, self.device, batch_size)
        if views > 1:
            augment = build(self.network.config["augment"])
            for v in range(1, views):  # one image at a time, so that its views do not depend on the rest of the batch
                drawn = [augment(one[None].float() / 255, Rng(generator(0, VIEWS, v))) for one in pixels]
                view = (torch.cat(drawn) * 255).round().to(torch.uint8)
                p = p + probabilities(classifier, view, self.device, batch_size)
            p = p / views
        return calibration.tempered(p.numpy(), self.temperature), maps

    def pixels(self, images: Sequence[ImageLike] | ImageLike, batch_size: int = 64) -> Iterator[Tensor]:
        """Yield batches of decoded images, `B x 3 x S x S`, uint8.

        Raises:
            UserError: an image cannot be read.
        """
        for names, pixels, reasons in self._blocks(images, batch_size, "reading"):
            bad = [(n, r) for n, r in zip(names, reasons, strict=True) if r]
            if bad:
                raise UserError(f"{bad[0][0]}: {bad[0][1]}")
            yield pixels

    def _blocks(self, images: Sequence[ImageLike] | ImageLike, batch_size: int, title: str) -> Iterator[Block]:
        """Yield names, pixels (`B x 3 x S x S`, uint8) and reasons for unreadable files, decoding on all cores."""
        single = isinstance(images, str | Path | Image.Image | Tensor)
        if isinstance(images, np.ndarray):
            single, images = images.dtype.kind != "U", images if images.dtype.kind != "U" else images.tolist()
        items: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
        dataset = self.network.config["dataset"]
        options: dict[str, Any] = {k: dataset[k] for k in ("image_size", "resize", "channels")}
        options["gray_range"] = self.gray_range
        size = max(1, min(batch_size, len(items) // (2 * cores())))
        groups = [items[i : i + size] for i in range(0, len(items), size)]
        outside: list[float] = []
        if not all(isinstance(i, str | Path) for i in items):
            for group in groups:
                pixels, reasons, fractions = map(list, zip(*(decoded_one(i, options) for i in group), strict=True))
                outside += fractions
                names = [str(i) if isinstance(i, str | Path) else None for i in group]
                yield names, to_tensor(np.stack(pixels)), reasons
        else:
            files = [[str(i) for i in group] for group in groups]
            decode = partial(decode_some, **options)
            bar = progress(title, len(items), "images") if self._command else nullcontext(lambda n: None)
            with workers(len(items), self._command) as pool, bar as advance:
                for group, (block, reasons, fractions) in zip(files, in_order(pool, decode, files), strict=True):
                    outside += fractions
                    yield list(group), to_tensor(block), reasons
                    advance(len(group))
        if self.gray_range and (clipped := clipped_text(outside, self.gray_range, len(items))):
            log.info("%s.", clipped)


def load(run: str | Path = "latest", device: str = "auto") -> Model:
    """Load the classifier of a finetune run, or the encoder of a pretrain run.

    Args:
        run: a run directory, or `latest`, the newest finished finetune run in outputs/.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: no such run or device.
    """
    if device not in choices("device"):
        raise UserError(f"device={device}: no such device; expected one of {', '.join(choices('device'))}")
    network = load_network(find_run(str(run), WITH_CLASSIFIER if run == "latest" else WITH_ENCODER))
    return Model(network, inference_device(choice_node("device", device), network.config["device"]))


def open_model(run: str, device: Node, stages: Sequence[str] = WITH_ENCODER) -> Model:
    """Load the network of a run for a command.

    Args:
        run: a run directory, or `latest`, the newest finished run of these stages.
        device: a `device` node.

    Raises:
        UserError: no such run or device, or a run of another stage.
    """
    network = load_network(find_run(run, stages, trained=stages == WITH_ENCODER))
    return Model(network, inference_device(device, network.config["device"]), command=True)
