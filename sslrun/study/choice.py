"""`mode=auto`: choose the best of a linear probe, finetuning and training from scratch on the available labels."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted, percent
from sslrun.config.build import settings_of
from sslrun.config.commands import FINETUNE
from sslrun.config.compose import compose_config, group_choices
from sslrun.config.grammar import differing, key_of
from sslrun.config.nodes import plain
from sslrun.config.overrides import check_overrides
from sslrun.config.types import Node
from sslrun.evaluation.validation import SCORES, score_name
from sslrun.runs import checkpoint
from sslrun.runs.encoders import SCRATCH
from sslrun.runs.find import BEST, LAST, read_summary
from sslrun.runs.log import read_metrics
from sslrun.runs.run import Run, Stages
from sslrun.study.launch import IGNORED_KEYS, StudyRun, launch_all, study_run

AUTO, TUNED, PROBE, KNN = "auto", "finetune", "probe", "knn"  # values of mode=
MIN_VALIDATION = 100  # images; with fewer, the labeled images are also used, by cross-validation
FOLDS = 3  # of cross-validation
NOT_SEARCHABLE = (  # keys and groups of finetune that are the same for all candidates, or specific to each
    "init", "mode", "fold", "resume", "seed", "subset_seed", "label_fraction", "labels_per_class", "search", "backbone",
    "dataset", "device", "hydra", *IGNORED_KEYS,
)  # fmt: skip
CANDIDATES = {TUNED: (TUNED, None), PROBE: (PROBE, None), SCRATCH: (TUNED, SCRATCH)}
CANDIDATE_KEYS = ("init", "mode", "search", "fold", "resume")  # keys of finetune that differ between candidates


@dataclass(frozen=True)
class Candidate:
    """A candidate of `mode=auto`: one of CANDIDATES, with a setting of `search` or ''."""

    name: str
    setting: str

    def __str__(self) -> str:
        return " ".join(filter(None, [self.name, self.setting]))


def choose(run: Run, images: Sequence[str], weights: str, validation: int, fewest: int) -> dict[str, Any]:
    """Train all candidates as separate runs, copy the one with the best validation score, and log the scores.

    Finetuning and training from scratch are tried with each setting of `search`; with `init=scratch`, these are the
    only candidates. The score is the accuracy or, if classes are balanced, macro F1. With fewer than 100 validation
    images, candidates are compared by 3-fold cross-validation on the labeled images (2-fold, if a class has two
    labels), and the best one is then trained on all of them.

    Args:
        run: of finetune, with all settings resolved.
        images: fingerprints of the images.
        weights: fingerprint of the initial weights.
        validation: number of validation images.
        fewest: number of labels, or of groups, of the smallest class; with one, cross-validation is impossible.

    Returns:
        Metrics of the best candidate, `chosen`, `chosen_run`, and the score of all `candidates`.

    Raises:
        UserError: a candidate failed.
    """
    folds = folds_of(validation, fewest)
    if folds == [None] and not validation:
        raise UserError("mode=auto cannot choose a classifier without validation images and with one label per class, "
                        "or one of its groups; set mode=finetune or mode=probe")  # fmt: skip
    common = differing(
        {k: v for k, v in run.config.items() if k not in CANDIDATE_KEYS}, plain(compose_config(FINETUNE, [], None))
    )

    def trained(candidate: Candidate, fold: list[int] | None) -> StudyRun:
        return _study_run(run, candidate, common, fold, [*images, *([weights] if candidate.name != SCRATCH else [])])

    tried = {c: [trained(c, f) for f in folds] for c in _candidates(run.config)}
    run.keep_changes()
    launch_all([r for runs in tried.values() for r in runs], run.stages, "candidate" if folds == [None] else "fold")
    name = score_among(chain.from_iterable(tried.values()))
    scores = {c: score_of(runs, name) for c, runs in tried.items()}
    best = max(scores, key=lambda c: scores[c])
    rounded = {str(c): round(s[0], 6) for c, s in scores.items()}
    how = "" if folds == [None] else f" and labeled images in {len(folds)}-fold cross-validation"
    ranked = sorted(rounded.items(), key=lambda a: a[1], reverse=True)
    text = ", ".join(f"{c} {percent(score)}" for c, score in ranked)
    title = "Macro F1" if name == "val/f1_macro" else "Accuracy"
    log.info("%s on %s%s: %s. Chosen: %s.", title, counted(validation, "validation image"), how, text, best)
    final = trained(best, None)
    if final not in tried[best]:
        launch_all([final], run.stages, "final training")
    return {
        **_copy_result(run, final),
        "chosen": str(best),
        "chosen_run": final.directory.as_posix(),
        "candidates": rounded,
    }


def _candidates(config: Node) -> list[Candidate]:
    names = [SCRATCH] if config["init"] == SCRATCH else [*CANDIDATES]
    return [Candidate(n, s) for n in names for s in (config["search"] if n != PROBE else []) or [""]]


def _copy_result(run: Run, final: StudyRun) -> dict[str, Any]:
    """Copy the checkpoints and metrics of the best candidate to a run; return the metrics of its best state."""
    for name in (LAST, BEST):
        checkpoint.save(run.directory / name, checkpoint.load(final.directory / name))
    run.log.forget_after(-1)  # of the same run before it was resumed
    for row in read_metrics(final.directory):
        run.log.scalars(int(row["step"]), {k: v for k, v in row.items() if k != "step"})
    return {k: v for k, v in read_summary(final.directory).items() if k.startswith("val/")}


def searched(stages: Stages, search: Sequence[str], given: Sequence[str], config_dir: str | None) -> list[str]:
    """Return the settings of a search, without those that are given.

    Args:
        stages: the commands.
        search: settings of finetune, such as `augment.probability=0.5`.
        given: settings of all classifiers; keys of the search may depend on the config groups chosen here.
        config_dir: the user's own config folder.

    Raises:
        UserError: some are not valid settings, or have keys that cannot be searched; one line for each.
    """
    mistakes = []
    chosen = [o for o in group_choices(given, config_dir) if key_of(o) not in NOT_SEARCHABLE]
    nodes = {k for k, v in plain(compose_config(FINETUNE, [], None)).items() if isinstance(v, dict)} if search else {}
    for s in search:
        first = re.split(r"[./]", key := key_of(s))[0]
        if "=" not in s or {first, key} & {*NOT_SEARCHABLE} or key in nodes:
            hint = f" (one key of {key}, not the whole group)" if key in nodes else ""
            mistakes.append(f"search: {s}: expected a training setting such as augment.probability=0.5{hint}")
            continue
        try:
            check_overrides(FINETUNE, settings_of(stages.named(FINETUNE)), [*chosen, s], config_dir, False)
        except UserError as error:
            mistakes += [f"search: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    keys = {key_of(s) for s in given}
    return [s for s in search if key_of(s) not in keys]


def _study_run(
    run: Run, candidate: Candidate, common: Sequence[str], fold: list[int] | None, fingerprints: Sequence[str]
) -> StudyRun:
    """Return the run of a candidate, trained without a fold of the labels, or on all of them."""
    config, (mode, init) = run.config, CANDIDATES[candidate.name]
    own = {"mode": mode, "init": init or config["init"], "fold": fold}
    overrides = [*common, *differing(own, dict.fromkeys(own)), *([candidate.setting] if candidate.setting else [])]
    composed = plain(compose_config(FINETUNE, overrides, None))
    label_budget = config["labels_per_class"] or f"{config['label_fraction'] or 1.0:g}"
    title = f"{candidate.name}_{label_budget}_seed{config['seed']}" + (f"_fold{fold[0] + 1}of{fold[1]}" if fold else "")
    return study_run(run.stages, FINETUNE, title, composed, overrides, *fingerprints, setting=candidate.setting)


def folds_of(validation: int, fewest: int) -> list[list[int] | None]:
    """Return the folds `[k, n]` for cross-validation on the labeled images, or `[None]` to use validation alone.

    Args:
        validation: number of validation images.
        fewest: number of labels, or of groups, of the smallest class.
    """
    n = min(FOLDS, fewest)
    return [[k, n] for k in range(n)] if validation < MIN_VALIDATION and n > 1 else [None]


def score_among(runs: Iterable[StudyRun]) -> str:
    """Return the metric by which to choose among finished classifiers."""
    return score_name(*(read_summary(r.directory)["config"].get("balance", "none") for r in runs))


def score_of(runs: Sequence[StudyRun], name: str) -> tuple[float, float]:
    """Return a validation metric and, to break ties, log-likelihood; means over the folds."""
    scores = mean_scores(runs)
    return scores[name], -scores["val/loss"]


def mean_scores(runs: Sequence[StudyRun]) -> dict[str, float]:
    """Return the metrics by which classifiers are chosen, and `val/loss`; means over the folds."""
    summaries = [read_summary(r.directory) for r in runs]
    return {k: statistics.fmean(f[k] for f in summaries) for k in (*SCORES, "val/loss") if k in summaries[0]}
