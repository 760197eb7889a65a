"""A logger of a server in a thread of its own."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sslrun.run import background
from sslrun.run.background import InBackground, reason_of


class Server:
    """A logger that keeps what it gets, and fails as often as requested.

    Args:
        failures: calls that fail.
        gate: calls wait for it.
    """

    def __init__(self, failures: int = 0, gate: threading.Event | None = None) -> None:
        self.failures, self.gate, self.got = failures, gate, list[Any]()

    def _keep(self, *what: Any) -> None:
        if self.gate is not None:
            self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host\nwith a second line")
        self.got.append(what)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._keep("scalars", step, values)

    def image(self, name: str, png: Path) -> None:
        self._keep("image", name, png)

    def forget_after(self, step: int) -> None:
        self._keep("forget", step)

    def close(self, summary: Mapping[str, Any]) -> None:
        self._keep("close", summary["status"])


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("sslrun"), "propagate", True)
    return caplog


def test_everything_arrives_in_order(warnings: pytest.LogCaptureFixture) -> None:
    server = Server()
    logger = InBackground(server, "here")
    logger.forget_after(3)
    for step in range(50):
        logger.scalars(step, {"train/loss": float(step)})
    logger.image("views", Path("views.png"))
    logger.sync()
    logger.close({"status": "finished"})
    logger.wait(20)
    rows = [("scalars", step, {"train/loss": float(step)}) for step in range(50)]
    assert server.got == [("forget", 3), *rows, ("image", "views", Path("views.png")), ("close", "finished")]
    assert not warnings.messages


def test_a_slow_server_holds_nothing_up(warnings: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    server = Server(gate=gate)
    logger = InBackground(server, "here")
    for step in range(10):
        logger.scalars(step, {})
    logger.close({"status": "finished"})
    logger.wait(0.2)  # although not one of them has arrived
    assert not server.got
    assert warnings.messages == ["here: 11 messages could not be sent; the run directory has all of them"]
    gate.set()


def test_an_entry_is_sent_again_after_an_error(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "PAUSES", (0.01, 0.01, 0.01))
    server = Server(failures=2)
    logger = InBackground(server, "here")
    logger.scalars(0, {})
    logger.scalars(1, {})
    until = time.monotonic() + 20
    while len(server.got) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    logger.close({"status": "finished"})
    logger.wait(20)
    assert [got[0] for got in server.got] == ["scalars", "scalars", "close"]
    assert warnings.messages == ["here: no route to host; the run continues"]


def test_what_cannot_be_sent_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "PAUSES", (0.01,))
    server = Server(failures=1000)
    logger = InBackground(server, "here")
    logger.scalars(0, {})
    logger.scalars(1, {})
    logger.close({"status": "finished"})
    logger.wait(20)
    first, last = warnings.messages
    assert first == "here: no route to host; the run continues"
    assert last == "here: 3 messages could not be sent; the run directory has all of them"


def test_what_can_never_be_sent_is_tried_once(warnings: pytest.LogCaptureFixture) -> None:
    class Refuses(Server):
        def image(self, name: str, png: Path) -> None:
            raise ValueError("no such name")

    logger = InBackground(server := Refuses(), "here")
    logger.image("views", Path("views.png"))
    logger.scalars(1, {})  # which does not wait for the image
    logger.close({"status": "failed"})
    logger.wait(20)
    assert [got[0] for got in server.got] == ["scalars", "close"]
    assert warnings.messages == [
        "here: no such name; the run continues",
        "here: 1 message could not be sent; the run directory has all of them",
    ]


def test_a_reason_is_one_short_line() -> None:
    assert reason_of(ValueError("a\nb")) == "a"
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(ValueError("x" * 999)) == "x" * background.LONGEST + " ..."
