"""Initialization of a network: its weights, and the backbone and data set that they require."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.build import refuse_foreign
from sslrun.config.commands import FOR_ENCODER
from sslrun.config.compose import compose_nodes
from sslrun.config.nodes import overlaid, short_name
from sslrun.config.types import Node
from sslrun.data import options
from sslrun.data.dataset import Dataset
from sslrun.data.options import describe, labels_of, mismatch, preprocessing_of
from sslrun.data.statistics import normalization
from sslrun.models.backbones.stem import for_imagenet
from sslrun.models.encoder import Encoder, Pooling, build_encoder
from sslrun.models.published import Published, load, published
from sslrun.models.trained import origin_of
from sslrun.models.weights import State, encoder_of, external_weights, load_state
from sslrun.run import checkpoint
from sslrun.run.encoders import AUTO, IMAGENET, LATEST, PRETRAINED, SCRATCH, newest_encoder, source_of
from sslrun.run.find import FoundRun, find, read_summary

RESERVED = (AUTO, SCRATCH, PRETRAINED, IMAGENET)  # values of init= that are no run or file


@dataclass(frozen=True)
class Network:
    """A network and its initialization, resolved once.

    Attributes:
        kind: `resume` (the last checkpoint in the run's own directory), `run` (a checkpoint of another run), `file`
            (only weights), `pretrained` (published weights) or `scratch`.
        name: shown in summaries and reports: `scratch`, `pretrained`, the pretext task of the run, or the file's name.
        path: of the checkpoint or file, if any.
        backbone, dataset: complete config nodes.
        weights: of the checkpoint or file, for the whole encoder or only the backbone.
        published: of `pretrained`.
        origin: from what the weights were trained, see `origin_of`.
    """

    kind: Literal["resume", "run", "file", "pretrained", "scratch"]
    name: str
    path: Path | None
    backbone: Node
    dataset: Node
    weights: State | None = field(default=None, repr=False)
    published: Published | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def init(self) -> str:
        """Return the value of `init=` for the same weights, which stays valid when there are newer runs."""
        path = str(self.path or self.name)
        return os.path.join(os.curdir, path) if self.path and path in RESERVED else path

    def encoder(self, data: Dataset, pooling: Pooling = "average") -> Encoder:
        """Build the encoder with its initial weights; for `resume` they are random until the checkpoint is restored.

        Args:
            data: training images, to compute mean and standard deviation if the config has none.
        """
        mean, std = normalization(self.dataset, data)
        encoder = build_encoder(self.backbone, self.dataset["image_size"], mean, std, pooling)
        if self.published is not None:
            load(self.published, encoder.backbone)
        elif self.weights is not None:
            whole = self.kind == "run" or "mean" in self.weights
            load_state(encoder if whole else encoder.backbone, self.weights, self.path or self.name)
        return encoder


def resolve(
    init: str, backbone: Node, dataset: Node, overrides: Mapping[str, str], resumed: Mapping[str, Any] | None = None
) -> Network:
    """Resolve a network's initialization, and complete its backbone and data set.

    The first of these that applies: the last checkpoint of a resumed run, a run or file, published weights, random
    weights. Backbone and preprocessing are those of the checkpoint, not the defaults; without a checkpoint they are
    those of the newest pretraining run.

    Args:
        init: `latest`, a pretext task's name (its latest run), `scratch`, `pretrained`, a run directory, or a file.
        backbone, dataset: composed config nodes; with `from_checkpoint` they have no `_target_`.
        overrides: key -> value, of the command line or given by an experiment.
        resumed: summary of the run to resume.

    Raises:
        UserError: there is no such run or file, it conflicts with the overrides, or the backbone or data set is
            unknown.
    """
    if resumed is not None:
        config = resumed["config"]
        nodes = _completed(config, None, backbone, dataset, overrides)
        return Network("resume", resumed["init"], None, *nodes)
    runs = find(FOR_ENCODER, study_runs=True)
    if init not in RESERVED:
        return _from_checkpoint(*_checkpoint(init, runs, backbone, dataset), backbone, dataset, overrides)
    # By default, the backbone and data set of the newest pretraining run, so that results are comparable.
    latest = newest_encoder(runs, backbone, dataset) or newest_encoder(runs, {}, dataset)
    if latest:
        refuse_foreign(latest[1]["config"], latest[0])
    chosen, data = _completed(latest and latest[1]["config"], None, backbone, dataset, overrides)
    return Network("scratch", init, None, chosen, data) if init == SCRATCH else _published(backbone, data, overrides)


def unchanged(init: str, backbone: Node, dataset: Node) -> Network:
    """Return the network of an interrupted run whose nodes are complete: `scratch`, or published weights.

    Pretrainings since then change nothing.
    """
    if init == SCRATCH:
        return Network("scratch", SCRATCH, None, backbone, dataset)
    weights = published(backbone)
    return Network("pretrained", PRETRAINED, None, backbone, dataset, None, weights, _origin(weights))


def resolve_pretraining(init: str, backbone: Node, dataset: Node, overrides: Mapping[str, str]) -> Network:
    """Resolve the initialization of a pretraining, which continues from published weights, a run, or a file.

    A backbone that is not given is that of the weights.

    Args, raises: see `resolve`.
    """
    if init == SCRATCH:
        return Network("scratch", SCRATCH, None, backbone, dataset)
    given = backbone if "backbone" in overrides or any(k.startswith("backbone.") for k in overrides) else {}
    if init in (PRETRAINED, IMAGENET):
        return _published(given, dataset, overrides)
    found = _checkpoint(init, find(FOR_ENCODER, study_runs=True), given, {}, (LATEST, SCRATCH, PRETRAINED))
    return _from_checkpoint(*found, given, dataset, overrides)


def refuse_unused_weights(init: str, backbone: Node, overrides: Mapping[str, str]) -> None:
    """Raise if `backbone.weights` is given on the command line, but not used.

    Args: see `resolve`.

    Raises:
        UserError: `init` is not that of published weights.
    """
    if "backbone.weights" in overrides and backbone.get("weights") and init not in (PRETRAINED, IMAGENET, AUTO):
        raise UserError(f"backbone.weights needs init=pretrained, found init={init}; remove one of them")


def _published(backbone: Node, dataset: Node, overrides: Mapping[str, str]) -> Network:
    for key in ("mean", "std"):
        if f"dataset.{key}" in overrides and dataset[key] is not None:
            raise UserError(f"dataset.{key}: images are normalized as those of the published weights; remove it")
    weights = published(backbone)
    size = dataset["image_size"] if "dataset.image_size" in overrides else weights.image_size
    log.info(
        "Published weights of %s: %s, license: %s. Images are resized to %d px%s.",
        weights.name, weights.source, weights.license, size,
        ", smaller ones are enlarged" if size >= weights.image_size else "",
    )  # fmt: skip
    if 2 * size < weights.image_size:
        log.warning(
            "These weights are for images of %d px: at %d px their features may be of little use; remove "
            "dataset.image_size.", weights.image_size, size,
        )  # fmt: skip
    data = {**dataset, "image_size": size, "mean": weights.mean, "std": weights.std}
    chosen = for_imagenet(weights.backbone, size)
    return Network("pretrained", PRETRAINED, None, chosen, data, None, weights, _origin(weights))


def _origin(weights: Published) -> Node:
    return {"weights": {"source": weights.source, "license": weights.license}}


def _checkpoint(
    init: str,
    runs: list[FoundRun],
    backbone: Node,
    dataset: Node,
    values: tuple[str, ...] = (AUTO, LATEST, SCRATCH, PRETRAINED),
) -> tuple[Path, dict[str, Any]]:
    """Return the path and content of the checkpoint that `init` refers to; see `source_of`."""
    path = source_of(init, runs, backbone, dataset, values=values)
    if str(path) != str(Path(init)):
        log.info("Initializing from %s", path)
    if path.is_file():
        return path, checkpoint.load(path)
    summary = read_summary(path)
    if summary["status"] != "finished":
        log.warning("%s did not finish (%s); using its last checkpoint.", path, summary["status"])
    return checkpoint.newest_intact(path)


def _from_checkpoint(
    path: Path, content: dict[str, Any], backbone: Node, dataset: Node, overrides: Mapping[str, str]
) -> Network:
    if checkpoint.OURS not in content:
        for what, node in (("backbone", backbone), ("dataset", dataset)):
            if not node.get("_target_"):
                raise UserError(f"{path} contains only weights: add {what}=...")
        name = path.name if path.stem in RESERVED else path.stem
        return Network("file", name, path, backbone, dataset, external_weights(content, path))
    config = content["config"]
    wanted, has = backbone.get("_target_"), config["backbone"]["_target_"]
    if wanted and wanted != has:
        raise UserError(mismatch("backbone", short_name(wanted), short_name(has), path))
    name = short_name(config["pretext"]["_target_"]) if "pretext" in config else content["stage"]
    origin = origin_of(content)
    if seen := origin.get("labels_seen"):
        log.warning("%s was trained with labels (%s): the label budget of this run does not count them.", path, seen)
    nodes = _completed(config, path, backbone, dataset, overrides)
    name = f"pretext={name}" if name in RESERVED else name
    return Network("run", name, path, *nodes, encoder_of(content), origin=origin)


def _completed(
    config: Mapping[str, Any] | None,
    path: Path | None,
    backbone: Node,
    dataset: Node,
    overrides: Mapping[str, str],
) -> tuple[Node, Node]:
    """Complete backbone and data set from the config of a run, or from the defaults.

    Args:
        path: of the run's checkpoint, if backbone and preprocessing must match it.
    """
    if config:
        has_backbone, has_dataset = config["backbone"], config["dataset"]
    else:
        has_backbone, has_dataset = compose_nodes(FOR_ENCODER[0], "backbone", "dataset")
        if not dataset.get("_target_"):
            if dataset.get("root"):
                raise UserError(
                    f"dataset.root={dataset['root']}: there is no pretraining whose data set is in this folder; add "
                    "dataset=folder"
                )
            log.info("There is no pretrain run, so the data set is the default: %s.", describe(has_dataset))
    same = backbone.get("_target_") in (None, has_backbone["_target_"])
    chosen = overlaid("backbone", has_backbone if same else backbone, backbone, overrides)
    if path is not None and chosen != has_backbone:
        key = next(k for k in chosen if chosen[k] != has_backbone.get(k))
        raise UserError(mismatch(f"backbone.{key}", chosen[key], has_backbone.get(key), path))
    data = overlaid("dataset", dataset if dataset.get("_target_") else has_dataset, dataset, overrides)
    if config:
        data = labels_of(preprocessing_of(data, has_dataset, overrides, path), has_dataset, overrides)
        data["range"] = data["range"] or options.AUTO  # the run had no gray images of more than 8 bits, this one may
    return chosen, data
