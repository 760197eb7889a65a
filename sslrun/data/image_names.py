"""Finding images by the names that a label file has for them."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sslrun.data.tree import normalized

NONE, SEVERAL = -1, -2  # instead of a position, where no image or several have a name


class ImageNames:
    """Finds images by the names in a label file: paths or file names, with or without suffix.

    Args:
        names: N paths below `top`, with forward slashes, all with a suffix.
        top: the folder of the images.
    """

    def __init__(self, names: Sequence[str], top: str | Path = "") -> None:
        self.names, self.top = names, top
        self._paths = dict(zip(names, range(len(names)), strict=True))
        self._by_stem: dict[str, int] | None = None  # built when a name is not a whole path
        self._same: dict[str, list[int]] | None = None  # built when several images have the same file name

    def find_all(self, values: Sequence[str]) -> list[int]:
        """Return the position of the image of each name, or NONE or SEVERAL.

        A path may begin above the folder of the images, in that folder itself or in one of another machine, but not in
        one next to it: `train/1.jpg` and `test/1.jpg`, with images in `data/train`.
        """
        found = [self._paths.get(v, NONE) for v in values]
        above: dict[str, list[int]] = {}  # folders above the images in a path -> positions in `found`
        for k, value in enumerate(values):
            if found[k] == NONE and value:
                plain = _plain(value)
                found[k], folders = self._paths.get(plain, NONE) if plain is not value else NONE, ""
                if found[k] == NONE:
                    found[k], folders = self._search(plain)
                if folders:
                    above.setdefault(folders.strip("/"), []).append(k)
        foreign = self._foreign(list(above))
        for folders in foreign:
            for k in above[folders]:
                found[k] = NONE
        return found

    def _foreign(self, above: Sequence[str]) -> list[str]:
        """Return those of the folders at the beginning of paths that are not the folder of the images."""
        own = Path(os.path.abspath(self.top))
        of_top = [folders for folders in above if folders.rpartition("/")[2] == own.name]
        if of_top:
            return [folders for folders in above if folders not in of_top]
        return [folders for folders in above if (own.parent / folders.rpartition("/")[2]).is_dir()]

    def several(self, value: str) -> list[str]:
        """Return the names of the images that a name fits."""
        return [self.names[i] for i in self._candidates(_plain(value))[0]]

    def _search(self, value: str) -> tuple[int, str]:
        """Return the image that fits a name best, or NONE or SEVERAL, and the folders above `top` in the name."""
        text, index = value.lower(), self._stems()
        last = text[text.rfind("/") + 1 :]
        i, path = index.get(last[: last.rfind(".")], NONE) if "." in last else NONE, ""
        if i < 0 or not (path := self.names[i].lower()).endswith(last):  # no suffix, or another
            others = {k for k in (i, index.get(last, NONE)) if k != NONE}
            i = others.pop() if len(others) == 1 else SEVERAL if others else NONE
            path = self.names[i].lower() if i >= 0 else ""
        if i == NONE:
            return NONE, ""
        if i != SEVERAL:  # letter case and suffix need not tell images apart
            end = path if path[path.rfind("/") + 1 :] == last else path[: path.rfind(".")]
            if end == text or _is_end(end, text):
                return i, ""
            if _is_end(text, end):
                return i, value[: -len(end)]
            return NONE, ""
        fit, folders = self._candidates(value)
        return (NONE if not fit else fit[0] if len(fit) == 1 else SEVERAL), folders

    def _candidates(self, value: str) -> tuple[list[int], str]:
        """Return the images that fit a name best, and the folders above `top` in the name."""
        last = value[value.rfind("/") + 1 :].lower()
        if self._same is None:
            self._same = {}
            for i, name in enumerate(self.names):
                self._same.setdefault(_stem(name), []).append(i)
        same = [*self._same.get(last, ()), *(self._same.get(last[: last.rfind(".")], ()) if "." in last else ())]
        for change in (_unchanged, str.lower):
            text = change(value)
            for cut in (_unchanged, _without_suffix):
                paths = [cut(change(self.names[i])) for i in same]
                for fits in (_is_same, _is_end):
                    if fit := [i for i, path in zip(same, paths, strict=True) if fits(path, text)]:
                        return [*dict.fromkeys(fit)], ""
                if fit := [i for i, path in zip(same, paths, strict=True) if _is_end(text, path)]:
                    return [*dict.fromkeys(fit)], value[: -len(cut(self.names[fit[0]]))]
        return [], ""

    def _stems(self) -> dict[str, int]:
        """Return the image of each file name in lower case, without suffix; SEVERAL for that of several images."""
        if self._by_stem is None:
            stems = [_stem(name) for name in self.names]
            self._by_stem = dict(zip(stems, range(len(stems)), strict=True))
            if len(self._by_stem) < len(stems):
                self._by_stem |= {stem: SEVERAL for stem, n in Counter(stems).items() if n > 1}
        return self._by_stem


def _stem(name: str) -> str:
    return name[name.rfind("/") + 1 : name.rfind(".")].lower()


def _unchanged(name: str) -> str:
    return name


def _without_suffix(name: str) -> str:
    return name[: name.rfind(".")]


def _is_same(path: str, name: str) -> bool:
    return path == name


def _is_end(path: str, name: str) -> bool:
    return path.endswith(name) and path[-len(name) - 1] == "/"


def _plain(name: str) -> str:
    """Return a name as paths of images are written: normalized, with forward slashes, without `./`."""
    if name.isascii() and "\\" not in name and name[0] not in "./f":
        return name
    return normalized(name.replace("\\", "/").removeprefix("file://").removeprefix("./"))
