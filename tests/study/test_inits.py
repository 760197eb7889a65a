"""The entries of `inits=`."""

import pytest

from sslrun.base.errors import UserError
from sslrun.study.inits import has_published, is_continued, name_of, parsed, tasks_of

TASKS = ["rotation", "simclr"]


def test_an_entry_has_settings_inside_its_quotes() -> None:
    assert parsed("rotation", TASKS) == ("rotation", [])
    assert parsed('simclr pretext.temperature=0.1 "unlabeled=my images"', TASKS) == (
        "simclr", ["pretext.temperature=0.1", "unlabeled=my images"]
    )  # fmt: skip
    for name in ("scratch", "pretrained", "imagenet"):
        assert parsed(name, TASKS) == (name, [])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("rotatoin", "no pretext 'rotatoin'; did you mean rotation? Choices: scratch, pretrained, rotation, simclr"),
        ("pretraind", "no pretext 'pretraind'; did you mean pretrained?"),
        ("", "no pretext ''"),
        ("scratch seed=3", "scratch has no settings of its own; remove seed=3"),
        ("pretrained backbone=resnet18", "pretrained has no settings of its own; remove backbone=resnet18"),
        ('simclr "a', "No closing quotation"),
    ],
)
def test_mistakes(entry: str, words: str) -> None:
    with pytest.raises(UserError) as wrong:
        parsed(entry, TASKS)
    assert words in str(wrong.value)


def test_tasks_are_distinguished_from_published_weights() -> None:
    inits = ["scratch", "simclr", "rotation init=pretrained", "pretrained", "simclr", ""]
    assert tasks_of(inits) == ["simclr", "rotation init=pretrained", ""]
    assert has_published(inits)
    assert has_published(["imagenet"])
    assert not has_published(["scratch", "rotation init=pretrained"])
    assert [is_continued(e) for e in inits] == [False, False, True, False, False, False]
    assert is_continued("rotation +init=imagenet")
    assert not is_continued("rotation init=scratch")
    assert name_of("rotation  seed=3") == "rotation"
