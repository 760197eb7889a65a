"""Draw the figure of docs/initialization.md, and print its table, from the results of three studies.

    python benchmarks/initialization.py

Reads benchmarks/initialization_NAME.csv and _gains.csv, the results.csv and gains.csv of the studies whose commands are
on that page; writes docs/initialization.png. It measures nothing.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslrun.evaluation.intervals import mean_interval
from sslrun.report.style import COLORS, GRAY, new_figure, styled

HERE = Path(__file__).parent
STUDIES = {"emoji": "emoji, 59 labels", "solar_cells": "solar cells, 100 labels", "digits": "digits, 30 labels"}
RANDOM = "distill pretext.teacher=tf_efficientnet_lite0 pretext.weights=random.pth"
SHOWN = {  # initialization and mode in results.csv -> label and color
    ("scratch", "finetune"): ("from scratch", GRAY),
    ("scratch", "equal_time"): ("from scratch, equal time", GRAY),
    ("rotation", "auto"): ("rotation", COLORS[1]),
    (RANDOM, "auto"): ("distilled from a random network", COLORS[3]),
    ("distill", "auto"): ("distilled from published weights", COLORS[0]),
    ("pretrained", "probe"): ("published weights, frozen", COLORS[2]),
}


class Shown(NamedTuple):
    """A row of the table: test accuracy with its 95 % CI for other label subsets, and costs."""

    accuracy: float
    low: float
    high: float
    ms: float
    megabytes: float
    minutes: float


def results(name: str) -> dict[tuple[str, str], Shown]:
    """Return the rows of a study that are shown."""
    with (HERE / f"initialization_{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    out = {}
    for key in SHOWN:
        own = [r for r in rows if (r["initialization"], r["mode"]) == key]
        subsets = defaultdict(list)
        for row in own:
            subsets[row["subset"]].append(100 * float(row["test_accuracy"]))
        interval = mean_interval([float(np.mean(values)) for values in subsets.values()])
        costs = (float(np.mean([float(r[c]) for r in own])) for c in ("ms_per_image", "megabytes", "minutes"))
        out[key] = Shown(interval.mean, max(interval.low, 0), min(interval.high, 100), *costs)
    return out


def gains(name: str) -> dict[tuple[str, str], str]:
    """Return the gain over scratch of the compared rows, with its 95 % CI and Holm's p."""
    with (HERE / f"initialization_{name}_gains.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (r["initialization"], r["mode"]): f"{100 * float(r['gain']):+.1f} [{100 * float(r['low']):.1f}, "
        f"{100 * float(r['high']):.1f}], {float(r['holm_p']):.3f}"
        for r in rows
    }


@styled()
def draw(studies: dict[str, dict[tuple[str, str], Shown]], path: Path) -> None:
    """Draw test accuracies with 95 % CIs, one panel per data set."""
    figure, (axes,) = new_figure(1, len(studies), (9.5, 2.9))
    for axis, (name, rows) in zip(axes, studies.items(), strict=True):
        for i, (key, row) in enumerate(rows.items()):
            axis.errorbar(
                row.accuracy, -i, xerr=[[row.accuracy - row.low], [row.high - row.accuracy]], fmt="o", capsize=3,
                color=SHOWN[key][1], markersize=5, linewidth=1.6,
            )  # fmt: skip
        axis.axvline(rows["scratch", "finetune"].accuracy, color=GRAY, linewidth=0.8, linestyle=":")
        axis.set_yticks([-i for i in range(len(rows))], [SHOWN[k][0] for k in rows] if axis is axes[0] else [])
        axis.set_ylim(-len(rows) + 0.5, 0.5)
        axis.set_title(STUDIES[name])
        axis.set_xlabel("test accuracy (%), 95 % CI")
    figure.tight_layout()
    figure.savefig(path, dpi=160)


def main() -> None:
    """Draw the figure and print the table."""
    studies = {name: results(name) for name in STUDIES if (HERE / f"initialization_{name}.csv").exists()}
    for name, rows in studies.items():
        of_scratch = gains(name)
        print(f"\n| {STUDIES[name]} | test accuracy, % | gain in points, Holm p | ms/image | MB | minutes |")
        print("|---|---|---|---|---|---|")
        for key, row in rows.items():
            print(
                f"| {SHOWN[key][0]} | {row.accuracy:.1f} [{row.low:.1f}, {row.high:.1f}] | {of_scratch.get(key, '')} "
                f"| {row.ms:.1f} | {row.megabytes:.1f} | {row.minutes:.1f} |"
            )
    draw(studies, HERE.parent / "docs" / "initialization.png")


if __name__ == "__main__":
    main()
