"""From evaluated classifiers to the rows, the table and the verdicts of a comparison."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sslrun.run import read_summary
from sslrun.study.statistics import Interval, labels_needed, mean_interval, paired, verdict

ORDER = ("auto", "finetune", "probe", "knn")
SCRATCH, RANDOM = "from scratch", "frozen random"
Row = dict[str, Any]


def row_of(evaluated: Path, start: str, held_out: tuple[float, float] | None = None, setting: str = "") -> Row:
    """Return what is compared of one evaluated classifier.

    Args:
        evaluated: an evaluation's run directory.
        start: the name under which its network started: `scratch`, `imagenet`, or a pretraining's.
        held_out: accuracy and log-likelihood on parts of the labels, held out in turns, where validation is small.
        setting: that was chosen by a search.
    """
    test = read_summary(evaluated)
    directory = Path(test["of_run"])
    made = read_summary(directory)
    labels, seeds = made["labels"], made["seeds"]
    share = made["label_fraction"]
    return {
        "start": start,
        "mode": made["mode"],
        "labels": labels["train"],
        "amount": f"{share:.3g} of the labels" if share is not None else f"{made['labels_per_class']} a class",
        "labels_validation": labels["validation"],
        "seed": seeds["training"],
        "subset": made["subset_fingerprint"],
        "test_accuracy": test["test/accuracy"],
        "test_f1_macro": test["test/f1_macro"],
        "val_accuracy": made.get("val/accuracy"),
        "val_loss": made.get("val/loss"),
        "held_out_accuracy": held_out[0] if held_out else None,
        "held_out_loss": -held_out[1] if held_out else None,
        "chosen": made["chosen"].split()[0] if "chosen" in made else None,  # without its setting
        "setting": setting,
        "dataset": made["dataset"],
        "backbone": made["backbone"],
        "seconds": made["wall_time_seconds"],
        "finetuned": str(directory),
        "evaluated": str(evaluated),
    }


def with_auto(rows: Sequence[Row], starts: Iterable[str]) -> list[Row]:
    """Return rows `mode=auto`: of probe, finetuning and scratch on the same labels the one that is best on validation.

    Where validation is small, it is the best on labels that were held out in turns, as in `sslrun finetune mode=auto`.
    The test split has no part in it.
    """
    out = []
    for start in starts:
        for row in rows:
            if row["start"] != start or row["mode"] != "finetune":
                continue
            rivals = [r for r in rows if _same_labels(r, row) and (r["start"] == start or _is_scratch(r))]
            if any(_merit(r) is None for r in rivals):
                continue  # there is nothing to choose by
            best = max(rivals, key=lambda r: _merit(r) or (0.0, 0.0))
            chosen = "scratch" if _is_scratch(best) else best["mode"]
            out.append({**best, "start": start, "mode": "auto", "chosen": chosen})
    return out


def _merit(row: Row) -> tuple[float, float] | None:
    """Return accuracy and, to break ties, log-likelihood on what was held out or on validation; None without either."""
    if row.get("held_out_accuracy") is not None:
        return float(row["held_out_accuracy"]), -float(row["held_out_loss"])
    return None if row["val_accuracy"] is None else (row["val_accuracy"], -row["val_loss"])


def _same_labels(a: Row, b: Row) -> bool:
    return all(a[k] == b[k] for k in ("subset", "seed", "amount"))


def _is_scratch(row: Row) -> bool:
    return row["start"] == "scratch" and row["mode"] == "finetune"


def name_of(start: str, mode: str) -> str:
    """Return how a network is called in tables and figures."""
    if start == "scratch":
        return {"finetune": SCRATCH, "probe": RANDOM}.get(mode, f"untrained, {mode}")
    return f"{start}, {'finetuned' if mode == 'finetune' else mode}"


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one entry for every network and number of labels, in the order of the labels, then of the starts.

    Each has `name`, `start`, `mode`, `labels`, `amount`, `accuracy` (an Interval over the label subsets), `difference`
    to scratch on the same subsets (an Interval, None for scratch itself and where there is none), `verdict`,
    `labels_needed` by scratch for the same accuracy (number and `=`, `<` or `>`; None where there is no scratch),
    and for mode=auto what was `chosen`, how often.
    """
    groups: dict[tuple[int, str, str, str], list[Row]] = {}
    starts = list(dict.fromkeys(r["start"] for r in rows))
    for row in sorted(rows, key=lambda r: (r["labels"], starts.index(r["start"]), ORDER.index(r["mode"]))):
        groups.setdefault((row["labels"], row["amount"], row["start"], row["mode"]), []).append(row)
    scratch = {(n, amount): rs for (n, amount, s, m), rs in groups.items() if (s, m) == ("scratch", "finetune")}
    curve = [(n, mean_interval([r["test_accuracy"] for r in rs]).mean) for (n, _), rs in scratch.items()]
    out = []
    for (labels, amount, start, mode), members in groups.items():
        accuracy = mean_interval([r["test_accuracy"] for r in members])
        own = (start, mode) == ("scratch", "finetune")
        difference = None if own else paired(_by_subset(members), _by_subset(scratch.get((labels, amount), [])))
        chosen = [r["chosen"] for r in members if mode == "auto"]
        out.append(
            {
                "name": name_of(start, mode),
                "start": start,
                "mode": mode,
                "labels": labels,
                "amount": amount,
                "accuracy": accuracy,
                "difference": difference,
                "verdict": "" if own else verdict(difference),
                "labels_needed": labels_needed(curve, accuracy.mean) if curve and not own else None,
                "chosen": {c: chosen.count(c) for c in dict.fromkeys(chosen)},
            }
        )
    return out


def _by_subset(rows: Sequence[Row]) -> dict[str, float]:
    return {f"{r['subset']} {r['seed']}": r["test_accuracy"] for r in rows}


def conclusions(entries: Sequence[dict[str, Any]], mode: str) -> list[str]:
    """Return a sentence for every pretraining and number of labels.

    Args:
        mode: of the classifiers that are judged.
    """
    out = []
    for e in entries:
        if e["start"] == "scratch" or e["mode"] != mode:
            continue
        sentence = f"{e['start']}, {e['labels']} labels: {e['verdict']}"
        if e["chosen"] == {"scratch": e["accuracy"].n}:
            sentence += " (scratch was chosen each time)"
        elif e["verdict"].startswith("helps") and e["labels_needed"]:
            number, sign = e["labels_needed"]
            more = {"=": "about ", ">": "more than ", "<": "fewer than "}[sign]
            sentence += f"; scratch would need {more}{number:.0f} labels for it"
        random = [r["accuracy"].mean for r in entries if _is_random(r) and r["amount"] == e["amount"]]
        if random and random[0] >= e["accuracy"].mean:
            sentence += f"; but a probe of the untrained network reaches {100 * random[0]:.1f} %"
        out.append(sentence)
    return out


def _is_random(entry: dict[str, Any]) -> bool:
    return (entry["start"], entry["mode"]) == ("scratch", "probe")


def table(entries: Sequence[dict[str, Any]]) -> Table:
    """Return the comparison for people."""
    out = Table(
        box=box.SIMPLE_HEAD, caption="± and brackets: 95 % intervals over label subsets", caption_justify="left"
    )
    for column in ("labels", "network", "test accuracy", "±", "against scratch", ""):
        out.add_column(column, justify="left" if column in ("network", "") else "right")
    last = None
    for e in entries:
        if last is not None and e["labels"] != last:
            out.add_section()
        half = (e["accuracy"].high - e["accuracy"].low) / 2
        style = {"hel": "green", "hur": "red"}.get(e["verdict"][:3], "")
        out.add_row(
            "" if e["labels"] == last else str(e["labels"]),
            Text(e["name"] + (f" ({said_chosen(e['chosen'])})" if e["chosen"] else "")),
            f"{100 * e['accuracy'].mean:.1f}",
            f"{100 * half:.1f}" if half == half else "",
            Text(said_difference(e["difference"]), style=style),
            Text(e["verdict"].split(" by ")[0], style=style),
        )
        last = e["labels"]
    return out


def said_difference(difference: Interval | None) -> str:
    """Return a paired difference in points: `+6.1 (4.0 to 8.2)`."""
    if difference is None:
        return ""
    ends = f" ({100 * difference.low:.1f} to {100 * difference.high:.1f})" if difference.n > 1 else ""
    return f"{100 * difference.mean:+.1f}{ends}"


def said_chosen(chosen: dict[str, int]) -> str:
    """Return what was chosen, most often first: `probe 3, scratch 2`."""
    return ", ".join(f"{c} {n}" for c, n in sorted(chosen.items(), key=lambda x: -x[1]))


def best_classifier(rows: Sequence[Row]) -> Row | None:
    """Return the classifier that is best among those with the most labels, as `mode=auto` judges; of equals the first.

    None where there is nothing to judge by.
    """
    most = max(r["labels"] for r in rows)
    held_out = any(r.get("held_out_accuracy") is not None for r in rows)
    judged = [
        (merit, r)
        for r in rows
        if r["mode"] != "auto"
        and r["labels"] == most
        and (merit := _merit(r)) is not None
        and (not held_out or r["held_out_accuracy"] is not None)
    ]
    return max(judged, key=lambda j: j[0])[1] if judged else None
