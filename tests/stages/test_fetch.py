"""`sslrun data fetch`."""

from pathlib import Path

from tests.helpers import Cli


def test_fetch_of_an_existing_data_set(photos: Path, cli: Cli) -> None:
    answer = cli("data", "fetch")
    assert answer.code == 0
    assert "digits: 1,438 training images, 10 classes" in answer.err
    answer = cli("data", "fetch", "dataset=folder", "dataset.root=nowhere")
    assert answer.code == 1
    assert "nowhere: no such folder" in answer.err
