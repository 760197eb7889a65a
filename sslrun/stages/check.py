"""`sslrun data check`: check a data set before training on it."""

import os
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import write_text
from sslrun.base.output import as_json, write_csv
from sslrun.base.text import counted
from sslrun.base.version import SCHEMA
from sslrun.config.nodes import network_name, short_name
from sslrun.config.types import Node, Positive, PositiveInt
from sslrun.data.bursts import proposed
from sslrun.data.cache import Decoded
from sslrun.data.dataset import decoded, listed, with_range, with_range_of
from sslrun.data.duplicates import exact_duplicates, headers, near_duplicates
from sslrun.data.groups import KEY, shared_groups
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget, counts
from sslrun.data.options import DatasetNode, Options, describe, shared
from sslrun.data.orientation import pixels, sample
from sslrun.data.sides import Labeled
from sslrun.data.sources.folder import unlabeled_folder
from sslrun.data.sources.source import Listing, SplitName
from sslrun.data.tree import read_tree
from sslrun.models.encoder import BackboneNode
from sslrun.report.check import findings, table
from sslrun.run.run import Run
from sslrun.tasks.task import TaskNode
from sslrun.training import estimate
from sslrun.training.settings import SMALLEST_BATCH

OPTIONS = ("image_size", "resize", "range", "max_bad_fraction", "horizontal_flip")
EIGHT = "8 bits"  # per channel: all images but gray ones of another kind
SPLITS: tuple[SplitName, ...] = ("train", "unlabeled", "test")


class CheckedSplit:
    """The files and decoded images of a split, or of `unlabeled=`.

    Args:
        name: `train`, `unlabeled`, `test` or `unlabeled=FOLDER`.
        listing: the files.
        decoded: the images.

    Attributes:
        good: positions of the readable images in `listing`; the methods take indices into it.
        headers: of the files; empty for a data set without files.
        labels: of the readable files; None if there are none.
    """

    def __init__(self, name: str, listing: Listing, decoded: Decoded) -> None:
        self.name, self.listing, self.decoded = name, listing, decoded
        self.images, self.good = decoded.images(), decoded.good()
        self.headers = [] if isinstance(listing.items, np.ndarray) else headers(listing.items)
        self.labels = None if listing.labels is None else listing.labels[self.good]

    def path(self, i: int) -> str:
        """Return the path of the i-th readable image, or its name if it is not a file."""
        index = self.good[i]
        return str(self.listing.items[index]) if self.headers else f"{self.name}: {self.listing.names[index]}"

    def digests(self) -> list[bytes]:
        """Return a hash of the bytes of each readable file, or of the pixels if there are no files."""
        if self.headers:
            return [self.headers[i].digest for i in self.good]
        return [d.tobytes() for d in self.images.digests[self.images.index.numpy()]]

    def groups(self) -> list[str]:
        """Return the group of each readable image; its name if there are no groups."""
        names = self.listing.groups or self.listing.names
        return [names[i] for i in self.good]

    def class_of(self, i: int) -> str | None:
        """Return the class of the i-th readable image; None without labels."""
        return None if self.labels is None else self.listing.class_names[self.labels[i]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Settings of `sslrun data check`, documented in conf/check.yaml."""

    dataset: DatasetNode
    unlabeled: str | None
    pretext: TaskNode
    backbone: BackboneNode
    optimizer: Node
    device: Node
    labels: PositiveInt | None
    label_fraction: Positive | None
    labels_per_class: PositiveInt | None
    batch_size: Annotated[int, Field(ge=SMALLEST_BATCH)]
    format: Literal["table", "json"]


def check(run: Run, settings: Check) -> dict[str, Any]:
    """Report on a data set on standard output and in `check.json`; nothing is trained.

    Test images are counted and compared with the others, and are in groups that are proposed; neither their labels nor
    statistics of their pixels are used for other advice.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: a run would stop with an error (raised after the report).
    """
    budget = LabelBudget(settings.labels, settings.label_fraction, settings.labels_per_class)
    budget.check(run.overrides)
    dataset = with_range(settings.dataset)
    if settings.unlabeled:
        dataset = with_range_of(unlabeled_folder(Path(os.path.expanduser(settings.unlabeled))), dataset)
    run.resolve(dataset=dataset)
    options = shared(dataset)
    splits = list(_splits(dataset, settings.unlabeled))
    without_test = [p for p in splits if p.name != "test"]
    images = _joined(without_test)
    in_groups = any(p.listing.groups for p in without_test)
    groups = [g for p in without_test for g in p.groups()] if in_groups else None
    exact, near = _duplicate_sets(splits)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "dataset": describe(settings.dataset),
        "options": {k: getattr(options, k) for k in OPTIONS},
        "splits": {p.name: _split(p, options) for p in splits},
        **_left_out(settings.dataset),
        "duplicates": _duplicates(splits, exact, near),
        "groups": _groups(splits, [*exact, *near], dataset, run),
        "labels": _labels(splits[0], budget),
        "pixels": pixels(sample(images, groups=groups)) if len(images) else None,
    }
    if len(images) > 1:
        report["estimate"] = _estimate(images, settings)
    all_findings = findings(report)
    report["findings"] = [{"level": level, "text": text} for level, text in all_findings]
    text = as_json(report)
    write_text(run.directory / "check.json", text)
    print(text if settings.format == "json" else table(report), end="")
    log.info("Report written to %s", run.directory / "check.json")
    errors = [text for level, text in all_findings if level == "error"]
    if errors:
        raise UserError("training would fail: " + "; ".join(errors))
    return {
        "dataset": describe(settings.dataset),
        "images": len(images),
        "labeled": splits[0].labels is not None,
        "warnings": sum(f[0] == "warning" for f in all_findings),
    }


def _splits(dataset: Node, unlabeled: str | None) -> Iterator[CheckedSplit]:
    listings: list[tuple[str, Listing | None]] = [(name, listed(dataset, name)) for name in SPLITS]
    if unlabeled:
        listings.insert(1, (f"unlabeled={unlabeled}", unlabeled_folder(Path(os.path.expanduser(unlabeled)))))
    for name, listing in listings:
        if listing is None:
            continue
        log.info("Checking %s of %s", counted(len(listing.names), "image"), name)
        parts = {name: listing}
        if listing.validation is not None:
            given = listing.validation
            parts = {name: listing.take(np.flatnonzero(~given)), "val": listing.take(np.flatnonzero(given))}
        for part, files in parts.items():
            yield CheckedSplit(part, files, decoded(files, shared(dataset)))


def _joined(splits: list[CheckedSplit]) -> Images:
    images = splits[0].images
    for split in splits[1:]:
        images = images + split.images
    return images


def _split(split: CheckedSplit, options: Options) -> dict[str, Any]:
    items, names = split.listing.items, split.listing.class_names
    sizes = counts(split.labels) if split.labels is not None else {}
    if isinstance(items, np.ndarray):
        height, width, channels = items.shape[1:]
        shapes = [(width, height)] * len(items)
        formats, modes = {"array": len(items)}, {"RGB" if channels == 3 else "L": len(items)}
        depths = {EIGHT: len(items)}
    else:
        known = [h for h in split.headers if h.format]
        shapes = [(h.width, h.height) for h in known]
        formats = dict(Counter(h.format for h in known).most_common())
        modes = dict(Counter(h.mode for h in known).most_common())
        depths = dict(Counter(h.kind or EIGHT for h in known).most_common())
    deep = sum(n for depth, n in depths.items() if depth != EIGHT)
    outside = list(split.decoded.outside.values())
    out: dict[str, Any] = {
        "images": len(split.good),
        "classes": {name: sizes.get(c, 0) for c, name in enumerate(names)} if split.labels is not None else None,
        "formats": formats,
        "modes": modes,
        "depths": depths,
        "outside_range": {"images": len(outside), "values": round(sum(outside) / max(1, deep), 6)},
        "unreadable": [{"file": str(items[i]), "reason": reason} for i, reason in split.decoded.bad.items()],
    }
    if shapes:
        widths, heights = zip(*shapes, strict=True)
        out |= {side: {"min": min(v), "median": statistics.median_low(v), "max": max(v)}
                for side, v in (("width", widths), ("height", heights))}  # fmt: skip
        side = max if options.resize == "pad" else min
        out["smaller_than_image_size"] = sum(side(s) < options.image_size for s in shapes)
        out["cut_away_by_crop"] = round(statistics.mean(1 - min(s) / max(s) for s in shapes), 3)
    return out


def _left_out(dataset: Node) -> dict[str, Any]:
    """Return the numbers of other files by suffix, and the folders that cannot be opened."""
    if short_name(dataset["_target_"]) != "folder":
        return {"other_files": {}, "unreadable_folders": []}
    tree = read_tree(os.path.expanduser(dataset["root"]))
    return {"other_files": dict(tree.others()), "unreadable_folders": [path for path, _ in tree.unreadable]}


def _duplicate_sets(splits: list[CheckedSplit]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the positions in all splits together of exact duplicates, and of other near duplicates."""
    exact = exact_duplicates([d for p in splits for d in p.digests()])
    in_test = np.array([p.name == "test" for p in splits for _ in p.good])
    known = [set(g) for g in exact]
    return exact, [g for g in near_duplicates(_joined(splits), in_test) if not any(k.issuperset(g) for k in known)]


def _duplicates(splits: list[CheckedSplit], exact: list[list[int]], near: list[list[int]]) -> dict[str, Any]:
    """Return groups of paths: exact and near duplicates, those in both training and test, those in several classes."""
    images = [(p, i) for p in splits for i in range(len(p.good))]
    in_test = [p.name == "test" for p, _ in images]
    both = [g for g in exact + near if len({images[i][0].name == "test" for i in g}) > 1]
    mixed = [g for g in exact + near if len({images[i][0].class_of(images[i][1]) for i in g} - {None}) > 1]
    named = {"exact": exact, "near": near, "train_and_test": both, "classes_differ": mixed}
    paths = {kind: [[images[i][0].path(images[i][1]) for i in g] for g in groups] for kind, groups in named.items()}
    return paths | {"test_images_in_training": len({i for g in both for i in g if in_test[i]})}


def _groups(splits: list[CheckedSplit], duplicates: list[list[int]], dataset: Node, run: Run) -> dict[str, Any] | None:
    """Return the groups of `dataset.groups`; without it those that near duplicates suggest, if there are any.

    Returns:
        The number of `groups`, the `largest` and its number of images. With `dataset.groups` also the groups in both
        `train_and_test`; otherwise the `overrides` that set them, and how many images would `change_sides`.
    """
    with_labels = [p for p in splits if p.labels is not None]
    of_split = {p.name: p.listing.groups for p in with_labels if p.listing.groups is not None}
    if of_split:
        both = shared_groups(of_split.get("train", []), of_split.get("test", []))
        return _sizes([g for groups in of_split.values() for g in groups]) | {"train_and_test": both}
    if not with_labels or short_name(dataset["_target_"]) != "folder":
        return None
    paths = [_below(dataset["root"], str(item)) for p in with_labels for item in p.listing.items]
    labeled = Labeled(
        [name for p in with_labels for name in p.listing.names],
        np.concatenate([np.asarray(p.listing.labels) for p in with_labels]),
        np.array([p.name for p in with_labels for _ in p.listing.names]),
        dataset["test_fraction"],
    )
    found = proposed(paths, labeled.labels, _with_labels(splits, duplicates))
    if found is None:
        return None
    try:
        moved = int((labeled.sides(None) != labeled.sides(found.groups)).sum())
    except UserError:
        return None  # too few images, or groups, to split
    if not moved:
        return None
    overrides = f"{KEY}={shlex.quote(found.expression or '')}"
    if found.expression is None:
        file = run.directory / "groups.csv"
        _write_groups(file, paths, labeled, with_labels[0].listing.class_names, found.groups)
        overrides = f"dataset.labels={shlex.quote(str(file))} {KEY}=group"
    return _sizes(found.groups) | {"overrides": overrides, "change_sides": moved}


def _below(root: str, path: str) -> str:
    return Path(os.path.relpath(path, os.path.expanduser(root))).as_posix()


def _with_labels(splits: list[CheckedSplit], sets: list[list[int]]) -> list[list[int]]:
    """Convert positions among the readable images of all splits to positions among all images with labels."""
    position: list[int | None] = []
    first = 0
    for p in splits:
        position += [None] * len(p.good) if p.labels is None else [first + int(i) for i in p.good]
        first += 0 if p.labels is None else len(p.listing.names)
    return [[i for k in s if (i := position[k]) is not None] for s in sets]


def _write_groups(
    file: Path, paths: Sequence[str], labeled: Labeled, class_names: Sequence[str], groups: Sequence[str]
) -> None:
    """Write a label file with the groups, and the splits if the folder has its own."""
    columns: dict[str, Sequence[str]] = {"file": paths, "label": [class_names[c] for c in labeled.labels]}
    columns |= {"group": groups} | ({} if labeled.is_held_out else {"split": labeled.split.tolist()})
    write_csv(file, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def _sizes(groups: Sequence[str]) -> dict[str, Any]:
    (largest, n), *_ = Counter(groups).most_common(1)
    return {"groups": len(set(groups)), "largest": largest, "largest_images": n}


def _labels(split: CheckedSplit, budget: LabelBudget) -> dict[str, Any] | None:
    """Return what the label budget means for these classes; None without labels."""
    if split.labels is None:
        return None
    names, sizes = split.listing.class_names, counts(split.labels)
    result = {
        "budget": budget.text,
        "classes": len(sizes),
        "too_few": {names[c]: sizes[c] for c in budget.too_small(sizes)},
    }
    try:
        chosen = budget.rows(split.labels)
    except UserError as error:
        return result | {"labels": None, "mistake": str(error), "single": []}
    single = [names[c] for c, n in counts(split.labels[chosen]).items() if n == 1]
    return result | {"labels": len(chosen), "mistake": None, "single": single}


def _estimate(images: Images, settings: Check) -> dict[str, Any]:
    result = estimate.pretraining(
        images, settings.pretext, settings.backbone, settings.optimizer, settings.device,
        settings.dataset["image_size"], settings.batch_size,
    )  # fmt: skip
    return {
        "pretext": short_name(settings.pretext["_target_"]),
        "backbone": network_name(settings.backbone),
        "batch_size": settings.batch_size,
        "device": result.device.describe(),
        "precision": result.device.precision,
        "memory_format": result.device.memory_format,
        "images_per_second": round(result.images_per_second, 1),
        "epoch_seconds": round(len(images) / result.images_per_second, 3),
        "preparation_seconds": round(result.preparation, 3),
        "training_bytes": result.bytes,
        "decoded_bytes": images.nbytes,
        "memory_bytes": result.memory,
    }
