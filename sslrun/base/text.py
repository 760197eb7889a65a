"""Formatting of numbers for people; files for programs keep plain numbers."""

import re
from collections.abc import Sequence

from sslrun.base.errors import UserError

UNCERTAINTY = 1.25  # factor between an estimate of a time and the ends of its range
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}  # of a duration as it is given
SHARES = ("accuracy", "precision", "precision_macro", "recall", "recall_macro", "f1", "f1_macro", "confidence",
          "confidence_threshold", "accuracy_if_confident")  # fmt: skip


def percent(fraction: float) -> str:
    """Format a fraction, such as an accuracy, as percent with one decimal: `83.1 %`."""
    return f"{100 * fraction:.1f} %"


def small_percent(fraction: float) -> str:
    """Format a fraction as percent with two significant digits, since it may be small."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"


def percent_or_dash(fraction: float | None) -> str:
    """Format a fraction as percent; `-` if it is undefined."""
    return "-" if fraction is None else percent(fraction)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Format names as a list, of which only the first are named: `a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_share(metric: str) -> bool:
    """Return whether a metric, such as `val/accuracy`, is a fraction that is shown as percent."""
    return metric.endswith(SHARES)


def metric(name: str, value: float) -> str:
    """Format a metric with its name: `val accuracy 83.1 %`, `train loss 0.52`."""
    return f"{words(name)} {percent(value) if is_share(name) else format(value, '.4g')}"


def words(name: str) -> str:
    """Return the name of a metric or setting as words: `val/knn_accuracy` -> `val knn accuracy`."""
    return name.replace("/", " ").replace("_", " ")


def three_digits(value: float) -> str:
    """Format a positive number, such as a time, with two or three significant digits: `0.042`, `0.41`, `8.3`, `120`."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def interval(low: float, high: float) -> str:
    """Format an interval of fractions as percent: `80.2 to 85.7`."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def counted(n: int, noun: str) -> str:
    """Format a count with its noun, singular or plural: `1 image`, `2,000 images`, `3 batches`."""
    plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) and noun != "epoch" else "s")
    return f"{n:,} {noun if n == 1 else plural}"


def duration(seconds: float) -> str:
    """Format a duration: `0.03 s`, `40 s`, `12 min`, `2.5 h`."""
    if seconds < 1:
        return f"{max(seconds, 0.001):.1g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def time_range(seconds: float) -> str:
    """Format an estimate of a time as a range: `40 s to 63 s`."""
    return f"{duration(seconds / UNCERTAINTY)} to {duration(seconds * UNCERTAINTY)}"


def speed(n: int, unit: str, seconds: float) -> str:
    """Format a duration, with a rate if it is measurable: `12 s, 340 images/s`."""
    rate = f", {n / seconds:,.0f} {unit}/s" if n > 1 and seconds >= 0.1 else ""
    return f"{duration(seconds)}{rate}"


def seconds_of(key: str, value: str) -> float:
    """Parse the value of a key, a duration such as `90s`, `30m` or `1.5h`; return it in seconds.

    Raises:
        UserError: it is not a positive duration in this format.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value.strip())
    if not match or float(match[1]) == 0:
        raise UserError(f"{key}={value}: expected a time such as 90s, 30m or 2h")
    return float(match[1]) * UNITS[match[2]]


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article: `a finetune`, `an evaluate`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
