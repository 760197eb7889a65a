"""What several tests share: the command line in this process, small real pictures, and one trained run."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from sslrun.study.results import Row

REPOSITORY = Path(__file__).parent.parent
QUICK = ("device=cpu", "device.precision=fp32", "device.memory_format=channels_last")
TINY = ("backbone.widths=[8,16]", "train.batch_size=64", *QUICK)  # a network that trains in a second


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    def lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]


Cli = Callable[..., Answer]


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in an empty folder with an empty cache, and leaves the random state alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSLRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)


def run_here(*arguments: str) -> int:
    """Run a command in this process, which saves the seconds that importing torch takes; return the exit code."""
    from sslrun.cli.app import main

    before = sys.argv
    sys.argv = ["sslrun", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process and return what it printed."""

    def run(*arguments: str) -> Answer:
        capfd.readouterr()
        code = run_here(*arguments)
        answer = capfd.readouterr()
        return Answer(code, answer.out, answer.err)

    return run


def process(*arguments: str, **settings: str) -> Answer:
    """Run a command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "sslrun", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
        timeout=300,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def row(initialization: str, mode: str, **known: Any) -> Row:
    """Return what is compared of a classifier that there is not: 30 labels, and what is known of it."""
    usual: dict[str, Any] = {
        "labels": 30, "label_budget": "0.1 of the labels", "labels_validation": 10, "seed": 0, "subset": "a",
        "test_accuracy": 0.5, "test_f1_macro": 0.5, "val_accuracy": None, "val_loss": None, "cv_accuracy": None,
        "cv_loss": None, "chosen": None, "setting": "", "dataset": "digits", "backbone": "smallcnn",
        "seconds": 1.0, "finetuned": f"{initialization} {mode}", "evaluated": "",
    }  # fmt: skip
    return Row(initialization=initialization, mode=mode, **{**usual, **known})


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class of real colour pictures: 40 px pieces of two photographs, 30 of a temple and 30 of a flower."""
    top = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (top / name).mkdir()
        for i in range(30):
            y, x = rng.integers(0, photo.shape[0] - 160), rng.integers(0, photo.shape[1] - 160)
            piece = Image.fromarray(photo[y : y + 160, x : x + 160])
            piece.resize((40, 40)).save(top / name / f"{name} {i:02d}.jpg")
    return top


@pytest.fixture(scope="session")
def pieces(photos: Path) -> torch.Tensor:
    """The same pictures as a batch, `60 x 3 x 32 x 32` in [0, 1]."""
    files = sorted(photos.glob("*/*.jpg"))
    arrays = [np.asarray(Image.open(f).resize((32, 32))) for f in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A folder in which the photos were pretrained on with two tasks, and finetuned; not to be written to."""
    top = tmp_path_factory.mktemp("world")
    before = Path.cwd()
    os.environ["SSLRUN_CACHE"] = str(top / "cache")
    os.chdir(top)
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=32", "dataset.val_fraction=0.2")
    try:
        for pretext in ("rotation", "simclr"):
            assert run_here("pretrain", f"pretext={pretext}", *data, *TINY, "train.steps=6", "train.evaluations=2") == 0
        assert run_here("finetune", "mode=finetune", "label_fraction=0.5", *QUICK, "train.steps=20") == 0
    finally:
        os.chdir(before)
    return top


@pytest.fixture
def in_world(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained world, which may be written to, as the current folder."""
    import shutil

    shutil.copytree(world / "outputs", tmp_path / "outputs")
    return tmp_path


class Served:
    """A local HTTP server over a folder, which can be told to misbehave.

    Attributes:
        folder: what is served.
        address: without a slash at the end.
        requests: the path and Range of every request.
        cut: answers end after so many bytes, each popped once; None is a whole answer.
        ranges: whether Range is understood.
        busy: how many requests are answered with 503 first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranges, self.busy = folder, True, 0
        self.requests: list[tuple[str, str | None]] = []
        self.cut: list[int | None] = []
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = served.folder / self.path.lstrip("/")
                wanted = self.headers.get("Range")
                served.requests.append((self.path, wanted))
                if served.busy:
                    served.busy -= 1
                    self.send_error(503)
                    return
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                first = int(wanted.split("=")[1].rstrip("-")) if wanted and served.ranges else 0
                if first and first >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(data) - first))
                self.end_headers()
                end = served.cut.pop(0) if served.cut else None
                self.wfile.write(data[first:] if end is None else data[first : first + end])

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A local HTTP server."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.server.shutdown()
    served.server.server_close()
