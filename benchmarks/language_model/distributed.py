"""The processes that train one model together, as torchrun starts them, and their communication.

Every process has a share of the columns of each batch, and DistributedDataParallel averages their gradients, through
gloo on CPUs and nccl on GPUs. All other communication is a few numbers per step, through gloo everywhere, so that no
process waits for its GPU. All output, on the terminal and on disk, comes from the first process; only the reason for an
early end is printed by the process that notices it first. No wait is longer than ``TIMEOUT``.

Without torchrun there is one process, which communicates with nobody.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import InputError, print_error

TIMEOUT = timedelta(minutes=10)  # includes work of the first process that the others wait for: saving, drawing
Result = TypeVar("Result")


@dataclass
class World:
    """All the processes, and the rank of this one.

    If there are several, all must call every method except ``say``, in the same order.
    """

    rank: int = 0
    size: int = 1
    store: dist.Store | None = None  # shared by all; torchrun keeps it, so it outlives the processes
    saved: str = "nothing is saved yet"  # what the run can continue from

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def columns(self) -> slice:
        """The share of this process in a batch."""
        return slice(self.rank, None, self.size)

    def device(self, name: str) -> str:
        """Return this process's device, its own GPU for ``cuda``; raise InputError if ``name`` is one GPU for all."""
        if self.size == 1 or name == "cpu":
            return name
        if name != "cuda":
            raise InputError(f"--device {name} is one device for {self.size} processes: give cuda, or cpu")
        return f"cuda:{os.environ['LOCAL_RANK']}"

    def sharers(self, device: str) -> int:
        """Return how many of the processes compute in the memory of ``device``: on a CPU all on this machine."""
        return int(os.environ["LOCAL_WORLD_SIZE"]) if self.size > 1 and device == "cpu" else 1

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return ``model``, or a wrapper that averages gradients over all processes in the model's parameters."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        if device.type == "cpu":
            backend, devices = "gloo", None
        else:
            torch.cuda.set_device(device)
            backend, devices = "nccl", [device]
        group = dist.new_group(backend=backend, timeout=TIMEOUT)
        return DistributedDataParallel(model, devices, process_group=group, gradient_as_bucket_view=True)

    def sum(self, *values: float) -> list[float]:
        """Return the sums of all processes' values; exact for whole numbers."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all processes, in their order; tensors on the CPU."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Result]) -> Result:
        """Return the result of ``make`` in the first process, to all; the others wait for it."""
        result = [make() if self.is_first else None]
        if self.size > 1:
            dist.broadcast_object_list(result)
        return result[0]

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Exit with one sentence and status 1 if another process is lost.

        The launcher sends SIGTERM as soon as it notices the loss itself. So if signals are heeded, this must be entered
        after them, so that they are heeded until the sentence is printed.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_loss(error):
                raise
            self.say(f"\nerror: another of the {self.size} processes is gone or does not answer; {self.saved}")
            os._exit(1)  # a regular exit would wait for data from the lost process

    def say(self, message: str) -> None:
        """Print why the run ends early, unless another process has done so; all return only when it is printed."""
        if self.store is None:
            print_error(message)
        elif self.store.add("speakers", 1) == 1:
            print_error(message)
            self.store.set("said", "")
        else:
            with contextlib.suppress(RuntimeError):  # the process that prints is gone, too
                self.store.wait(["said"], timedelta(seconds=10))


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Yield the processes that torchrun started, or this one alone; only the first prints on standard output.

    If one of them is lost, all end with one sentence and status 1.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    world = _join()
    with contextlib.ExitStack() as stack:
        if not world.is_first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(world.ending_together())
        yield world
    dist.destroy_process_group()


def _join() -> World:
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the processes that WORLD_SIZE speaks of: {str(error).splitlines()[0]}") from None
    return World(rank, size, store)


def _is_loss(error: RuntimeError) -> bool:
    """Whether ``error`` is of a connection; gloo's errors have no type of their own, but name the source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
