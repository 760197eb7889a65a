"""Results of a study: rows of evaluated classifiers."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import with_article
from sslrun.config.commands import COMPARE, EVALUATE, FINETUNE, PRETRAIN
from sslrun.config.grammar import key_of
from sslrun.config.nodes import flattened
from sslrun.config.renames import COLUMNS, renamed_keys
from sslrun.evaluation.validation import score_name
from sslrun.models.backbones.stem import stem_of
from sslrun.run.encoders import IMAGENET, PIXELS, PRETRAINED, SCRATCH
from sslrun.run.find import find, job_order, read_summary, whole_seconds
from sslrun.study.inits import OF_WEIGHTS, is_continued
from sslrun.study.launch import IGNORED_KEYS
from sslrun.training.candidates import AUTO, KNN, PROBE, TUNED

EQUAL_TIME = "equal_time"  # mode of a row: trained from scratch for as long as a pretraining takes
PUBLISHED = (PRETRAINED, IMAGENET)  # names of a network with published weights; the second is an older one
WITHOUT_TASK = (SCRATCH, PIXELS, *PUBLISHED)  # initializations that no pretraining of the user has
ORDER = (AUTO, TUNED, EQUAL_TIME, PROBE, KNN)  # of the modes; a report compares the first one that it has with scratch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One evaluated classifier: a row of `results.csv`, which has these columns in this order.

    Attributes:
        initialization: `scratch`, `pretrained`, `pixels`, or the name of a pretraining.
        pretrain_seed: of the pretraining; None without one, and if its run was deleted.
        source: file of the initial weights, or `scratch`.
        mode: `finetune`, `probe`, `knn`, `auto`, or `equal_time`: trained for as long as a pretraining takes.
        labels: number of labels that influenced the classifier: those of training and of a validation split.
        label_budget: the requested label budget, `labels=60`.
        seed: of the training.
        subset: fingerprint of the names and labels of the label subset; of the pixels in older runs.
        val_accuracy: in cross-validation, corrected for the choice; on validation if there is a split.
        chosen: what was chosen inside the budget: `probe`, `finetune` or `scratch`.
        setting: the chosen setting of a search, or ''.
        balance: how classes are balanced.
        image_size: in px.
        stem: of the backbone, as built at this size; None if it has no choice of one.
        seconds: wall time of the training.
        ms_per_image: time of a prediction, see `with_costs`; None if it was not measured.
        megabytes: of the network's parameters and buffers; None likewise.
        minutes: of the pretraining, if there is one, and of all trainings from which this classifier was chosen; None
            if the pretraining was deleted.
        finetuned, evaluated: the run directories.
    """

    initialization: str
    pretrain_seed: int | None
    source: str
    mode: str
    labels: int
    labels_train: int
    labels_val: int
    label_budget: str
    seed: int
    subset: str
    test_accuracy: float
    test_f1_macro: float
    val_accuracy: float | None
    val_f1_macro: float | None
    val_loss: float | None
    chosen: str | None
    setting: str
    balance: str
    dataset: str
    backbone: str
    image_size: int
    stem: str | None
    seconds: float
    ms_per_image: float | None
    megabytes: float | None
    minutes: float | None
    finetuned: str
    evaluated: str

    def selection_score(self, name: str) -> tuple[float, float] | None:
        """Return a metric and, to break ties, the log-likelihood in cross-validation or on validation, or None.

        Args:
            name: of the metric, as returned by `score_name`.
        """
        score = self.val_accuracy if name == "val/accuracy" else self.val_f1_macro
        return None if score is None or self.val_loss is None else (score, -self.val_loss)


def row_of(evaluated: Path, initialization: str, mode: str | None = None) -> Row:
    """Return the row of one evaluated classifier.

    Args:
        evaluated: run directory of the evaluation.
        initialization: as in `Row`.
        mode: as in `Row`; that of the run by default.
    """
    test = read_summary(evaluated)
    directory = Path(test["of_run"])
    made = read_summary(directory)
    chosen, _, setting = str(made.get("chosen", "")).partition(" ")  # older runs have both in one
    pretrained = _pretraining(made)
    return Row(
        initialization=initialization,
        pretrain_seed=pretrained["config"]["seed"] if pretrained else None,
        source=str(made["source"]),
        mode=mode or made["mode"],
        labels=made["labels_total"],
        labels_train=made["labels_train"],
        labels_val=made["labels_val"],
        label_budget=made["label_budget"],
        seed=made["seeds"]["training"],
        subset=made.get("subset", made["subset_fingerprint"]),
        test_accuracy=test["test/accuracy"],
        test_f1_macro=test["test/f1_macro"],
        val_accuracy=made.get("val/accuracy"),
        val_f1_macro=made.get("val/f1_macro"),
        val_loss=made.get("val/loss"),
        chosen=chosen or None,
        setting=made.get("setting", setting),
        balance=made["config"].get("balance", "none"),
        dataset=made["dataset"],
        backbone=made["backbone"],
        image_size=made["config"]["dataset"]["image_size"],
        stem=stem_of(made["config"].get("backbone", {}), made["config"]["dataset"]["image_size"]),
        seconds=made["wall_time_seconds"],
        ms_per_image=None,
        megabytes=None,
        minutes=_minutes(made, pretrained, initialization),
        finetuned=str(directory),
        evaluated=str(evaluated),
    )


def _pretraining(made: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the summary of the pretraining of a classifier; None if there is none, or it was deleted."""
    source = Path(str(made["source"]))
    try:
        summary = read_summary(source.parent if source.suffix == ".pt" else source)
    except UserError:
        return None
    return summary if summary["stage"] == PRETRAIN else None


def _minutes(made: Mapping[str, Any], pretrained: Mapping[str, Any] | None, initialization: str) -> float | None:
    if pretrained is None and initialization not in WITHOUT_TASK and not Path(str(made["source"])).exists():
        return None
    seconds: float = made["wall_time_seconds"] + (whole_seconds(pretrained) if pretrained else 0.0)
    return seconds / 60


def score_among(rows: Sequence[Row]) -> str:
    """Return the metric by which to choose among classifiers."""
    return score_name(*(r.balance for r in rows))


def is_scratch(row: Row) -> bool:
    """Return whether a network was trained from scratch for the usual time, the baseline of all comparisons."""
    return (row.initialization, row.mode) == (SCRATCH, TUNED)


def best_classifier(rows: Sequence[Row]) -> Row | None:
    """Return the best classifier at the largest label budget by selection score; None if there is no score."""
    most = max(r.labels for r in rows)
    largest = [r for r in rows if r.mode != AUTO and r.labels == most]
    name = score_among(largest)
    scores = [(s, r) for r in largest if (s := r.selection_score(name))]
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
        return [_again(r) for r in cells if r["mode"] != AUTO]
    if stage == COMPARE:
        raise UserError(f"{path} is an unfinished study; to continue it: sslrun compare resume={path}")
    raise UserError(
        f"{path} is {with_article(stage)} run; a report needs evaluated classifiers (sslrun evaluate) or a study"
    )


def _again(cells: Mapping[str, str]) -> Row:
    """Return the row of a table again, with what was measured then."""
    row = row_of(Path(cells["evaluated"]), cells["initialization"], cells["mode"])
    ms, megabytes, minutes = (
        float(cells[k]) if cells.get(k) else None for k in ("ms_per_image", "megabytes", "minutes")
    )
    return replace(row, ms_per_image=ms, megabytes=megabytes, minutes=row.minutes if minutes is None else minutes)


def with_shared_subsets(rows: Sequence[Row]) -> list[Row]:
    """Return rows in which older runs, which know only the pixels of their subset, have that of newer runs on it."""
    pixels = [read_summary(Path(r.finetuned))["subset_fingerprint"] for r in rows]
    newer = {p: r.subset for r, p in zip(rows, pixels, strict=True) if r.subset != p}
    return [replace(r, subset=newer.get(p, r.subset)) for r, p in zip(rows, pixels, strict=True)]


def _initialization(evaluated: Path) -> str:
    made = read_summary(Path(read_summary(evaluated)["of_run"]))
    return PIXELS if made.get("backbone") == PIXELS else str(made["init"])


def disambiguated(rows: Sequence[Row]) -> list[Row]:
    """Return rows with distinct names for networks from different pretraining runs and with different settings.

    Pretrainings that differ in nothing but their seed have the same name; one whose run was deleted has a name of its
    own, since nothing is known of it, and a warning is logged. Settings that differ from those of most networks from
    scratch with as many labels are appended to the name. Several networks with published weights are named by backbone
    and image size.
    """
    sources: dict[str, dict[str, str]] = {}
    searched = {key_of(r.setting) for r in rows}
    configs = [_settings(r, searched) for r in rows]
    networks = {i: _networks(i, rows, configs) for i in PUBLISHED}
    out = []
    gone: set[str] = set()
    for r, config in zip(rows, configs, strict=True):
        made = read_summary(Path(r.finetuned))
        source = json.dumps(unseeded(p["config"]), sort_keys=True) if (p := _pretraining(made)) else r.source
        if p is None and r.source not in gone and not (r.initialization in WITHOUT_TASK or Path(r.source).exists()):
            log.warning("%s was deleted: its networks count as pretrained once, under a name of their own", r.source)
            gone.add(r.source)
        of = sources.setdefault(r.initialization, {})
        of.setdefault(source, r.initialization if not of else f"{r.initialization} {len(of) + 1}")
        initialization = r.initialization if r.initialization in WITHOUT_TASK else of[source]
        if len(several := networks.get(r.initialization, {})) > 1:
            initialization += f" {several[_inherent_settings(r, config)]}"
        base = _most_common(rows, configs, r.labels)
        differing = [k for k in {**base, **config} if base.get(k) != config.get(k) and not _inherent(k, r)]
        others = [f"{k}={config.get(k)}" for k in differing]
        out.append(replace(r, initialization=" ".join([initialization, *others])))
    return out


def unseeded(config: dict[str, Any]) -> dict[str, Any]:
    """Return a pretraining's config without what differs between seeds and machines."""
    return {k: v for k, v in flattened(config).items() if k not in ("seed", "resume") and not k.startswith("device.")}


def _networks(initialization: str, rows: Sequence[Row], configs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return names of the networks with published weights by their settings as JSON; equal names are numbered."""
    out: dict[str, str] = {}
    for r, config in zip(rows, configs, strict=True):
        if r.initialization == initialization and (own := _inherent_settings(r, config)) not in out:
            name = f"{r.backbone} at {r.image_size} px"
            same = sum(n == name or n.startswith(f"{name}, ") for n in out.values())
            out[own] = f"{name}, {same + 1}" if same else name
    return out


def _inherent_settings(row: Row, config: Mapping[str, Any]) -> str:
    """Return the settings of a classifier that belong to its published network, as JSON."""
    own = {k: v for k, v in config.items() if _inherent(k, row) and v is not None}
    return json.dumps([row.backbone, row.image_size, own], sort_keys=True)


def _most_common(rows: Sequence[Row], configs: Sequence[dict[str, Any]], labels: int) -> dict[str, Any]:
    """Return the most common settings, if possible of networks from scratch with this number of labels."""
    every = list(zip(configs, rows, strict=True))
    here = [(c, r) for c, r in every if r.labels == labels]
    fits = [(c, r) for c, r in here if r.initialization == SCRATCH] or [
        (c, r) for c, r in every if r.initialization == SCRATCH
    ]
    common = Counter(json.dumps(c, sort_keys=True) for c, _ in fits or here)
    base: dict[str, Any] = json.loads(common.most_common(1)[0][0])
    return base


def _inherent(key: str, row: Row) -> bool:
    """Return whether a setting differs from that of other networks because of what the network is."""
    if row.initialization == PIXELS:
        return key.startswith("backbone.") or key == "balance"
    if row.initialization in PUBLISHED:
        return key.startswith(("backbone.", *OF_WEIGHTS))
    if is_continued(row.initialization):
        return key in OF_WEIGHTS
    return row.mode == EQUAL_TIME and key in ("train.steps", "train.epochs")


def _settings(row: Row, searched: set[str]) -> dict[str, Any]:
    """Return the settings that distinguish a classifier from others of the same name and label budget.

    Args:
        row: the classifier.
        searched: keys that a study searched, which do not distinguish its networks.
    """
    summary = read_summary(Path(row.finetuned))
    flat = flattened(summary["config"])
    ignored = {"init", "mode", "search", "seed", "subset_seed", "fold", "resume", "labels", "label_fraction",
            "labels_per_class", "backbone.stem", *IGNORED_KEYS}  # fmt: skip
    flat["pooling"] = "auto" if "poolings" in summary else flat.get("pooling", "average")  # older runs lack the key
    if row.mode != TUNED or row.setting:
        ignored |= searched
    return {k: v for k, v in flat.items() if k not in ignored and not k.startswith("device.")}
