"""How long a training is, how its learning rate goes, and when it is evaluated and saved."""

import math
from dataclasses import dataclass

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.types import Fraction, NotNegative, Positive, PositiveInt

SMALLEST_BATCH = 4  # of pretraining: batch norm and contrastive losses compare the pictures of a batch


def batches_per_epoch(n: int, batch_size: int) -> int:
    """Return how many batches of nearly equal size, none above `batch_size`, n images make."""
    return math.ceil(n / batch_size)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The node `train` of a config.

    Attributes:
        epochs, steps: whichever ends first; None for no limit.
        batch_size: the largest; the batches of an epoch are of nearly equal size.
        learning_rate: the highest.
        warmup_fraction: part of the steps with a rising learning rate; after it a cosine falls to 0.
        gradient_clip: largest norm of the gradient; None for none.
        evaluations: so many, evenly spread, besides that before the first step.
        log_every: steps between lines of `metrics.jsonl`.
        save_minutes: a checkpoint is made after so many minutes, too, not only after evaluations.
        keep_every: steps between checkpoints that stay; None keeps the last, the one before it, and the best.
    """

    epochs: PositiveInt | None
    steps: PositiveInt | None
    batch_size: PositiveInt
    learning_rate: Positive
    warmup_fraction: Fraction
    gradient_clip: NotNegative | None
    evaluations: PositiveInt
    log_every: PositiveInt
    save_minutes: Positive
    keep_every: PositiveInt | None

    def total_steps(self, n: int, quiet: bool = True) -> int:
        """Return the length of a training on n images in steps.

        Args:
            quiet: do not log which of `epochs` and `steps` ends first.

        Raises:
            UserError: neither is given.
        """
        by_epochs = self.epochs * batches_per_epoch(n, self.batch_size) if self.epochs else None
        given = [s for s in (by_epochs, self.steps) if s is not None]
        if not given:
            raise UserError("say how long to train: train.epochs=... or train.steps=...")
        if len(given) == 2 and not quiet:
            which = "train.steps" if self.steps == min(given) else "train.epochs"
            log.info(
                "train.epochs=%s is %s steps, train.steps=%s: %s ends first.", self.epochs, by_epochs, self.steps, which
            )
        return min(given)

    def learning_rate_at(self, step: int, total: int, multiple: float = 1.0) -> float:
        """Return a multiple of the learning rate in a step: linear warm-up, then half a cosine down to 0."""
        warmup = int(self.warmup_fraction * total)
        if step < warmup:
            return multiple * self.learning_rate * ((step + 1) / (warmup + 1))
        cosine = math.cos(math.pi * (step - warmup) / max(1, total - warmup))
        return multiple * self.learning_rate * (0.5 * (1 + cosine))

    def evaluated_after(self, total: int) -> set[int]:
        """Return the numbers of steps after which there is an evaluation; the last is `total`."""
        return {math.ceil(total * i / self.evaluations) for i in range(1, self.evaluations + 1)}

    def kept_after(self, steps: int) -> bool:
        """Tell whether the checkpoint after so many steps stays."""
        return self.keep_every is not None and steps % self.keep_every == 0
