"""Compiles a Triton kernel for a GPU that is not there, and reads what it takes.

The call is the real one of fused_rnn/triton/launch.py, stopped before the launch: arguments, constants, options and
plan are those that a GPU would see. test_triton.py does this in processes of its own.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from fused_rnn.cells import CELLS, Cell

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # of a block, at most, by compute capability
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


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

    def __str__(self) -> str:
        direction = "backward" if self.backward else "forward"
        dtype = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        return f"{self.cell}-{direction}-{dtype}-sm_{self.architecture}-I{self.I}-H{self.H}"


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes, and what its plan promised."""

    resident: bool
    registers: int
    stack: int
    shared: int
    promised: int


def compile_case(case: Case) -> Usage:
    import triton
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
            signature[parameter.name] = "i32"
        aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if parameter.name in signature and aligned and not parameter.do_not_specialize:
            attributes[(index,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {p.name: signature[p.name] for p in kernel.params}, constants, attributes)
    options = launch.options(plan, nvidia=True)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.architecture, 32), options=options)
    registers, stack = resources(compiled.asm["cubin"])
    return Usage(plan.resident, registers, stack, compiled.metadata.shared, plan.shared_bytes)


def call_kernel(launch, case: Case) -> None:
    """Ask for a kernel with every optional operand there."""
    spec, T, B = CELLS[case.cell], 2, 3
    operands = make_operands(spec, case, T, B)
    x, h_0, c_0, w = (operands[name] for name in ("input", "h_0", "c_0", "weights"))
    recurrent = (x if spec.multiplicative else None, h_0, c_0, w["weight_ih"], w["weight_hh"], w["weight_mhh"])
    lengths = torch.ones(B, dtype=torch.int64)
    keep = x.new_empty(T, B, case.H), x.new_empty(T, B, case.H) if spec.has_cell_state else None
    if not case.backward:
        projected = x.new_empty(T, B, case.I if spec.modulates == "input" else spec.gates * case.H)
        biases = (w["bias_m"], w["bias_ih"], w["bias_hh"])
        launch.forward(projected, *recurrent, *biases, lengths, *keep, case.cell, False, "everything")
        return
    output = x.new_empty(T, B, case.H)
    saved = x.new_empty(T, B, spec.saved * case.H + spec.modulated_size(case.I, case.H))
    cells = output if spec.has_cell_state else x.new_empty(0)
    d_states = (c_0, cells) if spec.has_cell_state else (None, None)
    launch.backward(output, h_0, *d_states, output, cells, saved, *recurrent, lengths, *keep, case.cell, False, 1.0)


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
    """Registers per thread and bytes of stack, where spilled registers go, of the one kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", report).groups()
    return int(registers), int(stack)
