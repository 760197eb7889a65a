"""Files are written as a whole or not at all, and nothing of the user's is replaced."""

import os
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.base.files import creating, file_hash, put_in_place, replacing, write_text
from tests.helpers import QUICK, Cli


def names() -> list[str]:
    return sorted(p.name for p in Path.cwd().iterdir())


def fail(part: Path, error: BaseException) -> None:
    part.write_text("half")
    raise error


def test_what_goes_wrong_while_a_file_is_written_leaves_the_one_before() -> None:
    place = Path("a.txt")
    place.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(place) as part:
        fail(part, KeyboardInterrupt())
    assert (place.read_text(), names()) == ("old", ["a.txt"])
    with replacing(place, Path("b.txt")) as part:
        part.write_text("new")
        assert place.read_text() == "old"
    assert (place.read_text(), Path("b.txt").read_text(), names()) == ("new", "old", ["a.txt", "b.txt"])


def test_a_new_file_takes_no_name_that_is_taken_and_a_failure_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), creating(Path("a.npz"), "out", ".npz") as part:
        fail(part, ZeroDivisionError())
    assert names() == []
    Path("a.npz").write_text("theirs")
    with pytest.raises(UserError, match="created meanwhile") as caught, creating(Path("a.npz"), "out", ".npz") as part:
        part.write_text("mine")
    assert Path("a.npz").read_text() == "theirs"
    assert Path(str(caught.value).split("the result is in ")[1]).read_text() == "mine"


def test_a_hash_of_a_file() -> None:
    Path("a").write_bytes(b"abc")
    assert file_hash("a", "md5").hexdigest() == "900150983cd24fb0d6963f7d28e17f72"


def test_a_file_that_somebody_else_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "part").write_text("mine")
    (tmp_path / "there").write_text("theirs")
    with pytest.raises(UserError, match="was created meanwhile"):
        put_in_place(tmp_path / "part", tmp_path / "there", "out")
    assert (tmp_path / "there").read_text() == "theirs"
    assert (tmp_path / "part").read_text() == "mine"
    put_in_place(tmp_path / "part", tmp_path / "new", "out")
    assert [p.name for p in sorted(tmp_path.iterdir()) if p.is_file()] == ["new", "there"]


def test_places_that_cannot_be_written_are_said_before_the_work(
    in_world: Path, cli: Cli, photo_files: list[str]
) -> None:
    Path("mine.txt").write_text("kept")
    for stage, key in (
        ("predict", "save"),
        ("predict", "sort_into"),
        ("embed", "out"),
        ("suggest", "out"),
        ("export", "out"),
    ):
        given = photo_files if stage != "export" else []
        answer = cli(stage, *given, f"{key}=mine.txt/x", *(QUICK if stage != "export" else ()))
        assert answer.code == 1
        assert answer.err.splitlines()[-1].startswith(f"sslrun: {key}=mine.txt/x"), answer.err
        assert "Traceback" not in answer.err
    assert Path("mine.txt").read_text() == "kept"
    assert "; use two folders" in cli("predict", *photo_files, "save=both", "sort_into=both", *QUICK).err
    assert "cannot be resumed" in cli("embed", *photo_files, "resume=outputs/pretrain/x").err
    assert "remove -m" in cli("predict", "-m", "-", "top=1,2").err


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
