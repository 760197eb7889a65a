"""Formatting of numbers for people; files for programs keep plain numbers."""

SHARES = ("accuracy", "precision", "precision_macro", "recall", "recall_macro", "f1", "f1_macro", "confidence",
          "confidence_threshold")  # fmt: skip


def percent(fraction: float) -> str:
    """Format a fraction, such as an accuracy, as percent with one decimal: `83.1 %`."""
    return f"{100 * fraction:.1f} %"


def is_share(metric: str) -> bool:
    """Return whether a metric, such as `val/accuracy`, is a fraction that is shown as percent."""
    return metric.endswith(SHARES)


def metric(name: str, value: float) -> str:
    """Format a metric with its name: `val accuracy 83.1 %`, `train loss 0.52`."""
    return f"{words(name)} {percent(value) if is_share(name) else format(value, '.4g')}"


def words(name: str) -> str:
    """Return the name of a metric or setting as words: `val/knn_accuracy` -> `val knn accuracy`."""
    return name.replace("/", " ").replace("_", " ")


def interval(low: float, high: float) -> str:
    """Format an interval of fractions as percent: `80.2 to 85.7`."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def counted(n: int, noun: str) -> str:
    """Format a count with its noun, singular or plural: `1 image`, `2,000 images`, `3 batches`."""
    plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{n:,} {noun if n == 1 else plural}"


def duration(seconds: float) -> str:
    """Format a duration: `0.03 s`, `40 s`, `12 min`, `2.5 h`."""
    if seconds < 1:
        return f"{max(seconds, 0.001):.1g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def speed(n: int, unit: str, seconds: float) -> str:
    """Format a duration, with a rate if it is measurable: `12 s, 340 images/s`."""
    rate = f", {n / seconds:,.0f} {unit}/s" if n > 1 and seconds >= 0.1 else ""
    return f"{duration(seconds)}{rate}"
