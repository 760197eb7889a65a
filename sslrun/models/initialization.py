"""Where a network starts: its weights, and the backbone and data set that go with them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.build import refuse_foreign
from sslrun.config.compose import compose_nodes
from sslrun.config.nodes import overlaid, short_name
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset
from sslrun.data.options import describe, differs, preprocessing_of
from sslrun.data.statistics import normalization
from sslrun.models.backbones.stem import for_imagenet
from sslrun.models.encoder import Encoder, Readout, build_encoder
from sslrun.models.weights import ENCODER, State, bare, below, load_imagenet, load_state
from sslrun.runs import checkpoint
from sslrun.runs.find import find, read_summary


@dataclass
class Start:
    """Where a network starts.

    Attributes:
        name: `scratch`, `imagenet`, the pretext task of the run, or the file's name.
        path: of the checkpoint, if there is one.
        encoder: its weights, if it is a checkpoint of ours.
        config: of the run that the checkpoint is from; empty for a bare file.
    """

    name: str
    path: Path | None
    encoder: State | None
    config: dict[str, Any]


def find_start(init: str, backbone: Node, dataset: Node) -> Start:
    """Decide where a finetuned network starts.

    Args:
        init: `latest`, a pretext task's name (its latest run), `scratch`, `imagenet`, a run directory, or a file.
        backbone, dataset: what was asked for; `from_checkpoint` asks for nothing.

    Raises:
        UserError: there is no such run or file, or it has another backbone.
    """
    runs = find(["pretrain"], parts=True)
    if init in ("scratch", "imagenet"):
        # The same network on the same pictures as the newest pretraining, unless others are asked for.
        latest = _newest(runs, backbone, dataset, None) or _newest(runs, {}, dataset, None)
        if latest:
            refuse_foreign(latest[1]["config"], latest[0])
        return Start(init, None, None, latest[1]["config"] if latest else {})
    if os.path.isfile(init) or os.path.exists(os.path.join(init, "summary.json")) or os.sep in init:
        path = Path(init)
        if not path.exists():
            raise UserError(f"init={init}: no such run or file")
    else:
        found = _newest(runs, backbone, dataset, None if init == "latest" else init)
        if found is None:
            raise UserError(_no_run(init, runs, backbone, dataset))
        path = found[0]
        log.info("Starting from %s", path)
    if path.is_dir():
        summary = read_summary(path)
        if summary["status"] != "finished":
            log.warning("%s did not finish (%s): its last checkpoint is used.", path, summary["status"])
        path, content = checkpoint.newest(path)
    else:
        content = checkpoint.load(path)
    if checkpoint.OURS not in content:
        return Start(path.stem, path, None, {})
    config = content["config"]
    asked, has = backbone.get("_target_"), config["backbone"]["_target_"]
    if asked and asked != has:
        raise UserError(differs("backbone", short_name(asked), short_name(has), path))
    encoder = below(content["model"], *ENCODER)
    name = short_name(config["pretext"]["_target_"]) if "pretext" in config else "finetune"
    return Start(name, path, encoder, config)


def _newest(
    runs: list[tuple[Path, dict[str, Any]]], backbone: Node, dataset: Node, pretext: str | None
) -> tuple[Path, dict[str, Any]] | None:
    for path, summary in reversed(runs):
        config = summary["config"]
        if not checkpoint.has_checkpoint(path) or summary["status"] != "finished":
            continue
        same = [
            not backbone.get("_target_") or backbone["_target_"] == config["backbone"]["_target_"],
            not dataset.get("_target_") or _same_pictures(dataset, config["dataset"]),
            pretext is None or pretext == short_name(config["pretext"]["_target_"]),
        ]
        if all(same):
            return path, summary
    return None


def _same_pictures(a: Node, b: Node) -> bool:
    roots = [str(Path(os.path.expanduser(n["root"])).resolve()) if n.get("root") else None for n in (a, b)]
    return a["_target_"] == b["_target_"] and roots[0] == roots[1]


def _no_run(init: str, runs: list[Any], backbone: Node, dataset: Node) -> str:
    if init.endswith(".pt"):
        return f"init={init}: no such file"
    wanted = [short_name(n["_target_"]) for n in (backbone, dataset) if n.get("_target_")]
    kind = f"{'' if init == 'latest' else init + ' '}run" + (f" of {' on '.join(wanted)}" if wanted else "")
    there = (
        f"{len(runs)} other run{'s' * (len(runs) > 1)} in outputs/pretrain" if runs else "no run in outputs/pretrain"
    )
    return f"init={init}: no pretrain {kind} here ({there}): start one with sslrun pretrain, or say init=scratch"


def resolve(start: Start, backbone: Node, dataset: Node, asked: dict[str, str]) -> tuple[Node, Node]:
    """Fill in backbone and data set from the run that a network starts from.

    A checkpoint's backbone and preprocessing are kept, whatever the defaults of the command line are.

    Args:
        asked: what stands on the command line, as key -> value.

    Returns:
        The complete `backbone` and `dataset` nodes.

    Raises:
        UserError: something else was asked for explicitly, or nothing says which backbone or data set it is.
    """
    if start.path is not None and not start.config:
        for what, node in (("backbone", backbone), ("dataset", dataset)):
            if not node.get("_target_"):
                raise UserError(f"{start.path} holds weights alone and does not say of which {what}: add {what}=...")
        return backbone, dataset
    if start.config:
        has_backbone, has_dataset = start.config["backbone"], start.config["dataset"]
    else:
        has_backbone, has_dataset = compose_nodes("pretrain", "backbone", "dataset")
        if not dataset.get("_target_"):
            log.info("No pretrain run to take the data set from: it is %s.", describe(has_dataset))
    same = backbone.get("_target_") in (None, has_backbone["_target_"])
    chosen = overlaid("backbone", has_backbone if same else backbone, backbone, asked)
    if start.path is not None and chosen != has_backbone:
        key = next(k for k in chosen if chosen[k] != has_backbone.get(k))
        raise UserError(differs(f"backbone.{key}", chosen[key], has_backbone.get(key), start.path))
    data = overlaid("dataset", dataset if dataset.get("_target_") else has_dataset, dataset, asked)
    if start.config:
        data = preprocessing_of(data, has_dataset, asked, start.path)
    return (for_imagenet(chosen, data["image_size"]) if start.name == "imagenet" else chosen), data


def encoder_at(start: Start, backbone: Node, dataset: Node, data: Dataset, readout: Readout = "average") -> Encoder:
    """Build an encoder with the weights that it starts from."""
    encoder = build_encoder(backbone, dataset["image_size"], *normalization(dataset, data), readout)
    if start.name == "imagenet":
        load_imagenet(encoder)
    elif start.encoder:
        load_state(encoder, start.encoder, start.path or start.name)
    elif start.path is not None:  # a bare file: the backbone's own keys, or a whole encoder's
        weights = bare(checkpoint.load(start.path), start.path)
        module: nn.Module = encoder if "mean" in weights else encoder.backbone
        load_state(module, weights, start.path)
    return encoder
