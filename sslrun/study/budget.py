"""Estimated duration of a study, and the number of pretraining epochs that fit a time budget."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from sslrun.base.console import quietly
from sslrun.base.errors import UserError
from sslrun.base.text import counted, duration, time_range
from sslrun.config.build import build
from sslrun.config.commands import FINETUNE, PRETRAIN
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.config.types import Node
from sslrun.data.labels import LabelBudget
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import build_encoder
from sslrun.models.published import Published
from sslrun.run.encoders import PIXELS, PRETRAINED
from sslrun.study.costs import milliseconds
from sslrun.study.equal_time import usual_steps
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Plan, StudyData
from sslrun.training import estimate
from sslrun.training.candidates import TUNED, folds_of
from sslrun.training.settings import FORWARD_COST, Training


@dataclass
class Times:
    """Estimated times of the unfinished runs of a study on this machine.

    Attributes:
        classifiers: seconds for all classifiers and their evaluations, without those of `matched`.
        epoch: seconds per epoch of one pretraining of each task.
        epochs: number of epochs of a pretraining of each task; a fraction if it has fewer steps than an epoch.
        left: number of pretrainings of each task.
        preparation: seconds that the tasks need before their first step, once for all seeds.
        matched: number of classifiers that train for as long as a pretraining does, on the average over tasks.
    """

    classifiers: float = 0.0
    epoch: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    preparation: float = 0.0
    matched: int = 0

    def epochs_within(self, limit: float) -> int:
        """Return the number of epochs of each pretraining that fit a limit in seconds, after the classifiers.

        Raises:
            UserError: less than one.
        """
        each = sum(n * self.epoch[t] for t, n in self.left.items())
        each += self.matched * sum(self.epoch.values()) / len(self.epoch)
        fixed = self.classifiers + self.preparation
        epochs = math.floor((limit - fixed) / each)
        if epochs < 1:
            more = " and of training from scratch for as long (equal_time)" if self.matched else ""
            raise UserError(
                f"budget is too small: the classifiers take about {duration(self.classifiers)}, one epoch of every "
                f"pretraining{more} {duration(each)}; set budget={math.ceil((fixed + each) / 60)}m or more, "
                f"or lower seeds, {'equal_time, ' if self.matched else ''}pretrain_seeds or finetune.train.steps"
            )
        return epochs

    def describe(self, plan: Plan) -> str:
        """Return the estimate as a sentence."""
        seconds = {t: self.epochs[t] * self.epoch[t] for t in self.epoch}
        pretrainings = {t: sum(not r.finished() for r in runs.values()) for t, runs in plan.pretrainings.items()}
        classifiers = sum(not r.finished() for r in dict.fromkeys(plan.classifiers.values()))
        if not sum(pretrainings.values()) and not classifiers and not plan.matched:
            finished = all(r.finished() for r in plan.evaluations.values())
            return "All runs of this study are finished." if finished else "To run: evaluations."
        of_tasks = sum(n * seconds[t] for t, n in pretrainings.items())
        as_long = plan.matched * sum(seconds.values()) / max(1, len(seconds))
        texts = [
            f"{t} {self.epochs[t]:.3g} epochs, {duration(seconds[t])}{' each' * (n > 1)}"
            for t, n in pretrainings.items()
            if n
        ]
        parts = [
            f"{counted(sum(pretrainings.values()), 'pretraining')} ({'; '.join(texts)})" if texts else "",
            f"{counted(classifiers, 'classifier')} ({duration(self.classifiers)})" if classifiers else "",
            f"{counted(plan.matched, 'training')} from scratch for as long as a pretraining ({duration(as_long)})"
            if plan.matched
            else "",
        ]
        total = of_tasks + self.preparation + self.classifiers + as_long
        ends = time_range(total)
        return f"To run: {' and '.join(filter(None, parts))}; about {ends} in total if run sequentially."


def times_of(plan: Plan, loaded: StudyData, new_epochs: bool = False) -> Times:
    """Estimate the times of the unfinished runs from a few steps of each kind.

    Args:
        plan: the runs of the study.
        loaded: its data.
        new_epochs: the number of pretraining epochs will change, so that pretrainings, and classifiers of pretrained
            networks, count even if they are finished.
    """
    with quietly():
        times = Times(matched=plan.matched)
        for task, runs in plan.pretrainings.items():
            times.left[task] = sum(new_epochs or not r.finished() for r in runs.values())
            times.epoch[task], times.epochs[task], preparation = _pretraining(next(iter(runs.values())), loaded)
            times.preparation += preparation if times.left[task] else 0.0
        times.classifiers = sum(_classifiers(plan, new_epochs))
        return times


def _pretraining(run: StudyRun, loaded: StudyData) -> tuple[float, float, float]:
    """Return the seconds per epoch, the number of epochs, and the seconds before the first step."""
    c = plain(compose_config(PRETRAIN, list(run.overrides), None))
    speed = estimate.pretraining(
        loaded.images, c["pretext"], c["backbone"], c["optimizer"], c["device"], c["dataset"]["image_size"],
        c["train"]["batch_size"],
    )  # fmt: skip
    n = min(len(loaded.images), c["dataset"]["max_images"] or len(loaded.images))
    training: Training = build(c["train"])
    epochs = training.total_steps(n) * min(n, training.batch_size) / n
    return n / speed.images_per_second, epochs, speed.preparation * n / len(loaded.images)


def _classifiers(plan: Plan, new_epochs: bool) -> Iterator[float]:
    """Yield the seconds of each classifier; one of each budget is measured."""
    measured: dict[str, estimate.ClassifierEstimate] = {}
    configs: dict[tuple[str, ...], Node] = {}
    seconds = 0.0  # of an image in a network with published weights
    for cell, run in plan.classifiers.items():
        if run.finished() and not (new_epochs and cell.initialization in plan.pretrainings):
            continue
        if cell.initialization == PIXELS:
            yield estimate.OVERHEAD
            continue
        if cell.initialization == PRETRAINED and plan.network:
            seconds = seconds or _seconds_per_image(plan.network, run)
            yield _with_weights(plan, cell.budget, run, seconds)
            continue
        common = tuple(o for o in run.overrides if not o.startswith(("init=", "seed=")))
        if common not in configs:
            configs[common] = plain(compose_config(FINETUNE, list(run.overrides), None))
        config, text = configs[common], cell.budget.text
        if text not in measured:
            measured[text] = estimate.classifier(config, plan.classified.pool.labeled(cell.budget))
        each = measured[text]
        if config["mode"] != TUNED:
            yield each.probe
            continue
        steps = usual_steps(config["train"], each.labels)
        training = build({**config["train"], "steps": steps, "epochs": None})
        yield each.finetuning(training, steps, len(config["search"]))


def _seconds_per_image(network: Published, run: StudyRun) -> float:
    """Return the time of a forward pass of an image, at the size of the weights."""
    hardware = build(plain(compose_config(FINETUNE, list(run.overrides), None))["device"])
    hardware.claim()
    encoder = build_encoder(network.backbone, network.image_size, network.mean, network.std)
    classifier = Classifier(encoder, 2)
    hardware.put(classifier)
    return milliseconds(classifier, network.image_size, hardware) / 1000


def _with_weights(plan: Plan, budget: LabelBudget, run: StudyRun, seconds: float) -> float:
    """Return the seconds of a classifier of a network with published weights, and of its evaluation.

    Args:
        seconds: of the forward pass of an image.
    """
    labeled = plan.classified.pool.labeled(budget)
    labels = len(labeled.budget)
    config = plain(compose_config(FINETUNE, list(run.overrides), None))
    total = estimate.OVERHEAD + seconds * (labels + len(labeled.val or ()) + plan.classified.tested)
    if config["mode"] != TUNED:
        return total
    trainings = 1 + len(folds_of(labeled, budget.seed).trainings) * max(1, len(config["search"]))
    step = min(labels, config["train"]["batch_size"]) * seconds / FORWARD_COST
    return total + trainings * usual_steps(config["train"], labels) * step
