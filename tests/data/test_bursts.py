"""Groups that names and near duplicates suggest."""

import numpy as np
import pytest

from sslrun.data.bursts import proposed


def listed(
    name: str, objects: int = 8, each: int = 6, classes: tuple[str, ...] = ("bowl", "cup")
) -> tuple[list[str], np.ndarray, list[list[int]]]:
    """Return names of frames, `class/name`, their labels, and each object's frames as near duplicates."""
    names = [
        f"{c}/{name.format(kind=c, object=i, frame=k, number=i * each + k)}"
        for c in classes
        for i in range(objects)
        for k in range(each)
    ]
    labels = np.repeat(np.arange(len(classes)), objects * each)
    return names, labels, np.arange(len(names)).reshape(-1, each).tolist()


@pytest.mark.parametrize(
    ("name", "expression", "groups"),
    [
        ("{kind}{object}_{frame}.png", r"([^/]+)_\d+\.", 16),
        ("{object}-{frame:03d}.png", r"([^/]+)-\d+\.", 8),  # numbers that both classes have are one group
        ("{kind}{object}.{frame}.jpg", r"([^/]+)\.\d+\.", 16),
        ("{kind} {object} {frame}.jpg", r"([^/]+) \d+\.", 16),
        ("{kind}{object} ({frame}).jpg", r"([^/]+) \(\d+\)\.", 16),
        ("day_{kind}{object}_f{frame}.jpg", r"([^/]+)_[^/_]*$", 16),
        ("p{object}{kind}_view_{frame}_x.jpg", r"([^/]+)_[^/_]*$", None),
        ("patient{object}/{number}.png", r"([^/]+)/[^/]*$", 8),
    ],
)
def test_the_expression_with_the_most_groups_that_keeps_near_duplicates_together(
    name: str, expression: str, groups: int | None
) -> None:
    result = proposed(*listed(name))
    assert result is not None
    if groups is None:  # each frame is a group of its own by this expression; the first part of the name is not
        assert (result.expression, len(set(result.groups))) == (r"([^/_]+)_[^/]*$", 16)
    else:
        assert (result.expression, len(set(result.groups))) == (expression, groups)


@pytest.mark.parametrize("name", ["IMG_{number:04d}.jpg", "{number}.png", "{kind}{number}_small.png"])
def test_runs_of_consecutive_numbers_are_groups_without_an_expression(name: str) -> None:
    names, labels, sets = listed(name)
    result = proposed(names, labels, sets)
    assert result is not None
    assert result.expression is None
    assert [result.groups.index(g) // 6 for g in result.groups] == [i // 6 for i in range(96)]
    assert result.groups[6] == names[6].rpartition(".")[0]


def test_a_burst_in_several_sets_of_near_duplicates_is_one_run() -> None:
    """Sets that overlap are joined, small gaps are filled, and what is far away is another run or none."""
    names = [f"a/{i}.png" for i in range(40)] + [f"b/{i}.png" for i in range(40)]
    sets = [[0, 2, 5], [4, 7, 8, 20, 21], [30, 39], [41, 42, 43, 44, 45, 46, 47, 48]]
    result = proposed(names, np.repeat([0, 1], 40), sets)
    assert result is not None
    runs = {g: [n for n, of in zip(names, result.groups, strict=True) if of == g] for g in result.groups}
    assert [v for v in runs.values() if len(v) > 1] == [names[0:9], names[20:22], names[41:49]]
    assert all(k == v[0] for k, v in runs.items() if len(v) == 1)


def test_no_groups_without_a_pattern_in_the_names_or_with_few_near_duplicates() -> None:
    rng = np.random.default_rng(0)
    names, labels, sets = listed("{kind}{object}_{frame}.png")
    assert proposed(names, labels, []) is None
    assert proposed(names, labels, [[0, 1], [6, 7]]) is None  # 4 of 96 images
    assert proposed([f"a/{rng.integers(10**9)}.png" for _ in names], labels, sets) is None
    assert proposed([f"a/{'xyz'[i % 3]}{rng.integers(10**9)}q.png" for i in range(96)], labels, sets) is None
    mixed = [[i, i + 48] for i in range(48)]  # near duplicates in different classes
    assert proposed(names, labels, mixed) is None
    across = [[i, i + 6] for i in range(0, 40, 12)] + [[i, i + 18] for i in range(1, 30)]  # and of different objects
    assert proposed(names, labels, across) is None


def test_expressions_that_give_classes_are_no_groups() -> None:
    names, labels, sets = listed("{kind}_{number}.png")
    result = proposed(names, labels, sets)
    assert result is not None
    assert result.expression is None
