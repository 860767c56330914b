"""The ways to run a cell that are compared: the fused one, and those that a user would otherwise take.

Beside torch.nn (oneDNN on a CPU, cuDNN on a GPU) these are the careful loops of ``eager``: as they are, by TorchScript,
by torch.compile, and replayed as a CUDA graph; the libraries of ``others``; and for sequences of episodes the ways of
``episodes``. torch.nn.GRU is compared with the reset-before GRU too, whose equation torch.nn lacks. All candidates
include the product of the input and its weights.
"""

import importlib.util
import types
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fused_rnn

from . import episodes
from .cases import CELLS, MODULES, Case, make_step, resets
from .eager import EagerLoop, State
from .others import FlashRNN, Haste, TorchRL

Operands = tuple[Tensor, Tensor]  # the input and the gradient of the output
# A candidate's error may exceed that of PyTorch's plain loop in the same dtype by this factor, or be as large as the
# least tolerance if that is more. Rivals may use other arithmetic, as long as they compute the same thing. cuDNN's
# persistent kernels, for one, approximate in float32: their error was seen to be 6e-6, forty times that of the plain
# loop.
FUSED_FACTOR, RIVAL_FACTOR = 2.0, 8.0
RIVAL_LEAST = 2.0**-16
COMPILER = "inductor"
FUSED = tuple(backend for backend in fused_rnn.backends() if backend != "reference")
# torch.compile unrolls a loop, which takes many minutes at T=200, and again for each T. So on a CPU it gets the loop in
# pieces, of a number of steps that divides T, which are called one after the other. It gains by fusing the operations
# between two products; pieces twice as long run a little faster still.
STEPS_AT_ONCE = 25


class Ready:
    """A candidate that runs one case: ``load`` chooses the operands, ``run`` is timed."""

    def __init__(
        self,
        module: nn.Module,
        case: Case,
        sets: Sequence[Operands],
        call: Callable[..., tuple[Tensor, object]] | None = None,
        rows: bool = False,
    ) -> None:
        self.module, self.call, self.input = module, call or module, sets[0][0]
        self._steps = [make_step(module, case, operands, call, rows) for operands in sets]
        self._step = self._steps[0]

    def load(self, number: int) -> None:
        self._step = self._steps[number % len(self._steps)]

    def run(self) -> dict[str, Tensor]:
        return self._step()

    def translate(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return results by the names of the reference, and as it has them."""
        return self.module.translate(results) if isinstance(self.module, Haste) else results


class Packed(Ready):
    """Sequences of different lengths, packed outside the timed call; results are those of the packed rows."""

    def __init__(self, module: nn.Module, case: Case, sets: Sequence[Operands]) -> None:
        lengths = torch.tensor(case.shape.lengths)
        packed = [[pack_padded_sequence(operand, lengths) for operand in operands] for operands in sets]
        self._batch_sizes = packed[0][0].batch_sizes

        def call(rows: Tensor) -> tuple[Tensor, object]:
            output, state = module(PackedSequence(rows, self._batch_sizes))
            return output.data, state

        super().__init__(module, case, [tuple(operand.data for operand in operands) for operands in packed], call)

    def translate(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pad the rows of results again."""
        rows = {name: results[name] for name in ("output", "gradient of input") if name in results}
        padded = {name: pad_packed_sequence(PackedSequence(row, self._batch_sizes))[0] for name, row in rows.items()}
        return {**results, **padded}


def padded(module: nn.Module, case: Case, sets: Sequence[Operands]) -> Ready:
    """Run padded sequences with their lengths; results are padded too."""
    lengths = torch.tensor(case.shape.lengths)
    return Ready(module, case, sets, lambda input: module(input, lengths=lengths))


def episodic(
    way: Callable[[nn.Module, Tensor, Tensor], Tensor], module: nn.Module, case: Case, sets: Sequence[Operands]
) -> Ready:
    """Run sequences of episodes in one of the ways of ``episodes``."""
    begins = resets(case.shape, sets[0][0].device)
    return Ready(module, case, sets, lambda input: (way(module, input, begins), None))


class SingleSteps(nn.Module):
    """A module of single steps, whose parameters have their names in a layer."""

    def __init__(self, module: Callable[..., nn.Module], **sizes: int) -> None:
        super().__init__()
        cell = module(**sizes)
        self.__dict__["cell"] = cell  # not a submodule: each parameter has one name
        for name, parameter in cell.named_parameters():
            self.register_parameter(f"{name}_l0", parameter)


def stepped(module: SingleSteps, case: Case, sets: Sequence[Operands]) -> Ready:
    """Run a module of single steps, called with the rows of one step after the other."""

    def call(step: Tensor, state: State | None) -> tuple[Tensor, State]:
        state = module.cell(step, state)
        return state[0] if isinstance(state, tuple) else state, state

    return Ready(module, case, sets, call, rows=True)


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
            for _ in range(3):  # libraries load code and allocate workspaces before the capture
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


@dataclass(frozen=True)
class Candidate:
    """One way to run a cell, the tolerance of its results, and the preparation of its module."""

    name: str
    title: str
    equations: str  # the cell whose reference it must agree with
    build: Callable[..., nn.Module]  # takes I and H, and num_layers and bidirectional if there are more than one
    factor: float = RIVAL_FACTOR
    least: float = RIVAL_LEAST
    ready: Callable[[nn.Module, Case, Sequence[Operands]], Ready] = Ready
    backend: str | None = None  # of fused cells
    episodes: bool = True  # whether it begins them anew, where there are any


class ScriptedLoop(EagerLoop):
    """The loop compiled by TorchScript, which keeps the loop but has no Python in it."""

    def __init__(self, *sizes, **options) -> None:
        super().__init__(*sizes, **options)
        # a copy, because TorchScript keeps the code that it compiled of a function, for the sizes and the mode it met
        loop = types.FunctionType(self.loop.__code__, self.loop.__globals__, self.loop.__name__)
        loop.__annotations__ = self.loop.__annotations__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.loop = torch.jit.script(loop)


class CompiledLoop(EagerLoop):
    """One layer whose loop torch.compile compiles for at most ``at_once`` steps, or unrolls completely."""

    def __init__(self, cell: str, input_size: int, hidden_size: int, at_once: int | None = STEPS_AT_ONCE) -> None:
        super().__init__(cell, input_size, hidden_size)
        torch.compiler.reset()  # the number of sizes that one function is compiled for is limited
        self.loop = torch.compile(self.loop, backend=COMPILER, fullgraph=True, dynamic=False)
        self.at_once = at_once

    def forward(self, input: Tensor, hx: list[State] | None = None) -> tuple[Tensor, list[State]]:
        steps = len(input)
        at_once = max(n for n in range(1, min(steps, self.at_once or steps) + 1) if steps % n == 0)
        outputs = []
        for part in input.split(at_once):
            output, hx = super().forward(part, hx)
            outputs.append(output)
        return torch.cat(outputs) if len(outputs) > 1 else output, hx


STEP_MODULES = {  # ours and torch.nn's
    "rnn_cell": (fused_rnn.RNNCell, nn.RNNCell),
    "lstm_cell": (fused_rnn.LSTMCell, nn.LSTMCell),
    "gru_reset_after_cell": (fused_rnn.GRUCell, nn.GRUCell),
}


def single_steps(cell: str, backend: str) -> list[Candidate]:
    """Return a module of single steps and torch.nn's, which are held to the layer of the same cell."""
    ours, theirs = STEP_MODULES[cell]
    equations = cell.removesuffix("_cell")
    build = partial(SingleSteps, partial(ours, backend=backend))
    beside = Candidate("torch", f"torch.nn.{theirs.__name__}", equations, partial(SingleSteps, theirs), ready=stepped)
    return [replace(fused(equations, backend), build=build, ready=stepped), beside]


def of_episodes(cell: str, backend: str) -> list[Candidate]:
    """Return the ways to run sequences of episodes: ours, ours as if there were none, and those with torch.nn."""
    ours, layer = fused(cell, backend), torch_nn(cell)
    step = replace(layer, build=partial(SingleSteps, STEP_MODULES[f"{cell}_cell"][1]))

    def way(name: str, title: str, of: Candidate, run: Callable[..., Tensor]) -> Candidate:
        return replace(of, name=name, title=title, ready=partial(episodic, run))

    return [
        way("resets", "fused_rnn, `resets`", ours, episodes.with_resets),
        replace(ours, name="without", title="fused_rnn, without", episodes=False),
        way("steps", "torch.nn, a loop over steps", step, episodes.step_by_step),
        way("split", "torch.nn, cut at every boundary", layer, episodes.cut_at_boundaries),
        way("packed", "torch.nn, episodes packed", layer, episodes.packed_episodes),
    ]


def fused(cell: str, backend: str) -> Candidate:
    build = partial(MODULES[cell], backend=backend)
    return Candidate("fused", "fused_rnn", cell, build, FUSED_FACTOR, least=0.0, backend=backend)


def torch_nn(cell: str) -> Candidate | None:
    """Return torch.nn's module of the cell, or the closest one; None if it has none."""
    modules = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru_reset_after": nn.GRU, "gru": nn.GRU}
    if cell not in modules:
        return None
    equations = "gru_reset_after" if cell == "gru" else cell
    return Candidate("torch", f"torch.nn.{modules[cell].__name__}", equations, modules[cell])


def _rival(
    name: str, title: str, module: Callable[..., nn.Module], cells: Collection[str] = tuple(CELLS), **options
) -> Callable[[str], Candidate | None]:
    """Return a function that makes a rival of a cell, or None if the cell is not among its ``cells``."""

    def candidate(cell: str) -> Candidate | None:
        return Candidate(name, title, cell, partial(module, cell), **options) if cell in cells else None

    return candidate


eager = _rival("eager", "eager loop", EagerLoop)
compiled = _rival("compiled", f"eager loop, torch.compile of up to {STEPS_AT_ONCE} steps", CompiledLoop)
unrolled = _rival("compiled", "eager loop, torch.compile", partial(CompiledLoop, at_once=None))
# FlashRNN alternates between products and kernels, or has one kernel for the whole loop, which it lacks for the GRU.
alternating = partial(FlashRNN, backend="cuda")
RIVALS: dict[str, Callable[[str], Candidate | None]] = {
    "torch": torch_nn,
    "eager": eager,
    "script": _rival("script", "eager loop, TorchScript", ScriptedLoop),
    "compiled": compiled,
    "graphed": _rival("graphed", "eager loop as a CUDA graph", EagerLoop, ready=Graphed),
    "haste": _rival("haste", "haste", Haste, Haste.LAYOUTS),
    "torchrl": _rival("torchrl", "torchrl, Triton", TorchRL, TorchRL.FUNCTIONS),
    "flashrnn_alternating": _rival("flashrnn_alternating", "FlashRNN, alternating", alternating, FlashRNN.FUNCTIONS),
    "flashrnn": _rival("flashrnn", "FlashRNN, fused", FlashRNN, ("lstm", "rnn")),
}
LIBRARIES = {  # by rival, the package that it needs, and the dtypes that it has
    "haste": ("haste_pytorch", ("float32",)),
    "torchrl": ("torchrl", ("float32", "bfloat16")),
    "flashrnn_alternating": ("flashrnn", ("float32", "float16", "bfloat16")),
    "flashrnn": ("flashrnn", ("float32", "float16", "bfloat16")),
}
ON_GPU_ONLY = ("graphed", *LIBRARIES)
GRAPHED_UP_TO = 1024 * 64  # H * B; for larger sizes the launches that a graph saves are no longer the bottleneck
LOOPS = ("recompute", "torch", "eager", "graphed")  # TorchScript takes longer to compile than the rest of a case
WANTED = {  # by group of a GPU, beside every fused backend
    **dict.fromkeys(("honest", "people", "ragged"), ("torch",)),
    **dict.fromkeys(("main", "single", "grid", "chosen"), LOOPS),
    "rivals": ("torch", *LIBRARIES),
    "compiled": ("compiled",),
}
OPTIONAL = ("recompute", *RIVALS)


def candidates(
    case: Case, backends: Sequence[str], device: torch.device | str = "cpu", asked: Sequence[str] | None = None
) -> list[Candidate]:
    """Return the fused cell on each of ``backends``, or on all that run there if empty, then rivals.

    Rivals are those in ``asked`` that can run the case. If that is empty, they are those of the case's group on a GPU;
    elsewhere torch.nn, or the eager loop for cells that torch.nn lacks.
    """
    if case.cell in STEP_MODULES:
        return single_steps(case.cell, *backends)
    if case.shape.episodes is not None:
        return of_episodes(case.cell, *backends)
    wanted = wanted_at(case) if asked is None else asked
    found = []
    for backend in backends or FUSED:
        if obstacle(backend, device, case.dtype) is None:
            ours = fused(case.cell, backend)
            if case.group in WANTED:
                ours = replace(ours, name=backend, title=f"{ours.title}, {backend}")
            found.append(ours)
            if "recompute" in wanted and case.mode == "training":
                saving, title = partial(ours.build, recompute=True), f"{ours.title}, recompute"
                found.append(replace(ours, name=f"{ours.name}-recompute", title=title, build=saving))
    for name in RIVALS:
        if name in wanted and worthwhile(name, case) and obstacle(name, device) is None:
            on_gpu = torch.device(device).type == "cuda"
            rival = (unrolled if name == "compiled" and on_gpu else RIVALS[name])(case.cell)
            found += [rival] if rival else []
    return [way for candidate in found for way in ways(candidate, case)] if case.shape.lengths else found


def wanted_at(case: Case) -> Sequence[str]:
    """Return the rivals of a case if none are requested."""
    theirs = torch_nn(case.cell)
    return WANTED.get(case.group) or (("torch",) if theirs and theirs.equations == case.cell else ("torch", "eager"))


def ways(candidate: Candidate, case: Case) -> list[Candidate]:
    """Return the ways to run sequences of different lengths: packed, padded with lengths, or as if all were full."""
    packed = replace(candidate, title=f"{candidate.title}, packed", ready=Packed)
    if case.group in WANTED:
        return [packed, replace(candidate, name=f"{candidate.name}-padded", title=f"{candidate.title}, padded")]
    if not candidate.backend:
        return [packed]
    with_lengths = replace(candidate, name="lengths", title=f"{candidate.title}, padded with lengths", ready=padded)
    return [replace(packed, name="packed"), with_lengths]


def worthwhile(rival: str, case: Case) -> bool:
    """Whether a rival can run a case, and is worth its time there."""
    shape = case.shape
    if rival != "torch" and (shape.lengths or shape.directions > 1):
        return False
    if rival in LIBRARIES:  # adapters of libraries take no states
        _, dtypes = LIBRARIES[rival]
        return shape.layers == 1 and case.mode != "stream" and case.dtype in dtypes
    if rival == "compiled":
        return shape.layers == 1
    return rival != "graphed" or shape.hidden_size * shape.batch <= GRAPHED_UP_TO


def obstacle(name: str, device: torch.device | str, dtype: str = "float32") -> str | None:
    """Return why a rival, whatever the cell, or a fused backend cannot run on a device, or None if it can."""
    if name in ON_GPU_ONLY and torch.device(device).type != "cuda":
        return f"{name} needs a CUDA device"
    if name in LIBRARIES and importlib.util.find_spec(package := LIBRARIES[name][0]) is None:
        return f"{package} is not installed"
    if name not in RIVALS:
        try:
            fused_rnn.choose_backend(device, getattr(torch, dtype), name)
        except RuntimeError as error:
            return str(error)
    return None
