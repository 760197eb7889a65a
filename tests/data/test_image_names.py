"""Finding images by the names that a label file has for them."""

import random
from pathlib import Path

import pytest

from sslrun.data.image_names import NONE, SEVERAL, ImageNames

NAMES = [
    "a/1.jpg",
    "a/2.JPG",
    "b/1.jpg",
    "b/thé.png",
    "c/d/img.v1.png",
    "lone.jpeg",
    "c/Upper.jpg",
    "c/upper.jpg",
    "c/g.jpg",
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/1.jpg", 0), ("a/1", 0), ("./a/1.jpg", 0), ("a\\1.jpg", 0), ("file://a/1.jpg", 0), ("A/1.JPG", 0),
        ("2.JPG", 1), ("2.jpg", 1), ("2", 1), ("1.jpg", SEVERAL), ("1", SEVERAL), ("3", NONE), ("", NONE),
        ("b/the\u0301.png", 3), ("thé", 3), ("img.v1", 4), ("d/img.v1.png", 4), ("d/img.v1", 4), ("img", NONE),
        ("photos/a/1.jpg", 0), ("/data/photos/b/1", 2), ("lone.jpeg", 5), ("lone.png", NONE), ("x/lone.jpeg", 5),
        ("Upper.jpg", 6), ("upper", 7), ("UPPER", SEVERAL), ("z/2.JPG", NONE), ("1.jpg/a", NONE), ("/", NONE),
        ("g", 8), ("c/g", 8), ("G.JPG", 8), ("photos/c/g", 8), ("jpg", NONE), (".jpg", NONE),
    ],
)  # fmt: skip
def test_paths_and_file_names_with_and_without_suffix(value: str, expected: int) -> None:
    assert ImageNames(NAMES, "data/photos").find_all([value]) == [expected]


def test_the_images_that_a_name_fits() -> None:
    assert ImageNames(NAMES).several("1.jpg") == ["a/1.jpg", "b/1.jpg"]


def test_paths_of_another_folder_are_not_those_of_this_one() -> None:
    Path("data/train").mkdir(parents=True)
    Path("data/test").mkdir()
    images = ImageNames(["1.jpg", "2.jpg"], Path("data/train"))
    assert images.find_all(["train/1.jpg", "test/1.jpg", "test/2.jpg"]) == [0, NONE, NONE]
    assert images.find_all(["test/1.jpg", "data/test/2.jpg"]) == [NONE, NONE]  # a folder next to it
    assert images.find_all(["/home/ann/train/1.jpg", "elsewhere/2.jpg"]) == [0, NONE]
    assert images.find_all(["/home/ann/1.jpg", "/home/bo/2.jpg"]) == [0, 1]  # moved into one folder since


def test_every_name_finds_its_image_again() -> None:
    rng = random.Random(0)
    names = [f"{rng.randrange(4)}/{rng.randrange(3)}/x{i}.{rng.choice(['jpg', 'PNG'])}" for i in range(200)]
    images = ImageNames(names, "top")
    for change in (lambda n: n, lambda n: n.rpartition("/")[2], lambda n: n[: n.rfind(".")], lambda n: f"top/{n}"):
        for case in (str, str.upper, str.lower):
            assert images.find_all([case(change(n)) for n in names]) == list(range(200))
