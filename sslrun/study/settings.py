"""What a study's command line comes to: the settings of each of its pretrainings and of all of its classifiers."""

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from sslrun.base.errors import UserError
from sslrun.config.build import settings_of
from sslrun.config.check import check
from sslrun.config.commands import FINETUNE, PRETRAIN
from sslrun.config.compose import choices, compose_config
from sslrun.config.grammar import differing, key_of, literal
from sslrun.config.names import nearest
from sslrun.config.nodes import plain
from sslrun.config.overrides import check_overrides
from sslrun.config.types import Node
from sslrun.data.options import PREPROCESSING
from sslrun.runs.run import Stages
from sslrun.study.choice import searched

NODES = ("dataset", "backbone", "optimizer", "device")  # that a study and its pretrainings have in common
OF_THE_STUDY = (  # keys of a classifier that cannot be set for all of them
    "init", "mode", "fold", "resume", "seed", "subset_seed", "label_fraction", "labels_per_class",
    "search", "backbone", "dataset", "dataset.root", "dataset.val_fraction", "dataset.split_seed",
    *(f"dataset.{k}" for k in PREPROCESSING),
)  # fmt: skip
OF_A_TASK = ("pretext", "train", "optimizer", "seed", "dataset.max_images")  # that tasks may differ in


def overrides_of(
    stages: Stages, config: Node, chosen: Mapping[str, str], config_dir: str | None
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Return the overrides of each pretraining by its name, those of all classifiers, and the settings to be searched.

    Args:
        stages: the commands.
        config: of the study, resolved.
        chosen: the study's choice in each config group.
        config_dir: the user's own config folder, if there is one.

    Raises:
        UserError: an unknown task or setting, with a line for every mistake.
    """
    mistakes: list[str] = []

    def collected(look: Callable[[], Any]) -> Any:
        try:
            return look()
        except UserError as error:
            mistakes.extend(str(error).splitlines())

    pretrainings = collected(lambda: _pretrainings(stages, config, chosen, config_dir))
    common, settings = collected(lambda: _common(stages, config, chosen)), collected(lambda: _settings(stages, config))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return pretrainings, common, settings


def _pretrainings(
    stages: Stages, config: Node, chosen: Mapping[str, str], config_dir: str | None
) -> dict[str, list[str]]:
    """Return the overrides of each pretraining by its name."""
    out: dict[str, list[str]] = {}
    mistakes: list[str] = []
    for spec in config["pretexts"] or [chosen["pretext"]]:
        try:
            out[spec] = _pretraining(spec, stages, config, chosen, config_dir)
        except UserError as error:
            mistakes += [f"pretexts: {spec}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return out


def _pretraining(
    spec: str, stages: Stages, config: Node, chosen: Mapping[str, str], config_dir: str | None
) -> list[str]:
    """Return the overrides of one pretraining, such as `simclr pretext.temperature=0.1`, on top of the study's."""
    try:
        name, *settings = shlex.split(spec) or [""]
    except ValueError as error:
        raise UserError(str(error)) from None
    if name != chosen["pretext"] and name not in (known := choices("pretext", config_dir)):
        raise UserError(f"no pretext {name!r}{nearest(name, known) or '.'} Choices: {', '.join(known)}")
    for s in settings:
        if key_of(s) in ("train.epochs", "train.steps") and config["budget"]:
            raise UserError(f"budget= sets the epochs of every pretraining: leave {s} away")
        if key_of(s) not in OF_A_TASK and key_of(s).split(".")[0] not in OF_A_TASK:
            raise UserError(
                f"{s}: a study has one network and one data set; its tasks have pretext., train., optimizer."
            )
    overrides = [*(f"{n}={chosen[n]}" for n in NODES), f"pretext={name}"]
    nodes = (*NODES, "train", "unlabeled", "seed", *(["pretext"] if name == chosen["pretext"] else []))
    overrides += differing({k: config[k] for k in nodes}, plain(compose_config(PRETRAIN, overrides, None)))
    check_overrides(PRETRAIN, settings_of(stages.named(PRETRAIN)), [*overrides, *settings], config_dir, False)
    return [*overrides, *settings]


def _common(stages: Stages, config: Node, chosen: Mapping[str, str]) -> list[str]:
    """Return the overrides that all classifiers have in common."""
    fixed = [s for s in config["finetune"] if key_of(s) in OF_THE_STUDY or key_of(s).startswith("backbone.")]
    if fixed:
        raise UserError(f"finetune.{fixed[0]}: the study sets {fixed[0].partition('=')[0]} itself: leave it away")
    overrides = [f"{n}={chosen[n]}" for n in ("dataset", "backbone")]
    for n in ("dataset", "backbone"):  # all keys, since what is not said is taken from the newest pretraining
        overrides += [f"{n}.{k}={literal(v)}" for k, v in config[n].items() if k != "_target_"]
    overrides += [*device_of(config, chosen, FINETUNE), *config["finetune"]]
    try:
        composed = compose_config(FINETUNE, overrides, None)
    except Exception as error:  # Hydra's and OmegaConf's, of many kinds
        raise UserError(f"finetune: {str(error).splitlines()[0]}") from None
    mistakes = check(composed, settings_of(stages.named(FINETUNE)))
    if mistakes:
        raise UserError("\n".join(f"finetune.{m}" for m in mistakes))
    return overrides


def device_of(config: Node, chosen: Mapping[str, str], stage: str) -> list[str]:
    choice = f"device={chosen['device']}"
    return [choice, *differing({"device": config["device"]}, plain(compose_config(stage, [choice], None)))]


def _settings(stages: Stages, config: Node) -> list[str]:
    """Return the settings that every trained network is tried with; one that changes nothing, if none is searched."""
    return searched(stages, config["search"], [key_of(s) for s in config["finetune"]]) or [""]
