"""Check that a refactoring changed no number: run the same commands in two checkouts and compare every bit.

    python benchmarks/same_bits.py OLD NEW [--keep DIR]

OLD and NEW are folders that contain sslrun/ and conf/. Both run at the same time, each in its own folder, every command
on one thread. Compared are weights and optimizer states, metrics.jsonl, predictions, embeddings, reports, the table of
a study, and the results in each summary.json. The exit code is 0 if all are equal. With --keep, the outputs of OLD are
reused as long as OLD is at the same commit.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

# Names that differ in NEW, as (regular expression for OLD's name, replacement); the first match counts.
# - overrides: a command-line argument such as "readout=auto". It is replaced in a checkout whose conf/ lacks the old
#   key; the replacement "" drops the argument. Example: (r"^readout=", "pooling=").
# - weights: a key of a state dict. Example: (r"encoder\.backbone\.0\.(?=\d+\.)", "encoder.backbone.features.").
# - keys: a key of a JSON file or array, or a column of a CSV file. Example: (r"^val/sure_above$", "val/threshold").
# - files: a path below outputs/. Example: (r"/parts/", "/runs/").
# The last three are applied to the names of both checkouts, so an expression must match old names only.
RENAMED: dict[str, list[tuple[str, str]]] = {
    "overrides": [(r"^(finetune\.)?readout=", r"\1pooling="), (r"^pretexts=", "inits=")],
    "weights": [(r"\bbackbone\.0\.(?=\d+\.)", "backbone.features.")],  # mobilenetv2
    "keys": [
        (r"^readouts$", "poolings"),
        (r"^val/sure_above$", "val/confidence_threshold"),
        (r"^start$", "initialization"),
        (r"^amount$", "label_budget"),
        (r"^held_out_(accuracy|loss)$", r"cv_\1"),
    ],
    "files": [
        *((rf"/(?:parts|study_runs)/([^/]*)_without{k}", rf"/study_runs/\1_fold{k + 1}of3") for k in range(3)),
        (r"/parts/", "/study_runs/"),
    ],
}

TIMING = re.compile(r"seconds|per_second|wall_time")  # keys whose values differ from run to run
RESULTS = re.compile(r"^(val|test|train|best)/")  # keys of summary.json that are compared
PART = re.compile(r"-[0-9a-f]{12}(?=/|$)")  # the hash in the name of a study's run, which depends on the code
CHECKPOINT = ("step", "best", "metrics", "class_names")  # compared in a checkpoint besides its tensors

NOT_KEPT = ("cache", "images", ".hydra", "figures", "events.*", "previous.pt")  # not compared

CPU = ("device=cpu", "device.precision=fp32", "device.memory_format=contiguous", "device.threads=1")
SMALL = ("dataset=digits", "dataset.image_size=16", "backbone=smallcnn", "backbone.widths=[16,32]")
STEPS = ("train.steps=20", "train.batch_size=32", "train.evaluations=2")
FEW = ("train.steps=3", "train.batch_size=16", "train.evaluations=1")
FEW_IMAGES = ("dataset=digits", "dataset.image_size=16", "dataset.max_images=300")
LABELS = ("label_fraction=0.05", "train.steps=10", "train.batch_size=32", "train.evaluations=2")
SEARCH = 'search=["augment.probability=0.5","augment.probability=0.0"]'
STUDY = (
    *SMALL, "dataset.max_images=400", "pretexts=[rotation,simclr]", "label_fractions=[0.1]", "seeds=2", "search=[]",
    "train.steps=10", "train.batch_size=32", "train.evaluations=1", "finetune.train.steps=8",
    "finetune.train.batch_size=32", "finetune.train.evaluations=2",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """One call of sslrun.

    Attributes:
        stage: the command's name.
        name: of its run directory, outputs/<stage>/<name>.
        arguments: all except those of the device.
    """

    stage: str
    name: str
    arguments: tuple[str, ...]

    def line(self, tree: Path) -> list[str]:
        """Return the arguments of sslrun in a checkout."""
        place = () if any(a.startswith("resume=") for a in self.arguments) else (f"hydra.run.dir={self.directory}",)
        return [self.stage, *current(tree, self.stage, (*self.arguments, *CPU)), *place]

    @property
    def directory(self) -> str:
        """Return the run directory."""
        return f"outputs/{self.stage}/{self.name}"


def lanes() -> list[list[Command]]:
    """Return the commands for each checkout: two independent lists, each to be run in order."""
    simclr, resnet = "init=outputs/pretrain/simclr", "init=outputs/pretrain/resnet18"
    tuned, probe = "run=outputs/finetune/finetune", "run=outputs/finetune/probe"
    half = tuple(s.replace("=20", "=10") for s in STEPS)
    modes = ("finetune", "probe", "knn")
    few_labels = [
        Command("pretrain", "simclr", ("pretext=simclr", *SMALL, *STEPS)),
        Command("finetune", "auto", (simclr, "mode=auto", "readout=auto", *LABELS, SEARCH)),
        *[Command("finetune", m, (simclr, f"mode={m}", "readout=auto", *LABELS)) for m in modes],
        Command("finetune", "scratch", ("init=scratch", "mode=finetune", *SMALL, *LABELS)),
        Command("evaluate", "finetune", (tuned, "stages=true")),
        Command("evaluate", "probe", (probe, "stages=true")),
        Command("predict", "one_view", ("images", tuned, "views=1", "figures=0")),
        Command("predict", "three_views", ("images", tuned, "views=3", "figures=0")),
        Command("embed", "end", ("images", "run=outputs/pretrain/simclr")),
        Command("embed", "stage_1", ("images", tuned, "stage=1")),
    ]
    others = [
        *[Command("pretrain", p, (f"pretext={p}", *SMALL, *STEPS)) for p in ("rotation", "jigsaw")],
        Command("pretrain", "resnet18", ("pretext=simclr", "backbone=resnet18", *FEW_IMAGES, *FEW)),
        Command("finetune", "resnet18", (resnet, "mode=finetune", "label_fraction=0.05", *FEW)),
        Command("pretrain", "mobilenetv2", ("pretext=rotation", "backbone=mobilenetv2", *FEW_IMAGES, *FEW)),
        Command("pretrain", "resumed", ("pretext=simclr", *SMALL, *half)),
        Command("pretrain", "resumed (20 steps)", ("resume=outputs/pretrain/resumed", "train.steps=20")),
        Command("compare", "study", STUDY),
    ]
    return [few_labels, others]


# ------------------------------------------------------------------------------------------------------- two checkouts


def renamed(kind: str, name: str) -> str:
    """Return the name in NEW of something in OLD."""
    for pattern, replacement in RENAMED[kind]:
        new, n = re.subn(pattern, replacement, name)
        if n:
            return new
    return name


def current(tree: Path, stage: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments under the names of a checkout."""
    named = (a if has_key(tree, stage, a.partition("=")[0]) else renamed("overrides", a) for a in arguments)
    return [a for a in named if a]


def has_key(tree: Path, stage: str, key: str) -> bool:
    """Return whether a key exists in a checkout's conf/."""
    stages = ("compare", "pretrain") if stage == "compare" else (stage,)
    if stage == "compare" and key.startswith("finetune."):
        stages, key = ("finetune",), key.removeprefix("finetune.")
    group, _, last = key.rpartition(".")
    files = [tree / "conf" / f"{s}.yaml" for s in stages] + sorted((tree / "conf" / group).glob("*.yaml")) * bool(group)
    return any(
        re.search(rf"^\s*(- )?(override )?{re.escape(last)}:", f.read_text(), re.M) for f in files if f.is_file()
    )


def commit(tree: Path) -> str:
    """Return a checkout's commit; empty if it has uncommitted changes."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(tree), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else "?"

    return "" if git("status", "--porcelain", "--", "sslrun", "conf") else git("rev-parse", "HEAD").strip("?")


def kept_at(folder: Path, old: Path) -> Path | None:
    """Return the folder for OLD's outputs, named by commit, commands and versions; None if OLD was changed."""
    at = commit(old)
    if not at:
        print("OLD has no commit or uncommitted changes: its outputs are not kept", file=sys.stderr)
        return None
    made_by = [sys.version, torch.__version__, *(" ".join(c.line(old)) for lane in lanes() for c in lane)]
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve() / f"{at[:12]}-{hashlib.sha256(repr(made_by).encode()).hexdigest()[:8]}"


def write_images(folder: Path) -> None:
    """Write ten digits as PNG files of 32 x 32 pixels."""
    folder.mkdir()
    for i, digit in enumerate(load_digits().images[:10]):
        image = Image.fromarray((digit * 15.9375).astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


class Checkout:
    """One of the two sides.

    Attributes:
        name: OLD or NEW.
        tree: its folder.
        work: where its commands run.
        failed: the last lines of each command that failed.
    """

    def __init__(self, name: str, tree: Path, work: Path) -> None:
        self.name, self.tree, self.work = name, tree.resolve(), work
        self.failed: dict[str, str] = {}
        paths = {"PYTHONPATH": str(self.tree), "SSLRUN_CACHE": str(work / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.environment = {**os.environ, **paths, **threads}

    def run(self, at_once: int) -> None:
        """Run every command, `at_once` at the same time."""
        self.work.mkdir()
        write_images(self.work / "images")
        self._is_imported()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(self._run_all, lanes()))

    def _run_all(self, commands: Sequence[Command]) -> None:
        for command in commands:
            name, began = f"{command.stage}/{command.name}", time.monotonic()
            ended = self._python("-m", "sslrun", *command.line(self.tree))
            if ended.returncode:
                self.failed[name] = "\n".join(ended.stderr.strip().splitlines()[-8:])
            mark = f"  FAILED ({ended.returncode})" if ended.returncode else ""
            print(f"  {self.name}  {name}  {time.monotonic() - began:.1f} s{mark}", file=sys.stderr, flush=True)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *arguments]
        return subprocess.run(
            line, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )

    def _is_imported(self) -> None:
        """Make sure that Python imports this checkout and not an installed one."""
        imported = self._python("-c", "import sslrun; print(sslrun.__file__)").stdout.strip()
        if not imported or not Path(imported).resolve().is_relative_to(self.tree):
            raise SystemExit(f"{self.name}: Python imports {imported or 'no sslrun'}, not {self.tree}")

    def artefacts(self) -> dict[str, Path]:
        """Return the files to compare by name, without hashes."""
        outputs, artefacts = self.work / "outputs", {}
        runs = sorted(outputs.glob("**/summary.json"), key=lambda p: json.loads(p.read_text())["started"])
        for run in (p.parent for p in runs):
            for file in sorted(run.iterdir()):
                if not any(re.search(pattern, file.name) for pattern, _ in READERS):
                    continue
                name = renamed("files", PART.sub("", run.relative_to(outputs).as_posix()) + "/" + file.name)
                folder, _, last = name.rpartition("/")
                n = next(n for n in range(1, 1000) if _numbered(folder, n, last) not in artefacts)
                artefacts[_numbered(folder, n, last)] = file
        return artefacts


def _numbered(folder: str, n: int, file: str) -> str:
    """Return the name of an artefact; runs that differ only in their hashes are numbered by their start."""
    return f"{folder}{f' #{n}' if n > 1 else ''} {file}"


# ------------------------------------------------------------------------------------------------------------- contents


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number, string and array of a nested value with its name, without timings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not TIMING.search(str(key)):
                yield from flattened(inner, f"{name}{'.' * bool(name)}{renamed('keys', str(key))}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from flattened(inner, f"{name}[{i}]")
    else:
        yield name, renamed("files", PART.sub("", value)) if isinstance(value, str) else value


def checkpoint(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield a checkpoint's weights by name, and the optimizer's state in the order of the parameters."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key, tensor in content["model"].items():
        yield renamed("weights", key), tensor
    yield from flattened({k: content[k] for k in CHECKPOINT if k in content})
    if "optimizer" not in content:
        return
    for i, group in enumerate(content["optimizer"]["param_groups"]):
        yield f"optimizer group {i} lr", group["lr"]
        yield f"optimizer group {i} weight_decay", group["weight_decay"]
        yield f"optimizer group {i} parameters", len(group["params"])
    order = [p for group in content["optimizer"]["param_groups"] for p in group["params"]]
    for i, p in enumerate(order):
        yield from flattened(content["optimizer"]["state"].get(p, {}), f"optimizer parameter {i} ")


def lines_of_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the numbers of metrics.jsonl."""
    for i, line in enumerate(path.read_text().splitlines()):
        yield from flattened(json.loads(line), f"line {i + 1}")


def arrays(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of an npz file."""
    with np.load(path) as file:
        for key in file.files:
            yield renamed("keys", key), file[key]


def whole_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the content of a JSON file."""
    yield from flattened(json.loads(path.read_text()))


def results_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the results in a summary.json, without machine, code and timings."""
    yield from flattened({k: v for k, v in json.loads(path.read_text()).items() if RESULTS.match(renamed("keys", k))})


def table(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the cells of a study's table."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from flattened(list(csv.DictReader(file)), "row")


Reader = Callable[[Path], Iterator[tuple[str, Any]]]
READERS: list[tuple[str, Reader]] = [
    (r"^(last|best)\.pt$", checkpoint),
    (r"^metrics\.jsonl$", lines_of_json),
    (r"^(predictions|embeddings)\.npz$", arrays),
    (r"^(predictions|report)\.json$", whole_json),
    (r"^summary\.json$", results_of),
    (r"^results\.csv$", table),
]


def read(path: Path) -> dict[str, Any]:
    """Return the values of a file that are compared."""
    reader = next(r for pattern, r in READERS if re.search(pattern, path.name))
    return dict(reader(path))


# ---------------------------------------------------------------------------------------------------------- comparison


def difference(a: Any, b: Any) -> str:
    """Return how two values differ; empty if they are bit-identical."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        a, b = a.contiguous().numpy(), b.contiguous().numpy()
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return "" if type(a) is type(b) and repr(a) == repr(b) else f"{a!r} became {b!r}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {a.shape} became {b.dtype} {b.shape}"
    if a.tobytes() == b.tobytes():
        return ""
    other = np.array([x.tobytes() != y.tobytes() for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)])
    first = int(other.argmax())
    place = tuple(int(i) for i in np.unravel_index(first, a.shape))
    values = f"{a.reshape(-1)[first]!r} became {b.reshape(-1)[first]!r}"
    return f"{int(other.sum())} of {a.size} values differ, the first at {place}: {values}"


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the first difference of two files; empty if they are equal."""
    for name, value in old.items():
        if name not in new:
            return f"{name} is in OLD alone"
        changed = difference(value, new[name])
        if changed:
            return f"{name}: {changed}"
    alone = [name for name in new if name not in old]
    return f"{alone[0]} is in NEW alone" if alone else ""


def size(values: dict[str, Any]) -> str:
    """Return the number of tensors or values compared."""
    tensors = sum(isinstance(v, Tensor) for v in values.values())
    numbers = sum(v.size if isinstance(v, np.ndarray) else 1 for v in values.values())
    return f"{tensors} tensors" if tensors else f"{numbers} values"


def compare(old: Checkout, new: Checkout) -> tuple[int, int]:
    """Print a line for each artefact and each command that failed; return how many there are and how many differ."""
    compared = differing = 0
    for side in (old, new):
        for name, lines in side.failed.items():
            print(f"FAILED   {name} in {side.name}:")
            print("\n".join(f"         {line}" for line in lines.splitlines()))
            compared, differing = compared + 1, differing + 1
    ours, theirs = old.artefacts(), new.artefacts()
    for name in sorted(ours.keys() | theirs.keys()):
        values, others = (read(files[name]) if name in files else None for files in (ours, theirs))
        if values is None or others is None:
            message = f"it is in {'OLD' if name in ours else 'NEW'} alone"
        elif not values and not others:  # a summary without results
            continue
        else:
            message = first_difference(values, others)
        compared += 1
        print(f"DIFFERS  {name}: {message}" if message else f"equal    {name} ({size(values or {})})")
        differing += bool(message)
    return compared, differing


def main() -> int:
    """Run both sides and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout from before the refactoring")
    parser.add_argument("new", type=Path, help="a checkout from after it")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep OLD's outputs here and reuse them")
    args = parser.parse_args()
    began, kept = time.monotonic(), kept_at(args.keep, args.old) if args.keep else None
    with tempfile.TemporaryDirectory(prefix="same_bits_") as scratch:
        there = kept is not None and kept.is_dir()
        old = Checkout("OLD", args.old, kept if kept and there else Path(scratch) / "old")
        new = Checkout("NEW", args.new, Path(scratch) / "new")
        with ThreadPoolExecutor(2) as both:
            running = [both.submit(side.run, 2 if there else 1) for side in ((new,) if there else (old, new))]
            for side in running:
                side.result()
        if kept and not there and not old.failed:
            copy = kept.with_name(f"{kept.name}.{os.getpid()}")
            shutil.copytree(old.work, copy, ignore=shutil.ignore_patterns(*NOT_KEPT))
            copy.rename(kept)
        compared, differing = compare(old, new)
    print(f"{differing} of {compared} differ" if differing else f"equal: {compared} artefacts")
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
