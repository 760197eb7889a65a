"""In which order a file is written to the disk and renamed."""

import os
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.files import replacing, write_text


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every fsync and rename from now on, with the inode of the file."""
    recorded: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        recorded.append(("fsync", os.fstat(handle).st_ino))
        fsync(handle)

    def recorded_replace(source: Any, target: Any) -> None:
        recorded.append(("rename", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    return recorded


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(calls: list[tuple[str, int]]) -> None:
    place = Path("a.txt")
    place.write_text("old")
    old = place.stat().st_ino
    with replacing(place, Path("b.txt")) as temporary:
        temporary.write_text("new")
    new = place.stat().st_ino
    assert calls == [("fsync", new), ("rename", old), ("rename", new)]
    assert (place.read_text(), Path("b.txt").read_text()) == ("new", "old")


def test_text_is_on_the_disk_before_it_takes_the_place_of_another(calls: list[tuple[str, int]]) -> None:
    write_text(Path("a.txt"), "new")
    new = Path("a.txt").stat().st_ino
    assert calls == [("fsync", new), ("rename", new)]
