"""Training steps as CUDA graphs: the GPU work of a step is recorded once, and then queued again by a single call.

A step of a small model costs the host more than the GPU: hundreds of small launches, each through Python and PyTorch.
A graph holds them all, from the forward pass to the optimiser. It works in fixed memory, so inputs are copied to that
memory, and shapes are fixed: each frequent shape has a graph of its own, others run as usual.

Recording computes nothing, and steps that are not recorded are ordinary steps, so a run takes the same number of steps
as without graphs, with the same bits. This requires that everything that changes between two calls is a tensor on the
GPU: the step's arguments, parameters, the state of generators, which a replay advances as a call does, and the state of
the optimiser with its learning rate (``optimisers.py``).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import InputError
from fused_rnn import cuda

# Steps of a shape before it is recorded, during which libraries choose their kernels and the optimiser makes its state.
WARM_UP = 3
Step = Callable[..., tuple[Tensor, ...]]


def check_cuda_graph(device: str, processes: int = 1) -> None:
    """Raise InputError if ``--cuda-graph`` is impossible: without a GPU, or if several processes train one model."""
    if torch.device(device).type != "cuda":
        raise InputError(f"--cuda-graph needs a GPU, and --device is {device}: give --device cuda, or leave it out")
    if processes > 1:
        raise InputError(
            f"--cuda-graph records what one process does, but {processes} train together: leave it out, or start one"
        )


class Recorder:
    """Runs and records functions on a GPU, all on one stream beside the current one, as recording requires.

    The graphs share their memory, because only one is replayed at a time; the results of a function are not shared.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return the result of ``function``, run after the current stream's queued work and before its later work."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = function()
        current.wait_stream(self.stream)
        return results

    def record(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Return memory for the results of ``function``, and a function that queues their computation on the stream."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, self.pool, self.stream):
            results = function()

        def replay() -> None:
            cuda.raise_timed_out()  # for earlier replays; every call checks, but a graph makes none
            graph.replay()

        return results, replay


@dataclass(frozen=True)
class Recording:
    """A step in fixed memory: its inputs and its results."""

    inputs: list[Tensor]
    results: tuple[Tensor, ...]
    gradients: list[Tensor | None]  # of the parameters
    replay: Callable[[], None]


class GraphedStep:
    """A training step which, from its fourth call with a shape of inputs, is replayed.

    Args:
        step: takes tensors, leaves gradients in ``parameters`` and returns tensors without a history.
        parameters: the parameters that the step changes.
        recorder: runs and records; anything but a ``Recorder`` is for tests.
    """

    def __init__(self, step: Step, parameters: Iterable[Tensor], recorder: Recorder) -> None:
        self._step = step
        self._parameters = list(parameters)
        self._recorder = recorder
        self._calls: Counter[tuple] = Counter()
        self._recordings: dict[tuple, Recording] = {}
        self._latest: Recording | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the step's results for ``inputs``; the next call may overwrite them."""
        shapes = tuple((given.shape, given.dtype) for given in inputs)
        if shapes not in self._recordings:
            if self._calls[shapes] < WARM_UP:
                self._calls[shapes] += 1
                self._latest = None
                return self._recorder.run(lambda: self._step(*inputs))
            self._recordings[shapes] = self._record(inputs)
        return self._replay(self._recordings[shapes], inputs)

    def _record(self, given: tuple[Tensor, ...]) -> Recording:
        inputs = [torch.empty_like(tensor) for tensor in given]
        results, replay = self._recorder.record(lambda: self._step(*inputs))
        return Recording(inputs, results, [parameter.grad for parameter in self._parameters], replay)

    def _replay(self, recording: Recording, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for tensor, values in zip(recording.inputs, given):
            tensor.copy_(values)
        recording.replay()
        if recording is not self._latest:  # otherwise the parameters hold the gradients of another shape
            for parameter, gradient in zip(self._parameters, recording.gradients):
                parameter.grad = gradient
            self._latest = recording
        return recording.results
