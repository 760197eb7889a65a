"""What is kept in the cache."""

from pathlib import Path

import pytest

from sslrun.base.cached import Cached
from sslrun.base.console import log


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
