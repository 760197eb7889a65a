"""`sslrun suggest`: suggest which images to label first."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import file_hash, new_folder
from sslrun.base.output import write_csv
from sslrun.base.text import counted
from sslrun.config.types import Count, Node, PositiveInt
from sslrun.data.layout import TO_SORT
from sslrun.data.sources.folder import labeled_below
from sslrun.data.tree import find_images
from sslrun.inference.index import indexed
from sslrun.inference.inputs import named_images
from sslrun.inference.model import open_model
from sslrun.inference.suggestion import typical_and_diverse
from sslrun.report.sheets import contact_sheet
from sslrun.run.run import Run

COLUMNS = 10  # of the contact sheet
AUTO = "auto"
LONGEST = 200  # bytes of the name of a copy, without its number; file systems allow 255


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """Settings of `sslrun suggest`, documented in conf/suggest.yaml."""

    images: list[str]
    n: PositiveInt
    labeled: str | None
    classes: list[str]
    out: str | None
    run: str
    stage: PositiveInt | None
    batch_size: PositiveInt
    seed: Count
    device: Node


def suggest(run: Run, settings: Suggest) -> dict[str, Any]:
    """Choose typical and diverse images, and copy them into a folder in which they can be sorted into classes.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no images, an output folder that is not empty, or a class that is not a valid folder name.
    """
    folder = Path(settings.out) if settings.out else run.directory / "to_label"
    invalid = [c for c in settings.classes if Path(c).name != c or c.startswith(".") or not c.strip()]
    if invalid:
        raise UserError(f"classes: {invalid[0]!r} is not a valid folder name")
    named = list({os.path.realpath(f): f for f in named_images(settings.images)}.values())
    done, labels_from = _labeled(settings.labeled, settings.images)
    run.resolve(out=str(folder))
    model = open_model(settings.run, settings.device)
    run.resolve(run=str(model.network.path.parent))
    source = str(model.network.path.parent)
    new_folder("out", folder)
    files, features, _ = indexed(model, named, settings.stage, settings.batch_size)
    copied, elsewhere = _copies(files, done)
    if done:
        log.info("%s labeled in %s; left out here: %d", counted(len(done), "image"), labels_from, len(copied))
    own = {os.path.realpath(f) for f in named}  # those that cannot be read, too
    done = [done[i] for i in elsewhere if os.path.realpath(done[i]) not in own]
    known = indexed(model, done, settings.stage, settings.batch_size)[1] if done else features[:0]
    has_label = np.array([*copied, *range(len(files), len(files) + len(known))], dtype=int)
    chosen = typical_and_diverse(np.concatenate([features, known]), settings.n, settings.seed, has_label)
    if not len(chosen):
        raise UserError(f"all of the {counted(len(files), 'image')} are labeled already")
    rows = [files[i] for i in chosen]
    copies = _lay_out(rows, folder, settings.classes)
    table = [{"rank": i + 1, "image": f, "copy": c.name} for i, (f, c) in enumerate(zip(rows, copies, strict=True))]
    write_csv(run.directory / "suggestions.csv", table)
    write_csv(folder / "labels.csv", [{"file": c.relative_to(folder).as_posix(), "label": ""} for c in copies])
    tiles = [(f, f"{i + 1}", Path(f).name) for i, f in enumerate(rows)]
    sheet = run.figure("suggestions")
    lines = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    contact_sheet(lines, model.gray_range).save(sheet)
    print("\n".join(rows), flush=True)
    log.info("Suggested %d of %s; contact sheet: %s", len(rows), counted(len(files), "image"), sheet)
    log.info(
        "Either write the class of each image into %s, or move all of them from %s to class folders in %s.",
        folder / "labels.csv", folder / TO_SORT, folder / "train",
    )  # fmt: skip
    labeled = {"labels_from": labels_from, "left_out": len(copied)} if labels_from else {}
    return {"images": len(files), "suggested": len(rows), "of_run": source, **labeled}


def _labeled(labeled: str | None, images: Sequence[str]) -> tuple[list[str], str]:
    """Return the images that are labeled already, and where their labels are.

    Args:
        labeled: folder, label file, None for no images, or `auto`: those that have a label, if `images` is one folder.
        images: names of files and folders.

    Raises:
        UserError: the folder has no images, or the label file cannot be read or names none.
    """
    folders = [Path(os.path.expanduser(i)) for i in images if len(images) == 1]
    folders = [f for f in folders if f.is_dir()]
    if labeled is None or (labeled == AUTO and not folders):
        return [], ""
    if labeled == AUTO:
        try:
            done, source, notes = labeled_below(folders[0], None)
        except UserError as error:
            log.info("No labels are used to leave images out: %s", _for_suggest(str(error)))
            return [], ""
        _log(notes)
        return done, source if done else ""
    given = Path(os.path.expanduser(labeled))
    if given.is_dir():
        if done := find_images(given):
            return [f for f in done if os.path.isfile(f)], labeled
        raise UserError(f"labeled={labeled}: no images in this folder")
    errors = []
    for folder in (*folders, given.parent):
        try:
            done, _, notes = labeled_below(folder, str(given))
            if done:
                _log(notes)
                return done, labeled
            errors.append(f"labeled={labeled}: it names none of the images")
        except UserError as error:
            errors.append(_for_suggest(str(error)))
    raise UserError(errors[0])


def _log(notes: Sequence[str]) -> None:
    for note in notes:
        log.info("%s", _for_suggest(note))


def _for_suggest(text: str) -> str:
    """Return a message on a label file, without keys that other commands have."""
    text = text.replace("dataset.labels=", "labeled=")
    return text.replace("Set dataset.columns={label: ...}", "Name the column of labels `label`")


def _copies(files: Sequence[str], labeled: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the indices of files that have a labeled copy, and of labeled files that are copies of no file."""
    sizes = {os.path.getsize(f) for f in labeled}
    digests = {i: file_hash(f, "blake2b").digest() for i, f in enumerate(files) if os.path.getsize(f) in sizes}
    labeled_digests, own = [file_hash(f, "blake2b").digest() for f in labeled], set(digests.values())
    copied = [i for i, d in digests.items() if d in set(labeled_digests)]
    return copied, [i for i, d in enumerate(labeled_digests) if d not in own]


def _lay_out(files: Sequence[str], folder: Path, classes: Sequence[str]) -> list[Path]:
    """Copy images to `to_sort`, with their ranks as prefixes, and create `train` with one folder per class."""
    for name in (TO_SORT, "train", *(f"train/{c}" for c in classes)):
        (folder / name).mkdir(exist_ok=True)
    width = len(str(len(files)))
    copies = [folder / TO_SORT / f"{i + 1:0{width}d}_{_shortened(Path(f).name)}" for i, f in enumerate(files)]
    for file, copy in zip(files, copies, strict=True):
        shutil.copy2(file, copy)
    return copies


def _shortened(name: str) -> str:
    """Return the last `LONGEST` bytes of a file name, so that a number can be put in front."""
    return os.fsdecode(os.fsencode(name)[-LONGEST:])
