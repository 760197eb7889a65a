"""Report of a study: its page, its table and its conclusions."""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf

from sslrun.base.console import ERR, log
from sslrun.base.files import write_text
from sslrun.base.output import write_csv
from sslrun.base.text import counted, percent
from sslrun.evaluation.intervals import MIN_VALUES
from sslrun.report import plots
from sslrun.report.comparison import (
    COSTS,
    COSTS_TEXT,
    NO_INTERVAL,
    accuracy_interval,
    comparisons,
    conclusions,
    cost_text,
    difference_text,
    gain_interval,
    has_costs,
    intervals_text,
    kind_of,
    labels_heading,
    labels_text,
    network_text,
    networks_text,
    number_of_labels,
    table,
    verdicts,
)
from sslrun.report.gains import brackets, p_text
from sslrun.report.html import render
from sslrun.report.plots import FROM_SCRATCH, name_of
from sslrun.run.encoders import PIXELS, SCRATCH
from sslrun.run.find import read_summary
from sslrun.study.comparison import compared, gain_table
from sslrun.study.entry import Budget, Entry, budget_of
from sslrun.study.gains import ASSUMED_SD
from sslrun.study.results import EQUAL_TIME, PUBLISHED, Row, is_scratch
from sslrun.training.candidates import AUTO, TUNED

Maps = tuple[Mapping[str, np.ndarray], np.ndarray]


def publish(
    directory: Path, rows: Sequence[Row], mode: str, maps: Maps | None, about: dict[str, Any] | None
) -> list[str]:
    """Write the tables, the page and its figures to a directory; print the comparison and the conclusions.

    Args:
        directory: of the report.
        rows: evaluated classifiers.
        mode: of the classifiers that are compared with scratch.
        maps: two-dimensional embeddings by name of the network, and their labels.
        about: the summary of the study, if there is one.

    Returns:
        A sentence for each label budget from scratch, for each pretraining and label budget, and for the best of each
        label budget.
    """
    write_csv(directory / "results.csv", [asdict(r) for r in rows])
    entries = compared(rows, mode)
    if gains := gain_table(entries):
        write_csv(directory / "gains.csv", gains)
    sentences = [*(text for _, text in conclusions(entries)), *verdicts(entries)]
    write_text(directory / "report.html", _page(directory / "figures", rows, entries, mode, maps, about))
    ERR.print(table(entries))
    for sentence in sentences:
        ERR.print(sentence, markup=False)
    ERR.print(f"Report: {directory / 'report.html'}", markup=False)
    return sentences


def _page(
    folder: Path,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    mode: str,
    maps: Maps | None,
    about: dict[str, Any] | None,
) -> str:
    names, judged = _class_names(rows[0]), [e for e in entries if e.in_family]
    return render(
        "study.html.jinja",
        title="Pretraining compared with training from scratch",
        subtitle=_subtitle(rows),
        conclusions=[
            *({"text": text, "kind": kind_of(e)} for e, text in conclusions(entries)),
            *({"text": text, "kind": ""} for text in verdicts(entries)),
        ],
        figures=[*_figures(folder, rows, entries, judged, names), *_embeddings(folder, maps, names)],
        rows=list(_page_rows(entries)),
        runs=list(_page_runs(rows)),
        reading=_reading(entries, mode),
        facts=_facts(rows, entries, about),
        advice=about["advice"] if about else [],
        command=about["command"] if about else "",
        config=OmegaConf.to_yaml(about["config"]) if about else "",
    )


def _figures(
    folder: Path, rows: Sequence[Row], entries: Sequence[Entry], judged: Sequence[Entry], names: list[str]
) -> Iterator[dict[str, Any]]:
    shown = [e for e in entries if e.initialization in (SCRATCH, PIXELS) or e.in_family]
    svg = plots.label_efficiency(shown, folder)
    bars = intervals_text(shown)
    bars = f"error bars: {bars}, with these pretrainings and test images" if bars else NO_INTERVAL
    yield _figure("label_efficiency", "Label efficiency", svg, f"Mean test accuracy; {bars}.")
    if any(r.mode == TUNED and r.labels_val for r in rows):  # others are not evaluated during their training
        text = (
            "Validation accuracy during finetuning, mean over label subsets. The best checkpoint of each run is kept."
        )
        yield _figure("learning_curves", "Learning curves", plots.learning_curves(rows, folder), text)
    if judged:
        fewest = min(e.budget for e in judged)
        here = [r for r in rows if budget_of(r) == fewest]
        base = [r for r in here if is_scratch(r)]
        networks = dict.fromkeys((e.initialization, e.mode) for e in judged)
        own = {name_of(*n): [r for r in here if (r.initialization, r.mode) == n] for n in networks}
        yield from _by_class(folder, base, own, names, fewest)


def _by_class(
    folder: Path, base: Sequence[Row], own: Mapping[str, Sequence[Row]], names: list[str], budget: Budget
) -> Iterator[dict[str, Any]]:
    """Yield the per-class figures and the most confident errors at one label budget.

    Args:
        base: the classifiers trained from scratch.
        own: the classifiers that are compared with them, by name of the network.
    """
    title = labels_text(budget)
    groups = {name: members for name, members in {FROM_SCRATCH: base, **own}.items() if members}
    counts = {name: [_report(r)["confusion_matrix"] for r in members] for name, members in groups.items()}
    svg = plots.confusion_matrices({name: np.sum(c, axis=0) for name, c in counts.items()}, names, title, folder)
    text = (
        "Rows: true classes, columns: predicted classes; the darker, the larger the fraction of the true class, from "
        "0 (white) to 1. Sum over label subsets and pretrainings."
    )
    yield _figure("confusion_matrices", "Confusion matrix, normalized by true class", svg, text)
    gains = {name: _recalls(members, base) for name, members in own.items()}
    gains = {name: differences for name, differences in gains.items() if len(differences)}
    if gains:
        svg = plots.class_gains(gains, names, title, folder)
        text = "Recall minus that of training from scratch on the same labels."
        if all(len(differences) >= MIN_VALUES for differences in gains.values()):
            text += (
                " Error bars: 95 % CI for other label subsets, not for other pretrainings or test images, each class "
                "for itself."
            )
        yield _figure("class_gains", "Difference in recall by class", svg, text)
    text = (
        f"Misclassified test images by confidence: predicted class, confidence, true class. One label subset, {title}."
    )
    mistakes = [p for name, members in groups.items() for p in _mistakes(name, members)]
    yield {"name": "mistakes", "heading": "Most confident errors", "svg": "", "caption": text,
           "images": mistakes}  # fmt: skip


def _embeddings(folder: Path, maps: Maps | None, names: list[str]) -> Iterator[dict[str, Any]]:
    if maps:
        text = (
            f"t-SNE of the features of {counted(len(maps[1]), 'image')}, colored by class; the networks "
            "were trained without labels. Nearby points have similar features; distances between clusters mean little."
        )
        svg = plots.embeddings(*maps, names, folder)
        yield _figure("embeddings", "Embeddings before and after pretraining (t-SNE)", svg, text)


def _figure(name: str, heading: str, svg: str, caption: str) -> dict[str, Any]:
    return {"name": name, "heading": heading, "svg": Markup(svg), "caption": caption, "images": []}


def _report(row: Row) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(row.evaluated) / "report.json").read_text(encoding="utf-8"))
    return report


def _class_names(row: Row) -> list[str]:
    return [c["class"] for c in _report(row)["classes"]]


def _recalls(rows: Sequence[Row], base: Sequence[Row]) -> np.ndarray:
    """Return differences in recall on the label subsets of both, `subsets x classes`; NaN without test images.

    They are differences of means over the runs on one subset, which are not independent.
    """
    own, scratch = _recalls_by_subset(rows), _recalls_by_subset(base)
    return np.array([own[s] - scratch[s] for s in own if s in scratch])


def _recalls_by_subset(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    by_subset: dict[str, list[np.ndarray]] = {}
    for r in rows:
        by_subset.setdefault(r.subset, []).append(_recall(r))
    return {subset: np.mean(recalls, axis=0) for subset, recalls in by_subset.items()}


def _recall(row: Row) -> np.ndarray:
    return np.array([c["recall"] for c in _report(row)["classes"]], dtype=float)


def _mistakes(name: str, members: Sequence[Row]) -> list[dict[str, str]]:
    sheet = Path(members[0].evaluated) / "figures" / "mistakes.png"
    if not sheet.is_file():
        log.info("No figure of errors for %s: it makes no errors, or was evaluated by an older version.", name)
        return []
    return [{"heading": name, "data": base64.b64encode(sheet.read_bytes()).decode()}]


def _page_rows(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    last = None
    for e in entries:
        gain = e.gain
        yield {
            "first": last is not None and e.budget != last,
            "labels": number_of_labels(e.budget) if e.budget != last else "",
            "name": network_text(e),
            "accuracy": percent(e.accuracy.mean),
            "interval": accuracy_interval(e),
            "difference": difference_text(e),
            "gain_interval": gain_interval(e),
            "fixed_split": brackets(gain.fixed_split) if gain and gain.fixed_split else "",
            "p": "" if e.p is None else p_text(e.p),
            "kind": kind_of(e),
            "costs": [cost_text(e, name) for name in COSTS],
        }
        last = e.budget


def _page_runs(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for r in rows:
        if r.mode != AUTO:
            yield {
                "name": ", ".join(filter(None, [name_of(r.initialization, r.mode), r.setting])),
                "labels": number_of_labels(budget_of(r)),
                "pretrain_seed": "" if r.pretrain_seed is None else r.pretrain_seed,
                "seed": r.seed,
                "test": percent(r.test_accuracy),
                "val": "" if r.val_accuracy is None else percent(r.val_accuracy),
                "seconds": f"{r.seconds:.0f}",
                "run": r.finetuned,
            }


def _reading(entries: Sequence[Entry], mode: str) -> dict[str, Any]:
    """Return what the page explains on how to read it."""
    gains = [e.gain for e in entries if e.gain]
    networks = {e.network for e in entries if e.initialization != PIXELS}
    some = max(entries, key=lambda e: (e.in_family, e.budget.labels_val))
    return {
        "heading": labels_heading(e.budget for e in entries),
        "labels": labels_text(some.budget),
        "train": some.labels_train,
        "val": some.budget.labels_val,
        "auto": mode == AUTO,
        "networks": networks_text(entries) if len(networks) > 1 else "",
        "equal_time": any(e.mode == EQUAL_TIME for e in entries),
        "costs": COSTS_TEXT if has_costs(entries) else "",
        "cost_names": list(COSTS),
        "comparisons": comparisons(entries),
        "pretrainings": max((g.pretrainings for g in gains), default=1),
        "subsets": max((g.subsets for g in gains), default=1),
        "one_subset": any(g.subsets == 1 for g in gains),
        "one_pretraining": any(
            e.gain and e.gain.pretrainings == 1 and e.initialization.split()[0] not in PUBLISHED for e in entries
        ),
        "test_images": any(g.fixed_split for g in gains),
        "assumed": f"{100 * ASSUMED_SD:g}",
    }


def _counting(rows: Sequence[Row]) -> str:
    validation = max(r.labels_val for r in rows)
    if validation:
        return (
            f"a budget counts the labels for training; all choices are made on {counted(validation, 'further label')}, "
            "the validation split"
        )
    return "a budget counts every label; all choices are made by cross-validation inside it"


def _number_of_comparisons(entries: Sequence[Entry]) -> str:
    family = [e for e in entries if e.in_family]
    tasks, budgets = len({e.initialization for e in family}), len({e.budget for e in family})
    corrected = ", corrected by Holm's method" * (len(family) > 1)
    return f"{len(family)} ({counted(tasks, 'network')}, {counted(budgets, 'label budget')}){corrected}"


def _pretrainings(rows: Sequence[Row]) -> str:
    """Return the seeds of the pretrainings of each network, in short if all have the same."""
    seeds: dict[str, set[int]] = {}
    for r in rows:
        if r.pretrain_seed is not None:
            seeds.setdefault(r.initialization, set()).add(r.pretrain_seed)
    named = {name: f"{len(own)} (seeds {_seeds(own)})" for name, own in seeds.items()}
    if len(set(named.values())) == 1:
        return f"{next(iter(named.values()))} of each network"
    return ", ".join(f"{name} {text}" for name, text in named.items()) or "none that is known"


def _seeds(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(seeds))))


def _subtitle(rows: Sequence[Row]) -> str:
    """Return data, backbone (not that of the baseline on pixels) and number of test images."""
    first, tested = next((r for r in rows if r.backbone != PIXELS), rows[0]), read_summary(Path(rows[0].evaluated))
    return f"{first.dataset}, {first.backbone}; {counted(int(tested['images']), 'test image')}"


def _precisions(rows: Sequence[Row]) -> str:
    """Return precision and memory format of the classifiers, which autotuning may have chosen differently."""
    summaries = [read_summary(Path(run)) for run in dict.fromkeys(r.finetuned for r in rows)]
    used = Counter(f"{s['precision']} {s['memory_format']}" for s in summaries)
    return ", ".join(f"{k} ({n} of {used.total()})" if len(used) > 1 else k for k, n in used.most_common())


def _facts(rows: Sequence[Row], entries: Sequence[Entry], about: dict[str, Any] | None) -> list[tuple[str, str]]:
    made = read_summary(Path(rows[0].finetuned))
    test = read_summary(Path(rows[0].evaluated))
    tuned = [r.seconds for r in rows if r.mode == TUNED]
    facts = [
        ("data", f"{made['dataset']}; fingerprints: train {made['data_fingerprint']}, test {test['data_fingerprint']}"),
        ("labels", _counting(rows)),
        ("comparisons", _number_of_comparisons(entries)),
        ("networks", networks_text(entries)),
        ("pretrainings", _pretrainings(rows)),
        ("seeds of label subsets", _seeds(r.seed for r in rows)),
        ("machine", f"{made['machine']}, {made['device']}; {_precisions(rows)}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in made["versions"].items())),
    ]
    if searched := Counter(r.setting for r in rows if r.setting and r.mode != AUTO):
        chosen = ", ".join(f"{s} ({n} of {searched.total()})" for s, n in searched.most_common())
        facts.append(("settings", f"the best for each network and label subset, also from scratch: {chosen}"))
    if tuned:
        facts.append(("finetuning", f"{counted(len(tuned), 'run')}, {np.mean(tuned):.0f} s on average"))
    if about:
        for key, name in (("published", "published weights"), ("teacher", "teacher of distill")):
            if weights := about.get(key):
                facts.append((name, f"{weights['network']}: {weights['source']}, license: {weights['license']}"))
        facts += [(f"pretraining, {n}", f"{s:.0f} s") for n, s in about["pretraining_seconds"].items()]
        facts += [("commit", str(about["git_commit"]))] if about.get("git_commit") else []
    return facts
