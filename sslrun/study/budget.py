"""Estimated duration of a study, and the number of pretraining epochs that fit a time budget."""

import math
from dataclasses import dataclass

from sslrun.base.console import quietly
from sslrun.base.errors import UserError
from sslrun.base.text import counted, duration
from sslrun.config.build import build
from sslrun.config.commands import FINETUNE, PRETRAIN
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.config.types import Node
from sslrun.study.plan import Plan, StudyData, best_settings
from sslrun.training import estimate
from sslrun.training.settings import Training, batches_per_epoch


@dataclass
class Times:
    """Estimated times of the unfinished runs of a study on this machine.

    Attributes:
        classifiers: seconds for all classifiers and their evaluations.
        epoch: seconds per epoch of each pretraining, by name.
        epochs: number of epochs of each pretraining, by name; a fraction if it has fewer steps than an epoch.
    """

    classifiers: float
    epoch: dict[str, float]
    epochs: dict[str, float]

    def epochs_within(self, limit: float) -> int:
        """Return the number of epochs of each pretraining that fit a limit in seconds, after the classifiers.

        Raises:
            UserError: less than one.
        """
        each = sum(self.epoch.values())
        epochs = math.floor((limit - self.classifiers) / each)
        if epochs < 1:
            raise UserError(
                f"budget is too small: the classifiers take about {duration(self.classifiers)}, one epoch of every "
                f"pretraining {duration(each)}; set budget={math.ceil((self.classifiers + each) / 60)}m or more, or "
                "lower seeds or finetune.train.steps"
            )
        return epochs

    def describe(self, plan: Plan) -> str:
        """Return the estimate as a sentence."""
        todo = {n: p for n, p in plan.pretrainings.items() if not p.finished()}
        each = {n: self.epochs[n] * self.epoch[n] for n in todo}
        every = [*plan.classifiers.values(), *(p for trials in plan.trials.values() for p in trials)]
        classifiers = sum(not p.finished() for p in every)
        texts = [f"{n} {self.epochs[n]:.3g} epochs, {duration(s)}" for n, s in each.items()]
        total = sum(each.values()) + self.classifiers
        if not todo and not classifiers:
            finished = all(plan.evaluations[c].finished() for c in best_settings(plan))
            return "All runs of this study are finished." if finished else "To run: evaluations."
        pretrainings = f"{counted(len(todo), 'pretraining')} ({'; '.join(texts)})" if todo else ""
        trained = f"{counted(classifiers, 'classifier')} ({duration(self.classifiers)})" if classifiers else ""
        parts = " and ".join(filter(None, [pretrainings, trained]))
        return f"To run: {parts}; about {duration(total)} in total if run sequentially."


def times_of(plan: Plan, loaded: StudyData, new_epochs: bool = False) -> Times:
    """Estimate the times of the unfinished runs from a few steps of each kind.

    Args:
        plan: the runs of the study.
        loaded: its data.
        new_epochs: the number of pretraining epochs will change, so that classifiers of pretrained networks count
            even if they are finished.
    """
    with quietly():
        return _measured(plan, loaded, new_epochs)


def _measured(plan: Plan, loaded: StudyData, new_epochs: bool) -> Times:
    times = Times(0.0, {}, {})
    for name, p in plan.pretrainings.items():
        c = plain(compose_config(PRETRAIN, list(p.overrides), None))
        speed = estimate.pretraining(
            loaded.images, c["pretext"], c["backbone"], c["optimizer"], c["device"], c["dataset"]["image_size"],
            c["train"]["batch_size"],
        )  # fmt: skip
        n = min(len(loaded.images), c["dataset"]["max_images"] or len(loaded.images))
        training: Training = build(c["train"])
        times.epoch[name] = n / speed.images_per_second
        times.epochs[name] = training.total_steps(n) / batches_per_epoch(n, training.batch_size)
    configs: dict[str, Node] = {}
    measured: dict[float, tuple[int, estimate.ClassifierEstimate]] = {}
    data, val = plan.classified.data, plan.classified.val
    every = [*plan.classifiers.items(), *((c, p) for c, trials in plan.trials.items() for p in trials)]
    for cell, p in every:
        if p.finished() and not (new_epochs and cell.initialization in plan.pretrainings):
            continue
        if cell.setting not in configs:
            configs[cell.setting] = plain(compose_config(FINETUNE, list(p.overrides), None))
        if cell.budget.value not in measured:
            n = len(data.within(cell.budget))
            measured[cell.budget.value] = n, estimate.classifier(configs[cell.setting], data, val, n)
        n, each = measured[cell.budget.value]
        training = build(configs[cell.setting]["train"])
        times.classifiers += each.probe if cell.mode == "probe" else each.finetuning(training, n, len(val or ()))
    return times
