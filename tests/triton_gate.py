"""Compile Triton kernels without a GPU, and read the resources that they take.

A call is the real one of fused_rnn/triton/launch.py, stopped before the launch: arguments, constants, options and plan
are those that a GPU would see. ``run`` does this in a subprocess, with the installed Triton or with another.
"""

import os
import pickle
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from fused_rnn.cells import CELLS, Cell

ROOT = Path(__file__).parent.parent
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # the most of a block, by compute capability
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
APPROXIMATE = re.compile(r"\b(?:[a-z0-9]+\.approx|div\.full)\b[.\w]*")  # instructions of PTX


@dataclass(frozen=True)
class Case:
    """One kernel; ``str`` is what test ids show."""

    cell: str
    backward: bool
    dtype: torch.dtype
    architecture: int
    I: int
    H: int
    tf32: bool = False
    without: frozenset[str] = frozenset()  # the names in ``optional`` that are None

    def __str__(self) -> str:
        direction = "backward" if self.backward else "forward"
        dtype = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        given = [name for name in optional(self.cell, self.backward) if name not in self.without]
        only = f"-only-{'+'.join(given) or 'needed'}" if self.without else ""
        return f"{self.cell}-{direction}-{dtype}-sm_{self.architecture}-I{self.I}-H{self.H}{only}"


@dataclass(frozen=True)
class Usage:
    """The resources of a compiled kernel, and the promises of its plan."""

    resident: bool
    registers: int
    stack: int
    shared: int
    promised: int
    approximate: frozenset[str]  # the instructions whose results are not correctly rounded


def optional(cell: str, backward: bool) -> tuple[str, ...]:
    """Return the operands that a call may leave out, and in forward the results that only backward reads."""
    spec = CELLS[cell]
    of_cell_state = ("keep_c", "c_reset", *(("d_c_n", "d_cells") if backward else ("cells",)))
    names = ("d_output", "d_h_n") if backward else (*(n for n in spec.weights if n.startswith("bias")), "saved")
    return (*names, "lengths", "keep_h", "resets", "h_reset", *(of_cell_state if spec.has_cell_state else ()))


# In this process --------------------------------------------------------------------------------------------


def run(function: Callable, cases: list[Case], triton: Path | None = None) -> list:
    """Return ``function`` of each case, or its traceback, with the Triton of a folder or the installed one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if triton is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(triton), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command, asked = [sys.executable, "-m", "tests.triton_gate"], pickle.dumps((function, cases))
    options = {"stdout": subprocess.PIPE, "cwd": ROOT, "env": environment}
    return pickle.loads(subprocess.run(command, input=asked, check=True, **options).stdout)


# In the subprocess ------------------------------------------------------------------------------------------


def main() -> None:
    """Read a function and cases from standard input, and write the results, computed by one process per core."""
    function, cases = pickle.load(sys.stdin.buffer)
    answer, sys.stdout = sys.stdout.buffer, sys.stderr
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
        results = list(pool.map(partial(attempt, function), cases, chunksize=4))
    pickle.dump(results, answer)


def attempt(function: Callable, case: Case):
    try:
        return function(case)
    except Exception:
        return traceback.format_exc()


def translate_case(case: Case) -> None:
    """Compile to Triton's IR, which resolves everything that is particular to Python."""
    from triton._C.libtriton import ir
    from triton.compiler import make_backend

    source, target, options, _ = prepared(case)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options(options)
    generators, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    source.make_ir(target, options, generators, modules, context)


def compile_case(case: Case) -> Usage:
    """Compile to machine code."""
    import triton

    source, target, options, plan = prepared(case)
    compiled = triton.compile(source, target=target, options=options)
    registers, stack = resources(compiled.asm["cubin"])
    approximate = frozenset(APPROXIMATE.findall(compiled.asm["ptx"]))
    return Usage(plan.resident, registers, stack, compiled.metadata.shared, plan.shared_bytes, approximate)


def prepared(case: Case) -> tuple:
    """Return the arguments of ``triton.compile``, and the plan of the launch."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fused_rnn.triton import launch

    calls = []
    launch.shared_bytes = lambda _: SHARED_BYTES[case.architecture]
    launch._launch = lambda kernel, plan, like, batch, *args, **constants: calls.append((kernel, plan, args, constants))
    call_kernel(launch, case)
    ((kernel, plan, arguments, constants),) = calls
    constants = {**constants, **dict(plan.blocks), "PRECISION": "tf32" if case.tf32 else "ieee"}
    signature, attributes = {}, {}
    for index, (parameter, value) in enumerate(zip(kernel.params, arguments)):
        known = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or known:
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = {int: "i32", float: "fp32"}[type(value)]
        aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if parameter.name in signature and aligned and not parameter.do_not_specialize:
            attributes[(index,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {p.name: signature[p.name] for p in kernel.params}, constants, attributes)
    return source, GPUTarget("cuda", case.architecture, 32), launch.options(plan, nvidia=True), plan


def call_kernel(launch, case: Case) -> None:
    """Ask for a kernel with the case's operands."""
    spec, T, B = CELLS[case.cell], 2, 3
    operands = make_operands(spec, case, T, B)
    x, h_0, c_0, w = (operands[name] for name in ("input", "h_0", "c_0", "weights"))
    recurrent = (x if spec.multiplicative else None, h_0, c_0, w["weight_ih"], w["weight_hh"], w["weight_mhh"])
    of_steps, of_states = x.new_empty(T, B, case.H), x.new_empty(B, case.H)
    values = dict.fromkeys(("d_output", "d_cells", "keep_h", "keep_c"), of_steps)
    values |= dict.fromkeys(("d_h_n", "d_c_n", "h_reset", "c_reset"), of_states)
    values |= {"resets": torch.zeros(T, B, dtype=torch.bool)}
    values |= {"lengths": torch.ones(B, dtype=torch.int64), **w}
    given = {name: values.get(name) for name in optional(case.cell, case.backward) if name not in case.without}
    of_loop = ("lengths", "keep_h", "keep_c", "resets", "h_reset", "c_reset")
    around = (*map(given.get, of_loop), case.cell, False)
    if not case.backward:
        projected = x.new_empty(T, B, case.I if spec.modulates == "input" else spec.gates * case.H)
        biases = (given.get(name) for name in ("bias_m", "bias_ih", "bias_hh"))
        save = "everything" if "saved" in given else "states" if "cells" in given else "nothing"
        launch.forward(projected, *recurrent, *biases, *around, save)
        return
    saved = x.new_empty(T, B, spec.saved * case.H + spec.modulated_size(case.I, case.H))
    cells = of_steps if spec.has_cell_state else x.new_empty(0)
    gradients = (given.get(name) for name in ("d_output", "d_h_n", "d_c_n", "d_cells"))
    launch.backward(*gradients, of_steps, cells, saved, *recurrent, *around, 1.0)


def make_operands(spec: Cell, case: Case, T: int, B: int) -> dict:
    like = torch.empty(0, dtype=case.dtype)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_mhh", "bias_m")
    if spec.modulates != "input":
        names = names[1:]  # W x is a product before the kernel
    shapes = {name: spec.weight_shape(name, case.I, case.H) for name in names if name in spec.weights}
    weights = dict.fromkeys(("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_mhh", "bias_m"))
    weights |= {name: like.new_empty(shape) for name, shape in shapes.items()}
    h_0 = like.new_empty(B, case.H)
    c_0 = like.new_empty(B, case.H) if spec.has_cell_state else None
    modulated = like.new_empty(T, B, spec.modulated_size(case.I, case.H))
    return {"input": modulated, "h_0": h_0, "c_0": c_0, "weights": weights}


def resources(cubin: bytes) -> tuple[int, int]:
    """Return registers per thread and bytes of stack, where spilled registers go, of a cubin's only kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", report).groups()
    return int(registers), int(stack)


if __name__ == "__main__":
    main()
