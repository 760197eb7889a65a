"""How long a study takes, and how many epochs of pretraining fit into a time."""

import math
import re
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

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(budget: str) -> float:
    """Return the seconds that `90s`, `30m` or `1.5h` stands for.

    Raises:
        UserError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if not match or float(match[1]) == 0:
        raise UserError(f"budget={budget}: say a time such as 90s, 30m or 2h")
    return float(match[1]) * UNITS[match[2]]


@dataclass
class Times:
    """About how long the unfinished runs of a study take on this machine, in seconds.

    Attributes:
        classifiers: all of them, with their evaluations.
        epoch: of each pretraining, by name.
        epochs: of each pretraining, by name; a part of one where its steps end sooner.
    """

    classifiers: float
    epoch: dict[str, float]
    epochs: dict[str, float]

    def epochs_within(self, limit: float) -> int:
        """Return how many epochs of every pretraining fit into a time beside the classifiers.

        Raises:
            UserError: not one.
        """
        epochs = math.floor((limit - self.classifiers) / sum(self.epoch.values()))
        if epochs < 1:
            raise UserError(
                f"budget: the classifiers take about {duration(self.classifiers)} and one epoch of every pretraining "
                f"{duration(sum(self.epoch.values()))}: give more, or take fewer seeds or a lower finetune.train.steps"
            )
        return epochs

    def describe(self, plan: Plan) -> str:
        """Return the estimate in words, before the start."""
        todo = {n: p for n, p in plan.pretrainings.items() if not p.finished()}
        each = {n: self.epochs[n] * self.epoch[n] for n in todo}
        every = [*plan.classifiers.values(), *(p for trials in plan.trials.values() for p in trials)]
        classifiers = sum(not p.finished() for p in every)
        texts = [f"{n} {self.epochs[n]:.3g} epochs, {duration(s)}" for n, s in each.items()]
        whole = sum(each.values()) + self.classifiers
        if not todo and not classifiers:
            finished = all(plan.evaluations[c].finished() for c in best_settings(plan))
            return "All runs of this study are finished." if finished else "To do: evaluations."
        pretrainings = f"{counted(len(todo), 'pretraining')} ({'; '.join(texts)})" if todo else ""
        trained = f"{counted(classifiers, 'classifier')} ({duration(self.classifiers)})" if classifiers else ""
        doing = " and ".join(filter(None, [pretrainings, trained]))
        return f"To do: {doing}; about {duration(whole)} in all, one after another."


def times_of(plan: Plan, loaded: StudyData, anew: bool = False) -> Times:
    """Estimate the times of the runs that are not finished, by a few steps of each kind.

    Args:
        anew: the pretrainings will be others, and so the classifiers that start from there, finished or not.
    """
    with quietly():
        return _measured(plan, loaded, anew)


def _measured(plan: Plan, loaded: StudyData, anew: bool) -> Times:
    times = Times(0.0, {}, {})
    for name, p in plan.pretrainings.items():
        c = plain(compose_config(PRETRAIN, list(p.overrides), None))
        took = estimate.pretraining(
            loaded.images, c["pretext"], c["backbone"], c["optimizer"], c["device"], c["dataset"]["image_size"],
            c["train"]["batch_size"],
        )  # fmt: skip
        n = min(len(loaded.images), c["dataset"]["max_images"] or len(loaded.images))
        training: Training = build(c["train"])
        times.epoch[name] = n / took.images_per_second
        times.epochs[name] = training.total_steps(n) / batches_per_epoch(n, training.batch_size)
    configs: dict[str, Node] = {}
    measured: dict[float, tuple[int, estimate.ClassifierEstimate]] = {}
    data, val = plan.classified.data, plan.classified.val
    every = [*plan.classifiers.items(), *((c, p) for c, trials in plan.trials.items() for p in trials)]
    for cell, p in every:
        if p.finished() and not (anew and cell.initialization in plan.pretrainings):
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
