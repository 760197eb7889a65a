"""Style of figures, and how they are saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RC_PARAMS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
    "text.parse_math": False,  # class names may contain $
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style of figures; a decorator for functions that draw and save a figure."""
    import matplotlib

    with matplotlib.rc_context(RC_PARAMS):
        yield


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return an empty figure and its axes, `rows x columns`, without pyplot, which is slow to import."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False)


INK = "#1a1a1b"  # nearly black; replaced by the text color of a page
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe & Ito 2008, distinguishable with color blindness
GRAY = "#8a8a8a"


def colors(names: Sequence[str]) -> dict[str, str]:
    """Return a color for each initialization; scratch is gray."""
    others = [s for s in names if s != "scratch"]
    return {"scratch": GRAY, **{s: COLORS[i % len(COLORS)] for i, s in enumerate(others)}}


def save_figure(figure: Any, folder: Path, name: str) -> str:
    """Save a figure as PNG and SVG; return the SVG for a page, with the text color of the page."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=160)
    svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
    body = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return body.replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")


def page_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return an empty figure for a page and its axes, `rows x columns`, on a transparent background."""
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
