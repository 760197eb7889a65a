"""Loading state dicts, and weights that are not from sslrun."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sslrun.base.errors import UserError

State = dict[str, Tensor]

# Old keys, in weights of 0.1.0, and new keys: (regular expression, replacement).
RENAMED = [
    (r"(^|\bbackbone\.)0\.(?=\d+\.)", r"\1features."),  # mobilenetv2
]


def external_weights(content: dict[str, Any], path: Path) -> State:
    """Return the weights in a file that is not from sslrun: a state dict, or one under `state_dict` or `model`.

    Raises:
        UserError: the file has no weights.
    """
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} has no weights: expected a state dict, or one under the key state_dict or model")
    return state


def load_state(module: nn.Module, state: State, source: Path | str) -> None:
    """Load weights, including those of 0.1.0; all keys and shapes must match.

    Raises:
        UserError: keys are missing or unexpected, or shapes differ; the message lists them.
    """
    own = module.state_dict()
    state = {k if k in own else _renamed(k): v for k, v in state.items()}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k}: expected {tuple(own[k].shape)}, found {tuple(state[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of a different shape", sorted(shapes))]
    if any(keys for _, keys in problems):
        details = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
                         for what, keys in problems if keys)  # fmt: skip
        raise UserError(f"the weights in {source} do not match this network: {details}. Are they of another backbone?")
    module.load_state_dict(state)


def _renamed(key: str) -> str:
    for old, new in RENAMED:
        key = re.sub(old, new, key)
    return key


def strip_prefix(state: State, prefix: str) -> State:
    """Return the entries whose keys have a prefix, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def prefix_of(content: dict[str, Any]) -> str:
    """Return the state-dict prefix of the encoder in a checkpoint of sslrun."""
    default = "classifier.encoder" if "class_names" in content else "encoder"
    return f"{content.get('downstream', default)}."


def encoder_of(content: dict[str, Any]) -> State:
    """Return the encoder's weights in a checkpoint of sslrun."""
    return strip_prefix(content["model"], prefix_of(content))
