"""Report of a study: its page, its table and its conclusions."""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from sslrun.base.console import ERR, log
from sslrun.base.files import write_text
from sslrun.base.output import new_table, write_csv
from sslrun.base.text import counted, interval, percent
from sslrun.evaluation.intervals import MIN_VALUES
from sslrun.report import plots
from sslrun.report.html import render
from sslrun.report.plots import FROM_SCRATCH, name_of
from sslrun.runs.encoders import SCRATCH
from sslrun.runs.find import read_summary
from sslrun.study.choice import AUTO, PROBE, TUNED
from sslrun.study.results import Entry, Row, Verdict, compared, is_scratch

RESULTS = {  # texts of verdicts in tables
    "better": "better",
    "worse": "worse",
    "none": "no difference shown",
    "too few subsets": "undecided (too few label subsets)",
    "no baseline": "no baseline",
}
STYLES = {"better": "green", "worse": "red"}  # of verdicts in a terminal; a page has CSS classes of these names
NUMBERS = ("test accuracy", "± 95 % CI", "vs. scratch")  # numeric columns of the table
Maps = tuple[Mapping[str, np.ndarray], np.ndarray]


def table(entries: Sequence[Entry]) -> Table:
    """Return the comparison as a table for a terminal."""
    columns = ("labels", "network", *NUMBERS, "result")
    caption = "95 % CI over label subsets; vs. scratch: paired difference in points (95 % CI)"
    out = new_table(columns, {"labels", *NUMBERS}, caption=caption, caption_justify="left")
    last = None
    for e in entries:
        if last is not None and e.labels != last:
            out.add_section()
        half = (e.accuracy.high - e.accuracy.low) / 2
        style = STYLES.get(e.verdict.kind, "") if e.verdict else ""
        out.add_row(
            "" if e.labels == last else str(e.labels),
            Text(_name(e)),
            percent(e.accuracy.mean),
            f"{100 * half:.1f}" if half == half else "",
            Text(difference_text(e.verdict), style=style),
            Text(RESULTS[e.verdict.kind] if e.verdict else "", style=style),
        )
        last = e.labels
    return out


def _name(entry: Entry) -> str:
    """Return the name of a network, with the choices of `mode=auto`, most frequent first: `probe 3, scratch 2`."""
    chosen = ", ".join(f"{c} {n}" for c, n in sorted(entry.chosen.items(), key=lambda x: -x[1]))
    return name_of(entry.initialization, entry.mode) + (f" ({chosen})" if chosen else "")


def difference_text(verdict: Verdict | None) -> str:
    """Return a paired difference in points with its 95 % CI: `+6.1 (4.0 to 8.2)`; empty if there is none."""
    if verdict is None or verdict.difference is None:
        return ""
    difference = verdict.difference
    ends = f" ({interval(difference.low, difference.high)})" if difference.known else ""
    return f"{100 * difference.mean:+.1f}{ends}"


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict as part of a sentence: `better than scratch by 6.1 points (95 % CI 4.0 to 8.2)`."""
    difference = verdict.difference
    if difference is None:
        return "no network trained from scratch to compare with"
    if verdict.kind == "too few subsets":
        subsets = counted(difference.n, "label subset")
        return f"undecided: {subsets}, too few for a confidence interval; set seeds={MIN_VALUES} or more"
    if verdict.kind == "none":
        ends = interval(difference.low, difference.high)
        return f"no difference shown: {100 * difference.mean:+.1f} points (95 % CI {ends})"
    low, high = sorted(abs(x) for x in (difference.low, difference.high))
    points = f"{abs(100 * difference.mean):.1f} points (95 % CI {interval(low, high)})"
    return f"{verdict.kind} than scratch by {points}"


def conclusions(entries: Sequence[Entry], mode: str) -> list[str]:
    """Return a sentence for each pretraining and label budget.

    Args:
        entries: as returned by `compared`.
        mode: of the classifiers that are compared with scratch.
    """
    return [_conclusion(e, e.verdict, entries) for e in _judged(entries, mode) if e.verdict]


def _judged(entries: Sequence[Entry], mode: str) -> list[Entry]:
    return [e for e in entries if e.initialization != SCRATCH and e.mode == mode]


def _conclusion(e: Entry, verdict: Verdict, entries: Sequence[Entry]) -> str:
    sentence = f"{e.initialization}, {counted(e.labels, 'label')}: {verdict_text(verdict)}"
    if e.chosen == {SCRATCH: e.accuracy.n}:
        sentence += " (auto chose scratch on every label subset)"
    elif verdict.kind == "better" and e.labels_needed:
        number, sign = e.labels_needed
        more = {"=": "about ", ">": "more than ", "<": "fewer than "}[sign]
        sentence += f"; scratch needs {more}{number:,.0f} labels for the same accuracy"
    random = [
        r.accuracy.mean
        for r in entries
        if (r.initialization, r.mode, r.label_budget) == (SCRATCH, PROBE, e.label_budget)
    ]
    if random and random[0] >= e.accuracy.mean:
        sentence += f"; but a linear probe of the randomly initialized network reaches {percent(random[0])}"
    return sentence


def publish(
    directory: Path, rows: Sequence[Row], mode: str, maps: Maps | None, about: dict[str, Any] | None
) -> list[str]:
    """Write `results.csv`, `report.html` and `figures/` to a directory; print the table and the conclusions.

    Args:
        directory: of the report.
        rows: evaluated classifiers.
        mode: of the classifiers that are compared with scratch.
        maps: two-dimensional embeddings by name of the network, and their labels.
        about: the summary of the study, if there is one.

    Returns:
        A sentence for each pretraining and label budget.
    """
    write_csv(directory / "results.csv", [asdict(r) for r in rows])
    entries = compared(rows)
    sentences = conclusions(entries, mode)
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
    first, names, judged = rows[0], _class_names(rows[0]), _judged(entries, mode)
    return render(
        "study.html.jinja",
        title="Pretraining compared with training from scratch",
        subtitle=f"{first.dataset}, {first.backbone}; {counted(_tested(rows), 'test image')}",
        conclusions=[
            {"text": text, "verdict": _css_class(e)} for text, e in zip(conclusions(entries, mode), judged, strict=True)
        ],
        figures=[*_figures(folder, rows, entries, judged, mode, names), *_embeddings(folder, maps, names)],
        rows=list(_page_rows(entries)),
        runs=list(_page_runs(rows)),
        subsets=max(e.accuracy.n for e in entries),
        enough=any(e.accuracy.known for e in entries),
        auto=mode == AUTO,
        facts=_facts(rows, about),
        advice=about["advice"] if about else [],
        command=about["command"] if about else "",
        config=OmegaConf.to_yaml(about["config"]) if about else "",
    )


def _figures(
    folder: Path, rows: Sequence[Row], entries: Sequence[Entry], judged: Sequence[Entry], mode: str, names: list[str]
) -> Iterator[dict[str, Any]]:
    svg = plots.label_efficiency(entries, lambda e: e.initialization == SCRATCH or e.mode == mode, folder)
    n = max(e.accuracy.n for e in entries)
    text = (
        f"Mean test accuracy; error bars: 95 % CI over {n} label subsets."
        if n >= MIN_VALUES
        else f"Mean test accuracy over {counted(n, 'label subset')}, too few for a 95 % CI."
    )
    yield _figure("label_efficiency", "Label efficiency", svg, text)
    if any(r.mode == TUNED for r in rows):
        text = (
            "Validation accuracy during finetuning, mean over label subsets. The best checkpoint of each run is kept."
        )
        yield _figure("learning_curves", "Learning curves", plots.learning_curves(rows, folder), text)
    if judged:
        fewest = min(e.labels for e in judged)
        base = [r for r in rows if is_scratch(r) and r.labels == fewest]
        initializations = dict.fromkeys(e.initialization for e in judged)
        own = {
            name_of(s, mode): [r for r in rows if (r.initialization, r.mode, r.labels) == (s, mode, fewest)]
            for s in initializations
        }
        yield from _by_class(folder, base, own, names, fewest)


def _by_class(
    folder: Path, base: Sequence[Row], own: Mapping[str, Sequence[Row]], names: list[str], labels: int
) -> Iterator[dict[str, Any]]:
    """Yield the per-class figures and the most confident errors at one number of labels.

    Args:
        base: the classifiers trained from scratch.
        own: the classifiers that are compared with them, by name of the network.
    """
    title = counted(labels, "label")
    groups = {name: members for name, members in {FROM_SCRATCH: base, **own}.items() if members}
    counts = {name: [_report(r)["confusion_matrix"] for r in members] for name, members in groups.items()}
    svg = plots.confusion_matrices({name: np.sum(c, axis=0) for name, c in counts.items()}, names, title, folder)
    text = "Rows: true classes, columns: predicted classes; sum over all label subsets, normalized by true class."
    yield _figure("confusion_matrices", "Confusion matrix, normalized by true class", svg, text)
    gains = {name: _recalls(members, base) for name, members in own.items()}
    gains = {name: differences for name, differences in gains.items() if len(differences)}
    if gains:
        svg = plots.class_gains(gains, names, title, folder)
        text = "Recall minus that of training from scratch on the same labels."
        if all(len(differences) >= MIN_VALUES for differences in gains.values()):
            text += " Error bars: 95 % CI over label subsets."
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
    """Return differences in recall on the label subsets of both, `subsets x classes`; NaN without test images."""
    scratch = {(r.subset, r.seed): r for r in base}
    pairs = [(r, scratch[r.subset, r.seed]) for r in rows if (r.subset, r.seed) in scratch]
    return np.array([_recall(r) - _recall(base) for r, base in pairs])


def _recall(row: Row) -> np.ndarray:
    return np.array([c["recall"] for c in _report(row)["classes"]], dtype=float)


def _mistakes(name: str, members: Sequence[Row]) -> list[dict[str, str]]:
    sheet = Path(members[0].evaluated) / "figures" / "mistakes.png"
    if not sheet.is_file():
        log.info("No figure of errors for %s: it makes no errors, or was evaluated by an older version.", name)
        return []
    return [{"heading": name, "data": base64.b64encode(sheet.read_bytes()).decode()}]


def _css_class(entry: Entry) -> str:
    return entry.verdict.kind if entry.verdict and entry.verdict.kind in STYLES else ""


def _page_rows(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    last = None
    for e in entries:
        half = 50 * (e.accuracy.high - e.accuracy.low)
        needed = ""
        if e.labels_needed and e.initialization != SCRATCH:
            number, sign = e.labels_needed
            needed = f"{ {'=': '', '<': 'fewer than ', '>': 'more than '}[sign] }{number:,.0f}"
        yield {
            "first": last is not None and e.labels != last,
            "labels": f"{e.labels:,}" if e.labels != last else "",
            "name": _name(e),
            "accuracy": percent(e.accuracy.mean) + (f" ± {half:.1f}" if half == half else ""),
            "difference": difference_text(e.verdict),
            "verdict": _css_class(e),
            "result": RESULTS[e.verdict.kind] if e.verdict else "",
            "needed": needed,
        }
        last = e.labels


def _page_runs(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for r in rows:
        if r.mode != AUTO:
            yield {
                "name": ", ".join(filter(None, [name_of(r.initialization, r.mode), r.setting])),
                "labels": f"{r.labels:,}",
                "seed": r.seed,
                "test": percent(r.test_accuracy),
                "val": "" if r.val_accuracy is None else percent(r.val_accuracy),
                "cv": "" if (h := r.cv_accuracy) is None else percent(h),
                "seconds": f"{r.seconds:.0f}",
                "run": r.finetuned,
            }


def _cross_validated(rows: Sequence[Row]) -> bool:
    return any(r.cv_accuracy is not None for r in rows)


def _selection(rows: Sequence[Row], validation: int) -> str:
    if _cross_validated(rows):
        return (
            "classifiers and settings are chosen by k-fold cross-validation on the labeled images, as there are only "
            f"{counted(validation, 'validation image')}; the best checkpoint of each training is chosen on these"
        )
    return f"all choices are made on {counted(validation, 'validation image')}"


def _tested(rows: Sequence[Row]) -> int:
    return int(read_summary(Path(rows[0].evaluated))["images"])


def _precisions(rows: Sequence[Row]) -> str:
    """Return precision and memory format of the classifiers, which autotuning may have chosen differently."""
    summaries = [read_summary(Path(run)) for run in dict.fromkeys(r.finetuned for r in rows)]
    used = Counter(f"{s['precision']} {s['memory_format']}" for s in summaries)
    return ", ".join(f"{k} ({n} of {used.total()})" if len(used) > 1 else k for k, n in used.most_common())


def _facts(rows: Sequence[Row], about: dict[str, Any] | None) -> list[tuple[str, str]]:
    made = read_summary(Path(rows[0].finetuned))
    test = read_summary(Path(rows[0].evaluated))
    tuned = [r.seconds for r in rows if r.mode == TUNED]
    facts = [
        ("data", f"{made['dataset']}; fingerprints: train {made['data_fingerprint']}, test {test['data_fingerprint']}"),
        ("model selection", _selection(rows, made["labels"]["validation"])),
        (
            "seeds",
            ", ".join(map(str, sorted({r.seed for r in rows}))) + f"; validation split: {made['seeds']['split']}",
        ),
        ("machine", f"{made['machine']}, {made['device']}; {_precisions(rows)}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in made["versions"].items())),
    ]
    if searched := Counter(r.setting for r in rows if r.setting and r.mode != AUTO):
        chosen = ", ".join(f"{s} ({n} of {searched.total()})" for s, n in searched.most_common())
        judge = "in cross-validation" if _cross_validated(rows) else "on validation"
        facts.append(("settings", f"the best {judge} for each network, also from scratch: {chosen}"))
    if tuned:
        facts.append(("finetuning", f"{counted(len(tuned), 'run')}, {np.mean(tuned):.0f} s on average"))
    if about:
        facts += [(f"pretraining, {n}", f"{s:.0f} s") for n, s in about["pretraining_seconds"].items()]
        facts += [("commit", str(about["git_commit"]))] if about.get("git_commit") else []
    return facts
