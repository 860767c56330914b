"""The common parts of the tests: cells and backends under test, random operands, and errors against float64."""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fused_rnn
from fused_rnn import choice, ops

# At exit, ThreadSanitizer would sleep for a second in case threads are still running; ours are not.
os.environ.setdefault("TSAN_OPTIONS", "atexit_sleep_ms=0")

torch.set_num_threads(1)  # the tests are small; those of threading set their own number


# Files that take longest, compilation included, in this order: at the end, nothing would run beside them.
FIRST = [
    *("cluster_races", "cluster_kernels", "instruction_sets", "triton", "cuda_kernels", "aot", "new_cell", "host_shim"),
    *("cluster_floats", "cluster_sass", "packaging", "gpu_kernel", "message_races", "message_kernels", "gpu_micro"),
    *("gpu_kit_training", "gpu_kit", "gpu_kit_ends", "onnx", "lengths"),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked exhaustive too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    places = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    missing = [name for name in places if not Path(__file__).with_name(name).exists()]
    assert not missing, f"FIRST names files that are gone: {missing}"
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


def some_of(everything: Iterable, *some) -> list:
    """Return parameters of a test from values, or tuples of them; all but ``some`` are for exhaustive runs."""
    values = list(everything)
    assert all(value in values for value in some), f"not all of {some} are among {values}"  # or they would never run
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else [value]), marks=() if value in some else pytest.mark.exhaustive
        )
        for value in values
    ]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from scanning the thousands of tests, and all of torch, again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or leaks would be reported at the end of the process


# Cells that together have every feature: a cell state, a separate product for n, a reset before it, a modulated input
FEW_CELLS = ("lstm", "gru_reset_after", "multiplicative_gru")
of_few_cells = pytest.mark.parametrize("cell", some_of(ops.CELLS, *FEW_CELLS))


def runs_on(device: str, backend: str) -> bool:
    try:
        fused_rnn.choose_backend(device, torch.float64, backend)
    except RuntimeError:
        return False
    return True


# Fused backends that take tensors on the CPU; tests/gpu tests those of a GPU.
FUSED = [name for name in choice.BACKENDS if name != "reference" and runs_on("cpu", name)]


@dataclass(frozen=True)
class Shape:
    """Sizes of a sequence; ``str`` is what test ids show."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-I{self.I}-H{self.H}"


ODD_SHAPES = [Shape(1, 1, 1, 1), Shape(5, 1, 3, 4), Shape(3, 2, 1, 7), Shape(4, 3, 5, 1), Shape(2, 7, 2, 3)]
# sequences that end early, at the first step or at the last, or never begin; more than a tile of them, unsorted
LENGTHS = [3, 7, 0, 1, 7, 5, 2, 0, 0, 6, 7, 4, 1, 3, 2, 0, 0, 0, 0, 0, 5]


@dataclass
class Operands:
    """One call of a cell: its differentiable tensors by name, and how to run it."""

    cell: str
    tensors: dict[str, Tensor]
    reverse: bool = False
    lengths: Tensor | None = None
    recompute: bool = False
    return_cells: bool = True  # if the cell has them
    keep_h: Tensor | None = None
    keep_c: Tensor | None = None
    gradient_clip: float | None = None
    resets: Tensor | None = None

    def run(self, backend: str, **replaced: Tensor) -> list[Tensor]:
        """Return [output, h_n], or [output, h_n, c_n, cell states]."""
        tensors = {**self.tensors, **replaced}
        weights = {name: t for name, t in tensors.items() if name in ops.WEIGHTS}
        state = (tensors["h_0"], tensors["c_0"]) if "c_0" in tensors else tensors["h_0"]
        how = {"reverse": self.reverse, "lengths": self.lengths, "backend": backend, "recompute": self.recompute}
        how["return_cells"] = self.return_cells and ops.CELLS[self.cell].has_cell_state
        how |= {"resets": self.resets} | {name: t for name, t in tensors.items() if name.endswith("_reset")}
        how |= {"keep_h": self.keep_h, "keep_c": self.keep_c, "gradient_clip": self.gradient_clip}
        output, last, *cells = ops.run(self.cell, tensors["input"], state, weights, **how)
        return [output, *(last if isinstance(last, tuple) else (last,)), *cells]

    def arguments(self) -> tuple:
        """Return the operators' arguments, up to the last tensor."""
        tensors = [self.tensors.get(name) for name in ("input", "h_0", "c_0", *ops.WEIGHTS)]
        masks = [None if t is None else t.to(tensors[0].dtype) for t in (self.keep_h, self.keep_c)]
        return *tensors, self.lengths, *masks

    def function(self, backend: str) -> Callable[..., tuple[Tensor, ...]]:
        """Return the run as a function of the tensors in order, for gradcheck."""
        return lambda *tensors: tuple(self.run(backend, **dict(zip(self.tensors, tensors))))

    def to(self, dtype: torch.dtype) -> "Operands":
        tensors = {name: t.detach().to(dtype).requires_grad_() for name, t in self.tensors.items()}
        return replace(self, tensors=tensors)

    def on(self, device: torch.device) -> "Operands":
        tensors = {name: t.detach().to(device).requires_grad_() for name, t in self.tensors.items()}
        constants = ("lengths", "keep_h", "keep_c", "resets")
        moved = {name: t.to(device) for name in constants if (t := getattr(self, name)) is not None}
        return replace(self, tensors=tensors, **moved)

    def results_and_gradients(self, backend: str, d_results: list[Tensor]) -> list[Tensor]:
        results = self.run(backend)
        d_results = [d.to(r.dtype) for d, r in zip(d_results, results)]
        return [*results, *torch.autograd.grad(results, list(self.tensors.values()), d_results)]


def operands(
    cell: str, shape: Shape, *, reverse=False, lengths=None, bias=True, scale=0.5, seed=0, dtype=torch.float64
) -> Operands:
    """Return normally distributed operands; weights are scaled by ``scale`` over the square root of their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    spec = ops.CELLS[cell]
    shapes = {"input": (shape.T, shape.B, shape.I), "h_0": (shape.B, shape.H)}
    if spec.has_cell_state:
        shapes["c_0"] = (shape.B, shape.H)
    shapes |= {name: spec.weight_shape(name, shape.I, shape.H) for name in spec.weights if bias or "bias" not in name}
    tensors = {}
    for name, size in shapes.items():
        factor = scale / size[-1] ** 0.5 if name.startswith("weight") else scale if name.startswith("bias") else 1.0
        value = factor * torch.randn(size, dtype=torch.float64, generator=generator)
        tensors[name] = value.to(dtype).requires_grad_()
    return Operands(cell, tensors, reverse, None if lengths is None else torch.tensor(lengths))


def regularised(op: Operands, drawn: bool = True, seed: int = 2) -> Operands:
    """Add zoneout, with masks of 0 and 1 or of arbitrary fractions, and a limit that clips many gradients."""
    generator = torch.Generator().manual_seed(seed)
    T, B, H = *op.tensors["input"].shape[:2], op.tensors["h_0"].shape[1]
    masks = torch.rand(2, T, B, H, dtype=torch.float64, generator=generator)
    keep_h, keep_c = (masks < 0.3).double() if drawn else masks
    return replace(op, keep_h=keep_h, keep_c=keep_c if "c_0" in op.tensors else None, gradient_clip=0.05)


def with_resets(op: Operands, *, share: float = 0.3, learnt: bool = True, seed: int = 3) -> Operands:
    """Add boundaries between episodes at a ``share`` of all steps, one of them before the first step.

    ``learnt``: episodes begin with states that require gradients, in place of zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    resets = torch.rand(op.tensors["input"].shape[:2], generator=generator) < share
    resets[0, 0] = True
    tensors = dict(op.tensors)
    for name in ("h_0", "c_0") if learnt else ():
        if name in tensors:
            value = torch.randn(tensors[name].shape, dtype=torch.float64, generator=generator)
            tensors[name.replace("_0", "_reset")] = value.to(tensors[name].dtype).requires_grad_()
    return replace(op, tensors=tensors, resets=resets)


def episodes(resets: Tensor, length: int) -> list[tuple[int, int]]:
    """Return the start and end of each episode of a sequence, given its boundaries (T)."""
    begins = [0, *(t for t in range(1, length) if resets[t])]
    return list(zip(begins, [*begins[1:], length])) if length else []


def random_like(tensors: list[Tensor], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, dtype=torch.float64, generator=generator).to(t) for t in tensors]


def relative_errors(values: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Return the relative error of each tensor in the Euclidean norm."""
    errors = [
        ((v.double() - e.double()).norm() / e.double().norm().clamp_min(1e-30)).item() for v, e in zip(values, exact)
    ]
    assert all(e == e for e in errors), "NaN among the values"
    return errors


def relative_error(values: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest relative error of any of the tensors, each in the Euclidean norm."""
    return max(relative_errors(values, exact))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set the number of threads of torch's computations."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find_nvcc() -> str:
    """Return the path of the CUDA compiler, or skip the test if there is none."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc") or pytest.skip("no nvcc")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt the tests even in the background jobs of a script, which ignore it by default."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Reset torch.compile, which counts compilations of a function per process and refuses more than a limit."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(params=list(ops.CELLS))
def cell(request) -> str:
    return request.param


@pytest.fixture(params=FUSED)
def backend(request) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["forwards", "reverse"])
def reverse(request) -> bool:
    return request.param
