"""The contract between what a network is trained to do and the training loop."""

import difflib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.models.encoder import Encoder

HOOKS = ("downstream", "forward", "before_step", "after_step", "learning_rates", "views", "figures")
NEARLY = 0.8  # similarity of names from which on one is taken for a slip


class Task(nn.Module, ABC):
    """What a network is trained to do; a subclass defines `forward`, and those of the other methods that it needs.

    A pretext task is built as `task(encoder, image_size, *, keys of its YAML)`.

    Attributes:
        downstream: path of the encoder that goes on to later stages, such as `encoder` or `classifier.encoder`.

    Raises:
        TypeError: on definition of a subclass with a public name that is nearly that of one of these methods.
    """

    downstream: ClassVar[str] = "encoder"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            near = difflib.get_close_matches(name, HOOKS, n=1, cutoff=NEARLY)
            if near and name not in HOOKS and not name.startswith("_"):
                raise TypeError(f"{cls.__name__}.{name}: no such hook of a task; did you mean {near[0]}?")

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss of a batch, and what else is logged.

        Args:
            batch: `images`, `N x 3 x S x S` in [0, 1], and `labels`, N, where there are any.
            rng: of all random numbers that are drawn.

        Returns:
            `loss`, a mean over the batch, and other numbers by name.
        """

    def before_step(self, step: int, total: int) -> None:
        """Prepare step number `step` of `total`, counted from 0; all modules are in training mode."""

    def after_step(self, step: int, total: int) -> None:
        """Do what follows an update of the weights, such as that of a moving average."""

    def learning_rates(self) -> dict[str, float]:
        """Return multiples of the learning rate by the prefix of parameter names; 1 for the rest."""
        return {}

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return what the network is shown of some images, to be drawn beside them before training.

        Args:
            images: `N x 3 x S x S` in [0, 1].

        Returns:
            N images by name; none for no figure.
        """
        return {}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return what the network makes of some images, such as reconstructions, to be drawn after training.

        Args:
            images: `N x 3 x S x S` in [0, 1].

        Returns:
            N images by the name of their figure.
        """
        return {}


def build_task(node: Node, encoder: Encoder, image_size: int) -> Task:
    """Build a pretext task.

    Raises:
        UserError: what the node names is not a Task, or has no encoder where its `downstream` says.
    """
    name = node["_target_"]
    try:
        task = build(node, encoder, image_size)
    except TypeError as error:
        if "abstract method" in str(error):
            raise UserError(f"pretext: {name} has no forward(batch, rng)") from None
        raise
    if not isinstance(task, Task):
        raise UserError(f"pretext: {name} must derive from sslrun.tasks.task.Task: class {name.split('.')[-1]}(Task)")
    if not isinstance(dict(task.named_modules(remove_duplicate=False)).get(task.downstream), Encoder):
        raise UserError(f"pretext: {name} has no encoder under {task.downstream!r}: set its `downstream` to the path")
    return task
