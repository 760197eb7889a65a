"""To add a pretext task, a backbone or a data set takes one Python file or function and one YAML, anywhere."""

import json
import shutil
from pathlib import Path

import pytest

from sslrun.base.paths import EXTENDING
from sslrun.config.build import build, locate, parameters
from sslrun.config.compose import compose_config, compose_nodes
from sslrun.data.options import OF_FOLDERS
from sslrun.run import checkpoint
from sslrun.run.find import BEST, LAST
from tests.helpers import QUICK, REPOSITORY, TINY, Cli

CODE = '''
import numpy as np
import torch
from torch import nn

from sslrun.data.sources.source import Listing
from sslrun.tasks.task import Task


class Brightness(Task):
    """Predict the mean brightness."""

    def __init__(self, encoder, image_size, *, weight: float):
        super().__init__()
        self.encoder, self.weight = encoder, weight
        self.head = nn.Linear(encoder.feature_dim, 1)

    def views(self, images, rng):
        return {"same": images}

    def figures(self, images, rng):
        return {"brightened": images * self.head(self.encoder(images)).view(-1, 1, 1, 1)}

    def forward(self, batch, rng):
        images = batch["images"]
        guess = self.head(self.encoder(images)).squeeze(1).float()
        return {"loss": self.weight * (guess - images.mean((1, 2, 3))).pow(2).mean()}


class Tinynet(nn.Module):
    def __init__(self, image_size, *, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU())
        self.channels = [width]

    def forward(self, x):
        return [self.layers(x)]


def noise(split, *, root: None = None):
    if split == "unlabeled":
        return None
    rng = np.random.default_rng(split == "test")
    labels = np.arange(60) % 2
    light = (labels * 120).astype(np.uint8)[:, None, None, None]
    images = rng.integers(0, 128, (60, 10, 10, 3), dtype=np.uint8) + light
    return Listing(images, [f"{split}{i}" for i in range(60)], labels, ("dark", "bright"))
'''


@pytest.mark.slow
def test_a_toy_of_each_outside_the_package(cli: Cli) -> None:
    Path("toys.py").write_text(CODE)
    for group, name, text in [
        ("pretext", "brightness", "_target_: toys.Brightness\nweight: 1.0\n"),
        ("backbone", "tinynet", "_target_: toys.Tinynet\nwidth: 4\n"),
        (
            "dataset",
            "noise",
            "defaults: [_shared, _self_]\n_target_: toys.noise\nroot: null\nimage_size: 12\n",
        ),
    ]:
        Path("conf", group).mkdir(parents=True)
        Path("conf", group, f"{name}.yaml").write_text(text)
    names = ("pretext=brightness", "backbone=tinynet", "dataset=noise")
    assert cli("pretrain", "-cd", "conf", *names, "train.steps=3", *QUICK).code == 0
    (pretrained,) = Path("outputs/pretrain").iterdir()
    assert {p.name for p in pretrained.glob("figures/*.png")} == {
        "views.png", "outputs.png", "curves.png", "neighbors.png"
    }  # fmt: skip
    assert checkpoint.load(pretrained / LAST)["downstream"] == "encoder"
    assert cli("finetune", "mode=probe", "init=latest", *QUICK).code == 0
    assert cli("finetune", "mode=finetune", "init=latest", "train.steps=60", *QUICK).code == 0
    for made in Path("outputs/finetune").iterdir():
        assert checkpoint.load(made / BEST)["downstream"] == "classifier.encoder"
    assert cli("evaluate", *QUICK).code == 0
    answer = json.loads(next(Path("outputs/evaluate").glob("*/summary.json")).read_text())
    assert answer["test/accuracy"] == 1.0
    assert "brightness" in cli("pretrain", "-cd", "conf", "--help").out
    wrong = cli("pretrain", "-cd", "conf", *names, "pretext.weigth=2")
    assert "pretext.weigth: no such key; did you mean pretext.weight?" in wrong.err
    wrong = cli("pretrain", "-cd", "conf", *names, "backbone.width=four")
    assert "backbone.width: must be an integer, found four" in wrong.err
    Path("conf/pretext/brightness.yaml").write_text("_target_: toys.Brightnes\n")
    answer = cli("pretrain", "-cd", "conf", *names)
    assert "pretext: _target_ 'toys.Brightnes' cannot be imported" in answer.err
    assert "did you mean Brightness?" in answer.err


PLAIN = """
from torch import nn
from sslrun.tasks.task import Task


class Plain(nn.Module):
    def __init__(self, encoder, image_size):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch, rng):
        return {"loss": self.encoder(batch["images"]).square().mean()}


class Bare(Task, Plain):
    forward = Plain.forward


class Elsewhere(Bare):
    downstream = "teacher"
"""


def test_a_task_without_views_gets_no_figure_of_them_and_what_is_no_task_is_refused_in_one_line(cli: Cli) -> None:
    Path("plain.py").write_text(PLAIN)
    Path("conf/pretext").mkdir(parents=True)
    for name in ("Plain", "Bare", "Elsewhere"):
        Path("conf/pretext", f"{name.lower()}.yaml").write_text(f"_target_: plain.{name}\n")
    short = ("-cd", "conf", "dataset=digits", "train.steps=2", "dataset.max_images=100", *TINY)
    refused = cli("pretrain", *short, "pretext=plain")
    assert refused.code == 1
    assert refused.err.splitlines()[-1] == (
        "sslrun: pretext: plain.Plain (plain.py): a task must derive from sslrun.tasks.task.Task, "
        f"as in class Plain(Task); see {EXTENDING}"
    )
    wrong = cli("pretrain", *short, "pretext=elsewhere")
    assert wrong.code == 1
    assert wrong.err.splitlines()[-1] == (
        "sslrun: pretext: plain.Elsewhere (plain.py): `downstream` must be the path of an encoder, "
        f"found 'teacher'; the task has encoder; see {EXTENDING}"
    )
    shutil.rmtree("outputs")
    assert cli("pretrain", *short, "pretext=bare").code == 0
    (run,) = Path("outputs/pretrain").iterdir()
    assert {p.name for p in run.glob("figures/*.png")} == {"curves.png", "neighbors.png"}
    preview = cli("data", "preview", "dataset=digits", "-cd", "conf", "pretext=bare")
    assert preview.code == 1
    assert "plain.Bare has no views to draw; define views(images, rng)" in preview.err


GROUPS = ["pretext", "backbone", "dataset", "optimizer", "device"]
FILES = [(g, p.stem) for g in GROUPS for p in sorted((REPOSITORY / "conf" / g).glob("[!_]*.yaml"))]


@pytest.mark.parametrize(("group", "name"), [f for f in FILES if f[1] != "from_checkpoint"])
def test_keys_of_every_yaml_are_the_parameters_of_its_target(group: str, name: str) -> None:
    settings = ["dataset.root=x"] if name == "folder" else []
    node = compose_config("pretrain", [f"{group}={name}", *settings], None)[group]
    names = set(parameters(locate(node._target_)))
    if group == "dataset":
        names |= set(parameters(locate("sslrun.data.options.Options")))
    assert set(node) - {"_target_"} == names


@pytest.mark.parametrize("group", ["dataset", "backbone"])
def test_from_checkpoint_offers_the_keys_that_all_have(group: str) -> None:
    node = compose_config("finetune", [], None)[group]
    if group == "dataset":
        assert set(node) - {"_target_", *OF_FOLDERS} == set(parameters(locate("sslrun.data.options.Options")))
        assert set(OF_FOLDERS) == set(parameters(locate("sslrun.data.sources.folder.folder")))
    assert all(v is None for v in node.values())


def test_values_that_a_target_refuses_become_one_line() -> None:
    from sslrun.base.errors import UserError

    (pretext,) = compose_nodes("pretrain", "pretext")
    with pytest.raises(UserError, match="Augment: crop_scale must be"):
        build({**pretext["augment"], "crop_scale": [1.0, 0.5]})


@pytest.mark.parametrize(
    ("yaml", "line"),
    [
        (
            "pretext: _target_: sslrun.pretext.simclr.SimCLR",
            "it is now called sslrun.tasks.pretext.simclr.SimCLR",
        ),
        (
            "dataset: defaults: [_shared, _self_]\n_target_: sslrun.data.sources.folder\nroot: photos\nimage_size: 16",
            "_target_ 'sslrun.data.sources.folder' is not a function or class; it is now called",
        ),
        (
            "pretext: _target_: my_parts.Misspelt",
            "Misspelt.after_steps: no such hook of a task; did you mean after_step?",
        ),
        ("backbone: _target_: my_parts.Failing", "a backbone must take images of 24 px, N x 3 x S x S: RuntimeError"),
    ],
)
def test_mistakes_of_ones_own_files_are_one_line(cli: Cli, yaml: str, line: str) -> None:
    Path("photos").mkdir()
    Path("my_parts.py").write_text(
        """
from torch import nn

def __getattr__(name):
    from sslrun.tasks.task import Task
    if name == "Misspelt":
        class Misspelt(Task):
            def after_steps(self, step, total): ...
    raise AttributeError(name)

class Failing(nn.Module):
    channels = [1]
    def __init__(self, image_size): super().__init__()
    def forward(self, x): raise RuntimeError("shapes do not match")
"""
    )
    group, _, text = yaml.partition(": ")
    import sslrun.data.sources.folder  # noqa: F401  (a module that has the name of an old function)

    Path("mine", group).mkdir(parents=True)
    Path("mine", group, "own.yaml").write_text(text + "\n")
    wrong = cli(
        "pretrain",
        "-cd",
        "mine",
        *(["dataset=digits"] if group != "dataset" else []),
        f"{group}=own",
        "train.steps=1",
        *QUICK,
    )
    assert wrong.code == 1
    assert line in wrong.err
    assert "Traceback" not in wrong.err
