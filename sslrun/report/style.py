"""Style of figures, and how they are saved."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sslrun.base.console import log

RC_PARAMS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
    "text.parse_math": False,  # class names may contain $
}


FONT = "DejaVu Sans"  # matplotlib's own
OTHER_FONTS = (  # for characters that it lacks, such as Chinese, Japanese and Korean
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans", "Segoe UI Symbol", "Noto Sans Symbols",
)  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style of figures; a decorator for functions that draw and save a figure.

    A warning is logged if no installed font has some of the characters.
    """
    import matplotlib

    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    with matplotlib.rc_context(RC_PARAMS | {"font.family": [FONT, *_installed()]}):
        fonts.setLevel(logging.ERROR)  # no warning that an installed font has no normal weight
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                yield
            finally:
                fonts.setLevel(level)
    missing = set()
    for warning in caught:
        if match := re.match(r"Glyph (\d+) .* missing from font", str(warning.message)):
            missing.add(chr(int(match[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing - _reported:
        shown = "".join(sorted(missing)[:10])
        log.warning("Figures show boxes for %s: install a font with these characters, such as Noto Sans CJK", shown)
        _reported.update(missing)


_reported: set[str] = set()  # characters


@cache
def _installed() -> list[str]:
    from matplotlib.font_manager import findSystemFonts, fontManager

    names = set(fontManager.get_font_names())
    if not names & set(OTHER_FONTS):  # matplotlib's list of fonts may be older than the fonts
        for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
            with suppress(Exception):  # of any type, for a file that is damaged or of another format
                fontManager.addfont(path)
        names = set(fontManager.get_font_names())
    return [name for name in OTHER_FONTS if name in names]


@cache
def font_file(text: str) -> str:
    """Return the file of the first font that has all characters of a text, or else of the first installed one."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    for name in (FONT, *_installed()):
        file = findfont(FontProperties(family=[name]))
        if all(ord(c) in get_font(file).get_charmap() for c in text):
            return str(file)
    return str(findfont(FontProperties(family=[*_installed(), FONT])))


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
