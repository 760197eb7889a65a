"""`sslrun completion SHELL`: a script that has all commands, choices and keys, so that completing starts no Python."""

import shlex
from collections.abc import Callable, Iterable

from sslrun.base.errors import UserError
from sslrun.config.commands import COMMANDS, FROM_CHECKPOINT
from sslrun.config.compose import choices, compose_config, groups
from sslrun.config.overrides import keys_of

FLAGS = ("-m", "-cd", "--help")
PLAIN = ("data", "demo", "guide", "report", "runs", "weights", "completion")  # commands without keys
BASH = """\
_sslrun() {
  local line="${COMP_LINE:0:COMP_POINT}" current list before
  current="${line##* }"
  local -a words
  read -ra words <<< "${line%"$current"}"
  case "${words[1]} ${words[2]}" in
    " ") list=@TOP@ ;;
    "data ") list=@DATA@ ;;
@CASES@
  esac
  COMPREPLY=($(compgen -W "$list" -- "$current"))
  [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then
    before="${current%"${current##*=}"}"
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
  fi
}
complete -o default -F _sslrun sslrun
"""
ZSH = """\
#compdef sslrun
_sslrun() {
  local top=@TOP@ data=@DATA@ found
  local -a list
  case "${words[2]} ${words[3]}" in
@CASES@
  esac
  list=(${=found})
  (( CURRENT == 2 )) && list=(${=top})
  (( CURRENT == 3 )) && [[ ${words[2]} == data ]] && list=(${=data})
  compadd -Q -S '' -- ${(M)list:#*=}
  compadd -Q -- ${list:#*=}
  if (( CURRENT > 2 )); then _files; fi
}
if [[ $funcstack[1] == _sslrun ]]; then _sslrun "$@"; elif (( $+functions[compdef] )); then compdef _sslrun sslrun; fi
"""


def script(shell: str) -> str:
    """Return the script for a shell.

    Raises:
        UserError: no such shell.
    """
    if shell not in SHELLS:
        raise UserError(f"{shell}: no such shell. Shells: {', '.join(SHELLS)}")
    return SHELLS[shell]()


def entries(command: str) -> list[str]:
    """Return what may follow a command: the choices of its groups, its keys, and flags."""
    config, keys = compose_config(command, [], None), keys_of(command, None)
    own = [g for g in groups() if g in config or g == "experiment"]
    chosen = [f"{g}={c}" for g in own for c in choices(g) if c != FROM_CHECKPOINT]
    nodes = {key.rpartition(".")[0] for key in keys}
    return [*chosen, *(f"{key}=" for key in keys if key not in nodes), *FLAGS]


def _listed(is_data: bool) -> list[str]:
    return [name for name, c in COMMANDS.items() if c.is_data == is_data]


def _words(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _filled(text: str, case: Callable[[str, str], str]) -> str:
    """Return a script with its lists; `case` returns the line of a command by a pattern of its first two words."""
    patterns = {name: f'"data {name}"' if COMMANDS[name].is_data else f'"{name} "*' for name in COMMANDS}
    lists = {
        "@TOP@": _words([*_listed(False), *PLAIN]),
        "@DATA@": _words(_listed(True)),
        "@CASES@": "\n".join(case(pattern, _words(entries(name))) for name, pattern in patterns.items()),
    }
    for key, value in lists.items():
        text = text.replace(key, value)
    return text


def _bash() -> str:
    return _filled(BASH, lambda pattern, words: f"    {pattern}) list={words} ;;")


def _zsh() -> str:
    return _filled(ZSH, lambda pattern, words: f"    {pattern}) found={words} ;;")


def _fish() -> str:
    top, data = _words([*_listed(False), *PLAIN]), _listed(True)
    no_data = f"__fish_seen_subcommand_from data; and not __fish_seen_subcommand_from {' '.join(data)}"
    lines = [
        f"complete -c sslrun -n __fish_use_subcommand -f -a {top}",
        f"complete -c sslrun -n '{no_data}' -f -a {_words(data)}",
        *(f"complete -c sslrun -n '__fish_seen_subcommand_from {n}' -a {_words(entries(n))}" for n in COMMANDS),
    ]
    return "\n".join(lines) + "\n"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
