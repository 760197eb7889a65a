"""Choosing the classifier of a label budget by cross-validation inside it, or on a validation split."""

import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from sslrun.base.console import log
from sslrun.base.files import replacing
from sslrun.base.processes import by_first
from sslrun.base.text import percent, time_range
from sslrun.config.build import build
from sslrun.data.labeled import Labeled
from sslrun.device import Device
from sslrun.evaluation.selection import choose, corrected_accuracy
from sslrun.evaluation.validation import SCORES, prediction_metrics, score_name
from sslrun.models.initialization import Network
from sslrun.run.encoders import SCRATCH
from sslrun.run.run import Run
from sslrun.training import estimate
from sslrun.training.candidates import OUT_OF_FOLD, TUNED, Candidate, Folds, compared
from sslrun.training.estimate import ClassifierEstimate
from sslrun.training.frozen import Frozen
from sslrun.training.settings import Training

AFFORDABLE = 120.0  # seconds of the trainings in the folds that `mode=auto` takes for a published network on a CPU


def affordable(
    candidates: Sequence[Candidate], measured: ClassifierEstimate, training: Training, labels: int
) -> list[Candidate]:
    """Return the candidates of `mode=auto` whose trainings in the folds take under two minutes, and log the others.

    Training from scratch is left out first, then finetuning.

    Args:
        candidates: of a published network.
        measured: the speed of the trainings.
        labels: of the budget.
    """
    steps, kept, left_out = training.total_steps(labels), list(candidates), []
    for name in (SCRATCH, TUNED):
        seconds = measured.in_folds(training, steps, sum(c.is_trained for c in kept))
        if seconds > AFFORDABLE:
            kept = [c for c in kept if c.name != name]
            left_out.append(name)
    if left_out:
        seconds = measured.in_folds(training, steps, sum(c.name in left_out for c in candidates))
        log.info(
            "mode=auto does not try %s: on this CPU the trainings in the folds would take about %s; set %s for it.",
            " or ".join(reversed(left_out)), time_range(seconds),
            "mode=finetune" if TUNED in left_out else "init=scratch",
        )  # fmt: skip
    return kept


@by_first
def in_time(
    run: Run, candidates: list[Candidate], network: Network, labeled: Labeled, device: Device
) -> list[Candidate]:
    """Return the candidates that do not take too long, and log the time of all; a resumed run keeps its own."""
    config = run.config
    training: Training = build(config["train"])
    measured = estimate.classifier(config, labeled, config["subset_seed"], quick=True)
    if "tried" in run.summary:
        candidates = [c for c in candidates if c.name in run.summary["tried"]]
    elif config["mode"] == "auto" and network.kind == "pretrained" and device.torch.type == "cpu":
        candidates = affordable(candidates, measured, training, len(labeled.budget))
        run.note(tried=list(dict.fromkeys(c.name for c in candidates)))
    trained = sum(c.is_trained for c in candidates)
    seconds = measured.finetuning(training, training.total_steps(len(labeled.budget)), trained)
    log.info("This will take about %s.", time_range(seconds if trained else measured.probe))
    return candidates


@by_first
def choose_candidate(
    run: Run,
    candidates: Sequence[Candidate],
    frozen: Mapping[str, Frozen],
    folds: Folds,
    labeled: Labeled,
    parallel: bool,
) -> tuple[Candidate, dict[str, float]]:
    """Evaluate the candidates in the folds and choose one; without folds, take the first.

    Their predictions are saved as `out_of_fold.npz` in the run's directory.

    Args:
        candidates: the simplest first.
        frozen: the network of each candidate's name.
        parallel: use all cores for the trainings.

    Returns:
        The candidate and its metrics.
    """
    if not folds.regressions:
        return candidates[0], {}
    result = compared(candidates, frozen, folds, parallel, run.directory)
    predictions, best = result.predictions, choose(result.predictions)
    chosen, name = result.candidates[best], score_name("none" if not predictions.macro else "")
    with replacing(run.directory / OUT_OF_FOLD) as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            candidates=np.array(result.variants),
            probabilities=predictions.probabilities,
            labels=predictions.labels,
            units=predictions.units,
        )
    shutil.rmtree(run.directory / "folds", ignore_errors=True)
    scores = result.scores()
    run.note(candidates={c: round(s, 6) for c, s in scores.items()})
    if len(candidates) > 1:
        n = len(folds.trainings)
        where = "on validation" if labeled.val else f"in {n}-fold cross-validation" if n > 1 else "on a held-out fifth"
        text = ", ".join(f"{c} {percent(s)}" for c, s in sorted(scores.items(), key=lambda s: -s[1]))
        undecided = scores[str(chosen)] < max(scores.values())
        why = " (within two standard errors of the best, and with a higher likelihood)" if undecided else ""
        log.info("%s %s: %s. Chosen: %s%s.", SCORES[name].capitalize(), where, text, chosen, why)
    rows = predictions.common
    metrics = prediction_metrics(
        predictions.probabilities[best, rows], predictions.labels[rows], grouped=labeled.budget.groups is not None
    )
    if labeled.val is None:
        metrics["val/accuracy"] = corrected_accuracy(predictions)
    return chosen, metrics
