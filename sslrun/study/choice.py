"""Settings that a search may try."""

import re
from collections.abc import Sequence

from sslrun.base.errors import UserError
from sslrun.config.build import settings_of
from sslrun.config.commands import FINETUNE
from sslrun.config.compose import compose_config, group_choices
from sslrun.config.grammar import key_of
from sslrun.config.nodes import plain
from sslrun.config.overrides import check_overrides
from sslrun.run.run import Stages
from sslrun.study.launch import IGNORED_KEYS

NOT_SEARCHABLE = (  # keys and groups of finetune that are the same for all candidates, or specific to each
    "init", "mode", "resume", "seed", "subset_seed", "labels", "label_fraction", "labels_per_class", "validation",
    "search", "pooling", "backbone", "dataset", "device", "hydra", *IGNORED_KEYS,
)  # fmt: skip


def searched(stages: Stages, search: Sequence[str], given: Sequence[str], config_dir: str | None) -> list[str]:
    """Return the settings of a search, without those that are given.

    Args:
        stages: the commands.
        search: settings of finetune, such as `augment.probability=0.5`.
        given: settings of all classifiers; keys of the search may depend on the config groups chosen here.
        config_dir: the user's own config folder.

    Raises:
        UserError: some are not valid settings, or have keys that cannot be searched; one line for each.
    """
    mistakes = []
    chosen = [o for o in group_choices(given, config_dir) if key_of(o) not in NOT_SEARCHABLE]
    nodes = {k for k, v in plain(compose_config(FINETUNE, [], None)).items() if isinstance(v, dict)} if search else {}
    for s in search:
        first = re.split(r"[./]", key := key_of(s))[0]
        if "=" not in s or {first, key} & {*NOT_SEARCHABLE} or key in nodes:
            hint = f" (one key of {key}, not the whole group)" if key in nodes else ""
            mistakes.append(f"search: {s}: expected a training setting such as augment.probability=0.5{hint}")
            continue
        if s.partition("=")[2].strip() == "auto":
            mistakes.append(f"search: {s}: expected a value to try; auto is resolved before the search")
            continue
        try:
            check_overrides(FINETUNE, settings_of(stages.named(FINETUNE)), [*chosen, s], config_dir, False)
        except UserError as error:
            mistakes += [f"search: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    keys = {key_of(s) for s in given}
    return [s for s in search if key_of(s) not in keys]
