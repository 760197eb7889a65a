"""Reading a folder: its images at any depth, and what is left out, counted."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sslrun.base.text import counted, listed
from sslrun.data.decode import EXTRAS, is_image, relative

# Folders that operating systems, network storage and tools create, lower case; hidden folders are skipped, too.
SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",  # archives made on macOS
        "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot",  # Synology
        "@recycle", "@recently-snapshot", "@transcode",  # QNAP
        "$recycle.bin", "recycler", "system volume information",  # Windows
        "lost+found",  # Linux
        "~snapshot",  # NetApp
        "__pycache__", "node_modules",
    }
)  # fmt: skip
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})  # lower case
FIRST = 3  # names in a message


@dataclass
class Folder:
    """A folder with its images and subfolders; system folders and hidden files are left out.

    Attributes:
        path: as it is on the disk.
        images: paths of the image files directly in it.
        folders: its subfolders, sorted by name.
        others: number of other files directly in it, by suffix.
    """

    path: str
    images: list[str] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """Return the folder's name, normalized, since one name can be written with different bytes."""
        return normalized(os.path.basename(self.path))

    def walk(self) -> Iterator["Folder"]:
        """Yield this folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def below(self) -> list[str]:
        """Return the paths of all images in and below it, in the same order on every machine."""
        return sorted((p for f in self.walk() for p in f.images), key=lambda path: relative(path, self.path))

    def count(self) -> int:
        """Return the number of images in and below it."""
        return sum(len(f.images) for f in self.walk())

    def filled(self) -> list["Folder"]:
        """Return the subfolders with images in or below them."""
        return [f for f in self.folders if f.count()]


@dataclass
class Tree:
    """A folder that was read, and what was left out.

    Attributes:
        system: paths of skipped system folders.
        unreadable: path and reason of folders that cannot be opened.
    """

    top: Folder
    system: list[str]
    unreadable: list[tuple[str, str]]

    def others(self) -> Counter[str]:
        """Return the number of files of other formats by suffix, most frequent first."""
        counts: Counter[str] = sum((f.others for f in self.top.walk()), Counter())
        return Counter(dict(counts.most_common()))

    def use(self, file: Path) -> None:
        """Count a file, such as a label file, as read, if it is in the folder."""
        for folder in self.top.walk():
            if Path(folder.path).resolve() == file.resolve().parent:
                folder.others -= Counter({file.suffix.lower(): 1})

    def closed(self) -> list[str]:
        """Return a line about the folders that cannot be opened, if there are any."""
        named = listed([f"{path} ({reason})" for path, reason in self.unreadable], FIRST)
        return [f"{counted(len(self.unreadable), 'folder')} cannot be opened: {named}"] if self.unreadable else []

    def left_out(self) -> list[str]:
        """Return a line each about the files of other formats and the system folders that were left out."""
        others, lines = self.others(), []
        if others:
            named = listed([f"{n:,} {suffix}" for suffix, n in others.items()], FIRST)
            convertible = sorted({EXTRAS[s] for s in others if s in EXTRAS})
            hint = f"; {', '.join(convertible)}" if convertible else ""
            lines.append(f"{counted(others.total(), 'file')} of other formats: {named}{hint}")
        if self.system:
            named = ", ".join(dict.fromkeys(os.path.basename(p) for p in self.system))
            lines.append(f"{counted(len(self.system), 'system folder')}: {named}")
        return lines


def normalized(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): `é` is written with one or two characters."""
    return unicodedata.normalize("NFC", name)


def read_tree(top: str | Path) -> Tree:
    """Read a folder and all below it, without opening a file.

    Links are followed, except to a parent folder or to a folder seen before; hidden files and folders and
    `SYSTEM_FOLDERS` are skipped.
    """
    parents = [os.stat(p) for p in Path(top).resolve().parents]
    seen = {(s.st_dev, s.st_ino) for s in parents}
    folders: dict[str, Folder] = {}
    top = str(Path(top))  # without a trailing slash
    tree = Tree(Folder(top), [], [])

    def unreadable(error: OSError) -> None:
        tree.unreadable.append((str(error.filename), str(error.strerror)))

    for path, dirs, names in os.walk(top, followlinks=True, onerror=unreadable):
        here = os.stat(path)
        if (here.st_dev, here.st_ino) in seen:
            dirs.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        system = [d for d in dirs if d.lower() in SYSTEM_FOLDERS]
        tree.system += [os.path.join(path, d) for d in system]
        kept = [d for d in dirs if not d.startswith(".") and d not in system]
        links = {d for d in kept if os.path.islink(os.path.join(path, d))}
        dirs[:] = [*sorted(set(kept) - links), *sorted(links)]  # of a folder and a link to it, the link is skipped
        folder = folders.setdefault(path, Folder(path))
        if parent := folders.get(os.path.dirname(path)):
            parent.folders.append(folder)
        for name in names:
            if name.startswith(".") or name.lower() in SYSTEM_FILES:
                continue
            if is_image(name):
                folder.images.append(os.path.join(path, name))
            else:
                folder.others[os.path.splitext(name)[1].lower() or "without a suffix"] += 1
    for folder in folders.values():
        folder.folders.sort(key=lambda f: f.path)
    tree.top = folders.get(top, tree.top)
    return tree


def find_images(folder: str | Path) -> list[str]:
    """Return the image files in and below a folder, in the same order on every machine; see `read_tree`."""
    return read_tree(folder).top.below()
