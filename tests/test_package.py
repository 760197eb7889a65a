"""The wheel carries its conf/ and runs away from the repository; the lock file is complete and names no host."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, TINY


@pytest.mark.slow
def test_the_wheel_runs_away_from_the_repository(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    assert (tmp_path / "site/sslrun/conf/pretext/simclr.yaml").is_file()
    assert (tmp_path / "site/sslrun/docs/extending.md").is_file()
    code = "import sslrun; print(sslrun.__file__); from sslrun.cli.app import main; main()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "pretrain",
            "dataset=digits",
            *TINY,
            "train.steps=1",
            "train.evaluations=1",
            "dataset.max_images=50",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert len(list((tmp_path / "outputs/pretrain").iterdir())) == 1


def test_the_lock_file_pins_every_dependency_with_hashes_and_names_no_host() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    assert "://" not in text
    declared = re.findall(r'^  "([a-z-]+)[>=<]', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert len(declared) > 12
    for name in declared:
        assert re.search(rf"^{name}==\S+ .*\\\n +--hash=sha256:", text, re.M), name
