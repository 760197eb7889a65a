"""README.md and docs/: their commands compose, their tables of keys are those of conf/, their links resolve."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from omegaconf import OmegaConf

from sslrun.base.errors import UserError
from sslrun.base.paths import CONF
from sslrun.base.version import SCHEMA
from sslrun.cli.app import app
from sslrun.cli.images import refuse_none
from sslrun.cli.invocation import Invocation, parsed
from sslrun.cli.places import quoted_paths
from sslrun.cli.resume import is_resume
from sslrun.config.commands import COMMANDS, COMPARE, FINETUNE, PRETRAIN
from sslrun.config.compose import choices, compose_config, groups
from sslrun.config.overrides import check_overrides
from sslrun.stages.table import settings
from sslrun.study.inits import tasks_of
from tests.helpers import QUICK, REPOSITORY, Cli, runs, summary

PAGES = {p.relative_to(REPOSITORY).as_posix(): p for p in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md")]}
TOP = {"--help", "--version", "COMMAND"}  # COMMAND stands for any of them
FLAGS = {"-m", "--cfg", "job"}
PLACEHOLDER = re.compile(r"<\w+>")  # outputs/finetune/<time>
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
TABLE = re.compile(r"^\| key \| default \|.*\n\|[-| ]+\n((?:\|.*\n)+)", re.MULTILINE)


def commands_of(text: str) -> Iterator[str]:
    """Yield the lines of console blocks that run sslrun, each with the lines that it is continued on."""
    for language, block in FENCE.findall(text):
        if language in ("", "bash", "console", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(\$ )?sslrun ", line) or "| sslrun " in line:
                    yield line


def mistakes_in(line: str) -> list[str]:
    """Return what is wrong with the sslrun commands of a line."""
    lexer = shlex.shlex(PLACEHOLDER.sub("TIME", line.removeprefix("$ ")), posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    words = [*lexer, "|"]
    ends = [i for i, word in enumerate(words) if set(word) <= set("|<>;&")]
    parts = [words[a + 1 : b] for a, b in zip([-1, *ends], ends, strict=False)]
    return [m for part in parts if part[:1] == ["sslrun"] for m in _mistakes(part[1:])]


def _mistakes(words: Sequence[str]) -> list[str]:
    if not words or words[0] in TOP:
        return []
    known: Any = typer.main.get_command(app)
    name, *rest = words
    if name == "data" and rest:
        known, (name, *rest) = known.commands[name], rest
    if name not in known.commands:
        return [f"{name}: no such command"]
    if name not in COMMANDS:
        try:
            known.commands[name].make_context(name, rest)
        except Exception as error:  # of the command-line parser that comes with Typer
            return [str(error)]
        return []
    return _mistakes_of_hydra(name, rest)


def _mistakes_of_hydra(command: str, arguments: Sequence[str]) -> list[str]:
    typed = parsed(command, arguments)
    if "--help" in typed.flags:
        return []
    out = [f"{flag}: no such flag" for flag in typed.flags if flag not in {*FLAGS, "-cd", typed.config_dir}]
    if typed.others and not (COMMANDS[command].images or COMMANDS[command].data):
        out.append(f"unexpected argument: {' '.join(typed.others)}")
    if not (typed.others or typed.shows_only):
        out += _refused(typed)
    as_launched = quoted_paths(typed.overrides, typed.multirun)
    overrides = [o for o in as_launched if not is_resume(o) and not (typed.config_dir and _is_own_choice(o))]
    if command == COMPARE:
        of_classifiers = [o.removeprefix("finetune.") for o in overrides if o.startswith("finetune.")]
        overrides = [o for o in overrides if not o.startswith("finetune.")]
        out += _checked(FINETUNE, of_classifiers)
        for o in overrides:
            if o.startswith("inits=["):
                for entry in tasks_of(_value(o.partition("=")[2])):
                    pretext, *own = shlex.split(entry)
                    out += _checked(PRETRAIN, [f"pretext={pretext}", *own])
    return out + _checked(command, overrides, "-m" in typed.flags)


def _refused(typed: Invocation) -> list[str]:
    try:
        refuse_none(typed)
    except UserError as error:
        return [str(error)]
    return []


def _is_own_choice(override: str) -> bool:
    group, _, choice = override.partition("=")
    return group in groups() and choice not in choices(group)


def _value(text: str) -> Any:
    config: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    return config["value"]


def _checked(command: str, overrides: Sequence[str], multirun: bool = False) -> list[str]:
    try:
        check_overrides(command, settings(command), overrides, None, multirun)
    except UserError as error:
        return str(error).splitlines()
    return []


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere, and those to a heading that is not there."""
    out = []
    for match in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
        link = match[1] or match[2]
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            out.append(link)
    return out


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w -]", "", plain).replace(" ", "-")
        found.add(next(s for s in (slug, *(f"{slug}-{i}" for i in range(1, 99))) if s not in found))
    return found


def wrong_defaults(command: str, text: str, *chosen: str) -> list[str]:
    """Return the rows of tables of keys that name no key of a command, or another default than it has."""
    config: Any = OmegaConf.to_container(compose_config(command, list(chosen), None), resolve=False)
    out = []
    for table in TABLE.findall(text):
        for row in table.splitlines():
            key, default = (cell.strip("` ") for cell in row.split("|")[1:3])
            node: Any = config if "." in key else config | _group_defaults(command)
            for name in key.split("."):
                node = node.get(name, KeyError) if isinstance(node, dict) else KeyError
            if node is KeyError or _value(default) != node:
                out.append(row)
    return out


def _group_defaults(command: str) -> dict[str, str]:
    listed: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{command}.yaml"))
    found: dict[str, str] = {}
    for entry in listed["defaults"]:
        if isinstance(entry, dict):
            ((group, choice),) = entry.items()
            found |= {} if group.startswith("override ") else {group.removeprefix("optional "): choice}
        elif not entry.startswith("_"):  # a command that it builds on
            found |= _group_defaults(entry)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_composes(page: str) -> None:
    found = {line: mistakes_in(line) for line in dict.fromkeys(commands_of(PAGES[page].read_text(encoding="utf-8")))}
    assert {line: m for line, m in found.items() if m} == {}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_on_a_page_resolves(page: str) -> None:
    assert broken_links(PAGES[page]) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_with_its_defaults(command: str) -> None:
    is_data = COMMANDS[command].is_data
    text = PAGES[f"docs/{'data' if is_data else command}.md"].read_text(encoding="utf-8")
    assert f"sslrun {'data ' if is_data else ''}{command}" in text
    if not is_data:
        assert wrong_defaults(command, text) == []
    elif command == "check":  # whose table is of the keys of a data set
        assert wrong_defaults(command, text, "dataset=folder") == []


def test_every_page_is_linked() -> None:
    linked = {Path(m[1]).name for p in PAGES.values() for m in LINK.finditer(p.read_text(encoding="utf-8")) if m[1]}
    assert [name for name in PAGES if name.startswith("docs/") and Path(name).name not in linked] == []


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("sslrun pretrian", "pretrian: no such command"),
        ("sslrun data chekc", "chekc: no such command"),
        ("sslrun pretrain train.epoch=3", "train.epoch: no such key"),
        ("sslrun pretrain pretext=simcrl", "no such pretext"),
        ("sslrun export photos/", "unexpected argument: photos/"),
        ("sslrun pretrain pretext=rotation", "no images given"),
        ("sslrun finetune label_fraction=0.1,0.2", "put -m before it"),
        ("sslrun predict -n image.jpg", "-n: no such flag"),
        ("$ find . | sslrun predict - formt=csv | head  # names", "formt: no such key"),
        ("sslrun compare finetune.train.step=3", "train.step: no such key"),
        ("sslrun compare 'inits=[simclr,\"simclr pretext.temp=0.5\"]'", "pretext.temp: no such key"),
        ("sslrun compare dataset=folder", "dataset.root: required"),
        ("sslrun runs --fromat csv", "No such option"),
    ],
)
def test_a_wrong_command_is_seen(line: str, part: str) -> None:
    assert part in "\n".join(mistakes_in(line))


def test_a_wrong_link_and_a_wrong_default_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n\n[a](#one-two-three) [b](#one) [c](no.md) [d](page.md#two) [e](https://x.y)\n"
    )
    assert broken_links(page) == ["#one", "no.md", "page.md#two"]
    table = "| key | default | |\n|---|---|---|\n| `seed` | `0` | |\n| `sed` | `0` | |\n| `n` | `5` | |\n"
    assert wrong_defaults("suggest", table) == ["| `sed` | `0` | |", "| `n` | `5` | |"]


def test_a_command_in_a_block_is_found_and_an_output_is_not() -> None:
    text = "```console\n$ sslrun runs \\\n  pretrain\nsslrunning\n```\n\n```python\nsslrun = 1\n```\nsslrun runs\n"
    assert list(commands_of(text)) == ["$ sslrun runs    pretrain"]


def fields(page: str, section: str) -> set[str]:
    """Return the names in the first column of a table; `train/...` stands for all that begin so."""
    part = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`([^`]+)`", part))


def test_the_page_of_files_has_the_fields_of_summaries_and_reports(in_world: Path, cli: Cli) -> None:
    assert cli("evaluate", *QUICK).code == 0
    page = PAGES["docs/files.md"].read_text(encoding="utf-8")
    known = fields(page, "summary.json")
    for run in [*runs("pretrain"), *runs("finetune"), *runs("evaluate")]:
        made = summary(run)
        assert made["schema"] == SCHEMA
        assert {k for k in made if not k.startswith("train/")} <= known
    report = json.loads((runs("evaluate")[-1] / "report.json").read_text())
    assert set(report) <= fields(page, "report.json")
    assert f"this page, {SCHEMA};" in page
