"""A user's own task, backbone or data set is checked when it is built; errors are one line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.base.paths import EXTENDING
from sslrun.data.dataset import listed
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.tasks.task import build_task
from tests.helpers import QUICK, Cli

SMALLCNN = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [4, 8]}

TASKS = """
import copy
import torch
from torch import nn
from sslrun.tasks.task import Task


class Sound(Task):
    def __init__(self, encoder, image_size):
        super().__init__()
        self.encoder, self.teacher = encoder, copy.deepcopy(encoder).requires_grad_(False)
        self.head = nn.Linear(encoder.feature_dim, 1)
        self.register_buffer("queue", torch.zeros(4))
        self.calls = 0

    def losses(self, batch):
        return self.head(self.encoder(batch["images"])).square()

    def forward(self, batch, rng):
        self.calls += 1
        self.queue += torch.rand(4) + rng.rand(4)
        return {"loss": self.losses(batch).mean()}

    def after_step(self, step, total):
        self.queue += 1

class NoForward(Task):
    def __init__(self, encoder, image_size):
        super().__init__()
        self.encoder = encoder

class NoTask(nn.Module):
    def __init__(self, encoder, image_size):
        super().__init__()
        self.encoder = encoder

class NoSuper(Sound):
    def __init__(self, encoder, image_size):
        self.encoder = encoder

class ForwardWithoutRng(Sound):
    def forward(self, batch): ...

class AfterStepWithoutTotal(Sound):
    def after_step(self, step): ...

class Tensor(Sound):
    def forward(self, batch, rng): return self.losses(batch).mean()

class NoLoss(Sound):
    def forward(self, batch, rng): return {"error": self.losses(batch).mean()}

class Vector(Sound):
    def forward(self, batch, rng): return {"loss": self.losses(batch)[:, 0]}

class Number(Sound):
    def forward(self, batch, rng): return {"loss": self.losses(batch).mean(), "accuracy": 0.5}

class Detached(Sound):
    def forward(self, batch, rng): return {"loss": self.losses(batch).mean().detach()}

class Labels(Sound):
    def forward(self, batch, rng): return {"loss": self.losses(batch)[batch["labels"]].mean()}

class FailingHook(Sound):
    def after_step(self, step, total): self.average.lerp_(1, 0.5)

class Lazy(Sound):
    def __init__(self, encoder, image_size):
        super().__init__(encoder, image_size)
        self.lazy = nn.LazyLinear(4)

class Nowhere(Sound):
    downstream = "student.encoder"

class ViewsList(Sound):
    def views(self, images, rng): return [images]

class ViewsOfFeatures(Sound):
    def views(self, images, rng): return {"features": self.encoder(images)}

class FiguresOfBytes(Sound):
    def figures(self, images, rng): return {"bytes": (images * 255).byte()}

class Rates(Sound):
    def learning_rates(self): return {"heads.": 10.0}

class OnlyEncoder(Sound):
    def __init__(self, encoder): super().__init__(encoder, 0)

class Swapped(Sound):
    def __init__(self, image_size, encoder): super().__init__(encoder, image_size)

class NoStar(Sound):
    def __init__(self, encoder, image_size, weight): super().__init__(encoder, image_size)

class Unknown(Sound):
    def __init__(self, encoder, image_size, *, weight: "Flaot"): super().__init__(encoder, image_size)
"""
TASK_LINES = {
    "NoForward": "a task must define forward(self, batch, rng), found none",
    "NoTask": "a task must derive from sslrun.tasks.task.Task, as in class NoTask(Task)",
    "NoSuper": "building it raised AttributeError: cannot assign module before Module.__init__() call (TASKS.py:39)",
    "ForwardWithoutRng": "a task must define forward(self, batch, rng), found forward(self, batch)",
    "AfterStepWithoutTotal": "a task must define after_step(self, step, total), found after_step(self, step)",
    "Tensor": "forward must return a dict with `loss`, found Tensor",
    "NoLoss": "forward must return a dict with `loss`, found the keys error",
    "Vector": "forward must return `loss` as a scalar tensor, such as a mean, found shape [4]",
    "Number": "forward must return `accuracy` as a scalar tensor, such as a mean, found float",
    "Detached": "`loss` must depend on the weights, found one that does not require grad",
    "Labels": "forward(batch, rng) raised KeyError: 'labels' (TASKS.py:63); HYDRA_FULL_ERROR=1 shows the traceback",
    "FailingHook": "after_step(step, total) raised AttributeError: 'FailingHook' object has no attribute 'average' (",
    "Lazy": "all weights must have a shape when a task is built, found lazy ones: lazy.weight; encoder.feature_dim",
    "Nowhere": "must be the path of an encoder, found 'student.encoder'; the task has encoder, teacher",
    "ViewsList": "views must return a dict of images by name, found list",
    "ViewsOfFeatures": "views must return N x 3 x H x W floats in [0, 1], found 'features' of 4 images: [4, 8],",
    "FiguresOfBytes": "figures must return N x 3 x H x W floats in [0, 1], found 'bytes' of 4 images: [4, 3, 16, 16]",
    "Rates": "learning_rates must name prefixes of parameters, found 'heads.'",
}
SIGNATURE_LINES = {
    "OnlyEncoder": "its parameters must be (encoder, image_size, *, keys of its YAML), found (encoder)",
    "Swapped": "its parameters must be (encoder, image_size, *, keys of its YAML), found (image_size, encoder)",
    "NoStar": "its parameters must be (encoder, image_size, *, keys of its YAML), found (encoder, image_size, weight)",
}

BACKBONES = """
from torch import nn


class Net(nn.Module):
    channels = [4, 8]

    def __init__(self, image_size):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)

    def forward(self, x):
        x = self.a(x)
        return [x, self.b(x)]

class NoChannels(Net):
    channels = None

class OtherChannels(Net):
    channels = [4, 16]

class OneMap(Net):
    def forward(self, x): return self.a(x)

class Flat(Net):
    def forward(self, x): return [m.mean((2, 3)) for m in super().forward(x)]

class OneImage(Net):
    def forward(self, x): return [m[:1] for m in super().forward(x)]

class Coarse(Net):
    channels = [8, 4]
    def forward(self, x): return super().forward(x)[::-1]

class Failing(Net):
    def forward(self, x): return self.b(x)

def built_wrongly(image_size): return Net(image_size).layers

def no_module(image_size): return "net"

def no_size(*, width: int): return Net(0)
"""
BACKBONE_LINES = {
    "NoChannels": "a backbone must have `channels`, a list with the number of channels of each map",
    "OtherChannels": "with C=[4, 16] as its `channels` say; for 2 images it returned [[2, 4, 8, 8], [2, 8, 4, 4]]",
    "OneMap": "a backbone must return a list of maps, N x C x H x W, with C=[4, 8] as its `channels` say; for 2 images "
    "it returned a tensor of shape [2, 4, 8, 8]",
    "Flat": "it returned [a tensor of shape [2, 4], a tensor of shape [2, 8]]",
    "OneImage": "for 2 images it returned [[1, 4, 8, 8], [1, 8, 4, 4]]",
    "Coarse": "must return its maps fine to coarse; for 2 images it returned [[2, 8, 4, 4], [2, 4, 8, 8]]",
    "Failing": "a backbone must take images of 16 px, N x 3 x S x S: RuntimeError: Given groups=1, weight of size",
    "built_wrongly": "building it raised AttributeError: 'Net' object has no attribute 'layers' (BACKBONES.py:38)",
    "no_module": "a backbone must be a torch.nn.Module, found str",
}

SOURCES = """
import numpy as np
from dataclasses import replace
from pathlib import Path
from sslrun.data.sources.source import Listing

IMAGES = np.zeros((3, 8, 8, 3), np.uint8)


def listing(items=IMAGES, names=("a", "b", "c"), labels=(0, 1, 1), class_names=("x", "y")):
    return Listing(items, list(names), None if labels is None else np.array(labels), class_names)

def lists(split): return Listing(["a.png", "b.png"], ["a", "b"], [1, 0], ["x", "y"])
def three_labels(split): return listing(labels=[0, 1])
def from_one(split): return listing(labels=[1, 2, 2])
def negative(split): return listing(labels=[0, -1, 1])
def floats(split): return listing(labels=[0.0, 1.0, 1.0])
def no_names(split): return listing(class_names=())
def same_class(split): return listing(class_names=("x", "x"))
def empty_class(split): return listing(labels=[0, 0, 0])
def same_name(split): return listing(names=["a", "b", "a"])
def few_names(split): return listing(names=["a"])
def numbers(split): return listing(names=[1, 2, 3])
def paths(split): return listing(items=[Path("a.png")] * 3)
def generator(split): return listing(items=(p for p in "abc"))
def gray(split): return listing(items=IMAGES[..., 0])
def real(split): return listing(items=IMAGES / 255)
def nothing(split): return listing(items=[], names=[], labels=[])
def pair(split): return IMAGES, [0, 1, 1]
def failing(split): return listing(IMAGES[5])
def no_split(*, root: str): return listing()
def val_rows(split): return replace(listing(), validation=np.array([0, 2]))
def only_val(split): return replace(listing(), validation=np.array([True] * 3))
"""
SOURCE_LINES = {
    "three_labels": "each item must have a label, found labels of shape [2] of 3 items, in split train",
    "from_one": "labels must be 0 to 1, as class_names say, found 1 to 2",
    "negative": "labels must be 0 to 1, as class_names say, found -1 to 1",
    "floats": "labels must be integers, found float64",
    "no_names": "class_names must name each class, found []",
    "same_class": "class_names must be unique, found 'x' more than once",
    "empty_class": "each class must have images, found none of y",
    "same_name": "names must be unique, found 'a' more than once",
    "few_names": "each item must have a name, found 1 names of 3 items",
    "numbers": "names must be str, found int",
    "paths": "items must be paths as str, found PosixPath",
    "generator": "items must be a list of paths or an array, found generator",
    "gray": "an array of items must be N x H x W x C, uint8, with C of 1 or 3, found 3 x 8 x 8, uint8",
    "real": "an array of items must be N x H x W x C, uint8, with C of 1 or 3, found 3 x 8 x 8 x 3, float64",
    "nothing": "there must be images, found none",
    "val_rows": "validation must be an array of 3 booleans, not all true, in split train",
    "only_val": "validation must be an array of 3 booleans, not all true, in split train",
    "pair": "a data set must return a Listing, or None where there is no such split, found tuple",
    "failing": "listing split train raised IndexError: index 5 is out of bounds for axis 0 with size 3 (SOURCES.py:30)",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the modules TASKS, BACKBONES and SOURCES to the current folder."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("TASKS", "BACKBONES", "SOURCES"):
        Path(f"{name}.py").write_text(globals()[name])
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


def encoder() -> Encoder:
    return build_encoder(SMALLCNN, 16, [0.5] * 3, [0.25] * 3)


def reason(error: Any, group: str, target: str) -> str:
    """Return the part of a message between the target with its file and the page."""
    line = str(error.value)
    assert "\n" not in line
    found = re.fullmatch(rf"{group}: {target} \({target.split('.')[0]}\.py\): (.*); see (.*)", line)
    assert found is not None, line
    assert Path(found[2]).samefile(EXTENDING)
    return found[1]


@pytest.mark.parametrize("name", TASK_LINES)
def test_errors_in_a_task_are_reported_when_it_is_built(name: str) -> None:
    with pytest.raises(UserError) as error:
        build_task({"_target_": f"TASKS.{name}"}, encoder(), 16)
    assert TASK_LINES[name] in reason(error, "pretext", f"TASKS.{name}")


def test_trying_a_task_changes_neither_it_nor_the_random_state() -> None:
    network = encoder()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(3)
    build = torch.nn.Linear(network.feature_dim, 1)  # all that the constructor draws
    after_constructor = torch.get_rng_state()
    torch.manual_seed(3)
    task: Any = build_task({"_target_": "TASKS.Sound"}, network, 16)
    assert torch.equal(torch.get_rng_state(), after_constructor)
    assert torch.equal(task.head.weight, build.weight)
    assert task.calls == 0
    assert task.queue.tolist() == [0.0] * 4
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in task.parameters())
    assert all(m.training for m in task.modules())


def test_a_task_that_cannot_be_copied_is_still_built() -> None:
    Path("TASKS.py").write_text(TASKS + "\nclass Locked(Sound):\n    lock = None\n"
        "    def __init__(self, encoder, image_size):\n        super().__init__(encoder, image_size)\n"
        "        self.lock = __import__('threading').Lock()\n")  # fmt: skip
    assert build_task({"_target_": "TASKS.Locked"}, encoder(), 16).downstream == "encoder"


@pytest.mark.parametrize(
    "code",
    [
        "def forward(self, batch, rng): return {'loss': self.losses(batch).flatten().topk(8).values.mean()}",
        "@staticmethod\n    def views(images, rng): return {'all': images}",
        "@classmethod\n    def learning_rates(cls): return {'head.': 10.0}",
        "def after_step(self, *args): self.queue += 1",
        "downstream = 'teacher'",
    ],
)
def test_unusual_but_valid_tasks_are_accepted(code: str) -> None:
    Path("TASKS.py").write_text(f"{TASKS}\nclass Unusual(Sound):\n    {code}\n")
    assert build_task({"_target_": "TASKS.Unusual"}, encoder(), 16).training


def test_channels_may_be_a_tuple() -> None:
    Path("BACKBONES.py").write_text(f"{BACKBONES}\nclass Tuple(Net):\n    channels = (4, 8)\n")
    assert build_encoder({"_target_": "BACKBONES.Tuple"}, 16, [0.5] * 3, [0.25] * 3).channels == [4, 8]


@pytest.mark.parametrize("name", BACKBONE_LINES)
def test_errors_in_a_backbone_are_reported_when_it_is_built(name: str) -> None:
    with pytest.raises(UserError) as error:
        build_encoder({"_target_": f"BACKBONES.{name}"}, 16, [0.5] * 3, [0.25] * 3)
    assert BACKBONE_LINES[name] in reason(error, "backbone", f"BACKBONES.{name}")


@pytest.mark.parametrize("name", SOURCE_LINES)
def test_errors_in_a_listing_are_reported(name: str) -> None:
    with pytest.raises(UserError) as error:
        listed({"_target_": f"SOURCES.{name}", "image_size": 8}, "train")
    assert SOURCE_LINES[name] in reason(error, "dataset", f"SOURCES.{name}")


def test_classes_without_test_images_and_lists_are_accepted() -> None:
    test = listed({"_target_": "SOURCES.empty_class", "image_size": 8}, "test")
    assert test is not None
    assert test.class_names == ("x", "y")
    train = listed({"_target_": "SOURCES.lists", "image_size": 8}, "train")
    assert train is not None
    assert isinstance(train.labels, np.ndarray)
    assert (train.labels.dtype, train.labels.tolist(), train.class_names) == (np.int64, [1, 0], ("x", "y"))


def pretrained(cli: Cli, group: str, target: str, *keys: str) -> Any:
    Path("conf", group).mkdir(parents=True, exist_ok=True)
    shared = "defaults: [_shared, _self_]\nimage_size: 16\n" if group == "dataset" else ""
    Path("conf", group, "own.yaml").write_text(f"{shared}_target_: {target}\n" + "".join(f"{k}: 1.0\n" for k in keys))
    small = () if group == "backbone" else ("backbone.widths=[4,8]",)
    return cli(
        "pretrain",
        "dataset=digits",
        "-cd",
        "conf",
        f"{group}=own",
        "train.steps=2",
        "dataset.max_images=40",
        *small,
        *QUICK,
    )


@pytest.mark.parametrize(
    ("group", "target", "line"),
    [
        *(("pretext", f"TASKS.{name}", line) for name, line in SIGNATURE_LINES.items()),
        (
            "backbone",
            "BACKBONES.no_size",
            "its parameters must be (image_size, *, keys of its YAML), found (*, width: ",
        ),
        ("dataset", "SOURCES.no_split", "its parameters must be (split, *, keys of its YAML), found (*, root: str)"),
        ("pretext", "TASKS.Unknown", "its annotations cannot be read: NameError: name 'Flaot' is not defined"),
    ],
)
def test_a_signature_is_checked_before_anything_starts(cli: Cli, group: str, target: str, line: str) -> None:
    answer = pretrained(cli, group, target, *(["weight"] if target.endswith(("NoStar", "Unknown")) else []))
    assert answer.code == 1
    assert f"sslrun: {group}: {target} ({target.split('.')[0]}.py): {line}" in answer.err
    assert answer.err.rstrip().endswith(f"see {EXTENDING}")
    assert len(answer.lines()) == 1
    assert not Path("outputs").exists()


def test_an_error_in_user_code_is_one_line_with_file_and_line(cli: Cli) -> None:
    Path("broken_import.py").write_text("import torch\n\nnet = torch.Linear(1, 2)\n")
    answer = pretrained(cli, "pretext", "broken_import.Net")
    assert answer.err.strip() == (
        "sslrun: pretext: _target_ 'broken_import.Net' cannot be imported: "
        "AttributeError: module 'torch' has no attribute 'Linear' (broken_import.py:3)"
    )
    Path("broken_syntax.py").write_text("x = 1\nclass Net(:\n")
    answer = pretrained(cli, "pretext", "broken_syntax.Net")
    assert answer.err.strip().endswith("SyntaxError: invalid syntax (broken_syntax.py, line 2)")
    answer = pretrained(cli, "pretext", "moved_away.Net")
    assert answer.err.strip().endswith("; run sslrun in the folder that has moved_away.py")


def test_the_traceback_of_user_code_can_be_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = pretrained(cli, "pretext", "TASKS.Labels")
    assert answer.code == 1
    assert len(answer.lines()) == 1 + answer.err.count("Using 40 of")
    assert "(TASKS.py:63)" in answer.err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError) as error:
        pretrained(cli, "pretext", "TASKS.Labels")
    assert isinstance(error.value.__cause__, KeyError)
    assert error.value.__cause__.__traceback__ is not None


def test_pretraining_metrics_are_of_the_downstream_encoder(cli: Cli) -> None:
    Path("TASKS.py").write_text(TASKS + "\nclass Teacher(Sound):\n    downstream = 'teacher'\n")
    assert pretrained(cli, "pretext", "TASKS.Teacher").code == 0
    (run,) = Path("outputs/pretrain").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spread = [r["val/feature_spread"] for r in rows if "val/feature_spread" in r]
    assert len(spread) > 1
    assert len(set(spread)) == 1  # the teacher stays as it is, and the student does not


def test_the_page_quotes_the_messages() -> None:
    table = EXTENDING.read_text().split("| message | what to do |")[1]
    quoted = re.findall(r"^\| `([^`]*)` \|", table, re.M)
    assert len(quoted) == len(re.findall(r"^\| [^-]", table, re.M)) > 10
    lines = [*TASK_LINES.values(), *SIGNATURE_LINES.values(), *BACKBONE_LINES.values(), *SOURCE_LINES.values()]
    assert [q for q in quoted if not any(_same(q, line) for line in lines)] == [
        "no such backbone; for conf/backbone/widenet.yaml add -cd conf",
        "no such key; did you mean ...?",
        "no such hook of a task; did you mean ...?",
        "run sslrun in the folder that has widenet.py",
    ]  # these are tested elsewhere


def _same(quoted: str, line: str) -> bool:
    """Return whether a line contains a quotation, with anything in place of `...`, numbers and files."""
    wild = re.sub(r"\\\.\\\.\\\.", ".*", re.escape(re.sub(r"\d+|\w+\.py", "0", quoted)))
    return re.search(wild, re.sub(r"\d+|\w+\.py", "0", line)) is not None
