"""The interface between training tasks and the training loop."""

import copy
import difflib
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sslrun.augment import Rng
from sslrun.base import processes
from sslrun.base.errors import UserError
from sslrun.base.paths import EXTENDING, shown
from sslrun.config.build import build
from sslrun.config.contract import Contract
from sslrun.config.types import Node, Supplied
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.models.encoder import Encoder

TaskNode = Annotated[Node, Supplied("encoder", "image_size")]
METHODS = {
    "set_sizes": ("images", "batch_size"),
    "prepare": ("images", "device"),
    "forward": ("batch", "rng"),
    "before_step": ("step", "total"),
    "after_step": ("step", "total"),
    "learning_rates": (),
    "views": ("images", "rng"),
    "figures": ("images", "rng"),
}
HOOKS = ("downstream", *METHODS)
# A user's task is tried with a batch of the first size and, if that fails, of the second: some need more images.
TRIAL_BATCHES, TRIAL_STEPS = (4, 16), 100
MANY = 100_000  # images that `set_sizes` is tried with
CUTOFF = 0.8  # names at least this similar to a hook's are taken for misspellings


class Task(nn.Module, ABC):
    """Base class of training tasks; a subclass defines `forward`, and overrides other methods as needed.

    A pretext task is built as `task(encoder, image_size, *, keys of its YAML)`.

    Attributes:
        downstream: path of the encoder that later stages use, such as `encoder` or `classifier.encoder`.
        origin: of the weights that a task reads from elsewhere, see `origin_of`; for summaries and checkpoints.

    Raises:
        TypeError: when a subclass is defined with a public name that looks like a misspelled method of this class.
    """

    downstream: ClassVar[str] = "encoder"
    origin: Mapping[str, Any] = MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            near = difflib.get_close_matches(name, HOOKS, n=1, cutoff=CUTOFF)
            if near and name not in HOOKS and not name.startswith("_"):
                page = shown(EXTENDING)
                raise TypeError(f"{cls.__name__}.{name}: no such hook of a task; did you mean {near[0]}? See {page}")

    def set_sizes(self, images: int, batch_size: int) -> None:
        """Choose what depends on the size of the data, before anything else is done; layers may still change.

        Args:
            images: number of images of the pretraining.
            batch_size: number of images of every batch.

        Raises:
            UserError: a given value does not fit, with the nearest one that does.
        """

    def prepare(self, images: Images, device: Device) -> float:
        """Compute what the steps need from all images, before the first one and when a run is resumed.

        Args:
            images: N images; `batch["rows"]` are positions in them.
            device: of the training; the task is on it.

        Returns:
            The seconds that cached results have saved, which a study counts.
        """
        return 0.0

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss of a batch, and other metrics to log.

        Args:
            batch: `images`, `N x 3 x S x S` in [0, 1]; `rows`, N, their positions among all images, on the CPU; and
                `labels`, N, if there are any.
            rng: source of all random numbers.

        Returns:
            `loss`, a mean over the batch, and other scalars by name.
        """

    def before_step(self, step: int, total: int) -> None:
        """Prepare step `step` (from 0) of `total`; all modules are in training mode."""

    def after_step(self, step: int, total: int) -> None:
        """Run after the optimizer step, for example to update a moving average of the weights."""

    def learning_rates(self) -> dict[str, float]:
        """Return multiples of the learning rate by the prefix of parameter names; 1 for the rest."""
        return {}

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the views of some images that the network is trained on, for a figure drawn before training.

        Args:
            images: `N x 3 x S x S` in [0, 1].
            rng: source of all random numbers.

        Returns:
            N images per name of a view; empty for no figure.
        """
        return {}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the network's outputs for some images, such as reconstructions, for figures drawn after training.

        Args:
            images: `N x 3 x S x S` in [0, 1].
            rng: source of all random numbers.

        Returns:
            N images per name of a column; empty for no figure.
        """
        return {}


def build_task(node: Node, encoder: Encoder, image_size: int) -> Task:
    """Build a pretext task; check it if it is the user's own.

    Raises:
        UserError: the `_target_` is not a task, or it cannot be trained.
    """
    contract = Contract("pretext", node["_target_"])
    if inspect.isabstract(contract.callable):
        raise contract.broken("a task must define forward(self, batch, rng), found none")
    with contract.running("building it"):
        task = build(node, encoder, image_size)
    if not isinstance(task, Task):
        name = contract.target.rpartition(".")[2]
        raise contract.broken(f"a task must derive from sslrun.tasks.task.Task, as in class {name}(Task)")
    if not contract.ours:
        _check_methods(task, contract)
        with processes.alone():
            _try_twice(task, contract, image_size)
    return task


def views_per_image(task: Task, image_size: int) -> int:
    """Return how many views of each image a step trains on, as far as the task, on the CPU, shows them; at least 1."""
    images = torch.zeros(TRIAL_BATCHES[1], 3, image_size, image_size)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return max(1, len(task.views(images, Rng(torch.Generator().manual_seed(0)))))


def _check_methods(task: Task, contract: Contract) -> None:
    """Check a task without running it."""
    for name, arguments in METHODS.items():
        try:
            inspect.signature(getattr(task, name)).bind(*arguments)
        except TypeError:
            expected = f"{name}({', '.join(('self', *arguments))})"
            found = f"{name}{inspect.signature(getattr(type(task), name))}"
            raise contract.broken(f"a task must define {expected}, found {found}") from None
    lazy = [n for n, p in itertools.chain(task.named_parameters(), task.named_buffers()) if is_lazy(p)]
    if lazy:
        raise contract.broken(f"all weights must have a shape when a task is built, found lazy ones: {lazy[0]}; "
                              "encoder.feature_dim and encoder.channels give the input of a layer")  # fmt: skip
    encoders = [n for n, m in task.named_modules(remove_duplicate=False) if isinstance(m, Encoder)]
    if task.downstream not in encoders:
        available = ", ".join(encoders) or "no encoder"
        raise contract.broken(f"`downstream` must be the path of an encoder, found {task.downstream!r}; "
                              f"the task has {available}")  # fmt: skip


def _try_twice(task: Task, contract: Contract, image_size: int) -> None:
    try:
        _try(task, contract, image_size, TRIAL_BATCHES[0])
    except UserError as error:
        try:
            _try(task, contract, image_size, TRIAL_BATCHES[1])
        except UserError:
            raise error from error.__cause__


def _try(task: Task, contract: Contract, image_size: int, n: int) -> None:
    """Run a step of a copy of the task on n random images; neither the task nor torch's random state changes.

    A task with `prepare` is not run: a step needs what it prepares from the data set.
    """
    if type(task).prepare is not Task.prepare:
        return
    try:
        task = copy.deepcopy(task).train()
    except Exception:  # some modules cannot be copied; they first run in training
        return
    images = torch.rand(n, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    rng = Rng(torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        with contract.running("set_sizes(images, batch_size)"):
            task.set_sizes(MANY, n)
        with contract.running("before_step(step, total)"):
            task.before_step(0, TRIAL_STEPS)
        with contract.running("forward(batch, rng)"):
            out = task({"images": images.clone(), "rows": torch.arange(n)}, rng)
        _check_output(out, contract)
        with contract.running("after_step(step, total)"):
            task.after_step(0, TRIAL_STEPS)
        with contract.running("learning_rates()"):
            rates = task.learning_rates()
        _check_rates(rates, task, contract)
        for name in ("views", "figures"):
            task.train(name == "views")  # as in a run
            with contract.running(f"{name}(images, rng)"), torch.no_grad():
                result = getattr(task, name)(images.clone(), rng)
            _check_images(name, result, n, contract)


def _check_output(out: Any, contract: Contract) -> None:
    if not isinstance(out, dict) or "loss" not in out:
        found = f"the keys {', '.join(map(str, out)) or 'none'}" if isinstance(out, dict) else type(out).__name__
        raise contract.broken(f"forward must return a dict with `loss`, found {found}")
    for key, value in out.items():
        if not isinstance(value, Tensor) or value.ndim > 0:
            found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise contract.broken(f"forward must return `{key}` as a scalar tensor, such as a mean, found {found}")
    if not out["loss"].requires_grad:
        raise contract.broken("`loss` must depend on the weights, found one that does not require grad")


def _check_rates(rates: Any, task: Task, contract: Contract) -> None:
    if not isinstance(rates, dict):
        raise contract.broken(f"learning_rates must return a dict, found {type(rates).__name__}")
    for prefix in rates:
        if not any(name.startswith(prefix) for name, _ in task.named_parameters()):
            raise contract.broken(f"learning_rates must name prefixes of parameters, found {prefix!r}")


def _check_images(name: str, images: Any, n: int, contract: Contract) -> None:
    if not isinstance(images, dict):
        raise contract.broken(f"{name} must return a dict of images by name, found {type(images).__name__}")
    for key, value in images.items():
        fits = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 4
        if not fits or value.shape[:2] != (n, 3):
            found = f"{list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise contract.broken(
                f"{name} must return N x 3 x H x W floats in [0, 1], found {key!r} of {n} images: {found}"
            )
