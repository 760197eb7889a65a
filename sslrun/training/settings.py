"""Settings of a training: its length, learning rate schedule, evaluations and checkpoints."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.types import Fraction, NotNegative, Positive, PositiveInt

SMALLEST_BATCH = 4  # for pretraining: batch norm and contrastive losses compare the images of a batch
EVALUATION_SHARE = 0.1  # of a training, at most, that its evaluations take
FORWARD_COST = 1 / 3  # of a training image: its forward pass, without the backward pass


def default_steps(labels: int) -> int:
    """Return the number of steps of a finetuning: 100 up to 500 labels, above that in proportion to their root.

    Measured, see benchmarks/README.md.
    """
    return round(100 * max(1.0, math.sqrt(labels / 500)))


@dataclass(frozen=True, kw_only=True)
class Training:
    """The `train` node of a config.

    Attributes:
        epochs, steps: length of the training, whichever ends first; None for no limit. `auto` steps have to be resolved
            before.
        batch_size: images per step; all images, if there are fewer.
        learning_rate: peak of the schedule.
        warmup_fraction: fraction of the steps with linear warm-up, which is followed by cosine decay to 0.
        gradient_clip: maximum norm of the gradient; None disables clipping.
        evaluations: maximum number of evaluations, evenly spread, not counting the one before the first step; see
            `with_affordable_evaluations`.
        log_every: steps between lines of `metrics.jsonl`.
        save_minutes: minutes between checkpoints, which are also saved after evaluations.
        keep_every: steps between checkpoints that are kept; None keeps only the last, the previous and the best.
    """

    epochs: PositiveInt | None
    steps: PositiveInt | Literal["auto"] | None
    batch_size: PositiveInt
    learning_rate: Positive
    warmup_fraction: Fraction
    gradient_clip: NotNegative | None
    evaluations: PositiveInt
    log_every: PositiveInt
    save_minutes: Positive
    keep_every: PositiveInt | None

    def total_steps(self, n: int, quiet: bool = True) -> int:
        """Return the number of steps of a training on n images.

        Args:
            quiet: do not log which of `epochs` and `steps` ends first.

        Raises:
            UserError: neither is set.
        """
        by_epochs = -(-self.epochs * n // min(self.batch_size, n)) if self.epochs else None
        if self.steps == "auto":
            raise UserError("train.steps=auto is for finetune, where it follows the number of labels; set a number")
        given = [s for s in (by_epochs, self.steps) if s is not None]
        if not given:
            raise UserError("train.epochs and train.steps are both null: set one of them")
        if len(given) == 2 and not quiet:
            which = "train.steps" if self.steps == min(given) else "train.epochs"
            log.info(
                "train.epochs=%s is %s steps, train.steps=%s: %s ends first.", self.epochs, by_epochs, self.steps, which
            )
        return min(given)

    def learning_rate_at(self, step: int, total: int, multiple: float = 1.0) -> float:
        """Return `multiple` times the learning rate of a step: linear warm-up, then cosine decay to 0."""
        warmup = int(self.warmup_fraction * total)
        if step < warmup:
            return multiple * self.learning_rate * ((step + 1) / (warmup + 1))
        cosine = math.cos(math.pi * (step - warmup) / max(1, total - warmup))
        return multiple * self.learning_rate * (0.5 * (1 + cosine))

    def with_affordable_evaluations(self, passes: int, evaluated: int, quiet: bool = True) -> "Training":
        """Return these settings with fewer evaluations if they would take more than a tenth of the training.

        Images are counted, not seconds, so that the result does not depend on the machine. There is always one after
        the last step.

        Args:
            passes: images that the network is trained on in all steps; each view counts.
            evaluated: images of an evaluation.
            quiet: do not log that there are fewer.
        """
        affordable = int(EVALUATION_SHARE * passes / (FORWARD_COST * max(1, evaluated)))
        evaluations = max(1, min(self.evaluations, affordable - 1))  # one is before the first step
        if evaluations < self.evaluations and not quiet:
            log.info(
                "Evaluations: %d instead of train.evaluations=%d; more would take over a tenth of the training.",
                evaluations, self.evaluations,
            )  # fmt: skip
        return replace(self, evaluations=evaluations)

    def evaluated_after(self, total: int) -> set[int]:
        """Return the numbers of steps after which to evaluate; the last is `total`."""
        return {math.ceil(total * i / self.evaluations) for i in range(1, self.evaluations + 1)}

    def kept_after(self, steps: int) -> bool:
        """Return whether the checkpoint after this many steps is kept."""
        return self.keep_every is not None and steps % self.keep_every == 0
