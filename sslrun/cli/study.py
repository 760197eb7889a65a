"""Checks of the settings in a study's config against the commands that they are passed to."""

from collections.abc import Callable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sslrun.base.errors import UserError
from sslrun.base.text import seconds_of
from sslrun.config.commands import COMPARE, FINETUNE, PRETRAIN, TASKS
from sslrun.config.compose import choices, chosen, group_choices
from sslrun.config.grammar import key_of
from sslrun.config.overrides import check_overrides, composed_configs
from sslrun.run.encoders import SCRATCH
from sslrun.study.inits import WITHOUT_TASK, name_of, parsed

LABEL_LISTS = ("labels", "labels_per_class", "label_fractions")
OPTIMIZER = "optimizer"  # config group whose keys may differ between pretext tasks, and depend on its choice
Check = Callable[[str, list[str]], object]  # called with a command and its overrides


def mistakes(config: DictConfig, overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """Return one line for each mistake in lists of settings that can be seen without torch.

    Args:
        config: composed config of a study, or of finetune, which has `search`.
        overrides: of the command.
        config_dir: the user's own config folder.
    """

    def check(command: str, overrides: list[str]) -> object:
        return composed_configs(command, overrides, config_dir, multirun=False)

    own = _texts(config, "finetune")
    swept = [o for o in own if _is_sweep(o)]
    own = [o for o in own if o not in swept]
    groups = group_choices(overrides if "finetune" not in config else own, config_dir)  # which searched keys depend on
    return [
        *(line for entry in _texts(config, "inits") for line in _init(entry, overrides, check, config_dir)),
        *_init_of_all(config),
        *_without_effect(_texts(config, "inits"), overrides, config_dir),
        *_budget(config.get("budget")),
        *_label_budgets(config),
        *_searched(_texts(config, "search"), groups, check),
        *(_lines("finetune.", check, FINETUNE, own) if own else []),
        *(f"finetune.{o}: expected one value; to try several, use search=[...]" for o in swept),
    ]


def _searched(search: Sequence[str], groups: list[str], check: Check) -> list[str]:
    """Return one line for each mistake in the settings of a search, but none that the groups have without them."""
    lines = [line for s in search if "=" in s for line in _lines("search: ", check, FINETUNE, [*groups, s])]
    of_groups = _lines("search: ", check, FINETUNE, groups) if lines else []  # such as the required dataset.root
    return [line for line in lines if line not in of_groups]


def _is_sweep(override: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(override).is_sweep_override())
    except HydraException:
        return False  # reported by the check of the config


def check_classifiers(config: DictConfig, settings: type, config_dir: str | None) -> None:
    """Check the settings shared by all classifiers of a study against signatures.

    Args:
        settings: settings class of finetune.

    Raises:
        UserError: one line for each mistake.
    """
    try:
        check_overrides(FINETUNE, settings, _texts(config, "finetune"), config_dir, False)
    except UserError as error:
        raise UserError("\n".join(f"finetune.{line}" for line in str(error).splitlines())) from None


def _budget(value: object) -> list[str]:
    try:
        if isinstance(value, str | int | float):
            seconds_of("budget", str(value))
    except UserError as error:
        return [str(error)]
    return []


def _init_of_all(config: DictConfig) -> list[str]:
    """Return a line if all pretrainings of a study would start from other weights than random ones."""
    init = config.get("init") if "inits" in config else SCRATCH
    return [] if init == SCRATCH else [f'init={init}: give it to a task, as in inits=["rotation init={init}"]']


def _without_effect(inits: Sequence[str], overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """Return a line for each setting of a pretext task that a study with `inits=` does not train."""
    given = [o for o in overrides if key_of(o).split(".")[0] == TASKS]
    if not (inits and given):
        return []
    try:
        task = chosen(COMPARE, TASKS, [o for o in overrides if key_of(o) in ("experiment", TASKS)], config_dir)
    except (HydraException, OmegaConfBaseException):
        return []  # reported by the check of the config
    if task in map(name_of, inits):
        return []
    return [f"{o}: inits= has no {task}, so it would have no effect; add {task} to inits=, or remove it" for o in given]


def _label_budgets(config: DictConfig) -> list[str]:
    """Return a line if a study has several kinds of label budgets."""
    kinds = [k for k in LABEL_LISTS if config.get(k) is not None] if "label_fractions" in config else []
    return [f"set only one of {', '.join(kinds)}: a study has one kind of label budget"] if len(kinds) > 1 else []


def _texts(config: DictConfig, key: str) -> list[str]:
    values = config.get(key)
    return [v for v in values or [] if isinstance(v, str)] if not isinstance(values, str | int | float) else []


def _init(entry: str, overrides: Sequence[str], check: Check, config_dir: str | None) -> list[str]:
    try:
        name, settings = parsed(entry, choices(TASKS, config_dir))
    except UserError as error:
        return [f"inits: {entry}: {error}"]
    if name in WITHOUT_TASK:
        return []
    shared = [o for o in overrides if key_of(o) in ("experiment", OPTIMIZER)]
    try:
        optimizer = chosen(COMPARE, OPTIMIZER, shared, config_dir)
    except (HydraException, OmegaConfBaseException):
        return []  # reported by the check of the config
    return _lines(f"inits: {entry}: ", check, PRETRAIN, [f"{OPTIMIZER}={optimizer}", f"{TASKS}={name}", *settings])


def _lines(prefix: str, check: Check, command: str, overrides: list[str]) -> list[str]:
    try:
        check(command, overrides)
    except UserError as error:
        return [f"{prefix}{line}" for line in str(error).splitlines()]
    return []
