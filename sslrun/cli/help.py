"""What `sslrun COMMAND --help` prints. It imports neither torch nor Hydra, and so answers at once."""

from pathlib import Path

from sslrun.base.paths import CONF
from sslrun.config.commands import COMMANDS, FROM_CHECKPOINT, typed


def print_help(stage: str, own: str | None) -> None:
    """Print a command's groups with their choices, and its keys with their defaults and what they mean."""
    folders = [CONF, *([Path(own)] if own else [])]
    lines = (CONF / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
    about = [line.removeprefix("#").strip() for line in lines if line.startswith("# ")]
    defaults, keys = _of_stage(stage)
    print(
        f"Usage: {typed(stage)} [flags] {'[IMAGE or FOLDER ...] ' if COMMANDS[stage].images else ''}[key=value ...]\n"
    )
    print("\n".join(f"  {line}" for line in about))
    chosen: list[tuple[str, str]] = []
    print("\nGroups (group=choice, then group.key=value):")
    for line in defaults:
        item = line.split("#")[0].strip(" -").removeprefix("optional ").replace("override ", "")
        if ":" in item and not item.startswith("hydra"):
            group, default = (part.strip() for part in item.split(":"))
            names = {p.stem for f in folders for p in (f / group).glob("*.yaml") if not p.stem.startswith("_")}
            names -= {FROM_CHECKPOINT} if default != FROM_CHECKPOINT else set()
            print(f"  {group + '=' + default:<27}{' | '.join(sorted(names))}")
            chosen.append((group, default))
    print("\nKeys and their defaults:")
    print("\n".join(f"  {line}" for line in keys if line.strip()))
    for group, default in chosen:
        if default not in ("null", FROM_CHECKPOINT):
            print(f"  {group}:  # {default}")
            print("\n".join(f"    {line}" for line in _keys(folders, group, default)))
    print(
        "\nFlags: -m sweeps over values with commas, --cfg job shows the config, -cd DIR adds config files of your own;"
        "\nmore with --hydra-help. Put flags before key=value."
    )


def _of_stage(stage: str) -> tuple[list[str], list[str]]:
    """Return the lines of a stage's file: its defaults, and its keys; with those of the stage that it builds on."""
    lines = (CONF / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    start = body.index("defaults:") + 1
    end = next((i for i in range(start, len(body)) if not body[i].startswith(" ")), len(body))
    defaults, keys = body[start:end], body[end:]
    for under in [line.strip(" -") for line in defaults]:
        if under != "_base" and (CONF / f"{under}.yaml").is_file():
            more = _of_stage(under)
            defaults, keys = [*defaults, *more[0]], [*keys, *more[1]]
    return defaults, keys


def _keys(folders: list[Path], group: str, choice: str) -> list[str]:
    """Return the lines of a group's file, over those of its `_shared.yaml`."""
    lines: dict[str, str] = {}
    for name in ("_shared", choice):
        file = next((f / group / f"{name}.yaml" for f in folders if (f / group / f"{name}.yaml").is_file()), None)
        for line in file.read_text(encoding="utf-8").splitlines() if file else []:
            if line.strip() and not line.startswith(("#", "_target_", "defaults:")):
                lines[line.split(":")[0]] = line
    return list(lines.values())
