import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import SMALL


def test_a_reader_that_goes_away_is_no_failure(photos: Path) -> None:
    where = ("data", "check", "dataset=folder", f"dataset.root={photos}", *SMALL, "format=json")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "sslrun", *where], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
