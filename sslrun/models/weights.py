"""State dicts: matched key by key, and the weights that others publish."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.models.encoder import Encoder

State = dict[str, Tensor]

# Keys that weights of 0.1.0 have, and what they are called now: (regular expression, replacement).
RENAMED = [
    (r"(^|\bbackbone\.)0\.(?=\d+\.)", r"\1features."),  # mobilenetv2
]


def bare(content: dict[str, Any], path: Path) -> State:
    """Return the weights of a file that others wrote: a state dict, or one under `state_dict` or `model`.

    Raises:
        UserError: there are none.
    """
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no weights: a state dict, or one under state_dict or model, is needed")
    return state


def load_state(module: nn.Module, state: State, source: Path | str) -> None:
    """Load weights, also those of 0.1.0; every key and shape must match.

    Raises:
        UserError: with what is missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    state = {k if k in own else _renamed(k): v for k, v in state.items()}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} where {tuple(own[k].shape)} is needed"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(shapes))]
    if any(keys for _, keys in problems):
        details = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
                         for what, keys in problems if keys)  # fmt: skip
        raise UserError(f"the weights in {source} do not fit this network: {details}. Is it another backbone's?")
    module.load_state_dict(state)


def _renamed(key: str) -> str:
    for old, new in RENAMED:
        key = re.sub(old, new, key)
    return key


def below(state: State, prefix: str) -> State:
    """Return the entries below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def prefix_of(content: dict[str, Any]) -> str:
    """Return the prefix under which the state in a checkpoint of ours has the encoder that goes on."""
    default = "classifier.encoder" if "class_names" in content else "encoder"
    return f"{content.get('downstream', default)}."


def encoder_of(content: dict[str, Any]) -> State:
    """Return the encoder's weights in a checkpoint of ours."""
    return below(content["model"], prefix_of(content))


CLASSIFIERS = ("fc.", "classifier.")  # of torchvision's networks, which the backbones here do without
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def imagenet_weights(node: Node, image_size: int) -> Any:
    """Return torchvision's ImageNet weights for a backbone, or None if there are none."""
    return getattr(build(node, image_size), "imagenet", None)


def imagenet_cached(node: Node, image_size: int) -> bool:
    """Tell whether a backbone has ImageNet weights, and these lie on this machine."""
    weights = imagenet_weights(node, image_size)
    return weights is not None and _weight_file(weights).is_file()


def _weight_file(weights: Any) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])


def load_imagenet(encoder: Encoder) -> None:
    """Give an encoder torchvision's ImageNet weights, every one of them, and ImageNet's normalisation.

    Raises:
        UserError: there are none for this backbone, or they cannot be fetched.
    """
    from sslrun.data.fetch import explained

    backbone: Any = encoder.backbone
    weights = getattr(backbone, "imagenet", None)
    if weights is None:
        raise UserError("init=imagenet: there are no ImageNet weights for this backbone; resnet18 and mobilenetv2 have")
    with explained("ImageNet's weight file", weights.url, str(_weight_file(weights))):
        state = weights.get_state_dict(progress=False, check_hash=True)
    backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith(CLASSIFIERS)})
    encoder.mean.copy_(torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
    encoder.std.copy_(torch.tensor(IMAGENET_STD).view(3, 1, 1))
