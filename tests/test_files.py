"""Files that are written as a whole or not at all, and what is kept in the cache."""

from pathlib import Path

import pytest

from sslrun.base.cached import Cached
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import creating, file_hash, replacing


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
    with pytest.raises(UserError, match="somebody else") as caught, creating(Path("a.npz"), "out", ".npz") as part:
        part.write_text("mine")
    assert Path("a.npz").read_text() == "theirs"
    assert Path(str(caught.value).split("this one is ")[1]).read_text() == "mine"


def test_what_is_kept_and_damaged_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    kept = Cached(Path("cache/n.txt"), "counting", lambda path: int(path.read_text()), "%s is damaged (%s)")
    assert kept.read() is None
    with kept.alone():
        kept.path.write_text("3")
    assert kept.read() == 3
    assert messages == []
    kept.path.write_text("three")
    assert kept.read() is None
    assert [t[:26] for t in messages] == ["cache/n.txt is damaged (in"]


def test_a_hash_of_a_file() -> None:
    Path("a").write_bytes(b"abc")
    assert file_hash("a", "md5").hexdigest() == "900150983cd24fb0d6963f7d28e17f72"
