"""Folders as they lie on a disk: hidden and system files, links, names in any form of Unicode."""

import os
from pathlib import Path

import pytest

from sslrun.data.decode import EXTRAS
from sslrun.data.tree import SYSTEM_FOLDERS, find_images, read_tree


def touch(*names: str) -> None:
    for name in names:
        Path("top", name).parent.mkdir(parents=True, exist_ok=True)
        Path("top", name).touch()


def test_images_are_sorted_by_their_path_below_the_folder() -> None:
    touch("b/1.png", "a/2.png", "a.png", "a/b/1.JPG", "a b/1.tif")
    expected = ["a b/1.tif", "a.png", "a/2.png", "a/b/1.JPG", "b/1.png"]
    for written in ("top", "top/", "./top", str(Path("top").resolve())):
        assert [os.path.relpath(f, "top") for f in find_images(written)] == expected


@pytest.mark.parametrize("name", sorted(SYSTEM_FOLDERS))
def test_system_folders_are_skipped_in_any_case_and_at_any_depth(name: str) -> None:
    touch("a/1.png", f"{name}/1.png", f"a/{name.upper()}/2.png", f"a/b/{name}/c/3.png", "a/b/4.png")
    tree = read_tree("top")
    assert tree.top.below() == ["top/a/1.png", "top/a/b/4.png"]
    assert sorted(os.path.basename(p) for p in tree.system) == sorted([name, name, name.upper()])
    assert tree.left_out()[0].startswith("3 system folders: ")


def test_other_files_are_counted_by_suffix_and_hidden_ones_are_not() -> None:
    touch(
        "a/1.png", "a/1.DNG", "b/2.dng", "b/notes.txt", "b/README", "Thumbs.db", "a/.DS_Store", ".git/x.txt", "c/3.svg"
    )
    tree = read_tree("top")
    assert tree.others() == {".dng": 2, ".txt": 1, "without a suffix": 1, ".svg": 1}
    assert next(iter(tree.others())) == ".dng"  # the most frequent one
    (line,) = tree.left_out()
    assert line.startswith("5 files of other formats: 2 .dng, ")
    assert line.endswith(f" and 1 more; {EXTRAS['.dng']}")


def test_a_folder_seen_through_two_links_is_read_once() -> None:
    touch("a/1.png")
    os.symlink(Path("top/a").resolve(), "top/again")
    os.symlink(Path("top").resolve(), "top/a/loop")
    assert find_images("top") == ["top/a/1.png"]


def test_an_unreadable_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a/1.png", "b/2.png")
    scandir = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    tree = read_tree("top")
    assert tree.top.below() == ["top/a/1.png"]
    assert tree.closed() == ["1 folder cannot be opened: top/b (Permission denied)"]
