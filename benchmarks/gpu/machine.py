"""The measuring device: its name and state, the code that it runs, and the cost of a kernel launch."""

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks import common
from benchmarks.speed import ROOT
from benchmarks.speed.ceilings import attempt
from benchmarks.speed.clock import HostClock

from . import sources

KERNELS = ("csrc/cells", "csrc/cuda", "fused_rnn/triton")
STATE = (
    *("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"),
    *("power.draw", "power.limit", "temperature.gpu"),
)
LAUNCHES = 1000


def description(device: torch.device) -> dict:
    """Describe hardware and versions; on a GPU also the driver's readings before the measurements."""
    found = {**common.hardware(), "device": str(device)}
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    return {
        **found,
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "state": state(device),
    }


def state(device: torch.device) -> dict[str, str]:
    """Return driver, clocks, power and temperature as nvidia-smi reads them now; empty if it cannot."""
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        return {}
    chosen = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", f"--id={chosen}", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        return dict(zip(STATE, (value.strip() for value in answer.split(","))))
    return {}


def digests(root: Path = ROOT) -> dict[str, str | None]:
    """Return digests of the kernels' sources, and of the loaded library, which may have been built from others."""
    files = [path for folder in KERNELS for path in (root / folder).rglob("*") if path.is_file()]
    library = root / "fused_rnn" / "_C.so"
    return {
        "kernels": sources.digest((path for path in files if path.suffix != ".pyc"), root),
        "library": hashlib.sha256(library.read_bytes()).hexdigest() if library.exists() else None,
    }


def other_kernels(result: dict) -> bool:
    """Whether a file of results was measured with other kernels than those of the present sources."""
    return result.get("digests", {}).get("kernels") != digests()["kernels"]


def typical_ms(clock: HostClock, call: Callable[[], object], repeats: int = 10) -> float:
    return median([clock.time(call) for _ in range(3 + repeats)][3:])


def launch_costs(clock: HostClock) -> dict[str, float | None]:
    """Measure µs of one of many small kernels in a row, of one node of a CUDA graph of them, and of one waited for."""
    value = torch.zeros(1, device=clock.device)

    def many() -> None:
        for _ in range(LAUNCHES):
            value.add_(1)

    def one() -> None:
        value.add_(1)
        clock.wait()

    def graph_node_us() -> float:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        return 1000 * typical_ms(clock, graph.replay) / LAUNCHES

    one()
    return {
        "launch_us": 1000 * typical_ms(clock, many) / LAUNCHES,
        "launch_and_wait_us": 1000 * median(HostClock().time(one) for _ in range(100)),
        "graph_node_us": attempt(graph_node_us) if clock.device.type == "cuda" else None,
    }
