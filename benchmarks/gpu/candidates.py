"""The ways to run a cell that are compared, and each made ready to be called on several sets of operands.

Fused backends, also with recompute=True, which saves memory in training; torch.nn, which is cuDNN on a GPU
(torch.nn.GRU also beside the reset-before GRU, whose equation it lacks); the hand-written loop as it is, replayed as a
CUDA graph, and compiled whole by torch.compile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

import fused_rnn
from benchmarks.speed.cases import RIVALS, Candidate, Case, eager, fused, make_step

from .points import Point

Operands = tuple[Tensor, Tensor]  # the input and the gradient of the output
# A candidate may err by this factor more than PyTorch's plain loop in the same dtype. The arithmetic of a rival is its
# own affair: it is held only to computing the same thing.
FUSED_FACTOR, RIVAL_FACTOR = 2.0, 8.0
GRAPHED_UP_TO = 1024 * 64  # H * B: beyond, the launches that a graph saves are not what takes the time
COMPILER = "inductor"
MODES = ("forward", "training")
OPTIONAL = ("recompute", "torch", "eager", "graphed", "compiled")


@dataclass(frozen=True)
class Way:
    """A candidate, how far it may be off, what is done to its module, and in which modes it is measured."""

    candidate: Candidate
    factor: float
    ready: Callable[[nn.Module, Case, Sequence[Operands]], "Ready"]
    modes: tuple[str, ...] = MODES

    @property
    def name(self) -> str:
        return self.candidate.name


class Ready:
    """A candidate that runs one case: ``load`` chooses the operands, ``run`` is what is timed."""

    def __init__(self, module: nn.Module, case: Case, sets: Sequence[Operands]) -> None:
        self.module = module
        self._steps = [make_step(module, case, operands) for operands in sets]
        self._step = self._steps[0]

    def load(self, number: int) -> None:
        self._step = self._steps[number % len(self._steps)]

    def run(self) -> dict[str, Tensor]:
        return self._step()


class Compiled(Ready):
    """The module compiled as a whole: the time loop is unrolled, which takes minutes for a long one."""

    def __init__(self, module: nn.Module, case: Case, sets: Sequence[Operands]) -> None:
        torch.compiler.reset()
        module.compile(backend=COMPILER, fullgraph=True, dynamic=False)
        super().__init__(module, case, sets)


class Graphed(Ready):
    """The step captured as a CUDA graph, on operands that ``load`` overwrites. Results live until the next run."""

    def __init__(self, module: nn.Module, case: Case, sets: Sequence[Operands]) -> None:
        self.module = module
        self._sets = sets
        self._operands = tuple(operand.clone() for operand in sets[0])
        step = make_step(module, case, self._operands)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries load code and take their workspaces before the capture
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = step()

    def load(self, number: int) -> None:
        for operand, value in zip(self._operands, self._sets[number % len(self._sets)]):
            operand.copy_(value)

    def run(self) -> dict[str, Tensor]:
        self._graph.replay()
        return self._results


def backends_for(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The fused backends that run here in this dtype."""

    def runs(backend: str) -> bool:
        try:
            fused_rnn.choose_backend(device, dtype, backend)
        except RuntimeError:
            return False
        return True

    return [backend for backend in fused_rnn.backends() if backend != "reference" and runs(backend)]


def ways(point: Point, device: torch.device, wanted: Sequence[str] = OPTIONAL) -> list[Way]:
    """Fused backends first, then rivals; of ``OPTIONAL`` those that are wanted and exist for the point."""
    found = []
    for backend in backends_for(device, getattr(torch, point.dtype)):
        candidate = replace(fused(point.cell, backend), name=backend, title=f"fused_rnn, {backend}")
        found.append(Way(candidate, FUSED_FACTOR, Ready))
        if "recompute" in wanted:
            saving = partial(candidate.build, recompute=True)
            candidate = Candidate(f"{backend}-recompute", f"{candidate.title}, recompute", point.cell, saving)
            found.append(Way(candidate, FUSED_FACTOR, Ready, modes=("training",)))
    loop = eager(point.cell)
    rivals = [Way(rival, RIVAL_FACTOR, Ready) for rival in RIVALS[point.cell] if rival.name == "torch"]
    rivals.append(Way(loop, RIVAL_FACTOR, Ready))
    if device.type == "cuda" and point.hidden * point.batch <= GRAPHED_UP_TO:
        graphed = replace(loop, name="graphed", title="eager loop as a CUDA graph")
        rivals.append(Way(graphed, RIVAL_FACTOR, Graphed))
    compiled = replace(loop, name="compiled", title="eager loop, torch.compile")
    rivals.append(Way(compiled, RIVAL_FACTOR, Compiled))
    return found + [way for way in rivals if way.name in wanted]


def build(candidate: Candidate, point: Point, weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    """The candidate's module at the point, with these weights."""
    with torch.device(device):
        module = candidate.build(point.hidden, point.hidden)
    module.load_state_dict(weights)
    return module.to(getattr(torch, point.dtype))  # after the weights are there: cuDNN's copy of them is made here


def reference(cell: str, point: Point, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The plain PyTorch loop of the package."""
    return partial(fused(cell, "reference").build, device=device, dtype=dtype)(point.hidden, point.hidden)
