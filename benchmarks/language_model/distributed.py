"""The processes that train one model together, as torchrun starts them, and what they tell each other.

Every process has a share of the columns of each batch, and DistributedDataParallel takes the mean of their gradients,
through gloo on CPUs and nccl on GPUs. Else they tell each other a few numbers per step, through gloo everywhere, so
that none waits for its GPU. What people see, on the terminal and on disk, comes from the first process; only what ends
a run early is said by the one that notices first. No wait is longer than ``TIMEOUT``.

Without torchrun there is one process, which tells nobody anything.
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

TIMEOUT = timedelta(minutes=10)  # also for what only the first process does, while the others wait: saving, drawing
Result = TypeVar("Result")


@dataclass
class World:
    """All the processes, and which of them this is.

    Every method of several processes but ``say`` must be called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1
    store: dist.Store | None = None  # what all can read and write; torchrun keeps it, so it outlives the processes
    saved: str = "nothing is saved yet"  # what the run can go on from

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def columns(self) -> slice:
        """The share of this process in a batch."""
        return slice(self.rank, None, self.size)

    def device(self, name: str) -> str:
        """The device of this process, its own GPU for ``cuda``; InputError if ``name`` is one GPU for all."""
        if self.size == 1 or name == "cpu":
            return name
        if name != "cuda":
            raise InputError(f"--device {name} is one device for {self.size} processes: give cuda, or cpu")
        return f"cuda:{os.environ['LOCAL_RANK']}"

    def sharers(self, device: str) -> int:
        """How many of the processes compute in the memory of ``device``: on a CPU all on this machine."""
        return int(os.environ["LOCAL_WORLD_SIZE"]) if self.size > 1 and device == "cpu" else 1

    def parallel(self, model: nn.Module) -> nn.Module:
        """``model``, or what calls it and leaves the mean of all processes' gradients in its parameters."""
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
        """The sums of what all processes give; exact for whole numbers."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Result) -> list[Result]:
        """What each process gives, in their order; tensors on the CPU."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Result]) -> Result:
        """What ``make`` returns in the first process, for all; the others do not call it, but wait."""
        result = [make() if self.is_first else None]
        if self.size > 1:
            dist.broadcast_object_list(result)
        return result[0]

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """If another process is lost, end with one sentence and status 1.

        The launcher sends SIGTERM as soon as it notices the loss itself, so where signals are heeded this must be
        entered after them: they are heeded until the sentence is said.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_loss(error):
                raise
            self.say(f"\nerror: another of the {self.size} processes is gone or does not answer; {self.saved}")
            os._exit(1)  # the tidy way would wait for what the lost process was to send

    def say(self, message: str) -> None:
        """Print why the run ends early, if no other process has done so; all return only when it is printed."""
        if self.store is None:
            print_error(message)
        elif self.store.add("speakers", 1) == 1:
            print_error(message)
            self.store.set("said", "")
        else:
            with contextlib.suppress(RuntimeError):  # the speaker is gone, too
                self.store.wait(["said"], timedelta(seconds=10))


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started, or this one alone; only the first prints on standard output.

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
    """Whether ``error`` is of a connection; gloo's have no type of their own, but name the source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
