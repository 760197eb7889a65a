"""Results of a sweep: `sweep.csv` and a table."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sslrun.base.console import ERR, log
from sslrun.base.errors import UserError
from sslrun.base.output import new_table, write_csv
from sslrun.base.text import percent, words
from sslrun.run.find import job_order, labels_text, read_summary, score

LABEL_BUDGETS = ("labels", "labels_per_class", "label_fraction")  # keys that set a label budget


def sweep_rows(directory: Path) -> list[dict[str, Any]]:
    """Return one row per job of a sweep, in order: varied settings, status and score."""
    rows = []
    jobs = {p.parent for name in (".hydra", "summary.json") for p in directory.glob(f"*/{name}")}
    for job in sorted(jobs, key=job_order):
        if not (job / "summary.json").exists():  # it failed before the run started
            rows.append({"job": job.name, "run": str(job), "status": "failed", "score": None})
            continue
        try:
            summary = read_summary(job)
        except UserError as error:
            log.error("%s", error)
            rows.append({"job": job.name, "run": str(job), "status": "failed", "score": None})
            continue
        overrides = dict(o.split("=", 1) for o in summary.get("of_overrides") or summary["overrides"] if "=" in o)
        row: dict[str, Any] = {"job": job.name, "run": str(job), "status": summary["status"]}
        row |= {k: summary.get(k) for k in ("of_run", "dataset", "backbone", "pretext", "init", "source", "mode")}
        row |= {k: summary.get(k) for k in ("label_budget", "labels_total", "labels_train", "labels_val")}
        typed = next((f"{k}={overrides[k]}" for k in LABEL_BUDGETS if k in overrides), None)
        row["label_budget"] = row["label_budget"] or typed  # of a job that failed before it was counted
        row |= {f"{k}_seed": v for k, v in (summary.get("seeds") or {}).items()}
        row |= {f"override {k}": v for k, v in overrides.items() if k not in (*row, "seed")}
        row |= {k: v for k, v in summary.items() if "/" in k}
        named = score(summary)
        row |= {"score_name": named[0], "score": named[1]} if named else {"score_name": None, "score": None}
        rows.append(row)
    return rows


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return mean and SD of the score over seeds, one row per combination of the other settings."""
    ignored = {"job", "run", "of_run", "status", "score", "labels_total", "labels_train", "labels_val"}
    ignored |= {f"override {k}" for k in LABEL_BUDGETS}  # redundant with `label_budget`
    sources: dict[str, set[str]] = {}
    for r in rows:
        sources.setdefault(str(r.get("init")), set()).add(str(r.get("source")))
    if all(len(s) == 1 for s in sources.values()):
        ignored.add("source")  # redundant with `init`
    done = [r for r in rows if r["status"] == "finished"] or rows
    columns = [k for k in dict.fromkeys(k for r in rows for k in r) if k not in ignored and "/" not in k]
    columns = [k for k in columns if not k.endswith("_seed")]
    keys = [k for k in columns if k in ("label_budget", "init") or len({str(r.get(k)) for r in done}) > 1]
    keys = [k for k in keys if any(r.get(k) is not None for r in rows) and k != "score_name"]
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in rows:
        grouped.setdefault(tuple(_cell(r.get(k)) for k in keys), []).append(r)
    names = {r["score_name"] for r in rows if r.get("score_name")}
    varied = [k.removeprefix("override ").replace("_", " ") for k in keys]
    numbers = ("labels", ", ".join(words(n) for n in sorted(names)) or "score", "SD", "runs")
    table = new_table((*varied, *numbers), {*numbers})
    for key, members in grouped.items():
        finished = [r for r in members if r["status"] == "finished"]
        scores = [r["score"] for r in finished if r["score"] is not None]
        labels = labels_text(members[0]) or ""
        without = "-" if finished else "failed"  # with one label per class there is no estimate of the accuracy
        mean = percent(statistics.mean(scores)) if scores else without
        deviation = f"{100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        failed = len(members) - len(finished)
        table.add_row(
            *map(Text, key), labels, mean, deviation, f"{len(finished)}" + f", {failed} failed" * (failed > 0)
        )
    return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def finish_sweep(directory: Path) -> int:
    """Print the table of a sweep, write `sweep.csv` to its directory, and return the number of failed jobs."""
    rows = sweep_rows(directory)
    finished = [r for r in rows if r["status"] == "finished"]
    if not rows or (finished and all(r["score"] is None for r in finished)):  # the stage has no score
        return len(rows) - len(finished)
    write_csv(directory / "sweep.csv", rows)
    ERR.print(sweep_table(rows))
    log.info("SD: standard deviation over runs, in points. All runs: %s", directory / "sweep.csv")
    return len(rows) - len(finished)
