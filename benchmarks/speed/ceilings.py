"""The limits of the device, measured in the same run as the cells, and the least time of a case that follows from them.

The ceilings are the rate of a large matrix product on random data and the bandwidth of a large copy, bytes read and
bytes written. The floor of a case is the longer of two times: its multiplications at that rate, and its compulsory
traffic at that bandwidth. Nonlinearities, saved gates and the order of the steps do not count.
"""

from collections.abc import Callable, Sequence

import torch

from .cases import EQUATIONS, Case
from .clock import HostClock

SIZES = {"cpu": (2048, 1 << 28), "cuda": (8192, 1 << 31)}  # of the product, in rows, and of the copy, in bytes
SMALL = (128, 1 << 16)  # for a smoke run
ROUNDS = 10


def ceilings(clock: HostClock, dtypes: Sequence[str], small: bool = False) -> dict[str, float | None]:
    """Return rates in TFLOP/s and bandwidth in TB/s, the best of some rounds; None for what the device cannot do."""
    size, copied = SMALL if small else SIZES[clock.device.type]
    found: dict[str, float | None] = {"product_size": size, "copied_bytes": copied}
    for dtype in dtypes:
        found[f"product_{dtype}_tflops"] = attempt(lambda dtype=dtype: product_rate(clock, getattr(torch, dtype), size))
    found["copy_tb_per_s"] = attempt(lambda: copy_bandwidth(clock, copied))
    clock.free()
    return found


def attempt(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except RuntimeError:  # out of memory, or an unsupported dtype
        return None


def best_ms(clock: HostClock, call: Callable[[], object]) -> float:
    return min(clock.time(call) for _ in range(ROUNDS))


def product_rate(clock: HostClock, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / best_ms(clock, lambda: torch.mm(a, b, out=out)) / 1e9


def copy_bandwidth(clock: HostClock, size: int) -> float:
    source = torch.randint(256, (size,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * size / best_ms(clock, lambda: target.copy_(source)) / 1e9


def floor_ms(case: Case, ceilings: dict[str, float | None]) -> float | None:
    """Return the least possible time of the case in ms; None if a ceiling was not measured."""
    rate, bandwidth = ceilings.get(f"product_{case.dtype}_tflops"), ceilings.get("copy_tb_per_s")
    if not rate or not bandwidth:
        return None
    flops, values = work(case)
    return max(flops / rate, getattr(torch, case.dtype).itemsize * values / bandwidth) / 1e9


def work(case: Case) -> tuple[int, int]:
    """Return the floating-point operations of the products of all layers, and the values that these transfer."""
    below = case.shape.directions * case.shape.hidden_size  # the input of all layers but the first
    sizes = [case.shape.input_size] + (case.shape.layers - 1) * [below]
    flops, values = zip(*(_work_of_layer(case, size) for size in sizes))
    return sum(flops), sum(values)


def _work_of_layer(case: Case, input_size: int) -> tuple[int, int]:
    shape, equations = case.shape, EQUATIONS[case.cell]
    sizes = [equations.weight_shape(name, input_size, shape.hidden_size) for name in equations.weights]
    weights = shape.directions * sum(size[0] * size[1] for size in sizes if len(size) == 2)
    rows = sum(shape.lengths) if shape.lengths else shape.steps * shape.batch
    ends = rows * (input_size + shape.directions * shape.hidden_size)  # the input and the output
    if case.mode == "training":  # δx and δW beside the product itself; gradients of both ends, both ends once more
        return 6 * rows * weights, 3 * ends + 2 * weights
    return 2 * rows * weights, ends + weights
