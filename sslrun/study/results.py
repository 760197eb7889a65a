"""Results of a study: rows of evaluated classifiers, paired differences from scratch, and verdicts."""

import csv
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sslrun.base.errors import UserError
from sslrun.base.text import with_article
from sslrun.config.commands import COMPARE, EVALUATE, FINETUNE
from sslrun.config.grammar import key_of
from sslrun.config.nodes import flattened
from sslrun.config.renames import COLUMNS, renamed_keys
from sslrun.evaluation.intervals import Interval, mean_interval, paired
from sslrun.evaluation.validation import score_name
from sslrun.runs.encoders import IMAGENET, SCRATCH
from sslrun.runs.find import find, job_order, read_summary
from sslrun.study.choice import AUTO, KNN, PROBE, TUNED
from sslrun.study.launch import IGNORED_KEYS

ORDER = (AUTO, TUNED, PROBE, KNN)  # of the modes; a report compares the first one that it has with scratch
Sign = Literal["=", "<", ">"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One evaluated classifier: a row of `results.csv`, which has these columns in this order.

    Attributes:
        initialization: `scratch`, `imagenet`, or the name of a pretraining.
        labels: number of labels for training.
        label_budget: the requested label budget in words.
        subset: fingerprint of the label subset.
        val_f1_macro, cv_f1_macro: None in older runs.
        cv_accuracy, cv_loss: mean over the folds of k-fold cross-validation; None if validation is large enough.
        chosen: the choice of `mode=auto`, without its setting.
        setting: the best setting of a search, or ''.
        balance: how classes are balanced.
        seconds: wall time of the training.
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
    val_f1_macro: float | None
    val_loss: float | None
    cv_accuracy: float | None
    cv_f1_macro: float | None
    cv_loss: float | None
    chosen: str | None
    setting: str
    balance: str
    dataset: str
    backbone: str
    seconds: float
    finetuned: str
    evaluated: str

    def selection_score(self, name: str) -> tuple[float, float] | None:
        """Return a metric and, to break ties, log-likelihood in cross-validation or else on validation, or None.

        Args:
            name: of the metric, as returned by `score_name`.
        """
        cv, val = (self.cv_accuracy, self.cv_f1_macro), (self.val_accuracy, self.val_f1_macro)
        i = 0 if name == "val/accuracy" else 1
        judged = (cv[i], self.cv_loss), (val[i], self.val_loss)
        return next(((score, -loss) for score, loss in judged if score is not None and loss is not None), None)


@dataclass(frozen=True)
class Verdict:
    """Result of a paired comparison with training from scratch.

    Attributes:
        kind: `none` if the interval contains zero; `too few subsets` if there is no interval.
        difference: of the accuracies, in [-1, 1], on the same label subsets; None without a baseline.
    """

    kind: Literal["better", "worse", "none", "too few subsets", "no baseline"]
    difference: Interval | None


@dataclass(frozen=True)
class Entry:
    """Results of one network at one label budget.

    Attributes:
        accuracy: mean test accuracy and its 95 % CI over label subsets.
        verdict: the comparison with scratch; None for scratch itself.
        labels_needed: by scratch for the same accuracy, as returned by `labels_needed`; None without a baseline.
        chosen: counts of the choices of `mode=auto`.
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
    """Return the verdict on a paired difference of accuracies, in [-1, 1], with its 95 % CI."""
    if difference is None:
        return Verdict("no baseline", None)
    if not difference.known:
        return Verdict("too few subsets", difference)
    if not difference.excludes_zero():
        return Verdict("none", difference)
    return Verdict("better" if difference.mean > 0 else "worse", difference)


def labels_needed(curve: Sequence[tuple[int, float]], accuracy: float) -> tuple[float, Sign]:
    """Return the number of labels at which a curve reaches an accuracy, interpolated linearly in log(labels).

    Args:
        curve: points (labels, accuracy) of the baseline, at least one.
        accuracy: to be reached.

    Returns:
        The number of labels and `"="`; if the accuracy is outside the curve, its first number of labels and `"<"`, or
        its last one and `">"`.
    """
    points = sorted(curve)
    if accuracy <= points[0][1]:
        return points[0][0], "=" if accuracy == points[0][1] else "<"
    for (n, a), (m, b) in itertools.pairwise(points):
        if a < accuracy <= b:
            return math.exp(math.log(n) + (accuracy - a) / (b - a) * (math.log(m) - math.log(n))), "="
    return points[-1][0], ">"


def row_of(evaluated: Path, initialization: str, cv: Mapping[str, float] | None = None, setting: str = "") -> Row:
    """Return the row of one evaluated classifier.

    Args:
        evaluated: run directory of the evaluation.
        initialization: as in `Row`.
        cv: metrics in cross-validation, see `mean_scores`.
        setting: as in `Row`.
    """
    test = read_summary(evaluated)
    directory = Path(test["of_run"])
    made = read_summary(directory)
    fraction = made["label_fraction"]
    return Row(
        initialization=initialization,
        mode=made["mode"],
        labels=made["labels"]["train"],
        label_budget=f"{fraction:.3g} of the labels"
        if fraction is not None
        else f"{made['labels_per_class']} per class",
        labels_validation=made["labels"]["validation"],
        seed=made["seeds"]["training"],
        subset=made["subset_fingerprint"],
        test_accuracy=test["test/accuracy"],
        test_f1_macro=test["test/f1_macro"],
        val_accuracy=made.get("val/accuracy"),
        val_f1_macro=made.get("val/f1_macro"),
        val_loss=made.get("val/loss"),
        cv_accuracy=cv["val/accuracy"] if cv else None,
        cv_f1_macro=cv.get("val/f1_macro") if cv else None,
        cv_loss=cv["val/loss"] if cv else None,
        chosen=made["chosen"].split()[0] if "chosen" in made else None,  # without its setting
        setting=setting,
        balance=made["config"].get("balance", "none"),
        dataset=made["dataset"],
        backbone=made["backbone"],
        seconds=made["wall_time_seconds"],
        finetuned=str(directory),
        evaluated=str(evaluated),
    )


def with_auto(rows: Sequence[Row], initializations: Iterable[str]) -> list[Row]:
    """Return rows of `mode=auto`: the best of probe, finetuning and scratch on the same labels, as in `finetune`.

    The choice is made on validation, or in cross-validation where validation is small, never on test.
    """
    out = []
    for initialization in initializations:
        for row in rows:
            if row.initialization != initialization or row.mode != TUNED:
                continue
            candidates = [
                r for r in rows if _same_labels(r, row) and (r.initialization == initialization or is_scratch(r))
            ]
            name = score_among(candidates)
            scores = [(r.selection_score(name), r) for r in candidates]
            if any(s is None for s, _ in scores):
                continue  # neither validation nor cross-validation
            best = max(scores, key=lambda s: s[0] or (0.0, 0.0))[1]
            chosen = SCRATCH if is_scratch(best) else best.mode
            out.append(replace(best, initialization=initialization, mode=AUTO, chosen=chosen))
    return out


def score_among(rows: Sequence[Row]) -> str:
    """Return the metric by which to choose among classifiers."""
    return score_name(*(r.balance for r in rows))


def _same_labels(a: Row, b: Row) -> bool:
    return (a.subset, a.seed, a.label_budget) == (b.subset, b.seed, b.label_budget)


def is_scratch(network: Row | Entry) -> bool:
    """Return whether a network was trained from scratch, the baseline of all comparisons."""
    return (network.initialization, network.mode) == (SCRATCH, TUNED)


def compared(rows: Sequence[Row]) -> list[Entry]:
    """Return one entry per network and label budget, ordered by number of labels, then as in `rows`."""
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
        counts = {c: chosen.count(c) for c in dict.fromkeys(chosen)}
        out.append(Entry(initialization, mode, labels, label_budget, accuracy, judged, needed, counts))
    return out


def _accuracy(rows: Sequence[Row]) -> Interval:
    return mean_interval([r.test_accuracy for r in rows])


def _by_subset(rows: Sequence[Row]) -> dict[str, float]:
    return {f"{r.subset} {r.seed}": r.test_accuracy for r in rows}


def best_classifier(rows: Sequence[Row]) -> Row | None:
    """Return the best classifier at the largest label budget by selection score; None if there is no score."""
    most = max(r.labels for r in rows)
    cv = any(r.cv_accuracy is not None for r in rows)
    largest = [r for r in rows if r.mode != AUTO and r.labels == most]
    name = score_among(largest)
    scores = [(s, r) for r in largest if (s := r.selection_score(name)) and (not cv or r.cv_accuracy is not None)]
    return max(scores, key=lambda s: s[0])[1] if scores else None


def rows_of(path: Path) -> list[Row]:
    """Return the rows of an evaluation, a finetuned run, a sweep of either, or a study.

    Raises:
        UserError: it is none of these, was not evaluated, or is unfinished.
    """
    if not (path / "summary.json").is_file():
        jobs = sorted((p.parent for p in path.glob("*/summary.json")), key=job_order)
        if not jobs:
            read_summary(path)  # raises an error with the reason
        return [row for job in jobs if read_summary(job)["status"] == "finished" for row in rows_of(job)]
    stage = read_summary(path)["stage"]
    if stage == EVALUATE:
        return [row_of(path, _initialization(path))]
    if stage == FINETUNE:
        finished = [(p, s) for p, s in find([EVALUATE], study_runs=True) if s["status"] == "finished"]
        evaluated = [p for p, s in finished if Path(s.get("of_run", "")).resolve() == path.resolve()]
        if not evaluated:
            raise UserError(f"{path} has not been evaluated; run: sslrun evaluate run={path}")
        return [row_of(evaluated[-1], _initialization(evaluated[-1]))]
    if stage == COMPARE and (path / "results.csv").is_file():
        with (path / "results.csv").open(newline="", encoding="utf-8") as file:
            cells = [renamed_keys(row, COLUMNS) for row in csv.DictReader(file)]
        if not cells or not {"evaluated", "initialization", "mode"} <= set(cells[0]):
            raise UserError(
                f"{path / 'results.csv'} is not a table of results; to write it again: sslrun compare resume={path}"
            )
        cells = [r for r in cells if r["mode"] != AUTO]
        return [row_of(Path(r["evaluated"]), r["initialization"], _cv(r), r.get("setting") or "") for r in cells]
    if stage == COMPARE:
        raise UserError(f"{path} is an unfinished study; to continue it: sslrun compare resume={path}")
    raise UserError(
        f"{path} is {with_article(stage)} run; a report needs evaluated classifiers (sslrun evaluate) or a study"
    )


def _cv(row: dict[str, str]) -> dict[str, float] | None:
    scores = {f"val/{k}": float(v) for k in ("accuracy", "f1_macro", "loss") if (v := row.get(f"cv_{k}"))}
    return scores or None


def _initialization(evaluated: Path) -> str:
    return str(read_summary(Path(read_summary(evaluated)["of_run"]))["init"])


def disambiguated(rows: Sequence[Row]) -> list[Row]:
    """Return rows with distinct names for networks from different pretraining runs and with different settings.

    Settings that differ from those of most networks from scratch are appended to the name.
    """
    sources: dict[str, dict[str, str]] = {}
    searched = {key_of(r.setting) for r in rows}
    configs = [_settings(r, searched) for r in rows]
    common = Counter(
        json.dumps(c, sort_keys=True) for c, r in zip(configs, rows, strict=True) if r.initialization == SCRATCH
    )
    common = common or Counter(json.dumps(c, sort_keys=True) for c in configs)
    base = json.loads(common.most_common(1)[0][0]) if rows else {}
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
    """Return the settings that distinguish a classifier from others of the same name and label budget.

    Args:
        row: the classifier.
        searched: keys that a study searched, which do not distinguish its networks.
    """
    summary = read_summary(Path(row.finetuned))
    flat = flattened(summary["config"])
    ignored = {"init", "mode", "search", "seed", "subset_seed", "fold", "resume", "label_fraction", "labels_per_class",
            "backbone.stem", *IGNORED_KEYS}  # fmt: skip
    flat["pooling"] = "auto" if "poolings" in summary else flat.get("pooling", "average")  # older runs lack the key
    if row.mode != TUNED or row.setting:
        ignored |= searched
    return {k: v for k, v in flat.items() if k not in ignored and not k.startswith("device.")}
