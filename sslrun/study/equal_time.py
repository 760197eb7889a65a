"""Training from scratch for as long as a pretraining takes: the number of steps."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.data.labels import LabelBudget
from sslrun.run.find import read_summary, whole_seconds
from sslrun.training.settings import default_steps


def equal_time_steps(pretrained: Iterable[Path], scratch: Mapping[LabelBudget, Path]) -> dict[str, int]:
    """Return the number of steps of each label budget, by its text.

    The times of the folds and of the final training grow with the steps, other times of a run (start, features) do not:
    the usual steps are multiplied by the time that a pretraining, on average, leaves for training, relative to the time
    of training. Of the subsets of a budget, the median counts. The result has two significant digits, and is at least
    the usual number.

    Args:
        pretrained: directories of the pretrainings.
        scratch: directories of the networks trained from scratch, by label budget and subset seed.
    """
    seconds = statistics.mean(whole_seconds(read_summary(p)) for p in pretrained)
    by_budget: dict[str, list[Path]] = {}
    for budget, directory in scratch.items():
        by_budget.setdefault(replace(budget, seed=0).text, []).append(directory)
    out = {}
    for text, directories in by_budget.items():
        summaries = [read_summary(d) for d in directories]
        usual = usual_steps(summaries[0]["config"]["train"], summaries[0]["labels_train"])
        longer = statistics.median(_longer(s, seconds) for s in summaries)
        out[text] = max(usual, _rounded(usual * longer))
    return out


def _longer(summary: Mapping[str, Any], seconds: float) -> float:
    """Return by what factor the training of a run may take longer, so that the run takes this many seconds."""
    whole: float = summary["wall_time_seconds"]
    training: float = summary.get("training_seconds", whole)  # missing if the run was resumed
    return (seconds - (whole - training)) / training


def usual_steps(train: Node, labels: int) -> int:
    """Return the number of steps of a finetuning on this many labels, from the `train` node of its config."""
    if train["steps"] == "auto":
        train = {**train, "steps": None if train["epochs"] else default_steps(labels)}
    steps: int = build(train).total_steps(labels)
    return steps


def _rounded(steps: float) -> int:
    """Return a number rounded to two significant digits."""
    return int(round(steps, 1 - math.floor(math.log10(steps)))) if steps >= 1 else 1
