"""A study: its page, its table and its sentences."""

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from sslrun.base.text import interval, percent
from sslrun.report import plots
from sslrun.report.html import rendered
from sslrun.report.plots import FROM_SCRATCH, name_of
from sslrun.runs.encoders import SCRATCH
from sslrun.runs.find import read_summary
from sslrun.study.choice import AUTO, PROBE, TUNED
from sslrun.study.results import Entry, Row, Verdict, compared, is_scratch

SHOWS = {  # what a verdict is called; a difference is followed by its size
    "helps": "helps",
    "hurts": "hurts",
    "none": "no difference shown",
    "one subset": "one label subset shows nothing: more seeds are needed",
    "nothing to compare with": "nothing to compare with",
}
STYLES = {"helps": "green", "hurts": "red"}  # of verdicts, in a terminal; classes of the same names in a page
NUMBERS = ("test accuracy", "±", "against scratch")  # columns of the table
Maps = tuple[Mapping[str, np.ndarray], np.ndarray]


def table(entries: Sequence[Entry]) -> Table:
    """Return the comparison for people."""
    columns, caption = ("labels", "network", *NUMBERS, ""), "± and brackets: 95 % intervals over label subsets"
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
            Text(SHOWS[e.verdict.kind] if e.verdict else "", style=style),
        )
        last = e.labels
    return out


def _name(entry: Entry) -> str:
    """Return how a network is called, with what was chosen, most often first: `probe 3, scratch 2`."""
    chosen = ", ".join(f"{c} {n}" for c, n in sorted(entry.chosen.items(), key=lambda x: -x[1]))
    return name_of(entry.initialization, entry.mode) + (f" ({chosen})" if chosen else "")


def difference_text(verdict: Verdict | None) -> str:
    """Return a paired difference in points: `+6.1 (4.0 to 8.2)`; nothing where there is none."""
    if verdict is None or verdict.difference is None:
        return ""
    difference = verdict.difference
    ends = f" ({interval(difference.low, difference.high)})" if difference.n > 1 else ""
    return f"{100 * difference.mean:+.1f}{ends}"


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict in words: `helps by 6.1 points (4.0 to 8.2)`."""
    word, difference = SHOWS[verdict.kind], verdict.difference
    if verdict.kind not in ("helps", "hurts") or difference is None:
        return word
    ends = sorted(abs(100 * x) for x in (difference.low, difference.high))
    return f"{word} by {abs(100 * difference.mean):.1f} points ({ends[0]:.1f} to {ends[1]:.1f})"


def conclusions(entries: Sequence[Entry], mode: str) -> list[str]:
    """Return a sentence for every pretraining and number of labels.

    Args:
        mode: of the classifiers that are judged.
    """
    return [_conclusion(e, e.verdict, entries) for e in _judged(entries, mode) if e.verdict]


def _judged(entries: Sequence[Entry], mode: str) -> list[Entry]:
    return [e for e in entries if e.initialization != SCRATCH and e.mode == mode]


def _conclusion(e: Entry, verdict: Verdict, entries: Sequence[Entry]) -> str:
    sentence = f"{e.initialization}, {e.labels} labels: {verdict_text(verdict)}"
    if e.chosen == {SCRATCH: e.accuracy.n}:
        sentence += " (scratch was chosen each time)"
    elif verdict.kind == "helps" and e.labels_needed:
        number, sign = e.labels_needed
        more = {"=": "about ", ">": "more than ", "<": "fewer than "}[sign]
        sentence += f"; scratch would need {more}{number:.0f} labels for it"
    random = [
        r.accuracy.mean
        for r in entries
        if (r.initialization, r.mode, r.label_budget) == (SCRATCH, PROBE, e.label_budget)
    ]
    if random and random[0] >= e.accuracy.mean:
        sentence += f"; but a probe of the untrained network reaches {percent(random[0])}"
    return sentence


def publish(
    directory: Path, rows: Sequence[Row], mode: str, places: Maps | None, about: dict[str, Any] | None
) -> list[str]:
    """Write `results.csv`, `report.html` and `figures/` into a directory; show the table and what it says.

    Args:
        rows: classifiers.
        mode: of those that are judged.
        places: embeddings in two dimensions by the network's name, and their labels.
        about: the summary of the study, if it is one.

    Returns:
        A sentence for every pretraining and number of labels.
    """
    write_csv(directory / "results.csv", [asdict(r) for r in rows])
    entries = compared(rows)
    sentences = conclusions(entries, mode)
    write_text(directory / "report.html", _page(directory / "figures", rows, entries, mode, places, about))
    ERR.print(table(entries))
    for sentence in sentences:
        ERR.print(sentence, markup=False)
    ERR.print(f"The report: {directory / 'report.html'}", markup=False)
    return sentences


def _page(
    folder: Path,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    mode: str,
    places: Maps | None,
    about: dict[str, Any] | None,
) -> str:
    first, names, judged = rows[0], _class_names(rows[0]), _judged(entries, mode)
    return rendered(
        "study.html.jinja",
        title="Does pretraining help?",
        subtitle=f"{first.dataset}, {first.backbone}; tested on {_tested(rows)} pictures",
        conclusions=[
            {"text": text, "verdict": _css_class(e)} for text, e in zip(conclusions(entries, mode), judged, strict=True)
        ],
        figures=[*_figures(folder, rows, entries, judged, mode, names), *_embeddings(folder, places, names)],
        rows=list(_page_rows(entries)),
        runs=list(_page_runs(rows)),
        subsets=max(e.accuracy.n for e in entries),
        auto=mode == AUTO,
        facts=_facts(rows, about),
        advice=about["advice"] if about else [],
        command=about["command"] if about else "",
        config=OmegaConf.to_yaml(about["config"]) if about else "",
    )


def _figures(
    folder: Path, rows: Sequence[Row], entries: Sequence[Entry], judged: Sequence[Entry], mode: str, names: list[str]
) -> Iterator[dict[str, Any]]:
    svg = plots.efficiency(entries, lambda e: e.initialization == SCRATCH or e.mode == mode, folder)
    text = "Test accuracy and 95 % intervals over label subsets."
    yield _figure("label_efficiency", "Accuracy over the number of labels", svg, text)
    if any(r.mode == TUNED for r in rows):
        text = "Accuracy on validation while finetuning, means over label subsets. The best state of each run is kept."
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
    """Yield the figures of classes and mistakes with one number of labels.

    Args:
        base: the classifiers from scratch.
        own: those that are judged, by the network's name.
    """
    title = f"{labels} labels"
    groups = {name: members for name, members in {FROM_SCRATCH: base, **own}.items() if members}
    counts = {name: [_report(r)["confusion_matrix"] for r in members] for name, members in groups.items()}
    svg = plots.confusions({name: np.sum(c, axis=0) for name, c in counts.items()}, names, title, folder)
    text = "Rows are true classes, columns what was said; all label subsets together."
    yield _figure("confusion_matrices", "What is taken for what", svg, text)
    gains = {name: _recalls(members, base) for name, members in own.items()}
    gains = {name: differences for name, differences in gains.items() if len(differences)}
    if gains:
        svg = plots.class_gains(gains, names, title, folder)
        text = "How much more of each class is recognised than from scratch on the same labels, with 95 % intervals."
        yield _figure("class_gains", "Gain by class", svg, text)
    text = f"Wrong, and most sure of it; one label subset of {labels} labels. Are these labeled right?"
    mistakes = [p for name, members in groups.items() for p in _mistakes(name, members)]
    yield {"name": "mistakes", "heading": "The most confident mistakes", "svg": "", "caption": text,
           "images": mistakes}  # fmt: skip


def _embeddings(folder: Path, places: Maps | None, names: list[str]) -> Iterator[dict[str, Any]]:
    if places:
        text = (
            f"Features of {len(places[1])} pictures that no network was trained on with labels, in two "
            "dimensions (t-SNE). Neighbours are alike; distances between groups mean little."
        )
        yield _figure("embeddings", "What the networks see, before and after", plots.maps(*places, names, folder), text)


def _figure(name: str, heading: str, svg: str, caption: str) -> dict[str, Any]:
    return {"name": name, "heading": heading, "svg": Markup(svg), "caption": caption, "images": []}


def _report(row: Row) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(row.evaluated) / "report.json").read_text(encoding="utf-8"))
    return report


def _class_names(row: Row) -> list[str]:
    return [c["class"] for c in _report(row)["classes"]]


def _recalls(rows: Sequence[Row], base: Sequence[Row]) -> np.ndarray:
    """Return the differences of recall to scratch, `subsets x classes`, on the subsets that both have."""
    scratch = {(r.subset, r.seed): r for r in base}
    pairs = [(r, scratch[r.subset, r.seed]) for r in rows if (r.subset, r.seed) in scratch]
    recall: Callable[[Row], np.ndarray] = lambda r: np.array([c["recall"] for c in _report(r)["classes"]])  # noqa: E731
    return np.array([recall(a) - recall(b) for a, b in pairs])


def _mistakes(name: str, members: Sequence[Row]) -> list[dict[str, str]]:
    sheet = Path(members[0].evaluated) / "figures" / "mistakes.png"
    if not sheet.is_file():
        log.info("%s has no picture of mistakes: it makes none, or was evaluated by an older version", name)
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
            "outcome": SHOWS[e.verdict.kind] if e.verdict else "",
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


def _chosen_on(rows: Sequence[Row], validation: int) -> str:
    if _cross_validated(rows):
        return (
            f"{validation} more are validation, which are few: what is best is chosen by parts of the labels, held out "
            "in turns; the best state of a training is that on validation"
        )
    return f"{validation} more labels are validation, on which every choice is made"


def _tested(rows: Sequence[Row]) -> int:
    return int(read_summary(Path(rows[0].evaluated))["images"])


def _precisions(rows: Sequence[Row]) -> str:
    """Return in what the classifiers were trained: each in the mode that was measured to be the fastest."""
    summaries = [read_summary(Path(run)) for run in dict.fromkeys(r.finetuned for r in rows)]
    used = Counter(f"{s['precision']} {s['memory_format']}" for s in summaries)
    return ", ".join(f"{mode} ({n} of {used.total()})" if len(used) > 1 else mode for mode, n in used.most_common())


def _facts(rows: Sequence[Row], about: dict[str, Any] | None) -> list[tuple[str, str]]:
    made = read_summary(Path(rows[0].finetuned))
    test = read_summary(Path(rows[0].evaluated))
    tuned = [r.seconds for r in rows if r.mode == TUNED]
    facts = [
        ("data", f"{made['dataset']}; training {made['data_fingerprint']}, test {test['data_fingerprint']}"),
        ("labels", _chosen_on(rows, made["labels"]["validation"])),
        ("seeds", ", ".join(map(str, sorted({r.seed for r in rows}))) + f"; split {made['seeds']['split']}"),
        ("machine", f"{made['machine']}, {made['device']}; {_precisions(rows)}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in made["versions"].items())),
    ]
    if searched := Counter(r.setting for r in rows if r.setting and r.mode != AUTO):
        chosen = ", ".join(f"{s} ({n} of {searched.total()})" for s, n in searched.most_common())
        judge = "labels held out in turns" if _cross_validated(rows) else "validation"
        facts.append(("searched", f"for every trained network, from scratch, too, the best on {judge}: {chosen}"))
    if tuned:
        facts.append(("finetuning", f"{np.mean(tuned):.0f} s each, {len(tuned)} runs"))
    if about:
        facts += [(f"pretraining, {n}", f"{s:.0f} s") for n, s in about["pretraining_seconds"].items()]
        facts += [("commit", str(about["git_commit"]))] if about.get("git_commit") else []
    return facts
