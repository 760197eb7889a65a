"""Several processes that train one model, as torchrun starts them: their shares of a batch, and collectives.

Every process holds the whole model, and computes with its share of each batch. A task's loss is a mean over this share,
or the loss of the whole batch (after `gathered`); weighted by the shares and summed over the processes, both are the
loss of the whole batch, and so are the gradients: those of `gathered` and `total` are sums over the processes. Hence N
processes train the same model as one, up to rounding. In a single process everything here does nothing.
"""

import datetime
import functools
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslrun.base.errors import UserError
from sslrun.base.machine import is_first, started_processes
from sslrun.base.paths import PACKAGE

TIME_LIMIT = datetime.timedelta(minutes=30)  # for which a process waits for the others in a step
PATIENT = datetime.timedelta(days=7)  # the same while the first evaluates or compares candidates
LOST = ("gloo", "nccl", "connection closed", "connection reset", "socket")  # in messages of torch
PATIENCE = datetime.timedelta(seconds=3)
REPORTED, SEEN = (f"sslrun {what} {os.environ.get('TORCHELASTIC_RESTART_COUNT')}" for what in ("reported", "seen"))
T = TypeVar("T")
P = ParamSpec("P")
_alone = False  # this process does something that the others do not
_lost = False  # this process has not met the others
_patient: Any = None  # the group of all processes, with a longer time limit
_batch = 0  # images of the global batch of the current step


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def start() -> None:
    """Join the other processes that torchrun has started, if there are any.

    Raises:
        UserError: they cannot meet, since the port is in use, for example.
    """
    global _patient, _lost
    _lost = False
    if started_processes() == 1 or dist.is_initialized():
        return
    gpu = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIME_LIMIT)
        _patient = dist.new_group(backend="gloo", timeout=PATIENT)
    except (RuntimeError, ValueError) as error:
        _lost = True
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = str(error).splitlines()[0].rpartition("message: ")[2]
        raise UserError(
            f"the {started_processes()} processes cannot meet at {place}: {reason}; start them with torchrun, and with "
            "--master-port=PORT if a port is in use"
        ) from None


def end() -> None:
    """Leave the group of processes. After an error on a GPU the process ends here: NCCL would wait for the others."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    error = sys.exc_info()[1]
    stopped = isinstance(error, SystemExit) and error.code != 1  # by a signal: all do
    if error is not None and not stopped and torch.cuda.is_initialized():
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    dist.destroy_process_group()


def is_lost(error: RuntimeError) -> bool:
    """Return whether a collective failed since another process has ended or does not answer."""
    return count() > 1 and (isinstance(error, dist.DistError) or any(w in str(error).lower() for w in LOST))


def leave() -> None:
    """Go on without the others."""
    global _alone
    _alone = True


def report(show: Callable[[], object]) -> None:
    """Show a mistake once: in the first process, and in another one only if the first has shown none for a while."""
    if started_processes() == 1 or _lost:
        show()
        return
    try:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=PATIENCE)
        if not is_first():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others
            if not _within(PATIENCE, lambda: store.check([REPORTED])):
                show()
            store.add(SEEN, 1)
            return
        show()
        store.set(REPORTED, "")
        _within(PATIENCE, lambda: store.add(SEEN, 0) == started_processes() - 1)  # the store may end with this process
    except RuntimeError:  # the store has gone with the first process
        show()


def _within(time_limit: datetime.timedelta, condition: Callable[[], bool]) -> bool:
    """Return whether a condition comes true within a time."""
    until = time.monotonic() + time_limit.total_seconds()
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


def from_first(function: Callable[[], T]) -> T:
    """Return what a function returns in the first process, which alone calls it, as if there were no others."""
    if count() == 1:
        return function()
    box: list[Any] = [None]
    if rank() == 0:
        with alone():
            box = [function()]
    dist.broadcast_object_list(box, group=_patient)
    return box[0]


def same(value: T) -> T:
    """Return the first process's value in all processes."""
    return from_first(lambda: value)


@contextmanager
def alone() -> Iterator[None]:
    """Compute within the context as if there were no other processes."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that only the first process calls; all get its result."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return from_first(lambda: function(*args, **kwargs))

    return call


def largest(*values: float) -> list[float]:
    """Return the maximum of each value over the processes."""
    if count() == 1:
        return list(values)
    out = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(out, dist.ReduceOp.MAX)
    return out.tolist()


def refuse_differences(**values: str) -> None:
    """Raise if a value is not the same in all processes.

    Raises:
        UserError: names the value and the process that has another one than most.
    """
    if count() == 1:
        return
    every: list[dict[str, str]] = [{}] * count()
    dist.all_gather_object(every, values)
    for name in values:
        given = [of[name] for of in every]
        common = max(given, key=given.count)
        odd = [str(r) for r, value in enumerate(given) if value != common]
        if odd:
            raise UserError(
                f"the processes must have the same {name}, and process {', '.join(odd)} of 0 to {count() - 1} has "
                f"another: {', '.join(given[int(r)] for r in odd)} instead of {common}"
            )


def code() -> str:
    """Return a hash of sslrun's code."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if count() > 1 else ""


def sizes(n: int) -> list[int]:
    """Return how many of n images each process takes; they differ by 1 at most."""
    return [n * (r + 1) // count() - n * r // count() for r in range(count())]


def share(n: int) -> slice:
    """Return this process's images of n."""
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def begin(batch: int) -> None:
    """Begin a step with this number of images in the global batch, which `gathered` has to know."""
    global _batch
    _batch = batch


def weight() -> float:
    """Return this process's share of the global batch, as a fraction."""
    return sizes(_batch)[rank()] / _batch if count() > 1 else 1.0


def gathered(x: Tensor, views: int = 1) -> Tensor:
    """Return the rows of all processes, in the order of the global batch; gradients flow to all of them.

    Args:
        x: `views * n x ...` for this process's n images, view by view.

    Returns:
        `views * N x ...` for the N images of the global batch, view by view.
    """
    if count() == 1:
        return x
    by_image = x.unflatten(0, (views, -1)).transpose(0, 1).contiguous()
    every: Tensor = Gather.apply(by_image, sizes(_batch))
    return every.transpose(0, 1).flatten(0, 1)


def total(x: Tensor) -> Tensor:
    """Return the sum over all processes; gradients flow to all of them."""
    if count() == 1:
        return x
    out: Tensor = Total.apply(x)
    return out


def mean_of_share(x: Tensor) -> Tensor:
    """Return this process's part of a sum over the batch if all parts were in proportion to the shares.

    It is the denominator of a mean whose number of terms differs from image to image.
    """
    return total(x) * weight() if count() > 1 else x


def sum_gradients(module: nn.Module) -> None:
    """Replace all gradients by their sums over the processes; a missing one counts as 0.

    A parameter without a gradient in any process still has none.
    """
    if count() == 1:
        return
    trained = [p for p in module.parameters() if p.requires_grad]
    there = torch.tensor([float(p.grad is not None) for p in trained])
    dist.all_reduce(there)  # on the CPU, so that nothing waits for a GPU, which may wait for a lost process
    trained = [p for p, n in zip(trained, there.tolist(), strict=True) if n]
    if not trained:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for p, g, part in zip(trained, gradients, flat.split([g.numel() for g in gradients]), strict=True):
        p.grad = g.copy_(part.view_as(g))


def broadcast(module: nn.Module) -> None:
    """Copy the parameters and buffers of the first process to the others: what was computed may differ by rounding."""
    if count() > 1:
        for x in (*module.parameters(), *module.buffers()):
            copy = x.detach().contiguous()
            dist.broadcast(copy, 0)
            x.detach().copy_(copy)


class Gather(torch.autograd.Function):
    """Concatenate the rows of all processes; the gradient of a row is the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Sequence[int]) -> Tensor:
        before = sum(rows[: rank()])
        ctx.rows = slice(before, before + rows[rank()])
        most = max(rows)
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) if len(x) < most else x.contiguous()
        every = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(every, padded)
        return torch.cat([part[:n] for part, n in zip(every, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None


class Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient
