"""The single entry point to the fused operators, and the checks of its arguments.

``csrc/ops.cpp`` declares the operators, which serve every cell, and ``derivatives`` completes them:

* ``fused_rnn::forward`` runs one layer in one direction over the whole sequence. With ``save="states"`` it also
  returns the cell states of all steps, with ``save="everything"`` all values that the backward pass reads;
* ``fused_rnn::backward`` turns gradients of its results into gradients of its inputs;
* ``fused_rnn::backward_from_states`` does the same if only states were saved, by means of the other two.

``fused_rnn::step`` and ``fused_rnn::step_backward`` are the first two for a single step on the CPU, without the
operands that a plain step lacks. They have no derivatives and no shape functions: only ``quick`` calls them, when that
is safe.

The Triton backend has operators of the same schemas, ``fused_rnn_triton::forward`` and so on, completed likewise.
``operands`` defines their arguments and results, and ``choice`` chooses between them.

``CELLS`` lists the cells; ``run`` is the only function that ``functional`` and ``modules`` use.
"""

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from . import autocast, batching, cuda, derivatives, episodes, triton_backend
from .cells import CELLS, WEIGHTS, Cell
from .choice import LIBRARY_LOADED, choose_backend, warn_of_reference
from .operands import ForwardCall, Operands

State = Tensor | tuple[Tensor, Tensor]
_NO_WEIGHTS = dict.fromkeys(WEIGHTS)


@autocast.casting
def run(
    cell_name: str,
    input: Tensor,
    state: State | None,
    weights: dict[str, Tensor | None],
    *,
    reverse: bool = False,
    lengths: Tensor | None = None,
    return_cells: bool = False,
    keep_h: Tensor | None = None,
    keep_c: Tensor | None = None,
    gradient_clip: float | None = None,
    resets: Tensor | None = None,
    h_reset: Tensor | None = None,
    c_reset: Tensor | None = None,
    backend: str = "auto",
    recompute: bool = False,
) -> tuple[Tensor, State] | tuple[Tensor, State, Tensor]:
    """Run one layer in one direction over a whole sequence; under torch.autocast in its dtype, see ``autocast``.

    Args:
        cell_name: a key of ``CELLS``.
        input: (T, B, I).
        state: h_0 (B, H), or (h_0, c_0) for cells with a cell state; None is zeros.
        weights: by name, as in ``Cell.weights``; a missing or None bias counts as zero.
        reverse, lengths, return_cells, keep_h, keep_c, gradient_clip, resets, h_reset, c_reset, backend, recompute: as
            in ``operands.Options``. On a GPU the values of lengths are not checked, because that would mean waiting for
            it; they are clamped to the valid range. Masks receive no gradient. Cell states and their masks require a
            cell that has them. h_reset and c_reset require resets, and may be (H), the same for all sequences.

    Returns:
        The outputs (T, B, H) and the final state, of the form of ``state``; then, with ``return_cells``, the cell
        states (T, B, H), which are zero past the end of a sequence, as outputs are.

    Raises:
        ValueError: unknown cell or backend, wrong rank, a missing or superfluous weight, cell states of a cell that
            has none, a mask with a gradient, a limit that is not positive, an initial state of episodes without resets.
        TypeError: a state, lengths, mask or resets of the wrong type.
        RuntimeError: sizes, dtypes or devices that do not fit each other, or a backend that cannot run the call.
    """
    if cell_name not in CELLS:
        raise ValueError(f"unknown cell {cell_name!r}: expected one of {', '.join(map(repr, CELLS))}")
    cell = CELLS[cell_name]
    if return_cells and not cell.has_cell_state:
        raise ValueError(f"return_cells=True asks for cell states, and cell {cell_name!r} has none")
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    _check_input(cell, input, weights)
    _check_lengths(lengths, input)
    h_0, c_0 = _split_state(cell, input, state, weights["weight_hh"].shape[1])
    if keep_c is not None and not cell.has_cell_state:
        raise ValueError(f"keep_c is of cells that have a cell state, and cell {cell_name!r} has none")
    keep_h = None if keep_h is None else _checked_mask("keep_h", keep_h, input, h_0.shape[1])
    keep_c = None if keep_c is None else _checked_mask("keep_c", keep_c, input, h_0.shape[1])
    check_gradient_clip(gradient_clip)
    if resets is not None:
        check_resets(resets, input.shape[:2], "(T, B)", input.device)
    begins = None if resets is None else episodes.beginnings(resets, reverse, lengths)
    operands = Operands(
        input=input,
        h_0=h_0,
        c_0=c_0,
        **{**_NO_WEIGHTS, **weights},
        lengths=lengths,
        keep_h=keep_h,
        keep_c=keep_c,
        cell=cell_name,
        reverse=reverse,
        gradient_clip=gradient_clip or 0.0,
        resets=begins,
        h_reset=_checked_beginning("h_reset", h_reset, begins, h_0),
        c_reset=_checked_beginning("c_reset", c_reset, begins, c_0),
    )
    choice = choose_backend(input.device, input.dtype, backend)
    # an empty batch has nothing to compute, and only the reference has forward-mode derivatives
    if choice.backend == "reference" or input.shape[1] == 0 or _differentiates_forward(backend):
        if choice.backend == "reference" and backend == "auto" and not torch.compiler.is_compiling():
            warn_of_reference(choice.reason)
        return _by_reference(operands, return_cells)
    operators = torch.ops.fused_rnn_triton if choice.backend == "triton" else torch.ops.fused_rnn
    return _by_kernels(operators, operands, return_cells, recompute)


def _by_reference(operands: Operands, return_cells: bool) -> tuple:
    _check_length_values(operands.lengths, operands.input)
    if operands.gradient_clip and torch._C._are_functorch_transforms_active():
        operands = batching.spread_for_clipping(operands)
    output, state, *cells = operands.by_reference(return_cells)
    # the states have memory of their own, as from the kernels: autograd may have saved that of the last step
    state = tuple(part.clone() for part in state) if isinstance(state, tuple) else state.clone()
    return output, state, *cells


def _by_kernels(operators, operands: Operands, return_cells: bool, recompute: bool) -> tuple:
    """Run a call by the operators of a namespace."""
    training = derivatives.are_differentiated(operands.differentiable)
    if torch.jit.is_tracing():  # a trace serves calls with and without gradients, so it saves states only
        training = recompute = derivatives.requires_grad(operands.differentiable)
    save = "everything" if training and not recompute else "states" if training or return_cells else "nothing"
    arguments = ForwardCall(operands, save).arguments
    if training or torch.compiler.is_compiling():
        output, h_n, c_n, cells, _ = operators.forward(*arguments)
    else:
        with torch._C._AutoDispatchBelowAutograd():  # autograd's Python part costs a third of a single step
            output, h_n, c_n, cells, _ = operators.forward(*arguments)
    last = h_n if operands.c_0 is None else (h_n, c_n)
    return (output, last, cells) if return_cells else (output, last)


def _differentiates_forward(backend: str) -> bool:
    """Whether a forward-mode derivative is being computed (torch.func.jvp, jacfwd), which no kernel supports."""
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level < 0:
        return False
    if backend != "auto":
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivatives: use backend='reference', or 'auto', which takes it"
        )
    return True


def _check_input(cell: Cell, input: Tensor, weights: dict[str, Tensor]) -> None:
    if input.dim() != 3:
        raise ValueError(f"input must be (T, B, I), three-dimensional, but has shape {tuple(input.shape)}")
    steps, _, input_size = input.shape
    if steps == 0 or input_size == 0:
        raise RuntimeError(f"input (T, B, I) must have at least one step and one feature, got {tuple(input.shape)}")
    for name in cell.required_weights:
        if name not in weights:
            raise ValueError(f"{name} is missing: this cell needs {', '.join(cell.required_weights)}")
    shape = weights["weight_hh"].shape
    if len(shape) != 2 or shape[1] == 0:
        raise RuntimeError(f"weight_hh must be (gates*H, H) with H >= 1, got {tuple(shape)}")
    hidden_size = shape[1]
    shapes = cell.weight_shapes(input_size, hidden_size)
    dtype, device = input.dtype, input.device
    for name, weight in weights.items():
        if name not in cell.weights:
            raise ValueError(f"{name} is not a parameter of this cell, which takes {', '.join(cell.weights)}")
        if weight.shape != shapes[name] or weight.dtype != dtype or weight.device != device:
            _check_tensor(name, weight, shapes[name], input, I=input_size, H=hidden_size)  # explains the error


def _check_lengths(lengths: Tensor | None, input: Tensor) -> None:
    """Check all but the values, which the operators check themselves."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
        given = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be an int64 tensor, got {given}")
    if lengths.shape != input.shape[1:2]:
        raise RuntimeError(f"lengths must have shape ({input.shape[1]},), one per sequence, got {tuple(lengths.shape)}")
    if lengths.device != input.device:
        raise RuntimeError(f"lengths is on {lengths.device} but input is on {input.device}: move one of them")


def _check_length_values(lengths: Tensor | None, input: Tensor) -> None:
    """Check the values for the reference, which would take any; but not if reading them means waiting for a device."""
    if lengths is None or lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return
    *_, values = derivatives.levels(lengths)
    for length in values.flatten().tolist():
        if not 0 <= length <= input.shape[0]:
            raise RuntimeError(f"lengths must be between 0 and T = {input.shape[0]}, got {length}")


def _checked_mask(name: str, mask: Tensor, input: Tensor, hidden_size: int) -> Tensor:
    """Return keep_h or keep_c in the dtype of the input."""
    shape = (*input.shape[:2], hidden_size)
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor (T, B, H) or None, got {type(mask).__name__}")
    if derivatives.requires_grad([mask]):
        raise ValueError(f"{name} is a mask, which has no gradient, but requires one: pass {name}.detach()")
    mask = mask.to(input.dtype)
    _check_tensor(name, mask, shape, input, T=shape[0], B=shape[1], H=shape[2])
    return mask


def check_resets(resets: Tensor, shape: Sequence[int], dimensions: str, device: torch.device) -> None:
    """Raise TypeError unless resets are a bool tensor, RuntimeError unless they have this shape and device."""
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
        given = resets.dtype if isinstance(resets, Tensor) else type(resets).__name__
        raise TypeError(f"resets must be a bool tensor {dimensions} or None, got {given}")
    if tuple(resets.shape) != tuple(shape):
        expected = f"{tuple(shape)}, {dimensions} of this input"
        raise RuntimeError(f"resets must have shape {expected}, got {tuple(resets.shape)}")
    if resets.device != device:
        raise RuntimeError(f"resets is on {resets.device} but input is on {device}: move one of them")


def _checked_beginning(name: str, state: Tensor | None, resets: Tensor | None, initial: Tensor | None) -> Tensor | None:
    """Return h_reset or c_reset as (B, H), also if given as (H); ``initial`` is the call's own state of this kind."""
    if state is None:
        return None
    if resets is None:
        raise ValueError(f"{name} is the state that episodes begin with, and goes with resets, which is missing")
    if initial is None:
        raise ValueError(f"{name} is of cells that have a cell state, and this cell has none")
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} must be a tensor (B, H) or (H), or None for zeros, got {type(state).__name__}")
    if state.dim() == 1 and state.shape == initial.shape[1:]:
        state = state.expand(initial.shape)
    _check_tensor(name, state, tuple(initial.shape), initial, B=initial.shape[0], H=initial.shape[1])
    return state


def check_gradient_clip(limit: float | None) -> None:
    """Raise TypeError unless the limit is a number or None, ValueError unless it is positive."""
    if limit is not None and (not isinstance(limit, numbers.Real) or isinstance(limit, bool)):
        raise TypeError(f"gradient_clip must be a number, or None for no limit, got {type(limit).__name__}")
    if limit is not None and not limit > 0:
        raise ValueError(f"gradient_clip must be greater than 0, or None for no limit, got {limit}")


def _split_state(cell: Cell, input: Tensor, state: State | None, hidden_size: int) -> tuple[Tensor, Tensor | None]:
    """Check the initial state, or make zeros, and return (h_0, c_0), with c_0 None for cells without one."""
    shape = (input.shape[1], hidden_size)
    if state is None:
        zeros = input.new_zeros(shape)
        return zeros, zeros if cell.has_cell_state else None
    check_state_form(cell, state)
    h_0, c_0 = state if cell.has_cell_state else (state, None)
    for name, tensor in (("h_0", h_0), ("c_0", c_0)):
        if tensor is not None:
            _check_tensor(name, tensor, shape, input, B=shape[0], H=shape[1])
    return h_0, c_0


def check_state_form(cell: Cell, state: State) -> None:
    """Raise TypeError unless a state is one tensor, or for cells with a cell state a pair of tensors."""
    parts = state if isinstance(state, tuple | list) else (state,)
    fits = len(parts) == 2 if cell.has_cell_state else isinstance(state, Tensor)
    if not fits or not all(isinstance(part, Tensor) for part in parts):
        expected = "a pair of tensors (h_0, c_0)" if cell.has_cell_state else "one tensor h_0"
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(f"the initial state of this cell is {expected}, got {type(state).__name__} of {kinds}")


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], input: Tensor, **sizes: int) -> None:
    if tensor.shape != shape:  # sizes are read only here, because torch.compile would specialise on them
        given = " and ".join(f"{size}={value}" for size, value in sizes.items())
        raise RuntimeError(f"{name} must have shape {shape} for {given}, got {tuple(tensor.shape)}")
    if tensor.dtype != input.dtype:
        raise RuntimeError(f"{name} is {tensor.dtype} but input is {input.dtype}: convert one of them")
    if tensor.device != input.device:
        raise RuntimeError(f"{name} is on {tensor.device} but input is on {input.device}: move one of them")


if LIBRARY_LOADED:
    cuda.register()
    derivatives.complete("fused_rnn")
triton_backend.register()
derivatives.complete(triton_backend.NAMESPACE)
