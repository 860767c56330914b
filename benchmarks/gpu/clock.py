"""Time and memory of a call: by CUDA events and PyTorch's allocator on a GPU, by the host's clock on the CPU.

On a GPU, a buffer of twice the second-level cache is overwritten in front of every timed call, outside the events: no
call finds its operands there because the one before left them. The call is queued behind that write, as in a program
that keeps its GPU busy, so host work at its beginning is hidden as far as the write is long; ``host_ms`` states how
long the host took to queue the call.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Reading:
    ms: float
    host_ms: float  # until the call returned


class HostClock:
    name = "host clock"
    cold = "caches are left as they are"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def time(self, call: Callable[[], object]) -> Reading:
        start = time.perf_counter()
        call()
        ms = 1000 * (time.perf_counter() - start)
        return Reading(ms, ms)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """What ``call`` needs at most beside what is there before; None where nothing counts it."""
        call()
        return None

    def wait(self) -> None:
        pass

    def free(self) -> None:
        gc.collect()


class CudaClock(HostClock):
    name = "CUDA events"
    cold = "twice the second-level cache is overwritten before every timed call, outside the events"

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        self.device = torch.device("cuda", torch.cuda.current_device())
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        self._scratch = torch.empty(2 * cache // 4, dtype=torch.int32, device=self.device)

    def time(self, call: Callable[[], object]) -> Reading:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._scratch.fill_(1)
        start.record()
        begun = time.perf_counter()
        call()
        host_ms = 1000 * (time.perf_counter() - begun)
        end.record()
        end.synchronize()
        return Reading(start.elapsed_time(end), host_ms)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def wait(self) -> None:
        torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


def clock_for(device: torch.device) -> HostClock:
    return CudaClock(device) if device.type == "cuda" else HostClock()
