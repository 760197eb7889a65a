"""`sslrun report`: the page of a comparison for runs and sweeps that are there already."""

import csv
import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslrun.errors import UserError
from sslrun.overrides import key_of
from sslrun.report import page
from sslrun.run import OUTPUTS, find, flattened, job_order, read_summary
from sslrun.study import results
from sslrun.study.parts import OF_NO_WEIGHT
from sslrun.study.results import Row


def report_on(paths: Sequence[str], outputs: Path = OUTPUTS) -> Path:
    """Write a report on classifiers, named by their evaluations, by their own runs, by sweeps of either or by studies.

    Returns:
        The page's path, in a folder of its own.

    Raises:
        UserError: a run is none of these or was not evaluated, or they were tested on different pictures.
    """
    rows: dict[str, Row] = {}
    for path in paths:
        for row in _rows(Path(path)):
            rows.setdefault(row["evaluated"], row)
    found = _named_apart(list(rows.values()))
    if not found:
        raise UserError(f"{' '.join(paths)}: no finished run there")
    tests = {read_summary(Path(r["evaluated"]))["data_fingerprint"] for r in found}
    if len(tests) > 1:
        raise UserError(
            f"these classifiers were tested on {len(tests)} different sets of pictures: compare one at a time"
        )
    modes = {r["mode"] for r in found}
    mode = next(m for m in results.ORDER if m in modes)
    pretrained = [r for r in found if r["start"] != "scratch"]
    if mode == "finetune" and pretrained:
        modes = {r["mode"] for r in pretrained}
        both = {"finetune", "probe"} <= modes
        chosen = results.with_auto(found, dict.fromkeys(r["start"] for r in pretrained)) if both else []
        found += chosen
        mode = "auto" if chosen else next(m for m in results.ORDER if m in modes)
    directory = outputs / "report" / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    directory.mkdir(parents=True)
    page.publish(directory, found, mode, None, None)
    return directory / "report.html"


def _rows(path: Path) -> list[Row]:
    """Return the evaluated classifiers that a path stands for."""
    if not (path / "summary.json").is_file():
        jobs = sorted((p.parent for p in path.glob("*/summary.json")), key=job_order)
        if not jobs:
            read_summary(path)  # which says what is wrong
        return [row for job in jobs if read_summary(job)["status"] == "finished" for row in _rows(job)]
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


def _named_apart(rows: list[Row]) -> list[Row]:
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
