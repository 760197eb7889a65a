"""From evaluated classifiers to the rows, the paired differences and the verdicts of a study."""

import csv
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sslrun.base.errors import UserError
from sslrun.config.grammar import key_of
from sslrun.config.nodes import flattened
from sslrun.evaluation.intervals import Interval, mean_interval, paired
from sslrun.runs.find import find, job_order, read_summary
from sslrun.study import results
from sslrun.study.launch import OF_NO_WEIGHT


def verdict(difference: Interval | None) -> str:
    """Say in words what a paired difference of accuracies, in [-1, 1], shows."""
    if difference is None:
        return "nothing to compare with"
    if difference.n < 2:
        return "one label subset shows nothing: more seeds are needed"
    if not difference.excludes_zero():
        return "no difference shown"
    word = "helps" if difference.mean > 0 else "hurts"
    ends = sorted(abs(100 * x) for x in (difference.low, difference.high))
    return f"{word} by {abs(100 * difference.mean):.1f} points ({ends[0]:.1f} to {ends[1]:.1f})"


def labels_needed(curve: Sequence[tuple[int, float]], accuracy: float) -> tuple[float, str]:
    """Say with how many labels a curve reaches an accuracy: between its points linearly in log(labels).

    Args:
        curve: (labels, accuracy) of the baseline, at least one.

    Returns:
        The number of labels and `"="`, or an end of the curve with `"<"` or `">"` where the accuracy lies beyond it.
    """
    points = sorted(curve)
    if accuracy <= points[0][1]:
        return points[0][0], "=" if accuracy == points[0][1] else "<"
    for (n, a), (m, b) in itertools.pairwise(points):
        if a < accuracy <= b:
            return math.exp(math.log(n) + (accuracy - a) / (b - a) * (math.log(m) - math.log(n))), "="
    return points[-1][0], ">"


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


def rows_of(path: Path) -> list[Row]:
    """Return the evaluated classifiers that a path stands for."""
    if not (path / "summary.json").is_file():
        jobs = sorted((p.parent for p in path.glob("*/summary.json")), key=job_order)
        if not jobs:
            read_summary(path)  # which says what is wrong
        return [row for job in jobs if read_summary(job)["status"] == "finished" for row in rows_of(job)]
    stage = read_summary(path)["stage"]
    if stage == "evaluate":
        return [results.row_of(path, _start(path))]
    if stage == "finetune":
        evaluated = [
            p
            for p, s in find(["evaluate"], parts=True)
            if Path(s.get("of_run", "")).resolve() == path.resolve() and _done(s)
        ]
        if not evaluated:
            raise UserError(f"{path} was not evaluated yet: sslrun evaluate run={path}")
        return [results.row_of(evaluated[-1], _start(evaluated[-1]))]
    if stage == "compare" and (path / "results.csv").is_file():
        with (path / "results.csv").open(newline="", encoding="utf-8") as file:
            cells = list(csv.DictReader(file))
        if not cells or not {"evaluated", "start", "mode"} <= set(cells[0]):
            raise UserError(f"{path / 'results.csv'} is not as a study writes it: sslrun compare resume={path}")
        cells = [r for r in cells if r["mode"] != "auto"]
        return [results.row_of(Path(r["evaluated"]), r["start"], _held_out(r), r.get("setting") or "") for r in cells]
    if stage == "compare":
        raise UserError(f"{path} is a study that has not come to its end: sslrun compare resume={path}")
    raise UserError(f"{path} is a {stage} run: a report is on evaluated classifiers (sslrun evaluate), or on a study")


def _held_out(row: dict[str, str]) -> tuple[float, float] | None:
    return (float(a), -float(row["held_out_loss"])) if (a := row.get("held_out_accuracy")) else None


def _done(summary: dict[str, object]) -> bool:
    return summary["status"] == "finished"


def _start(evaluated: Path) -> str:
    return str(read_summary(Path(read_summary(evaluated)["of_run"]))["init"])


def named_apart(rows: list[Row]) -> list[Row]:
    """Tell apart networks of one pretext task that come from different runs, and runs with other settings than most."""
    sources: dict[str, dict[str, str]] = {}
    searched = {key_of(r["setting"]) for r in rows}
    configs = [_settings(r, searched) for r in rows]
    usual = Counter(
        json.dumps(c, sort_keys=True) for c, r in zip(configs, rows, strict=True) if r["start"] == "scratch"
    )
    usual = usual or Counter(json.dumps(c, sort_keys=True) for c in configs)
    base = json.loads(usual.most_common(1)[0][0]) if rows else {}
    for r, config in zip(rows, configs, strict=True):
        source = str(read_summary(Path(r["finetuned"]))["source"])
        of = sources.setdefault(r["start"], {})
        of.setdefault(source, r["start"] if not of else f"{r['start']} {len(of) + 1}")
        r["start"] = of[source] if r["start"] not in ("scratch", "imagenet") else r["start"]
        others = [f"{k}={config.get(k)}" for k in {**base, **config} if base.get(k) != config.get(k)]
        r["start"] = " ".join([r["start"], *others])
    return rows


def _settings(row: Row, searched: set[str]) -> dict[str, Any]:
    """Return the settings of a classifier that its name and its labels do not tell.

    Args:
        searched: keys that a study searched: they do not tell its networks apart.
    """
    summary = read_summary(Path(row["finetuned"]))
    flat = flattened(summary["config"])
    told = {"init", "mode", "search", "seed", "subset_seed", "fold", "resume", "label_fraction", "labels_per_class",
            "backbone.stem", *OF_NO_WEIGHT}  # fmt: skip
    flat["readout"] = "auto" if "readouts" in summary else flat.get("readout", "average")  # older runs lack the key
    if row["mode"] != "finetune" or row["setting"]:
        told |= searched
    return {k: v for k, v in flat.items() if k not in told and not k.startswith("device.")}
