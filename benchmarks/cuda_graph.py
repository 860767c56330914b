"""Training steps as CUDA graphs: what a step queues on a GPU is recorded once, and then queued anew by a single call.

A step of a small model costs the host more than the GPU: hundreds of small launches, each by way of Python and PyTorch.
A graph holds them all, from the forward pass to the optimiser. It works in fixed memory, so its inputs are copied to
where it reads them, and shapes are fixed: each that comes often enough gets a graph of its own, others run as ever.

Recording computes nothing, and what is not recorded is a step like any other, so that as many steps are taken as
without graphs and each has the same bits. That asks of a step that all that changes between two calls be tensors on the
GPU: those that it is given, parameters, the state of generators, which a replay moves on as a call does, and that of
the optimiser with its learning rate (``optimisers.py``).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import InputError
from fused_rnn import cuda

# Steps of a shape before it is recorded, in which libraries choose their kernels and the optimiser makes its state.
WARM_UP = 3
Step = Callable[..., tuple[Tensor, ...]]


def check_cuda_graph(device: str, processes: int = 1) -> None:
    """Raise InputError where ``--cuda-graph`` cannot be had: without a GPU, or where processes train one model."""
    if torch.device(device).type != "cuda":
        raise InputError(f"--cuda-graph needs a GPU, and --device is {device}: give --device cuda, or leave it out")
    if processes > 1:
        raise InputError(
            f"--cuda-graph records what one process does, but {processes} train together: leave it out, or start one"
        )


class Recorder:
    """Runs and records functions on a GPU, all on one stream beside the current one, as recording needs it.

    The graphs share their memory, for only one is replayed at a time; what a function returns stays its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``function`` returns, after all that is queued on the current stream and before what comes next."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = function()
        current.wait_stream(self.stream)
        return results

    def record(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Memory for what ``function`` returns, and what queues on the current stream that it be computed there."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, self.pool, self.stream):
            results = function()

        def replay() -> None:
            cuda.raise_timed_out()  # of the replays before, as every call does; those of a graph are no calls
            graph.replay()

        return results, replay


@dataclass(frozen=True)
class Recording:
    """A step in fixed memory: where it reads its inputs, and what it leaves."""

    inputs: list[Tensor]
    results: tuple[Tensor, ...]
    gradients: list[Tensor | None]  # of the parameters
    replay: Callable[[], None]


class GraphedStep:
    """A training step which, from its fourth call with a shape of inputs, is replayed.

    Args:
        step: takes tensors, leaves gradients in ``parameters`` and returns tensors without a history.
        parameters: those that the step changes.
        recorder: where to run and record; a ``Recorder`` but for tests.
    """

    def __init__(self, step: Step, parameters: Iterable[Tensor], recorder: Recorder) -> None:
        self._step = step
        self._parameters = list(parameters)
        self._recorder = recorder
        self._calls: Counter[tuple] = Counter()
        self._recordings: dict[tuple, Recording] = {}
        self._latest: Recording | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the step returns for ``inputs``, which the next call may write over."""
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
        if recording is not self._latest:  # since then the parameters have had the gradients of another shape
            for parameter, gradient in zip(self._parameters, recording.gradients):
                parameter.grad = gradient
            self._latest = recording
        return recording.results
