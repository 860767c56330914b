"""The kernels as a pair of functions on tensors: the time loop forward and backward, and nothing else.

Arguments and results are those of ``fused_rnn::cuda_forward`` and ``cuda_backward``, named in ``operands.py``, and so
are the layouts of ``saved`` and ``d``. Nothing here waits for the device.
"""

import contextlib
import functools
import math
from collections.abc import Callable

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad
from triton.runtime.interpreter import InterpretedFunction

from ..operands import BackwardLoop, ForwardLoop, LoopGradients, Results
from . import backward as backward_kernels
from . import forward as forward_kernels
from .cells import CELLS
from .plan import BLOCK_B, Plan, choose_plan, split_name

INTERPRETED = isinstance(forward_kernels.forward_resident, InterpretedFunction)
if INTERPRETED:
    from . import interpreter

    interpreter.repair()


def forward(*loop) -> Results:
    """The loop forward, of what ``ForwardLoop`` names."""
    q = ForwardLoop(*loop)
    spec, (T, B, _), H = CELLS[split_name(q.cell)[0]], q.projected.shape, q.h_0.shape[1]
    multiplicative = q.input is not None
    I = q.input.shape[2] if multiplicative else 1
    keeps_cells, saves = spec.has_cell_state and q.save != "nothing", q.save == "everything"
    new = q.projected.new_empty
    results = Results(
        output=new(T, B, H),
        h_n=new(B, H),
        c_n=new((B, H) if spec.has_cell_state else 0),
        cells=new((T, B, H) if keeps_cells else 0),
        saved=new((T, B, spec.saved * H + (I if multiplicative else 0)) if saves else 0),
    )
    plan = choose_plan(q.cell, q.h_0.dtype, False, I, H, shared_bytes(q.h_0), q.resets is not None)
    weights, memory = _weights_and_memory(plan, spec.gates, 3, I, H, B, q.weight_ih, q.weight_hh, q.weight_mhh)
    _launch(
        forward_kernels.forward_resident if plan.resident else forward_kernels.forward_streamed,
        plan,
        q.h_0,
        B,
        *(_readable(t) for t in (q.projected, q.input, q.h_0, q.c_0)),
        *weights,
        *(_readable(t) for t in (q.bias_ih, q.bias_hh, q.bias_m, q.lengths, q.keep_h, q.keep_c)),
        *(_readable(t) for t in (_bytes(q.resets), q.h_reset, q.c_reset)),
        *(results.output, results.h_n, results.c_n if spec.has_cell_state else None),
        *(results.cells if keeps_cells else None, results.saved if saves else None),
        *(T, B, int(q.reverse), I, H),
        *memory,
        GATES=spec.gates,
        SAVED=spec.saved,
        FORWARD=spec.forward,
        CANDIDATE=spec.candidate,
    )
    return results


def backward(*loop) -> LoopGradients:
    """The loop backward, of what ``BackwardLoop`` names."""
    q = BackwardLoop(*loop)
    spec, (T, B, H) = CELLS[split_name(q.cell)[0]], q.output.shape
    multiplicative = q.input is not None
    I = q.input.shape[2] if multiplicative else 1
    new = q.output.new_empty

    def sums(beginning: Tensor | None) -> Tensor:
        return new(0) if beginning is None else q.output.new_zeros((B, H), dtype=torch.float32)

    results = LoopGradients(
        d_h_0=new(B, H),
        d_c_0=new((B, H) if spec.has_cell_state else 0),
        d=new(T, B, spec.gradients * H + (I if multiplicative else 0)),
        d_input=new((T, B, I) if multiplicative else 0),
        d_h_reset=sums(q.h_reset),
        d_c_reset=sums(q.c_reset),
    )
    plan = choose_plan(q.cell, q.h_0.dtype, True, I, H, shared_bytes(q.h_0), q.resets is not None)
    planes = spec.gradients
    weights, memory = _weights_and_memory(plan, spec.gates, planes, I, H, B, q.weight_ih, q.weight_hh, q.weight_mhh)
    _launch(
        backward_kernels.backward_resident if plan.resident else backward_kernels.backward_streamed,
        plan,
        q.h_0,
        B,
        *(_readable(t) for t in (q.d_output, q.d_h_n, q.d_c_n, q.d_cells, q.output)),
        *(_readable(t) for t in (q.cells if spec.has_cell_state else None, q.saved, q.input, q.h_0, q.c_0)),
        *weights,
        *(_readable(t) for t in (q.lengths, q.keep_h, q.keep_c, _bytes(q.resets), q.h_reset, q.c_reset)),
        *(results.d_h_0, results.d_c_0 if spec.has_cell_state else None),
        *(results.d, results.d_input if multiplicative else None),
        *(None if q.h_reset is None else results.d_h_reset, None if q.c_reset is None else results.d_c_reset),
        *(T, B, int(q.reverse), q.gradient_clip or math.inf, I, H),
        *memory,
        GATES=spec.gates,
        SAVED=spec.saved,
        GRADIENTS=spec.gradients,
        BYPASS=spec.bypass,
        CELL_STATE=spec.cell_state,
        BACKWARD=spec.backward,
        RESET=spec.reset,
    )
    return results


def shared_bytes(tensor: Tensor) -> int:
    """Shared memory that a program on the tensor's device may have."""
    if INTERPRETED:
        return 227 << 10  # as on sm_90, so that the interpreter takes the same paths
    return _shared_bytes_of(tensor.device.index)


@functools.cache
def _shared_bytes_of(device: int) -> int:
    return triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"]


def options(plan: Plan, nvidia: bool) -> dict:
    """What the compiler is told beside the kernel's own arguments."""
    chosen = {"num_warps": plan.warps, "num_stages": plan.stages, "enable_fp_fusion": True}
    # without a bound in plain sight, the assembler aims at more programs per multiprocessor, and spills for that
    return chosen | {"maxnreg": 255} if nvidia else chosen


def _launch(kernel: Callable, plan: Plan, like: Tensor, batch: int, *arguments, **constants) -> None:
    nvidia = like.device.type == "cuda" and torch.version.hip is None
    tf32 = nvidia and torch.backends.cuda.matmul.fp32_precision == "tf32"  # torch's own switch, off by default
    here = contextlib.nullcontext() if INTERPRETED else torch.accelerator.device_index(like.device.index)
    with here:
        kernel[(-(-batch // BLOCK_B),)](
            *arguments,
            PRECISION="tf32" if tf32 else "ieee",
            **constants,
            **dict(plan.blocks),
            **options(plan, nvidia),
        )


def _weights_and_memory(
    plan: Plan,
    gates: int,
    planes: int,
    I: int,
    H: int,
    batch: int,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    weight_mhh: Tensor | None,
) -> tuple[list[Tensor | None], tuple]:
    """The weights as the planned kernel reads them, and what its last arguments are in the streaming one."""
    if plan.resident:
        return [_readable(t) for t in (weight_ih, weight_hh, weight_mhh)], ()
    rows, columns = plan.round_up(H), plan.round_up(I)
    weights = [
        _padded(weight_ih, gates, rows, columns),
        _padded(weight_hh, gates, rows, rows),
        _padded(weight_mhh, 1, columns, rows),
    ]
    programs = -(-batch // BLOCK_B)
    states = weight_hh.new_empty(programs * BLOCK_B * 3 * rows, dtype=torch.float32)
    operands = weight_hh.new_empty(programs * BLOCK_B * (planes * rows + columns))
    return weights, (columns, rows, states, operands)


def _padded(weight: Tensor | None, gates: int, rows: int, columns: int) -> Tensor | None:
    """A weight with zeros after the rows of each gate and after the columns."""
    if weight is None:
        return None
    by_gate = weight.reshape(gates, -1, weight.shape[1])
    short = (columns - by_gate.shape[2], rows - by_gate.shape[1])
    if short == (0, 0):
        return _readable(weight)
    return pad(by_gate, (0, short[0], 0, short[1]))


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.view(torch.uint8)


def _readable(tensor: Tensor | None) -> Tensor | None:
    """Contiguous and aligned to 16 bytes, as the one kernel that Triton compiles for all calls expects it."""
    if tensor is None or (tensor.is_contiguous() and tensor.data_ptr() % 16 == 0):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
