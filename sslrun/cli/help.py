"""`sslrun COMMAND --help`. Neither torch nor Hydra is imported here, so that it prints at once."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sslrun.base.paths import CONF
from sslrun.config.commands import COMMANDS, FROM_CHECKPOINT, typed
from sslrun.config.names import nearest


def print_help(stage: str, overrides: Sequence[str], config_dir: str | None) -> None:
    """Print a command's config groups with their choices, and its keys with their defaults and comments.

    Args:
        stage: the command.
        overrides: of the command line; the keys are those of the choices in them.
        config_dir: the user's own config folder.
    """
    folders = [CONF, *([Path(config_dir)] if config_dir else [])]
    lines = (CONF / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
    about = [line.removeprefix("#")[1:] for line in lines if line.startswith("#")]
    defaults, keys = _of_stage(stage)
    paths = "[IMAGE or FOLDER ...] " if COMMANDS[stage].images else "[FOLDER] " if COMMANDS[stage].data else ""
    given = {k: v.split(",")[0] for k, v in (o.split("=", 1) for o in overrides if "=" in o)}  # the first of a sweep
    chosen: list[tuple[str, str]] = []
    groups = []
    for line in defaults:
        item = line.split("#")[0].strip(" -").removeprefix("optional ").replace("override ", "")
        if ":" in item and not item.startswith("hydra"):
            group, default = (part.strip() for part in item.split(":"))
            names = {p.stem for f in folders for p in (f / group).glob("*.yaml") if not p.stem.startswith("_")}
            names -= {FROM_CHECKPOINT} if default != FROM_CHECKPOINT else set()
            groups.append(f"  {group + '=' + default:<27}{' | '.join(sorted(names))}")
            choice = given.get(group, default)
            if choice != default and choice not in names:
                hint = nearest(choice, sorted(names)) or "."
                message = f"{group}={choice}: no such {group}{hint} Choices: {', '.join(sorted(names))}"
                print(f"sslrun: {message}", file=sys.stderr)
                sys.exit(1)
            chosen.append((group, choice))
    print(f"Usage: {typed(stage)} [flags] {paths}[key=value ...]\n")
    print("\n".join(f"  {line}".rstrip() for line in about))
    print("\nGroups (group=choice, then group.key=value):")
    print("\n".join(groups))
    print("\nKeys and their defaults:")
    print("\n".join(f"  {line}" for line in keys if line.strip() and not _is_target(line)))
    for group, choice in chosen:
        if choice not in ("null", FROM_CHECKPOINT):
            print(f"  {group}:  # {choice}")
            print("\n".join(f"    {line}" for line in _keys(folders, group, choice)))
    print(
        "\nFlags (put them before key=value):"
        "\n  -m             run a sweep over comma-separated values"
        "\n  --cfg job      print the config and exit"
        "\n  -cd DIR        add a folder with your own config files"
        "\n  --hydra-help   show all flags"
    )


def _of_stage(stage: str) -> tuple[list[str], list[str]]:
    """Return the lines of a command's defaults list and of its keys, with those of the command that it extends."""
    lines = (CONF / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    start = body.index("defaults:") + 1
    end = next((i for i in range(start, len(body)) if not body[i].startswith(" ")), len(body))
    defaults, keys = body[start:end], body[end:]
    for parent in [line.strip(" -") for line in defaults]:
        if parent != "_base" and (CONF / f"{parent}.yaml").is_file():
            more = _of_stage(parent)
            defaults, keys = [*defaults, *more[0]], [*keys, *more[1]]
    return defaults, keys


def _keys(folders: list[Path], group: str, choice: str) -> list[str]:
    """Return the lines of a choice's file, merged over those of the group's `_shared.yaml`."""
    lines: dict[str, str] = {}
    for name in ("_shared", choice):
        file = next((f / group / f"{name}.yaml" for f in folders if (f / group / f"{name}.yaml").is_file()), None)
        for line in file.read_text(encoding="utf-8").splitlines() if file else []:
            if line.strip() and not (_is_target(line) or line.startswith(("#", "defaults:"))):
                lines[line.split(":")[0]] = line
    return list(lines.values())


def _is_target(line: str) -> bool:
    return line.strip().startswith("_target_:")
