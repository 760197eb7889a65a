"""`sslrun guide FOLDER`: the commands that fit a folder of images, with times measured on this machine."""

import os
import shlex
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from sslrun.base.console import ERR, log, silently
from sslrun.base.errors import UserError
from sslrun.base.output import new_table
from sslrun.base.text import counted, time_range
from sslrun.cli.demo import sslrun as run_command
from sslrun.cli.images import with_folder
from sslrun.cli.invocation import parsed
from sslrun.cli.places import quoted_paths
from sslrun.config.commands import FINETUNE, PRETRAIN
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.config.types import Node

MEASURED = 192  # images on which times are measured, at most
DECODING = 2.0  # seconds in which images are decoded for that
FEW, MANY = 200, 500  # images below which nothing is pretrained; labels above which the trainings have one fold
STEPS, FEWEST_STEPS = 600, 100  # of a distillation
PRETRAINING, FINETUNING = 300.0, 120.0  # seconds that a pretraining takes about, and a finetuning at most
SMALL, MULTIPLE = 64, 8  # px: images below get an image size of their own, a multiple
SUGGESTED = 50


@dataclass(frozen=True)
class Command:
    """A command of the guide.

    Attributes:
        arguments: without `sslrun`.
        seconds: about; None if it is not known.
        why: what it is for.
        output: file that gets its standard output; None: the terminal.
    """

    arguments: list[str]
    seconds: float | None
    why: str
    output: str | None = None

    def typed(self) -> str:
        """Return the command as it is typed."""
        line = shlex.join(["sslrun", *self.arguments])
        return f"{line} > {self.output}" if self.output else line


@dataclass(frozen=True)
class Folder:
    """What is known of a folder of images.

    Attributes:
        path: as it is typed.
        train, unlabeled, test: numbers of images.
        labels: number of training images with a label; 0 if there is only one class.
        classes: their number.
        size: arguments that set the image size, if the default is too large.
        decoding: seconds to decode an image.
        distilling: whether published weights are on this machine.
    """

    path: str
    train: int
    unlabeled: int
    test: int
    labels: int
    classes: int
    size: list[str]
    decoding: float
    distilling: bool


def guide(folder: str, run: bool) -> None:
    """Look a folder over, and print the commands that fit it; run them if `run`.

    Raises:
        UserError: it is no folder of images.
    """
    if not Path(folder).exists():
        raise UserError(f"{folder}: no such folder")
    began = time.monotonic()
    overrides = quoted_paths(with_folder(parsed(PRETRAIN, [folder])).overrides, False)
    if not overrides:
        raise UserError(f"{folder} is a run or a folder of runs, not of images")
    looked = _looked_over(folder, overrides)
    commands = list(_commands(looked, overrides))
    ERR.print(_sentence(looked), markup=False)
    table = new_table(("command", "time", ""), (), fold=True)
    for command in commands:
        seconds = "" if command.seconds is None else time_range(command.seconds)
        table.add_row(Text(command.typed()), Text(seconds), Text(command.why))
    ERR.print(table)
    log.info(
        "Measured in %.0f s. Next: the first of these; sslrun guide %s --run runs them.",
        time.monotonic() - began,
        shlex.quote(folder),
    )
    if run:
        for command in commands:
            if command.arguments[0] == FINETUNE and not looked.labels:
                log.info("Label the images in to_label/labels.csv, then continue with %s.", command.typed())
                return
            with _redirected(command.output):
                run_command(*(command.arguments[1:] if command.arguments[0] == "data" else command.arguments))


@contextmanager
def _redirected(output: str | None) -> Iterator[None]:
    """Write standard output to a new file; an older one stays as it is, and the output is only in the run directory."""
    if output is None:
        yield
        return
    name = os.devnull if os.path.exists(output) else output
    with open(name, "w", encoding="utf-8") as file, redirect_stdout(file):
        yield
    if name != output:
        log.info("%s exists and was left as it is; the directory named above has the new one.", output)


def _looked_over(path: str, overrides: list[str]) -> Folder:
    import numpy as np

    from sslrun.data.dataset import listed
    from sslrun.models.published import on_this_machine

    node: Node = plain(compose_config(PRETRAIN, overrides, None))["dataset"]
    train, unlabeled = listed(node, "train"), listed(node, "unlabeled")
    test, too_few = None, False
    try:
        test = listed(node, "test")
    except UserError as error:
        log.info("%s; label some more images first.", error)
        too_few = True
    assert train is not None
    files = train.items if isinstance(train.items, list) else []
    files = files[:: max(1, -(-len(files) // MEASURED))]
    side = _side(files)
    if files and not side:
        raise UserError(f"none of {counted(len(files), 'image')} of {path} that were tried can be read: {files[0]}")
    if len(train.names) < 2:
        raise UserError(f"{path} has {counted(len(train.names), 'training image')}; at least 2 are needed")
    labels = train.labels if len(train.class_names) > 1 and not too_few else None
    return Folder(
        path=path,
        train=len(train.names),
        unlabeled=len(unlabeled.names) if unlabeled else 0,
        test=len(test.names) if test else 0,
        labels=0 if labels is None else int(np.count_nonzero(labels >= 0)),
        classes=len(train.class_names),
        size=[f"dataset.image_size={max(MULTIPLE, side // MULTIPLE * MULTIPLE)}"] if side and side < SMALL else [],
        decoding=_decoding(files, node),
        distilling=next(on_this_machine(), None) is not None,
    )


def _decoding(files: list[str], node: Node) -> float:
    """Return the seconds to decode one of some images, on all cores."""
    from sslrun.base.machine import cores
    from sslrun.data.decode import decode_some

    began, n = time.monotonic(), 0
    for file in files:
        decode_some([file], node["image_size"], node["resize"], node["channels"], None)
        n += 1
        if time.monotonic() - began > DECODING:
            break
    return (time.monotonic() - began) / max(1, n) / cores()


def _side(files: list[str]) -> int:
    """Return the median of the shorter sides of images, in px; 0 if none can be read."""
    from PIL import Image

    sides = []
    for file in files:
        try:
            with Image.open(file) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return round(statistics.median(sides)) if sides else 0


def _sentence(folder: Folder) -> str:
    images = f"{counted(folder.train, 'image')}"
    of = (
        f", {folder.labels:,} of them with a label of {counted(folder.classes, 'class')}"
        if folder.labels
        else ", all of one class"
        if folder.classes == 1
        else ", no labels"
    )
    more = f", {folder.unlabeled:,} more without labels" if folder.unlabeled else ""
    return f"{folder.path}: {images}{of}{more}; {counted(folder.test, 'test image')}."


def _commands(folder: Folder, overrides: list[str]) -> Iterator[Command]:
    every = folder.train + folder.unlabeled
    quoted = folder.path.rstrip("/") or folder.path
    yield Command(
        ["data", "check", quoted, *folder.size], 2 * every * folder.decoding + 10, "damaged files, duplicates"
    )
    pretrains = every >= FEW or not folder.labels
    if pretrains:
        task = ["pretext=distill"] if folder.distilling else []
        seconds, length = _pretraining([*overrides, *folder.size, *task], every, folder.distilling)
        task += length
        why = "a small network learns from published weights, on all images" if folder.distilling else "on all images"
        yield Command([PRETRAIN, quoted, *task, *folder.size], seconds + every * folder.decoding, why)
    reading = every * folder.decoding + 10
    if not folder.labels:
        yield Command(
            ["suggest", quoted, f"n={min(SUGGESTED, every)}", "out=to_label"], reading, "which images to label"
        )
        yield Command([FINETUNE, "to_label", "init=RUN"], None, "after labeling; suggest prints the RUN")
    else:
        measured = pretrains or not folder.distilling  # else published weights are compared, at their own size
        own = [] if pretrains else [quoted, *(folder.size if measured else [])]
        training, probe = _finetuning(folder, overrides) if measured else (None, None)
        why = f"a classifier from {counted(folder.labels, 'label')}{'' if measured else '; says how long it will take'}"
        if training and training > FINETUNING:
            own, why = [*own, "mode=probe"], f"{why}; without mode=probe in {time_range(training)}"
            training = probe
        yield Command([FINETUNE, *own], training, why)
        if folder.test:
            yield Command(["evaluate"], 10 + folder.test * folder.decoding, "accuracy on the test images")
    yield Command(["predict", quoted, "format=csv"], reading, "or any other images", "predictions.csv")


def _pretraining(overrides: list[str], images: int, distilling: bool) -> tuple[float, list[str]]:
    """Return the seconds of a pretraining, and the overrides that set its length."""
    from sslrun.config.build import build
    from sslrun.data.dataset import load_train
    from sslrun.training import estimate

    config: Node = plain(compose_config(PRETRAIN, overrides, None))
    with silently():
        data, _ = load_train({**config["dataset"], "max_images": MEASURED})
        result = estimate.pretraining(
            data.images, config["pretext"], config["backbone"], config["optimizer"], config["device"],
            config["dataset"]["image_size"], config["train"]["batch_size"],
        )  # fmt: skip
    batch = min(images, config["train"]["batch_size"])
    steps, train = max(1, round(PRETRAINING * result.images_per_second / batch)), {**config["train"], "steps": None}
    if distilling:
        steps = min(STEPS, max(FEWEST_STEPS, round(steps, -2)))
        by_epochs = build(train).total_steps(images)  # which may end before
        total, length = min(steps, by_epochs), [f"train.steps={steps}"] if steps < by_epochs else []
    else:
        epochs = min(train["epochs"], max(1, steps * batch // images))
        total, length = build({**train, "epochs": epochs}).total_steps(images), [f"train.epochs={epochs}"]
    preparation = result.preparation * images / max(1, len(data))
    return preparation + total * batch / result.images_per_second, length


def _finetuning(folder: Folder, overrides: list[str]) -> tuple[float, float]:
    """Return the seconds of a finetuning on all labels, with its choice, and those of a linear probe."""
    from sslrun.config.build import build
    from sslrun.data.labeled import load_labeled
    from sslrun.data.labels import LabelBudget
    from sslrun.training import estimate
    from sslrun.training.candidates import HELD_OUT, TRAINING_FOLDS
    from sslrun.training.settings import default_steps

    given: Any = [*(o for o in overrides if o != "dataset=folder"), "dataset=folder", "backbone=smallcnn", *folder.size]
    config: Node = plain(compose_config(FINETUNE, given, None))
    sample = {**config["dataset"], "max_images": min(folder.train, max(MEASURED, 2 * folder.classes))}
    with silently():
        labeled = load_labeled(sample, LabelBudget(fraction=1.0), "inside", {})
        measured = estimate.classifier({**config, "dataset": sample}, labeled, quick=True)
    n = folder.labels
    parts = [n - n // TRAINING_FOLDS] * TRAINING_FOLDS if n <= MANY else [n - n // HELD_OUT]
    whole = replace(measured, labels=n, folds=parts, probe=measured.probe * max(1.0, min(n, 5000) / measured.labels))
    training = build({**config["train"], "steps": None, "epochs": None} | {"steps": default_steps(n)})
    reading = n * folder.decoding
    return whole.finetuning(training, default_steps(n), 2) + reading, whole.probe + reading
