"""Time and memory of a call: by CUDA events and PyTorch's allocator on a GPU, by the host's clock on the CPU.

A CPU's memory is that of a process, whose peak the kernel records (VmHWM) and can reset. Allocators keep memory that an
earlier call freed, so such a process measures one call only.

On a GPU, a buffer of twice the second-level cache is overwritten before every timed call, outside the events, so that
no call finds its operands cached by the one before. The call is queued behind that write, as in a program that keeps
its GPU busy, so host work at its beginning is hidden while the write lasts. ``busy_us`` measures the time of the host
separately.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


class HostClock:
    name = "host clock"
    cold = "caches are left as they are"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def time(self, call: Callable[[], object]) -> float:
        """Return the ms of a call."""
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the most memory that ``call`` takes beyond that in use before; None if nothing counts it."""
        call()
        return None

    def busy_us(self, call: Callable[[], object], calls: int = 20, seconds: float = 0.5) -> float:
        """Return how long the host is busy with a call, in µs: the mean of successive calls, from an empty queue.

        Nothing waits between them. If a call's kernels fill the device's queue it waits for room, and rightly counts as
        busy.
        """
        self.wait()
        start, made = time.perf_counter(), 0
        while made < calls and time.perf_counter() - start < seconds:
            call()
            made += 1
        gone = time.perf_counter() - start
        self.wait()
        return 1e6 * gone / made

    def chill(self) -> None:
        """Make caches cold, if the clock does that; this is queued, not waited for."""

    def wait(self) -> None:
        pass

    def free(self) -> None:
        gc.collect()


class CudaClock(HostClock):
    name = "CUDA events"
    cold = "twice the second-level cache is overwritten before every timed call, outside the events"

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_device(index)
        self.device = torch.device("cuda", index)
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        self._scratch = torch.empty(2 * cache // 4, dtype=torch.int32, device=self.device)

    def time(self, call: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.chill()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def chill(self) -> None:
        self._scratch.fill_(1)

    def wait(self) -> None:
        torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


class Instant:
    """A moment in the GPU's queue; reading the seconds between two of them waits for both."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def __sub__(self, earlier: "Instant") -> float:
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1000


def clock_type(device: torch.device) -> type[HostClock]:
    return CudaClock if device.type == "cuda" else HostClock


def clock_for(device: torch.device) -> HostClock:
    return CudaClock(device) if device.type == "cuda" else HostClock()


def summary(times: list[float]) -> dict[str, float]:
    """Return the median and the interquartile range."""
    quarter, median, three_quarters = torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {"median_ms": round(median, 4), "spread_ms": round(three_quarters - quarter, 4)}


def peak_growth(step: Callable[[], object]) -> float:
    """Return by how many MiB the resident set grew, at its peak, over its level just before the step."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """Return a field of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def saved_bytes(module: nn.Module, input: Tensor, call: Callable[[Tensor], object] | None = None) -> int:
    """Return the bytes that autograd keeps of one forward pass: outputs included, input and parameters excluded.

    ``call`` calls the module with the input, if it does not take that as it is.
    """
    operands = [input, *module.parameters()]
    known = {tensor.untyped_storage().data_ptr() for tensor in operands}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = (call or module)(input.detach().requires_grad_())
    del output  # kept alive until here, so that no two storages share an address
    return sum(kept.values())
