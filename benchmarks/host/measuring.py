"""A process that measures what the host does for a call on a GPU, of the ``fused_rnn`` that Python finds.

There is no GPU here. So on CPU tensors the operators ``fused_rnn::forward`` and ``backward`` are put to what they do on
a GPU: the products around the loop, in Python, and in place of the kernels something that allocates their results. The
tensors are so small that a product takes no longer than to call it. What a GPU would add is not in it: looking at the
device, planning, the launches themselves, cuBLAS and the GPU's allocator.

A call is measured whole, and then its parts by themselves, with the arguments that it gave them: the operator by way of
the dispatcher, which the call may have gone past; the products, which are all that it does; and in them the results.
The parts of a training step are those of its backward pass. It prints one line of JSON, records with medians in µs.
Nothing here knows other modules of the benchmarks, nor needs what is new in ``fused_rnn``: earlier revisions are
measured with the same file.
"""

import argparse
import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import fused_rnn
from fused_rnn.cells import CELLS

T, B, SIZE = 4, 2, 8  # steps, sequences, and both features and units
MODULES = {"lstm": fused_rnn.LSTM, "gru": fused_rnn.GRU}
LAYERS = (1, 2)
CALLS = 10  # of a way in a round

try:
    from fused_rnn import products as around
except ImportError:  # in earlier revisions
    around = fused_rnn.cuda

try:
    from fused_rnn.operands import LoopGradients

    ABSENT = len(LoopGradients._fields) - 3  # results of the backward loop that these calls do not have
except ImportError:
    ABSENT = 1


# In place of the kernels ----------------------------------------------------------------------------------------


def allocate_results(*loop) -> tuple[Tensor, ...]:
    """Allocate the results of the forward loop, uninitialised."""
    projected, _, h_0, c_0 = loop[:4]
    cell, save = (part for part in loop if isinstance(part, str))
    steps, hidden = projected.shape[:2], h_0.shape[1]
    has_cells = c_0 is not None
    return (
        projected.new_empty((*steps, hidden)),
        projected.new_empty(h_0.shape),
        projected.new_empty(h_0.shape if has_cells else 0),
        projected.new_empty((*steps, hidden) if has_cells and save != "nothing" else 0),
        projected.new_empty((*steps, CELLS[cell].saved * hidden) if save == "everything" else 0),
    )


def allocate_gradients(*loop) -> tuple[Tensor, ...]:
    """Allocate the results of the backward loop, uninitialised."""
    output, h_0, c_0 = loop[4], loop[8], loop[9]
    (cell,) = (part for part in loop if isinstance(part, str))
    return (
        output.new_empty(h_0.shape),
        output.new_empty(0 if c_0 is None else c_0.shape),
        output.new_empty((*output.shape[:2], CELLS[cell].gradients * h_0.shape[1])),
        *(output.new_empty(0) for _ in range(ABSENT)),
    )


class Recorder:
    """A function that records the arguments of its calls on request."""

    recording = False

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.calls: list[tuple] = []

    def __call__(self, *arguments):
        if Recorder.recording:
            self.calls.append(arguments)
        return self.function(*arguments)

    def again(self) -> Callable[[], None]:
        """Return a function that repeats the recorded calls."""
        return repeated(self.function, self.calls)


def repeated(function: Callable, calls: list[tuple]) -> Callable[[], None]:
    calls = list(calls)

    def run() -> None:
        for arguments in calls:
            function(*arguments)

    return run


LOOPS = {"forward": Recorder(allocate_results), "backward": Recorder(allocate_gradients)}
KERNELS = around.Kernels(*LOOPS.values())
OPERATORS = {name: Recorder(functools.partial(getattr(around, name), kernels=KERNELS)) for name in LOOPS}
# what the quick path calls past the dispatcher, in revisions that have one
PAST_DISPATCHER = {
    name: Recorder(functools.partial(function.func, kernels=KERNELS))
    for name, function in zip(LOOPS, getattr(getattr(fused_rnn, "quick", None), "IN_PYTHON", {}).get("cuda", ()))
}
_LIBRARY = torch.library.Library("fused_rnn", "IMPL")  # registrations last as long as this object


def pretend() -> None:
    """Make the operators do on the CPU what they do on a GPU, except for the kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overwritten implementations
        for name, operator in OPERATORS.items():
            _LIBRARY.impl(name, operator, "CPU", allow_override=True)
    if PAST_DISPATCHER:
        fused_rnn.quick.IN_PYTHON["cpu"] = tuple(PAST_DISPATCHER.values())


# Measuring ------------------------------------------------------------------------------------------------------


def ways(cell: str, layers: int) -> dict[tuple[str, str], Callable[[], object]]:
    """Return the measurements of a module, by mode and part."""
    torch.manual_seed(0)
    module = MODULES[cell](SIZE, SIZE, num_layers=layers)
    x, d = torch.randn(T, B, SIZE), torch.randn(T, B, SIZE)
    parameters = list(module.parameters())

    def forward() -> None:
        with torch.no_grad():
            module(x)

    def training() -> None:
        torch.autograd.grad(module(x)[0], parameters, d)

    found: dict[tuple[str, str], Callable[[], object]] = {
        ("forward", "call"): forward,
        ("recorded", "call"): lambda: module(x),
        ("training", "call"): training,
    }
    for mode, name, whole in (("forward", "forward", forward), ("training", "backward", training)):
        for recorder in (*LOOPS.values(), *OPERATORS.values(), *PAST_DISPATCHER.values()):
            recorder.calls.clear()
        Recorder.recording = True
        whole()
        Recorder.recording = False
        called = OPERATORS[name] if OPERATORS[name].calls else PAST_DISPATCHER[name]
        found[mode, "operator"] = unrecorded(repeated(getattr(torch.ops.fused_rnn, name), called.calls))
        found[mode, "products"] = unrecorded(called.again())
        found[mode, "results"] = unrecorded(LOOPS[name].again())
    return found


def unrecorded(run: Callable[[], None]) -> Callable[[], None]:
    """Call operators as callers do who know that nothing is recorded."""

    def call() -> None:
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            run()

    return call


def medians(found: dict[tuple, Callable[[], object]], rounds: int) -> dict[tuple, float]:
    """Return the median µs of each call, in turns: of this thread's CPU time, so that other programs hardly matter."""
    times: dict[tuple, list[float]] = {way: [] for way in found}
    for _ in range(rounds):
        for way, run in found.items():
            run()  # makes caches as warm as in a loop of such calls
            started = time.thread_time()
            for _ in range(CALLS):
                run()
            times[way].append((time.thread_time() - started) / CALLS * 1e6)
    return {way: statistics.median(all_of_it) for way, all_of_it in times.items()}


def measure(rounds: int) -> list[dict]:
    torch.set_num_threads(1)
    pretend()
    return [
        {"cell": cell, "layers": layers, "mode": mode, "part": part, "us": round(us, 2)}
        for cell in MODULES
        for layers in LAYERS
        for (mode, part), us in medians(ways(cell, layers), rounds).items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    print(json.dumps(measure(parser.parse_args().rounds)))
