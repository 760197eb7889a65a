"""A study: its page, its table and its sentences."""

import base64
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf
from rich import box
from rich.table import Table
from rich.text import Text

from sslrun.base.console import ERR, log
from sslrun.base.files import write_text
from sslrun.base.output import write_csv
from sslrun.evaluation.intervals import Interval
from sslrun.report import plots
from sslrun.report.html import rendered
from sslrun.runs.find import read_summary
from sslrun.study import results
from sslrun.study.results import Row


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


Entry = dict[str, Any]


def publish(
    directory: Path,
    rows: Sequence[Row],
    mode: str,
    places: tuple[Mapping[str, np.ndarray], np.ndarray] | None,
    about: dict[str, Any] | None,
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
    write_csv(directory / "results.csv", rows)
    entries = results.compared(rows)
    conclusions = results.conclusions(entries, mode)
    _write(directory, rows, entries, conclusions, mode, places, about)
    ERR.print(table(entries))
    for sentence in conclusions:
        ERR.print(sentence, markup=False)
    ERR.print(f"The report: {directory / 'report.html'}", markup=False)
    return conclusions


def _write(
    directory: Path,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    conclusions: Sequence[str],
    mode: str,
    places: tuple[Mapping[str, np.ndarray], np.ndarray] | None,
    about: dict[str, Any] | None,
) -> None:
    names = _class_names(rows[0])
    judged = [e for e in entries if e["mode"] == mode and e["start"] != "scratch"]
    figures = [*_figures(directory / "figures", rows, entries, judged, mode, names)]
    if places:
        figures.append(
            {
                "name": "embeddings",
                "heading": "What the networks see, before and after",
                "pictures": [],
                "svg": Markup(plots.maps(*places, names, directory / "figures")),
                "caption": f"Features of {len(places[1])} pictures that no network was trained on with labels, in two "
                "dimensions (t-SNE). Neighbours are alike; distances between groups mean little.",
            }
        )
    subsets = max(e["accuracy"].n for e in entries)
    first = rows[0]
    text = rendered(
        "study.html.jinja",
        title="Does pretraining help?",
        subtitle=f"{first['dataset']}, {first['backbone']}; tested on {_tested(rows)} pictures",
        conclusions=conclusions,
        figures=figures,
        rows=list(_table(entries)),
        runs=list(_runs(rows)),
        subsets=subsets,
        auto=mode == "auto",
        facts=_facts(rows, about),
        advice=about["advice"] if about else [],
        command=about["command"] if about else "",
        config=OmegaConf.to_yaml(about["config"]) if about else "",
    )
    write_text(directory / "report.html", text)


def _figures(
    folder: Path, rows: Sequence[Row], entries: Sequence[Entry], judged: Sequence[Entry], mode: str, names: list[str]
) -> list[dict[str, Any]]:
    starts = list(dict.fromkeys(e["start"] for e in judged))
    fewest = min((e["labels"] for e in judged), default=0)
    out = [
        _figure(
            "label_efficiency",
            "Accuracy over the number of labels",
            plots.efficiency(entries, lambda e: e["start"] == "scratch" or e["mode"] == mode, folder),
            "Test accuracy and 95 % intervals over label subsets.",
        )
    ]
    if any(r["mode"] == "finetune" for r in rows):
        text = "Accuracy on validation while finetuning, means over label subsets. The best state of each run is kept."
        out.append(_figure("learning_curves", "Learning curves", plots.learning_curves(rows, folder), text))
    if not judged:
        return out
    of = {s: [r for r in rows if (r["start"], r["mode"], r["labels"]) == (s, mode, fewest)] for s in starts}
    base = [r for r in rows if (r["start"], r["mode"], r["labels"]) == ("scratch", "finetune", fewest)]
    groups = {**({results.SCRATCH: base} if base else {}), **{results.name_of(s, mode): m for s, m in of.items()}}
    groups = {name: members for name, members in groups.items() if members}
    found = {name: [_report(r) for r in members] for name, members in groups.items()}
    matrices = {name: np.sum([f["confusion_matrix"] for f in reports], axis=0) for name, reports in found.items()}
    title = f"{fewest} labels"
    svg = plots.confusions(matrices, names, title, folder)
    text = "Rows are true classes, columns what was said; all label subsets together."
    out.append(_figure("confusion_matrices", "What is taken for what", svg, text))
    gains = {results.name_of(s, mode): _recalls(of[s], base) for s in starts}
    gains = {name: differences for name, differences in gains.items() if len(differences)}
    if gains:
        svg = plots.class_gains(gains, names, title, folder)
        text = "How much more of each class is recognised than from scratch on the same labels, with 95 % intervals."
        out.append(_figure("class_gains", "Gain by class", svg, text))
    out.append(
        {
            "name": "mistakes",
            "heading": "The most confident mistakes",
            "svg": "",
            "caption": f"Wrong, and most sure of it; one label subset of {fewest} labels. Are these labelled right?",
            "pictures": [p for name, members in groups.items() for p in _mistakes(name, members)],
        }
    )
    return out


def _figure(name: str, heading: str, svg: str, caption: str) -> dict[str, Any]:
    return {"name": name, "heading": heading, "svg": Markup(svg), "caption": caption, "pictures": []}


def _report(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(row["evaluated"]) / "report.json").read_text(encoding="utf-8"))
    return found


def _class_names(row: Row) -> list[str]:
    return [c["class"] for c in _report(row)["classes"]]


def _recalls(rows: Sequence[Row], base: Sequence[Row]) -> np.ndarray:
    """Return the differences of recall to scratch, `subsets x classes`, on the subsets that both have."""
    scratch = {(r["subset"], r["seed"]): r for r in base}
    pairs = [(r, scratch[r["subset"], r["seed"]]) for r in rows if (r["subset"], r["seed"]) in scratch]
    recall: Callable[[Row], np.ndarray] = lambda r: np.array([c["recall"] for c in _report(r)["classes"]])  # noqa: E731
    return np.array([recall(a) - recall(b) for a, b in pairs])


def _mistakes(name: str, members: Sequence[Row]) -> list[dict[str, str]]:
    sheet = Path(members[0]["evaluated"]) / "figures" / "mistakes.png"
    if not sheet.is_file():
        log.info("%s has no picture of mistakes: it makes none, or was evaluated by an older version", name)
        return []
    return [{"heading": name, "data": base64.b64encode(sheet.read_bytes()).decode()}]


def _table(entries: Sequence[Entry]) -> Any:
    last = None
    for e in entries:
        half = 50 * (e["accuracy"].high - e["accuracy"].low)
        needed = ""
        if e["labels_needed"] and e["start"] != "scratch":
            number, sign = e["labels_needed"]
            needed = f"{ {'=': '', '<': 'fewer than ', '>': 'more than '}[sign] }{number:,.0f}"
        yield {
            "first": last is not None and e["labels"] != last,
            "labels": f"{e['labels']:,}" if e["labels"] != last else "",
            "name": e["name"] + (f" ({said_chosen(e['chosen'])})" if e["chosen"] else ""),
            "accuracy": f"{100 * e['accuracy'].mean:.1f}" + (f" ± {half:.1f}" if half == half else ""),
            "difference": said_difference(e["difference"]),
            "verdict": e["verdict"].split()[0] if e["verdict"] else "",
            "said": e["verdict"].split(" by ")[0],
            "needed": needed,
        }
        last = e["labels"]


def _runs(rows: Sequence[Row]) -> Any:
    for r in rows:
        if r["mode"] != "auto":
            yield {
                "name": ", ".join(filter(None, [results.name_of(r["start"], r["mode"]), r["setting"]])),
                "labels": f"{r['labels']:,}",
                "seed": r["seed"],
                "test": f"{100 * r['test_accuracy']:.1f}",
                "val": "" if r["val_accuracy"] is None else f"{100 * r['val_accuracy']:.1f}",
                "held_out": "" if (h := r.get("held_out_accuracy")) is None else f"{100 * h:.1f}",
                "seconds": f"{r['seconds']:.0f}",
                "run": r["finetuned"],
            }


def _held_out(rows: Sequence[Row]) -> bool:
    return any(r.get("held_out_accuracy") is not None for r in rows)


def _chosen_on(rows: Sequence[Row], validation: int) -> str:
    if _held_out(rows):
        return (
            f"{validation} more are validation, which are few: what is best is chosen by parts of the labels, held out "
            "in turns; the best state of a training is that on validation"
        )
    return f"{validation} more labels are validation, on which every choice is made"


def _tested(rows: Sequence[Row]) -> int:
    return int(read_summary(Path(rows[0]["evaluated"]))["images"])


def _precisions(rows: Sequence[Row]) -> str:
    """Return in what the classifiers were trained: each in the mode that was measured to be the fastest."""
    summaries = [read_summary(Path(run)) for run in dict.fromkeys(r["finetuned"] for r in rows)]
    used = Counter(f"{s['precision']} {s['memory_format']}" for s in summaries)
    return ", ".join(f"{mode} ({n} of {used.total()})" if len(used) > 1 else mode for mode, n in used.most_common())


def _facts(rows: Sequence[Row], about: dict[str, Any] | None) -> list[tuple[str, str]]:
    made = read_summary(Path(rows[0]["finetuned"]))
    test = read_summary(Path(rows[0]["evaluated"]))
    tuned = [r["seconds"] for r in rows if r["mode"] == "finetune"]
    facts = [
        ("data", f"{made['dataset']}; training {made['data_fingerprint']}, test {test['data_fingerprint']}"),
        ("labels", _chosen_on(rows, made["labels"]["validation"])),
        ("seeds", ", ".join(map(str, sorted({r["seed"] for r in rows}))) + f"; split {made['seeds']['split']}"),
        ("machine", f"{made['machine']}, {made['device']}; {_precisions(rows)}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in made["versions"].items())),
    ]
    if searched := Counter(r["setting"] for r in rows if r["setting"] and r["mode"] != "auto"):
        chosen = ", ".join(f"{s} ({n} of {searched.total()})" for s, n in searched.most_common())
        judge = "labels held out in turns" if _held_out(rows) else "validation"
        facts.append(("searched", f"for every trained network, from scratch, too, the best on {judge}: {chosen}"))
    if tuned:
        facts.append(("finetuning", f"{np.mean(tuned):.0f} s each, {len(tuned)} runs"))
    if about:
        facts += [(f"pretraining, {n}", f"{s:.0f} s") for n, s in about["pretraining_seconds"].items()]
        facts.append(("commit", str(about.get("git_commit"))))
    return facts
