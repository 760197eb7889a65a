"""Preprocessing that a run takes from a checkpoint, and the range of gray images of more than 8 bits."""

from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.data.options import has_groups, labels_of, preprocessing_of
from tests.helpers import Cli

OTHERS = {"image_size": 8, "resize": "crop", "channels": "rgb", "mean": None, "std": None}
LAST = Path("run/last.pt")


def range_of(own: Any, has: dict[str, Any], given: bool, source: Path | None = LAST) -> Any:
    overrides = {"dataset.range": ""} if given else {}
    return preprocessing_of({**OTHERS, "range": own}, {**OTHERS, **has}, overrides, source)["range"]


def test_the_range_is_that_of_the_checkpoint_and_auto_is_too() -> None:
    has = {"range": [0, 4095]}
    for own, given in (("auto", False), ([0, 1], False), ("auto", True), ([0.0, 4095.0], True)):
        assert range_of(own, has, given) == [0, 4095]


def test_another_range_than_that_of_the_checkpoint_is_refused() -> None:
    for own in ([0, 4096], [0, 1], None):
        with pytest.raises(UserError) as error:
            range_of(own, {"range": [0, 4095]}, given=True)
        assert str(error.value) == (
            f"dataset.range={own} does not match run/last.pt, which has dataset.range=[0, 4095]: remove dataset.range, "
            "or pretrain again"
        )


@pytest.mark.parametrize("has", [{"range": None}, {}])  # 8-bit images; a run from before the key
def test_a_checkpoint_without_a_range_allows_any(has: dict[str, Any]) -> None:
    assert range_of("auto", has, given=False) is None
    for own in ("auto", [0, 1]):
        assert range_of(own, has, given=True) == own


def test_without_a_checkpoint_to_match_a_given_range_wins() -> None:
    for own in ("auto", [0, 1]):
        assert range_of(own, {"range": [0, 4095]}, given=True, source=None) == own
    assert range_of("auto", {"range": [0, 4095]}, given=False, source=None) == [0, 4095]


@pytest.mark.parametrize(
    "value",
    ["[5,5]", "[9,1]", "[0]", "[]", "[0,1,2]", "[nan,1]", "[0,inf]", "[-inf,0]", "[a,b]", "'[0,1]'", "7", "full",
     "true", "[false,true]", "[[0,1]]", "{low:0,high:1}"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["pretrain", "finetune init=scratch", "data check"])
def test_an_odd_range_is_one_line_before_anything_is_read(cli: Cli, command: str, value: str) -> None:
    Path("empty").mkdir()
    answer = cli(*command.split(), "dataset=folder", "dataset.root=empty", f"dataset.range={value}")
    assert answer.code == 1
    (line,) = answer.lines()
    assert line.startswith("sslrun: dataset.range: must be auto or two increasing numbers, [low,high], found ")
    assert not Path("outputs").exists()


def test_the_label_file_of_other_images_is_not_used() -> None:
    here = {"root": "set", "labels": "labels.csv", "columns": {"label": "a"}}
    there = here | {"root": "other"}
    assert labels_of(here, here | {"root": "./set"}, {}) == here
    assert labels_of(there, here, {}) == {"root": "other", "labels": None, "columns": None}
    assert labels_of(there, here, {"dataset.labels": "labels.csv"}) == there | {"columns": None}
    assert labels_of({"root": "data"}, {"root": "x"}, {}) == {"root": "data"}  # of a published data set


def test_groups_are_those_of_an_expression_or_of_a_column() -> None:
    assert has_groups({"groups": "([^/]+)/", "columns": None})
    assert has_groups({"groups": None, "columns": {"label": "species", "group": "plot"}})
    assert has_groups({"groups": None, "columns": {"group": 0}})
    for node in ({"groups": None, "columns": None}, {"columns": {"label": "species", "group": None}}, {}):
        assert not has_groups(node)
