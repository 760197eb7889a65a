"""In which order a checkpoint is written to the disk and renamed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sslrun.runs import checkpoint


@pytest.mark.skipif(os.name != "posix", reason="only there a folder can be synchronized")
def test_a_checkpoint_and_then_its_name_are_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        calls.append(("fsync", os.fstat(handle).st_ino))
        fsync(handle)

    def recorded_replace(source: Any, target: Any) -> None:
        calls.append(("rename", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    path = Path("last.pt")
    checkpoint.save(path, {"model": {"a": torch.ones(1000)}})
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert calls == [("fsync", file), ("rename", file), ("fsync", folder)]
