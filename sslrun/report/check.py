"""What `sslrun data check` found, in sentences and as a table."""

import math
import os
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from sslrun.base.output import new_table
from sslrun.base.text import duration, percent

SHOWN = 5  # of a list that may be long
CUT = 0.3  # part of a picture that a crop to a square may cut away without a word
NO_ORIENTATION, HALF_ORIENTATION, EASY_ORIENTATION = (
    0.32,
    0.8,
    0.95,
)  # of data.orientation.Orientation.turn; chance is 0.25, give or take 3 standard errors
FLIPPED = 0.65  # of data.orientation.Orientation.mirror; chance is 0.5
UNBALANCED = 10  # times as many pictures in the largest class as in the smallest
CONVERTIBLE = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".nef", ".arw", ".psd")
Finding = tuple[Literal["error", "warning", "advice"], str]


def findings(report: dict[str, Any]) -> list[Finding]:
    """Return what is worth saying: errors would stop a run, warnings spoil its numbers, advice helps to choose."""
    result = [
        *_files(report),
        *_duplicates(report["duplicates"]),
        *_labels(report),
        *_pixels(report["pixels"], report["options"]["horizontal_flip"]),
        *_memory(report),
    ]
    return sorted(result, key=lambda f: ("error", "warning", "advice").index(f[0]))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _files(report: dict[str, Any]) -> list[Finding]:
    out: list[Finding] = []
    options = report["options"]
    for name, split in report["splits"].items():
        bad = split["unreadable"]
        n = split["images"] + len(bad)
        if bad:
            named = _some([f"{b['file']} ({b['reason']})" for b in bad])
            many = len(bad) > options["max_bad_fraction"] * n
            limit = f", more than dataset.max_bad_fraction={options['max_bad_fraction']:g}" if many else ""
            out.append(
                ("error" if many else "warning", f"{len(bad)} of {n} pictures of {name} cannot be read{limit}: {named}")
            )
        if options["resize"] == "crop" and split.get("cut_away_by_crop", 0) > CUT:
            out.append(
                (
                    "advice",
                    f"dataset.resize=crop cuts away {percent(split['cut_away_by_crop'])} of a picture of {name} "
                    "on average; dataset.resize=pad keeps all of it",
                )
            )
    small = {name: split.get("smaller_than_image_size", 0) for name, split in report["splits"].items()}
    if any(small.values()):
        named = ", ".join(f"{n} of {report['splits'][name]['images']} of {name}" for name, n in small.items() if n)
        size = f"dataset.image_size={options['image_size']}"
        out.append(("advice", f"pictures smaller than {size} are blown up, which adds no detail: {named}"))
    others = {s: n for s, n in report["other_files"].items() if s in CONVERTIBLE}
    if others:
        named = ", ".join(f"{n} {s}" for s, n in others.items())
        out.append(("warning", f"files that sslrun does not read: {named}; save them as JPEG or PNG to use them"))
    return out


def _duplicates(result: dict[str, Any]) -> list[Finding]:
    counts = {kind: len(groups) for kind, groups in result.items() if isinstance(groups, list)}
    counts["train_and_test"] = result["test_images_in_training"]
    leaked = "test accuracy will flatter: pictures of test that are in training too, exactly or nearly"
    kinds: list[tuple[str, Literal["warning", "advice"], str]] = [
        ("train_and_test", "warning", leaked),
        ("classes_differ", "warning", "pictures that are in more than one class, exactly or nearly"),
        ("exact", "advice", "pictures that are there more than once"),
        ("near", "advice", "pictures that are there more than once with small differences"),
    ]
    return [
        (level, f"{text}: {counts[kind]}; the first: {_some(result[kind][0])}")
        for kind, level, text in kinds
        if result[kind]
    ]


def _labels(report: dict[str, Any]) -> list[Finding]:
    result = report["labels"]
    if result is None:
        return [("advice", "there are no labels: pretrain works, finetune needs a folder a class")]
    if result["classes"] < 2:
        return [("warning", "there is one class: pretrain works, finetune needs two")]
    out: list[Finding] = []
    if result["too_few_for_validation"]:
        out.append(
            (
                "error",
                f"classes too small to carve validation from: "
                f"{_some(result['too_few_for_validation'])}; dataset.val_fraction=0 does without",
            )
        )
    few = _some([f"{name} ({n})" for name, n in result["too_few"].items()])
    if few and result["labels_per_class"]:
        out.append(
            ("error", f"labels_per_class={result['labels_per_class']} is more than there are, validation apart: {few}")
        )
    elif few:
        out.append(
            ("warning", f"label_fraction={result['label_fraction']:g} is less than one picture of {few}; one is taken")
        )
    sizes = sorted(report["splits"]["train"]["classes"].items(), key=lambda c: c[1])
    (smallest, least), (largest, most) = sizes[0], sizes[-1]
    if most >= UNBALANCED * least:
        out.append(
            (
                "warning",
                f"{largest} has {most} pictures, {smallest} has {least}: accuracy hides small classes, "
                "macro F1 does not",
            )
        )
    return out


def advice(pixels: dict[str, Any], horizontal_flip: bool) -> list[str]:
    """Return what the pixels say about the choice of a pretext task and its views.

    Args:
        pixels: what `data.orientation.pixels` found.
        horizontal_flip: whether views are mirrored.
    """
    return [text for _, text in _pixels(pixels, horizontal_flip)]


def _pixels(pixels: dict[str, Any] | None, horizontal_flip: bool) -> list[Finding]:
    out: list[Finding] = []
    if pixels is None:
        return out
    if pixels["blank"] > 0:
        out.append(
            (
                "warning" if pixels["blank"] > 0.01 else "advice",
                f"{100 * pixels['blank']:.2g} % of the images are blank",
            )
        )
    if pixels["gray"] > 0.99:
        out.append(
            (
                "advice",
                "the pictures are grey: saturation, hue and grayscale do nothing to their views; brightness "
                "and contrast do",
            )
        )
    elif pixels["gray"] > 0.05:
        out.append(
            (
                "advice",
                f"{percent(pixels['gray'])} of the pictures are grey, the others are not; if that goes with the "
                "class, dataset.channels=gray keeps a network from going by it",
            )
        )
    if pixels["orientation"]:
        out += _orientation(pixels["orientation"], horizontal_flip)
    return out


def _orientation(result: dict[str, float], horizontal_flip: bool) -> list[Finding]:
    rotation, half = result["rotation"], result["errors_by_180"]
    measured = f"a linear rule predicts the rotation with accuracy {percent(rotation)}, chance is 25 %"
    if rotation < max(NO_ORIENTATION, 0.25 + 3 * math.sqrt(0.25 * 0.75 / result["images"])):
        text = f"the pictures show no up ({measured}): pretext=rotation has little to learn from"
    elif rotation > EASY_ORIENTATION:
        text = f"the pictures' up shows at once ({measured}): pretext=rotation may be too easy to teach much"
    elif half > 0.8 * (1 - rotation) and rotation < HALF_ORIENTATION:
        text = f"the pictures have an axis, but hardly a top ({measured}): pretext=rotation can be learnt in part"
    else:
        text = f"the pictures have an up ({measured}): pretext=rotation can be learnt"
    out: list[Finding] = [("advice", text)]
    if horizontal_flip and result["flip"] > max(FLIPPED, 0.5 + 3 * math.sqrt(0.25 / result["images"])):
        out.append(
            (
                "advice",
                f"mirrored pictures are told from the others in {percent(result['flip'])} of cases, chance is 50 %: "
                "if a mirrored one is not of its class, as with letters, say dataset.horizontal_flip=false",
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
            f"a step on {result['batch_size']} pictures takes about {_bytes(result['training_bytes'])} of the "
            f"{_bytes(result['memory_bytes'])} of memory: a smaller train.batch_size takes less",
        )
    ]


def table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    columns = ("", "images", "classes", "pictures a class", "formats", "width x height", "small", "unreadable")
    numbers = {"images", "classes", "small", "unreadable"}
    splits = new_table(columns, numbers, title=Text(report["dataset"]), title_justify="left")
    for name, split in report["splits"].items():
        splits.add_row(*map(Text, _row(name, split)))
    console = Console(width=None if os.isatty(1) else 140, highlight=False)
    with console.capture() as capture:
        console.print(splits)
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
    memory = f"{_bytes(e['training_bytes'])} for batches of {e['batch_size']}"
    return (
        f"An epoch of {e['pretext']} with {e['backbone']} takes about {duration(e['epoch_seconds'])} here: {speed}.\n"
        f"Memory: {memory}, and {_bytes(e['decoded_bytes'])} of decoded pictures on disk."
    )


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
