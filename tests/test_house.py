"""The house keeps its order: what may import what, how long a file and a function may be, whose inner parts are used.

The code is read, never imported. Each check is a pure function over {path below sslrun/: source} that returns one
sentence a fault, so that the last tests can hand it a made-up tree and see it fail.

A *room* is a direct child of sslrun/: a folder with Python files at any depth, or a module next to the folders
(`augment.py`, `__init__.py`). Packages inside a room (data/sources, models/backbones, tasks/pretext) belong to it.
Where rooms are counted, benchmarks/ is one more. Documentation that draws the tree is not checked.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

# The order of imports, from the top floor down: a room imports its own floor (without a circle) and those below.
ORDER = (
    ("__main__",),
    ("cli",),
    ("stages",),
    ("report",),
    ("study", "__init__"),
    ("inference", "training"),
    ("evaluation", "tasks"),
    ("models",),
    ("run",),
    ("data", "device", "augment"),
    ("config",),
    ("base",),
)
# The one exception: `sslrun.pretrain(...)` and the like run a command, and the package hands them on lazily.
HANDED_ON = ("__init__.py", "sslrun.cli.python")
MOST_ROOMS, MOST_FLOORS = 18, 12
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 370, 65, 12

COMMANDS = {
    *("pretrain", "finetune", "evaluate", "predict", "embed", "search", "suggest", "export"),
    *("compare", "fetch", "check", "doubt", "preview", "report", "demo", "runs"),
}
COMMANDS_LISTED = "config/commands.py"
RENAMED = ("config/build.py", "RENAMED")  # the table of old dotted names, which may name anything

# A study is made of runs of these commands, and starts and reads them by their names: file of study/ -> constants.
OF_A_STUDY = {
    "budget": ("PRETRAIN", "FINETUNE"),
    "choice": ("FINETUNE",),
    "launch": ("PRETRAIN", "FINETUNE", "EVALUATE"),
    "plan": ("PRETRAIN", "FINETUNE", "EVALUATE"),
    "results": ("PRETRAIN", "FINETUNE", "EVALUATE", "COMPARE"),
    "settings": ("PRETRAIN", "FINETUNE"),
}
# A command's name below stages/ that means something else there: (file, word) -> what it means.
ALLOWED: dict[tuple[str, str], str] = {
    ("config/renames.py", "search"): "a key of finetune's config",
    ("config/renames.py", "finetune"): "a key of compare's config",
    ("report/sweep.py", "runs"): "a column of a sweep's table",
    ("training/candidates.py", "finetune"): "a value of mode=",
    ("study/budget.py", "search"): "a key of finetune's config",
    ("study/choice.py", "search"): "a key of finetune's config",
    ("study/plan.py", "search"): "a key of finetune's config",
    ("study/results.py", "search"): "a key of finetune's config",
    ("study/settings.py", "search"): "a key of finetune's config, and of compare's",
    ("study/settings.py", "finetune"): "a key of compare's config",
    **{("__init__.py", name): "handed on from cli/python.py" for name in ("pretrain", "finetune", "evaluate", "runs")},
    **{(f"study/{file}.py", name): "of a study" for file, names in OF_A_STUDY.items() for name in names},
}
# Dataclasses that are the rows of a table, with as many fields as it has columns.
ROWS = {("study/results.py", "Row")}
# Files of stages/ that are no command of Hydra's, and so have no settings.
NO_JOB = {
    "stages/report.py": "a plain command of Typer: it takes paths, and makes no run",
    "stages/next.py": "what follows a command",
}
# Private parts of others: (file, function; "Class.method" for a method) -> the test that pins them.
PRIVATE: dict[tuple[str, str], str] = {
    (
        "training/jobs.py",
        "stop",
    ): "tests/stages/test_finetune.py: test_case_26_an_interrupted_validation_training_leaves_no_worker_process",
    ("study/launch.py", "launcher"): "tests/study/test_launch.py: test_the_private_api_of_hydra_launches_a_job",
}
DOCUMENTED = {"_exit", "_replace", "_asdict", "_fields"}  # public despite the underscore: os._exit, named tuples

Sources = Mapping[str, str]
Parents = tuple[ast.AST, ...]
Function = ast.FunctionDef | ast.AsyncFunctionDef
FLOOR = {room: height for height, floor in enumerate(reversed(ORDER)) for room in floor}


# Reading


def read(package: Path) -> dict[str, str]:
    return {f.relative_to(package).as_posix(): f.read_text(encoding="utf-8") for f in sorted(package.rglob("*.py"))}


@cache
def nodes(source: str) -> list[tuple[ast.AST, Parents]]:
    """Every node of a file with its parents, the outermost first."""
    result: list[tuple[ast.AST, Parents]] = []

    def visit(node: ast.AST, parents: Parents) -> None:
        result.append((node, parents))
        for child in ast.iter_child_nodes(node):
            visit(child, (*parents, node))

    visit(ast.parse(source), ())
    return result


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def room_named(name: str, sources: Sources) -> str:
    """The room that a dotted name ("sslrun.data.fetch", "sslrun.load") points into."""
    room = name.split(".")[1] if "." in name else "__init__"
    return room if room in FLOOR or room in map(room_of, sources) else "__init__"


def private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not (name.startswith("__") and name.endswith("__"))


def outer_function(parents: Parents) -> str:
    """The outermost function around a node, as "name" or "Class.name"; "" in the body of the module."""
    names: list[str] = []
    for parent in parents:
        if isinstance(parent, ast.ClassDef):
            names.append(parent.name)
        elif isinstance(parent, Function):
            return ".".join([*names, parent.name])
    return ""


class Import(NamedTuple):
    path: str
    line: int
    name: str  # absolute and dotted; "a.b" for `from a import b`
    at_import: bool  # outside functions and `if TYPE_CHECKING`
    function: str

    def __str__(self) -> str:
        return f"sslrun/{self.path}:{self.line}: {self.function or 'the module'} imports {self.name}"


def imports(sources: Sources) -> Iterator[Import]:
    for path, source in sources.items():
        package = ["sslrun", *path.split("/")[:-1]]
        for node, parents in nodes(source):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) + 1 - node.level] if node.level else []
                start = [*start, node.module] if node.module else start
                names = [".".join([*start, alias.name]) for alias in node.names]
            else:
                continue
            later = any(isinstance(p, Function | ast.Lambda) for p in parents) or any(
                isinstance(p, ast.If) and "TYPE_CHECKING" in ast.unparse(p.test) for p in parents
            )
            for name in names:
                yield Import(path, node.lineno, name, not later, outer_function(parents))


def inside(sources: Sources) -> Iterator[tuple[Import, str, str]]:
    """The imports of sslrun in sslrun: import, room from, room to; not those within one room."""
    for result in imports(sources):
        if result.name.split(".")[0] == "sslrun":
            start, end = room_of(result.path), room_named(result.name, sources)
            if start != end:
                yield result, start, end


def texts(sources: Sources) -> Iterator[tuple[str, int, str, Parents]]:
    """Every string that does something, so no docstring: path, line, text, parents."""
    for path, source in sources.items():
        for node, parents in nodes(source):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not isinstance(parents[-1], ast.Expr):
                yield path, node.lineno, node.value, parents


def parameters(function: Function) -> list[ast.arg]:
    a = function.args
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]


class Measured(NamedTuple):
    path: str
    line: int
    name: str
    lines: int  # from `def` to the end, without the docstring
    parameters: int  # of all kinds, without self and cls


def functions(sources: Sources) -> Iterator[Measured]:
    for path, source in sources.items():
        for node, parents in nodes(source):
            if isinstance(node, Function):
                first = node.body[0]
                answer = first if ast.get_docstring(node, clean=False) is not None else None
                doc = (answer.end_lineno or 0) - answer.lineno + 1 if answer else 0
                count = sum(i > 0 or arg.arg not in ("self", "cls") for i, arg in enumerate(parameters(node)))
                names = [p.name for p in parents if isinstance(p, Function | ast.ClassDef)]
                lines = (node.end_lineno or 0) - node.lineno + 1 - doc
                yield Measured(path, node.lineno, ".".join([*names, node.name]), lines, count)


def circle(arrows: Mapping[str, Mapping[str, Import]]) -> list[str]:
    """The imports of one circle, if there is one."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        around = error.args[1][::-1]
        return [str(arrows[start][end]) for start, end in pairwise(around)]
    return []


# What must not be: each returns its faults


def rooms_out_of_order(sources: Sources) -> list[str]:
    rooms = sorted({room_of(path) for path in sources})
    named = [room for floor in ORDER for room in floor]
    faults = [
        f"sslrun/{r} is no room of ORDER: move it into a room, or give it a floor" for r in rooms if r not in named
    ]
    faults += [f"ORDER names {r}, and sslrun/ has no such room: take it out" for r in named if r not in rooms]
    faults += [f"ORDER names {r} twice" for r in sorted(set(named)) if named.count(r) > 1]
    return faults


def too_many_rooms(sources: Sources) -> list[str]:
    rooms = len({room_of(path) for path in sources}) + 1  # and benchmarks/
    faults = [f"{rooms} rooms, at most {MOST_ROOMS}: merge two"] if rooms > MOST_ROOMS else []
    return faults + ([f"{len(ORDER)} floors, at most {MOST_FLOORS}"] if len(ORDER) > MOST_FLOORS else [])


def imports_up(sources: Sources) -> list[str]:
    return [
        f"{result}: {end} stands above {start}. Move what is shared down, or hand it in as an argument"
        for result, start, end in inside(sources)
        if start in FLOOR and end in FLOOR and FLOOR[start] < FLOOR[end] and not _is_handed_on(result)
    ]


def _is_handed_on(result: Import) -> bool:
    path, name = HANDED_ON
    return result.path == path and f"{result.name}.".startswith((f"{name}.", "sslrun.cli."))


def imports_on_a_floor(sources: Sources) -> list[str]:
    return [
        f"{result}: {start} and {end} stand on one floor. Move what is shared down, or give one of them a floor above"
        for result, start, end in inside(sources)
        if start in FLOOR and FLOOR[start] == FLOOR.get(end)
    ]


def strings_up(sources: Sources) -> list[str]:
    faults = []
    for path, line, text, parents in texts(sources):
        targets = [t for p in parents[1:2] for t in getattr(p, "targets", [getattr(p, "target", None)])]
        if (path, *(t.id for t in targets if isinstance(t, ast.Name))) == RENAMED:
            continue
        for name in re.findall(r"(?<![\w./-])sslrun\.[A-Za-z_]\w*", text):
            room = room_named(name, sources)
            if FLOOR.get(room_of(path), len(ORDER)) < FLOOR.get(room, 0):
                faults.append(
                    f'sslrun/{path}:{line}: the string "{text}" names {room}, which stands above {room_of(path)}. '
                    "Hand in what it stands for as an argument"
                )
    return faults


def circles_of_modules(sources: Sources) -> list[str]:
    def module(name: str) -> str | None:
        parts = name.split(".")[1:]
        tried = ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]
        return next((p for t in tried for p in (f"{t}.py", f"{t}/__init__.py".lstrip("/")) if p in sources), None)

    arrows: dict[str, dict[str, Import]] = defaultdict(dict)
    for result in imports(sources):
        target = module(result.name) if result.name.split(".")[0] == "sslrun" else None
        if target and target != result.path:
            arrows[result.path].setdefault(target, result)
    return [f"{arrow}: modules import each other in a circle. Cut one" for arrow in circle(arrows)]


def commands_below_stages(sources: Sources) -> Iterator[tuple[str, int, str]]:
    """Names of commands below stages/, as text or as the constants that stand for them: path, line, name."""
    words = [(path, line, text) for path, line, text, _ in texts(sources) if text in COMMANDS]
    constants = {c.upper(): c for c in COMMANDS}
    for result in imports(sources):
        where, _, name = result.name.rpartition(".")
        if where == "sslrun.config.commands" and name in constants:
            words.append((result.path, result.line, name))
    for path, line, word in words:
        if room_of(path) not in ("__main__", "cli", "stages") and path != COMMANDS_LISTED:
            yield path, line, word


def commands_known_below(sources: Sources) -> list[str]:
    lines: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)  # each line once, in order
    for path, line, word in commands_below_stages(sources):
        lines[path, word][str(line)] = None
    return [
        f'sslrun/{path}:{", ".join(at)}: "{word}" is the name of a command, and {room_of(path)} stands below '
        "stages. Have it handed in; if the word means something else there, say so in ALLOWED of test_house.py"
        for (path, word), at in lines.items()
        if (path, word) not in ALLOWED
    ]


def too_long(sources: Sources) -> list[str]:
    faults = [
        f"sslrun/{path} has {n} lines, at most {LONGEST_FILE}: split it by what it is about"
        for path, source in sources.items()
        if (n := len(source.splitlines())) > LONGEST_FILE
    ]
    for f in functions(sources):
        if f.lines > LONGEST_FUNCTION:
            most = f"at most {LONGEST_FUNCTION} without its docstring: take a step out of it"
            faults.append(f"sslrun/{f.path}:{f.line}: {f.name} has {f.lines} lines, {most}")
    return faults


def too_many_parameters(sources: Sources) -> list[str]:
    taken = [(f.path, f.line, f.name, f.parameters) for f in functions(sources)]
    for path, source in sources.items():
        for node, _ in nodes(source):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = sum(isinstance(part, ast.AnnAssign) for part in node.body)
                if room_of(path) != "stages" and (path, node.name) not in ROWS:  # settings have as many as there are
                    taken.append((path, node.lineno, node.name, fields))
    return [
        f"sslrun/{path}:{line}: {name} takes {n} parameters, at most {MOST_PARAMETERS}: "
        "group those that belong together in a dataclass"
        for path, line, name, n in taken
        if n > MOST_PARAMETERS
    ]


def private_uses(sources: Sources) -> Iterator[tuple[str, int, str, str]]:
    """Private parts of others: path, line, outermost function, what is used."""
    for result in imports(sources):
        if result.name.split(".")[0] != "sslrun" and any(map(private, result.name.split("."))):
            yield result.path, result.line, result.function, result.name
    for path, source in sources.items():
        for node, parents in nodes(source):
            match node:
                case ast.Attribute(value=value, attr=name):
                    pass
                case ast.Call(
                    func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
                    args=[value, ast.Constant(value=str(name)), *_],
                ):
                    pass
                case _:
                    continue
            own = {"self", "cls", "super()", *(p.name for p in parents if isinstance(p, ast.ClassDef))}
            if private(name) and name not in DOCUMENTED and ast.unparse(value) not in own:
                yield path, node.lineno, outer_function(parents), f"{ast.unparse(value)}.{name}"


def private_parts_of_others(sources: Sources) -> list[str]:
    return [
        f"sslrun/{path}:{line}: {function or 'the module'} uses {what}, which is private. Use a public interface; "
        "if there is none, keep it in one function, pin it by a test, and note both in PRIVATE of test_house.py"
        for path, line, function, what in private_uses(sources)
        if (path, function) not in PRIVATE
    ]


def private_names_of_other_modules(sources: Sources) -> list[str]:
    return [
        f"{result}, which is private to its module. Make it public there, or move it here"
        for result in imports(sources)
        if result.name.split(".")[0] == "sslrun" and any(map(private, result.name.split(".")))
    ]


def code_in_init(sources: Sources) -> list[str]:
    faults = []
    for path, source in sources.items():
        body = ast.parse(source).body if path.endswith("/__init__.py") else []
        rest = body[1:] if body and ast.get_docstring(ast.Module(body, []), clean=False) is not None else body
        if rest:
            faults.append(f"sslrun/{path}:{rest[0].lineno}: holds more than a docstring. Import from the module itself")
    return faults


def settings_classes(sources: Sources) -> set[str]:
    """The names of the dataclasses that are frozen and take keywords only."""

    def fits(decorator: ast.expr) -> bool:
        if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func).split(".")[-1] != "dataclass":
            return False
        return {"frozen=True", "kw_only=True"} <= {f"{k.arg}={ast.unparse(k.value)}" for k in decorator.keywords}

    classes = (node for source in sources.values() for node, _ in nodes(source) if isinstance(node, ast.ClassDef))
    return {node.name for node in classes if any(map(fits, node.decorator_list))}


def stages_out_of_form(sources: Sources) -> list[str]:
    faults, settings = [], settings_classes(sources)
    for path, source in sources.items():
        name = Path(path).stem
        if room_of(path) != "stages" or name in ("table", "__init__") or path in NO_JOB:
            continue
        result = [node for node in ast.parse(source).body if isinstance(node, Function) and node.name == name]
        if not result:
            faults.append(f"sslrun/{path}: a stage is a function with the file's name: define {name}(run, settings)")
            continue
        taken = parameters(result[0])
        place = f"sslrun/{path}:{result[0].lineno}: {name}"
        if [arg.arg for arg in taken] != ["run", "settings"]:
            faults.append(f"{place} takes ({', '.join(arg.arg for arg in taken)}): a stage takes (run, settings)")
            continue
        wanted = ast.unparse(taken[1].annotation).strip("'\"").split(".")[-1] if taken[1].annotation else "nothing"
        if wanted not in settings:
            needed = "annotate it with a class decorated @dataclass(frozen=True, kw_only=True)"
            faults.append(f"{place}: `settings` is annotated with {wanted}: {needed}")
    return faults


# The house as it stands

Check = Callable[[Sources], list[str]]
CHECKS: list[Check] = [
    rooms_out_of_order,
    too_many_rooms,
    imports_up,
    imports_on_a_floor,
    strings_up,
    circles_of_modules,
    commands_known_below,
    too_long,
    too_many_parameters,
    private_parts_of_others,
    private_names_of_other_modules,
    code_in_init,
    stages_out_of_form,
]
PACKAGE = Path(__file__).parents[1] / "sslrun"


@pytest.fixture(scope="module")
def house() -> Sources:
    return read(PACKAGE)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_there_is_no_fault(check: Check, house: Sources) -> None:
    faults = check(house)
    if faults:
        pytest.fail(f"{len(faults)} faults:\n" + "\n".join(faults), pytrace=False)


def test_every_exception_is_needed(house: Sources) -> None:
    unused_words = set(ALLOWED) - {(path, word) for path, _, word in commands_below_stages(house)}
    unused_parts = set(PRIVATE) - {(path, function) for path, _, function, _ in private_uses(house)}
    unused_files = {p for p in NO_JOB if f"def {Path(p).stem}(" in house.get(p, "")} | (set(NO_JOB) - set(house))
    assert not unused_words, f"take out of ALLOWED: {sorted(unused_words)}"
    assert not unused_parts, f"take out of PRIVATE: {sorted(unused_parts)}"
    assert not unused_files, f"take out of NO_JOB: {sorted(unused_files)}"


# The tests mirror the house

TESTS = Path(__file__).parent
ABOUT_ALL: dict[str, str] = {  # tests of the repository as a whole -> what they are about
    "gpu/test_gpu.py": "what runs on a CUDA GPU, against a CPU",
    "test_as_they_lie.py": "images and labels as people have them, from check to predict",
    "test_cases.py": "the numbered cases and their tests",
    "test_docs.py": "README and docs/: commands, defaults, links",
    "test_extend.py": "tasks, backbones and data sets from outside the package",
    "test_extending.py": "the examples of docs/extending.md",
    "test_gray_images.py": "images of more than 8 bits through all commands",
    "test_host.py": "a program that uses sslrun is left as it was",
    "test_house.py": "this file",
    "test_old_runs.py": "runs of earlier versions",
    "test_package.py": "the wheel and the lock file",
    "test_published.py": "the published data sets, from fetching to evaluation",
    "test_readme.py": "README and the pages on reliability and measurements",
    "test_words.py": "the words of code, configs and docs",
}


def misplaced_tests(tests: Collection[str], sources: Collection[str]) -> list[str]:
    """Tests (paths below tests/) that are of no module: tests/data/test_cache.py is of sslrun/data/cache.py."""
    faults = []
    for path in tests:
        folder, _, name = path.rpartition("/")
        module = f"{folder}/{name.removeprefix('test_')}".lstrip("/")
        if module not in sources and path not in ABOUT_ALL:
            faults.append(f"tests/{path}: there is no sslrun/{module}. Move the tests to where the code is")
    return faults


def test_tests_lie_where_the_code_lies(house: Sources) -> None:
    result = sorted(p.relative_to(TESTS).as_posix() for p in TESTS.rglob("test_*.py"))
    assert misplaced_tests(result, house) == []
    assert set(ABOUT_ALL) <= set(result)
    rooms = {p.relative_to(TESTS).as_posix() for p in TESTS.rglob("__init__.py")} - {"__init__.py", "gpu/__init__.py"}
    assert rooms <= set(house), f"folders of tests that are no rooms: {sorted(rooms - set(house))}"


def test_no_module_is_hidden_by_a_folder() -> None:
    """mypy reads a folder, not the module of the same name next to it."""
    root = Path(__file__).parents[1]
    modules = [m for top in ("sslrun", "tests", "benchmarks") for m in (root / top).rglob("*.py")]
    assert len(modules) > 300
    assert [str(m.relative_to(root)) for m in modules if m.with_suffix("").is_dir()] == []


def test_a_test_of_no_module_is_seen() -> None:
    tests = ("test_device.py", "data/test_cache.py", "data/sources/test_cifar10.py", "test_house.py")
    sources = ("device.py", "data/cache.py", "data/sources/cifar10.py")
    assert misplaced_tests(tests, sources) == []
    assert "no sslrun/data/dataset.py" in misplaced_tests(["data/test_dataset.py"], sources)[0]
    assert "no sslrun/cache.py" in misplaced_tests(["test_cache.py"], sources)[0]
    assert "no sslrun/house/cache.py" in misplaced_tests(["house/test_cache.py"], sources)[0]


# Each check sees what it is there for

STAGE = """
@dataclass(frozen=True, kw_only=True)
class Settings:
    image_size: int

def embed(run: Run, settings: Settings) -> dict:
    return {}
"""
TOP = ("__main__", "__init__", "device", "augment")
SOUND: dict[str, str] = {
    **{f"{room}.py" if room in TOP else f"{room}/__init__.py": '"""A room."""' for room in FLOOR},
    "__init__.py": "def load():\n    from sslrun.inference.model import Model\n    return Model",
    "cli/app.py": "import os\nfrom sslrun.config.commands import TABLE\nos._exit(1)",
    "config/commands.py": 'TABLE = {"embed": "IMAGES"}',
    "config/build.py": 'RENAMED: dict = {"sslrun.config.build": "sslrun.stages.embed"}\nPLACE = "sslrun.base.files"',
    "data/fetch.py": "from sslrun import config\nfrom ..base import files\nfrom . import cache",
    "data/cache.py": "if TYPE_CHECKING:\n    from sslrun.base.files import Cached",
    "base/files.py": "class Cached:\n    def at(self):\n        'Of embed.'\n        return self._at + Cached._all",
    "stages/embed.py": STAGE,
    "stages/table.py": 'STAGES = {"embed": "sslrun.stages.embed"}',
}
LONG = "def f():\n    '''Doc.\n    '''\n" + "    x = 1\n" * LONGEST_FUNCTION
WIDE = f"def f({', '.join(f'a{i}' for i in range(MOST_PARAMETERS))}, *, last): ..."
FAULTS: list[tuple[Check, dict[str, str], str]] = [
    (rooms_out_of_order, {"attic/old.py": ""}, "sslrun/attic is no room"),
    (too_many_rooms, {"attic.py": "", "cellar/wine.py": ""}, "20 rooms"),
    (
        imports_up,
        {"base/a.py": "def f():\n    from sslrun import run"},
        "sslrun/base/a.py:2: f imports sslrun.run",
    ),
    (imports_up, {"run/a.py": "from sslrun import UserError"}, "__init__ stands above run"),
    (imports_up, {"data/b/a.py": "if TYPE_CHECKING:\n    from ...run.run import Run"}, "imports sslrun.run.run.Run"),
    (imports_up, {"device.py": "import sslrun.cli.app"}, "sslrun/device.py:1: the module imports sslrun.cli.app"),
    (imports_on_a_floor, {"device.py": "def f():\n    import sslrun.data.fetch"}, "sslrun/device.py:2"),
    (
        commands_known_below,
        {"models/a.py": "from sslrun.config.commands import FINETUNE"},
        'sslrun/models/a.py:1: "FINETUNE" is the name',
    ),
    (
        too_many_parameters,
        {"run/a.py": "@dataclass\nclass Row:\n" + "".join(f"    a{i}: int\n" for i in range(MOST_PARAMETERS + 1))},
        "Row takes",
    ),
    (
        circles_of_modules,
        {"data/a.py": "def f():\n    from sslrun.data import b", "data/b.py": "import sslrun.data.a"},
        "circle",
    ),
    (strings_up, {"config/build.py": 'OTHER = "sslrun.stages.embed"'}, "sslrun/config/build.py:1"),
    (strings_up, {"run/job.py": 'def f(x): return f"sslrun.stages.{x}"'}, "names stages"),
    (
        circles_of_modules,
        {"data/cache.py": "try:\n    import sslrun.data.fetch\nfinally: ..."},
        "sslrun/data/cache.py:2",
    ),
    (commands_known_below, {"run/job.py": 'f(x == "compare")'}, 'sslrun/run/job.py:1: "compare"'),
    (too_long, {"base/a.py": "\n" * (LONGEST_FILE + 1)}, "sslrun/base/a.py has 371 lines"),
    (too_long, {"base/a.py": LONG}, "sslrun/base/a.py:1: f has 66 lines"),
    (too_many_parameters, {"base/a.py": WIDE}, "sslrun/base/a.py:1: f takes 13 parameters"),
    (private_parts_of_others, {"base/a.py": "from torch._dynamo import reset"}, "torch._dynamo.reset"),
    (private_parts_of_others, {"base/a.py": "from numpy import _core"}, "numpy._core"),
    (private_parts_of_others, {"base/a.py": "class A:\n    def f(self, b): b._x()"}, "a.py:2: A.f uses b._x"),
    (private_parts_of_others, {"base/a.py": 'getattr(x, "_kept", None)'}, "uses x._kept"),
    (private_names_of_other_modules, {"data/a.py": "from sslrun.base.files import _open"}, "sslrun.base.files._open"),
    (code_in_init, {"data/__init__.py": '"""Data."""\nfrom sslrun.data.fetch import get'}, "data/__init__.py:2"),
    (stages_out_of_form, {"stages/search.py": "def other(): ..."}, "define search(run, settings)"),
    (stages_out_of_form, {"stages/embed.py": "def embed(run, data, seed): ..."}, "takes (run, data, seed)"),
    (stages_out_of_form, {"stages/embed.py": STAGE.replace(", kw_only=True", "")}, "annotated with Settings"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_sound_tree_has_no_fault(check: Check) -> None:
    assert check(SOUND) == []


@pytest.mark.parametrize(("check", "changed", "answer"), FAULTS, ids=lambda part: getattr(part, "__name__", ""))
def test_a_fault_is_seen(check: Check, changed: dict[str, str], answer: str) -> None:
    assert answer in "\n".join(check(SOUND | changed))
