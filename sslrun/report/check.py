"""The findings of `sslrun data check` in sentences, and its table."""

import math
import os
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from sslrun.base.output import new_table
from sslrun.base.text import counted, listed, percent, small_percent, time_range
from sslrun.data.decode import EXTRAS

MAX_LISTED = 5  # entries of a long list
MAX_OUTSIDE = 0.01  # fraction of the values of gray images of more than 8 bits outside dataset.range without a warning
MAX_CROPPED = 0.3  # mean fraction of an image that a square crop may remove without advice
# Accuracies of predicting the rotation (data.orientation.Orientation.rotation); chance is 0.25.
NO_ORIENTATION, HALF_ORIENTATION, EASY_ORIENTATION = 0.32, 0.8, 0.95
FLIP_DETECTED = 0.65  # accuracy of predicting a horizontal flip (Orientation.flip); chance is 0.5
IMBALANCED = 10  # ratio of the largest to the smallest class
Finding = tuple[Literal["error", "warning", "advice"], str]


def findings(report: dict[str, Any]) -> list[Finding]:
    """Return the findings, errors first: errors stop a run, warnings make metrics unreliable, advice is optional."""
    result = [
        *_files(report),
        *_range(report),
        *_duplicates(report["duplicates"]),
        *_groups(report["groups"]),
        *_labels(report),
        *_pixels(report["pixels"], report["options"]["horizontal_flip"], report["options"]["range"]),
        *_memory(report),
    ]
    return sorted(result, key=lambda f: ("error", "warning", "advice").index(f[0]))


def _files(report: dict[str, Any]) -> list[Finding]:
    out: list[Finding] = []
    options = report["options"]
    for name, split in report["splits"].items():
        bad = split["unreadable"]
        n = split["images"] + len(bad)
        if bad:
            named = listed([f"{b['file']} ({b['reason']})" for b in bad], MAX_LISTED)
            many = len(bad) > options["max_bad_fraction"] * n
            limit = f", more than dataset.max_bad_fraction={options['max_bad_fraction']:g}" if many else ""
            text = f"{len(bad)} of {counted(n, 'image')} in {name} cannot be read{limit}: {named}"
            out.append(("error" if many else "warning", text))
        if options["resize"] == "crop" and split.get("cut_away_by_crop", 0) > MAX_CROPPED:
            out.append(
                (
                    "advice",
                    f"dataset.resize=crop removes {percent(split['cut_away_by_crop'])} of an image in {name} on "
                    "average; dataset.resize=pad keeps the whole image",
                )
            )
    small = {name: split.get("smaller_than_image_size", 0) for name, split in report["splits"].items()}
    if any(small.values()):
        named = ", ".join(f"{n} of {report['splits'][name]['images']} in {name}" for name, n in small.items() if n)
        size = f"dataset.image_size={options['image_size']}"
        out.append(("advice", f"images smaller than {size} are upsampled, which adds no detail: {named}"))
    others = {s: n for s, n in report["other_files"].items() if s in EXTRAS}
    if others:
        named = ", ".join(f"{n} {s} ({EXTRAS[s]})" for s, n in others.items())
        out.append(("warning", f"images in formats that are not read: {named}"))
    if report["unreadable_folders"]:
        out.append(("warning", f"folders that cannot be opened: {listed(report['unreadable_folders'], MAX_LISTED)}"))
    return out


def _range(report: dict[str, Any]) -> list[Finding]:
    """Return the findings on gray images of more than 8 bits; not on those of the test split."""
    out: list[Finding] = []
    for name, split in report["splits"].items():
        outside = split["outside_range"]
        if outside["images"] and name != "test":
            low, high = report["options"]["range"]
            level: Literal["warning", "advice"] = "warning" if outside["values"] > MAX_OUTSIDE else "advice"
            share = f"{small_percent(outside['values'])} of the values"
            out.append(
                (
                    level,
                    f"{counted(outside['images'], 'image')} in {name} have values outside "
                    f"dataset.range=[{low:g},{high:g}], which are clipped: {share} of all gray images of more than "
                    "8 bits",
                )
            )
    return out


def _duplicates(result: dict[str, Any]) -> list[Finding]:
    counts = {kind: len(groups) for kind, groups in result.items() if isinstance(groups, list)}
    counts["train_and_test"] = result["test_images_in_training"]
    leaked = "test accuracy will be too high: test images with an exact or near duplicate in training"
    kinds: list[tuple[str, Literal["warning", "advice"], str]] = [
        ("train_and_test", "warning", leaked),
        ("classes_differ", "warning", "images with an exact or near duplicate in another class"),
        ("exact", "advice", "exact duplicates"),
        ("near", "advice", "near duplicates"),
    ]
    return [
        (level, f"{text}: {counts[kind]}; first group: {listed(result[kind][0], MAX_LISTED)}")
        for kind, level, text in kinds
        if result[kind]
    ]


def _groups(result: dict[str, Any] | None) -> list[Finding]:
    if result is None:
        return []
    largest = f"the largest, {result['largest']}, has {counted(result['largest_images'], 'image')}"
    if "overrides" in result:
        text = "near duplicates are on both sides of a split (train, test, folds of cross-validation): "
        text += f"{result['overrides']} makes "
        moved = f"{counted(result['change_sides'], 'image')} would change sides"
        return [("warning", f"{text}{counted(result['groups'], 'group')}; {largest}, and {moved}")]
    both = result["train_and_test"]
    out: list[Finding] = [("advice", f"dataset.groups: {counted(result['groups'], 'group')}; {largest}")]
    if both:
        out.append(("warning", f"groups in both training and test: {len(both)}, such as {listed(both, MAX_LISTED)}"))
    return out


def _labels(report: dict[str, Any]) -> list[Finding]:
    result = report["labels"]
    if result is None:
        return [("advice", "there are no labels: pretrain works, finetune needs one folder per class")]
    if result["classes"] < 2:
        return [("warning", "there is only one class: pretrain works, finetune needs at least two")]
    out: list[Finding] = []
    if result["mistake"]:
        out.append(("error", result["mistake"]))
    few = listed([f"{name} ({n})" for name, n in result["too_few"].items()], MAX_LISTED)
    if few:
        text = f"{result['budget']} is more than these classes have: {few}; all of their labels are used"
        out.append(("warning", text))
    if result["single"]:
        text = f"classes with one label ({result['budget']}): {listed(result['single'], MAX_LISTED)}; cross-validation "
        out.append(("advice", f"{text}cannot tell how well they are recognized"))
    sizes = sorted(report["splits"]["train"]["classes"].items(), key=lambda c: c[1])
    (smallest, least), (largest, most) = sizes[0], sizes[-1]
    if most >= IMBALANCED * least:
        out.append(
            (
                "warning",
                f"imbalanced classes: {largest} has {counted(most, 'image')}, {smallest} has {least}; accuracy hides "
                "errors on small classes, macro F1 does not",
            )
        )
    return out


def advice(pixels: dict[str, Any], horizontal_flip: bool) -> list[str]:
    """Return advice on the choice of a pretext task and its views.

    Args:
        pixels: as returned by `data.orientation.pixels`.
        horizontal_flip: whether views are flipped horizontally.
    """
    return [text for _, text in _pixels(pixels, horizontal_flip)]


def _pixels(
    pixels: dict[str, Any] | None, horizontal_flip: bool, gray_range: list[float] | None = None
) -> list[Finding]:
    out: list[Finding] = []
    if pixels is None:
        return out
    if pixels["blank"] > 0:
        out.append(
            (
                "warning" if pixels["blank"] > 0.01 else "advice",
                f"{small_percent(pixels['blank'])} of the images are blank"
                + (f"; is dataset.range={gray_range} that of all gray images?" if gray_range else ""),
            )
        )
    if pixels["gray"] > 0.99:
        out.append(
            (
                "advice",
                "the images are gray: saturation, hue and grayscale do not change their views; brightness and "
                "contrast do",
            )
        )
    elif pixels["gray"] > 0.05:
        out.append(
            (
                "advice",
                f"{percent(pixels['gray'])} of the images are gray, the others in color; if that depends on the "
                "class, dataset.channels=gray keeps the network from using it as a shortcut",
            )
        )
    if pixels["orientation"]:
        out += _orientation(pixels["orientation"], horizontal_flip)
    return out


def _orientation(result: dict[str, float], horizontal_flip: bool) -> list[Finding]:
    rotation, half = result["rotation"], result["errors_by_180"]
    measured = f"a linear classifier predicts the rotation with accuracy {percent(rotation)}, chance 25 %"
    if rotation < max(NO_ORIENTATION, 0.25 + 3 * math.sqrt(0.25 * 0.75 / result["images"])):
        text = f"the images have no canonical orientation ({measured}): pretext=rotation has little to learn"
    elif rotation > EASY_ORIENTATION:
        text = f"the images' orientation is obvious ({measured}): pretext=rotation may be too easy to be useful"
    elif half > 0.8 * (1 - rotation) and rotation < HALF_ORIENTATION:
        text = f"the images have an axis, but no clear top ({measured}): pretext=rotation can be learned in part"
    else:
        text = f"the images have a canonical orientation ({measured}): pretext=rotation can be learned"
    out: list[Finding] = [("advice", text)]
    if horizontal_flip and result["flip"] > max(FLIP_DETECTED, 0.5 + 3 * math.sqrt(0.25 / result["images"])):
        out.append(
            (
                "advice",
                f"a linear classifier detects horizontal flips with accuracy {percent(result['flip'])}, chance 50 %: "
                "if a flip changes the class, as with letters, set dataset.horizontal_flip=false",
            )
        )
    return out


def _memory(report: dict[str, Any]) -> list[Finding]:
    result = report.get("estimate")
    if not result or not result["memory_bytes"] or result["training_bytes"] < 0.8 * result["memory_bytes"]:
        return []
    return [
        (
            "warning",
            f"a training step on {counted(result['batch_size'], 'image')} needs about "
            f"{_bytes(result['training_bytes'])} of {_bytes(result['memory_bytes'])} of memory: reduce "
            "train.batch_size",
        )
    ]


def table(report: dict[str, Any]) -> str:
    """Return the report as text for a terminal."""
    columns = ("", "images", "classes", "images per class", "formats", "width x height", "small", "unreadable")
    numbers = {"images", "classes", "small", "unreadable"}
    splits = new_table(columns, numbers, title=Text(report["dataset"]), title_justify="left")
    for name, split in report["splits"].items():
        splits.add_row(*map(Text, _row(name, split)))
    console = Console(width=None if os.isatty(1) else 140, highlight=False)
    with console.capture() as capture:
        console.print(splits)
        if report["options"]["range"]:
            low, high = report["options"]["range"]
            kinds = sorted({k for split in report["splits"].values() for k in split["depths"]})
            text = f"Range of gray images of more than 8 bits: {low:.10g} to {high:.10g} (dataset.range)"
            console.print(f"{text}; found: {', '.join(kinds)}.\n", markup=False, soft_wrap=True)
        if "estimate" in report:
            console.print(_estimate(report["estimate"]) + "\n", markup=False, soft_wrap=True)
        for finding in report["findings"]:
            style = {"error": "bold red", "warning": "yellow", "advice": "green"}[finding["level"]]
            console.print(Text.assemble((f"{finding['level']:<8} ", style), finding["text"]), soft_wrap=True)
    return capture.get()


def _row(name: str, split: dict[str, Any]) -> list[str]:
    sizes = sorted((split["classes"] or {}).values())
    each = "" if not sizes else str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    shape = ""
    if "width" in split:
        w, h = split["width"], split["height"]
        small, median, large = (f"{w[k]}x{h[k]}" for k in ("min", "median", "max"))
        shape = small if small == large else f"{small} to {large}, median {median}"
    formats = ", ".join(f"{n} {kind}" for kind, n in split["formats"].items())
    small_ones = str(split.get("smaller_than_image_size", ""))
    return [
        name,
        str(split["images"]),
        str(len(sizes) or "none"),
        each,
        formats,
        shape,
        small_ones,
        str(len(split["unreadable"])),
    ]


def _estimate(e: dict[str, Any]) -> str:
    speed = f"{e['images_per_second']:.0f} images/s on {e['device']}, {e['precision']}"
    first = f"; before the first about {time_range(e['preparation_seconds'])}" if e["preparation_seconds"] else ""
    memory = f"{_bytes(e['training_bytes'])} at a batch size of {e['batch_size']}"
    return (
        f"An epoch of {e['pretext']} with {e['backbone']} takes about {time_range(e['epoch_seconds'])}: {speed}"
        f"{first}.\n"
        f"Memory: {memory}; disk: {_bytes(e['decoded_bytes'])} of decoded images."
    )


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
