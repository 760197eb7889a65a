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
from sslrun.data.dataset import Dataset
from sslrun.data.labels import LabelBudget
from sslrun.data.options import AUTO, describe, labels_of, mismatch, preprocessing_of
from sslrun.data.statistics import normalization
from sslrun.models.backbones.stem import for_imagenet
from sslrun.models.encoder import Encoder, Pooling, build_encoder
from sslrun.models.weights import State, encoder_of, external_weights, load_imagenet, load_state
from sslrun.runs import checkpoint
from sslrun.runs.encoders import IMAGENET, SCRATCH, newest_encoder, source_of
from sslrun.runs.find import FoundRun, find, read_summary


@dataclass(frozen=True)
class Network:
    """A network and its initialization, resolved once.

    Attributes:
        kind: `resume` (the last checkpoint in the run's own directory), `run` (a checkpoint of another run), `file`
            (only weights), `pretrained` (torchvision's ImageNet weights) or `scratch`.
        name: shown in summaries and reports: `scratch`, `imagenet`, the pretext task of the run, or the file's name.
        path: of the checkpoint or file, if any.
        backbone, dataset: complete config nodes.
        weights: of the checkpoint or file, for the whole encoder or only the backbone.
    """

    kind: Literal["resume", "run", "file", "pretrained", "scratch"]
    name: str
    path: Path | None
    backbone: Node
    dataset: Node
    weights: State | None = field(default=None, repr=False)

    @property
    def init(self) -> str:
        """Return the value of `init=` for the same weights, which stays valid when there are newer runs."""
        path = str(self.path or self.name)
        return os.path.join(os.curdir, path) if self.path and path in (SCRATCH, IMAGENET) else path

    def encoder(self, data: Dataset, pooling: Pooling = "average") -> Encoder:
        """Build the encoder with its initial weights; for `resume` they are random until the checkpoint is restored.

        Args:
            data: training images, to compute mean and standard deviation if the config has none.
        """
        mean, std = normalization(self.dataset, data)
        encoder = build_encoder(self.backbone, self.dataset["image_size"], mean, std, pooling)
        if self.kind == "pretrained":
            load_imagenet(encoder)
        elif self.weights is not None:
            whole = self.kind == "run" or "mean" in self.weights
            load_state(encoder if whole else encoder.backbone, self.weights, self.path or self.name)
        return encoder


def resolve(
    init: str, backbone: Node, dataset: Node, overrides: Mapping[str, str], resumed: Mapping[str, Any] | None = None
) -> Network:
    """Resolve a network's initialization, and complete its backbone and data set.

    The first of these that applies: the last checkpoint of a resumed run, a run or file, ImageNet weights, random
    weights. Backbone and preprocessing are those of the checkpoint, not the defaults; without a checkpoint they are
    those of the newest pretraining run.

    Args:
        init: `latest`, a pretext task's name (its latest run), `scratch`, `imagenet`, a run directory, or a file.
        backbone, dataset: composed config nodes; with `from_checkpoint` they have no `_target_`.
        overrides: of the command line, key -> value.
        resumed: summary of the run to resume.

    Raises:
        UserError: there is no such run or file, it conflicts with the overrides, or the backbone or data set is
            unknown.
    """
    if resumed is not None:
        config = resumed["config"]
        nodes = _completed(config, None, backbone, dataset, overrides, config["init"] == IMAGENET)
        return Network("resume", resumed["init"], None, *nodes)
    runs = find(FOR_ENCODER, study_runs=True)
    if init not in (SCRATCH, IMAGENET):
        return _from_checkpoint(*_checkpoint(init, runs, backbone, dataset), backbone, dataset, overrides)
    # By default, the backbone and data set of the newest pretraining run, so that results are comparable.
    latest = newest_encoder(runs, backbone, dataset) or newest_encoder(runs, {}, dataset)
    if latest:
        refuse_foreign(latest[1]["config"], latest[0])
    nodes = _completed(latest and latest[1]["config"], None, backbone, dataset, overrides, init == IMAGENET)
    return Network("pretrained" if init == IMAGENET else "scratch", init, None, *nodes)


def _checkpoint(init: str, runs: list[FoundRun], backbone: Node, dataset: Node) -> tuple[Path, dict[str, Any]]:
    """Return the path and content of the checkpoint that `init` refers to."""
    path = source_of(init, runs, backbone, dataset)
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
        name = path.name if path.stem in (SCRATCH, IMAGENET) else path.stem
        return Network("file", name, path, backbone, dataset, external_weights(content, path))
    config = content["config"]
    wanted, has = backbone.get("_target_"), config["backbone"]["_target_"]
    if wanted and wanted != has:
        raise UserError(mismatch("backbone", short_name(wanted), short_name(has), path))
    name = short_name(config["pretext"]["_target_"]) if "pretext" in config else content["stage"]
    if "label_fraction" in config and config.get("mode") not in ("probe", "knn"):  # whose encoder has seen no labels
        used = LabelBudget(config.get("labels"), config["label_fraction"], config["labels_per_class"]).text
        log.warning("%s was trained with labels (%s): the label budget of this run does not count them.", path, used)
    nodes = _completed(config, path, backbone, dataset, overrides)
    return Network("run", f"pretext={name}" if name in (SCRATCH, IMAGENET) else name, path, *nodes, encoder_of(content))


def _completed(
    config: Mapping[str, Any] | None,
    path: Path | None,
    backbone: Node,
    dataset: Node,
    overrides: Mapping[str, str],
    imagenet: bool = False,
) -> tuple[Node, Node]:
    """Complete backbone and data set from the config of a run, or from the defaults.

    Args:
        path: of the run's checkpoint, if backbone and preprocessing must match it.
        imagenet: use the backbone's stem that matches ImageNet weights.
    """
    if config:
        has_backbone, has_dataset = config["backbone"], config["dataset"]
    else:
        has_backbone, has_dataset = compose_nodes(FOR_ENCODER[0], "backbone", "dataset")
        if not dataset.get("_target_"):
            log.info("There is no pretrain run, so the data set is the default: %s.", describe(has_dataset))
    same = backbone.get("_target_") in (None, has_backbone["_target_"])
    chosen = overlaid("backbone", has_backbone if same else backbone, backbone, overrides)
    if path is not None and chosen != has_backbone:
        key = next(k for k in chosen if chosen[k] != has_backbone.get(k))
        raise UserError(mismatch(f"backbone.{key}", chosen[key], has_backbone.get(key), path))
    data = overlaid("dataset", dataset if dataset.get("_target_") else has_dataset, dataset, overrides)
    if config:
        data = labels_of(preprocessing_of(data, has_dataset, overrides, path), has_dataset, overrides)
        data["range"] = data["range"] or AUTO  # the run had no gray images of more than 8 bits, this one may
    return (for_imagenet(chosen, data["image_size"]) if imagenet else chosen), data
