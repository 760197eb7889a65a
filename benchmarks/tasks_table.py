"""The tables and the figure of docs/tasks.md, from the rows of benchmarks/tasks.py; it measures nothing.

    python benchmarks/tasks_table.py [--rows FOLDER] [--figure docs/tasks.png]
    python benchmarks/tasks_table.py --tuning
    python benchmarks/tasks_table.py --finetuning

Reads tasks.csv and tasks_probes.csv; `--tuning` prints what tasks_tuning.csv has instead, and `--finetuning` the tables
from tasks_finetuning.csv, in which networks are compared with training from scratch as well. A task is compared with
SimCLR on the same label subsets and the seeds that both have: the difference in test accuracy, with a 95 % CI for
another pretraining and other label subsets (`sslrun.study.gains`) and p-values that are corrected for all tasks and
both label budgets of a data set (Holm).
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from sslrun.report.style import COLORS, GRAY, new_figure, styled
from sslrun.study.gains import Gain, gains_over_scratch, holm

HERE = Path(__file__).parent
DEFAULT, UNTRAINED = "simclr", "none"
TITLES = {"fashion_mnist": "Fashion-MNIST", "emoji": "emoji", "solar_cells": "solar cells"}
Rows = list[dict[str, str]]


class Compared(NamedTuple):
    """A task at a label budget: mean accuracies, and the difference from the default task."""

    val: float
    test: float
    gain: Gain | None
    p: float | None


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def matrix(probes: Rows, task: str, budget: str, column: str) -> dict[int, np.ndarray]:
    """Return the accuracies of a task's label subsets by the seed of the pretraining."""
    own = [r for r in probes if r["task"] == task and r["labels_per_class"] == budget]
    cells = {(int(r["seed"]), int(r["subset"])): float(r[column]) for r in own}
    seeds, subsets = (sorted({key[i] for key in cells}) for i in range(2))
    return {p: np.array([cells[p, s] for s in subsets]) for p in seeds}


def mean_of(probes: Rows, task: str, budget: str, column: str) -> float:
    return float(np.mean([*matrix(probes, task, budget, column).values()]))


def minus(own: dict[int, np.ndarray], default: dict[int, np.ndarray]) -> np.ndarray:
    """Return the differences of two tasks, `P x L`, for the seeds that both have."""
    return np.array([values - default[seed] for seed, values in own.items() if seed in default])


def compared(probes: Rows) -> dict[tuple[str, str], Compared]:
    """Compare the tasks of a data set with the default one, at each label budget."""
    tasks = list(dict.fromkeys(r["task"] for r in probes))
    budgets = list(dict.fromkeys(r["labels_per_class"] for r in probes))
    found: dict[tuple[str, str], Gain] = {}
    for budget in budgets:
        of = {t: matrix(probes, t, budget, "test_accuracy") for t in tasks}
        gains = gains_over_scratch({t: minus(m, of[DEFAULT]) for t, m in of.items() if t != DEFAULT})
        found |= {(t, budget): gain for t, gain in gains.items()}
    corrected = dict(zip(found, holm([g.p for g in found.values()]), strict=True))
    return {
        (t, b): Compared(
            mean_of(probes, t, b, "val_accuracy"),
            mean_of(probes, t, b, "test_accuracy"),
            found.get((t, b)),
            corrected.get((t, b)),
        )
        for t in tasks
        for b in budgets
    }


def difference(cell: Compared) -> str:
    """Return a difference in points, with its interval if there are two pretrainings; bold where p is below 0.05."""
    gain, p = cell.gain, cell.p
    if gain is None or gain.low is None or gain.high is None or p is None:
        return ""
    if gain.pretrainings < 2:  # an interval would be for this pretraining alone
        return f"{100 * gain.gain:+.1f}"
    text = f"{100 * gain.gain:+.1f} [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
    return f"**{text}**" if p < 0.05 else text


def table(rows: Rows, probes: Rows) -> dict[tuple[str, str], Compared]:
    """Print the table of a data set; return what it compares."""
    rows = [r for r in rows if r["knn_accuracy"]]
    of = {t: [r for r in rows if r["task"] == t] for t in dict.fromkeys(r["task"] for r in rows)}
    cells = compared(probes)
    budgets = list(dict.fromkeys(b for _, b in cells))

    def averaged(task: str, name: str) -> float:
        return mean(float(r[name]) for r in of[task])

    head = "| task | steps | seeds | val kNN | effective rank |"
    for b in budgets:
        head += f" val, {b} labels | test, {b} labels | difference from SimCLR |"
    print(head + "\n|" + "---|" * (head.count("|") - 1))
    key: Callable[[str], float] = lambda t: -averaged(t, "knn_accuracy")  # noqa: E731
    for task in sorted(of, key=key):
        line = f"| `{task}` | {of[task][0]['steps']} | {len(of[task])} | {percent(averaged(task, 'knn_accuracy'))} "
        line += f"| {averaged(task, 'effective_rank'):.0f} |"
        for b in budgets:
            cell = cells[task, b]
            line += f" {percent(cell.val)} | {percent(cell.test)} | {difference(cell)} |"
        print(line)
    return cells


@styled()
def draw(of: dict[str, dict[tuple[str, str], Compared]], path: Path) -> None:
    """Draw the differences from SimCLR at the larger label budget, one panel per data set."""
    shown = {name: {t: c for (t, b), c in cells.items() if b == [*cells][-1][1]} for name, cells in of.items()}
    every = list(dict.fromkeys(t for cells in shown.values() for t in cells if t != DEFAULT))
    every.sort(key=lambda t: mean(c[t].gain.gain for c in shown.values() if t in c))  # type: ignore[union-attr]
    figure, (axes,) = new_figure(1, len(of), (10, 4.6))
    for axis, (name, cells) in zip(axes, shown.items(), strict=True):
        for i, task in enumerate(every):
            gain = cells[task].gain if task in cells else None
            if gain is None or gain.low is None or gain.high is None:
                continue
            x, low, high = (100 * v for v in (gain.gain, gain.low, gain.high))
            if gain.pretrainings < 2:
                low = high = x
            axis.errorbar(
                x, i, xerr=[[x - low], [high - x]], fmt="o", capsize=2, markersize=4, linewidth=1.2,
                color=GRAY if task == UNTRAINED else COLORS[0],
            )  # fmt: skip
        axis.axvline(0, color=GRAY, linewidth=0.8, linestyle=":")
        axis.set_ylim(-0.6, len(every) - 0.4)
        axis.set_yticks(range(len(every)), every if axis is axes[0] else [])
        axis.set_title(f"{TITLES[name]}, {[*of[name]][-1][1]} labels per class")
        several = any(c.gain is not None and c.gain.pretrainings > 1 for c in shown[name].values())
        axis.set_xlabel(f"difference from SimCLR (points){', 95 % CI' if several else ''}")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def tuning(rows: Rows) -> None:
    """Print the mean accuracy of nearest neighbors for every setting that was tried."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in rows:
        if r["knn_accuracy"]:
            of = cells.setdefault((r["task"], r["setting"]), {})
            of.setdefault(r["data"], []).append(float(r["knn_accuracy"]))
    print("| task | setting | " + " | ".join(TITLES.values()) + " |\n|---|---|---|---|---|")
    for (task, setting), of in sorted(cells.items()):
        means = [f"{percent(mean(of[d]))} ({len(of[d])})" if d in of else "" for d in TITLES]
        print(f"| {task} | {setting or 'default'} | {' | '.join(means)} |")


def finetuning(rows: Rows) -> None:
    """Print a table for each data set and length of training: finetuned networks, and networks from scratch."""
    for data in dict.fromkeys(r["data"] for r in rows):
        own = [r for r in rows if r["data"] == data]
        fewest = {r["task"]: min(int(o["steps"]) for o in own if o["task"] == r["task"]) for r in own}
        for longer in (False, True):
            part = [r for r in own if (int(r["steps"]) > fewest[r["task"]]) == longer]
            if part:
                print(f"\n### {TITLES[data]}, {part[0]['labels_per_class']} labels per class{', longer' * longer}\n")
                _finetuning(part)


def _finetuning(rows: Rows) -> None:
    tasks, budget = list(dict.fromkeys(r["task"] for r in rows)), rows[0]["labels_per_class"]
    tested = {t: matrix(rows, t, budget, "test_accuracy") for t in tasks}
    differences = {
        f"{t} {reference}": minus(tested[t], tested[reference])
        for reference in (UNTRAINED, DEFAULT)
        for t in tasks
        if reference in tasks and t not in (UNTRAINED, reference)
    }
    gains = gains_over_scratch(differences)
    corrected = dict(zip(gains, holm([g.p for g in gains.values()]), strict=True))
    print("| pretraining | steps | seeds | val kNN | probe | finetuned | difference from scratch | from SimCLR |")
    print("|---|---|---|---|---|---|---|---|")
    for task in tasks:
        own = [r for r in rows if r["task"] == task]
        scores = [mean(float(r[name]) for r in own) for name in ("knn_accuracy", "probe_accuracy", "test_accuracy")]
        names = [f"{task} {reference}" for reference in (UNTRAINED, DEFAULT)]
        compared = [difference(Compared(0, 0, gains.get(name), corrected.get(name))) for name in names]
        name = "none, from scratch" if task == UNTRAINED else f"`{task}`"
        cells = [name, own[0]["steps"], len({r["seed"] for r in own}), *map(percent, scores), *compared]
        print(f"| {' | '.join(map(str, cells))} |")


def _of(row: dict[str, str]) -> tuple[str, str]:
    return row["data"], row["task"]


def main() -> None:
    """Print the tables and draw the figure, of the shortest trainings of each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=HERE)
    parser.add_argument("--figure", type=Path, default=HERE.parent / "docs" / "tasks.png")
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--finetuning", action="store_true")
    args = parser.parse_args()
    if args.tuning:
        tuning([*csv.DictReader((args.rows / "tasks_tuning.csv").open())])
        return
    if args.finetuning:
        finetuning([*csv.DictReader((args.rows / "tasks_finetuning.csv").open())])
        return
    rows, probes = ([*csv.DictReader((args.rows / f).open())] for f in ("tasks.csv", "tasks_probes.csv"))
    fewest = {_of(r): min(int(o["steps"]) for o in rows if _of(o) == _of(r)) for r in rows}
    rows, probes = ([r for r in given if int(r["steps"]) == fewest[_of(r)]] for given in (rows, probes))
    cells = {}
    for name in dict.fromkeys(r["data"] for r in rows):
        print(f"\n### {TITLES[name]}\n")
        cells[name] = table([r for r in rows if r["data"] == name], [r for r in probes if r["data"] == name])
    draw(cells, args.figure)


if __name__ == "__main__":
    main()
