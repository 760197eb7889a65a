"""Rows of the automatic choice among classifiers that a study has trained."""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sslrun.base.errors import UserError
from sslrun.evaluation.selection import Predictions, choose, corrected_accuracy
from sslrun.evaluation.validation import score_name
from sslrun.run.encoders import SCRATCH
from sslrun.run.find import read_summary
from sslrun.study.results import Row, is_scratch, score_among
from sslrun.training.candidates import AUTO, OUT_OF_FOLD, PROBE, TUNED


def with_auto(rows: Sequence[Row], initializations: Iterable[str]) -> list[Row]:
    """Return rows of `mode=auto`: the choice of probe, finetuning or scratch of `sslrun finetune mode=auto`.

    It is made with the same labels, for each pretraining and label subset: by predictions in cross-validation, or
    without those by the scores on validation, never on test. Where every class has one label there are neither, and
    the simplest is taken, the probe.

    Args:
        rows: of a study or a report.
        initializations: names of networks that are compared with scratch.
    """
    out = []
    for initialization in initializations:
        for row in rows:
            if row.initialization != initialization or row.mode != TUNED:
                continue
            same = [r for r in rows if _same_labels(r, row)]
            own = [r for r in same if (r.initialization, r.pretrain_seed) == (initialization, row.pretrain_seed)]
            probes, scratch = [r for r in own if r.mode == PROBE], [r for r in same if is_scratch(r)]
            candidates = [*probes[:1], row, *scratch[:1]]
            if chosen := _chosen(candidates):
                name = SCRATCH if is_scratch(chosen) else chosen.mode
                own_seed, source = row.pretrain_seed, row.source
                named = replace(chosen, initialization=initialization, pretrain_seed=own_seed, source=source)
                out.append(replace(named, mode=AUTO, chosen=name, minutes=_minutes(row, candidates)))
    return out


def _minutes(row: Row, candidates: Sequence[Row]) -> float | None:
    """Return the minutes of a pretraining, which are in those of `row`, and of all candidates."""
    return None if row.minutes is None else row.minutes + sum(c.seconds for c in candidates if c is not row) / 60


def _same_labels(a: Row, b: Row) -> bool:
    return (a.subset, a.seed, a.label_budget, a.labels_val) == (b.subset, b.seed, b.label_budget, b.labels_val)


@dataclass(frozen=True)
class _OutOfFold:
    """Predictions of a run's variants on images that their training did not use; see `Predictions`."""

    names: list[str]
    probabilities: np.ndarray
    labels: np.ndarray
    units: np.ndarray


def _chosen(candidates: Sequence[Row]) -> Row | None:
    """Return the best of the candidates, the simplest first; None without scores to compare."""
    name = score_among(candidates)
    predictions = [_predictions(r) for r in candidates]
    known = [p for p in predictions if p is not None]
    if len(known) == len(candidates):
        names = [c for i, p in enumerate(known) for c in [str(i)] * len(p.names)]
        probabilities, of = np.concatenate([p.probabilities for p in known]), known[0]
        every = Predictions(names, probabilities, of.labels, name != score_name("none"), of.units)
        best = candidates[int(names[choose(every)])]
        return best if best.labels_val else replace(best, val_accuracy=corrected_accuracy(every))
    scores = [r.selection_score(name) for r in candidates]
    if all(s is not None for s in scores):
        return max(zip(scores, candidates, strict=True), key=lambda s: s[0] or (0.0, 0.0))[1]
    inside = [read_summary(Path(r.finetuned))["config"].get("validation") == "inside" for r in candidates]
    return candidates[0] if all(inside) and not any(scores) else None


def _predictions(row: Row) -> _OutOfFold | None:
    path = Path(row.finetuned) / OUT_OF_FOLD
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            names, labels = [str(c) for c in file["candidates"]], file["labels"]
            units = file["units"] if "units" in file.files else np.arange(len(labels))
            return _OutOfFold(names, file["probabilities"], labels, units)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
