"""The settings of a study: overrides of its pretrainings and classifiers."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from sslrun.data.labeled import OF_EXTRA
from sslrun.data.options import PREPROCESSING
from sslrun.runs.encoders import PIXELS
from sslrun.runs.run import Stages
from sslrun.study.choice import searched
from sslrun.training.candidates import KNN

NODES = ("dataset", "backbone", "optimizer", "device")  # shared by a study and its pretrainings
STUDY_KEYS = (  # keys of finetune that the study sets
    "init", "mode", "resume", "seed", "subset_seed", "labels", "label_fraction", "labels_per_class", "validation",
    "search", "backbone", "dataset", "dataset.root", "dataset.val_fraction", "dataset.split_seed",
    *(f"dataset.{k}" for k in PREPROCESSING),
)  # fmt: skip
TASK_KEYS = ("pretext", "train", "optimizer", "seed", "dataset.max_images")  # keys that may differ between tasks


@dataclass(frozen=True)
class StudyOverrides:
    """Overrides of the runs of a study.

    Attributes:
        pretrainings: of each pretraining, by name.
        common: of all classifiers.
        pixels: of the classifiers on pixels, instead of `common`.
        search: settings that are tried for every trained network.
    """

    pretrainings: dict[str, list[str]]
    common: list[str]
    pixels: list[str]
    search: list[str]

    def of_classifier(self, initialization: str, mode: str) -> list[str]:
        """Return the overrides common to classifiers of this kind; kNN does not balance classes."""
        overrides = self.pixels if initialization == PIXELS else self.common
        return [o for o in overrides if key_of(o) != "balance"] if mode == KNN else overrides


def overrides_of(stages: Stages, config: Node, chosen: Mapping[str, str], config_dir: str | None) -> StudyOverrides:
    """Return the overrides of the runs of a study.

    Args:
        stages: the commands.
        config: the resolved config of the study.
        chosen: the option of each config group.
        config_dir: the user's config folder, if there is one.

    Raises:
        UserError: unknown tasks or invalid settings, one line for each.
    """
    mistakes: list[str] = []

    def collected(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except UserError as error:
            mistakes.extend(str(error).splitlines())

    pretrainings = collected(lambda: _pretrainings(stages, config, chosen, config_dir))
    common = collected(lambda: _common(stages, config, chosen))
    search = collected(lambda: searched(stages, config["search"], config["finetune"], config_dir))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return StudyOverrides(pretrainings, common, _on_pixels(common), search)


def _pretrainings(
    stages: Stages, config: Node, chosen: Mapping[str, str], config_dir: str | None
) -> dict[str, list[str]]:
    """Return the overrides of each pretraining by name."""
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
    """Return the overrides of one pretraining, such as `simclr pretext.temperature=0.1`, with those of the study."""
    try:
        name, *settings = shlex.split(spec) or [""]
    except ValueError as error:
        raise UserError(str(error)) from None
    if name != chosen["pretext"] and name not in (known := choices("pretext", config_dir)):
        raise UserError(f"no pretext {name!r}{nearest(name, known) or '.'} Choices: {', '.join(known)}")
    for s in settings:
        if key_of(s) in ("train.epochs", "train.steps") and config["budget"]:
            raise UserError(f"budget= sets the epochs of each pretraining; remove {s}")
        if key_of(s) == "seed" and config["pretrain_seeds"] > 1:
            raise UserError(f"pretrain_seeds={config['pretrain_seeds']} sets the seeds of each pretraining; remove {s}")
        if key_of(s) not in TASK_KEYS and key_of(s).split(".")[0] not in TASK_KEYS:
            raise UserError(
                f"{s}: cannot differ between the tasks of a study; use settings of pretext, train or optimizer"
            )
    overrides = [*(f"{n}={chosen[n]}" for n in NODES), f"pretext={name}"]
    nodes = (*NODES, "train", "unlabeled", "seed", *(["pretext"] if name == chosen["pretext"] else []))
    overrides += differing({k: config[k] for k in nodes}, plain(compose_config(PRETRAIN, overrides, None)))
    check_overrides(PRETRAIN, settings_of(stages.named(PRETRAIN)), [*overrides, *settings], config_dir, False)
    return [*overrides, *settings]


def _common(stages: Stages, config: Node, chosen: Mapping[str, str]) -> list[str]:
    """Return the overrides common to all classifiers."""
    fixed = [s for s in config["finetune"] if key_of(s) in STUDY_KEYS or key_of(s).startswith("backbone.")]
    if fixed:
        raise UserError(f"finetune.{fixed[0]}: the study sets {fixed[0].partition('=')[0]} itself; remove it")
    overrides = [f"{n}={chosen[n]}" for n in ("dataset", "backbone")]
    for n in ("dataset", "backbone"):  # all keys, since the defaults come from the newest pretraining
        overrides += [f"{n}.{k}={literal(v)}" for k, v in config[n].items() if k != "_target_"]
    if config["validation"] == "inside":
        overrides = [o for o in overrides if key_of(o) not in OF_EXTRA]
    overrides += [*device_of(config, chosen, FINETUNE), *config["finetune"]]
    try:
        composed = compose_config(FINETUNE, overrides, None)
    except Exception as error:  # Hydra and OmegaConf raise many types
        raise UserError(f"finetune: {str(error).splitlines()[0]}") from None
    mistakes = check(composed, settings_of(stages.named(FINETUNE)))
    if mistakes:
        raise UserError("\n".join(f"finetune.{m}" for m in mistakes))
    return overrides


def _on_pixels(common: list[str] | None) -> list[str]:
    """Return the overrides of classifiers on pixels, with that backbone instead of the study's."""
    kept = [o for o in common or [] if key_of(o) != "backbone" and not key_of(o).startswith("backbone.")]
    return [f"backbone={PIXELS}", *kept]


def device_of(config: Node, chosen: Mapping[str, str], stage: str) -> list[str]:
    """Return the overrides of the device for a command."""
    choice = f"device={chosen['device']}"
    return [choice, *differing({"device": config["device"]}, plain(compose_config(stage, [choice], None)))]
