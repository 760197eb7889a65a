"""How figures look, and how they are saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
    "text.parse_math": False,  # a class may be called $1
}


@contextmanager
def styled() -> Iterator[None]:
    """Give figures their look from the first axis to the file; a function that draws has this as its decorator."""
    import matplotlib

    with matplotlib.rc_context(LOOK):
        yield


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return an empty figure and its axes, `rows x columns`; without pyplot, which takes longer to import."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False)


INK = "#1a1a1b"  # black in a file, the text's colour in a page
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008
GRAY = "#8a8a8a"


def colors(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for every start; scratch is grey."""
    others = [s for s in names if s != "scratch"]
    return {"scratch": GRAY, **{s: COLORS[i % len(COLORS)] for i, s in enumerate(others)}}


def saved(figure: Any, folder: Path, name: str) -> str:
    """Save a figure as PNG and SVG; return the SVG for a page, in the page's colours."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=160)
    svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
    body = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return body.replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")


def inked(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return an empty figure and its axes with all ink in the page's colour."""
    figure, axes = new_figure(rows, columns, size)
    for axis in axes.flat:
        axis.tick_params(colors=INK, which="both")
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            text.set_color(INK)
        for spine in axis.spines.values():
            spine.set_edgecolor(INK)
        axis.patch.set_alpha(0)
    return figure, axes


def legend(axis: Any, **keys: Any) -> None:
    """Draw a legend without a frame."""
    axis.legend(frameon=False, labelcolor=INK, **keys)
