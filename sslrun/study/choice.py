"""`mode=auto`: of a linear probe, finetuning and training from scratch what is best on the labels at hand."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted, percent
from sslrun.config.build import settings_of
from sslrun.config.commands import FINETUNE
from sslrun.config.compose import compose_config
from sslrun.config.grammar import differing, key_of
from sslrun.config.nodes import plain
from sslrun.config.overrides import check_overrides
from sslrun.config.types import Node
from sslrun.runs import checkpoint
from sslrun.runs.encoders import SCRATCH
from sslrun.runs.find import BEST, LAST, read_summary
from sslrun.runs.run import Run, Stages
from sslrun.study.launch import OF_NO_WEIGHT, StudyRun, launch_all, study_run

AUTO, TUNED, PROBE, KNN = "auto", "finetune", "probe", "knn"  # values of mode=
FEW = 100  # pictures of validation; with fewer the labeled ones are held out in turns, too
FOLDS = 3
UNSEARCHED = (  # keys and groups of finetune of which all candidates have the same, or each its own
    "init", "mode", "fold", "resume", "seed", "subset_seed", "label_fraction", "labels_per_class", "search", "backbone",
    "dataset", "device", "hydra", *OF_NO_WEIGHT,
)  # fmt: skip
CANDIDATES = {TUNED: (TUNED, None), PROBE: (PROBE, None), SCRATCH: (TUNED, SCRATCH)}
OWN = ("init", "mode", "search", "fold", "resume")  # keys of finetune that differ between candidates


@dataclass(frozen=True)
class Candidate:
    """What `mode=auto` may choose: one of CANDIDATES, with a setting of `search` or ''."""

    name: str
    setting: str

    def __str__(self) -> str:
        return " ".join(filter(None, [self.name, self.setting]))


def choose(run: Run, images: Sequence[str], weights: str, validation: int, fewest: int) -> dict[str, Any]:
    """Train the candidates as runs of their own, take the best on validation into this run, and say why.

    What is trained, finetuning and scratch, is trained with each setting of `search`; from scratch there is nothing but
    that to choose among. With fewer than 100 pictures of validation, thirds of the labeled pictures (halves, if a
    class has two) are held out in turns; the chosen one is then trained on all of them.

    Args:
        run: of finetune, with everything resolved.
        images, weights: fingerprints of the pictures, and of the weights to start from.
        validation: how many pictures it has.
        fewest: labels of a class, at least; with one, nothing can be held out.

    Returns:
        The chosen one's metrics, `chosen`, `chosen_run`, and the candidates' scores.

    Raises:
        UserError: a candidate failed.
    """
    folds = folds_of(validation, fewest)
    if folds == [None] and not validation:
        raise UserError("mode=auto has nothing to choose by, without validation and with one label a class: say "
                        "mode=finetune or mode=probe")  # fmt: skip
    common = differing({k: v for k, v in run.config.items() if k not in OWN}, plain(compose_config(FINETUNE, [], None)))

    def trained(candidate: Candidate, fold: list[int] | None) -> StudyRun:
        return _study_run(run, candidate, common, fold, [*images, *([weights] if candidate.name != SCRATCH else [])])

    tried = {c: [trained(c, f) for f in folds] for c in _candidates(run.config)}
    run.keep_changes()
    launch_all([r for runs in tried.values() for r in runs], run.stages)
    scores = {c: score_of(runs) for c, runs in tried.items()}
    best = max(scores, key=lambda c: scores[c])
    accuracies = {str(c): round(s[0], 6) for c, s in scores.items()}
    how = "" if folds == [None] else "the labels, cross-validated, and "
    ranked = sorted(accuracies.items(), key=lambda a: a[1], reverse=True)
    text = ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in ranked)
    log.info("Accuracy on %s%s: %s. Chosen: %s.", how, counted(validation, "validation image"), text, best)
    final = trained(best, None)
    if final not in tried[best]:
        launch_all([final], run.stages)
    return {
        **_taken(run, final),
        "chosen": str(best),
        "chosen_run": final.directory.as_posix(),
        "candidates": accuracies,
    }


def _candidates(config: Node) -> list[Candidate]:
    names = [SCRATCH] if config["init"] == SCRATCH else [*CANDIDATES]
    return [Candidate(n, s) for n in names for s in (config["search"] if n != PROBE else []) or [""]]


def _taken(run: Run, final: StudyRun) -> dict[str, Any]:
    """Take the checkpoints and the metrics of the chosen one into a run; return the metrics."""
    for name in (LAST, BEST):
        checkpoint.save(run.directory / name, checkpoint.load(final.directory / name))
    metrics = {k: v for k, v in read_summary(final.directory).items() if k.startswith("val/")}
    run.log.scalars(0, metrics)
    return metrics


def searched(stages: Stages, search: Sequence[str], fixed: Iterable[str]) -> list[str]:
    """Return the settings to choose among.

    Args:
        stages: the commands.
        search: settings of finetune, such as `augment.probability=0.5`.
        fixed: keys that are set for all, and so are not searched.

    Raises:
        UserError: one of them is no setting, or of a key that cannot be searched; a line for every mistake.
    """
    mistakes = []
    nodes = {k for k, v in plain(compose_config(FINETUNE, [], None)).items() if isinstance(v, dict)} if search else {}
    for s in search:
        first = re.split(r"[./]", key := key_of(s))[0]
        if "=" not in s or {first, key} & {*UNSEARCHED} or key in nodes:
            hint = " (one key of it, not the whole)" if key in nodes else ""
            mistakes.append(f"search: {s}: say a setting of the training, such as augment.probability=0.5{hint}")
            continue
        try:
            check_overrides(FINETUNE, settings_of(stages.named(FINETUNE)), [s], None, False)
        except UserError as error:
            mistakes += [f"search: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return [s for s in search if key_of(s) not in fixed]


def _study_run(
    run: Run, candidate: Candidate, common: Sequence[str], fold: list[int] | None, made_from: Sequence[str]
) -> StudyRun:
    """Return the run of a candidate, without a fold of the labels or on all of them."""
    config, (mode, init) = run.config, CANDIDATES[candidate.name]
    own = {"mode": mode, "init": init or config["init"], "fold": fold}
    overrides = [*common, *differing(own, dict.fromkeys(own)), *([candidate.setting] if candidate.setting else [])]
    composed = plain(compose_config(FINETUNE, overrides, None))
    label_budget = config["labels_per_class"] or f"{config['label_fraction'] or 1.0:g}"
    title = f"{candidate.name}_{label_budget}_seed{config['seed']}" + (f"_without{fold[0]}" if fold else "")
    return study_run(run.stages, FINETUNE, title, composed, overrides, *made_from, setting=candidate.setting)


def folds_of(validation: int, fewest: int) -> list[list[int] | None]:
    """Return the folds `[k, n]` of the labeled pictures that are held out in turns, or None: validation is enough.

    Args:
        validation: how many pictures it has.
        fewest: labels of a class, at least.
    """
    n = min(FOLDS, fewest)
    return [[k, n] for k in range(n)] if validation < FEW and n > 1 else [None]


def score_of(runs: Sequence[StudyRun]) -> tuple[float, float]:
    """Return accuracy and, to break ties, log-likelihood on what was held out; means over the folds."""
    summaries = [read_summary(r.directory) for r in runs]
    return statistics.fmean(f["val/accuracy"] for f in summaries), -statistics.fmean(f["val/loss"] for f in summaries)
