"""Figures and tables."""

import importlib.util
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from sslrun.answers import as_csv
from sslrun.console import ERR, log
from sslrun.data.decode import opened, to_rgb
from sslrun.data.images import Images
from sslrun.errors import UserError
from sslrun.files import write_text
from sslrun.run import Run, job_order, read_metrics, read_summary, score

VIEWS_SHOWN = 8
MISTAKES_SHOWN, TILE_SIDE = 24, 96  # pictures, and the px of one on a contact sheet
Tile = tuple[str | np.ndarray, *tuple[str, ...]]
FIGURE_SIDE = 480  # px of a predicted picture


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return an empty figure and its axes, `rows x columns`; without pyplot, which takes longer to import."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.dpi": 120,
            "text.parse_math": False,  # a class may be called $1
        }
    )
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False)


def some_of(images: Tensor | Images, seed: int) -> Tensor:
    """Choose the pictures that a run draws with their views."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:VIEWS_SHOWN]]


def views_figure(run: Run, model: nn.Module, images: Tensor, seed: int, files: Sequence[str] = ()) -> Path:
    """Draw pictures beside what the network is shown of them, as a figure and for TensorBoard.

    Args:
        images: `N x 3 x S x S`, uint8.
        files: that they were decoded from, drawn beside them whole; none for arrays.

    Returns:
        The path of the figure.
    """
    originals = images.float() / 255
    with torch.no_grad():
        views = model.views(originals, torch.Generator().manual_seed(seed))  # type: ignore[operator]
    columns: dict[str, Any] = {f"{originals.shape[-1]} px": originals, **views}
    shown = {name: [p.permute(1, 2, 0).clamp(0, 1).numpy() for p in pictures] for name, pictures in columns.items()}
    if files:
        shown = {"file": [_whole_file(f) for f in files], **shown}
    size = (1.2 * len(shown), 1.2 * len(originals) + 0.3)
    figure, axes = new_figure(len(originals), len(shown), size)
    for j, (name, pictures) in enumerate(shown.items()):
        axes[0][j].set_title(name)
        for i, picture in enumerate(pictures):
            axes[i][j].imshow(picture, interpolation="nearest")
            axes[i][j].axis("off")
    figure.tight_layout(pad=0.3)
    path = run.figure("views")
    figure.savefig(path)
    run.tensorboard.add_figure("views", figure)
    return path


def _whole_file(path: str, side: int = 400) -> np.ndarray:
    """Return a picture file as it is decoded, but uncropped, at most `side` px."""
    with opened(path) as image:
        image.draft("RGB", (2 * side, 2 * side))
        shown = to_rgb(image)
    shown.thumbnail((side, side))
    return np.asarray(shown)


def curves_figure(run: Run) -> None:
    """Draw loss and accuracy over the steps from `metrics.jsonl`."""
    rows = read_metrics(run.directory)
    figure, (axes,) = new_figure(1, 2, (9, 3.2))
    for axis, word in zip(axes, ("loss", "accuracy"), strict=True):
        names = sorted({k for r in rows for k in r if k.endswith(word)})
        for name in names:
            points = [(r["step"], r[name]) for r in rows if name in r]
            axis.plot(
                *zip(*points, strict=True),
                label=name.replace("_", " "),
                marker="." if len(points) < 40 else None,
            )
        axis.set_xlabel("step")
        axis.set_ylabel(word)
        if names:
            axis.legend(frameon=False)
    axes[1].set_ylim(0, 1.02)
    figure.tight_layout()
    figure.savefig(run.figure("curves"))


def confusion_figure(run: Run, counts: list[list[int]], class_names: list[str]) -> None:
    """Draw the confusion matrix: shades are parts of a row, numbers are pictures."""
    n = len(class_names)
    side = min(14.0, 2.2 + 0.45 * n)
    figure, ((axis,),) = new_figure(1, 1, (side, side))
    matrix = torch.tensor(counts, dtype=torch.float)
    axis.imshow((matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if n <= 60:
        axis.set_xticks(range(n), class_names, rotation=90)
        axis.set_yticks(range(n), class_names)
    if n <= 25:
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                dark = count > 0.5 * max(1, sum(row))
                axis.text(
                    j,
                    i,
                    count or "",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=8,
                )
    figure.tight_layout()
    figure.savefig(run.figure("confusion_matrix"))
    run.tensorboard.add_figure("confusion_matrix", figure)


def mistakes_figure(
    run: Run, images: Images, labels: np.ndarray, probabilities: np.ndarray, class_names: list[str]
) -> None:
    """Draw the wrong predictions that were made most confidently, the worst first; nothing where there are none.

    Args:
        images: N of them.
        labels: N.
        probabilities: `N x classes`.
    """
    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES_SHOWN]
    if not len(worst):
        return
    tiles = []
    for i in worst:
        said, true = (_short(class_names[k]) for k in (predicted[i], labels[i]))
        tiles.append((images[torch.tensor([i])][0].permute(1, 2, 0).numpy(), f"{said} {sure[i]:.0%}", f"is {true}"))
    sheet = contact_sheet([tiles[i : i + 8] for i in range(0, len(tiles), 8)])
    sheet.save(run.figure("mistakes"))
    run.tensorboard.add_image("mistakes", np.asarray(sheet), dataformats="HWC")


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Draw rows of pictures, each below one or two lines of text.

    Args:
        rows: of (picture, line, ...); a picture is a file, or `H x W x 3`, uint8.
    """
    lines = max(len(tile) for row in rows for tile in row) - 1
    width, height = TILE_SIDE + 16, TILE_SIDE + 14 + 13 * lines
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), _font(11)
    for j, row in enumerate(rows):
        for i, (picture, *said) in enumerate(row):
            x, y = width * i + 8, height * j + 6 + 13 * lines
            for k, line in enumerate(said):
                draw.text((x, y - 2 + 13 * (k - len(said))), line, "#606060" if k else "black", font)
            shown = Image.fromarray(_whole_file(picture, 2 * TILE_SIDE) if isinstance(picture, str) else picture)
            times = TILE_SIDE / max(shown.size)
            how = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
            small = shown.resize([max(1, round(times * s)) for s in shown.size], how)
            sheet.paste(small, (x + (TILE_SIDE - small.width) // 2, y + (TILE_SIDE - small.height) // 2))
    return sheet


def _short(text: str) -> str:
    return text if len(text) <= 13 else f"{text[:8]}…{text[-4:]}"


def prediction_figures(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw each picture with its prediction as the title; Pillow starts half a second sooner than matplotlib."""
    folder.mkdir(exist_ok=True)
    for i, row in enumerate(r for r in rows if not r["error"]):
        picture = Image.fromarray(_whole_file(row["image"], FIGURE_SIDE))
        times = FIGURE_SIDE / max(picture.size)
        if times > 1:
            picture = picture.resize([max(1, int(times * s)) for s in picture.size], Image.Resampling.NEAREST)
        titled = Image.new("RGB", (FIGURE_SIDE + 20, picture.height + 50), "white")
        titled.paste(picture, ((titled.width - picture.width) // 2, 40))
        doubt = "  unsure" if row["unsure"] else ""
        title, font = _title(f"{row['class']}  {row['confidence']:.0%}{doubt}", FIGURE_SIDE)
        ImageDraw.Draw(titled).text((titled.width / 2, 20), title, "black", font, anchor="mm")
        titled.save(folder / f"{i:03d}_{Path(row['image']).stem[:60]}.png")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib brings."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _title(text: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a text, with its middle left out if it is wider than so many px, and a font for it."""
    font = _font(18)
    text = " ".join(text.splitlines())
    shown, cut = text, len(text) // 2
    while font.getlength(shown) > width and cut > 1:
        cut -= 1
        shown = f"{text[:cut]}…{text[-cut:]}"
    return shown, font


def print_classification(found: dict[str, Any], source: Path, table: bool) -> None:
    """Say the accuracy, and if asked for print the table of the classes, on standard error."""
    ends = "" if found["accuracy_interval"] is None else " (95 % {:.4f} to {:.4f})".format(*found["accuracy_interval"])
    log.info("test accuracy %.4f%s of %s", found["accuracy"], ends, source)
    if table:
        ERR.print(_classes_table(found))


def _classes_table(found: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("class", "precision", "recall", "f1", "images"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in found["classes"]:
        numbers = [f"{row[k]:.3f}" for k in ("precision", "recall", "f1")]
        table.add_row(Text(row["class"]), *numbers, str(row["images"]))
    table.add_section()
    macro = [f"{found[k]:.3f}" for k in ("precision_macro", "recall_macro", "f1_macro")]
    table.add_row("macro mean", *macro, str(sum(r["images"] for r in found["classes"])))
    return table


# --------------------------------------------------------------------------------------------------------- sweeps


def sweep_rows(directory: Path) -> list[dict[str, Any]]:
    """Return one row for every job of a sweep, in their order: what was varied, status and score."""
    rows = []
    jobs = {p.parent for name in (".hydra", "summary.json") for p in directory.glob(f"*/{name}")}
    for job in sorted(jobs, key=job_order):
        if not (job / "summary.json").exists():  # it failed before its run began
            rows.append({"job": job.name, "run": str(job), "status": "failed", "score": None})
            continue
        try:
            summary = read_summary(job)
        except UserError as error:
            log.error("%s", error)
            rows.append({"job": job.name, "run": str(job), "status": "failed", "score": None})
            continue
        asked = dict(o.split("=", 1) for o in summary.get("of_overrides") or summary["overrides"] if "=" in o)
        row: dict[str, Any] = {"job": job.name, "run": str(job), "status": summary["status"]}
        row |= {k: summary.get(k) for k in ("of_run", "dataset", "backbone", "pretext", "init", "source", "mode")}
        row |= {k: summary.get(k) for k in ("label_fraction", "labels_per_class")}
        row |= {f"labels_{k}": v for k, v in (summary.get("labels") or {}).items()}
        row |= {f"{k}_seed": v for k, v in (summary.get("seeds") or {}).items()}
        row |= {f"override {k}": v for k, v in asked.items() if k not in (*row, "seed")}
        row |= {k: v for k, v in summary.items() if "/" in k}
        named = score(summary)
        row |= {"score_name": named[0], "score": named[1]} if named else {"score_name": None, "score": None}
        rows.append(row)
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, with every key that any of them has as a column."""
    write_text(path, as_csv(rows))


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return mean and spread of the score over seeds, one row for everything else that was varied."""
    ignored = {"job", "run", "of_run", "status", "score", "labels_train", "labels_validation"}
    sources: dict[str, set[str]] = {}
    for r in rows:
        sources.setdefault(str(r.get("init")), set()).add(str(r.get("source")))
    if all(len(s) == 1 for s in sources.values()):
        ignored.add("source")  # `init` says enough
    done = [r for r in rows if r["status"] == "finished"] or rows
    columns = [k for k in dict.fromkeys(k for r in rows for k in r) if k not in ignored and "/" not in k]
    columns = [k for k in columns if not k.endswith("_seed")]
    shown = [k for k in columns if k in ("label_fraction", "init") or len({str(r.get(k)) for r in done}) > 1]
    shown = [k for k in shown if any(r.get(k) is not None for r in rows) and k != "score_name"]
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in rows:
        grouped.setdefault(tuple(_cell(r.get(k)) for k in shown), []).append(r)
    table = Table(box=box.SIMPLE_HEAD)
    names = {r["score_name"] for r in rows if r.get("score_name")}
    for name in (*(k.removeprefix("override ").replace("_", " ") for k in shown), "labels"):
        table.add_column(name, justify="right" if name in ("labels", "label fraction") else "left")
    for name in ("/".join(sorted(names)).replace("_", " ") or "score", "±", "runs"):
        table.add_column(name, justify="right")
    for key, members in grouped.items():
        scores = [r["score"] for r in members if r["score"] is not None and r["status"] == "finished"]
        labels = _cell(members[0].get("labels_train"))
        mean = f"{statistics.mean(scores):.4f}" if scores else "failed"
        spread = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        missing = len(members) - len(scores)
        table.add_row(*map(Text, key), labels, mean, spread, f"{len(scores)}" + f", {missing} failed" * (missing > 0))
    return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def finish_sweep(directory: Path) -> int:
    """Print the table of a sweep, write `sweep.csv` beside its jobs, and return how many jobs failed."""
    rows = sweep_rows(directory)
    finished = [r for r in rows if r["status"] == "finished"]
    if not rows or (finished and all(r["score"] is None for r in finished)):  # a stage whose runs have no score
        return len(rows) - len(finished)
    write_csv(directory / "sweep.csv", rows)
    ERR.print(sweep_table(rows))
    log.info("± is the standard deviation over runs. Every run: %s", directory / "sweep.csv")
    return len(rows) - len(finished)
