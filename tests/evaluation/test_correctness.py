"""Correctness of each test image, read from the predictions of an evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.evaluation.correctness import Correctness, read_correctness

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]], dtype=np.float16)
NAMES = np.array(["cup/1.png", "bowl/2.png", "jar/3.png", "bowl/4.png"])


def written(**changes: Any) -> Path:
    """Write the predictions of an evaluation of four images in this folder; return it."""
    arrays = {"probabilities": PROBABILITIES, "labels": np.array([0, 1, 2, 1]), "names": NAMES, **changes}
    np.savez_compressed("predictions.npz", **{k: v for k, v in arrays.items() if v is not None})
    return Path()


def read(evaluated: Path) -> Correctness:
    result = read_correctness(evaluated)
    assert result is not None
    return result


def test_an_image_is_correct_if_its_label_has_the_highest_probability() -> None:
    result = read(written())
    assert result.correct.tolist() == [True, True, True, False]
    assert result.names.tolist() == NAMES.tolist()
    assert result.groups is None


def test_groups_are_numbered_whatever_their_names() -> None:
    groups = read(written(groups=np.array(["shelf", "7", "shelf", "desk"]))).groups
    assert groups is not None
    assert groups[0] == groups[2]
    assert sorted(set(groups.tolist())) == [0, 1, 2]


def test_other_images_or_another_order_are_not_the_same_images() -> None:
    first = read(written())
    assert first.same_images(read(written(labels=np.array([2, 2, 2, 2]))))
    assert not first.same_images(read(written(names=NAMES[::-1])))
    shorter = read(written(probabilities=PROBABILITIES[:3], labels=np.array([0, 1, 2]), names=NAMES[:3]))
    assert not first.same_images(shorter)


def test_an_evaluation_without_predictions_has_no_correctness() -> None:
    assert read_correctness(Path("none")) is None


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_predictions_that_cannot_be_read_are_named(content: bytes | None) -> None:
    evaluated = written(names=None)  # an array is missing
    if content is not None:
        Path("predictions.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read: "):
        read_correctness(evaluated)


def test_predictions_that_were_cut_off_are_named() -> None:
    evaluated = written()
    data = Path("predictions.npz").read_bytes()
    Path("predictions.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read: "):
        read_correctness(evaluated)
