"""The CUDA kernels on the CPU, by the host shim: compiled, planned, and run as products.Kernels."""

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.kernel import build, calls
from benchmarks.gpu.kernel.calls import Chip, Plan
from fused_rnn import cuda, episodes, products
from fused_rnn.operands import DIFFERENTIABLE

from .conftest import Operands, Shape

ROOT = Path(__file__).parent.parent
SHIM = "tests/host_shim"
DIRECTIONS = list(calls.ARRAYS)
needs_compiler = pytest.mark.skipif(build.host_obstacle() is not None, reason=str(build.host_obstacle()))


@dataclass(frozen=True)
class Way:
    """A device, and how the work is divided there: a value of FUSED_RNN_CUDA_PLAN, or None to keep it."""

    multiprocessors: int
    shared_bytes: int
    forced: str | None = ""
    clusters: tuple[int, ...] = (0, 0, 0, 0, 0)
    tight: bool = False  # blocks get no more shared memory than a call needs, so that none share a multiprocessor

    @property
    def chip(self) -> Chip:
        return Chip.of(cuda.Chip(self.multiprocessors, self.shared_bytes, self.clusters))

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Set the plan in the environment for the code inside."""
        with pytest.MonkeyPatch.context() as patch:
            if self.forced is not None:
                patch.setenv(cuda.FORCED, self.forced)
            yield


# Compiled -----------------------------------------------------------------------------------------------------------


def compile_calls(name: str, target: Path, *flags: str, tree: Path = ROOT) -> Path:
    """Build NAME.cpp of a tree with few threads and short chunks; the runtime has no sanitizers."""
    build.compile_on_host(tree / SHIM / f"{name}.cpp", target, *flags, shim=tree / SHIM)
    return target


def changed_tree(folder: Path, name: str, pattern: str, replacement: str, times: int = 1) -> Path:
    """Return a copy of the sources with ``pattern`` replaced ``times`` times in one file."""
    for part in ("csrc/cells", "csrc/cuda", SHIM):
        shutil.copytree(ROOT / part, folder / part)
    (folder / name).write_text(changed(name, pattern, replacement, times))
    return folder


def changed(name: str, pattern: str, replacement: str, times: int = 1) -> str:
    """Return the text of a source with ``pattern`` replaced in ``times`` places."""
    text, count = re.subn(pattern, replacement, (ROOT / name).read_text(), flags=re.DOTALL)
    assert count == times, f"{name} has {pattern} in {count} places, not in {times}"
    return text


def library_of(name: str, folders: pytest.TempPathFactory, *flags: str, suffix: str = "") -> ctypes.CDLL:
    """Return NAME.cpp as a library, compiled for all of pytest's processes by the first that needs it.

    The suffix distinguishes libraries of one file with different flags.
    """
    base = folders.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"{name}-library{suffix}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).exists():
            compile_calls(name, folder / name, "-O0", "-shared", *flags)
    loaded = ctypes.CDLL(str(folder / name))
    for direction in DIRECTIONS:
        for verb in ("run", "plan"):
            getattr(loaded, f"{verb}_{direction}_call").restype = ctypes.c_char_p
    return loaded


def run_program(program: Path, way: Way, seed: int) -> subprocess.CompletedProcess:
    """Run a program of calls; its exit status is an error if it or a sanitizer finds a fault."""
    arguments = [program, str(way.multiprocessors), str(way.shared_bytes), str(seed)]
    with way.enforced():
        run = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=600)
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space randomisation")
    return run


# Planned and run ----------------------------------------------------------------------------------------------------


def plan_of(library, direction: str, cell: str, shape: Shape, way: Way, dtype: torch.dtype = torch.float64) -> Plan:
    """Return the plan of a call; raise RuntimeError if it cannot be launched."""
    return planned(library, direction, calls.sized(direction, cell, dtype, **vars(shape)), way)


def planned(library, direction: str, call: ctypes.Structure, way: Way) -> Plan:
    """Return the same for a call given as a structure."""
    plan = Plan()
    with way.enforced():
        error = getattr(library, f"plan_{direction}_call")(*map(ctypes.byref, (call, way.chip, plan)))
    if error:
        raise RuntimeError(error.decode())
    return plan


@dataclass
class HostKernels:
    """The kernels as products.Kernels wants them, run by the shim.

    In each call, the last ``missing`` blocks of the grid never start; or, in clusters, store number ``missing`` between
    blocks never arrives.
    """

    library: ctypes.CDLL
    way: Way
    seed: int = 0
    missing: int = 0
    misaligned: bool = False  # every array begins at an odd element

    def forward(self, *operands):
        return self.run(calls.forward(self.unwritten, *map(self.placed, operands)))

    def backward(self, *operands):
        return self.run(calls.backward(self.unwritten, *map(self.placed, operands)))

    def unwritten(self, like: Tensor, *shape: int) -> Tensor:
        """Return memory whose values must all be overwritten: NaN, or a number where NaN is expected."""
        return self.placed(torch.full(shape, 1.0 if self.missing else torch.nan, dtype=like.dtype))

    def placed(self, operand):
        """Return an operand, or, if ``misaligned``, a copy of a floating-point one at an odd element."""
        if not self.misaligned or not isinstance(operand, Tensor) or not operand.is_floating_point():
            return operand
        memory = operand.new_empty(operand.numel() + 1)[1:]
        return memory.view(operand.shape).copy_(operand)

    def run(self, call: calls.Call) -> tuple[Tensor, ...]:
        """Return the results; fail if the kernel does not finish, or should not and reports no timeout."""
        run, chip = getattr(self.library, f"run_{call.direction}_call"), self.way.chip
        if self.way.tight:
            chip.shared_bytes = planned(self.library, call.direction, call.structure, self.way).shared_bytes
        with self.way.enforced():
            error = run(ctypes.byref(call.structure), ctypes.byref(chip), self.seed, self.missing)
        assert error == b"", error.decode()
        assert call.timed_out == (self.missing > 0)
        return call.results


@torch.no_grad()
def run_kernels(op: Operands, d_results: list[Tensor], kernels: HostKernels) -> list[Tensor]:
    """Return the results and gradients of Operands.results_and_gradients, by the CUDA backend on the shim."""
    t = {name: tensor.detach() for name, tensor in op.tensors.items()}
    operands = [None if value is None else value.detach() for value in op.arguments()]
    operands += [op.cell, op.reverse, op.gradient_clip or 0.0]
    begins = None if op.resets is None else episodes.beginnings(op.resets, op.reverse, op.lengths)
    begin = [begins, t.get("h_reset"), t.get("c_reset")]
    *results, saved = products.forward(*operands, "everything", *begin, kernels=kernels)
    output, *_, cells = results
    results = results[: len(d_results)]
    d_results = [*(d.to(output.dtype) for d in d_results), None, None][:4]
    gradients = products.backward(*d_results, output, cells, saved, *operands, True, True, *begin, kernels=kernels)
    found = dict(zip(DIFFERENTIABLE, gradients))
    return [*results, *(found[name] for name in t)]
