"""From evaluated classifiers to the rows, the paired differences and the verdicts of a study."""

import csv
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sslrun.base.errors import UserError
from sslrun.config.commands import COMPARE, EVALUATE, FINETUNE
from sslrun.config.grammar import key_of
from sslrun.config.nodes import flattened
from sslrun.config.renames import COLUMNS, renamed_keys
from sslrun.evaluation.intervals import Interval, mean_interval, paired
from sslrun.runs.encoders import IMAGENET, SCRATCH
from sslrun.runs.find import find, job_order, read_summary
from sslrun.study.choice import AUTO, KNN, PROBE, TUNED
from sslrun.study.launch import OF_NO_WEIGHT

ORDER = (AUTO, TUNED, PROBE, KNN)  # of the modes, and which of them is judged where there are several
Sign = Literal["=", "<", ">"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is compared of one evaluated classifier: a line of `results.csv`, whose columns are these in this order.

    Attributes:
        initialization: the name under which its network started: `scratch`, `imagenet`, or a pretraining's.
        label_budget: of labels, as it was asked for.
        subset: fingerprint of its label subset.
        cv_accuracy, cv_loss: on parts of the labels, held out in turns, where validation is small.
        chosen: by `mode=auto`, without its setting.
        setting: that was chosen by a search, or ''.
        finetuned, evaluated: the run directories.
    """

    initialization: str
    mode: str
    labels: int
    label_budget: str
    labels_validation: int
    seed: int
    subset: str
    test_accuracy: float
    test_f1_macro: float
    val_accuracy: float | None
    val_loss: float | None
    cv_accuracy: float | None
    cv_loss: float | None
    chosen: str | None
    setting: str
    dataset: str
    backbone: str
    seconds: float
    finetuned: str
    evaluated: str

    @property
    def merit(self) -> tuple[float, float] | None:
        """Return accuracy and, to break ties, log-likelihood on what was held out or on validation; None without."""
        judged = (self.cv_accuracy, self.cv_loss), (self.val_accuracy, self.val_loss)
        return next(((a, -loss) for a, loss in judged if a is not None and loss is not None), None)


@dataclass(frozen=True)
class Verdict:
    """What a paired difference of accuracies, in [-1, 1], shows.

    Attributes:
        kind: `none` where the interval has zero in it; `one subset` where there is no interval.
        difference: to scratch on the same label subsets; None where there is nothing to compare with.
    """

    kind: Literal["helps", "hurts", "none", "one subset", "nothing to compare with"]
    difference: Interval | None


@dataclass(frozen=True)
class Entry:
    """One network with one number of labels.

    Attributes:
        accuracy: on test, over the label subsets.
        verdict: against scratch; None of scratch itself.
        labels_needed: by scratch for the same accuracy, as `labels_needed` has it; None where there is no scratch.
        chosen: by `mode=auto`: what, and how often.
    """

    initialization: str
    mode: str
    labels: int
    label_budget: str
    accuracy: Interval
    verdict: Verdict | None
    labels_needed: tuple[float, Sign] | None
    chosen: dict[str, int]


def verdict(difference: Interval | None) -> Verdict:
    """Judge a paired difference of accuracies, in [-1, 1]."""
    if difference is None:
        return Verdict("nothing to compare with", None)
    if difference.n < 2:
        return Verdict("one subset", difference)
    if not difference.excludes_zero():
        return Verdict("none", difference)
    return Verdict("helps" if difference.mean > 0 else "hurts", difference)


def labels_needed(curve: Sequence[tuple[int, float]], accuracy: float) -> tuple[float, Sign]:
    """Return with how many labels a curve reaches an accuracy: between its points linearly in log(labels).

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


def row_of(evaluated: Path, initialization: str, cv: tuple[float, float] | None = None, setting: str = "") -> Row:
    """Return what is compared of one evaluated classifier.

    Args:
        evaluated: an evaluation's run directory.
        cv: accuracy and log-likelihood.
    """
    test = read_summary(evaluated)
    directory = Path(test["of_run"])
    made = read_summary(directory)
    share = made["label_fraction"]
    return Row(
        initialization=initialization,
        mode=made["mode"],
        labels=made["labels"]["train"],
        label_budget=f"{share:.3g} of the labels" if share is not None else f"{made['labels_per_class']} per class",
        labels_validation=made["labels"]["validation"],
        seed=made["seeds"]["training"],
        subset=made["subset_fingerprint"],
        test_accuracy=test["test/accuracy"],
        test_f1_macro=test["test/f1_macro"],
        val_accuracy=made.get("val/accuracy"),
        val_loss=made.get("val/loss"),
        cv_accuracy=cv[0] if cv else None,
        cv_loss=-cv[1] if cv else None,
        chosen=made["chosen"].split()[0] if "chosen" in made else None,  # without its setting
        setting=setting,
        dataset=made["dataset"],
        backbone=made["backbone"],
        seconds=made["wall_time_seconds"],
        finetuned=str(directory),
        evaluated=str(evaluated),
    )


def with_auto(rows: Sequence[Row], initializations: Iterable[str]) -> list[Row]:
    """Return rows `mode=auto`: of probe, finetuning and scratch on the same labels the one that is best on validation.

    Where validation is small, it is the best on labels that were held out in turns, as in `sslrun finetune mode=auto`.
    The test split has no part in it.
    """
    out = []
    for initialization in initializations:
        for row in rows:
            if row.initialization != initialization or row.mode != TUNED:
                continue
            rivals = [r for r in rows if _same_labels(r, row) and (r.initialization == initialization or is_scratch(r))]
            if any(r.merit is None for r in rivals):
                continue  # there is nothing to choose by
            best = max(rivals, key=lambda r: r.merit or (0.0, 0.0))
            out.append(
                replace(
                    best, initialization=initialization, mode=AUTO, chosen=SCRATCH if is_scratch(best) else best.mode
                )
            )
    return out


def _same_labels(a: Row, b: Row) -> bool:
    return (a.subset, a.seed, a.label_budget) == (b.subset, b.seed, b.label_budget)


def is_scratch(network: Row | Entry) -> bool:
    """Tell whether a network was trained from scratch: what all others are compared with."""
    return (network.initialization, network.mode) == (SCRATCH, TUNED)


def compared(rows: Sequence[Row]) -> list[Entry]:
    """Return one entry for every network and number of labels, in the order of the labels, then of the starts."""
    groups: dict[tuple[int, str, str, str], list[Row]] = {}
    initializations = list(dict.fromkeys(r.initialization for r in rows))
    for row in sorted(rows, key=lambda r: (r.labels, initializations.index(r.initialization), ORDER.index(r.mode))):
        groups.setdefault((row.labels, row.label_budget, row.initialization, row.mode), []).append(row)
    scratch = {(n, label_budget): rs for (n, label_budget, *_), rs in groups.items() if is_scratch(rs[0])}
    curve = [(n, _accuracy(rs).mean) for (n, _), rs in scratch.items()]
    out = []
    for (labels, label_budget, initialization, mode), members in groups.items():
        accuracy, own = _accuracy(members), is_scratch(members[0])
        base = scratch.get((labels, label_budget), [])
        chosen = [r.chosen for r in members if mode == AUTO and r.chosen]
        judged = None if own else verdict(paired(_by_subset(members), _by_subset(base)))
        needed = labels_needed(curve, accuracy.mean) if curve and not own else None
        often = {c: chosen.count(c) for c in dict.fromkeys(chosen)}
        out.append(Entry(initialization, mode, labels, label_budget, accuracy, judged, needed, often))
    return out


def _accuracy(rows: Sequence[Row]) -> Interval:
    return mean_interval([r.test_accuracy for r in rows])


def _by_subset(rows: Sequence[Row]) -> dict[str, float]:
    return {f"{r.subset} {r.seed}": r.test_accuracy for r in rows}


def best_classifier(rows: Sequence[Row]) -> Row | None:
    """Return the best of the classifiers with the most labels, as `mode=auto` judges; None where nothing tells."""
    most = max(r.labels for r in rows)
    cv = any(r.cv_accuracy is not None for r in rows)
    of_these = [r for r in rows if r.mode != AUTO and r.labels == most]
    judged = [(r.merit, r) for r in of_these if r.merit and (not cv or r.cv_accuracy is not None)]
    return max(judged, key=lambda j: j[0])[1] if judged else None


def rows_of(path: Path) -> list[Row]:
    """Return the evaluated classifiers that a path stands for."""
    if not (path / "summary.json").is_file():
        jobs = sorted((p.parent for p in path.glob("*/summary.json")), key=job_order)
        if not jobs:
            read_summary(path)  # which says what is wrong
        return [row for job in jobs if read_summary(job)["status"] == "finished" for row in rows_of(job)]
    stage = read_summary(path)["stage"]
    if stage == EVALUATE:
        return [row_of(path, _initialization(path))]
    if stage == FINETUNE:
        finished = [(p, s) for p, s in find([EVALUATE], study_runs=True) if s["status"] == "finished"]
        evaluated = [p for p, s in finished if Path(s.get("of_run", "")).resolve() == path.resolve()]
        if not evaluated:
            raise UserError(f"{path} was not evaluated yet: sslrun evaluate run={path}")
        return [row_of(evaluated[-1], _initialization(evaluated[-1]))]
    if stage == COMPARE and (path / "results.csv").is_file():
        with (path / "results.csv").open(newline="", encoding="utf-8") as file:
            cells = [renamed_keys(row, COLUMNS) for row in csv.DictReader(file)]
        if not cells or not {"evaluated", "initialization", "mode"} <= set(cells[0]):
            raise UserError(f"{path / 'results.csv'} is not as a study writes it: sslrun compare resume={path}")
        cells = [r for r in cells if r["mode"] != AUTO]
        return [row_of(Path(r["evaluated"]), r["initialization"], _cv(r), r.get("setting") or "") for r in cells]
    if stage == COMPARE:
        raise UserError(f"{path} is a study that has not come to its end: sslrun compare resume={path}")
    raise UserError(f"{path} is a {stage} run: a report is on evaluated classifiers (sslrun evaluate), or on a study")


def _cv(row: dict[str, str]) -> tuple[float, float] | None:
    return (float(a), -float(row["cv_loss"])) if (a := row.get("cv_accuracy")) else None


def _initialization(evaluated: Path) -> str:
    return str(read_summary(Path(read_summary(evaluated)["of_run"]))["init"])


def disambiguated(rows: Sequence[Row]) -> list[Row]:
    """Tell apart networks of one pretext task that come from different runs, and runs with other settings than most."""
    sources: dict[str, dict[str, str]] = {}
    searched = {key_of(r.setting) for r in rows}
    configs = [_settings(r, searched) for r in rows]
    usual = Counter(
        json.dumps(c, sort_keys=True) for c, r in zip(configs, rows, strict=True) if r.initialization == SCRATCH
    )
    usual = usual or Counter(json.dumps(c, sort_keys=True) for c in configs)
    base = json.loads(usual.most_common(1)[0][0]) if rows else {}
    out = []
    for r, config in zip(rows, configs, strict=True):
        source = str(read_summary(Path(r.finetuned))["source"])
        of = sources.setdefault(r.initialization, {})
        of.setdefault(source, r.initialization if not of else f"{r.initialization} {len(of) + 1}")
        initialization = of[source] if r.initialization not in (SCRATCH, IMAGENET) else r.initialization
        others = [f"{k}={config.get(k)}" for k in {**base, **config} if base.get(k) != config.get(k)]
        out.append(replace(r, initialization=" ".join([initialization, *others])))
    return out


def _settings(row: Row, searched: set[str]) -> dict[str, Any]:
    """Return the settings of a classifier that its name and its labels do not tell.

    Args:
        searched: keys that a study searched: they do not tell its networks apart.
    """
    summary = read_summary(Path(row.finetuned))
    flat = flattened(summary["config"])
    ignored = {"init", "mode", "search", "seed", "subset_seed", "fold", "resume", "label_fraction", "labels_per_class",
            "backbone.stem", *OF_NO_WEIGHT}  # fmt: skip
    flat["pooling"] = "auto" if "poolings" in summary else flat.get("pooling", "average")  # older runs lack the key
    if row.mode != TUNED or row.setting:
        ignored |= searched
    return {k: v for k, v in flat.items() if k not in ignored and not k.startswith("device.")}
