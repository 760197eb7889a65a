"""Fixtures of all tests: the command line in this process, small real images, and finished runs."""

import copy
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf.base
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.helpers import PRETRAIN, QUICK, QUICKER, SHORT, STUDY, TINY, Answer, Cli, Served, run_here, runs


def pytest_collection_finish() -> None:
    _freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def _freeze() -> None:
    """Keep what was imported out of the garbage collection after each job of a sweep, which saves 0.25 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _imports_frozen() -> Iterator[None]:
    """Many modules are imported by the first command that needs them."""
    modules = len(sys.modules)
    yield
    if len(sys.modules) > modules + 100:
        _freeze()


@pytest.fixture(scope="session", autouse=True)
def _parsed_once() -> Iterator[None]:
    """Parse a text only once: a third of the time of a composition, which Hydra spends on the same files every time."""
    parsed: dict[tuple[Any, ...], Any] = {}
    load, parse_rule, parse = yaml.load, OverridesParser.parse_rule, omegaconf.base.parse

    def load_once(stream: Any, Loader: type) -> Any:
        text = stream if isinstance(stream, str | bytes) else stream.read()
        if (text, Loader.__name__) not in parsed:
            if text is not stream:
                stream.seek(0)  # its name is in the messages
            parsed[text, Loader.__name__] = load(stream, Loader)
        return copy.deepcopy(parsed[text, Loader.__name__])

    def parse_rule_once(parser: OverridesParser, text: str, rule: str) -> Any:
        if (text, rule) not in parsed:
            parsed[text, rule] = parse_rule(parser, text, rule)
        return copy.deepcopy(parsed[text, rule])

    def parse_once(value: str, *rules: str) -> Any:
        if (value, *rules) not in parsed:
            parsed[value, *rules] = parse(value, *rules)
        return parsed[value, *rules]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load_once)
        patch.setattr(OverridesParser, "parse_rule", parse_rule_once)
        patch.setattr(omegaconf.base, "parse", parse_once)
        yield


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in an empty folder with an empty cache, and leaves the random state alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSLRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a power cut is not tested
    for module, name, value in QUICKER:
        monkeypatch.setattr(module, name, value)
    torch.manual_seed(0)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process and return what it printed."""

    def run(*arguments: str) -> Answer:
        capfd.readouterr()
        code = run_here(*arguments)
        answer = capfd.readouterr()
        return Answer(code, answer.out, answer.err)

    return run


def _run(*arguments: str) -> None:
    assert run_here(*arguments) == 0


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[], None]) -> Path:
    """Return a folder that the first worker that needs it fills for all of them."""
    own = factory.getbasetemp()
    top = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with FileLock(f"{top}.lock"), torch.random.fork_rng([]), pytest.MonkeyPatch.context() as patch:
        if not top.with_suffix(".made").exists():
            top.mkdir()
            patch.chdir(top)
            patch.setenv("SSLRUN_CACHE", str(top / "cache"))
            for module, attribute, value in QUICKER:
                patch.setattr(module, attribute, value)
            make()
            top.with_suffix(".made").touch()
    return top


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per class of real color images: 40 px crops of two photographs, 30 of a temple and 30 of a flower."""

    def make() -> None:
        rng = np.random.default_rng(0)
        for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
            Path(name).mkdir()
            for i in range(30):
                y, x = rng.integers(0, photo.shape[0] - 160), rng.integers(0, photo.shape[1] - 160)
                piece = Image.fromarray(photo[y : y + 160, x : x + 160])
                piece.resize((40, 40)).save(f"{name}/{name} {i:02d}.jpg")

    return _made_once(tmp_path_factory, "photos", make)


@pytest.fixture(scope="session")
def pieces(photos: Path) -> torch.Tensor:
    """The same images as a batch, `60 x 3 x 32 x 32` in [0, 1]."""
    files = sorted(photos.glob("*/*.jpg"))
    arrays = [np.asarray(Image.open(f).resize((32, 32))) for f in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A folder in which the photos were pretrained on with two tasks, and finetuned; not to be written to."""
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=32", "dataset.val_fraction=0.2")

    def make() -> None:
        for pretext in ("rotation", "simclr"):
            _run("pretrain", f"pretext={pretext}", *data, *TINY, "train.steps=6", "train.evaluations=2")
        _run("finetune", "mode=finetune", "label_fraction=0.5", *QUICK, "train.steps=20")

    return _made_once(tmp_path_factory, "world", make)


@pytest.fixture
def in_world(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained world, which may be written to, as the current folder."""
    shutil.copytree(world / "outputs", tmp_path / "outputs")
    return tmp_path


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A local HTTP server."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def photo_files(photos: Path) -> list[str]:
    return [str(p) for p in sorted(photos.rglob("*.jpg"))[::6]]


@pytest.fixture
def few_photos(photos: Path, tmp_path: Path) -> Path:
    """A folder of twelve of the photos, which may be written to."""
    for name in ("flower", "temple"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for file in sorted((photos / name).glob("*.jpg"))[:6]:
            shutil.copy(file, tmp_path / "mine" / name)
    return Path("mine")


@pytest.fixture
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining of 8 steps, in the current folder; its directory."""
    shutil.copytree(_made_once(tmp_path_factory, "short", lambda: _run("pretrain", *SHORT)) / "outputs", "outputs")
    return runs("pretrain")[0]


@pytest.fixture
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`PRETRAIN` in the current folder; its directory."""
    shutil.copytree(_made_once(tmp_path_factory, "finished", lambda: _run(*PRETRAIN)) / "outputs", "outputs")
    return runs("pretrain")[0]


@pytest.fixture
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two pretrainings of 8 steps, in the current folder; its directory."""
    made = _made_once(tmp_path_factory, "sweep", lambda: _run("pretrain", "-m", "seed=0,1", *SHORT))
    shutil.copytree(made / "outputs", "outputs")
    return runs("pretrain")[0].parent


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study, not to be written to."""

    return _made_once(tmp_path_factory, "studied", lambda: _run(*STUDY))


@pytest.fixture
def in_study(studied: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, as the current folder; the study's own directory."""
    shutil.copytree(studied / "outputs", tmp_path / "outputs")
    return runs("compare")[0]


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with random weights of `test_resnet`, a small network of timm."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    return str(path)
