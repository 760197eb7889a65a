import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers import DIGITS, SMALL, ended, in_steps, start, wait_for


def test_a_closed_pipe_is_no_error(photos: Path) -> None:
    where = ("data", "check", "dataset=folder", f"dataset.root={photos}", *SMALL, "format=json")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "sslrun", *where], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_study_that_is_stopped_says_so_once() -> None:
    study = ("finetune", "mode=auto", "init=scratch", 'search=["augment.probability=0.5","augment.probability=0"]')
    process = start(*study, "backbone=smallcnn", *DIGITS, "train.steps=5000", "train.log_every=1")
    wait_for(process, lambda: in_steps("finetune/study_runs/*"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    answer = Path("output").read_text()
    assert answer.count("Stopped by SIGTERM") == 1
    assert "Resume with: sslrun finetune resume=" in answer
    (log,) = Path("outputs/finetune/study_runs").glob("*/run.log")
    assert log.read_text().count("Stopped by SIGTERM") == 1
